//! The k6 scripts and the goose scenarios against a real server, where their programs are: they are no part of the
//! build, and a test run without them says what it skipped.

#[allow(dead_code, reason = "shared with the swarm's tests")]
mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Server;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that a variable names, that stands at its usual place, or that the PATH has; without it the skip is told.
fn program(name: &str, variable: &str, usual: &Path) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let in_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        folders
    });
    let in_path = in_path.map(|folder| folder.join(name));
    let found = named.into_iter().chain([usual.to_owned()]).chain(in_path).find(|path| path.is_file());
    if found.is_none() {
        let skip = format!("roost-loadtest: {name} is not installed (loadtest/README.md says how)");
        eprintln!("skipped: {skip}");
        if let Some(path) = std::env::var_os("ROOST_TEST_SKIPS") {
            let file = std::fs::File::options().create(true).append(true).open(path);
            writeln!(file.expect("the file of skips"), "{skip}").expect("the file of skips");
        }
    }
    found
}

fn k6(script: &str) {
    let Some(k6) = program("k6", "ROOST_TEST_K6", Path::new("/usr/bin/k6")) else { return };
    let server = Server::start(tempfile::tempdir().expect("a folder"));
    let output = Command::new(k6)
        .args(["run", "--quiet", "--no-usage-report"])
        .args(["-e", &format!("URL={}", server.address), "-e", "VUS=6", "-e", "SECONDS=4"])
        .arg(folder().join("k6").join(script))
        .output()
        .expect("k6 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    // Its thresholds: every session connected, every send answered, every message of both there.
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let messages = text.lines().find_map(|line| line.trim().strip_prefix("roost_messages")).expect("messages");
    let count = messages.split([':', ' ']).find_map(|word| word.parse::<u64>().ok());
    // Twice a second for four seconds, give or take the last one, of two, at two, in three pairs.
    assert!(count.is_some_and(|count| (3 * 4 * 7..=3 * 4 * 9).contains(&count)), "{messages}");
}

#[test]
fn k6_speaks_json() {
    k6("json.js");
}

#[test]
fn k6_speaks_protobuf() {
    k6("binary.js");
}

#[test]
fn goose_finds_over_rest_what_it_wrote() {
    let usual = folder().join("goose/target/release/roost-goose");
    let Some(goose) = program("roost-goose", "ROOST_TEST_GOOSE", &usual) else { return };
    let server = Server::start(tempfile::tempdir().expect("a folder"));
    let output = Command::new(goose)
        .args(["--host", &server.address, "--users", "6", "--increase-rate", "6", "--run-time", "6s"])
        .args(["--no-telnet", "--no-websocket"])
        .output()
        .expect("goose runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
