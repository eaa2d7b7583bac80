//! Lengths of files and functions against a committed ratchet: a number in it may go down, never up.

use super::scan::scan;
use crate::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file may have this many lines before its unit tests.
pub const FILE_LINES_MAX: usize = 600;
/// A function may have this many lines, from `fn` to the closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;

/// Where the ratchet stands, from the root of the workspace.
pub const RATCHET: &str = "xtask/ratchet.toml";

/// Everything over its limit, by path, or by path and function name.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lengths {
    pub files: BTreeMap<String, usize>,
    pub functions: BTreeMap<String, usize>,
}

/// The present lengths, and each use of `unsafe` outside the places that may hold it.
pub fn measure(root: &Path) -> Result<(Lengths, Vec<String>)> {
    let mut lengths = Lengths::default();
    let mut unsafe_places = Vec::new();
    for path in sources(root)? {
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{name}: {error}"))?;
        let source = scan(&text);
        if source.lines > FILE_LINES_MAX {
            lengths.files.insert(name.clone(), source.lines);
        }
        for (function, lines) in source.functions {
            if lines > FUNCTION_LINES_MAX {
                let longest = lengths.functions.entry(format!("{name}::{function}")).or_default();
                *longest = lines.max(*longest);
            }
        }
        if !UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
            unsafe_places.extend(source.unsafe_lines.iter().map(|line| format!("{name}:{line}")));
        }
    }
    Ok((lengths, unsafe_places))
}

/// The committed ratchet; an absent file is an empty one.
pub fn load(root: &Path) -> Result<Lengths> {
    match std::fs::read_to_string(root.join(RATCHET)) {
        Ok(text) => toml::from_str(&text).map_err(|error| format!("{RATCHET}: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Lengths::default()),
        Err(error) => Err(format!("{RATCHET}: {error}")),
    }
}

/// Writes the present lengths as the new ratchet.
pub fn bless(root: &Path, lengths: &Lengths) -> Result<()> {
    let table = toml::to_string(lengths).map_err(|error| format!("{RATCHET}: {error}"))?;
    let text = format!(
        "# What is longer than {FILE_LINES_MAX} lines (files, without tests) or {FUNCTION_LINES_MAX} (functions).\n\
         # Numbers go down only. Rewritten by `cargo xtask check --bless`.\n\n{table}"
    );
    std::fs::write(root.join(RATCHET), text).map_err(|error| format!("{RATCHET}: {error}"))
}

/// What grew: over its limit and over the number in the ratchet.
pub fn growth(ratchet: &Lengths, present: &Lengths) -> Vec<String> {
    let grown = |old: &BTreeMap<String, usize>, new: &BTreeMap<String, usize>, limit: usize| {
        let over = new.iter().filter(|(name, lines)| old.get(*name).is_none_or(|allowed| lines > &allowed));
        over.map(|(name, lines)| {
            let allowed = old.get(name).copied().unwrap_or(limit);
            format!("{name} has {lines} lines, {allowed} are allowed")
        })
        .collect::<Vec<_>>()
    };
    let mut all = grown(&ratchet.files, &present.files, FILE_LINES_MAX);
    all.extend(grown(&ratchet.functions, &present.functions, FUNCTION_LINES_MAX));
    all
}

/// The driver, and the bare ring that it is measured against: both hand pointers to the kernel, and nothing else does.
const UNSAFE_HOMES: [&str; 2] = ["gateway/src/driver/uring/", "benches/src/reference/raw_uring.rs"];
const NOT_OURS: [&str; 3] = ["target", "node_modules", "data"];

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !name.starts_with('.') && !NOT_OURS.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(files: &[(&str, usize)]) -> Lengths {
        let files = files.iter().map(|(name, lines)| ((*name).to_owned(), *lines)).collect();
        Lengths { files, functions: BTreeMap::new() }
    }

    #[test]
    fn only_what_grew_is_told() {
        let ratchet = lengths(&[("shrunk", 700), ("same", 650), ("grown", 610)]);
        let present = lengths(&[("shrunk", 690), ("same", 650), ("grown", 611), ("new", 601)]);
        let told = growth(&ratchet, &present);
        assert_eq!(told, ["grown has 611 lines, 610 are allowed", "new has 601 lines, 600 are allowed"]);
    }

    #[test]
    fn a_blessed_ratchet_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("xtask")).unwrap();
        std::fs::write(folder.path().join("long.rs"), "// x\n".repeat(FILE_LINES_MAX + 1)).unwrap();
        let (present, unsafe_places) = measure(folder.path()).unwrap();
        assert_eq!(growth(&load(folder.path()).unwrap(), &present).len(), 1);
        bless(folder.path(), &present).unwrap();
        assert_eq!(load(folder.path()).unwrap(), present);
        assert!(unsafe_places.is_empty());
    }
}
