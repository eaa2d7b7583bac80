//! Every way in which a token can be wrong, and the few in which it is right.

use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

use super::*;

const NOW: TimeMs = 1_800_000_000_000;
const NOW_S: u64 = NOW / 1000;
const ISS: &str = "https://chat.example";
const AUD: &str = "roost";
const KID: &str = "k1";

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn public(key: &SigningKey) -> [u8; 32] {
    key.verifying_key().to_bytes()
}

fn verifier() -> Verifier {
    let keys = KeySet::from_signing_keys([(KID, &public(&key()), NOW + 1_000_000)]);
    Verifier::new(vec![Issuer { iss: ISS.to_owned(), aud: AUD.to_owned(), keys }])
}

fn header() -> Value {
    json!({"alg": "EdDSA", "typ": "at+jwt", "kid": KID})
}

fn payload() -> Value {
    json!({
        "iss": ISS, "aud": AUD, "iat": NOW_S, "exp": NOW_S + 900,
        "sub": "018f2f3c-0000-7000-8000-000000000001",
        "device_id": "018f2f3c-0000-7000-8000-000000000002",
    })
}

fn raw(header: &[u8], payload: &[u8], signer: &SigningKey) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = signer.sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

fn token(header: &Value, payload: &Value) -> String {
    raw(header.to_string().as_bytes(), payload.to_string().as_bytes(), &key())
}

fn with(mut value: Value, name: &str, field: Value) -> Value {
    value[name] = field;
    value
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().expect("an object").remove(name);
    value
}

#[track_caller]
fn refused(token: &str) {
    assert_eq!(verifier().verify(token, NOW), Err(TokenError::Invalid), "{token}");
}

#[test]
fn a_good_token_says_who_it_is() {
    let claims = verifier().verify(&token(&header(), &payload()), NOW).expect("valid");
    assert_eq!(claims.user_id.to_string(), "018f2f3c-0000-7000-8000-000000000001");
    assert_eq!(claims.device_id.to_string(), "018f2f3c-0000-7000-8000-000000000002");
    assert_eq!((claims.issued_at, claims.expires_at), (NOW, NOW + 900_000));
    assert_eq!(claims.issuer, ISS);
}

#[test]
fn what_issuers_may_add_is_accepted() {
    let header = with(with(header(), "x5t", json!("abc")), "typ", json!("AT+JWT"));
    let payload = with(with(payload(), "aud", json!(["other", AUD])), "scope", json!({"deep": [1, 2]}));
    let payload = with(payload, "nbf", json!(NOW_S - 5));
    assert!(verifier().verify(&token(&header, &payload), NOW).is_ok());
}

#[test]
fn a_clock_that_is_a_little_ahead_is_no_reason_to_refuse() {
    let payload = with(payload(), "iat", json!(NOW_S + 30));
    assert!(verifier().verify(&token(&header(), &payload), NOW).is_ok());
}

#[test]
fn s20_alg_none() {
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = with(header(), "alg", json!(alg));
        refused(&token(&header, &payload()));
        let unsigned = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(payload().to_string())
        );
        refused(&unsigned);
    }
    refused(&token(&without(header(), "alg"), &payload()));
    refused(&token(&with(header(), "alg", json!(null)), &payload()));
}

#[test]
fn s20_no_or_another_signature() {
    let good = token(&header(), &payload());
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    refused(message);
    refused(&format!("{message}."));
    refused(&format!("{message}.{}", &signature[..40]));
    refused(&format!("{message}.{signature}A"));
    refused(&format!("{message}.{signature}=="));
    refused(&format!("{message}.{}", URL_SAFE_NO_PAD.encode([0u8; 64])));
    refused(&format!("{good}.{signature}"));
    let another = SigningKey::from_bytes(&[8; 32]);
    refused(&raw(header().to_string().as_bytes(), payload().to_string().as_bytes(), &another));
}

#[test]
fn s21_hs256_signed_with_the_public_key() {
    for secret in [public(&key()).to_vec(), URL_SAFE_NO_PAD.encode(public(&key())).into_bytes()] {
        let mut forged = jsonwebtoken::Header::new(Algorithm::HS256);
        forged.typ = Some(TOKEN_TYPE.to_owned());
        forged.kid = Some(KID.to_owned());
        let encoding = jsonwebtoken::EncodingKey::from_secret(&secret);
        refused(&jsonwebtoken::encode(&forged, &payload(), &encoding).expect("encodes"));
    }
    for alg in ["HS256", "HS512", "RS256", "ES256", "EdDSA ", "eddsa"] {
        refused(&token(&with(header(), "alg", json!(alg)), &payload()));
    }
}

#[test]
fn s22_headers_that_carry_or_name_keys() {
    let attacker = SigningKey::from_bytes(&[9; 32]);
    let jwk = serde_json::to_value(Jwk::of_ed25519(KID, &public(&attacker))).expect("a JWK");
    for (name, value) in [
        ("jwk", jwk),
        ("jwk", json!(null)),
        ("jku", json!("https://attacker.example/jwks.json")),
        ("x5u", json!("http://127.0.0.1:1/cert")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
    ] {
        let header = with(header(), name, value);
        refused(&raw(header.to_string().as_bytes(), payload().to_string().as_bytes(), &attacker));
        // Even rightly signed: whoever sends such a header means something that we do not do.
        refused(&token(&header, &payload()));
    }
}

#[test]
fn s22_odd_key_ids() {
    let huge = "k".repeat(KID_BYTES_MAX + 1);
    for kid in ["", "../../etc/passwd", "' OR 1=1 --", "k1\0", "k1\n", "http://x/", "ключ", huge.as_str()] {
        refused(&token(&with(header(), "kid", json!(kid)), &payload()));
    }
    refused(&token(&with(header(), "kid", json!(["k1"])), &payload()));
    refused(&token(&with(header(), "kid", json!(1)), &payload()));
    refused(&token(&without(header(), "kid"), &payload()));
}

#[test]
fn s22_a_key_that_is_not_known_asks_for_a_refresh_only_where_all_else_is_right() {
    let unknown = with(header(), "kid", json!("k2"));
    assert_eq!(verifier().verify(&token(&unknown, &payload()), NOW), Err(TokenError::UnknownKey));
    refused(&token(&unknown, &with(payload(), "exp", json!(NOW_S))));
    refused(&token(&unknown, &with(payload(), "iss", json!("https://other.example"))));
    refused(&token(&unknown, &with(payload(), "aud", json!("other"))));
}

#[test]
fn s23_expired_or_not_yet_valid() {
    refused(&token(&header(), &with(payload(), "exp", json!(NOW_S))));
    refused(&token(&header(), &with(payload(), "exp", json!(NOW_S - 1))));
    let skew_s = CLOCK_SKEW_MS_MAX / 1000;
    refused(&token(&header(), &with(payload(), "nbf", json!(NOW_S + skew_s + 1))));
    refused(&token(&header(), &with(payload(), "iat", json!(NOW_S + skew_s + 1))));
    assert!(verifier().verify(&token(&header(), &payload()), NOW + 899_999).is_ok());
    assert!(verifier().verify(&token(&header(), &payload()), NOW + 900_000).is_err());
}

#[test]
fn s23_wrong_issuer_audience_or_type() {
    for iss in [json!("https://chat.example/"), json!("https://CHAT.example"), json!(""), json!([ISS]), json!(null)] {
        refused(&token(&header(), &with(payload(), "iss", iss)));
    }
    for aud in [json!("other"), json!([]), json!(["other"]), json!(null), json!({"a": AUD}), json!([[AUD]])] {
        refused(&token(&header(), &with(payload(), "aud", aud)));
    }
    for typ in [json!("JWT"), json!("id+jwt"), json!("rt+jwt"), json!(""), json!(null)] {
        refused(&token(&with(header(), "typ", typ), &payload()));
    }
    for name in ["iss", "aud", "sub", "device_id", "iat"] {
        refused(&token(&header(), &without(payload(), name)));
    }
    refused(&token(&without(header(), "typ"), &payload()));
}

#[test]
fn s23_a_key_counts_for_its_own_issuer_only() {
    let other = SigningKey::from_bytes(&[5; 32]);
    let mut issuers = verifier().issuers;
    let keys = KeySet::from_jwks(&Jwks { keys: vec![Jwk::of_ed25519("other", &public(&other))] });
    issuers.push(Issuer { iss: "https://other.example".to_owned(), aud: AUD.to_owned(), keys });
    let both = Verifier::new(issuers);
    let header = with(header(), "kid", json!("other"));
    let forged = raw(header.to_string().as_bytes(), payload().to_string().as_bytes(), &other);
    assert!(both.verify(&forged, NOW).is_err());
    let payload = with(payload(), "iss", json!("https://other.example"));
    let own = raw(header.to_string().as_bytes(), payload.to_string().as_bytes(), &other);
    assert!(both.verify(&own, NOW).is_ok());
}

#[test]
fn s24_missing_or_odd_times() {
    for exp in [
        json!(null),
        json!("1900000000"),
        json!(-1),
        json!(1_900_000_000.5),
        json!(1e300),
        json!(u64::MAX),
        json!(limits::SEQ_MAX),
        json!([1_900_000_000]),
        json!(true),
    ] {
        refused(&token(&header(), &with(payload(), "exp", exp)));
    }
    refused(&token(&header(), &without(payload(), "exp")));
    refused(&token(&header(), &with(payload(), "nbf", json!("0"))));
    refused(&token(&header(), &with(payload(), "iat", json!("0"))));
}

#[test]
fn s24_ids_that_are_none() {
    for id in [json!(""), json!("alice"), json!("018f2f3c000070008000000000000001"), json!(7), json!(null)] {
        refused(&token(&header(), &with(payload(), "sub", id.clone())));
        refused(&token(&header(), &with(payload(), "device_id", id)));
    }
}

#[test]
fn s24_over_long() {
    let long = with(payload(), "scope", json!("x".repeat(limits::TOKEN_BYTES_MAX)));
    refused(&token(&header(), &long));
    refused(&"a".repeat(10_000_000));
    refused(&".".repeat(limits::TOKEN_BYTES_MAX));
}

#[test]
fn s24_not_a_token_at_all() {
    for text in ["", ".", "..", "...", "a.b.c", "\0", "é.é.é", "eyJ.eyJ.eyJ", " "] {
        refused(text);
    }
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(500), "]".repeat(500));
    refused(&raw(deep.as_bytes(), payload().to_string().as_bytes(), &key()));
    refused(&raw(header().to_string().as_bytes(), deep.as_bytes(), &key()));
    refused(&raw(header().to_string().as_bytes(), b"\xff\xfe", &key()));
}

#[test]
fn s24_doubled_fields() {
    let doubled = payload().to_string().replacen('{', "{\"exp\":1900000000,", 1);
    refused(&raw(header().to_string().as_bytes(), doubled.as_bytes(), &key()));
    let doubled = header().to_string().replacen('{', "{\"alg\":\"none\",", 1);
    refused(&raw(doubled.as_bytes(), payload().to_string().as_bytes(), &key()));
}

#[test]
fn s25_a_key_that_has_been_rotated_out_counts_no_more() {
    let good = token(&header(), &with(payload(), "exp", json!(NOW_S + 10_000)));
    assert!(verifier().verify(&good, NOW + 999_999).is_ok());
    assert_eq!(verifier().verify(&good, NOW + 1_000_000), Err(TokenError::Invalid));
}

#[test]
fn a_key_set_takes_only_keys_that_it_can_use() {
    let good = Jwk::of_ed25519("good", &public(&key()));
    let short = Jwk { x: Some(URL_SAFE_NO_PAD.encode([1u8; 31])), kid: Some("short".to_owned()), ..good.clone() };
    let rsa = Jwk { kty: "RSA".to_owned(), crv: None, kid: Some("rsa".to_owned()), ..good.clone() };
    let encryption = Jwk { use_: Some("enc".to_owned()), kid: Some("enc".to_owned()), ..good.clone() };
    let nameless = Jwk { kid: None, ..good.clone() };
    let set = KeySet::from_jwks(&Jwks { keys: vec![good, short, rsa, encryption, nameless] });
    assert_eq!(set.len(), 1);
    let text = serde_json::to_string(&Jwks { keys: vec![Jwk::of_ed25519("good", &public(&key()))] }).expect("JSON");
    assert_eq!(KeySet::from_jwks(&serde_json::from_str(&text).expect("a key set")).len(), 1);
}

proptest::proptest! {
    #[test]
    fn s58_no_other_text_is_the_same_token(at in 0usize..400, byte in 0x20u8..0x7f, cut in 0usize..400) {
        let good = token(&header(), &payload());
        let mut bytes = good.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).expect("ASCII");
        proptest::prop_assert_eq!(verifier().verify(&changed, NOW).is_ok(), changed == good);
        let shorter = &good[..cut % good.len()];
        proptest::prop_assert!(verifier().verify(shorter, NOW).is_err());
    }

    #[test]
    fn s58_arbitrary_parts_are_refused_without_a_panic(header in ".{0,200}", payload in ".{0,200}", text in ".{0,300}") {
        proptest::prop_assert!(verifier().verify(&raw(header.as_bytes(), payload.as_bytes(), &key()), NOW).is_err());
        proptest::prop_assert!(verifier().verify(&text, NOW).is_err());
    }
}
