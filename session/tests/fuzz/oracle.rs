//! An independent reader as the oracle: whatever we accept, it must read alike. (Not the other way round: it is laxer.)

use std::io::{self, Read, Write};

use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Error, Message};

use crate::common::{Decoded, Said};

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
