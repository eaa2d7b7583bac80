//! Runs one process under a deadline, handing on its output line by line as it comes.

use crate::Result;
use crate::janitor::{Janitor, signal_group};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How a process ended.
pub struct Ended {
    pub success: bool,
    /// Its group was killed at the deadline.
    pub timed_out: bool,
    /// The exit status in words.
    pub status: String,
}

/// Which of the two outputs a line came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Standard,
    Error,
}

/// Runs `command` in a group of its own. At the deadline the group is killed; and whatever stays in the group when
/// the process itself has ended is killed too.
pub fn run(
    janitor: &Janitor,
    command: &mut Command,
    deadline: Instant,
    on_line: &mut dyn FnMut(Output, &str),
) -> Result<Ended> {
    let name = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = janitor.spawn(command, "KILL")?;
    let lines = read_lines(&mut child);
    let started = Instant::now();
    let mut heard = Instant::now();
    let mut timed_out = false;
    let status = loop {
        match lines.recv_timeout(POLL) {
            Ok((output, line)) => {
                heard = Instant::now();
                on_line(output, &line);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(5)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = child.try_wait().map_err(|error| format!("{name}: {error}"))? {
            break status;
        }
        if Instant::now() >= deadline && !timed_out {
            timed_out = true;
            signal_group(child.id(), "KILL");
        }
        if heard.elapsed() >= QUIET {
            heard = Instant::now();
            eprintln!("… {name} is still running, {} s so far", started.elapsed().as_secs());
        }
    };
    // Grandchildren may hold the pipes open for ever; what is written by now is handed on.
    while let Ok((output, line)) = lines.recv_timeout(POLL) {
        on_line(output, &line);
    }
    signal_group(child.id(), "KILL");
    janitor.forget(child.id());
    Ok(Ended { success: status.success() && !timed_out, timed_out, status: status.to_string() })
}

const POLL: Duration = Duration::from_millis(100);
/// Silence after which a sign of life is printed.
const QUIET: Duration = Duration::from_secs(60);
const LINES_WAITING_MAX: usize = 1024;

fn read_lines(child: &mut Child) -> Receiver<(Output, String)> {
    let (sender, receiver) = sync_channel(LINES_WAITING_MAX);
    if let Some(pipe) = child.stdout.take() {
        hand_on(pipe, Output::Standard, sender.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        hand_on(pipe, Output::Error, sender);
    }
    receiver
}

fn hand_on(pipe: impl Read + Send + 'static, output: Output, sender: SyncSender<(Output, String)>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send((output, text)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_arrive_and_the_status_is_told() {
        let janitor = Janitor::start().unwrap();
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let deadline = Instant::now() + Duration::from_secs(30);
        let ended = run(&janitor, &mut command, deadline, &mut |_, line| seen.push(line.to_owned())).unwrap();
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        assert!(!ended.success && !ended.timed_out);
        assert!(ended.status.contains('3'));
    }

    #[test]
    fn a_hanging_process_is_killed_at_its_deadline_with_its_children() {
        let janitor = Janitor::start().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & echo begun; wait"]);
        let begun = Instant::now();
        let ended = run(&janitor, &mut command, begun + Duration::from_millis(300), &mut |_, _| {}).unwrap();
        assert!(ended.timed_out && !ended.success);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
