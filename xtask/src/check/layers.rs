//! Which package may name which: the folders of the workspace stand in layers, and imports go one way.

use crate::workspace::{Package, Workspace};

/// Every edge that is not allowed, as a sentence each.
pub fn violations(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for package in &workspace.packages {
        let Some(place) = place_of(&package.name) else {
            found
                .push(format!("{} has no place in the layers: give it one in xtask/src/check/layers.rs", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let kind = dependency.kind.as_deref().unwrap_or("normal");
            let wrong = if workspace.package(&dependency.name).is_some() {
                wrong_edge(package, place, &dependency.name, kind)
            } else {
                wrong_library(package, &dependency.name, kind)
            };
            found.extend(wrong.map(|reason| format!("{} -> {} ({kind}): {reason}", package.name, dependency.name)));
        }
    }
    found
}

/// The layers, from the bottom up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Protocol,
    Session,
    Ports,
    Adapter,
    Service,
    Client,
    Program,
    Top,
    Apart,
}

fn place_of(package: &str) -> Option<Place> {
    Some(match package {
        "roost-protocol" => Place::Protocol,
        "roost-session" => Place::Session,
        "roost-ports" => Place::Ports,
        "roost-embedded" | "roost-kafka" | "roost-redis" | "roost-postgres" | "roost-mesh" => Place::Adapter,
        "roost-gateway" | "roost-workers" | "roost-api" => Place::Service,
        "roost-client" => Place::Client,
        "roost" => Place::Program,
        "roost-tests" | "roost-benches" | "roost-loadtest" => Place::Top,
        "xtask" => Place::Apart,
        _ => return None,
    })
}

/// Libraries with one home. A name also stands for the names that begin with it and a hyphen.
const HOMES: [(&str, &str); 6] = [
    ("rdkafka", "roost-kafka"),
    ("redis", "roost-redis"),
    ("sqlx", "roost-postgres"),
    ("rusqlite", "roost-embedded"),
    ("tonic", "roost-mesh"),
    ("axum", "roost-api"),
];

/// What the pure crates must do without: clocks, sockets, tasks, and randomness of their own.
const IMPURE: [&str; 9] = ["tokio", "tokio-util", "futures", "mio", "socket2", "hyper", "rand", "getrandom", "libc"];

fn wrong_edge(package: &Package, place: Place, target: &str, kind: &str) -> Option<&'static str> {
    use Place::{Adapter, Apart, Client, Ports, Program, Protocol, Service, Session, Top};
    if target == package.name {
        return None;
    }
    let target_place = place_of(target)?;
    let test_with_embedded = kind == "dev" && target == "roost-embedded";
    let (allowed, reason): (&[Place], _) = match place {
        Protocol => (&[], "protocol stands at the bottom and names none of ours"),
        Session | Ports => (&[Protocol], "session and ports name protocol only"),
        Adapter if test_with_embedded => return None,
        Adapter => (&[Protocol, Session, Ports], "adapters never name one another, and nothing above ports"),
        Service if test_with_embedded => return None,
        Service => (&[Protocol, Session, Ports], "gateway, workers and api name ports, never adapters or one another"),
        Client => (&[Protocol], "a client needs protocol only"),
        Program => (
            &[Protocol, Session, Ports, Adapter, Service, Client],
            "the program stands below tests, loadtest and benches",
        ),
        Top => (
            &[Protocol, Session, Ports, Adapter, Service, Client, Program],
            "tests, loadtest and benches do not name one another",
        ),
        Apart => (&[], "xtask builds without the rest"),
    };
    (!allowed.contains(&target_place)).then_some(reason)
}

fn wrong_library(package: &Package, library: &str, kind: &str) -> Option<&'static str> {
    let home = HOMES.iter().find(|(name, _)| {
        library == *name || library.strip_prefix(name).is_some_and(|rest| rest.starts_with(['-', '_']))
    });
    if home.is_some_and(|(_, home)| *home != package.name) {
        return Some("this library has one home, and it is another package");
    }
    let pure = matches!(package.name.as_str(), "roost-protocol" | "roost-session");
    (pure && kind == "normal" && IMPURE.contains(&library)).then_some("protocol and session are pure: no I/O, no clock")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;
    use std::path::PathBuf;

    /// A workspace of the named packages, all with no dependencies but the given edges.
    fn workspace(edges: &[(&str, &str, Option<&str>)]) -> Workspace {
        let names = [
            "roost-protocol",
            "roost-session",
            "roost-ports",
            "roost-embedded",
            "roost-kafka",
            "roost-mesh",
            "roost-gateway",
            "roost-workers",
            "roost-api",
            "roost-client",
            "roost",
            "roost-tests",
            "roost-benches",
            "xtask",
        ];
        let packages = names
            .iter()
            .map(|name| Package {
                name: (*name).to_owned(),
                version: "0.1.0".to_owned(),
                manifest_path: PathBuf::new(),
                features: Default::default(),
                dependencies: edges
                    .iter()
                    .filter(|(from, ..)| from == name)
                    .map(|(_, to, kind)| Dependency { name: (*to).to_owned(), kind: kind.map(str::to_owned) })
                    .collect(),
            })
            .collect();
        Workspace { root: PathBuf::new(), target: PathBuf::new(), packages }
    }

    #[test]
    fn edges_in_the_agreed_direction_pass() {
        let fine = [
            ("roost-session", "roost-protocol", None),
            ("roost-gateway", "roost-session", None),
            ("roost-kafka", "roost-ports", None),
            ("roost-kafka", "rdkafka", None),
            ("roost-mesh", "tonic-prost-build", Some("build")),
            ("roost-api", "axum", None),
            ("roost-workers", "roost-embedded", Some("dev")),
            ("roost-kafka", "roost-embedded", Some("dev")),
            ("roost-client", "roost-protocol", None),
            ("roost", "roost-kafka", None),
            ("roost-tests", "roost-workers", None),
            ("roost-session", "tokio", Some("dev")),
        ];
        assert_eq!(violations(&workspace(&fine)), Vec::<String>::new());
    }

    #[test]
    fn every_planted_wrong_edge_is_found() {
        let wrong = [
            ("roost-protocol", "roost-ports", None),
            ("roost-ports", "roost-session", None),
            ("roost-kafka", "roost-embedded", None),
            ("roost-mesh", "roost-kafka", Some("dev")),
            ("roost-gateway", "roost-api", None),
            ("roost-workers", "roost-embedded", None),
            ("roost-gateway", "roost-workers", Some("dev")),
            ("roost-client", "roost-session", None),
            ("roost-client", "roost-embedded", Some("dev")),
            ("roost", "roost-tests", None),
            ("roost-tests", "roost-benches", None),
            ("xtask", "roost-protocol", None),
            ("roost", "axum", None),
            ("roost-gateway", "axum-extra", None),
            ("roost-workers", "rdkafka", None),
            ("roost-tests", "sqlx", Some("dev")),
            ("roost-api", "tonic", None),
            ("roost-session", "tokio", None),
        ];
        for edge in wrong {
            let found = violations(&workspace(&[edge]));
            assert_eq!(found.len(), 1, "{edge:?} gave {found:?}");
        }
    }

    #[test]
    fn a_package_without_a_place_is_told() {
        let mut workspace = workspace(&[]);
        workspace.packages[0].name = "roost-surprise".to_owned();
        assert_eq!(violations(&workspace).len(), 1);
    }
}
