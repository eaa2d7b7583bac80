//! What travels between Roost's parts and its clients: frames, log records, ids, limits, error and close codes.
//!
//! Pure data and encodings: no I/O, no clock, no randomness beyond making new ids. The generated protobuf types stay
//! behind this crate; everyone else sees the domain types of [`frames`] and [`records`].

// The fuzz bodies are compiled here and in the folder `fuzz/`, under the same name.
#[cfg(test)]
extern crate self as roost_protocol;

pub mod codes;
pub mod digest;
pub mod frames;
pub mod ids;
pub mod limits;
pub mod partition;
pub mod records;
mod wire;

pub use codes::{CloseCode, ErrorCode};
pub use frames::{ClientFrame, Form, ServerFrame};
pub use ids::{ClientMsgId, ConversationId, DeviceId, Epoch, Incarnation, SessionId, UserId};
pub use wire::json_depth_is_at_most;

/// A message's number within its conversation: 1, 2, 3 … without holes. 0 means "before the first".
pub type Seq = u64;

/// Unix time in milliseconds.
pub type TimeMs = u64;
