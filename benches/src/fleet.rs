//! The load seen from the bench: crowds, each a process, that take orders.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::Result;
use crate::target::Target;

/// Sessions of one crowd: below the 20,000 descriptors that a process may usually have.
pub const CROWD_SESSIONS_MAX: usize = 17_000;
/// No order takes longer.
const ORDER_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Crowds that connect at one time: as many as the load has cores.
const OPENING_AT_ONCE: usize = 2;

/// One process of the load.
pub struct Crowd {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// A crowd without a session, for the users from `first_user` on.
    pub async fn start(target: &Target, first_user: usize, body_bytes: usize) -> Result<Self> {
        Self::start_from(target, first_user, body_bytes, 1).await
    }

    /// A crowd that connects from so many addresses in turn.
    pub async fn start_from(target: &Target, first_user: usize, body_bytes: usize, sources: u32) -> Result<Self> {
        let third = u8::from(sources > 1);
        let source = Ipv4Addr::new(127, 0, third, u8::try_from(2 + first_user / CROWD_SESSIONS_MAX)?);
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.args(["crowd", "--address", &target.address()?.to_string(), "--source", &source.to_string()]);
        command.args(["--first-user", &first_user.to_string(), "--body-bytes", &body_bytes.to_string()]);
        command.args(["--sources", &sources.to_string()]);
        if let Some(plan) = target.plan_file() {
            command.arg("--plan").arg(plan);
        }
        if let Some(certificate) = target.certificate() {
            command.arg("--trust").arg(certificate);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let orders = child.stdin.take().ok_or("no input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self { child, orders, answers })
    }

    /// Has an order carried out.
    pub async fn order(&mut self, order: &str) -> Result<Value> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await?;
        let answer = tokio::time::timeout(ORDER_LIMIT, self.answers.next_line()).await??;
        match answer {
            Some(answer) => Ok(serde_json::from_str(&answer)?),
            None => Err(format!("a crowd ended at `{order}`: {:?}", self.child.wait().await).into()),
        }
    }

    /// Connects until so many sessions are live.
    pub async fn open(&mut self, total: usize, per_second: usize) -> Result<()> {
        let outcome = self.order(&format!("open {total} {per_second}")).await?;
        if outcome["live"].as_u64() == Some(total as u64) {
            return Ok(());
        }
        Err(format!("not all {total} sessions came about: {outcome}").into())
    }
}

/// As many crowds as the sessions need.
#[derive(Default)]
pub struct Fleet {
    crowds: Vec<Crowd>,
}

impl Fleet {
    /// Connects until so many sessions are live, crowd by crowd, and tells of every crowd that is done.
    pub async fn open(&mut self, target: &Target, total: usize, per_second: usize, told: impl Fn(usize)) -> Result<()> {
        while self.crowds.len() * CROWD_SESSIONS_MAX < total {
            self.crowds.push(Crowd::start(target, self.crowds.len() * CROWD_SESSIONS_MAX, 128).await?);
        }
        let opened = AtomicUsize::new(0);
        let crowds = std::mem::take(&mut self.crowds).into_iter().enumerate();
        let (opened, told) = (&opened, &told);
        let opening = crowds.map(async |(number, mut crowd)| {
            let wanted = total.saturating_sub(number * CROWD_SESSIONS_MAX).min(CROWD_SESSIONS_MAX);
            crowd.open(wanted, per_second / OPENING_AT_ONCE).await?;
            told(opened.fetch_add(wanted, Ordering::Relaxed) + wanted);
            Ok::<_, crate::Failure>(crowd)
        });
        self.crowds = futures::stream::iter(opening).buffered(OPENING_AT_ONCE).try_collect().await?;
        Ok(())
    }

    /// Gives the crowd of a user's session an order that begins with its name and the session's number there.
    pub async fn order_of(&mut self, user: usize, order: &str, rest: &str) -> Result<Value> {
        let crowd = self.crowds.get_mut(user / CROWD_SESSIONS_MAX).ok_or("no such session")?;
        crowd.order(&format!("{order} {} {rest}", user % CROWD_SESSIONS_MAX)).await
    }

    /// Gives all the same order, and sums up one figure of their answers.
    pub async fn sum(&mut self, order: &str, figure: &str) -> Result<u64> {
        let mut sum = 0;
        for crowd in &mut self.crowds {
            sum += crowd.order(order).await?[figure].as_u64().unwrap_or(0);
        }
        Ok(sum)
    }
}
