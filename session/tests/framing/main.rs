//! The framing codecs against their rules, against other implementations, and under every way to cut a stream.

#[path = "../common/mod.rs"]
mod common;

mod bad_frames;
mod bad_handshakes;
mod frames_against_others;
mod good_handshakes;
mod handshakes_against_others;
mod split_properties;
