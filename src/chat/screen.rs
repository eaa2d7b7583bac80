//! What the chat prints, for people and for scripts.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

use roost_protocol::frames::{Event, Message};
use tokio::sync::mpsc;

/// The terminal, or plain lines.
pub struct Screen {
    plain: bool,
}

impl Screen {
    /// For people, or plain.
    pub fn new(plain: bool) -> Self {
        Self { plain }
    }

    /// Whether lines are for scripts.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Something about the chat itself. Scripts find it on standard error.
    pub fn note(&self, text: &str) {
        if self.plain {
            eprintln!("{text}");
        } else {
            println!("-- {text}");
        }
    }

    /// A message; `elsewhere` in another conversation than the present one.
    pub fn message(&self, message: &Message, sender: &str, elsewhere: bool) {
        let text = text_of(message);
        if self.plain {
            println!("{} {sender}: {text}", message.seq);
        } else {
            let place = if elsewhere { " (elsewhere)" } else { "" };
            println!("{} {sender}{place}: {text}", time_of_day(message.time));
        }
        // Scripts read it as it comes. A reader that has gone ends the program at the next line.
        let _ = std::io::stdout().flush();
    }

    /// Asks, and takes the next line.
    pub async fn ask(&self, question: &str, lines: &mut mpsc::Receiver<String>) -> Option<String> {
        if !self.plain {
            print!("{question}");
            let _ = std::io::stdout().flush();
        }
        lines.recv().await.map(|line| line.trim().to_owned())
    }

    /// Asks without showing what is typed.
    pub async fn ask_secret(&self, question: &str, lines: &mut mpsc::Receiver<String>) -> Option<String> {
        let hidden = std::io::stdin().is_terminal() && echo(false);
        let answer = self.ask(question, lines).await;
        if hidden {
            echo(true);
            println!();
        }
        answer
    }
}

fn echo(on: bool) -> bool {
    let mode = if on { "echo" } else { "-echo" };
    Command::new("stty").arg(mode).stdin(Stdio::inherit()).status().is_ok_and(|status| status.success())
}

/// A message's text without anything that could steer the terminal.
fn text_of(message: &Message) -> String {
    match &message.event {
        Some(Event::Created { title, member_count, .. }) => {
            let title = title.as_deref().map(|title| format!(" «{title}»")).unwrap_or_default();
            printable(&format!("(the conversation{title} begins, {member_count} members)"))
        }
        None => match std::str::from_utf8(&message.body) {
            Ok(text) => printable(text),
            Err(_) => format!("({}, {} bytes)", printable(&message.content_type), message.body.len()),
        },
    }
}

/// Control characters, and those that turn the direction of text, are shown as a mark.
fn printable(text: &str) -> String {
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

fn time_of_day(time_ms: u64) -> String {
    let minutes = time_ms / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(printable("Grüße, 世界"), "Grüße, 世界");
    }

    #[test]
    fn times_are_of_the_day() {
        assert_eq!(time_of_day(0), "00:00");
        assert_eq!(time_of_day(86_400_000 + 13 * 3_600_000 + 5 * 60_000), "13:05");
    }
}
