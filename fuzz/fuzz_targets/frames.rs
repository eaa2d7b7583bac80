//! A stream of WebSocket frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::session::frames(input);
});
