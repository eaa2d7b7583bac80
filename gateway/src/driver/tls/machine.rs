//! One TLS connection without I/O: rustls's unbuffered server connection, and the little that has to be kept between
//! two calls.

use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};

/// Plaintext of one record at most: TLS says so.
pub(super) const RECORD_BYTES_MAX: usize = 16 * 1024;
/// Plaintext that is encrypted for one send at most: it bounds what a peer that does not read costs us beside its queue.
pub(super) const SEND_BYTES_MAX: usize = 2 * RECORD_BYTES_MAX;
/// The largest unfinished record or handshake message that is kept; more ends the connection.
pub(super) const CARRY_BYTES_MAX: usize = 24 * 1024;
/// What a record has beside its plaintext: header, type, nonce and tag, in either version.
const OVERHEAD_BYTES_MAX: usize = 64;
const HEADER_BYTES: usize = 5;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("an unfinished record or handshake message is longer than {CARRY_BYTES_MAX} bytes")]
    TooLong,
    #[error("nothing can be sent: the handshake is not complete, or the connection is over")]
    NotWritable,
    #[error("the keys have encrypted as much as they may")]
    KeysExhausted,
}

/// See the module.
pub(super) struct Machine {
    tls: UnbufferedServerConnection,
    /// The beginning of what has not come whole; empty, and without an allocation, nearly always.
    carry: Vec<u8>,
    peer_closed: bool,
    failed: bool,
}

impl Machine {
    pub(super) fn new(config: &Arc<ServerConfig>) -> Result<Self, TlsError> {
        let tls = UnbufferedServerConnection::new(Arc::clone(config))?;
        Ok(Self { tls, carry: Vec::new(), peer_closed: false, failed: false })
    }

    /// Both sides may send application data.
    pub(super) fn is_established(&self) -> bool {
        !self.failed && !self.tls.is_handshaking()
    }

    /// The peer has said that nothing more comes.
    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Takes what came. Plaintext is added to `plain`, and what has to be answered to `out`: on an error too, since an
    /// alert says why.
    pub(super) fn receive(
        &mut self,
        mut incoming: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        while !incoming.is_empty() && !self.peer_closed {
            if self.failed {
                return Err(TlsError::NotWritable);
            }
            if self.carry.is_empty() {
                let used = self.process(incoming, plain, out)?;
                self.keep(&incoming[used..])?;
                break;
            }
            let (missing, rest) = incoming.split_at_mut(self.missing().min(incoming.len()));
            incoming = rest;
            self.keep(missing)?;
            let mut carry = std::mem::take(&mut self.carry);
            let used = self.process(&mut carry, plain, out)?;
            carry.drain(..used);
            if !carry.is_empty() {
                self.carry = carry;
            }
        }
        if self.peer_closed {
            self.carry = Vec::new();
        }
        Ok(())
    }

    /// Encrypts frames into few records, without the first `offset` bytes. Returns how many bytes of plaintext it took:
    /// at most [`SEND_BYTES_MAX`]. `gather` is room for small frames to come together.
    pub(super) fn encrypt(
        &mut self,
        frames: &[Bytes],
        offset: usize,
        gather: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<usize, TlsError> {
        let bytes = frames.iter().map(Bytes::len).sum::<usize>().saturating_sub(offset).min(SEND_BYTES_MAX);
        out.reserve_exact(bytes + OVERHEAD_BYTES_MAX * (bytes / RECORD_BYTES_MAX + 1));
        gather.clear();
        let mut left = bytes;
        for (index, frame) in frames.iter().enumerate() {
            let mut rest = if index == 0 { &frame[offset..] } else { &frame[..] };
            while !rest.is_empty() && left > 0 {
                let part = &rest[..rest.len().min(RECORD_BYTES_MAX - gather.len()).min(left)];
                if gather.is_empty() && part.len() == RECORD_BYTES_MAX {
                    self.seal(part, out)?;
                } else {
                    gather.extend_from_slice(part);
                    if gather.len() == RECORD_BYTES_MAX {
                        self.seal(gather, out)?;
                        gather.clear();
                    }
                }
                left -= part.len();
                rest = &rest[part.len()..];
            }
        }
        if !gather.is_empty() {
            self.seal(gather, out)?;
        }
        Ok(bytes)
    }

    /// Says that nothing more will be sent, where it can be said and has not been.
    pub(super) fn close_notify(&mut self, out: &mut Vec<u8>) {
        // A connection that cannot be written to ends without it.
        let _ = self.write(out, OVERHEAD_BYTES_MAX, |traffic, room| traffic.queue_close_notify(room));
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.write(out, plain.len() + OVERHEAD_BYTES_MAX, |traffic, room| traffic.encrypt(plain, room))
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        room_bytes: usize,
        mut act: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        if self.failed {
            return Err(TlsError::NotWritable);
        }
        // Whatever handshake data waits goes first.
        loop {
            // The carry must be shown: rustls may hold places in it.
            let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut self.carry);
            match state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let start = out.len();
                    let mut room_bytes = room_bytes;
                    loop {
                        out.resize(start + room_bytes, 0);
                        match act(&mut traffic, &mut out[start..]) {
                            Ok(written) => {
                                out.truncate(start + written);
                                return Ok(());
                            }
                            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                                room_bytes = required_size;
                            }
                            Err(EncryptError::EncryptExhausted) => {
                                out.truncate(start);
                                return Err(TlsError::KeysExhausted);
                            }
                        }
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, out),
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                _ => return Err(TlsError::NotWritable),
            }
        }
    }

    /// Processes the records that are whole. Returns how many bytes are done with.
    fn process(&mut self, incoming: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, TlsError> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut incoming[used..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        plain.extend_from_slice(record.payload);
                        discard += record.discard;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    return Ok(used + discard);
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => return Ok(used + discard),
                // Early data is not offered, and the rest ends the connection.
                Ok(_) => {
                    self.failed = true;
                    return Err(TlsError::NotWritable);
                }
                Err(error) => {
                    self.failed = true;
                    self.alert(out);
                    return Err(error.into());
                }
            }
            used += discard;
        }
    }

    /// After an error: what rustls wants the peer to hear.
    fn alert(&mut self, out: &mut Vec<u8>) {
        // Not asked for once more than it wants: it would look for places in a buffer that is not there.
        while self.tls.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(mut data)) = self.tls.process_tls_records(&mut []).state else {
                return;
            };
            encode(&mut data, out);
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.carry.len() + bytes.len() > CARRY_BYTES_MAX {
            self.failed = true;
            return Err(TlsError::TooLong);
        }
        self.carry.reserve_exact(bytes.len());
        self.carry.extend_from_slice(bytes);
        Ok(())
    }

    /// How much the carry wants to become a whole record. It is an estimate, where it holds a part of a handshake
    /// message: then more is kept than need be, and no harm is done.
    fn missing(&self) -> usize {
        let whole = match self.carry[..] {
            [_, _, _, high, low, ..] => HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])),
            _ => HEADER_BYTES,
        };
        match whole.saturating_sub(self.carry.len()) {
            0 => RECORD_BYTES_MAX.min(CARRY_BYTES_MAX.saturating_sub(self.carry.len()).max(1)),
            missing => missing,
        }
    }
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    let start = out.len();
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) {
        out.resize(start + required_size, 0);
        let written = data.encode(&mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
}
