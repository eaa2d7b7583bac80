//! Records of both topics of the log.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = roost_fuzz::protocol::log_records(input);
});
