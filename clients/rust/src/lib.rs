//! The Rust SDK of Roost: an outbox that loses nothing, reconnecting, and gap repair.
//!
//! [`Rest`] makes accounts and conversations; [`Client`] keeps a session: it connects again whenever it has to, repeats
//! sends until there is a verdict, and gives each conversation's messages in order and without holes.
//!
//! The protocol is in `engine` with `outbox`, `repair` and `backoff`, all without I/O; `driver` moves bytes and time.

mod auth;
mod backoff;
mod client;
mod driver;
mod engine;
mod event;
mod outbox;
mod repair;
mod rest;
mod trust;

pub use backoff::BackoffConfig;
pub use client::{Client, Config, ConnectError, Credentials, SendHandle, Stopped};
pub use event::{Event, Events, Observed, Observer, Outcome, SavedConversation, SavedSend, SavedState};
pub use rest::{Conversation, Conversations, Created, Member, Members, Rest, RestError, Stored, Tokens, User};
pub use trust::{Trust, TrustError};
