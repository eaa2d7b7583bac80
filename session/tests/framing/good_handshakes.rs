//! What the listener accepts: upgrades of real clients' shape, and plain HTTP for the other server.

use roost_session::framing::handshake::{PlainHttp, Step, Subprotocol, Upgrade};

use crate::common::*;

/// A browser's upgrade with these lines in place of (or beside) its own; an empty value leaves the header out.
pub fn upgrade_request(changes: &[(&str, &str)]) -> String {
    let mut headers = vec![
        ("Host", "chat.example"),
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Origin", "https://chat.example"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "roost.v1"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ];
    for (name, value) in changes {
        headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        if !value.is_empty() {
            headers.push((name, value));
        }
    }
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /v1/connect HTTP/1.1\r\n{lines}\r\n")
}

/// Whole and byte by byte, which must agree.
pub fn handshake_both(request: impl AsRef<[u8]>) -> Step {
    let request = request.as_ref();
    let whole = handshake([request]);
    assert_eq!(handshake(request.chunks(1)), whole);
    whole
}

pub fn upgraded(request: impl AsRef<[u8]>) -> Upgrade {
    match handshake_both(request) {
        Step::Upgrade(upgrade) => *upgrade,
        other => panic!("expected an upgrade, got {other:?}"),
    }
}

pub fn plain(request: impl AsRef<[u8]>) -> PlainHttp {
    match handshake_both(request) {
        Step::Http(http) => *http,
        other => panic!("expected plain HTTP, got {other:?}"),
    }
}

#[test]
fn a_browser_is_upgraded_and_compression_declined() {
    let upgrade = upgraded(upgrade_request(&[]));
    assert_eq!(upgrade.subprotocol, Subprotocol::Binary);
    assert_eq!(upgrade.bearer, None);
    assert_eq!(
        String::from_utf8(upgrade.response).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: roost.v1\r\n\r\n"
    );
    assert_eq!(upgrade.request.header("host"), Some(&b"chat.example"[..]));
}

#[test]
fn frames_sent_along_with_the_head_are_not_lost() {
    let frame = masked(FIN | TEXT, b"connect");
    let stream = [upgrade_request(&[]).as_bytes(), &frame].concat();
    assert_eq!(upgraded(stream).rest, frame);
}

#[test]
fn the_clients_preference_chooses_the_subprotocol() {
    let chosen = |offer: &str| upgraded(upgrade_request(&[("Sec-WebSocket-Protocol", offer)])).subprotocol;
    assert_eq!(chosen("roost.v1.json, roost.v1"), Subprotocol::Json);
    assert_eq!(chosen("roost.v2, , roost.v1 ,roost.v1.json"), Subprotocol::Binary);
    let two_lines = upgrade_request(&[
        ("X", "y\r\nSec-WebSocket-Protocol: roost.v1.json"),
        ("Sec-WebSocket-Protocol", "graphql-ws"),
    ]);
    assert_eq!(upgraded(two_lines).subprotocol, Subprotocol::Json);
}

#[test]
fn a_bearer_token_is_taken_from_its_header_and_never_shown() {
    for value in ["Bearer abc.DEF-1_2~+/==", "bearer   abc.DEF-1_2~+/=="] {
        let upgrade = upgraded(upgrade_request(&[("Authorization", value), ("Origin", ""), ("Cookie", "a=b")]));
        assert!(!format!("{upgrade:?}").contains("abc.DEF"));
        assert_eq!(upgrade.bearer.unwrap().into_token(), "abc.DEF-1_2~+/==");
    }
}

#[test]
fn header_names_and_tokens_are_read_in_any_case() {
    let request = upgrade_request(&[("UPGRADE", "WebSocket"), ("connection", "UPGRADE")]);
    assert_eq!(upgraded(request.replace("Sec-WebSocket-", "sec-websocket-")).subprotocol, Subprotocol::Binary);
    let absolute = upgrade_request(&[]).replacen("/v1/connect", "HTTP://chat.example/v1/connect?client=web", 1);
    assert_eq!(upgraded(absolute).request.query(), Some("client=web"));
}

#[test]
fn no_origin_is_fine_for_clients_that_are_no_browsers() {
    assert_eq!(upgraded(upgrade_request(&[("Origin", "")])).subprotocol, Subprotocol::Binary);
    // A cookie beside an allowed origin is neither a fault nor authentication.
    assert_eq!(upgraded(upgrade_request(&[("Cookie", "session=1")])).bearer, None);
}

#[test]
fn everything_else_is_handed_over_with_every_byte() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v1/conversations?token=x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
        "POST /v1/connect HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
        "POST /v1/token HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1/connect/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v1/%63onnect HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Latin: \u{e9}\u{20ac}\t\r\nEmpty:\r\n\r\nGET /second HTTP/1.1\r\n",
    ] {
        assert_eq!(plain(request).received, request.as_bytes());
    }
}

#[test]
fn a_request_can_be_read_but_its_debug_form_shows_no_secret() {
    let http = plain("GET /a/b?token=secret HTTP/1.1\r\nHost: h\r\nCookie: secret\r\nX:  y \t\r\n\r\nsecret");
    let request = &http.request;
    assert_eq!((request.method(), request.path(), request.query()), ("GET", "/a/b", Some("token=secret")));
    assert_eq!(request.minor_version(), 1);
    assert_eq!(request.header("x"), Some(&b"y"[..]));
    assert_eq!(request.headers().count(), 3);
    assert!(!format!("{http:?}").contains("secret"));
}

#[test]
fn a_head_exactly_at_the_limits_passes() {
    let many: String = (1..64).map(|n| format!("X-{n}: y\r\n")).collect();
    assert_eq!(plain(format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).request.headers().count(), 64);
    let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
    let long = format!("{start}{}\r\n\r\n", "x".repeat(16 * 1024 - start.len() - 4));
    assert_eq!(long.len(), 16 * 1024);
    assert_eq!(plain(&long).received.len(), long.len());
}
