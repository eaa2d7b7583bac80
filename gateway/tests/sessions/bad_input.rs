//! The rows S1 to S10 and S13 to S18 of bad input over real sockets, whole and cut into single bytes: each gets its answer and its end,
//! and somebody else's session notices nothing.

use std::time::Duration;

use futures::future::join_all;
use roost_gateway::{Config, GatewayHandle};
use roost_protocol::frames::{ClientBody, Form};
use roost_protocol::limits::{CLIENT_FRAME_BYTES_MAX, FRAGMENTS_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Client, End};
use crate::eventually;
use crate::world::World;

const FIN: u8 = 0x80;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A client's frame; its first byte is given.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        0..=125 => frame.push(0x80 | payload.len() as u8),
        126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    let key = [0xa5, 0x5a, 0x0f, 0xf1];
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Frames that break the rules, and the code of the close that answers them.
fn bad_frames() -> Vec<(&'static str, Vec<u8>, u16)> {
    let header = |bytes: &[u8]| [&[FIN | TEXT][..], bytes].concat();
    let long = |bytes: u64| [&header(&[0xff])[..], &bytes.to_be_bytes()].concat();
    let fragments = |payload: &[u8], count| [masked(TEXT, payload), masked(0, payload).repeat(count)].concat();
    vec![
        ("S1 unmasked", vec![FIN | TEXT, 2, b'{', b'}'], 1002),
        ("S2 a reserved bit", masked(FIN | 0x40 | TEXT, b"{}"), 1002),
        ("S2 a reserved opcode", masked(FIN | 3, b"{}"), 1002),
        ("S2 a reserved control opcode", masked(FIN | 11, b""), 1002),
        ("S3 a ping of 126 bytes", masked(FIN | PING, &[0; 126]), 1002),
        ("S3 a ping in fragments", masked(PING, b"x"), 1002),
        ("S4 a close of one byte", masked(FIN | CLOSE, b"x"), 1002),
        ("S4 a close with 1005", masked(FIN | CLOSE, &1005_u16.to_be_bytes()), 1002),
        ("S4 a close with 5000", masked(FIN | CLOSE, &5000_u16.to_be_bytes()), 1002),
        ("S5 a reason that is no UTF-8", masked(FIN | CLOSE, b"\x03\xe8\xff"), 1007),
        ("S5 overlong UTF-8", masked(FIN | TEXT, b"\xc0\x80"), 1007),
        ("S5 a surrogate over fragments", [masked(TEXT, b"\xed"), masked(FIN, b"\xa0\x80")].concat(), 1007),
        // The rest of the message never comes: it is refused at the first wrong byte.
        ("S5 as early as seen", masked(FIN | TEXT, &[b"\xff", &[b'x'; 100][..]].concat())[..7].to_vec(), 1007),
        ("S6 a length of 2^63", long(1 << 63), 1002),
        ("S6 a length in too long a form", header(&[0xfe, 0, 125]), 1002),
        ("S6 a length in the longest form", long(65_535), 1002),
        ("S7 a byte over the limit, by its header", long(CLIENT_FRAME_BYTES_MAX as u64 + 1), 1009),
        ("S7 an enormous length", long(i64::MAX as u64), 1009),
        ("S8 empty fragments without end", fragments(b"", 2 * FRAGMENTS_MAX as usize), 1008),
        ("S8 fragments of one byte", fragments(b"x", 2 * FRAGMENTS_MAX as usize), 1008),
        ("S9 a continuation of nothing", masked(FIN, b"{}"), 1002),
        ("S9 a message inside a message", [masked(TEXT, b"{"), masked(FIN | TEXT, b"{}")].concat(), 1002),
        ("S10 a flood of pings", masked(FIN | PING, b"").repeat(200), 1008),
        ("S10 a flood of pongs", masked(FIN | PONG, b"").repeat(200), 1008),
    ]
}

/// What is longer is not sent byte by byte.
const BYTE_BY_BYTE_MAX: usize = 300;

async fn writes(client: &mut Client, bytes: &[u8], piece: usize) {
    let stream = client.socket.get_mut();
    stream.set_nodelay(true).unwrap();
    for piece in bytes.chunks(piece) {
        // The answer and the end may come before all of it is written.
        if stream.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn is_served(client: &mut Client, id: u32) {
    client.say(Some(id), ClientBody::Ping).await;
    assert_eq!(client.hear().await.id, Some(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_to_s10_frames_that_break_the_rules() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut good = Client::connect(gateway.address(), Form::Json).await;
    let cases = bad_frames();
    let whole = cases.iter().map(|case| (case, usize::MAX));
    let cut = cases.iter().filter(|case| case.1.len() <= BYTE_BY_BYTE_MAX).map(|case| (case, 1));
    let all = whole.chain(cut).map(async |((name, bytes, code), piece)| {
        let mut client = Client::connect(gateway.address(), Form::Json).await;
        writes(&mut client, bytes, piece).await;
        assert_eq!(client.end().await, End::Closed(*code), "{name}, in pieces of {piece}");
    });
    join_all(all).await;
    is_served(&mut good, 2).await;
    eventually("they are freed", || gateway.connections() == 1).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_a_frame_at_the_limit_passes() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let mut client = Client::connect(gateway.address(), Form::Json).await;
    let frame = |padding: usize| format!(r#"{{"type":"ping","id":7,"x":"{}"}}"#, "x".repeat(padding));
    let padding = CLIENT_FRAME_BYTES_MAX - frame(0).len();
    writes(&mut client, &masked(FIN | TEXT, frame(padding).as_bytes()), usize::MAX).await;
    assert_eq!(client.hear().await.id, Some(7));
    // The same in as many fragments as are allowed.
    let text = frame(padding).into_bytes();
    let mut pieces = text.chunks(text.len().div_ceil(FRAGMENTS_MAX as usize)).peekable();
    let mut fragments = masked(TEXT, pieces.next().unwrap());
    while let Some(piece) = pieces.next() {
        fragments.extend(masked(if pieces.peek().is_none() { FIN } else { 0 }, piece));
    }
    writes(&mut client, &fragments, usize::MAX).await;
    assert_eq!(client.hear().await.id, Some(7));
    gateway.stop().await;
}

fn upgrade(more: &str) -> String {
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: chat.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: roost.v1.json\r\n{more}\r\n"
    )
}

/// The status that a head is answered with, and nothing after the answer: the connection is closed.
async fn refusal(gateway: &GatewayHandle, head: &str, piece: usize) -> u16 {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in head.as_bytes().chunks(piece) {
        // The refusal may come before all of it is written.
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap_or_else(|error| panic!("no answer, but {error}: {head:.80}"));
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await.expect("its end");
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_to_s18_heads_that_break_the_rules() {
    let world = World::new();
    let origins = vec!["https://chat.example".to_owned()];
    let gateway = world.start(Config { origins, ..World::config() }).await;
    let mut good = Client::connect(gateway.address(), Form::Json).await;
    let without = |line: &str| upgrade("").replace(line, "");
    let with = |old: &str, new: &str| upgrade("").replace(old, new);
    let cases = [
        ("S13 a megabyte", upgrade(&format!("X: {}\r\n", "x".repeat(1 << 20))), 431),
        ("S13 a thousand headers", upgrade(&"X: y\r\n".repeat(1000)), 431),
        ("S13 bare line feeds", with("\r\n", "\n"), 400),
        ("S13 a bare line feed", with("Connection: Upgrade\r\n", "Connection: Upgrade\n"), 400),
        ("S13 a folded header", upgrade("X: a\r\n b\r\n"), 400),
        ("S13 two hosts", upgrade("Host: other\r\n"), 400),
        ("S13 two keys", upgrade("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400),
        ("S13 a length and chunks", upgrade("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
        ("S13 two lengths", upgrade("Content-Length: 5\r\nContent-Length: 6\r\n"), 400),
        ("S14 no upgrade", without("Upgrade: websocket\r\n"), 426),
        ("S14 another upgrade", with("Upgrade: websocket", "Upgrade: h2c"), 426),
        ("S14 another version", with("Version: 13", "Version: 8"), 426),
        ("S14 no version", without("Sec-WebSocket-Version: 13\r\n"), 426),
        ("S14 a short key", with("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400),
        ("S14 no key", without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400),
        ("S15 a foreign origin", upgrade("Origin: https://evil.example\r\n"), 403),
        ("S15 null", upgrade("Origin: null\r\n"), 403),
        ("S15 a look-alike behind", upgrade("Origin: https://chat.example.evil.example\r\n"), 403),
        ("S15 a look-alike before", upgrade("Origin: https://evilchat.example\r\n"), 403),
        ("S15 another scheme", upgrade("Origin: http://chat.example\r\n"), 403),
        ("S15 two of them", upgrade("Origin: https://chat.example\r\nOrigin: https://evil.example\r\n"), 403),
        ("S16 only a cookie", upgrade("Cookie: token=secret\r\n"), 401),
        ("S18 a token in the query", with("/v1/connect", "/v1/connect?token=secret"), 400),
        ("S18 a token in disguise", with("/v1/connect", "/v1/connect?x=1&%74oken=secret"), 400),
    ];
    let whole = cases.iter().map(|case| (case, usize::MAX));
    let cut = cases.iter().filter(|case| case.1.len() <= 2 * BYTE_BY_BYTE_MAX).map(|case| (case, 1));
    let all = whole.chain(cut).map(async |((name, head, status), piece)| {
        assert_eq!(refusal(&gateway, head, piece).await, *status, "{name}, in pieces of {piece}");
    });
    join_all(all).await;
    is_served(&mut good, 2).await;
    eventually("they are freed", || gateway.connections() == 1).await;
    gateway.stop().await;
}
