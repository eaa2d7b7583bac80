//! What holds for every request: problems, headers, limits, the document; and hostile bytes on real connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Method, Request};
use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::process::{Process, config, process, process_of, process_with};
use super::world::World;
use crate::{Api, Probes, Server};

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let process = process();
    let alice = process.register("alice").await;
    let nowhere = process.get("/v1/nowhere", &alice.token).await;
    assert_eq!(nowhere.is(404).code(), "not_found");
    assert_eq!(process.get("/v1/tokens", "").await.is(405).code(), "malformed");
    assert_eq!(process.delete("/", "").await.is(405).code(), "malformed");
    let plain = Request::post("/v1/sessions").header("content-type", "text/plain").body(Body::from("{}"));
    assert_eq!(process.request(plain.expect("a request")).await.is(415).code(), "malformed");
    let none = Request::post("/v1/sessions").body(Body::from("{}")).expect("a request");
    assert_eq!(process.request(none).await.is(415).code(), "malformed");
    let large = process.post_raw("/v1/sessions", "", vec![b' '; 16 * 1024 + 1]).await;
    assert_eq!(large.is(413).code(), "body_too_large");
    for body in ["", "{", "[]", "null", "\"x\"", "{\"name\":1e999}", "\u{feff}{}", "{}x", "{\"a\":\"\\ud800\"}"] {
        let answer = process.post_raw("/v1/sessions", "", body).await;
        assert!(["malformed", "invalid_field"].contains(&answer.is(400).code().as_str()), "{body}");
    }
    let latin = process.post_raw("/v1/sessions", "", Bytes::from_static(b"{\"name\":\"\xe9\"}")).await;
    assert_eq!(latin.is(400).code(), "malformed");
    let twice = r#"{"name":"alice","password":"correct horse","name":"bobby"}"#;
    assert_eq!(process.post_raw("/v1/sessions", "", twice).await.is(400).code(), "invalid_field");
}

#[tokio::test]
async fn s37_json_that_nests_a_thousand_deep() {
    let process = process();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{{\"x\":{}1{}}}", open.repeat(1_000), close.repeat(1_000));
        assert_eq!(process.post_raw("/v1/sessions", "", deep).await.is(400).code(), "malformed");
    }
    let unclosed = "[".repeat(16_000);
    process.post_raw("/v1/sessions", "", unclosed).await.is(400);
}

#[tokio::test]
async fn every_answer_has_its_headers() {
    let process = process();
    for path in ["/", "/healthz", "/v1/openapi.json", "/v1/nowhere", "/v1/conversations"] {
        let answer = process.get(path, "").await;
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        assert!(answer.headers.contains_key("content-security-policy"), "{path}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{path}");
        assert!(!answer.headers.contains_key("set-cookie"), "{path}");
    }
    let keys = process.get("/.well-known/jwks.json", "").await;
    assert_eq!(keys.is(200).headers["cache-control"], "public, max-age=60");
}

#[tokio::test]
async fn health_readiness_and_metrics_say_what_the_program_says() {
    let bare = process();
    bare.get("/healthz", "").await.is(200);
    assert_eq!(bare.get("/readyz", "").await.is(200).json(), json!({"ready": true, "failed": []}));
    assert_eq!(bare.get("/metrics", "").await.is(404).code(), "not_found");
    let probes = Probes {
        readiness: vec![
            ("store", Arc::new(|| async { Ok(()) }.boxed())),
            ("log", Arc::new(|| async { Err("secret host name".to_owned()) }.boxed())),
        ],
        metrics: Some(Arc::new(|| "roost_up 1\n".to_owned())),
    };
    let process = process_with(&World::new(), config(), probes);
    let answer = process.get("/readyz", "").await;
    assert_eq!(answer.is(503).json(), json!({"ready": false, "failed": ["log"]}));
    process.get("/healthz", "").await.is(200);
    assert_eq!(process.get("/metrics", "").await.is(200).text, "roost_up 1\n");
    assert!(process.get("/", "").await.is(200).text.contains("Roost"));
}

#[tokio::test]
async fn the_document_and_the_routes_are_the_same() {
    let process = process();
    let document = process.get("/v1/openapi.json", "").await.is(200).json();
    assert_eq!(
        document.to_string(),
        serde_json::from_str::<serde_json::Value>(&Api::openapi_json()).unwrap().to_string()
    );
    let paths = document["paths"].as_object().expect("paths");
    let source = include_str!("../routes.rs");
    let routed: Vec<&str> =
        source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next()).collect();
    let mut documented: Vec<&str> = paths.keys().map(String::as_str).collect();
    documented.sort_unstable();
    let mut sorted = routed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, documented);
    for (path, operations) in paths {
        let path = path.replace("{user_id}", "x").replace("{conversation_id}", "x");
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let request = Request::builder().method(method.clone()).uri(&path).body(Body::empty()).expect("a request");
            let answer = process.request(request).await;
            let described = operations.get(method.as_str().to_lowercase());
            assert_eq!(described.is_some(), answer.status.as_u16() != 405, "{method} {path}");
            if let Some(described) = described {
                let status = answer.status.as_u16().to_string();
                assert!(described["responses"].get(&status).is_some(), "{method} {path} answers {status}");
            }
        }
    }
}

#[tokio::test]
async fn the_document_refers_to_nothing_that_it_does_not_hold() {
    let document: serde_json::Value = serde_json::from_str(&Api::openapi_json()).expect("JSON");
    let mut references = Vec::new();
    let mut values = vec![&document];
    while let Some(value) = values.pop() {
        match value {
            serde_json::Value::Array(items) => values.extend(items),
            serde_json::Value::Object(fields) => {
                references.extend(fields.get("$ref").and_then(|reference| reference.as_str()));
                values.extend(fields.values());
            }
            _ => {}
        }
    }
    assert!(references.len() > 50, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("a reference into the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// Serves on a free port; the task ends with the server.
async fn listen(process: &Process) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = process.api.server();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    (server, address)
}

/// Sends bytes and reads until the server closes.
async fn talk(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // The server may refuse and close before everything is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("closed in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn s13_heads_that_are_too_large_or_ambiguous() {
    let (_server, address) = listen(&process()).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1_000));
    let post = "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    for (bytes, status) in [
        (huge, "431"),
        (many, "431"),
        ("GET / HTTP/1.1\nHost: x\n\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n".to_owned(), "400"),
        (format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"), "400"),
        (format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "400"),
        (format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n"), "400"),
        (format!("{post}Content-Length: +2\r\n\r\n{{}}"), "400"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03".to_owned(), "400"),
    ] {
        let answer = talk(address, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{:?} -> {answer:?}", &bytes[..bytes.len().min(80)]);
    }
}

#[tokio::test]
async fn s13_later_heads_on_a_connection_are_bounded_too() {
    let (_server, address) = listen(&process()).await;
    let good = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    for (second, status) in [
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(40_000)), "HTTP/1.1 431"),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(1_000)), "HTTP/1.1 431"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n".to_owned(), "HTTP/1.1 400"),
    ] {
        let answer = talk(address, format!("{good}{second}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(status), "{answer}");
    }
}

#[tokio::test]
async fn s14_this_role_holds_no_sessions() {
    let (_server, address) = listen(&process()).await;
    let upgrade = |version: &str, key: &str| {
        format!(
            "GET /v1/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: roost.v1\r\n\r\n"
        )
    };
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    for (head, status) in [(upgrade("13", key), "404"), (upgrade("12", key), "426"), (upgrade("13", "short"), "400")] {
        let answer = talk(address, head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test]
async fn s12_a_head_that_does_not_arrive_closes_in_five_seconds() {
    let (_server, address) = listen(&process()).await;
    let started = Instant::now();
    let silent = talk(address, b"");
    let slow = talk(address, b"GET / HTTP/1.1\r\nHos");
    let idle = talk(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    let slow_second = talk(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /");
    let (silent, slow, idle, slow_second) = tokio::join!(silent, slow, idle, slow_second);
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    assert!(silent.starts_with("HTTP/1.1 408") && slow.starts_with("HTTP/1.1 408"), "{silent} {slow}");
    assert!(idle.starts_with("HTTP/1.1 200") && slow_second.starts_with("HTTP/1.1 200"), "{idle} {slow_second}");
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more() {
    let mut few = config();
    few.connections_per_address_max = 2;
    let (_server, address) = listen(&process_of(&World::new(), few)).await;
    let (_one, _other) = (TcpStream::connect(address).await, TcpStream::connect(address).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = talk(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    drop((_one, _other));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let served = talk(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(served.starts_with("HTTP/1.1 200"), "{served}");
}

#[tokio::test]
async fn a_connection_is_handed_over_with_what_was_read_of_it() {
    let process = process();
    let server = process.api.server();
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for cut in 0..=request.len() {
        let (mut client, stream) = tokio::io::duplex(1 << 16);
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let prefix = Bytes::copy_from_slice(&request[..cut]);
        let serving = server.serve_connection(stream, prefix, peer);
        let talking = async {
            client.write_all(&request[cut..]).await.expect("written");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("read");
            answer
        };
        let ((), answer) = tokio::join!(serving, talking);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "cut at {cut}: {answer}");
    }
}

#[tokio::test]
async fn shutting_down_ends_idle_connections_and_finishes_requests() {
    let process = process();
    let (server, address) = listen(&process).await;
    let mut idle = TcpStream::connect(address).await.expect("connected");
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
    let mut head = [0u8; 12];
    idle.read_exact(&mut head).await.expect("answered");
    let body = r#"{"name":"alice","password":"correct horse"}"#;
    let slow = format!(
        "POST /v1/accounts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut busy = TcpStream::connect(address).await.expect("connected");
    busy.write_all(slow.as_bytes()).await.expect("written");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let finish = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        busy.write_all(body.as_bytes()).await.expect("written");
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.expect("read");
        answer
    };
    let started = Instant::now();
    let ((), answer) = tokio::join!(server.shut_down(Duration::from_secs(8)), finish);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.expect("closed");
    TcpStream::connect(address).await.expect_err("nobody listens");
}
