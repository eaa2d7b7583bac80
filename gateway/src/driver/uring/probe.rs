//! Whether io_uring works here, and if not, why and what to do about it.

use std::fmt;
use std::io;

use super::buffers::Buffers;
use super::ring::Ring;

/// The oldest kernel that has all that the driver asks for.
const KERNEL: &str = "6.8";

/// Why io_uring is not used, in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    reason: String,
    remedy: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; {}", self.reason, self.remedy)
    }
}

impl std::error::Error for Refusal {}

/// Makes a ring with everything that a shard's ring has, and lets it go again.
pub fn probe() -> Result<(), Refusal> {
    try_ring().map_err(|error| explain(&error, disabled_by_sysctl().as_deref()))
}

fn try_ring() -> io::Result<()> {
    let mut ring = Ring::new(1)?;
    let buffers = Buffers::new(&mut ring);
    drop(ring);
    buffers.map(drop)
}

fn disabled_by_sysctl() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    Some(text.trim().to_owned())
}

fn explain(error: &io::Error, disabled: Option<&str>) -> Refusal {
    let refusal = |reason: &str, remedy| Refusal { reason: reason.to_owned(), remedy };
    match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some("2")) => refusal(
            "io_uring is switched off on this machine (kernel.io_uring_disabled = 2)",
            "as root: sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM), Some("1")) => refusal(
            "io_uring is reserved for one group on this machine (kernel.io_uring_disabled = 1)",
            "add the user to the group of kernel.io_uring_group, or as root: sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(libc::EPERM | libc::EACCES), _) => refusal(
            "io_uring is refused to this process, as the seccomp profiles of Docker, containerd and Kubernetes do",
            "run it with a profile that allows io_uring_setup, io_uring_enter and io_uring_register",
        ),
        (Some(libc::ENOSYS), _) => refusal(
            "this kernel has no io_uring, or a seccomp profile hides it",
            "use Linux 6.8 or newer, with a profile that allows io_uring_setup, io_uring_enter and io_uring_register",
        ),
        (Some(libc::EINVAL), _) => Refusal {
            reason: format!("this kernel's io_uring lacks what is needed: Linux {KERNEL} has it"),
            remedy: "use a newer kernel",
        },
        (Some(libc::ENOMEM), _) => refusal(
            "there is no memory for a ring: the limit of locked memory is too low",
            "raise it (ulimit -l, or LimitMEMLOCK of the systemd unit)",
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            refusal("there is no descriptor left for a ring", "raise the limit of open files (ulimit -n)")
        }
        _ => Refusal {
            reason: format!("io_uring does not start: {error}"),
            remedy: "the portable driver serves instead",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_why_and_what_to_do() {
        let cases = [
            (libc::EPERM, Some("2"), "sysctl -w kernel.io_uring_disabled=0"),
            (libc::EPERM, Some("1"), "kernel.io_uring_group"),
            (libc::EPERM, Some("0"), "seccomp"),
            (libc::ENOSYS, None, "no io_uring"),
            (libc::EINVAL, Some("0"), "6.8"),
            (libc::ENOMEM, Some("0"), "ulimit -l"),
            (libc::EMFILE, Some("0"), "ulimit -n"),
            (libc::EIO, Some("0"), "portable driver"),
        ];
        for (code, disabled, expected) in cases {
            let refusal = explain(&io::Error::from_raw_os_error(code), disabled).to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }
}
