//! What a server says, in both forms.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::protocol::server_frames(input);
});
