//! Redis without persistence: what it holds can always be rebuilt.

use super::{Place, Running, Stop, data_folder};
use crate::Result;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

pub fn start(place: &Place<'_>, port: u16) -> Result<Running> {
    let data = data_folder(place, "redis", port)?;
    let mut command = place.command(&place.tools.redis_server);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(data);
    place.launch("redis", &mut command, Stop("TERM"), port, &|| pings(port).is_some())
}

fn pings(port: u16) -> Option<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").ok()?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).ok()?;
    (&answer == b"+PONG\r\n").then_some(())
}
