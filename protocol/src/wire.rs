//! The encodings: protobuf by hand where the hot path needs it and by prost elsewhere, JSON by serde.
//!
//! What they add to the domain types: [`ClientFrame`](crate::ClientFrame) and [`ServerFrame`](crate::ServerFrame) get
//! `decode` and `encode…` for both forms, the records get theirs.

mod client;
mod client_binary;
mod client_json;
mod generated;
mod json;
mod protobuf;
mod record;
mod server;
mod server_binary;
mod server_json;

pub use json::depth_is_at_most as json_depth_is_at_most;

#[cfg(test)]
mod tests;
