//! The Autobahn suite against the echo of the gateway's drivers: every case must end as `docs/conformance.md` says.

mod document;
mod suite;

use super::echo::{Echo, Started};
use crate::Result;
use crate::janitor::Janitor;
use crate::libtest::Tally;
use crate::workspace::Workspace;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use suite::Suite;

/// What the stage is run with.
pub struct Stage<'a> {
    pub workspace: &'a Workspace,
    pub janitor: &'a Janitor,
    /// The example `echo`, if the build made it.
    pub echo: Option<&'a Path>,
    /// Whether the suite may be fetched.
    pub may_install: bool,
    /// Write the document instead of comparing with it.
    pub write: bool,
    pub deadline: Instant,
}

/// What one driver is put to.
struct Pass {
    /// In what is printed.
    title: &'static str,
    /// For the echo.
    words: &'static [&'static str],
    /// Sections that are run together.
    runs: &'static [&'static [&'static str]],
}

/// Section 9, large messages and many fragments, is run apart: it takes as long as all the others. Sections 12 and 13 are
/// about permessage-deflate, which is declined.
const EVERYTHING: [&[&str]; 2] = [&["1", "2", "3", "4", "5", "6", "7", "10"], &["9"]];
/// TLS is short: what differs is below the codec.
const OVER_TLS: [&[&str]; 1] = [&["1", "2", "5", "7", "10"]];
/// The first one is what the document says; the others must agree.
const PASSES: [Pass; 4] = [
    Pass { title: "portable", words: &["portable"], runs: &EVERYTHING },
    Pass { title: "io_uring", words: &["uring"], runs: &EVERYTHING },
    Pass { title: "portable, TLS", words: &["portable", "tls"], runs: &OVER_TLS },
    Pass { title: "io_uring, TLS", words: &["uring", "tls"], runs: &OVER_TLS },
];

/// The suite gives its peer a second for most answers. A case that ends otherwise than it should is run again alone, so
/// that a busy machine is not taken for a wrong codec: that one is wrong every time.
const TRIES: usize = 3;
/// More than these are no accident.
const AGAIN_MAX: usize = 10;

/// How a case ended, by the suite's words: the messages, and the closing of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    behavior: String,
    close: String,
}

/// By number of section and case.
type Outcomes = BTreeMap<Vec<u32>, Outcome>;

/// Runs every pass. One section of one driver counts as one test.
pub fn run(stage: &Stage<'_>, tally: &mut Tally) {
    let suite = match Suite::find(stage.workspace, stage.may_install) {
        Ok(suite) => suite,
        Err(suite::Missing::Here(reason)) => return tally.skip(format!("autobahn: {reason}")),
        Err(suite::Missing::Failed(message)) => return tally.fail(format!("autobahn: {message}")),
    };
    let Some(echo) = stage.echo else { return tally.fail("autobahn: the build made no example `echo`") };
    let mut reference = Outcomes::new();
    for pass in &PASSES {
        match run_pass(stage, &suite, echo, pass) {
            Ok(Ran::Outcomes(outcomes)) => {
                judge(pass, &outcomes, tally);
                if pass.title == PASSES[0].title {
                    reference = outcomes;
                }
            }
            Ok(Ran::Refused(reason)) => tally.skip(format!("autobahn {}: {reason}", pass.title)),
            Err(message) => tally.fail(format!("autobahn {}: {message}", pass.title)),
        }
    }
    let documented = document::settle(&stage.workspace.root, &reference, stage.write);
    match documented {
        Ok(()) => tally.passed += 1,
        Err(message) => tally.fail(format!("autobahn: {message}")),
    }
}

enum Ran {
    Outcomes(Outcomes),
    /// This machine refuses the driver; why, in words.
    Refused(String),
}

fn run_pass(stage: &Stage<'_>, suite: &Suite, echo: &Path, pass: &Pass) -> Result<Ran> {
    let echo = match Echo::start(stage.janitor, echo, pass.words)? {
        Started::Runs(echo) => echo,
        Started::Refused(reason) => return Ok(Ran::Refused(reason)),
    };
    let mut outcomes = Outcomes::new();
    for sections in pass.runs {
        let all: Vec<String> = sections.iter().map(|section| format!("{section}.*")).collect();
        outcomes.extend(suite.run(stage.janitor, &echo.address, &all, stage.deadline)?);
    }
    for attempt in 1..TRIES {
        let unexpected: Vec<String> =
            outcomes.iter().filter(|(case, outcome)| !is_expected(case, outcome)).map(|(case, _)| name(case)).collect();
        if unexpected.is_empty() || unexpected.len() > AGAIN_MAX {
            break;
        }
        println!("{}: once more, attempt {}: {}", pass.title, attempt + 1, unexpected.join(" "));
        outcomes.extend(suite.run(stage.janitor, &echo.address, &unexpected, stage.deadline)?);
    }
    Ok(Ran::Outcomes(outcomes))
}

fn judge(pass: &Pass, outcomes: &Outcomes, tally: &mut Tally) {
    for section in pass.runs.iter().copied().flatten() {
        let cases = || outcomes.iter().filter(|(case, _)| name(case).starts_with(&format!("{section}.")));
        let wrong: Vec<String> = cases()
            .filter(|(case, outcome)| !is_expected(case, outcome))
            .map(|(case, outcome)| format!("{} {}, closing {}", name(case), outcome.behavior, outcome.close))
            .collect();
        let title = format!("autobahn {} section {section}", pass.title);
        let count = cases().count();
        if count == 0 || !wrong.is_empty() {
            println!("{title} ... FAILED");
            tally.fail(format!("{title}: {} of {count} cases: {}", wrong.len(), wrong.join("; ")));
        } else {
            println!("{title} ... ok, {count} cases");
            tally.passed += 1;
        }
    }
}

fn is_expected(case: &[u32], outcome: &Outcome) -> bool {
    let expected = document::explained(case).map_or("OK", |explained| explained.behavior);
    outcome.behavior == expected && matches!(outcome.close.as_str(), "OK" | "INFORMATIONAL")
}

/// `7.1.6`.
fn name(case: &[u32]) -> String {
    case.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}
