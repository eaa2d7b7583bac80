//! What a peer can do wrong in its frames, and the close code that says so.

/// A violation by the peer. The connection is to be closed with [`FrameError::close_code`]; nothing after it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FrameError {
    /// A client must mask every frame.
    #[error("frame is not masked")]
    Unmasked,
    /// RSV1-3 are set, but no extension was agreed.
    #[error("reserved bits are set without an extension")]
    ReservedBits,
    /// Opcode 3-7 or 11-15.
    #[error("reserved opcode")]
    ReservedOpcode,
    /// A close, ping or pong without FIN.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A close, ping or pong of more than 125 bytes.
    #[error("control frame is longer than 125 bytes")]
    ControlTooLong,
    /// A length that a shorter form could have held.
    #[error("frame length is not in its shortest form")]
    NonMinimalLength,
    /// A 64-bit length with its top bit set.
    #[error("frame length has its top bit set")]
    LengthTopBit,
    /// A continuation while no message is open.
    #[error("continuation frame without a message to continue")]
    UnexpectedContinuation,
    /// A text or binary frame while a fragmented message is open.
    #[error("new message inside a fragmented message")]
    InterruptedMessage,
    /// A close frame of one byte.
    #[error("close frame holds half a code")]
    ClosePayload,
    /// A close code that must not appear on the wire.
    #[error("close code is not valid")]
    CloseCode,
    /// Text, or a close reason, that is not UTF-8.
    #[error("text is not valid UTF-8")]
    InvalidUtf8,
    /// More than [`Limits::message_bytes_max`](super::Limits::message_bytes_max).
    #[error("message is too big")]
    MessageTooBig,
    /// More than [`Limits::message_fragments_max`](super::Limits::message_fragments_max).
    #[error("message has too many fragments")]
    TooManyFragments,
}

impl FrameError {
    /// The WebSocket close code to send: 1002, 1007, 1008 or 1009.
    pub fn close_code(self) -> u16 {
        match self {
            Self::InvalidUtf8 => 1007,
            Self::TooManyFragments => 1008,
            Self::MessageTooBig => 1009,
            Self::Unmasked
            | Self::ReservedBits
            | Self::ReservedOpcode
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::NonMinimalLength
            | Self::LengthTopBit
            | Self::UnexpectedContinuation
            | Self::InterruptedMessage
            | Self::ClosePayload
            | Self::CloseCode => 1002,
        }
    }
}
