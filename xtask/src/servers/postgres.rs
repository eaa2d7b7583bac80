//! PostgreSQL with fsync on, as its promises need it.

use super::{Place, Running, Stop, data_folder};
use crate::Result;
use crate::install::User;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

pub fn start(place: &Place<'_>, port: u16) -> Result<Running> {
    let tools = place.tools;
    let user = tools.postgres_user.as_ref();
    let data = data_folder(place, "postgres", port)?;
    let failed = |error: std::io::Error| format!("{}: {error}", data.display());
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).map_err(failed)?;
    if let Some(user) = user {
        chown(&data, Some(user.uid), Some(user.gid)).map_err(failed)?;
    }
    let mut initdb = Command::new(tools.postgres_programs.join("initdb"));
    initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]).arg(&data);
    let output = as_user(&mut initdb, user).output().map_err(|error| format!("initdb: {error}"))?;
    if !output.status.success() {
        return Err(format!("initdb: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let mut command = place.command(&tools.postgres_programs.join("postgres"));
    command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    command.args(["-c", "unix_socket_directories=", "-c", "max_connections=200"]);
    let psql = tools.postgres_programs.join("psql");
    let answers = || {
        let mut query = Command::new(&psql);
        query.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres", "-d", "postgres", "-w"]);
        query.args(["-X", "-A", "-t", "-c", "select 1"]).stdin(Stdio::null());
        query.output().is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"1"))
    };
    // SIGINT is the fast shutdown: it does not wait for clients.
    place.launch("postgres", as_user(&mut command, user), Stop("INT"), port, &answers)
}

/// The process is PostgreSQL itself, not a `su` in front of it, so that its id is the one to stop.
fn as_user<'a>(command: &'a mut Command, user: Option<&User>) -> &'a mut Command {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command.current_dir("/")
}
