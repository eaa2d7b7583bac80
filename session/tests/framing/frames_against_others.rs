//! Frames against tungstenite and fastwebsockets: what they encode as clients we decode, what we encode they decode.

use std::io::{self, Read, Write};

use bytes::{BufMut, Bytes};
use fastwebsockets::{FragmentCollector, Frame as FastFrame, OpCode as FastOpCode, Payload, Role as FastRole};
use roost_session::framing::websocket::{
    CloseReply, CloseState, Limits, Opcode, close_frame, encode_frame, ping_frame, pong_frame,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, WebSocket};

use crate::common::*;

const SIZES: [usize; 13] = [0, 1, 7, 8, 9, 125, 126, 127, 1000, 65_535, 65_536, 70_000, 72 * 1024];

/// A socket whose other end is two vectors.
#[derive(Default)]
struct Pipe {
    incoming: io::Cursor<Vec<u8>>,
    outgoing: Vec<u8>,
}

impl Pipe {
    fn holding(incoming: Vec<u8>) -> Self {
        Self { incoming: io::Cursor::new(incoming), outgoing: Vec::new() }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match Read::read(&mut self.incoming, buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut self.outgoing, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn text_of(size: usize) -> String {
    let text: String = "aé€😀".chars().cycle().take(size).collect();
    text[..text.floor_char_boundary(size)].to_owned()
}

/// Our decoder reads the stream as expected, however it is cut.
fn reads_as(stream: &[u8], expected: &[Said]) {
    let mut random = Random(stream.len() as u64);
    assert_eq!(decode_whole(stream), Decoded::all(expected.to_vec()));
    for _ in 0..8 {
        assert_eq!(decode(cut(stream, &mut random), &Limits::default()), Decoded::all(expected.to_vec()));
    }
}

#[test]
fn what_tungstenite_sends_we_read() {
    let mut client = WebSocket::from_raw_socket(Pipe::default(), Role::Client, None);
    let mut expected = Vec::new();
    let fragment = |data: &[u8], kind, last| Message::Frame(Frame::message(data.to_vec(), OpCode::Data(kind), last));
    for size in SIZES {
        let (text, binary) = (text_of(size), Random(size as u64).bytes(size));
        client.write(Message::text(text.clone())).unwrap();
        client.write(Message::binary(binary.clone())).unwrap();
        client.write(Message::Ping(binary[..size.min(125)].to_vec().into())).unwrap();
        client.write(Message::Pong(Bytes::new())).unwrap();
        // In three fragments, cut inside a character where there is one.
        let (one, two) = (size / 3, size / 2);
        client.write(fragment(&text.as_bytes()[..one.min(text.len())], Data::Text, false)).unwrap();
        client.write(Message::Ping(Bytes::from_static(b"between"))).unwrap();
        client
            .write(fragment(&text.as_bytes()[one.min(text.len())..two.min(text.len())], Data::Continue, false))
            .unwrap();
        client.write(fragment(&text.as_bytes()[two.min(text.len())..], Data::Continue, true)).unwrap();
        expected.extend([
            Said::Text(text.clone()),
            Said::Binary(binary.clone()),
            Said::Ping(binary[..size.min(125)].to_vec()),
            Said::Pong,
            Said::Ping(b"between".to_vec()),
            Said::Text(text),
        ]);
    }
    client.close(Some(CloseFrame { code: CloseCode::Library(4123), reason: "süß".into() })).unwrap();
    expected.push(Said::Close(Some(4123), "süß".into()));
    reads_as(&client.get_ref().outgoing, &expected);
}

#[test]
fn what_we_send_tungstenite_reads() {
    let (mut stream, mut expected) = (Vec::new(), Vec::new());
    for size in SIZES {
        let (text, binary) = (text_of(size), Random(size as u64).bytes(size));
        stream.extend(encode_frame(Opcode::Text, text.len(), |frame| frame.put_slice(text.as_bytes())));
        stream.extend(encode_frame(Opcode::Binary, 0, |frame| frame.put_slice(&binary)));
        stream.extend(ping_frame(&binary[..size.min(125)]));
        stream.extend(pong_frame(b"pong"));
        expected.extend([
            Message::text(text),
            Message::binary(binary.clone()),
            Message::Ping(binary[..size.min(125)].to_vec().into()),
            Message::Pong(Bytes::from_static(b"pong")),
        ]);
    }
    stream.extend(close_frame(Some(4001), "später"));
    expected.push(Message::Close(Some(CloseFrame { code: CloseCode::Library(4001), reason: "später".into() })));
    let mut client = WebSocket::from_raw_socket(Pipe::holding(stream), Role::Client, None);
    for message in expected {
        assert_eq!(client.read().unwrap(), message);
    }
}

#[test]
fn a_close_from_tungstenite_is_answered_to_its_satisfaction() {
    for frame in [None, Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })] {
        let mut client = WebSocket::from_raw_socket(Pipe::default(), Role::Client, None);
        client.close(frame).unwrap();
        let said = decode_whole(&client.get_ref().outgoing).said;
        let [Said::Close(code, _)] = &said[..] else { panic!("{said:?}") };
        let mut state = CloseState::Open;
        let Some(CloseReply { code }) = state.receive(*code) else { panic!("a reply is owed") };
        client.get_mut().incoming = io::Cursor::new(close_frame(code, "").to_vec());
        assert!(matches!(client.read(), Ok(Message::Close(_))));
        client.get_mut().incoming = io::Cursor::new(Vec::new());
        assert!(state.is_finished());
    }
}

#[test]
fn our_close_is_answered_by_tungstenite() {
    let mut state = CloseState::Open;
    assert!(state.send());
    let pipe = Pipe::holding(close_frame(Some(4002), "resume").to_vec());
    let mut client = WebSocket::from_raw_socket(pipe, Role::Client, None);
    assert!(matches!(client.read(), Ok(Message::Close(Some(_)))));
    client.flush().unwrap_or_default();
    let said = decode_whole(&client.get_ref().outgoing).said;
    let [Said::Close(code, _)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(*code, Some(4002));
    assert_eq!(state.receive(*code), None);
    assert!(state.is_finished());
}

async fn fast_client_sends(frames: Vec<FastFrame<'static>>) -> Vec<u8> {
    let (near, mut far) = duplex(4 << 20);
    let mut client = fastwebsockets::WebSocket::after_handshake(near, FastRole::Client);
    for frame in frames {
        client.write_frame(frame).await.unwrap();
    }
    drop(client);
    let mut stream = Vec::new();
    far.read_to_end(&mut stream).await.unwrap();
    stream
}

#[tokio::test]
async fn what_fastwebsockets_sends_we_read() {
    let (mut frames, mut expected) = (Vec::new(), Vec::new());
    let frame = |fin, opcode, payload: &[u8]| FastFrame::new(fin, opcode, None, Payload::Owned(payload.to_vec()));
    for size in SIZES {
        let (text, binary) = (text_of(size), Random(size as u64).bytes(size));
        let middle = text.len() / 2;
        frames.extend([
            frame(true, FastOpCode::Text, text.as_bytes()),
            frame(true, FastOpCode::Binary, &binary),
            frame(false, FastOpCode::Text, &text.as_bytes()[..middle]),
            frame(true, FastOpCode::Ping, &binary[..size.min(125)]),
            frame(true, FastOpCode::Continuation, &text.as_bytes()[middle..]),
            frame(true, FastOpCode::Pong, b""),
        ]);
        expected.extend([
            Said::Text(text.clone()),
            Said::Binary(binary.clone()),
            Said::Ping(binary[..size.min(125)].to_vec()),
            Said::Text(text),
            Said::Pong,
        ]);
    }
    frames.push(FastFrame::close(1001, b"going"));
    expected.push(Said::Close(Some(1001), "going".into()));
    reads_as(&fast_client_sends(frames).await, &expected);
}

#[tokio::test]
async fn what_we_send_fastwebsockets_reads() {
    let (near, mut far): (DuplexStream, DuplexStream) = duplex(4 << 20);
    let mut client = fastwebsockets::WebSocket::after_handshake(near, FastRole::Client);
    client.set_auto_pong(false);
    let mut client = FragmentCollector::new(client);
    for size in SIZES {
        let (text, binary) = (text_of(size), Random(size as u64).bytes(size));
        let sent = [
            (FastOpCode::Text, encode_frame(Opcode::Text, size, |f| f.put_slice(text.as_bytes())), text.as_bytes()),
            (FastOpCode::Binary, encode_frame(Opcode::Binary, size, |f| f.put_slice(&binary)), &binary[..]),
            (FastOpCode::Ping, ping_frame(&binary[..size.min(125)]), &binary[..size.min(125)]),
            (FastOpCode::Pong, pong_frame(b"pong"), b"pong"),
        ];
        for (opcode, frame, payload) in sent {
            far.write_all(&frame).await.unwrap();
            let read = client.read_frame().await.unwrap();
            assert!(read.fin);
            assert_eq!((read.opcode, &read.payload[..]), (opcode, payload));
        }
    }
    far.write_all(&close_frame(Some(1008), "limit")).await.unwrap();
    let read = client.read_frame().await.unwrap();
    assert_eq!((read.opcode, &read.payload[..]), (FastOpCode::Close, &close_payload(1008, b"limit")[..]));
}
