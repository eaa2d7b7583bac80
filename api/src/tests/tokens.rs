//! Access tokens at the door, and the life of their keys.

use std::sync::atomic::Ordering;

use ::http::{Request, header};
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::process::{Process, config, process, process_of};
use super::world::World;

fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).expect("base64url"));
    let mut json = || serde_json::from_slice(&parts.next().expect("a part")).expect("JSON");
    (json(), json())
}

fn signed(header: &Value, claims: &Value, seed: [u8; 32]) -> String {
    use ed25519_dalek::Signer as _;
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = ed25519_dalek::SigningKey::from_bytes(&seed).sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

async fn kids(process: &Process) -> Vec<String> {
    let jwks = process.get("/.well-known/jwks.json", "").await.is(200).json();
    let keys = jwks["keys"].as_array().expect("keys");
    keys.iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

#[tokio::test]
async fn s20_to_s24_every_bad_token_gets_the_same_answer() {
    let process = process();
    let alice = process.register("alice").await;
    process.get("/v1/conversations", &alice.token).await.is(200);
    let seed = process.world.keys()[0].secret;
    let (header, claims) = parts(&alice.token);
    let with = |value: &Value, name: &str, field: Value| {
        let mut value = value.clone();
        value[name] = field;
        value
    };
    assert!(process.get("/v1/conversations", &signed(&header, &claims, seed)).await.status.is_success());
    let none = with(&header, "alg", json!("none"));
    let mut hs256 = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    hs256.typ = Some("at+jwt".to_owned());
    hs256.kid = header["kid"].as_str().map(str::to_owned);
    let public = jsonwebtoken::EncodingKey::from_secret(&process.world.keys()[0].public);
    let bad = [
        String::new(),
        "x".to_owned(),
        format!("{}x", alice.token),
        signed(&none, &claims, seed),
        jsonwebtoken::encode(&hs256, &claims, &public).expect("encodes"),
        signed(&with(&header, "jku", json!("http://127.0.0.1:9/")), &claims, [1; 32]),
        signed(&with(&header, "kid", json!("../../etc/passwd")), &claims, seed),
        signed(&with(&header, "typ", json!("JWT")), &claims, seed),
        signed(&header, &with(&claims, "iss", json!("other")), seed),
        signed(&header, &with(&claims, "aud", json!("other")), seed),
        signed(&header, &with(&claims, "exp", json!(1)), seed),
        signed(&header, &with(&claims, "nbf", json!(1_900_000_000)), seed),
        signed(&header, &claims, [1; 32]),
        "a".repeat(5_000),
    ];
    let expected = process.get("/v1/conversations", "").await;
    assert_eq!(expected.is(401).headers[header::WWW_AUTHENTICATE], "Bearer");
    assert_eq!(expected.code(), "unauthenticated");
    for token in bad {
        assert_eq!(process.get("/v1/conversations", &token).await.is(401).text, expected.text, "{token}");
    }
    process.world.pass_ms(roost_protocol::limits::ACCESS_TOKEN_MS);
    process.get("/v1/conversations", &alice.token).await.is(401);
}

#[tokio::test]
async fn s18_only_one_authorization_header_says_who_it_is() {
    let process = process();
    let alice = process.register("alice").await;
    let query = format!("/v1/conversations?access_token={0}&token={0}", alice.token);
    let anonymous = |builder: ::http::request::Builder| builder.body(Body::empty()).expect("a request");
    process.request(anonymous(Request::get(&query))).await.is(401);
    let cookie = Request::get("/v1/conversations").header(header::COOKIE, format!("token={}", alice.token));
    process.request(anonymous(cookie)).await.is(401);
    let bearer = format!("Bearer {}", alice.token);
    let twice = Request::get("/v1/conversations").header(header::AUTHORIZATION, &bearer);
    process.request(anonymous(twice.header(header::AUTHORIZATION, &bearer))).await.is(400);
    let basic = Request::get("/v1/conversations").header(header::AUTHORIZATION, format!("Basic {}", alice.token));
    process.request(anonymous(basic)).await.is(401);
    let lower = Request::get("/v1/conversations").header(header::AUTHORIZATION, format!("bearer {}", alice.token));
    process.request(anonymous(lower)).await.is(200);
}

#[tokio::test]
async fn s22_unknown_keys_make_the_store_be_asked_once_a_minute() {
    let process = process();
    let alice = process.register("alice").await;
    let (header, claims) = parts(&alice.token);
    let before = process.world.key_loads.load(Ordering::Relaxed);
    for number in 0..50 {
        let mut header = header.clone();
        header["kid"] = json!(format!("unknown-{number}"));
        process.get("/v1/conversations", &signed(&header, &claims, [9; 32])).await.is(401);
    }
    assert_eq!(process.world.key_loads.load(Ordering::Relaxed), before + 1);
    process.world.pass_ms(60_000);
    let mut header = header.clone();
    header["kid"] = json!("unknown");
    process.get("/v1/conversations", &signed(&header, &claims, [9; 32])).await.is(401);
    assert_eq!(process.world.key_loads.load(Ordering::Relaxed), before + 2);
}

#[tokio::test]
async fn s25_keys_rotate_with_an_overlap() {
    let process = process();
    process.api.prepare().await.expect("a key");
    let first = kids(&process).await;
    assert_eq!(first.len(), 1);
    let day_ms = 24 * 60 * 60 * 1000;
    process.world.pass_ms(day_ms);
    let alice = process.register("alice").await;
    // The new key is published, but the old one signs for a little longer.
    let both = kids(&process).await;
    assert_eq!(both.len(), 2);
    assert_eq!(parts(&alice.token).0["kid"], json!(first[0]));
    process.world.pass_ms(3 * 60 * 1000);
    let bob = process.register("bobby").await;
    assert_ne!(parts(&bob.token).0["kid"], json!(first[0]));
    // Tokens of both are good.
    process.get("/v1/conversations", &alice.token).await.is(200);
    process.get("/v1/conversations", &bob.token).await.is(200);
    process.world.pass_ms(day_ms);
    process.register("carol").await;
    process.world.pass_ms(day_ms);
    process.register("david").await;
    assert!(!kids(&process).await.contains(&first[0]), "the first key is gone");
}

#[tokio::test]
async fn s25_two_processes_share_their_keys() {
    let world = World::new();
    let (one, other) = (process_of(&world, config()), process_of(&world, config()));
    let (made, too) = tokio::join!(one.api.prepare(), other.api.prepare());
    made.and(too).expect("keys");
    assert_eq!(world.keys().len(), 1);
    let alice = one.register("alice").await;
    other.get("/v1/conversations", &alice.token).await.is(200);
    // A key that only one has loaded so far.
    world.pass_ms(24 * 60 * 60 * 1000 + 10 * 60 * 1000);
    one.register("bobby").await;
    world.pass_ms(3 * 60 * 1000);
    let carol = one.register("carol").await;
    other.get("/v1/conversations", &carol.token).await.is(200);
    assert_eq!(world.keys().len(), 2);
}

#[tokio::test]
async fn an_old_key_serves_on_where_the_store_cannot_take_a_new_one() {
    let process = process();
    let alice = process.register("alice").await;
    process.world.pass_ms(25 * 60 * 60 * 1000);
    process.world.store_away.store(true, Ordering::Relaxed);
    process.api.prepare().await.expect("the old key serves");
    process.get("/v1/conversations", &alice.token).await.is(401);
    process.world.pass_ms(48 * 60 * 60 * 1000);
    process.api.prepare().await.expect_err("no key is valid any more");
    process.world.store_away.store(false, Ordering::Relaxed);
    process.api.prepare().await.expect("a new key");
}
