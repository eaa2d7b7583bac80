//! Bad input S13-S16 and S18: each request head gets its status, an explanation and a closed connection.

use std::time::{Duration, Instant};

use roost_session::framing::handshake::{Handshake, HttpError, Step};

use crate::common::*;
use crate::good_handshakes::{handshake_both, upgrade_request};

/// The request is refused with this status by a complete answer that closes the connection.
fn refused(request: impl AsRef<[u8]>, status: u16) -> String {
    let step = handshake_both(&request);
    let Step::Refused(error) = step else {
        panic!("expected {status}, got {step:?} for {:?}", String::from_utf8_lossy(request.as_ref()));
    };
    let answer = String::from_utf8(error.response()).unwrap();
    assert_eq!(error.status, status, "{answer} for {:?}", String::from_utf8_lossy(request.as_ref()));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} {}\r\nConnection: close", error.reason())), "{answer}");
    assert!(head.contains("\r\nContent-Type: text/plain"), "{answer}");
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{answer}");
    answer
}

fn refused_upgrade(changes: &[(&str, &str)], status: u16) -> String {
    refused(upgrade_request(changes), status)
}

#[test]
fn s13_an_over_long_head_is_refused_at_the_limit() {
    let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
    let just_over = format!("{start}{}\r\n\r\n", "x".repeat(16 * 1024 - start.len() - 3));
    refused(just_over, 431);
    let mebibyte = format!("{start}{}", "x".repeat(1 << 20));
    refused(&mebibyte, 431);
    assert_eq!(handshake([&mebibyte.as_bytes()[..16 * 1024]]), Step::Incomplete);
    refused(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1 << 20)), 431);
}

#[test]
fn s13_too_many_headers_are_refused() {
    let headers = |count: usize| (0..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    refused(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", headers(64)), 431);
    // As soon as the 65th begins.
    refused(format!("GET / HTTP/1.1\r\n{}X", headers(64)), 431);
    refused(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", headers(1000)), 431);
}

#[test]
fn s13_bare_line_ends_are_refused() {
    for request in [
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.1\r\nHost: a\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\r\nHost: a\rX",
        "GET / HTTP/1.1\r\nHost: a\r\n\rX",
        "GET / HTTP/1.1\r\r",
        "\r\nGET / HTTP/1.1\r\n\r\n",
        "\n",
    ] {
        refused(request, 400);
    }
}

#[test]
fn s13_folded_headers_are_refused() {
    for fold in [" b", "\tb", " ", " X: y"] {
        refused(format!("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n{fold}\r\n\r\n"), 400);
    }
    refused("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400);
}

#[test]
fn s13_duplicate_headers_are_refused() {
    for duplicate in ["Host: a", "host: b", "HOST:"] {
        refused(format!("GET / HTTP/1.1\r\nHost: a\r\n{duplicate}\r\n\r\n"), 400);
    }
    for line in [
        "Content-Length: 0",
        "Transfer-Encoding: chunked",
        "Authorization: Bearer a",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ] {
        let (name, value) = line.split_once(": ").unwrap();
        let two = format!("{value}\r\n{}: {value}", name.to_ascii_lowercase());
        refused_upgrade(&[(name, &two)], 400);
    }
    refused("GET / HTTP/1.1\r\n\r\n", 400);
}

#[test]
fn s13_unclear_body_lengths_are_refused() {
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding: identity\r\nContent-Length: 0",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length:",
    ] {
        refused(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"), 400);
    }
    refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
    // A body where frames follow would be read twice.
    refused_upgrade(&[("Content-Length", "5")], 400);
    refused_upgrade(&[("Transfer-Encoding", "chunked")], 400);
}

#[test]
fn s13_malformed_heads_are_refused() {
    for request in [
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        "GET / a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\0",
        "\u{16}\u{3}\u{1}",
        "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \u{7f}",
    ] {
        refused(request, 400);
    }
    refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
    refused("PRI * HTTP/2.0\r\n\r\n", 505);
}

#[test]
fn s13_a_head_in_single_bytes_costs_no_more_than_in_one() {
    let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
    let long = format!("{start}{}", "x".repeat(16 * 1024 - start.len()));
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(handshake(long.as_bytes().chunks(1)), Step::Incomplete);
    }
    // A rescan per byte would look at 2.7 billion bytes.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn s14_wrong_upgrades_are_refused() {
    for changes in [
        &[("Upgrade", "")][..],
        &[("Upgrade", "h2c")],
        &[("Upgrade", "websockets")],
        &[("Connection", "")],
        &[("Connection", "keep-alive")],
        &[("Upgrade", ""), ("Connection", "")],
    ] {
        let answer = refused_upgrade(changes, 426);
        assert!(answer.contains("\r\nUpgrade: websocket\r\n"), "{answer}");
    }
    refused(upgrade_request(&[]).replacen("HTTP/1.1", "HTTP/1.0", 1), 426);
}

#[test]
fn s14_wrong_versions_are_refused() {
    for version in ["", "8", "12", "14", "013", "13, 8", "thirteen"] {
        let answer = refused_upgrade(&[("Sec-WebSocket-Version", version)], 426);
        assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
    }
}

#[test]
fn s14_wrong_keys_are_refused() {
    for key in [
        "",
        "short",
        "dGhlIHNhbXBsZSBub25j",             // 15 bytes
        "dGhlIHNhbXBsZSBub25jZWU=",         // 17 bytes
        "dGhlIHNhbXBsZSBub25jZWVlZWVlZWVl", // 24 bytes
        "dGhlIHNhbXBsZSBub25jZQ",           // no padding
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZR==", // bits beyond the end
        "dGhlIHNhbXBsZSBub25_ZQ==",
        "dGhlIHNhbXBsZSBub25jZQ==, x",
    ] {
        refused_upgrade(&[("Sec-WebSocket-Key", key)], 400);
    }
}

#[test]
fn s14_an_upgrade_without_a_known_subprotocol_is_told_both() {
    for offer in ["", "chat", "roost", "ROOST.V1", "roost.v2", "roost.v1.xml", "roost.v1json"] {
        let answer = refused_upgrade(&[("Sec-WebSocket-Protocol", offer)], 400);
        assert!(answer.contains("`roost.v1`") && answer.contains("`roost.v1.json`"), "{answer}");
    }
}

#[test]
fn s15_foreign_null_look_alike_and_double_origins_are_refused() {
    for origin in [
        "https://evil.example",
        "null",
        "https://chat.example.evil.example",
        "https://evilchat.example",
        "https://sub.chat.example",
        "http://chat.example",
        "https://chat.example:8443",
        "https://chat.example.",
        "https://chat.example/",
        "https://chat.example@evil.example",
        "https://chat.example, https://chat.example",
        "http://127.0.0.1",
        "http://127.0.0.1:80801",
    ] {
        refused_upgrade(&[("Origin", origin)], 403);
        // A token does not make a foreign page's connection acceptable.
        refused_upgrade(&[("Origin", origin), ("Authorization", "Bearer abc")], 403);
    }
    for second in ["https://chat.example", "https://evil.example", "null"] {
        refused_upgrade(&[("Origin", &format!("https://chat.example\r\nORIGIN: {second}"))], 403);
    }
    refused(upgrade_request(&[]).replace("Origin: https://chat.example", "Origin:"), 403);
    refused_upgrade(&[("Origin", "https://chat.example\r\nOrigin:")], 403);
}

#[test]
fn s16_a_cookie_alone_authenticates_nobody() {
    let answer = refused_upgrade(&[("Origin", ""), ("Cookie", "session=stolen")], 401);
    assert!(answer.contains("\r\nWWW-Authenticate: Bearer\r\n"), "{answer}");
    assert!(!answer.contains("stolen"));
}

#[test]
fn s16_other_authorization_is_refused() {
    for value in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer =", "Bearer a b", "Bearer a,b", "Bearer \u{e9}", "token"] {
        let answer = refused_upgrade(&[("Authorization", value)], 401);
        assert!(!answer.contains("dXNlcjpwYXNz"));
    }
}

#[test]
fn s18_a_token_in_the_query_is_refused_and_never_repeated() {
    for query in ["token=secret", "client=web&access_token=secret", "Token=secret", "%74oken=secret", "a;token=secret"]
    {
        let request = upgrade_request(&[]).replacen("/v1/connect", &format!("/v1/connect?{query}"), 1);
        let answer = refused(&request, 400);
        assert!(!answer.contains("secret"), "{answer}");
        let mut handshake = Handshake::new();
        assert_eq!(handshake.receive(&request.as_bytes()[..60], &origins()), Step::Incomplete);
        assert!(!format!("{handshake:?}").contains("secret"));
        assert!(!format!("{:?}", handshake.receive(&request.as_bytes()[60..], &origins())).contains("secret"));
        // Also where the request is no proper upgrade: the advice about the token comes first.
        refused(format!("GET /v1/connect?{query} HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    }
}

#[test]
fn refusals_for_load_say_when_to_come_back() {
    for (error, status) in [
        (HttpError::unavailable("Full.", 3), "503 Service Unavailable"),
        (HttpError::too_many_requests("You.", 3), "429 Too Many Requests"),
    ] {
        let answer = String::from_utf8(error.response()).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.contains("\r\nRetry-After: 3\r\n"));
    }
    assert!(HttpError::timeout().to_string().starts_with("HTTP/1.1 408 Request Timeout\r\n"));
}
