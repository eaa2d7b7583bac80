//! A seeded fuzzer for both codecs, on stable Rust and in bounded time: `ROOST_FUZZ_ITERATIONS` sets how far it goes and
//! `ROOST_FUZZ_SEED` where it starts. A failure prints the input's bytes.

mod common;

use common::*;
use roost_session::framing::handshake::{HEAD_BYTES_MAX, Handshake, Step};
use roost_session::framing::websocket::Limits;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn iterations() -> u64 {
    setting("ROOST_FUZZ_ITERATIONS", 50_000)
}

fn random(salt: u64) -> Random {
    Random(setting("ROOST_FUZZ_SEED", 0x005e_ed0f_f0a7) ^ salt)
}

/// Changes a few bytes, or repeats, removes, swaps or splices a stretch.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], interesting: &[&[u8]], random: &mut Random) {
    for _ in 0..random.below(5) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(16)).min(input.len());
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.byte(),
            2 => drop(input.splice(at..end, [])),
            3 => {
                let stretch = input[at..end].to_vec();
                drop(input.splice(at..at, stretch));
            }
            4 => drop(input.splice(at..at, interesting[random.below(interesting.len())].iter().copied())),
            5 => drop(input.splice(at..end, interesting[random.below(interesting.len())].iter().copied())),
            6 => input.truncate(at),
            _ => {
                let other = &corpus[random.below(corpus.len())];
                input.truncate(at);
                input.extend(&other[random.below(other.len() + 1)..]);
            }
        }
    }
}

fn frame_corpus() -> Vec<Vec<u8>> {
    let zero = |first: u8, payload: &[u8]| client_frame(first, [0; 4], payload);
    vec![
        masked(FIN | TEXT, "grüße 😀".as_bytes()),
        zero(FIN | TEXT, "grüße 😀".as_bytes()),
        masked(FIN | BINARY, &[7; 300]),
        [zero(TEXT, b"a\xE2"), zero(FIN | PING, b"p"), zero(CONTINUATION, b"\x82"), zero(FIN, b"\xAC")].concat(),
        [masked(BINARY, b""), masked(CONTINUATION, b"").repeat(20), masked(FIN, b"end")].concat(),
        [zero(FIN | PING, &[1; 125]), zero(FIN | PONG, b""), zero(FIN | TEXT, b"")].concat(),
        zero(FIN | CLOSE, &close_payload(1000, "tschüß".as_bytes())),
        masked(FIN | CLOSE, b""),
        masked(FIN | BINARY, &[1; 2000]),
        vec![],
    ]
}

const FRAME_BITS: [&[u8]; 15] = [
    &[0x81, 0x80, 0, 0, 0, 0],
    &[0x01, 0x81, 0, 0, 0, 0, 0xE2],
    &[0x00, 0x81, 0, 0, 0, 0, 0x82],
    &[0x80, 0x80, 0, 0, 0, 0],
    &[0x82, 0xfe, 0, 126],
    &[0x82, 0xfe, 0, 125],
    &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0],
    &[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0x88, 0x82, 0, 0, 0, 0, 3, 0xe8],
    &[0x88, 0x81],
    &[0x89, 0xfd, 0, 0, 0, 0],
    &[0xED, 0xA0],
    &[0xF4, 0x90],
    &[0xff; 8],
];

#[test]
fn frames_never_panic_and_never_depend_on_the_cut() {
    let (corpus, mut random) = (frame_corpus(), random(1));
    let mut verdicts = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..iterations() {
        let mut input = corpus[random.below(corpus.len())].clone();
        mutate(&mut input, &corpus, &FRAME_BITS, &mut random);
        let limits = Limits { message_bytes_max: 1500, message_fragments_max: 12 };
        let whole = decode([&input[..]], &limits);
        assert_eq!(decode(cut(&input, &mut random), &limits), whole, "{input:x?}");
        *verdicts.entry(format!("{:?}", whole.error)).or_default() += 1;
        if whole.error.is_none() {
            against_tungstenite::reads_the_same(&input, &whole);
        }
    }
    assert!(iterations() < 10_000 || verdicts.len() == 15, "some errors were never provoked: {verdicts:?}");
}

/// An independent reader as the oracle: whatever we accept, it must read alike. (Not the other way round: it is laxer.)
mod against_tungstenite {
    use std::io::{self, Read, Write};

    use tungstenite::protocol::{Role, WebSocket};
    use tungstenite::{Error, Message};

    use super::common::{Decoded, Said};

    struct Source<'a>(&'a [u8]);

    impl Read for Source<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(buffer) }
        }
    }

    impl Write for Source<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub fn reads_the_same(input: &[u8], ours: &Decoded) {
        let config = tungstenite::protocol::WebSocketConfig::default().read_buffer_size(4096);
        let mut server = WebSocket::from_raw_socket(Source(input), Role::Server, Some(config));
        for said in &ours.said {
            let theirs = server.read();
            let same = match (said, &theirs) {
                (Said::Text(ours), Ok(Message::Text(theirs))) => ours == theirs.as_str(),
                (Said::Binary(ours), Ok(Message::Binary(theirs))) => ours == theirs,
                (Said::Ping(ours), Ok(Message::Ping(theirs))) => ours == theirs,
                (Said::Pong, Ok(Message::Pong(_))) => true,
                (Said::Close(None, _), Ok(Message::Close(None))) => true,
                // It does not know 1014 (Bad Gateway), which was registered later.
                (Said::Close(Some(1014), _), _) => true,
                (Said::Close(Some(code), reason), Ok(Message::Close(Some(theirs)))) => {
                    *code == u16::from(theirs.code) && reason == theirs.reason.as_str()
                }
                _ => false,
            };
            assert!(same, "we read {said:?}, tungstenite {theirs:?}, of {input:x?}");
            if matches!(said, Said::Close(..)) {
                return;
            }
        }
        let end = server.read();
        assert!(matches!(&end, Err(Error::Io(_))), "we read no more, tungstenite {end:?}, of {input:x?}");
    }
}

fn head_corpus() -> Vec<Vec<u8>> {
    let upgrade = "GET /v1/connect HTTP/1.1\r\nHost: chat.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: roost.v1.json\r\n";
    let many: String = (0..62).map(|n| format!("X-{n}: y\r\n")).collect();
    [
        format!("{upgrade}\r\n"),
        format!("{upgrade}Origin: https://chat.example\r\nAuthorization: Bearer abc.def\r\n\r\n\u{1}\u{2}\u{3}"),
        format!("{upgrade}Cookie: a=b\r\n\r\n"),
        format!("{upgrade}Origin: null\r\n\r\n"),
        upgrade.replacen("/v1/connect", "/v1/connect?token=secret", 1) + "\r\n",
        "POST /v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody".to_owned(),
        "GET http://a/v1/connect?x#f HTTP/1.0\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX - 60)),
    ]
    .map(String::into_bytes)
    .to_vec()
}

const HEAD_BITS: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\r\n ",
    b": ",
    b"\0",
    b"\xff",
    b"Host: b\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Origin: https://chat.example.evil\r\n",
    b"X-1: y\r\nX-2: y\r\nX-3: y\r\n",
    b"?access_token=secret&",
    b"%",
    b"HTTP/1.",
];

#[test]
fn handshakes_never_panic_and_never_depend_on_the_cut() {
    let (corpus, mut random) = (head_corpus(), random(2));
    let mut verdicts = std::collections::BTreeMap::<u16, u32>::new();
    for round in 0..iterations() {
        // The 16 KiB head takes as long as fifty others: now and then is enough.
        let choices = if round % 50 == 0 { corpus.len() } else { corpus.len() - 1 };
        let mut input = corpus[random.below(choices)].clone();
        mutate(&mut input, &corpus[..choices], &HEAD_BITS, &mut random);
        let whole = handshake([&input[..]]);
        assert_eq!(handshake(cut(&input, &mut random)), whole, "{:?}", String::from_utf8_lossy(&input));
        let verdict = match &whole {
            Step::Incomplete => {
                assert!(input.len() <= HEAD_BYTES_MAX);
                0
            }
            Step::Upgrade(upgrade) => {
                assert!(input.ends_with(&upgrade.rest));
                101
            }
            Step::Http(http) => {
                assert_eq!(http.received, input);
                200
            }
            Step::Refused(error) => {
                assert!(!String::from_utf8(error.response()).unwrap().contains("secret"));
                error.status
            }
        };
        // Method and path may be shown, and a mutation may have moved the token there.
        let shown = match &whole {
            Step::Http(http) => [http.request.method(), http.request.path()].concat(),
            _ => String::new(),
        };
        assert!(shown.contains("secret") || !format!("{whole:?}").contains("secret"));
        *verdicts.entry(verdict).or_default() += 1;
    }
    let expected = [0, 101, 200, 400, 401, 403, 426, 431, 505];
    assert!(iterations() < 10_000 || verdicts.keys().eq(&expected), "not every verdict was reached: {verdicts:?}");
}

#[test]
fn noise_never_panics() {
    let mut random = random(3);
    for _ in 0..iterations() / 10 {
        let length = random.below(200);
        let noise = random.bytes(length);
        let whole = decode([&noise[..]], &Limits::default());
        assert_eq!(decode(cut(&noise, &mut random), &Limits::default()), whole, "{noise:x?}");
        assert_eq!(handshake(cut(&noise, &mut random)), handshake([&noise[..]]), "{noise:x?}");
    }
    let mut handshake = Handshake::new();
    assert_eq!(handshake.receive(b"", &origins()), Step::Incomplete);
}
