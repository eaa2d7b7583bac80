//! What a test run tells at its end.

use crate::Result;
use crate::libtest::Tally;
use std::path::Path;
use std::time::{Duration, Instant};

/// Collected over the run.
#[derive(Default)]
pub struct Report {
    pub total: Tally,
    /// One line for each server.
    pub versions: Vec<String>,
    rows: Vec<(String, Duration, Option<Tally>)>,
    notes: Vec<String>,
}

impl Report {
    pub fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Runs a preparation and remembers how long it took.
    pub fn timed<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let outcome = work();
        self.rows.push((name.to_owned(), begun.elapsed(), None));
        outcome
    }

    pub fn stage(&mut self, name: &str, took: Duration, tally: &Tally) {
        self.total.add(tally);
        self.rows.push((name.to_owned(), took, Some(tally.clone())));
    }

    /// Tests that found out only when running that they cannot: one line each, `name: reason`.
    pub fn skips_from(&mut self, path: &Path) {
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            self.total.skip(line);
        }
    }

    /// The last line stands alone, for machines.
    pub fn print(&self) {
        println!("\n== summary");
        for (name, took, tally) in &self.rows {
            let counts = tally.as_ref().map(Tally::last_line).unwrap_or_default();
            println!("{:>8.1} s  {name:<14} {counts}", took.as_secs_f64());
        }
        for (title, lines) in [
            ("servers", &self.versions),
            ("skipped", &self.total.skips),
            ("failed", &self.total.failures),
            ("notes", &self.notes),
        ] {
            if !lines.is_empty() {
                println!("{title}:\n  {}", lines.join("\n  "));
            }
        }
        println!("{}", self.total.last_line());
    }
}
