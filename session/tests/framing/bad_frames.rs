//! Bad input S1-S9: each violation gets its close code, at the earliest byte that shows it.

use std::time::{Duration, Instant};

use roost_session::framing::websocket::{Decoder, FrameError, Limits};

use crate::common::*;

/// The stream fails with this error, whole or byte by byte, and not before its last byte.
fn fails_exactly_at_the_end(stream: &[u8], error: FrameError, close_code: u16) {
    assert_eq!(decode_both(stream).error, Some(error), "{stream:x?}");
    assert_eq!(decode_both(&stream[..stream.len() - 1]).error, None, "too early: {stream:x?}");
    assert_eq!(error.close_code(), close_code);
}

#[test]
fn s01_unmasked_frames_are_refused() {
    for first in [FIN | TEXT, FIN | BINARY, TEXT, FIN | CLOSE, FIN | PING, FIN | PONG] {
        fails_exactly_at_the_end(&[first, 2], FrameError::Unmasked, 1002);
    }
    let after_a_good_one = [masked(FIN | TEXT, b"hi"), vec![FIN | TEXT, 2]].concat();
    let decoded = decode_both(&after_a_good_one);
    assert_eq!(decoded.said, [Said::Text("hi".into())]);
    assert_eq!(decoded.error, Some(FrameError::Unmasked));
}

#[test]
fn s02_reserved_bits_and_opcodes_are_refused() {
    for bits in [0x10, 0x20, 0x40, 0x70] {
        fails_exactly_at_the_end(&[FIN | bits | TEXT], FrameError::ReservedBits, 1002);
        fails_exactly_at_the_end(&[FIN | bits | PING], FrameError::ReservedBits, 1002);
    }
    for opcode in (3..8).chain(11..16) {
        fails_exactly_at_the_end(&[FIN | opcode], FrameError::ReservedOpcode, 1002);
        fails_exactly_at_the_end(&[opcode], FrameError::ReservedOpcode, 1002);
    }
    let inside = [masked(TEXT, b"a"), vec![FIN | 0x40]].concat();
    fails_exactly_at_the_end(&inside, FrameError::ReservedBits, 1002);
}

#[test]
fn s03_long_or_fragmented_control_frames_are_refused() {
    for opcode in [CLOSE, PING, PONG] {
        fails_exactly_at_the_end(&[FIN | opcode, 0x80 | 126], FrameError::ControlTooLong, 1002);
        fails_exactly_at_the_end(&[FIN | opcode, 0x80 | 127], FrameError::ControlTooLong, 1002);
        fails_exactly_at_the_end(&[opcode], FrameError::FragmentedControl, 1002);
    }
    let longest = vec![b'x'; 125];
    assert_eq!(decode_both(&masked(FIN | PING, &longest)), Decoded::all([Said::Ping(longest)]));
}

#[test]
fn s04_bad_close_payloads_and_codes_are_refused() {
    fails_exactly_at_the_end(&[FIN | CLOSE, 0x81], FrameError::ClosePayload, 1002);
    for code in [0u16, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        fails_exactly_at_the_end(&masked(FIN | CLOSE, &code.to_be_bytes()), FrameError::CloseCode, 1002);
        let with_reason = masked(FIN | CLOSE, &close_payload(code, b"why"));
        fails_exactly_at_the_end(&with_reason[..8], FrameError::CloseCode, 1002);
        assert_eq!(decode_both(&with_reason).error, Some(FrameError::CloseCode));
    }
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
        let stream = masked(FIN | CLOSE, &close_payload(code, "é".as_bytes()));
        assert_eq!(decode_both(&stream), Decoded::all([Said::Close(Some(code), "é".into())]));
    }
    assert_eq!(decode_both(&masked(FIN | CLOSE, b"")), Decoded::all([Said::Close(None, String::new())]));
}

#[test]
fn s04_what_follows_a_close_is_discarded() {
    let stream = [masked(FIN | CLOSE, b""), masked(FIN | TEXT, b"late"), vec![0xff; 100]].concat();
    assert_eq!(decode_both(&stream), Decoded::all([Said::Close(None, String::new())]));
}

#[test]
fn s05_invalid_utf8_is_refused_at_the_first_wrong_byte() {
    // Each ends with the first byte that nothing can repair.
    let overlong_surrogate_and_so_on: [&[u8]; 8] =
        [b"\xC0", b"\xE0\x80", b"\xED\xA0", b"\xF0\x80", b"\xF4\x90", b"\xF5", b"ok\xFF", b"\xCE\xBAabc\x80"];
    for bad in overlong_surrogate_and_so_on {
        let frame = masked(FIN | TEXT, &[bad, b" and more to come"].concat());
        fails_exactly_at_the_end(&frame[..6 + bad.len()], FrameError::InvalidUtf8, 1007);
        assert_eq!(decode_whole(&frame), Decoded::failed(FrameError::InvalidUtf8));
        assert_eq!(decode_both(&masked(FIN | BINARY, bad)), Decoded::all([Said::Binary(bad.to_vec())]));
    }
}

#[test]
fn s05_invalid_utf8_split_across_fragments() {
    // The surrogate's first byte ends one fragment; its second begins the next, with a ping between.
    let start = [masked(TEXT, b"a\xED"), masked(FIN | PING, b"\xFF"), masked(CONTINUATION, b"")].concat();
    let bad = masked(FIN, b"\xA0\x80");
    let stream = [&start[..], &bad[..7]].concat();
    fails_exactly_at_the_end(&stream, FrameError::InvalidUtf8, 1007);
    // The same cut with a valid character is fine.
    let good = [start, masked(FIN, b"\x9F\xBF")].concat();
    assert_eq!(decode_both(&good), Decoded::all([Said::Ping(vec![0xFF]), Said::Text("a\u{D7FF}".into())]));
}

#[test]
fn s05_text_that_ends_inside_a_character_is_refused() {
    for stream in [
        masked(FIN | TEXT, b"\xF0\x9F\x92"),
        [masked(TEXT, b"\xF0\x9F"), masked(FIN, b"\x92")].concat(),
        [masked(TEXT, b"\xF0"), masked(FIN, b"")].concat(),
    ] {
        fails_exactly_at_the_end(&stream, FrameError::InvalidUtf8, 1007);
    }
}

#[test]
fn s05_invalid_utf8_in_a_close_reason() {
    let frame = masked(FIN | CLOSE, &close_payload(1000, b"a\xED\xA0\x80 and more"));
    fails_exactly_at_the_end(&frame[..6 + 2 + 3], FrameError::InvalidUtf8, 1007);
    assert_eq!(decode_whole(&frame), Decoded::failed(FrameError::InvalidUtf8));
    let unfinished = masked(FIN | CLOSE, &close_payload(1000, b"a\xED"));
    fails_exactly_at_the_end(&unfinished, FrameError::InvalidUtf8, 1007);
}

#[test]
fn s06_impossible_lengths_are_refused_by_the_header() {
    let header = |bytes: &[u8]| [&[FIN | BINARY][..], bytes].concat();
    let top_bit = header(&[0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]);
    fails_exactly_at_the_end(&top_bit, FrameError::LengthTopBit, 1002);
    let all_ones = header(&[0xff; 9]);
    fails_exactly_at_the_end(&all_ones, FrameError::LengthTopBit, 1002);
    for non_minimal in
        [&[0xfe, 0, 0][..], &[0xfe, 0, 125], &[0xff, 0, 0, 0, 0, 0, 0, 0, 5], &[0xff, 0, 0, 0, 0, 0, 0, 255, 255]]
    {
        fails_exactly_at_the_end(&header(non_minimal), FrameError::NonMinimalLength, 1002);
    }
    let enormous = header(&[0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    fails_exactly_at_the_end(&enormous, FrameError::MessageTooBig, 1009);
}

#[test]
fn s07_a_message_at_the_limit_passes_and_one_byte_more_does_not() {
    for limit in [0, 1, 125, 126, 1000, 65_535, 65_536, 73_728] {
        let limits = Limits { message_bytes_max: limit, ..Limits::default() };
        let payload = vec![7; limit];
        let stream = masked(FIN | BINARY, &payload);
        for pieces in [1, 1000, usize::MAX] {
            assert_eq!(decode(stream.chunks(pieces), &limits), Decoded::all([Said::Binary(payload.clone())]));
        }
        let over = masked(FIN | BINARY, &vec![7; limit + 1]);
        let header_bytes = over.len() - (limit + 1) - 4;
        // The header alone is enough, before its mask and with nothing allocated for the payload.
        assert_eq!(decode([&over[..header_bytes]], &limits), Decoded::failed(FrameError::MessageTooBig));
        assert_eq!(decode([&over[..header_bytes - 1]], &limits).error, None);
    }
    assert_eq!(FrameError::MessageTooBig.close_code(), 1009);
}

#[test]
fn s07_fragments_count_together_and_control_frames_do_not() {
    let limits = Limits { message_bytes_max: 200, ..Limits::default() };
    let start = [masked(BINARY, &[1; 100]), masked(FIN | PING, &[2; 125])].concat();
    let fits = [&start[..], &masked(FIN, &[3; 100])].concat();
    let expected = [Said::Ping(vec![2; 125]), Said::Binary([[1; 100], [3; 100]].concat())];
    assert_eq!(decode([&fits[..]], &limits), Decoded::all(expected));
    let over = [&start[..], &masked(FIN, &[3; 101])[..2]].concat();
    assert_eq!(decode([&over[..]], &limits).error, Some(FrameError::MessageTooBig));
}

#[test]
fn s07_a_big_claim_allocates_nothing_until_bytes_come() {
    let limits = Limits::default();
    let mut decoder = Decoder::new();
    let mut header = masked(FIN | BINARY, &vec![0; 72 * 1024])[..14].to_vec();
    assert_eq!(decoder.next(&mut &mut header[..], &limits), Ok(None));
    assert!(decoder.buffered_bytes() < 256, "{}", decoder.buffered_bytes());
    let mut some = vec![0; 1000];
    assert_eq!(decoder.next(&mut &mut some[..], &limits), Ok(None));
    assert!(decoder.buffered_bytes() < 256 + 2000, "{}", decoder.buffered_bytes());
}

#[test]
fn s08_a_million_empty_continuations_stop_at_the_cap() {
    let began = Instant::now();
    let empty = masked(CONTINUATION, b"");
    let stream = [masked(TEXT, b""), empty.repeat(1_000_000)].concat();
    assert_eq!(decode_whole(&stream), Decoded::failed(FrameError::TooManyFragments));
    assert_eq!(FrameError::TooManyFragments.close_code(), 1008);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The cap counts the frame that starts the message, and the last allowed one may end it.
    let at_the_cap = [masked(TEXT, b""), empty.repeat(1022), masked(FIN, b"end")].concat();
    assert_eq!(decode_both(&at_the_cap), Decoded::all([Said::Text("end".into())]));
    let over = [masked(TEXT, b""), empty.repeat(1023), vec![FIN]].concat();
    fails_exactly_at_the_end(&over, FrameError::TooManyFragments, 1008);
}

#[test]
fn s08_a_hundred_thousand_one_byte_fragments_stop_at_the_cap() {
    let stream = [masked(BINARY, b"x"), masked(CONTINUATION, b"x").repeat(100_000)].concat();
    assert_eq!(decode_both(&stream), Decoded::failed(FrameError::TooManyFragments));
    // Where a deployment raises the cap, the time still grows with the bytes, not with their square.
    let generous = Limits { message_fragments_max: u32::MAX, message_bytes_max: 1 << 20 };
    let began = Instant::now();
    assert_eq!(decode(stream.chunks(1), &generous).error, None);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn s08_the_buffer_grows_by_doubling_not_with_every_fragment() {
    let limits = Limits { message_fragments_max: u32::MAX, message_bytes_max: 1 << 20 };
    let (mut decoder, mut sizes) = (Decoder::new(), std::collections::BTreeSet::new());
    for index in 0..10_000 {
        let mut frame = masked(if index == 0 { BINARY } else { CONTINUATION }, b"x");
        assert_eq!(decoder.next(&mut &mut frame[..], &limits), Ok(None));
        sizes.insert(decoder.buffered_bytes());
    }
    assert!(sizes.len() <= 16, "grown {} times", sizes.len());
}

#[test]
fn s09_a_continuation_without_a_start_is_refused() {
    for first in [CONTINUATION, FIN] {
        fails_exactly_at_the_end(&[first], FrameError::UnexpectedContinuation, 1002);
    }
    let after_the_end = [masked(TEXT, b"a"), masked(FIN, b"b"), vec![FIN]].concat();
    fails_exactly_at_the_end(&after_the_end, FrameError::UnexpectedContinuation, 1002);
}

#[test]
fn s09_a_new_message_inside_a_message_is_refused() {
    for first in [TEXT, BINARY, FIN | TEXT, FIN | BINARY] {
        let stream = [masked(TEXT, b"a"), masked(FIN | PING, b""), vec![first]].concat();
        fails_exactly_at_the_end(&stream, FrameError::InterruptedMessage, 1002);
    }
}

#[test]
fn an_idle_decoder_is_tiny_and_lends_whole_frames_out_of_the_buffer() {
    assert!(size_of::<Decoder>() <= 16, "{}", size_of::<Decoder>());
    let (mut decoder, limits) = (Decoder::new(), Limits::default());
    let mut buffer = [masked(FIN | TEXT, b"one"), masked(FIN | BINARY, b"two"), masked(FIN | PING, b"three")].concat();
    let range = buffer.as_ptr_range();
    let mut rest = &mut buffer[..];
    for expected in [&b"one"[..], b"two", b"three"] {
        use roost_session::framing::websocket::Event::{Message, Ping};
        let Some(Message { payload, .. } | Ping(payload)) = decoder.next(&mut rest, &limits).unwrap() else {
            panic!("an event was due");
        };
        assert_eq!(&payload[..], expected);
        assert!(range.contains(&payload.as_ptr()), "the payload was copied");
        assert!(decoder.is_idle());
    }
    assert_eq!(decoder.next(&mut rest, &limits), Ok(None));
}

#[test]
fn a_partial_message_gives_its_memory_back_when_it_is_complete() {
    let (mut decoder, limits) = (Decoder::new(), Limits::default());
    let mut stream = masked(FIN | TEXT, "grüße".as_bytes());
    for byte in &mut stream {
        assert!(decoder.is_idle() == (decoder.buffered_bytes() == 0));
        let said = decoder.next(&mut std::slice::from_mut(byte), &limits).unwrap().map(Said::from);
        if let Some(said) = said {
            assert_eq!(said, Said::Text("grüße".into()));
        }
    }
    assert!(decoder.is_idle());
    assert_eq!(decoder.buffered_bytes(), 0);
}
