//! CPU time and memory of processes and of the kernel: /proc, and the clock of a process.

use std::collections::{HashMap, HashSet};

use crate::Result;

/// Linux counts in these; it has been 100 a second on every machine for decades.
const TICKS_PER_SECOND: u64 = 100;

/// Microseconds of CPU that these processes and all their descendants have used so far.
pub fn micros_of_trees(roots: &[u32]) -> u64 {
    let processes = all();
    let mut wanted: HashSet<u32> = roots.iter().copied().collect();
    // A parent may come after its child in the listing: go round until nothing is added.
    loop {
        let before = wanted.len();
        wanted.extend(
            processes.iter().filter(|(_, p)| wanted.contains(&p.parent)).map(|(&id, _)| id).collect::<Vec<_>>(),
        );
        if wanted.len() == before {
            break;
        }
    }
    wanted.iter().filter_map(|id| processes.get(id)).map(|p| p.ticks * 1_000_000 / TICKS_PER_SECOND).sum()
}

/// Nanoseconds of CPU that one process has used so far, threads that have ended included. /proc says the same in steps
/// of ten milliseconds only.
pub fn process_nanos(process: u32) -> Result<u64> {
    let process = nix::unistd::Pid::from_raw(i32::try_from(process)?);
    let spent = nix::time::clock_getcpuclockid(process)?.now()?;
    Ok(u64::try_from(std::time::Duration::from(spent).as_nanos())?)
}

/// Resident memory of a process in bytes, shared pages counted by their share.
pub fn memory_bytes(process: u32) -> Option<u64> {
    kibibytes(&format!("/proc/{process}/smaps_rollup"), "Pss:").map(|kib| kib * 1024)
}

/// Memory in bytes that the process alone holds: heap, stacks and buffers, whoever allocated them, but no page that
/// another process shares (program text, libraries).
pub fn private_bytes(process: u32) -> Option<u64> {
    let path = format!("/proc/{process}/smaps_rollup");
    Some((kibibytes(&path, "Private_Clean:")? + kibibytes(&path, "Private_Dirty:")?) * 1024)
}

/// The kernel's own objects on the whole machine, in bytes: sockets, descriptors, epoll's and io_uring's entries among them.
pub fn slab_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "Slab:").map(|kib| kib * 1024)
}

/// Memory in bytes that new work could have without swapping.
pub fn available_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024)
}

fn kibibytes(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

struct Process {
    parent: u32,
    /// Own user and system time, and that of children it has waited for.
    ticks: u64,
}

fn all() -> HashMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((id, read(id)?))
        })
        .collect()
}

fn read(id: u32) -> Option<Process> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is regular.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Process { parent: fields.get(1)?.parse().ok()?, ticks: (11..=14).filter_map(number).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_used_cpu_and_memory() {
        let own = std::process::id();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
        while std::time::Instant::now() < until {}
        assert!(micros_of_trees(&[own]) > 0);
        assert!(process_nanos(own).unwrap() > 0);
        assert!(memory_bytes(own).is_some_and(|bytes| bytes > 100_000));
        assert!(private_bytes(own).is_some_and(|bytes| bytes > 100_000));
        assert!(slab_bytes().is_some() && available_bytes().is_some());
    }
}
