//! For any valid conversation, any masks and any cuts, the decoder says exactly what the client meant.

use proptest::prelude::*;
use roost_session::framing::websocket::{FrameError, Limits};

use crate::common::*;

/// What a client means to say: a message with the places where it is cut into fragments, or a control frame.
#[derive(Debug, Clone)]
enum Intent {
    Text(String, Vec<prop::sample::Index>),
    Binary(Vec<u8>, Vec<prop::sample::Index>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn intents() -> impl Strategy<Value = Vec<Intent>> {
    let cuts = || prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let sizes = prop_oneof![4 => 0..200usize, 1 => 65_400..65_700usize];
    let binary = sizes.prop_flat_map(|size| prop::collection::vec(any::<u8>(), size));
    let control = || prop::collection::vec(any::<u8>(), 0..=125);
    let intent = prop_oneof![
        3 => ("\\PC{0,80}", cuts()).prop_map(|(text, cuts)| Intent::Text(text, cuts)),
        3 => (binary, cuts()).prop_map(|(bytes, cuts)| Intent::Binary(bytes, cuts)),
        1 => control().prop_map(Intent::Ping),
        1 => control().prop_map(Intent::Pong),
    ];
    prop::collection::vec(intent, 0..8)
}

/// Frames of one message, with a ping between any two.
fn message(
    opcode: u8,
    payload: &[u8],
    cuts: &[prop::sample::Index],
    random: &mut Random,
    out: &mut (Vec<u8>, Vec<Said>),
) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(payload.len());
    let mut start = 0;
    for (index, &end) in ends.iter().enumerate() {
        let opcode = if index == 0 { opcode } else { CONTINUATION };
        let last = index + 1 == ends.len();
        out.0.extend(client_frame(if last { FIN } else { 0 } | opcode, random.key(), &payload[start..end]));
        start = end;
        if !last {
            out.0.extend(client_frame(FIN | PING, random.key(), &[index as u8]));
            out.1.push(Said::Ping(vec![index as u8]));
        }
    }
}

fn encode(intents: &[Intent], random: &mut Random) -> (Vec<u8>, Vec<Said>) {
    let mut out = (Vec::new(), Vec::new());
    for intent in intents {
        match intent {
            Intent::Text(text, cuts) => {
                message(TEXT, text.as_bytes(), cuts, random, &mut out);
                out.1.push(Said::Text(text.clone()));
            }
            Intent::Binary(bytes, cuts) => {
                message(BINARY, bytes, cuts, random, &mut out);
                out.1.push(Said::Binary(bytes.clone()));
            }
            Intent::Ping(payload) => {
                out.0.extend(client_frame(FIN | PING, random.key(), payload));
                out.1.push(Said::Ping(payload.clone()));
            }
            Intent::Pong(payload) => {
                out.0.extend(client_frame(FIN | PONG, random.key(), payload));
                out.1.push(Said::Pong);
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_a_valid_stream_says_what_was_meant(intents in intents(), seed in any::<u64>()) {
        let mut random = Random(seed);
        let (stream, expected) = encode(&intents, &mut random);
        prop_assert_eq!(decode_whole(&stream), Decoded::all(expected.clone()));
        for _ in 0..4 {
            prop_assert_eq!(decode(cut(&stream, &mut random), &Limits::default()), Decoded::all(expected.clone()));
        }
    }

    #[test]
    fn text_is_accepted_exactly_when_it_is_utf8(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..12),
            prop::collection::vec(prop::sample::select(&b"a\x80\xBF\xC2\xE0\xED\xEF\xF0\xF4\x90\x9F\xA0"[..]), 0..8),
        ],
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let mut out = (Vec::new(), Vec::new());
        message(TEXT, &bytes, &cuts, &mut random, &mut out);
        let whole = decode_whole(&out.0);
        prop_assert_eq!(decode(cut(&out.0, &mut random), &Limits::default()), whole.clone());
        match String::from_utf8(bytes) {
            Ok(text) => prop_assert_eq!(whole.said.last(), Some(&Said::Text(text))),
            Err(_) => prop_assert_eq!(whole.error, Some(FrameError::InvalidUtf8)),
        }
    }

    #[test]
    fn any_head_is_judged_alike_however_it_is_cut(
        lines in prop::collection::vec("[ -~]{0,30}", 0..6),
        ends in prop::sample::select(&["\r\n", "\n", "\r"][..]),
        seed in any::<u64>(),
    ) {
        let request = format!("GET /v1/connect HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", lines.join(ends));
        let mut random = Random(seed);
        prop_assert_eq!(handshake(cut(request.as_bytes(), &mut random)), handshake([request.as_bytes()]));
    }
}
