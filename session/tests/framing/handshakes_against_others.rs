//! Handshakes against the clients of tungstenite and fastwebsockets (hyper), over real streams.

use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use roost_session::framing::handshake::{Handshake, Step, Subprotocol, Upgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tungstenite::HandshakeError;
use tungstenite::client::{ClientRequestBuilder, IntoClientRequest};

use crate::common::*;

/// Answers one handshake, reading at most `step` bytes at a time.
fn serve(mut stream: UnixStream, step: usize) -> JoinHandle<Step> {
    std::thread::spawn(move || {
        let (mut handshake, mut buffer) = (Handshake::new(), vec![0; step]);
        loop {
            let count = stream.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the client gave up");
            let decision = handshake.receive(&buffer[..count], &origins());
            match &decision {
                Step::Incomplete => continue,
                Step::Upgrade(upgrade) => stream.write_all(&upgrade.response).unwrap(),
                Step::Refused(error) => stream.write_all(&error.response()).unwrap(),
                Step::Http(_) => {}
            }
            return decision;
        }
    })
}

fn request(path: &str) -> ClientRequestBuilder {
    ClientRequestBuilder::new(format!("ws://chat.example{path}").parse().unwrap())
}

#[test]
fn tungstenite_is_upgraded() {
    for (offer, expected) in [("roost.v1", Subprotocol::Binary), ("roost.v1.json", Subprotocol::Json)] {
        for step in [1, 7, 4096] {
            let (near, far) = UnixStream::pair().unwrap();
            let server = serve(far, step);
            let request = request("/v1/connect")
                .with_sub_protocol(offer)
                .with_header("Authorization", "Bearer abc")
                .with_header("Origin", "http://127.0.0.1:8080");
            // It verifies the accept key and the chosen subprotocol itself.
            let (_, response) = tungstenite::client(request, near).unwrap();
            assert_eq!(response.headers()["sec-websocket-protocol"], offer);
            assert!(!response.headers().contains_key("sec-websocket-extensions"));
            let Step::Upgrade(upgrade) = server.join().unwrap() else { panic!("it was upgraded") };
            let Upgrade { subprotocol, bearer, rest, .. } = *upgrade;
            assert_eq!((subprotocol, bearer.unwrap().token()), (expected, "abc"));
            assert!(rest.is_empty());
        }
    }
}

#[test]
fn tungstenite_understands_refusals() {
    let json = |builder: ClientRequestBuilder| builder.with_sub_protocol("roost.v1.json");
    for (request, status) in [
        (request("/v1/connect"), 400),
        (json(request("/v1/connect?token=secret")), 400),
        (json(request("/v1/connect")).with_header("Origin", "https://evil.example"), 403),
        (json(request("/v1/connect")).with_header("Cookie", "a=b"), 401),
    ] {
        let (near, far) = UnixStream::pair().unwrap();
        let server = serve(far, 4096);
        let Err(HandshakeError::Failure(tungstenite::Error::Http(response))) =
            tungstenite::client(request.into_client_request().unwrap(), near)
        else {
            panic!("it was refused with {status}");
        };
        assert_eq!(response.status(), status);
        assert!(matches!(server.join().unwrap(), Step::Refused(error) if error.status == status));
    }
}

struct Spawn;

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for Spawn
where
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

#[tokio::test]
async fn fastwebsockets_is_upgraded_and_its_first_message_read() {
    let (near, mut far) = duplex(64 * 1024);
    let server = tokio::spawn(async move {
        let (mut handshake, mut buffer) = (Handshake::new(), [0; 100]);
        let upgrade = loop {
            let count = far.read(&mut buffer).await.unwrap();
            match handshake.receive(&buffer[..count], &origins()) {
                Step::Incomplete => {}
                Step::Upgrade(upgrade) => break upgrade,
                other => panic!("{other:?}"),
            }
        };
        far.write_all(&upgrade.response).await.unwrap();
        let mut stream = upgrade.rest;
        far.read_to_end(&mut stream).await.unwrap();
        decode_whole(&stream)
    });
    let request = Request::builder()
        .uri("/v1/connect")
        .header("Host", "chat.example")
        .header("Upgrade", "websocket")
        .header("Connection", "upgrade")
        .header("Sec-WebSocket-Key", fastwebsockets::handshake::generate_key())
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Protocol", "roost.v1.json, roost.v1")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let (mut client, response) = fastwebsockets::handshake::client(&Spawn, request, near).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "roost.v1.json");
    client.write_frame(fastwebsockets::Frame::text(b"{}".to_vec().into())).await.unwrap();
    drop(client);
    assert_eq!(server.await.unwrap(), Decoded::all([Said::Text("{}".into())]));
}
