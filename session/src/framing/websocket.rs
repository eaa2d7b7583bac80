//! The server's side of RFC 6455 framing: a decoder that copies only what arrives in pieces, and the encoder.
//!
//! The driver owns one receive buffer for many sessions. It hands each session's [`Decoder`] the bytes just read and takes
//! events until there are none; then the buffer is free again:
//!
//! ```
//! # use roost_session::framing::websocket::{Decoder, Event, Limits};
//! # let mut received = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
//! let (mut decoder, limits) = (Decoder::new(), Limits::default());
//! let mut rest: &mut [u8] = &mut received;
//! while let Some(event) = decoder.next(&mut rest, &limits)? {
//!     let Event::Message { payload, .. } = event else { continue };
//!     assert_eq!(&payload[..], b"hi");
//! }
//! # Ok::<(), roost_session::framing::websocket::FrameError>(())
//! ```

mod close;
mod decoder;
mod encode;
mod error;
mod header;
mod mask;
mod utf8;

pub use close::{CloseReply, CloseState, close_code_is_valid};
pub use decoder::{Decoder, Event, MessageKind};
pub use encode::{
    CLOSE_REASON_BYTES_MAX, CONTROL_BYTES_MAX, FRAME_HEADER_BYTES_MAX, Opcode, close_frame, encode_frame, frame_header,
    frame_payload, ping_frame, pong_frame,
};
pub use error::FrameError;

/// What one session's decoder may buffer. Passed to every call instead of stored, since all sessions share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest message in bytes, all its fragments together. Judged from the headers, before anything is allocated.
    pub message_bytes_max: usize,
    /// The most frames one message may be cut into; without it empty continuations would cost CPU for ever.
    pub message_fragments_max: u32,
}

impl Default for Limits {
    /// 72 KiB (a 64 KiB body with its envelope) in at most 1024 fragments.
    fn default() -> Self {
        Self { message_bytes_max: 72 * 1024, message_fragments_max: 1024 }
    }
}
