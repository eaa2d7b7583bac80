//! A watcher process that stops what we started and removes our folder, even if we are killed.

use crate::Result;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Every process that we start carries this variable with our folder in it, so that even a grandchild that left its
/// process group is found.
pub const MARK: &str = "ROOST_RUN_MARK";

/// Holds the only writing end of the watcher's input. When we end, however we end, the watcher reads end of file.
pub struct Janitor {
    watcher: Child,
    input: Option<ChildStdin>,
    folder: PathBuf,
}

impl Janitor {
    /// Makes the temporary folder of this run and starts its watcher.
    pub fn start() -> Result<Janitor> {
        let folder = tempfile::Builder::new()
            .prefix("roost-")
            .tempdir_in(disk_folder())
            .map_err(|error| format!("temporary folder: {error}"))?
            .keep();
        // PostgreSQL runs as another user where we are root, and must get through.
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut watcher = Command::new("sh")
            .arg("-c")
            .arg(SCRIPT)
            .arg("roost-janitor")
            .arg(&folder)
            .arg(MARK)
            .env_remove(MARK)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("sh: {error}"))?;
        let input = watcher.stdin.take();
        Ok(Janitor { watcher, input, folder })
    }

    /// The temporary folder, removed at the end. Others may enter it but not write.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a process in a group of its own, which gets `signal` when this run ends.
    pub fn spawn(&self, command: &mut Command, signal: &str) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .env(MARK, &self.folder)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        self.tell(&format!("watch {signal} {}\n", child.id()));
        Ok(child)
    }

    /// To be called once the group is gone: its number may belong to strangers from now on.
    pub fn forget(&self, group: u32) {
        self.tell(&format!("forget - {group}\n"));
    }

    fn tell(&self, line: &str) {
        if let Some(mut input) = self.input.as_ref() {
            // Short lines are written whole. A watcher that is gone has cleaned up already.
            let _ = input.write_all(line.as_bytes());
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.watcher.wait();
    }
}

/// Sends a signal to a whole process group that we started.
pub fn signal_group(group: u32, signal: &str) {
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -s {signal} -- -{group}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// The system's temporary folder, unless it is in memory: there fsync costs nothing, and figures would lie.
fn disk_folder() -> PathBuf {
    let preferred = std::env::temp_dir();
    if std::env::var_os("TMPDIR").is_some() {
        return preferred;
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let in_memory = mounts.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().map(Path::new) == Some(&preferred) && fields.next() == Some("tmpfs")
    });
    let on_disk = PathBuf::from("/var/tmp");
    if in_memory && on_disk.is_dir() { on_disk } else { preferred }
}

/// Reads `watch SIGNAL GROUP` and `forget - GROUP` until end of file, then cleans up. Ctrl-C does not reach it.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
folder=$1 mark=$2 groups=
while read -r word signal group; do
    case $word in
    watch) groups="$groups $signal:$group" ;;
    forget)
        kept=
        for entry in $groups; do [ "${entry#*:}" = "$group" ] || kept="$kept $entry"; done
        groups=$kept ;;
    esac
done
for entry in $groups; do kill -s "${entry%%:*}" -- "-${entry#*:}" 2>/dev/null; done
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    alive=
    for entry in $groups; do kill -s 0 -- "-${entry#*:}" 2>/dev/null && alive="$alive ${entry#*:}"; done
    [ -n "$alive" ] || break
    sleep 0.2
done
for group in $alive; do kill -s KILL -- "-$group" 2>/dev/null; done
for file in $(grep -lzx -- "$mark=$folder" /proc/[0-9]*/environ 2>/dev/null); do
    process=${file#/proc/}; process=${process%/environ}
    echo "left behind by a test, stopped now: $process $(tr '\0' ' ' <"/proc/$process/cmdline" 2>/dev/null | cut -c 1-120)" >&2
    kill -s KILL "$process" 2>/dev/null
done
rm -rf -- "$folder"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn gone_within(path: &Path, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if !path.exists() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    #[test]
    fn the_end_of_a_run_stops_its_groups_and_those_who_left_them() {
        let janitor = Janitor::start().unwrap();
        let folder = janitor.folder().to_owned();
        let mut child =
            janitor.spawn(Command::new("sh").args(["-c", "setsid sleep 300 & exec sleep 300"]), "TERM").unwrap();
        let list = format!("grep -lzx -- {MARK}={} /proc/[0-9]*/environ 2>/dev/null | wc -l", folder.display());
        let count = || {
            let output = Command::new("sh").args(["-c", &list]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().unwrap()
        };
        let end = Instant::now() + Duration::from_secs(10);
        while count() < 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let reaper = std::thread::spawn(move || child.wait());
        drop(janitor);
        assert_eq!(count(), 0);
        assert!(gone_within(&folder, Duration::from_secs(1)));
        assert!(reaper.join().unwrap().is_ok());
    }

    #[test]
    fn a_forgotten_group_is_left_alone() {
        let janitor = Janitor::start().unwrap();
        // Not spawned by the janitor, so it carries no mark.
        let mut stranger = Command::new("sleep").arg("300").process_group(0).spawn().unwrap();
        janitor.tell(&format!("watch KILL {}\n", stranger.id()));
        janitor.forget(stranger.id());
        drop(janitor);
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}
