//! A real server for the tests of the clients: the program of the test run, on a folder of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A running server; it ends with this.
pub struct Server {
    child: Child,
    /// Where it listens, as `http://…`.
    pub address: String,
    /// Its data is in `data` here; the rest is free.
    pub folder: TempDir,
}

impl Server {
    /// On a folder that may hold data already.
    pub fn start(folder: TempDir) -> Self {
        let mut child = Command::new(program())
            .args(["serve", "--listen", "127.0.0.1:0", "--log-level", "error", "--data"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("roost starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once(" is ready")?;
            rest.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned)
        });
        let address = address.expect("it says where it is ready");
        // Its output goes on, and must not block.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address, folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; the test has said so then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's program: of the test run, or beside our own.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("ROOST_TEST_BIN") {
        return path.into();
    }
    let path = Path::new(env!("CARGO_BIN_EXE_roost-swarm")).with_file_name("roost");
    assert!(path.exists(), "{} is not built: run `cargo build`", path.display());
    path
}
