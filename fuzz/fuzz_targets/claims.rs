//! Any header and payload under a good signature.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::session::claims(input);
});
