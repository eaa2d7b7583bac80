//! A seeded fuzzer on stable Rust and in bounded time: `ROOST_FUZZ_ITERATIONS` sets how far it goes and `ROOST_FUZZ_SEED`
//! where it starts. A failure prints the input's bytes. What must hold stands in [`bodies`], which the targets of the
//! folder `fuzz/` call too; with `ROOST_FUZZ_SEEDS_TO` the seeds are written for them.

mod bodies;
#[path = "../common/mod.rs"]
mod common;
mod oracle;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use roost_session::framing::handshake::HEAD_BYTES_MAX;

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

const TOKEN_BITS: [&[u8]; 16] = [
    b".",
    b"..",
    b"=",
    b"\n",
    b"\"alg\":\"none\"",
    b"\"alg\":\"HS256\"",
    b"\"kid\":\"../k1\"",
    b"\"jku\":\"http://a/\"",
    b"\"exp\":99999999999999999999",
    b"\"exp\":-1",
    b"\"exp\":1e400",
    b"\"aud\":[]",
    b",",
    b"[[[[[[[[",
    b"null",
    b"\xff",
];

/// Seeds with a name; those that are asked for are also written, one file each.
fn seeds(target: &str, corpus: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if let Some(folder) = std::env::var_os("ROOST_FUZZ_SEEDS_TO") {
        let folder = std::path::Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder).expect("a folder for the seeds");
        for (index, seed) in corpus.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), seed).expect("a seed");
        }
    }
    corpus
}

const LONG_BYTES: usize = 4096;

/// Runs a body on mutations of the seeds, and counts what it says of them.
fn fuzz<V: Ord>(
    target: &str,
    corpus: Vec<Vec<u8>>,
    interesting: &[&[u8]],
    salt: u64,
    body: impl Fn(&[u8]) -> V,
) -> BTreeMap<V, u32> {
    let (corpus, mut random, mut verdicts) = (seeds(target, corpus), random(salt), BTreeMap::new());
    for seed in &corpus {
        *verdicts.entry(body(seed)).or_default() += 1;
    }
    for _ in 0..iterations() {
        let mut input = corpus[random.below(corpus.len())].clone();
        // A long one takes as long as fifty others: now and then is enough.
        if input.len() > LONG_BYTES && random.below(8) > 0 {
            continue;
        }
        mutate(&mut input, &corpus, interesting, &mut random);
        *verdicts.entry(body(&input)).or_default() += 1;
    }
    verdicts
}

/// Whether every verdict must have been reached by now.
fn is_long() -> bool {
    iterations() >= 10_000
}

#[test]
fn frames_never_panic_and_never_depend_on_the_cut() {
    let verdicts = fuzz("frames", frame_corpus(), &FRAME_BITS, 1, |input| format!("{:?}", bodies::frames(input)));
    assert!(!is_long() || verdicts.len() == 15, "some errors were never provoked: {verdicts:?}");
}

#[test]
fn fragments_come_together_as_they_were_cut() {
    let corpus = frame_corpus().into_iter().chain([b"\0".repeat(40), "grüße 😀".repeat(9).into_bytes()]).collect();
    let verdicts = fuzz("fragments", corpus, &FRAME_BITS, 4, |input| format!("{:?}", bodies::fragments(input)));
    assert!(!is_long() || verdicts.len() == 2, "not every verdict was reached: {verdicts:?}");
}

#[test]
fn handshakes_never_panic_and_never_depend_on_the_cut() {
    let verdicts = fuzz("handshake", head_corpus(), &HEAD_BITS, 2, bodies::handshake_head);
    let expected = [0, 101, 200, 400, 401, 403, 426, 431, 505];
    assert!(!is_long() || verdicts.keys().eq(&expected), "not every verdict was reached: {verdicts:?}");
}

#[test]
fn tokens_are_refused_unless_they_are_what_was_signed() {
    let verdicts = fuzz("tokens", bodies::SIGNED.clone(), &TOKEN_BITS, 5, bodies::token);
    assert!(!is_long() || verdicts.len() == 3, "not every verdict was reached: {verdicts:?}");
}

#[test]
fn signed_claims_never_panic_and_are_never_believed_beyond_the_rules() {
    let verdicts = fuzz("claims", bodies::claims_corpus(), &TOKEN_BITS, 6, bodies::claims);
    assert!(!is_long() || verdicts.len() == 3, "not every verdict was reached: {verdicts:?}");
}

#[test]
fn noise_never_panics() {
    let mut random = random(3);
    for _ in 0..iterations() / 10 {
        let length = random.below(200);
        let noise = random.bytes(length);
        bodies::frames(&noise);
        bodies::fragments(&noise);
        bodies::handshake_head(&noise);
        bodies::token(&noise);
        bodies::claims(&noise);
    }
}

/// The targets that nobody would notice any more if they were only built by a nightly compiler.
#[test]
fn every_target_of_the_fuzz_folder_is_run_in_bounded_time_too() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/fuzz_targets");
    let names = std::fs::read_dir(folder).expect("the targets").map(|entry| entry.expect("a target").file_name());
    let names: BTreeSet<String> = names.map(|name| name.to_string_lossy().replace(".rs", "")).collect();
    let here = ["claims", "fragments", "frames", "handshake", "tokens"];
    let in_protocol = ["client_frames", "log_records", "server_frames"];
    assert_eq!(names, here.into_iter().chain(in_protocol).map(str::to_owned).collect());
    let manifest = std::fs::read_to_string(format!("{folder}/../Cargo.toml")).expect("its manifest");
    assert!(names.iter().all(|name| manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\""))), "{manifest}");
}
