//! One behaviour suite per port: every adapter passes it on the real thing, and differs in nothing that it can see.

pub mod delivery;
pub mod failing;
pub mod log;
pub mod registry;
pub mod store;
pub mod suite;
