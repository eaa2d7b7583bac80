//! What machine this is, and which of its cores belong to whom.

use std::process::Command;

use serde_json::{Value, json};

/// Keeps the load on its own cores, where the run has set some apart. Threads started later stay there too.
pub fn pin_load() {
    if let Ok(cores) = std::env::var("ROOST_BENCH_LOAD_CPUS") {
        let pinned = Command::new("taskset").args(["-pc", &cores, &std::process::id().to_string()]).output();
        if !pinned.is_ok_and(|output| output.status.success()) {
            eprintln!("the load could not be pinned to the cores {cores}");
        }
    }
}

/// A command that runs on the servers' cores, where the run has set some apart.
pub fn server_command(program: &std::path::Path) -> tokio::process::Command {
    match std::env::var("ROOST_BENCH_SERVER_CPUS") {
        Ok(cores) => {
            let mut command = tokio::process::Command::new("taskset");
            command.args(["-c", &cores]).arg(program);
            command
        }
        Err(_) => tokio::process::Command::new(program),
    }
}

/// How many cores the servers have.
pub fn server_cores() -> usize {
    match std::env::var("ROOST_BENCH_SERVER_CPUS") {
        Ok(cores) => cores.split(',').count(),
        Err(_) => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// For the figures: cores, memory, kernel, processor, how they were shared out, and what was built.
pub fn describe() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory_kib: u64 = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(": ")))
        .map(|(_, name)| name.to_owned());
    json!({
        "cores": read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count(),
        "memory_gib": (memory_kib as f64 / 1024.0 / 1024.0 * 10.0).round() / 10.0,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": processor,
        "commit": std::env::var("ROOST_BENCH_COMMIT").ok(),
        "server_cores": std::env::var("ROOST_BENCH_SERVER_CPUS").ok(),
        "load_cores": std::env::var("ROOST_BENCH_LOAD_CPUS").ok(),
    })
}
