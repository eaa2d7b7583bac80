//! One process of a run: its sessions on one thread, over one io_uring by tokio-uring, and the orders of the parent.
//!
//! A session is one small task with a read of its own in flight. That was chosen after measuring: it stays well below
//! 2 KB of user memory, and needs no code of ours between the kernel and a session.

mod act;
mod backoff;
mod framing;
mod open;
mod outbox;
mod pacer;
mod receive;
mod session;
mod shard;
mod track;

use std::cell::Cell;
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::task::{Order, Progress, Task, Word};
use crate::{Result, memory};
use shard::Shard;

/// How often the parent hears how things stand.
const PROGRESS: Duration = Duration::from_millis(200);
/// Entries of the ring's queues: every session has a read in flight, and many may complete at once.
const SUBMISSIONS: u32 = 4_096;
const COMPLETIONS: u32 = 32_768;
/// Descriptors for everything that is no session.
const DESCRIPTORS_RESERVED: usize = 64;
/// Orders that wait; beyond, the parent waits at its pipe.
const ORDERS_MAX: usize = 16;

/// Runs until the parent says `stop` or goes away.
pub fn run() -> Result<ExitCode> {
    let orders = orders();
    let mut ring = tokio_uring::uring_builder();
    ring.setup_cqsize(COMPLETIONS);
    let mut builder = tokio_uring::builder();
    builder.entries(SUBMISSIONS).uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&builder)
        .map_err(|error| format!("io_uring is refused here ({error}): the swarm cannot run"))?;
    if let Err(error) = runtime.block_on(obey(orders)) {
        say(&Word::Failed(error.to_string()));
    }
    end()
}

async fn obey(mut orders: mpsc::Receiver<Order>) -> Result<()> {
    let bytes_before = memory::private_bytes();
    let Some(Order::Begin(task)) = orders.recv().await else { return Err("no task".into()) };
    check(&task)?;
    let shard = Shard::new(*task)?;
    tokio_uring::spawn(Rc::clone(&shard).build_up());
    tokio_uring::spawn(tell(Rc::clone(&shard), bytes_before));
    while let Some(order) = orders.recv().await {
        match order {
            Order::Begin(_) => return Err("it has begun already".into()),
            Order::Go(phases) => {
                let shard = Rc::clone(&shard);
                tokio_uring::spawn(async move { say(&Word::Acted(shard.act(phases).await)) });
            }
            Order::End(at) => shard.until.store(at, std::sync::atomic::Ordering::Relaxed),
            Order::Verify(written) => {
                let shard = Rc::clone(&shard);
                tokio_uring::spawn(async move { say(&Word::Outcome(Box::new(shard.verify(written).await))) });
            }
            Order::Stop => return Ok(()),
        }
    }
    Ok(())
}

fn check(task: &Task) -> Result<()> {
    let most = memory::raise_descriptors_max().saturating_sub(DESCRIPTORS_RESERVED);
    if task.count as usize > most {
        return Err(format!("{} sessions in a process of {most} descriptors: use more processes", task.count).into());
    }
    Ok(())
}

/// Tells how things stand, and once that everything is connected.
async fn tell(shard: Rc<Shard>, bytes_before: u64) {
    let ready = Cell::new(false);
    loop {
        tokio::time::sleep(PROGRESS).await;
        let lately = std::mem::take(&mut *shard.lately.borrow_mut());
        let p99_us = (!lately.0.is_empty()).then(|| lately.0.value_at_quantile(0.99));
        say(&Word::Progress(Progress { p99_us, ..shard.progress.borrow().clone() }));
        if !ready.get() && shard.is_ready() {
            ready.set(true);
            say(&Word::Ready { bytes_before, bytes_now: memory::private_bytes() });
        }
    }
}

fn say(word: &Word) {
    let line = serde_json::to_string(word).expect("figures are JSON");
    // A parent that is gone is seen at standard input.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// The parent's orders, read by a thread: its end is the end of this process.
fn orders() -> mpsc::Receiver<Order> {
    let (sender, receiver) = mpsc::channel(ORDERS_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(order) => {
                    if sender.blocking_send(order).is_err() {
                        break;
                    }
                }
                Err(error) => say(&Word::Failed(format!("an order is not understood: {error}"))),
            }
        }
        end();
    });
    receiver
}

#[expect(clippy::disallowed_methods, reason = "the kernel takes a process's sockets back at once, a ring one by one")]
fn end() -> ! {
    std::process::exit(0)
}
