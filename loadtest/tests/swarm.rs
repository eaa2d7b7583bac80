//! The swarm's scenarios, small, against a real server: what they report is true, every message counted once.

mod common;

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};

use common::Server;
use serde_json::Value;

/// The swarm under test.
const SWARM: &str = env!("CARGO_BIN_EXE_roost-swarm");
const USERS: u32 = 400;
const MEMBERS: u32 = 200;

/// A seeded server of its own for each test.
struct Seeded {
    server: Server,
}

impl Seeded {
    fn start() -> Self {
        Self::with(USERS, MEMBERS)
    }

    fn with(users: u32, members: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let seeded = Command::new(SWARM)
            .args(["seed", "--users", &users.to_string()])
            .args(["--conversations", &format!("pairs={},groups=2,members={members}", users / 2)])
            .arg("--data")
            .arg(folder.path().join("data"))
            .arg("--plan")
            .arg(folder.path().join("plan.json"))
            .stdout(Stdio::null())
            .status();
        assert!(seeded.expect("the swarm runs").success(), "the seed");
        Self { server: Server::start(folder) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.server.folder.path().join(name)
    }

    fn plan(&self) -> PathBuf {
        self.path("plan.json")
    }

    fn swarm(&self, scenario: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(SWARM);
        let url = format!("{}/v1/connect", self.server.address.replacen("http", "ws", 1));
        command.arg(scenario).arg("--plan").arg(self.plan()).args(["--url", &url]);
        // Generous: these tests are about numbers, not about time.
        command.args(["--processes", "2", "--settle", "150", "--warm-up", "1"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Runs a scenario to its end: its exit code is good, and its last line is the result.
    fn run(&self, scenario: &str, arguments: &[&str]) -> Value {
        let output = self.swarm(scenario, arguments).output().expect("the swarm runs");
        assert!(output.status.success(), "{scenario}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let result: Value = serde_json::from_str(text.lines().last().expect("a last line")).expect("JSON");
        assert_eq!(result["scenario"], scenario);
        assert_eq!(count(&result, "missing"), 0, "{result}");
        assert_eq!(count(&result, "unanswered"), 0, "{result}");
        assert_eq!(count(&result, "delivered"), count(&result, "expected"), "{result}");
        assert_eq!(count(&result, "given_up"), 0, "{result}");
        result
    }
}

fn count(result: &Value, name: &str) -> u64 {
    result[name].as_u64().unwrap_or_else(|| panic!("{name} is a count in {result}"))
}

#[test]
fn chat_counts_every_message_once_on_both_sides() {
    let server = Seeded::start();
    let report = server.path("chat.html");
    let arguments = ["--sessions", "200", "--per-second", "100", "--duration", "3"];
    let result = server.run("chat", &[&arguments[..], &["--report", report.to_str().expect("UTF-8")]].concat());
    // A hundred a second for the second of warm-up and the three that count.
    assert_eq!(count(&result, "due"), 400);
    assert_eq!(count(&result, "acknowledged"), 400);
    assert_eq!(count(&result, "expected"), 800, "its own session and the other's");
    assert_eq!(count(&result["latency_ms"]["received"], "count"), 300, "measured at the other");
    assert_eq!(count(&result["latency_ms"]["sent"], "count"), 300);
    let page = std::fs::read_to_string(report).expect("a report");
    assert!(page.contains("Every message arrived") && page.contains("<svg"));
}

#[test]
fn a_broadcast_reaches_every_member_once() {
    let server = Seeded::start();
    let arguments = ["--sessions", "200", "--group", "1", "--messages", "20", "--per-second", "10"];
    let result = server.run("broadcast", &arguments);
    assert_eq!(count(&result, "acknowledged"), 20);
    assert_eq!(count(&result, "expected"), 20 * u64::from(MEMBERS));
    assert_eq!(count(&result["latency_ms"]["received"], "count"), 20 * u64::from(MEMBERS - 1), "without the sender");
}

#[test]
fn every_ping_has_its_pong() {
    let server = Seeded::start();
    let result = server.run("ping", &["--sessions", "100", "--per-second", "200", "--duration", "2"]);
    assert_eq!((count(&result, "due"), count(&result, "pongs")), (600, 600));
    assert_eq!(count(&result["latency_ms"]["pong"], "count"), 400);
}

#[test]
fn those_who_come_and_go_miss_nothing() {
    let server = Seeded::start();
    let arguments = ["--sessions", "200", "--share", "0.5", "--churn", "40", "--per-second", "100", "--duration", "4"];
    let result = server.run("churn", &arguments);
    assert_eq!(count(&result, "troubled"), 100);
    assert_eq!(count(&result, "expected"), 2 * count(&result, "acknowledged"));
    let (left, cut) = (count(&result["closes"], "left"), count(&result["closes"], "cut"));
    assert!(left > 0 && cut > 0, "{result}");
    assert_eq!(count(&result, "reconnects"), left + cut, "whoever went came back");
}

#[test]
fn a_storm_brings_all_back_and_loses_nothing() {
    let server = Seeded::start();
    let arguments =
        ["--sessions", "200", "--share", "0.8", "--before", "2", "--per-second", "100", "--duration", "120"];
    let result = server.run("storm", &arguments);
    assert_eq!(count(&result, "troubled"), 160);
    assert_eq!(count(&result["closes"], "cut"), 160);
    assert_eq!(count(&result, "reconnects"), 160);
    assert!(result["all_back_s"].is_number() && result["others_p99_ratio"].is_number(), "{result}");
    assert_eq!(count(&result, "expected"), 2 * count(&result, "acknowledged"));
}

#[test]
fn slow_readers_are_closed_and_have_everything_in_the_end() {
    let server = Seeded::start();
    let arguments = ["--sessions", "20", "--share", "0.2", "--before", "2", "--per-second", "100", "--duration", "12"];
    let result = server.run("slow", &arguments);
    assert_eq!(count(&result, "troubled"), 4);
    assert_eq!(count(&result, "slow_closed"), 4, "more than a queue and the kernel's buffers hold: {result}");
    assert_eq!(count(&result, "expected"), 20 * count(&result, "acknowledged"));
}

#[test]
fn another_program_can_start_and_end_the_measured_phase() {
    let server = Seeded::start();
    let arguments = ["--sessions", "400", "--sample", "150", "--duration", "0", "--wait"];
    let mut child = server.swarm("idle", &arguments).stdin(Stdio::piped()).spawn().expect("the swarm runs");
    let mut orders = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let ready = next(&mut lines);
    assert_eq!((ready["event"].as_str(), count(&ready, "sessions")), (Some("ready"), 400));
    assert!(count(&ready["memory"], "client_bytes_per_session") > 0);
    for _ in 0..2 {
        writeln!(orders, "go").expect("an order");
        let done = next(&mut lines);
        assert_eq!(done["event"], "done");
        let result = &done["result"];
        assert_eq!(count(result, "sampled"), u64::from(MEMBERS), "one whole group");
        assert_eq!(count(result, "sampled_delivered"), u64::from(MEMBERS), "{result}");
        assert_eq!(count(result, "acknowledged"), 1, "{result}");
    }
    writeln!(orders, "stop").expect("an order");
    assert_eq!(next(&mut lines)["event"], "result");
    assert!(child.wait().expect("its end").success());
}

/// As many as a process of any system holds; the million is a bench.
#[test]
fn fifteen_thousand_sessions_are_held_and_a_sample_of_them_is_reached() {
    const SESSIONS: u32 = 15_000;
    const SAMPLE: u32 = 2_000;
    let server = Seeded::with(SESSIONS, SAMPLE);
    let sessions = SESSIONS.to_string();
    let arguments = ["--sessions", &sessions, "--sample", &SAMPLE.to_string(), "--duration", "5"];
    let result = server.run("idle", &arguments);
    assert_eq!(count(&result, "sampled"), u64::from(SAMPLE), "one whole group");
    assert_eq!(count(&result, "sampled_delivered"), u64::from(SAMPLE), "{result}");
    assert_eq!(count(&result, "reconnects"), 0, "{result}");
}

fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = lines.next().expect("a line").expect("UTF-8");
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn tokens_are_printed_for_clients_of_other_kinds() {
    let server = Seeded::start();
    let output = Command::new(SWARM)
        .args(["tokens", "--count", "3", "--first-user", "1", "--plan"])
        .arg(server.plan())
        .output()
        .expect("the swarm runs");
    let users: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let users = users.as_array().expect("a list");
    assert_eq!(users.len(), 3);
    assert!(users.iter().all(|user| user["token"].as_str().is_some_and(|token| token.split('.').count() == 3)));
    assert_eq!(users[1]["direct"], users[2]["direct"], "users 2 and 3 are a pair");
}
