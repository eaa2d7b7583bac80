//! The parent of a run: shares the sessions out, starts the measured phase, adds the figures up, and says what it sees.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Stdin};
use tokio::time::{Interval, MissedTickBehavior};

use crate::children::Children;
use crate::cli::{RunOptions, Scenario};
use crate::clock::{self, Nanos, SECOND};
use crate::figures::Figures;
use crate::plan::Plan;
use crate::results::{self, Measured, Memory};
use crate::setup::Setup;
use crate::task::{Order, Phases, Progress, Target, Task, Trouble, Word, Written};
use crate::{Result, report};

/// Sessions in one process, unless it is told otherwise.
const SESSIONS_IN_PROCESS: u32 = 15_000;
/// Addresses of a process on loopback: an address has 28,000 ports towards one target, and finds a free one quickly
/// while most of them are.
const SOURCES_OF_PROCESS: u32 = 2;
/// Where not one session is connected by then, and attempts fail, nobody is there.
const NOBODY_THERE: Nanos = 20 * SECOND;
/// Before anything is due, so that every child has its order by then.
const HEAD_START: Nanos = SECOND / 5;
/// How long the load goes on after a storm, once all are back.
const AFTER_STORM: Nanos = 3 * SECOND;

/// Runs a scenario. The exit code says whether every acknowledged message arrived.
pub async fn run(scenario: Scenario) -> Result<ExitCode> {
    let (setup, options) = Setup::of(scenario)?;
    let mut run = Run::start(setup, &options).await?;
    let connected = run.connect(Duration::from_secs(options.connect_limit)).await?;
    say(&connected);
    let mut result = Value::Null;
    let mut lost = false;
    while !options.wait || run.told_to_go().await? {
        let measured = run.measure(&options).await?;
        lost |= measured.figures.missing > 0;
        result = results::to_json(&run.setup, &measured, &connected);
        say(&json!({ "event": "done", "result": result }));
        if let Some(path) = &options.report {
            std::fs::write(path, report::html(&result)).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if !options.wait {
            break;
        }
    }
    run.stop().await?;
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{result}\n")).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    println!("{result}");
    Ok(if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One event on standard output.
fn say(event: &Value) {
    println!("{event}");
}

struct Run {
    setup: Setup,
    begun: Nanos,
    children: Children,
    progress: Vec<Progress>,
    /// The sum at the last line, for what happened since.
    shown: Progress,
    ticks: Interval,
    orders: tokio::io::Lines<BufReader<Stdin>>,
}

impl Run {
    async fn start(setup: Setup, options: &RunOptions) -> Result<Self> {
        let sessions = setup.users.count;
        let processes = options.processes.unwrap_or(sessions.div_ceil(SESSIONS_IN_PROCESS)).clamp(1, sessions.max(1));
        let begun = clock::now();
        let mut children = Children::start(processes as usize)?;
        let base = base_task(&setup, options, begun)?;
        for child in 0..processes {
            let at = |number: u32| u64::from(sessions) * u64::from(number) / u64::from(processes);
            let (first, next) = (u32::try_from(at(child))?, u32::try_from(at(child + 1))?);
            let share = f64::from(next - first) / f64::from(sessions.max(1));
            let trouble = match base.trouble {
                Trouble::Churn { per_second } => Trouble::Churn { per_second: per_second * share },
                other => other,
            };
            let sources = match options.source {
                None if base.targets.iter().all(|target| target.address.ip().is_loopback()) => {
                    let first = u32::from(Ipv4Addr::new(127, 0, 0, 2)) + child * SOURCES_OF_PROCESS;
                    (first..first + SOURCES_OF_PROCESS).map(Ipv4Addr::from).collect()
                }
                _ => base.sources.clone(),
            };
            let rate = f64::from(options.rate) * share;
            let task = Task { first, count: next - first, rate, trouble, sources, ..base.clone() };
            children.order(child as usize, &Order::Begin(Box::new(task))).await?;
        }
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let progress = vec![Progress::default(); children.count()];
        let orders = BufReader::new(tokio::io::stdin()).lines();
        Ok(Self { setup, begun, children, progress, shown: Progress::default(), ticks, orders })
    }

    /// Waits until all sessions are connected.
    async fn connect(&mut self, limit: Duration) -> Result<Value> {
        let mut memory = vec![None; self.children.count()];
        let end = tokio::time::Instant::now() + limit;
        while memory.iter().any(Option::is_none) {
            let heard = tokio::time::timeout_at(end, self.hear()).await;
            let heard = heard.map_err(|_| {
                let sum = self.sum();
                let reason = sum.last_failure.unwrap_or_else(|| "no attempt failed".to_owned());
                format!("{} of {} sessions are connected at the limit: {reason}", sum.live, self.setup.users.count)
            })??;
            let sum = self.sum();
            if sum.connects == 0 && sum.failures > 0 && clock::now() > self.begun + NOBODY_THERE {
                let reason = sum.last_failure.unwrap_or_default();
                return Err(format!("not one of {} attempts has succeeded: {reason}", sum.failures).into());
            }
            if let (child, Word::Ready { bytes_before, bytes_now }) = heard {
                memory[child] = Some((bytes_before, bytes_now));
            }
        }
        let memory = Memory::of(memory.into_iter().flatten(), self.setup.users.count);
        let sum = self.sum();
        Ok(json!({
            "event": "ready",
            "sessions": self.setup.users.count,
            "processes": self.children.count(),
            "connect_s": (clock::now() - self.begun) as f64 / SECOND as f64,
            "failed_attempts": sum.failures,
            "memory": memory.to_json(),
        }))
    }

    /// Waits for a line: whether the measured phase is to run (again).
    async fn told_to_go(&mut self) -> Result<bool> {
        loop {
            tokio::select! {
                line = self.orders.next_line() => match line?.as_deref().map(str::trim) {
                    Some("go") => return Ok(true),
                    Some("stop") | None => return Ok(false),
                    Some(other) => eprintln!("{other}: there are go and stop"),
                },
                heard = hear(&mut self.children, &mut self.progress) => { heard?; }
                _ = self.ticks.tick() => show(&self.setup, self.begun, &self.progress, &mut self.shown),
            }
        }
    }

    /// One measured phase.
    async fn measure(&mut self, options: &RunOptions) -> Result<Measured> {
        let mut at = clock::now() + HEAD_START;
        if self.setup.trouble != Trouble::None {
            // With a second of the run, so that what came before can be told from what came after.
            at = self.begun + (at - self.begun).next_multiple_of(SECOND);
        }
        let phases = self.setup.phases(at, options);
        self.children.order_all(&Order::Go(phases)).await?;
        let mut written = Written::default();
        let mut acted = 0;
        let mut end = phases.until;
        while acted < self.children.count() {
            match self.hear().await? {
                (_, Word::Acted(part)) => {
                    written.add(part);
                    acted += 1;
                }
                (_, Word::Progress(_)) => end = self.end_storm(&phases, end).await?,
                _ => {}
            }
        }
        // Nothing of this depends on who asks: everybody compares what is theirs.
        self.children.order_all(&Order::Verify(written)).await?;
        let mut figures = Figures::default();
        let mut told = 0;
        while told < self.children.count() {
            if let (_, Word::Outcome(part)) = self.hear().await? {
                figures.add(&part);
                told += 1;
            }
        }
        Ok(Measured { figures, phases: Phases { until: end, ..phases }, begun: self.begun, ended: clock::now() })
    }

    /// A storm is over a while after all are back, not only when its time is up.
    async fn end_storm(&mut self, phases: &Phases, end: Nanos) -> Result<Nanos> {
        let now = clock::now();
        let storm = matches!(self.setup.trouble, Trouble::Storm { .. });
        // The sessions need a moment to be gone.
        let begun = now > phases.trouble_from + SECOND;
        if !storm || !begun || end != phases.until || self.sum().live < u64::from(self.setup.users.count) {
            return Ok(end);
        }
        let end = (now + AFTER_STORM).min(phases.until);
        self.children.order_all(&Order::End(end)).await?;
        Ok(end)
    }

    async fn stop(self) -> Result<()> {
        self.children.stop().await
    }

    /// The next word of a child, with a line of progress each second meanwhile.
    async fn hear(&mut self) -> Result<(usize, Word)> {
        loop {
            tokio::select! {
                heard = hear(&mut self.children, &mut self.progress) => return heard,
                _ = self.ticks.tick() => show(&self.setup, self.begun, &self.progress, &mut self.shown),
            }
        }
    }

    fn sum(&self) -> Progress {
        sum(&self.progress)
    }
}

async fn hear(children: &mut Children, progress: &mut [Progress]) -> Result<(usize, Word)> {
    let (child, word) = children.hear().await?;
    if let Word::Progress(latest) = &word {
        progress[child] = latest.clone();
    }
    Ok((child, word))
}

fn sum(progress: &[Progress]) -> Progress {
    let mut sum = Progress::default();
    for one in progress {
        sum.live += one.live;
        sum.connects += one.connects;
        sum.failures += one.failures;
        sum.sent += one.sent;
        sum.acknowledged += one.acknowledged;
        sum.delivered += one.delivered;
        sum.p99_us = sum.p99_us.max(one.p99_us);
        if sum.last_failure.is_none() {
            sum.last_failure.clone_from(&one.last_failure);
        }
    }
    sum
}

/// The line for people, on standard error.
fn show(setup: &Setup, begun: Nanos, progress: &[Progress], shown: &mut Progress) {
    let now = sum(progress);
    let p99 = now.p99_us.map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1000.0));
    let failures = match (&now.last_failure, now.failures) {
        (Some(reason), failures @ 1..) => format!(", {failures} failed attempts ({reason})"),
        _ => String::new(),
    };
    eprintln!(
        "{} {:>4} s: {} of {} live, +{} connected, +{} due, +{} acknowledged, +{} received, p99 {p99}{failures}",
        setup.name,
        (clock::now() - begun) / SECOND,
        now.live,
        setup.users.count,
        now.connects - shown.connects,
        now.sent - shown.sent,
        now.acknowledged - shown.acknowledged,
        now.delivered - shown.delivered,
    );
    *shown = now;
}

fn base_task(setup: &Setup, options: &RunOptions, begun: Nanos) -> Result<Task> {
    Ok(Task {
        plan: Plan::read(&options.plan)?,
        begun,
        run: rand::random(),
        targets: options.urls.iter().map(|url| target(url)).collect::<Result<_>>()?,
        sources: options.source.as_ref().map(|sources| sources.0.clone()).unwrap_or_default(),
        users: setup.users,
        first: 0,
        count: 0,
        rate: 0.0,
        traffic: setup.traffic,
        body_bytes: setup.body_bytes,
        trouble: setup.trouble,
        share: setup.share,
        settle: options.settle * SECOND,
    })
}

fn target(url: &str) -> Result<Target> {
    let wrong = || format!("{url}: ws://HOST:PORT/v1/connect");
    let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
    let (host, path) = rest.find('/').map_or((rest, "/v1/connect"), |at| rest.split_at(at));
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut addresses = with_port.to_socket_addrs().map_err(|error| format!("{url}: {error}"))?;
    // Our own addresses are of the fourth version.
    let address = addresses.find(|address| matches!(address.ip(), IpAddr::V4(_))).ok_or_else(wrong)?;
    Ok(Target { address, host: host.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_target() {
        let found = target("ws://127.0.0.1:8080/v1/connect").expect("a target");
        assert_eq!((found.address.port(), found.path.as_str()), (8080, "/v1/connect"));
        assert_eq!(target("ws://127.0.0.1:9").expect("a target").path, "/v1/connect");
        assert!(target("http://127.0.0.1:9").is_err());
    }
}
