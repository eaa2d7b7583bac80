//! Roost's own processes: started, made to crash, frozen, restarted.

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Waits until something holds; a busy machine only makes it slower.
pub async fn eventually(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < end, "not within {} s: {what}", within.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A port that is free right now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Sends a signal to one process that this test started.
pub fn signal(process: u32, name: &str) {
    let status = std::process::Command::new("kill").args(["-s", name, &process.to_string()]).status();
    assert!(status.expect("kill").success(), "kill -s {name} {process}");
}

/// The program under test, built with fail points.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("ROOST_TEST_BIN") {
        return path.into();
    }
    // Beside the test's own program, where cargo puts the workspace's binaries.
    let own = std::env::current_exe().expect("this test's program");
    let folder = own.parent().and_then(|deps| deps.parent()).expect("target/debug");
    let path = folder.join("roost");
    assert!(path.exists(), "{} is not built: run `cargo build --features failpoints`", path.display());
    path
}

/// One process of the program.
pub struct Process {
    name: String,
    /// What starts the program, where it is not started as it is.
    launcher: Vec<OsString>,
    arguments: Vec<String>,
    child: Option<Child>,
    /// The address it said it is ready at; empty for workers.
    address: String,
    log: PathBuf,
}

impl Process {
    /// Starts it and waits until it says that it is ready.
    pub async fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_by(Vec::new(), name, arguments).await
    }

    /// The same by a launcher: its words come before the program's.
    pub async fn start_by(launcher: Vec<OsString>, name: &str, arguments: &[&str]) -> Self {
        let logs = std::env::var_os("ROOST_TEST_LOGS").map_or_else(std::env::temp_dir, PathBuf::from);
        let log = logs.join(format!("{name}-{}.log", uuid::Uuid::now_v7().simple()));
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut process = Self { name: name.to_owned(), launcher, arguments, child: None, address: String::new(), log };
        process.restart(None).await;
        process
    }

    /// Starts it again with the same arguments, and a fail point where one is given (`name=action`).
    pub async fn restart(&mut self, fail_point: Option<&str>) {
        let mut child = self.spawn(fail_point);
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.expect("its output") {
                if let Some((_, rest)) = line.split_once(" is ready") {
                    return Some(
                        rest.split_whitespace().find(|word| word.starts_with("http")).unwrap_or("").to_owned(),
                    );
                }
            }
            None
        };
        let limit = Duration::from_secs(120);
        match tokio::time::timeout(limit, ready).await {
            Ok(Some(address)) => self.address = address,
            Ok(None) => panic!("{} ended before it was ready:\n{}", self.name, self.log_tail()),
            Err(_) => panic!("{} was not ready in time:\n{}", self.name, self.log_tail()),
        }
        // Its output goes on; nobody reads it, and it must not block.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
    }

    /// Starts it to crash at a fail point, which may be before it is ready.
    pub async fn start_to_crash(&mut self, fail_point: &str) {
        let mut child = self.spawn(Some(fail_point));
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
    }

    fn spawn(&self, fail_point: Option<&str>) -> Child {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut words = self.launcher.iter().cloned().chain([program().into()]);
        let mut command = Command::new(words.next().expect("the program at least"));
        command
            .args(words)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        if let Some(fail_point) = fail_point {
            command.env("FAILPOINTS", fail_point);
        }
        command.spawn().expect("the program")
    }

    /// Where it is reached.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        self.child.take().expect("it runs").kill().await.expect("kill");
    }

    /// SIGTERM, and the exit code once it has ended.
    pub async fn stop(&mut self) -> Option<i32> {
        self.ask_to_stop();
        self.ended().await
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_stop(&self) {
        signal(self.id(), "TERM");
    }

    /// Waits for its end, and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
        status.expect("it ends within its grace").expect("wait").code()
    }

    /// Another process with the same arguments, beside this one.
    pub async fn successor(&self) -> Self {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        Self::start(&self.name, &arguments).await
    }

    /// The memory that it holds, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("its descriptors").count()
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        signal(self.id(), "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        signal(self.id(), "CONT");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("it runs")
    }

    /// Waits until it has ended by itself, as a fail point makes it.
    pub async fn crashed(&mut self, within: Duration) -> bool {
        let child = self.child.as_mut().expect("it runs");
        let Ok(status) = tokio::time::timeout(within, child.wait()).await else { return false };
        self.child = None;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status.expect("wait"));
        assert_eq!(signal, Some(libc::SIGABRT), "{} ended otherwise:\n{}", self.name, self.log_tail());
        true
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}
