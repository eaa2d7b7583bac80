//! How bytes become handshakes, messages and control frames: pure codecs that own no socket and ask no clock.

pub mod handshake;
pub mod peer;
pub mod proxy;
pub mod websocket;
