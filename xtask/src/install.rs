//! Finds what the tests need from outside Rust, and installs what is missing.

use crate::Result;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the programs of the real servers are.
#[derive(Debug, Clone)]
pub struct Tools {
    pub java: PathBuf,
    /// The folder of Kafka's jars.
    pub kafka_libraries: PathBuf,
    pub redis_server: PathBuf,
    /// The folder of `initdb`, `postgres` and `psql`.
    pub postgres_programs: PathBuf,
    /// A Python with the package `websockets`.
    pub python: PathBuf,
    /// PostgreSQL refuses to run as root; then it runs as this user.
    pub postgres_user: Option<User>,
}

/// A user of the system.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

pub const KAFKA_VERSION: &str = "4.1.1";
const WEBSOCKETS_VERSION: &str = "15.0.1";

impl Tools {
    /// Installs what is missing, or says what to type. The cache is `servers` in cargo's target folder.
    pub fn ensure(workspace: &Workspace) -> Result<Tools> {
        let missing = missing_packages();
        if !missing.is_empty() {
            apt_install(&missing)?;
        }
        let still = missing_packages();
        if !still.is_empty() {
            return Err(format!("still missing after the installation: {}", still.join(" ")));
        }
        let cache = workspace.target.join("servers");
        std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        Ok(Tools {
            java: find("java").ok_or("java is missing")?,
            kafka_libraries: ensure_kafka(&cache)?,
            redis_server: find("redis-server").ok_or("redis-server is missing")?,
            postgres_programs: postgres_programs().ok_or("PostgreSQL is missing")?,
            python: ensure_python(&cache)?,
            postgres_user: if is_root() { Some(user("postgres")?) } else { None },
        })
    }

    /// One line for each server: what it is and in which version.
    pub fn versions(&self) -> Vec<String> {
        let line = |program: &Path, argument: &str| first_line(Command::new(program).arg(argument));
        vec![
            format!("Kafka {KAFKA_VERSION} on {}", line(&self.java, "-version")),
            line(&self.redis_server, "--version"),
            line(&self.postgres_programs.join("postgres"), "--version"),
            format!("{}, websockets {WEBSOCKETS_VERSION}", line(&self.python, "--version")),
        ]
    }
}

/// A program on the search path, or where Debian keeps those for administrators.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn missing_packages() -> Vec<&'static str> {
    let has_venv = succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]));
    let present = [
        ("make", find("make").is_some()),
        ("default-jre-headless", java_major().is_some_and(|major| major >= 17)),
        ("maven", find("mvn").is_some()),
        ("redis-server", find("redis-server").is_some()),
        ("postgresql", postgres_programs().is_some()),
        ("python3", find("python3").is_some()),
        ("python3-venv", has_venv),
    ];
    present.iter().filter(|(_, found)| !found).map(|(package, _)| *package).collect()
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let prefix: &[&str] = if is_root() {
        &[]
    } else if succeeds(Command::new("sudo").args(["-n", "true"])) {
        &["sudo", "-n"]
    } else {
        return Err(format!(
            "the tests need packages that only root can install. Type:\n  \
             sudo apt-get update && sudo apt-get install -y {list}\nor leave the real servers out with --no-servers"
        ));
    };
    if find("apt-get").is_none() {
        return Err(format!("apt-get is not here; install what these Debian packages hold, then try again: {list}"));
    }
    eprintln!("installing {list}");
    let update = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "update"];
    apt(prefix, &update)?;
    let mut install = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"];
    install.extend(["-o", "Acquire::Retries=3", "install", "-y", "--no-install-recommends"]);
    install.extend(packages);
    apt(prefix, &install)
}

fn apt(prefix: &[&str], words: &[&str]) -> Result<()> {
    let all = [prefix, words].concat();
    // Its output is kept apart from ours: standard output belongs to the results.
    let output = Command::new(all[0]).args(&all[1..]).output().map_err(|error| format!("{}: {error}", all[0]))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed:\n{}", all.join(" "), text.trim()))
}

/// Fetches Kafka's jars by Maven, once.
fn ensure_kafka(cache: &Path) -> Result<PathBuf> {
    let libraries = cache.join("kafka-libs");
    let stamp = libraries.join("version");
    if std::fs::read_to_string(&stamp).is_ok_and(|version| version == KAFKA_VERSION) {
        return Ok(libraries);
    }
    eprintln!("fetching Kafka {KAFKA_VERSION}");
    let failed = |error: std::io::Error| format!("{}: {error}", cache.display());
    let work = tempfile::tempdir_in(cache).map_err(failed)?;
    std::fs::write(work.path().join("pom.xml"), POM.replace("KAFKA_VERSION", KAFKA_VERSION)).map_err(failed)?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"])
        .current_dir(work.path())
        .output()
        .map_err(|error| format!("mvn: {error}"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stdout);
        return Err(format!("Maven could not fetch Kafka {KAFKA_VERSION}:\n{}", told.trim()));
    }
    let fetched = work.path().join("libs");
    std::fs::write(fetched.join("version"), KAFKA_VERSION).map_err(failed)?;
    if libraries.exists() {
        std::fs::remove_dir_all(&libraries).map_err(failed)?;
    }
    std::fs::rename(fetched, &libraries).map_err(failed)?;
    Ok(libraries)
}

const POM: &str = "<project><modelVersion>4.0.0</modelVersion>
<groupId>roost</groupId><artifactId>servers</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>KAFKA_VERSION</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
";

/// A virtual environment with the independent WebSocket client, once.
fn ensure_python(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("venv");
    let python = folder.join("bin/python");
    let probe = format!("import websockets; assert websockets.__version__ == '{WEBSOCKETS_VERSION}'");
    if succeeds(Command::new(&python).args(["-c", &probe])) {
        return Ok(python);
    }
    eprintln!("fetching the Python package websockets {WEBSOCKETS_VERSION}");
    must(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let wanted = format!("websockets=={WEBSOCKETS_VERSION}");
    must(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &wanted]))?;
    Ok(python)
}

/// The newest PostgreSQL that Debian's packages installed, else what is on the search path.
fn postgres_programs() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, programs)| programs.join("initdb").is_file())
        .collect();
    versions.sort();
    let on_path = || find("initdb").and_then(|initdb| initdb.canonicalize().ok()?.parent().map(Path::to_owned));
    versions.pop().map(|(_, programs)| programs).or_else(on_path)
}

fn java_major() -> Option<u32> {
    let text = first_line(Command::new(find("java")?).arg("-version"));
    let version = text.split('"').nth(1)?;
    version.split('.').next()?.parse().ok()
}

fn is_root() -> bool {
    first_line(Command::new("id").arg("-u")) == "0"
}

fn user(name: &str) -> Result<User> {
    let number = |flag: &str| {
        let text = first_line(Command::new("id").args([flag, name]));
        text.parse().map_err(|_| format!("there is no user {name}"))
    };
    Ok(User { name: name.to_owned(), uid: number("-u")?, gid: number("-g")? })
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn must(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn first_line(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return String::new() };
    let bytes = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().trim().to_owned()
}
