//! Which stages and packages a test run covers, and what has to be built and started for them.

use crate::Result;
use crate::servers::Selection;
use crate::workspace::Workspace;
use std::collections::BTreeSet;

/// The stages, in the order of running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Check,
    Pure,
    Adapters,
    Services,
    Autobahn,
    EndToEnd,
    Documentation,
}

impl Stage {
    pub const ALL: [Stage; 7] = [
        Stage::Check,
        Stage::Pure,
        Stage::Adapters,
        Stage::Services,
        Stage::Autobahn,
        Stage::EndToEnd,
        Stage::Documentation,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Stage::Check => "check",
            Stage::Pure => "pure",
            Stage::Adapters => "adapters",
            Stage::Services => "services",
            Stage::Autobahn => "autobahn",
            Stage::EndToEnd => "end-to-end",
            Stage::Documentation => "documentation",
        }
    }

    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// Where a package's tests run. What is new and unknown runs with the whole.
    pub fn of(package: &str) -> Stage {
        match package {
            "roost-protocol" | "roost-session" | "roost-ports" | "xtask" => Stage::Pure,
            "roost-embedded" | "roost-kafka" | "roost-redis" | "roost-postgres" | "roost-mesh" => Stage::Adapters,
            "roost-gateway" | "roost-workers" | "roost-api" | "roost-client" => Stage::Services,
            _ => Stage::EndToEnd,
        }
    }

    /// Packages with nothing to test where their server is absent.
    pub fn is_only_server(package: &str) -> bool {
        matches!(package, "roost-kafka" | "roost-redis" | "roost-postgres")
    }
}

/// What one run covers.
#[derive(Debug)]
pub struct Plan {
    stages: BTreeSet<Stage>,
    packages: BTreeSet<String>,
    /// Every package: then cargo is asked for the workspace as a whole.
    whole: bool,
    /// `PACKAGE/failpoints` for each covered package that has fail points.
    features: Vec<String>,
}

impl Plan {
    /// `only` names stages and packages (with or without `roost-`); empty means everything.
    pub fn new(workspace: &Workspace, only: &[String]) -> Result<Plan> {
        let all: BTreeSet<String> = workspace.packages.iter().map(|package| package.name.clone()).collect();
        let (mut stages, mut packages) = (BTreeSet::new(), BTreeSet::new());
        for name in only {
            if let Some(stage) = Stage::ALL.into_iter().find(|stage| stage.name() == name) {
                stages.insert(stage);
                packages.extend(all.iter().filter(|package| Stage::of(package) == stage).cloned());
            } else if let Some(package) =
                [name.clone(), format!("roost-{name}")].into_iter().find(|name| all.contains(name))
            {
                stages.insert(Stage::of(&package));
                packages.insert(package);
            } else {
                let stages: Vec<_> = Stage::ALL.iter().map(|stage| stage.name()).collect();
                let packages: Vec<_> = all.iter().map(String::as_str).collect();
                let (stages, packages) = (stages.join(", "), packages.join(", "));
                return Err(format!("--only {name}: there are the stages {stages} and the packages {packages}"));
            }
        }
        let documentation = stages.contains(&Stage::Documentation);
        if only.is_empty() {
            stages = Stage::ALL.into_iter().collect();
        }
        if only.is_empty() || documentation {
            packages = all.clone();
        }
        if stages.contains(&Stage::Autobahn) {
            // Its example is what the suite talks to.
            packages.extend(all.iter().filter(|package| *package == "roost-gateway").cloned());
        }
        if packages.contains("roost-tests") || packages.contains("roost-loadtest") {
            packages.insert("roost".to_owned());
        }
        let with_fail_points = workspace
            .packages
            .iter()
            .filter(|package| packages.contains(&package.name) && package.features.contains_key("failpoints"));
        let features = with_fail_points.map(|package| format!("{}/failpoints", package.name)).collect();
        Ok(Plan { stages, whole: packages == all, packages, features })
    }

    pub fn has(&self, stage: Stage) -> bool {
        self.stages.contains(&stage)
    }

    pub fn needs_build(&self) -> bool {
        self.stages.iter().any(|stage| *stage != Stage::Check)
    }

    /// Cargo's arguments. The same for every cargo command of a run, so that nothing is compiled in two variants.
    pub fn selection(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.whole {
            arguments.push("--workspace".to_owned());
        } else {
            arguments.extend(self.packages.iter().flat_map(|package| ["-p".to_owned(), package.clone()]));
        }
        if !self.features.is_empty() {
            arguments.extend(["--features".to_owned(), self.features.join(",")]);
        }
        arguments
    }

    /// The servers that the covered packages talk to.
    pub fn servers(&self) -> Selection {
        let covers = |package: &str| self.packages.contains(package) && self.has(Stage::of(package));
        let tests = covers("roost-tests");
        Selection {
            kafka: tests || covers("roost-kafka"),
            redis: tests || covers("roost-redis"),
            postgres: tests || covers("roost-postgres"),
            cores: None,
            for_measuring: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Package;
    use std::path::PathBuf;

    fn plan(only: &[&str]) -> Result<Plan> {
        let package = |name: &str, fail_points: bool| Package {
            name: name.to_owned(),
            version: String::new(),
            manifest_path: PathBuf::new(),
            dependencies: Vec::new(),
            features: fail_points.then(|| ("failpoints".to_owned(), Vec::new())).into_iter().collect(),
        };
        let packages = vec![
            package("roost-protocol", false),
            package("roost-kafka", false),
            package("roost-workers", true),
            package("roost-tests", false),
            package("roost", true),
        ];
        let workspace = Workspace { root: PathBuf::new(), target: PathBuf::new(), packages };
        Plan::new(&workspace, &only.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn everything_is_the_default() {
        let plan = plan(&[]).unwrap();
        assert!(Stage::ALL.into_iter().all(|stage| plan.has(stage)));
        assert_eq!(plan.selection(), ["--workspace", "--features", "roost-workers/failpoints,roost/failpoints"]);
        assert!(plan.servers().kafka && plan.servers().redis);
    }

    #[test]
    fn one_package_builds_and_starts_what_it_needs() {
        let pure = plan(&["protocol"]).unwrap();
        assert_eq!(pure.selection(), ["-p", "roost-protocol"]);
        assert!(!pure.servers().any() && !pure.has(Stage::Check) && pure.needs_build());
        let kafka = plan(&["kafka"]).unwrap();
        assert!(kafka.servers().kafka && !kafka.servers().postgres);
        let tests = plan(&["tests"]).unwrap();
        assert_eq!(tests.selection(), ["-p", "roost", "-p", "roost-tests", "--features", "roost/failpoints"]);
        assert!(plan(&["nothing"]).is_err());
        assert!(!plan(&["check"]).unwrap().needs_build());
    }
}
