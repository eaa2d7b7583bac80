//! Memory, CPU and descriptors of this process, read from /proc.

/// Memory of this process in bytes that nothing else shares: code is shared with its siblings.
pub fn private_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    (kib("Private_Dirty:") + kib("Private_Clean:")) * 1024
}

/// Linux counts in these; it has been 100 a second on every machine for decades.
const TICKS_PER_SECOND: u64 = 100;

/// Microseconds of CPU that this process has used.
pub fn cpu_us() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything; what follows the last one is regular.
    let fields: Vec<&str> =
        text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks: u64 = [11, 12].iter().filter_map(|&at: &usize| fields.get(at)?.parse::<u64>().ok()).sum();
    ticks * 1_000_000 / TICKS_PER_SECOND
}

/// Asks for as many descriptors as this process can get, and says how many it may have.
pub fn raise_descriptors_max() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused: it stays as it was.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
