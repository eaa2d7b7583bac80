//! The Autobahn suite against the echo of the gateway's drivers: every case must end as `docs/conformance.md` says.

mod document;
mod suite;

use crate::janitor::{Janitor, signal_group};
use crate::libtest::Tally;
use crate::workspace::Workspace;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
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

/// One run of the suite: the words for the echo, and the sections.
struct Pass {
    driver: &'static str,
    sections: &'static [&'static str],
}

/// Sections 12 and 13 are about permessage-deflate, which is declined. Section 9, large messages and many fragments, is
/// run apart: it takes as long as all the others.
const EVERYTHING: [&str; 8] = ["1", "2", "3", "4", "5", "6", "7", "10"];
const LARGE: [&str; 1] = ["9"];
const PASSES: [Pass; 4] = [
    Pass { driver: "portable", sections: &EVERYTHING },
    Pass { driver: "portable", sections: &LARGE },
    Pass { driver: "uring", sections: &EVERYTHING },
    Pass { driver: "uring", sections: &LARGE },
];

/// The suite gives its peer a second for most answers. A case that ends otherwise than it should is run again alone, so
/// that a busy machine is not taken for a wrong codec: that one is wrong every time.
const TRIES: usize = 3;

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
            Ok(outcomes) => {
                judge(pass, &outcomes, tally);
                if pass.driver == PASSES[0].driver {
                    reference.extend(outcomes);
                }
            }
            Err(Failure::Refused(reason)) => tally.skip(format!("autobahn {}: {reason}", pass.driver)),
            Err(Failure::Broken(message)) => tally.fail(format!("autobahn {}: {message}", pass.driver)),
        }
    }
    let documented = document::settle(&stage.workspace.root, &reference, stage.write);
    match documented {
        Ok(()) => tally.passed += 1,
        Err(message) => tally.fail(format!("autobahn: {message}")),
    }
}

/// Why a pass has no outcomes.
enum Failure {
    /// This machine refuses the driver.
    Refused(String),
    Broken(String),
}

fn run_pass(stage: &Stage<'_>, suite: &Suite, echo: &Path, pass: &Pass) -> Result<Outcomes, Failure> {
    let mut command = Command::new(echo);
    let server = stage.janitor.spawn(command.arg(pass.driver).stdout(Stdio::piped()), "KILL");
    let mut server = server.map_err(Failure::Broken)?;
    let mut line = String::new();
    let read = server.stdout.take().map(|output| BufReader::new(output).read_line(&mut line));
    let outcomes = match (read, line.trim().split_once("refused: ")) {
        (_, Some((_, reason))) => Err(Failure::Refused(reason.to_owned())),
        (Some(Ok(bytes)), None) if bytes > 0 => run_against(stage, suite, pass, line.trim()).map_err(Failure::Broken),
        _ => Err(Failure::Broken("the echo says no address".to_owned())),
    };
    signal_group(server.id(), "KILL");
    let _ = server.wait();
    stage.janitor.forget(server.id());
    outcomes
}

fn run_against(stage: &Stage<'_>, suite: &Suite, pass: &Pass, address: &str) -> crate::Result<Outcomes> {
    let all: Vec<String> = pass.sections.iter().map(|section| format!("{section}.*")).collect();
    let mut outcomes = suite.run(stage.janitor, address, &all, stage.deadline)?;
    for attempt in 1..TRIES {
        let unexpected: Vec<String> =
            outcomes.iter().filter(|(case, outcome)| !is_expected(case, outcome)).map(|(case, _)| name(case)).collect();
        if unexpected.is_empty() {
            break;
        }
        println!("{}: once more, attempt {}: {}", pass.driver, attempt + 1, unexpected.join(" "));
        outcomes.extend(suite.run(stage.janitor, address, &unexpected, stage.deadline)?);
    }
    Ok(outcomes)
}

fn judge(pass: &Pass, outcomes: &Outcomes, tally: &mut Tally) {
    for section in pass.sections {
        let cases = || outcomes.iter().filter(|(case, _)| name(case).starts_with(&format!("{section}.")));
        let wrong: Vec<String> = cases()
            .filter(|(case, outcome)| !is_expected(case, outcome))
            .map(|(case, outcome)| format!("{} {}, closing {}", name(case), outcome.behavior, outcome.close))
            .collect();
        let title = format!("autobahn {} section {section}", pass.driver);
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
