//! A message in fragments that the input chooses.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::session::fragments(input);
});
