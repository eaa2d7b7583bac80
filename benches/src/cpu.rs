//! CPU time and memory of processes, read from /proc.

use std::collections::{HashMap, HashSet};

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

/// Resident memory of a process in bytes, shared pages counted by their share.
pub fn memory_bytes(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix("Pss:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
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
        assert!(memory_bytes(own).is_some_and(|bytes| bytes > 100_000));
    }
}
