//! Any text as an access token.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::session::token(input);
});
