//! Reads what the test programs of `cargo test` print, and adds it up.

/// The sum over any number of test programs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    /// Names of failed tests, as printed.
    pub failures: Vec<String>,
    /// Names of tests that did not run, with the reason where one was given.
    pub skips: Vec<String>,
    results: u64,
}

impl Tally {
    /// Takes one line of a test program's standard output.
    pub fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.results += 1;
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
            self.skipped += count(counts, " ignored");
        } else if let Some((name, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            if verdict == "FAILED" {
                self.failures.push(name.to_owned());
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                self.skips
                    .push(format!("{name}: {}", reason.trim_start_matches(", ")).trim_end_matches(": ").to_owned());
            }
        }
    }

    /// A program has ended. One without a summary of its own counts as a single test; one that says that all is well
    /// and yet ends badly counts as a failure.
    pub fn program_ended(&mut self, name: &str, before: &Tally, success: bool, how: &str) {
        if success && self.results == before.results {
            self.passed += 1;
        }
        if !success && self.failed == before.failed {
            self.failed += 1;
            self.failures.push(format!("{name} ({how})"));
        }
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        self.failed += 1;
        self.failures.push(what.into());
    }

    pub fn skip(&mut self, what: impl Into<String>) {
        self.skipped += 1;
        self.skips.push(what.into());
    }

    pub fn add(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures.iter().cloned());
        self.skips.extend(other.skips.iter().cloned());
        self.results += other.results;
    }

    /// The line that a run ends with.
    pub fn last_line(&self) -> String {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

fn count(counts: &str, label: &str) -> u64 {
    counts
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(label))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_test_program_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test a::c - should panic ... FAILED",
            "test a::d ... ignored, needs a network",
            "test a::e ... ignored",
            "test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.20s",
        ] {
            tally.line(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.skipped), (13, 1, 2));
        assert_eq!(tally.failures, ["a::c - should panic"]);
        assert_eq!(tally.skips, ["a::d: needs a network", "a::e"]);
        assert_eq!(tally.last_line(), "13 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_program_that_dies_is_a_failure_and_one_without_a_summary_is_one_test() {
        let mut tally = Tally::default();
        let before = tally.clone();
        tally.program_ended("crash", &before, false, "signal: 11");
        let before = tally.clone();
        tally.program_ended("own harness", &before, true, "");
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert_eq!(tally.failures, ["crash (signal: 11)"]);
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
    }
}
