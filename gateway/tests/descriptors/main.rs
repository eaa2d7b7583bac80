//! The process runs out of descriptors: alone in its process, because the limit is the process's.

#[path = "../sessions/client.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod client;
#[path = "../sessions/world.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod world;

use std::io::{Read, Seek};
use std::process::Command;
use std::time::Duration;

use client::Client;
use roost_gateway::{Config, Io};
use roost_protocol::frames::{ClientBody, Form};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use world::{World, token, wall_ms};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Processor time of this process in milliseconds, from its stat file: kept open, since no other can be opened.
fn cpu_ms(file: &mut std::fs::File) -> u64 {
    let mut stat = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut stat).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

/// False where the tool is missing.
fn limit_descriptors(count: usize) -> bool {
    let pid = std::process::id().to_string();
    let limit = format!("--nofile={count}:");
    Command::new("prlimit").args(["--pid", &pid, &limit]).status().is_ok_and(|status| status.success())
}

async fn converse(stream: TcpStream, address: std::net::SocketAddr) -> Client {
    let request = client::request(address, Form::Json);
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("it upgrades");
    let (user, device) = (roost_protocol::UserId::new(), roost_protocol::DeviceId::new());
    let mut client = Client { socket, form: Form::Json, user, device, connected: None };
    client.say_connect(&token(user, device, wall_ms() + 60_000), None).await;
    client.wait_connected().await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn accepting_pauses_without_spinning_and_those_who_are_there_stay() {
    let world = World::new();
    // The io_uring driver's connections are no descriptors of the process.
    let gateway = world.start(Config { io: Io::Portable, ..World::config() }).await;
    let mut stat = std::fs::File::open("/proc/self/stat").expect("Linux");
    // The clients' own descriptors are there before the limit falls.
    let sockets: Vec<Socket> = (0..20).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    if !limit_descriptors(open_descriptors() - 1 + 5) {
        eprintln!("skipped: prlimit is not installed");
        return gateway.stop().await;
    }
    let mut streams = Vec::new();
    for socket in sockets {
        socket.connect(&gateway.address().into()).expect("the kernel accepts for the gateway");
        socket.set_nonblocking(true).unwrap();
        streams.push(TcpStream::from_std(socket.into()).unwrap());
    }
    while gateway.metrics().accept_pauses.get() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let accepted = gateway.connections();
    assert!((1..=10).contains(&accepted), "{accepted}");
    let waiting = streams.split_off(accepted);
    let mut clients = Vec::new();
    for stream in streams {
        clients.push(converse(stream, gateway.address()).await);
    }
    let before_ms = cpu_ms(&mut stat);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent_ms = cpu_ms(&mut stat) - before_ms;
    assert!(spent_ms < 400, "{spent_ms} ms of 2 s were spent on waiting");
    for client in &mut clients {
        client.say(Some(9), ClientBody::Ping).await;
        assert_eq!(client.hear().await.id, Some(9));
    }
    limit_descriptors(1_000);
    for stream in waiting {
        clients.push(converse(stream, gateway.address()).await);
    }
    assert_eq!(gateway.sessions(), 20);
    gateway.stop().await;
}
