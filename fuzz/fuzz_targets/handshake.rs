//! The first bytes of a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::session::handshake_head(input);
});
