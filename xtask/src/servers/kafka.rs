//! One Kafka node, broker and controller in one process.

use super::{Place, Running, Stop, data_folder, free_port};
use crate::Result;
use crate::install::Tools;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// A small heap and the quick compiler: tests start it often and send it little.
pub const JAVA_OPTIONS: [&str; 4] = ["-Xmx512m", "-Xms256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

/// What its own start script gives it, but for the size of the heap.
const JAVA_OPTIONS_FOR_MEASURING: [&str; 3] = ["-Xmx1g", "-Xms1g", "-XX:+UseG1GC"];

pub fn classpath(tools: &Tools) -> String {
    format!("{}/*", tools.kafka_libraries.display())
}

pub fn start(place: &Place<'_>, port: u16) -> Result<Running> {
    let data = data_folder(place, "kafka", port)?;
    let properties = data.join("server.properties");
    let text = PROPERTIES
        .replace("CONTROLLER_PORT", &free_port()?.to_string())
        .replace("BROKER_PORT", &port.to_string())
        .replace("FOLDER", &data.join("log").display().to_string());
    std::fs::write(&properties, text).map_err(|error| format!("{}: {error}", properties.display()))?;
    let classpath = classpath(place.tools);
    let identity = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
    let output = Command::new(&place.tools.java)
        .args([
            "-XX:TieredStopAtLevel=1",
            "-cp",
            &classpath,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            &identity,
            "-c",
        ])
        .arg(&properties)
        .output()
        .map_err(|error| format!("java: {error}"))?;
    if !output.status.success() {
        let told = [output.stdout, output.stderr].concat();
        return Err(format!("the format of Kafka's folder failed: {}", String::from_utf8_lossy(&told).trim()));
    }
    let mut command = place.command(&place.tools.java);
    let options: &[&str] = if place.for_measuring { &JAVA_OPTIONS_FOR_MEASURING } else { &JAVA_OPTIONS };
    command.args(options).args(["-cp", &classpath, "kafka.Kafka"]).arg(&properties);
    // Its own shutdown takes seconds, to keep data that nobody will read.
    place.launch("kafka", &mut command, Stop("KILL"), port, &|| knows_a_broker(port).is_some())
}

const PROPERTIES: &str = "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:CONTROLLER_PORT
listeners=PLAINTEXT://127.0.0.1:BROKER_PORT,CONTROLLER://127.0.0.1:CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:BROKER_PORT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=FOLDER
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
";

/// Asks for the cluster's metadata: a broker that has started but not yet joined names no broker.
fn knows_a_broker(port: u16) -> Option<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(&metadata_request()).ok()?;
    let mut head = [0; 16];
    stream.read_exact(&mut head).ok()?;
    let field = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
    // Length, correlation id, throttle time, number of brokers.
    (field(4)? == CORRELATION && field(12)? >= 1).then_some(())
}

const CORRELATION: i32 = 7;

/// Metadata, version 4, for no topics: api key, version, correlation id, no client id, no topics, create none.
fn metadata_request() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(3_i16.to_be_bytes());
    body.extend(4_i16.to_be_bytes());
    body.extend(CORRELATION.to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.push(0);
    let length = i32::try_from(body.len()).unwrap_or_default();
    [length.to_be_bytes().to_vec(), body].concat()
}
