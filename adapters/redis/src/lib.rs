//! The Registry over Redis: every rule is a script, so that it holds in one atomic step whoever asks.
//!
//! Keys, all under one prefix: `life` (the Registry's own life), `gateways` (a set of incarnations), `g:<incarnation>`
//! (a hash that lives as long as the lease), `u:<user>` (a hash of session to device), `s:<incarnation>` (what a gateway
//! registered, for the sweep after its death) and `r:<key>` (rate limits). Ids stand in their 16 bytes.

mod config;
mod registry;
mod scripts;

pub use config::{RedisConfig, RedisUrlError};
pub use registry::RedisRegistry;
