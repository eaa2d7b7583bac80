//! Bad input over the real program's port: each gets its clear answer, and a good client beside it notices nothing.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::join_all;
use roost_protocol::{ClientMsgId, ConversationId};
use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::people::{Account, LIVENESS, register, rest};
use roost_tests::raw::{Raw, Wire, exchange, handshake, masked, status};
use serde_json::{Value, json};

/// Longer than the server lets anything hang.
const SILENT: Duration = LIVENESS;

/// An installation with one conversation of two good people.
struct Place {
    cluster: Cluster,
    people: Vec<Account>,
    conversation: ConversationId,
}

impl Place {
    async fn new() -> Self {
        let cluster = Cluster::start(Composition::Embedded, Size::ONE).await;
        let people = register(&cluster, 2).await;
        let created = rest(&cluster).create_direct(people[0].token(), people[1].user()).await.expect("created");
        Self { cluster, people, conversation: created.conversation_id }
    }

    fn url(&self) -> String {
        self.cluster.url(0)
    }

    fn token(&self) -> &str {
        self.people[0].token()
    }

    /// A good client is served as if nothing had happened, and the log has no panic.
    async fn is_well(&self) {
        let mut good = Raw::connect(&self.url(), self.people[1].token()).await;
        assert_eq!(good.verdict(ClientMsgId::new(), self.conversation, "all is well").await["type"], "sent");
        let log = self.cluster.gateways[0].log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[tokio::test]
async fn s01_to_s09_frames_that_break_the_rules() {
    let place = Place::new().await;
    let unmasked = [0x81, 2, b'{', b'}'].to_vec();
    let text = |first: u8, bytes: &[u8]| masked(first, bytes);
    let empty_fragments = [text(0x01, b""), text(0x00, b"").repeat(2_000)].concat();
    let mut long_length = vec![0x82, 0x80 | 127];
    long_length.extend((1_u64 << 63).to_be_bytes());
    let mut too_big = vec![0x82, 0x80 | 127];
    too_big.extend(135_169_u64.to_be_bytes());
    too_big.extend([0; 4]);
    let not_minimal = [&[0x81, 0x80 | 126, 0, 5, 0, 0, 0, 0][..], b"hello"].concat();
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("S1 unmasked", unmasked, 1002),
        ("S2 reserved bit", text(0xc1, b"{}"), 1002),
        ("S2 reserved opcode", text(0x83, b"{}"), 1002),
        ("S3 long ping", text(0x89, &[0; 126]), 1002),
        ("S3 fragmented ping", text(0x09, b"x"), 1002),
        ("S4 close with one byte", text(0x88, b"x"), 1002),
        ("S4 close with code 1005", text(0x88, &1005_u16.to_be_bytes()), 1002),
        ("S5 overlong UTF-8", text(0x81, &[0xc0, 0x80]), 1007),
        ("S5 a surrogate in fragments", [text(0x01, &[0xed]), text(0x80, &[0xa0, 0x80])].concat(), 1007),
        ("S6 a length of 2^63", long_length, 1002),
        ("S6 a length that is not minimal", not_minimal, 1002),
        ("S7 one byte over the limit", too_big, 1009),
        ("S8 empty fragments without end", empty_fragments, 1008),
        ("S9 a continuation without a start", text(0x80, b"{}"), 1002),
        ("S9 a message in a message", [text(0x01, b"{"), text(0x81, b"{}")].concat(), 1002),
        ("S10 a flood of pings", text(0x89, b"").repeat(200), 1008),
    ];
    let all = cases.iter().map(async |(name, bytes, code)| {
        let mut wire = Wire::connect(&place.url(), place.token()).await;
        wire.write(bytes).await;
        assert_eq!(wire.close_code().await, Some(*code), "{name}");
    });
    join_all(all).await;
    place.is_well().await;
}

#[tokio::test]
async fn s12_to_s14_heads_that_are_slow_long_or_wrong() {
    let place = Place::new().await;
    let good = handshake("");
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("S13 a megabyte", handshake(&format!("X-Long: {}\r\n", "x".repeat(1 << 20))), &[431]),
        ("S13 a thousand headers", handshake(&"X: y\r\n".repeat(1000)), &[431]),
        ("S13 bare line feeds", good.replace("\r\n", "\n"), &[400]),
        ("S13 a folded header", handshake("X-Folded: a\r\n b\r\n"), &[400]),
        ("S13 two hosts", handshake("Host: other\r\n"), &[400]),
        ("S13 a length and chunks", handshake("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), &[400]),
        ("S14 another upgrade", good.replace("Upgrade: websocket", "Upgrade: h2c"), &[426, 400]),
        ("S14 no upgrade", good.replace("Upgrade: websocket\r\n", ""), &[426]),
        ("S14 another version", good.replace("Version: 13", "Version: 8"), &[426]),
        ("S14 a short key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), &[400]),
        ("S14 no subprotocol of ours", good.replace("roost.v1.json", "mqtt"), &[400]),
    ];
    let all = cases.iter().map(async |(name, head, expected)| {
        let answer = exchange(&place.url(), head.as_bytes(), SILENT).await;
        let shown = String::from_utf8_lossy(&answer).chars().take(300).collect::<String>();
        assert!(expected.contains(&status(&answer)), "{name}: {shown}");
    });
    // A head that never ends is closed, a hundred of them too, while others are served.
    let url = place.url();
    let slow = (0..100).map(|_| exchange(&url, b"GET /v1/connect HTTP/1.1\r\nHo", SILENT));
    let began = tokio::time::Instant::now();
    let (_, slow, ()) = tokio::join!(join_all(all), join_all(slow), place.is_well());
    assert!(began.elapsed() < SILENT, "they are closed, not left to be silent");
    assert!(slow.iter().all(|answer| answer.is_empty() || status(answer) == 408), "{:?}", slow[0]);
    place.is_well().await;
}

#[tokio::test]
async fn s15_s16_s18_origins_cookies_and_tokens_in_the_query() {
    let place = Place::new().await;
    let url = place.url();
    let own = url.clone();
    assert!(Raw::open(&url, &[("Origin", &own)]).await.is_ok(), "its own page may connect");
    let look_alike = format!("{own}.evil.example");
    for foreign in ["https://evil.example", "null", &look_alike, "http://127.0.0.1", ""] {
        let refused = Raw::open(&url, &[("Origin", foreign)]).await.err();
        assert_eq!(refused.map(|status| status.as_u16()), Some(403), "S15 {foreign:?}");
    }
    let two = Raw::open(&url, &[("Origin", &own), ("Origin", "https://evil.example")]).await.err();
    assert!(matches!(two.map(|status| status.as_u16()), Some(400 | 403)), "S15 two of them: {two:?}");
    let cookie = format!("token={}", place.token());
    let refused = Raw::open(&url, &[("Cookie", &cookie), ("Origin", &own)]).await;
    match refused {
        Err(status) => assert_eq!(status.as_u16(), 401, "S16"),
        // The handshake may pass: without a token in `connect` nobody is let in.
        Ok(mut raw) => {
            raw.say(json!({"type": "connect", "id": 1, "client": "cookie"})).await;
            assert_eq!(raw.answer("error").await["code"], "unauthenticated", "S16");
        }
    }
    let path = format!("/v1/connect?token={}", place.token());
    let refused = Raw::open_path(&url, &path, &[]).await.err();
    assert!(matches!(refused.map(|status| status.as_u16()), Some(400 | 401)), "S18: {refused:?}");
    let log = place.cluster.gateways[0].log();
    assert!(!log.contains(&place.token()[..40]), "S18: the token is in the log");
    place.is_well().await;
}

#[tokio::test]
async fn s19_before_connect() {
    let place = Place::new().await;
    let mut early = Raw::open(&place.url(), &[]).await.expect("a WebSocket");
    early.say(json!({"type": "sync", "id": 1})).await;
    assert_eq!(early.closed().await, Some(4201), "another frame first");
    let mut long = Raw::open(&place.url(), &[]).await.expect("a WebSocket");
    long.say(json!({"type": "connect", "token": "x".repeat(5000), "client": "x"})).await;
    assert!(matches!(long.closed().await, Some(4201 | 1009 | 4202)), "over 4 KiB before `connected`");
    let mut silent = Raw::open(&place.url(), &[]).await.expect("a WebSocket");
    assert_eq!(silent.closed().await, Some(4200), "nothing at all");
    place.is_well().await;
}

/// A token with another header or payload under the old signature, or with another signature.
fn forged(
    token: &str,
    header: impl FnOnce(&mut Value),
    payload: impl FnOnce(&mut Value),
    sign: Option<&str>,
) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let read =
        |part: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON") };
    let (mut head, mut claims) = (read(parts[0]), read(parts[1]));
    header(&mut head);
    payload(&mut claims);
    let write = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", write(&head), write(&claims), sign.unwrap_or(parts[2]))
}

#[tokio::test]
async fn s20_to_s24_forged_tokens() {
    let place = Place::new().await;
    let token = place.token();
    let other = place.people[1].user();
    let same = |_: &mut Value| {};
    let set = |name: &'static str, value: Value| move |json: &mut Value| json[name] = value;
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let tokens = [
        ("S20 alg none", forged(token, set("alg", json!("none")), same, Some(""))),
        ("S20 no signature", forged(token, same, same, Some(""))),
        ("S20 another user", forged(token, same, set("sub", json!(other)), None)),
        ("S21 HS256", forged(token, set("alg", json!("HS256")), same, Some("AAAA"))),
        ("S22 a key in the header", forged(token, set("jwk", jwk), same, None)),
        ("S22 a key elsewhere", forged(token, set("jku", json!("http://127.0.0.1:9/keys")), same, None)),
        ("S22 a certificate", forged(token, set("x5u", json!("http://127.0.0.1:9/cert")), same, None)),
        ("S22 an odd key id", forged(token, set("kid", json!("../../etc/passwd")), same, None)),
        ("S22 an unknown key id", forged(token, set("kid", json!("unknown")), same, None)),
        ("S23 expired", forged(token, same, set("exp", json!(1)), None)),
        ("S23 another issuer", forged(token, same, set("iss", json!("evil")), None)),
        ("S23 another audience", forged(token, same, set("aud", json!("evil")), None)),
        ("S23 another type", forged(token, set("typ", json!("JWT")), same, None)),
        ("S24 no end", forged(token, same, |claims| drop(claims.as_object_mut().map(|o| o.remove("exp"))), None)),
        ("S24 not a token", "not.a.token".to_owned()),
        ("S24 empty", String::new()),
    ];
    for (name, token) in &tokens {
        let mut raw = Raw::open(&place.url(), &[]).await.expect("a WebSocket");
        raw.say(json!({"type": "connect", "id": 7, "token": token, "client": "forger"})).await;
        let error = raw.answer("error").await;
        assert!(error["code"] == "unauthenticated" || error["code"] == "invalid_field", "{name}: {error}");
        assert!(matches!(raw.closed().await, Some(4100 | 4201 | 4202)), "{name}");
        if token.is_empty() {
            continue;
        }
        let by_header = Raw::open(&place.url(), &[("Authorization", &format!("Bearer {token}"))]).await;
        if let Ok(mut raw) = by_header {
            raw.say(json!({"type": "connect", "id": 7, "client": "forger"})).await;
            assert_eq!(raw.answer("error").await["code"], "unauthenticated", "{name}, in the header");
        }
        let answer = rest(&place.cluster).conversations(token, None, None).await.expect_err(name);
        assert!(matches!(answer, roost_client::RestError::Refused { status: 401, .. }), "{name}: {answer}");
    }
    let mut by_header = Raw::open(&place.url(), &[("Authorization", &format!("Bearer {token}"))]).await.expect("good");
    by_header.say(json!({"type": "connect", "id": 1, "client": "by header"})).await;
    by_header.answer("connected").await;
    place.is_well().await;
}

#[tokio::test]
async fn s26_logout_and_a_refresh_token_used_twice() {
    let place = Place::new().await;
    let api = rest(&place.cluster);
    let first = place.people[0].tokens.clone();
    let renewed = api.refresh(&first.refresh_token).await.expect("renewed");
    for used in [&first.refresh_token, &renewed.refresh_token] {
        let error = api.refresh(used).await.expect_err("the family is revoked");
        assert!(matches!(error, roost_client::RestError::Refused { status: 401, .. }), "{error}");
    }
    let other = place.people[1].on_another_device(&place.cluster).await;
    api.log_out(other.token()).await.expect("logged out");
    let error = api.refresh(&other.tokens.refresh_token).await.expect_err("logged out");
    assert!(matches!(error, roost_client::RestError::Refused { status: 401, .. }), "{error}");
    place.is_well().await;
}

#[tokio::test]
async fn s34_s37_frames_that_do_not_decode() {
    let place = Place::new().await;
    let deep = format!("{{\"type\":\"send\",\"x\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    for wrong in ["{", "[]", "null", "", "\"send\"", r#"{"type": "send"}"#, r#"{"type": 5}"#, &deep] {
        let mut raw = Raw::connect(&place.url(), place.token()).await;
        raw.say_text(wrong).await;
        match raw.next().await {
            roost_tests::raw::Heard::Frame(frame) => {
                assert!(frame["type"] == "error" || frame["type"] == "rejected", "{wrong}: {frame}");
                let code = frame["code"].as_str().unwrap_or("");
                assert!(["malformed", "invalid_field"].contains(&code), "{wrong}: {frame}");
            }
            roost_tests::raw::Heard::Closed(code) => assert_eq!(code, Some(4202), "{wrong}"),
        }
    }
    let mut raw = Raw::connect(&place.url(), place.token()).await;
    raw.say_bytes(b"\x08\xff\xff\xff\xff\xff\xff").await;
    assert!(raw.closed().await.is_some(), "binary on a session of text");
    for wrong in [
        json!({"client_msg_id": "00000000-0000-0000-0000-000000000000"}),
        json!({"client_msg_id": "' or 1=1 --"}),
        json!({"conversation_id": "../../etc/passwd"}),
        json!({"content_type": "text/plain\r\nX-Injected: 1"}),
        json!({"content_type": "x".repeat(129)}),
        json!({"body_base64": "AAAA"}),
        json!({"text": "x".repeat(65_537)}),
    ] {
        let mut raw = Raw::connect(&place.url(), place.token()).await;
        let mut frame = json!({"type": "send", "id": 9, "client_msg_id": ClientMsgId::new(),
            "conversation_id": place.conversation, "text": "x"});
        frame.as_object_mut().expect("an object").extend(wrong.as_object().expect("an object").clone());
        raw.say(frame).await;
        let answer = raw.first_of(&["error", "rejected"]).await;
        let code = answer["code"].as_str().unwrap_or("").to_owned();
        assert!(["malformed", "invalid_field", "body_too_large"].contains(&code.as_str()), "{wrong}: {answer}");
    }
    place.is_well().await;
}

#[tokio::test]
async fn what_is_unknown_is_ignored_and_what_is_at_the_limit_passes() {
    let place = Place::new().await;
    let mut raw = Raw::connect(&place.url(), place.token()).await;
    let id = ClientMsgId::new();
    let text = "x".repeat(65_536);
    raw.say(json!({"type": "send", "client_msg_id": id, "conversation_id": place.conversation, "text": text,
        "from_a_later_version": {"deep": [1, 2, {"three": null}]}}))
        .await;
    let sent = tokio::time::timeout(LIVENESS, raw.first_of(&["sent", "rejected", "error"])).await.expect("an answer");
    assert_eq!(sent["type"], "sent", "{sent}");
    place.is_well().await;
}
