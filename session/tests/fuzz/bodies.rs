//! What holds of every input. The bounded tests beside this file and the targets of the folder `fuzz/` call the same
//! functions; each says what it made of the input.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use roost_protocol::TimeMs;
use roost_session::framing::handshake::{HEAD_BYTES_MAX, Step};
use roost_session::framing::websocket::{FrameError, Limits};
use roost_session::token::{Issuer, KeySet, TokenError, Verifier};

use crate::common::*;
use crate::oracle;

/// The same cuts for the same input, so that a failure needs nothing but the input to come again.
fn cuts_of(input: &[u8]) -> Random {
    Random(
        input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
    )
}

/// A stream of frames: no panic, bounded memory, the same however it is cut, and read alike by another implementation.
pub fn frames(input: &[u8]) -> Option<FrameError> {
    let limits = Limits { message_bytes_max: 1500, message_fragments_max: 12 };
    let whole = decode([input], &limits);
    assert_eq!(decode(cut(input, &mut cuts_of(input)), &limits), whole, "{input:x?}");
    if whole.error.is_none() {
        oracle::reads_the_same(input, &whole);
    }
    whole.error
}

/// A message whose fragments the input chooses, with pings between: it comes together as it was, or is refused if it is
/// text and no UTF-8.
pub fn fragments(input: &[u8]) -> Option<FrameError> {
    let limits = Limits { message_bytes_max: 400, message_fragments_max: u32::MAX };
    let (&kind, payload) = input[..input.len().min(limits.message_bytes_max)].split_first()?;
    let first = if kind % 2 == 0 { TEXT } else { BINARY };
    let (mut stream, mut expected, mut rest) = (Vec::new(), Vec::new(), payload);
    let mut random = cuts_of(input);
    while let Some(&length) = rest.first() {
        // A fragment is as long as its first byte says, so that a fuzzer can move the cuts, and an empty one goes with it.
        let lengths = if length % 32 == 0 { [0, 1] } else { [usize::from(length % 32), 0] };
        for length in lengths {
            let (piece, later) = rest.split_at(length.min(rest.len()));
            let opcode = if stream.is_empty() { first } else { CONTINUATION };
            stream.extend(client_frame(opcode, random.key(), piece));
            rest = later;
        }
        stream.extend(client_frame(FIN | PING, random.key(), b"between"));
        expected.push(Said::Ping(b"between".to_vec()));
    }
    let opcode = if stream.is_empty() { first } else { CONTINUATION };
    stream.extend(client_frame(FIN | opcode, random.key(), b""));
    let decoded = decode(cut(&stream, &mut random), &limits);
    match (first, String::from_utf8(payload.to_vec())) {
        (TEXT, Err(_)) => assert_eq!(decoded.error, Some(FrameError::InvalidUtf8), "{input:x?}"),
        (TEXT, Ok(text)) => {
            expected.push(Said::Text(text));
            assert_eq!(decoded, Decoded::all(expected), "{input:x?}");
        }
        _ => {
            expected.push(Said::Binary(payload.to_vec()));
            assert_eq!(decoded, Decoded::all(expected), "{input:x?}");
        }
    }
    decoded.error
}

/// A request head and what follows: no panic, the same however it is cut, nothing lost, and no token shown. Says the HTTP
/// status, 200 for what is handed over, 0 for what is incomplete.
pub fn handshake_head(input: &[u8]) -> u16 {
    let whole = handshake([input]);
    assert_eq!(handshake(cut(input, &mut cuts_of(input))), whole, "{:?}", String::from_utf8_lossy(input));
    let status = match &whole {
        Step::Incomplete => {
            assert!(input.len() <= HEAD_BYTES_MAX);
            0
        }
        Step::Upgrade(upgrade) => {
            assert!(input.ends_with(&upgrade.rest));
            101
        }
        Step::Http(http) => {
            assert_eq!(http.received, input);
            200
        }
        Step::Refused(error) => {
            assert!(!String::from_utf8(error.response()).expect("text").contains("secret"));
            error.status
        }
    };
    // Method and path may be shown, and a mutation may have moved the token there.
    let shown = match &whole {
        Step::Http(http) => [http.request.method(), http.request.path()].concat(),
        _ => String::new(),
    };
    assert!(shown.contains("secret") || !format!("{whole:?}").contains("secret"));
    status
}

const NOW: TimeMs = 1_800_000_000_000;
const ISS: &str = "https://chat.example";

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[7; 32]));

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let keys = KeySet::from_signing_keys([("k1", &KEY.verifying_key().to_bytes(), NOW + 1_000_000)]);
    Verifier::new(vec![Issuer { iss: ISS.to_owned(), aud: "roost".to_owned(), keys }])
});

/// What [`claims_corpus`] says, signed.
pub static SIGNED: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| claims_corpus().iter().map(|claims| sign_claims(claims).into_bytes()).collect());

fn sign(header: &[u8], payload: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = KEY.sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

/// Header, a line feed, payload.
pub fn claims_corpus() -> Vec<Vec<u8>> {
    let header = r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#;
    let user = r#""sub":"018f2f3c-0000-7000-8000-000000000001","device_id":"018f2f3c-0000-7000-8000-000000000002""#;
    let payload = |aud: &str, more: &str| {
        format!(r#"{{"iss":"{ISS}","aud":{aud},"iat":1800000000,"exp":1800000900,{user}{more}}}"#)
    };
    let good = payload(r#""roost""#, "");
    [
        format!("{header}\n{good}"),
        format!("{header}\n{}", payload(r#"["other","roost"]"#, r#","nbf":1799999990,"scope":{"deep":[1,2]}"#)),
        format!("{}\n{good}", header.replace("k1", "k2")),
        format!("{}\n{good}", header.replace("}", r#","jwk":{"kty":"OKP"}}"#)),
        format!("{header}\n{}", good.replace("1800000900", "1700000000")),
        format!("{header}\n{}", payload(r#""roost""#, r#","nbf":1900000000"#)),
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn sign_claims(claims: &[u8]) -> String {
    let at = claims.iter().position(|&byte| byte == b'\n').unwrap_or(claims.len());
    sign(&claims[..at], claims.get(at + 1..).unwrap_or_default())
}

/// Any text as a token: no panic, and only what was signed, to the letter, is believed.
pub fn token(input: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(input);
    match VERIFIER.verify(&text, NOW) {
        Ok(_) => {
            assert!(SIGNED.iter().any(|signed| signed == input), "believed: {text}");
            "believed"
        }
        Err(TokenError::Invalid) => "invalid",
        Err(TokenError::UnknownKey) => "unknown key",
    }
}

/// Any header and payload under a good signature: no panic, and whoever is believed is so for a while only.
pub fn claims(input: &[u8]) -> &'static str {
    match VERIFIER.verify(&sign_claims(input), NOW) {
        Ok(claims) => {
            assert_eq!(claims.issuer, ISS);
            assert!(claims.expires_at > NOW, "{claims:?}");
            "believed"
        }
        Err(TokenError::Invalid) => "invalid",
        Err(TokenError::UnknownKey) => "unknown key",
    }
}
