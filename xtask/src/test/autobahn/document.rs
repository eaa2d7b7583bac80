//! The part of `docs/conformance.md` that the suite's results make: a table by section, and every case that is not a
//! plain OK, with the reason.

use super::{Outcomes, name};
use crate::Result;
use std::fmt::Write;
use std::path::Path;

const FILE: &str = "docs/conformance.md";
const BEGIN: &str = "<!-- autobahn: begin -->\n";
const END: &str = "<!-- autobahn: end -->\n";

/// A case that does not end in a plain OK, and why that is right.
pub struct Explained {
    case: [u32; 3],
    /// The suite's word.
    pub behavior: &'static str,
    reason: &'static str,
}

const EXPLAINED: [Explained; 3] = [
    Explained {
        case: [7, 1, 6],
        behavior: "INFORMATIONAL",
        reason: "256 KiB, then a close, sent back to back. What the peer does with the message is left to it; \
            the suite judges nothing. Ours is read in order: the message is echoed, then the close is answered with its code, 1000.",
    },
    Explained {
        case: [7, 13, 1],
        behavior: "INFORMATIONAL",
        reason: "Close code 5000. RFC 6455 defines no codes from 5000 on and says nothing of them. \
            Ours answers 1002, as for every code that must not appear.",
    },
    Explained {
        case: [7, 13, 2],
        behavior: "INFORMATIONAL",
        reason: "A close code of 65535, beyond every range of RFC 6455. Ours answers 1002.",
    },
];

const SECTIONS: [(u32, &str); 9] = [
    (1, "framing"),
    (2, "pings and pongs"),
    (3, "reserved bits"),
    (4, "opcodes"),
    (5, "fragmentation"),
    (6, "UTF-8"),
    (7, "closing"),
    (9, "limits: messages up to 16 MiB, fragments down to 64 bytes"),
    (10, "a message in pieces of the network's"),
];

/// What is said about a case that does not end in a plain OK.
pub fn explained(case: &[u32]) -> Option<&'static Explained> {
    EXPLAINED.iter().find(|explained| explained.case == case)
}

/// Writes the document's part, or compares it with what was seen.
pub fn settle(root: &Path, outcomes: &Outcomes, write: bool) -> Result<()> {
    let path = root.join(FILE);
    let failed = |error: std::io::Error| format!("{FILE}: {error}");
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let marks = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let (before, (present, after)) = marks.ok_or_else(|| format!("{FILE} lacks the marks around the suite's part"))?;
    let seen = part(outcomes);
    if write {
        return std::fs::write(&path, format!("{before}{BEGIN}{seen}{END}{after}")).map_err(failed);
    }
    if present == seen {
        println!("{FILE} says what was seen");
        return Ok(());
    }
    Err(format!("{FILE} does not say what was seen; write it with: cargo xtask test --only autobahn --write\n{seen}"))
}

fn part(outcomes: &Outcomes) -> String {
    let mut text =
        String::from("| section | about | cases | OK | NON-STRICT | INFORMATIONAL |\n|---|---|---|---|---|---|\n");
    let row = |text: &mut String, number: &str, about: &str, section: Option<u32>| {
        let ended = |word: &str| {
            outcomes
                .iter()
                .filter(|(case, _)| section.is_none_or(|section| case[0] == section))
                .fold((0, 0), |sum, (_, outcome)| (sum.0 + 1, sum.1 + usize::from(outcome.behavior == word)))
        };
        let ((all, ok), non_strict, informational) = (ended("OK"), ended("NON-STRICT").1, ended("INFORMATIONAL").1);
        let _ = writeln!(text, "| {number} | {about} | {all} | {ok} | {non_strict} | {informational} |");
    };
    for (section, about) in SECTIONS {
        row(&mut text, &section.to_string(), about, Some(section));
    }
    row(&mut text, "", "together", None);
    text.push_str("\n| case | result | why |\n|---|---|---|\n");
    for (case, outcome) in outcomes.iter().filter(|(_, outcome)| outcome.behavior != "OK") {
        let reason = explained(case).map_or("", |explained| explained.reason);
        let _ = writeln!(text, "| {} | {} | {reason} |", name(case), outcome.behavior);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn outcomes(seen: &[(&[u32], &str)]) -> Outcomes {
        let outcome = |behavior: &str| Outcome { behavior: behavior.to_owned(), close: "OK".to_owned() };
        seen.iter().map(|(case, behavior)| (case.to_vec(), outcome(behavior))).collect()
    }

    #[test]
    fn the_part_is_written_and_what_differs_is_told() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("docs")).unwrap();
        std::fs::write(root.path().join(FILE), format!("before\n{BEGIN}old\n{END}after\n")).unwrap();
        let seen = outcomes(&[(&[1, 1, 1], "OK"), (&[7, 1, 6], "INFORMATIONAL")]);
        assert!(settle(root.path(), &seen, false).is_err());
        settle(root.path(), &seen, true).unwrap();
        settle(root.path(), &seen, false).unwrap();
        let text = std::fs::read_to_string(root.path().join(FILE)).unwrap();
        assert!(text.starts_with("before\n") && text.ends_with("after\n"));
        assert!(text.contains("| 1 | framing | 1 | 1 | 0 | 0 |\n"), "{text}");
        assert!(text.contains("|  | together | 2 | 1 | 0 | 1 |\n"), "{text}");
        assert!(text.contains("| 7.1.6 | INFORMATIONAL | 256 KiB, then a close"), "{text}");
        let fewer = outcomes(&[(&[7, 1, 6], "INFORMATIONAL")]);
        assert!(settle(root.path(), &fewer, false).is_err(), "a case is missing");
        let stricter = outcomes(&[(&[1, 1, 1], "NON-STRICT"), (&[7, 1, 6], "INFORMATIONAL")]);
        assert!(settle(root.path(), &stricter, false).is_err());
    }

    /// The sources of all packages, joined.
    fn sources(folder: &Path) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !["target", "data"].iter().any(|name| path.ends_with(name)) {
                text.push_str(&sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
        text
    }

    #[test]
    fn every_test_that_the_document_names_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = std::fs::read_to_string(root.join(FILE)).unwrap();
        let is_test =
            |word: &&str| word.starts_with(['s', 'f']) && word.contains('_') && !word.contains(['/', '.', ' ']);
        let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(is_test).collect();
        assert!(named.len() > 10, "{named:?}");
        let folders = ["session", "gateway", "api", "tests"].map(|folder| sources(&root.join(folder)));
        for name in named {
            let is_there = folders.iter().any(|text| text.contains(&format!("fn {name}(")));
            assert!(is_there, "{FILE} names a test that is not there: {name}");
        }
    }
}
