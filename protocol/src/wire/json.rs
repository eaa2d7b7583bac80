//! What both directions of the JSON form share: depth, bodies as text or base64, and a writer without a tree.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// Whether brackets nest at most so deep. Brackets within strings do not count.
pub fn depth_is_at_most(text: &str, depth_max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > depth_max {
                    return false;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// The body as the text it is in JSON; nothing where it has to be base64.
pub(super) fn body_as_text<'a>(content_type: &str, body: &'a [u8]) -> Option<&'a str> {
    let is_text = content_type.starts_with("text/") || content_type.starts_with("application/json");
    if is_text && !swells(body) { std::str::from_utf8(body).ok() } else { None }
}

/// Whether escapes would make more than twice as much of a body: a control character takes six characters, and a page of
/// them would be larger than a session's queue may be.
fn swells(body: &[u8]) -> bool {
    const SMALL: usize = 256;
    let escaped = |byte: &&u8| **byte < 0x20 && !matches!(**byte, b'\n' | b'\r' | b'\t' | 0x08 | 0x0c);
    body.len() > SMALL && body.iter().filter(escaped).count() * 5 > body.len()
}

/// The bytes of a `body_base64`.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Writes one JSON object field by field.
pub(super) struct Object<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> Object<'o> {
    pub(super) fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    pub(super) fn end(self) {
        self.out.push(b'}');
    }

    /// A field whose value the caller writes.
    pub(super) fn key(&mut self, name: &str) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// A text, number or flag, escaped as JSON wants it.
    pub(super) fn field(&mut self, name: &str, value: impl Serialize) {
        serde_json::to_writer(self.key(name), &value).expect("texts, numbers and flags have a JSON form");
    }

    /// The same, left out where absent.
    pub(super) fn optional(&mut self, name: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    /// An id: hyphenated, lower case.
    pub(super) fn id(&mut self, name: &str, bytes: &[u8; 16]) {
        let out = self.key(name);
        out.push(b'"');
        let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
        let text = uuid::Uuid::from_bytes(*bytes).hyphenated().encode_lower(&mut text);
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }

    /// A body: `text` where it can be read, else `body_base64`.
    pub(super) fn body(&mut self, content_type: &str, body: &[u8]) {
        if let Some(text) = body_as_text(content_type, body) {
            return self.field("text", text);
        }
        let out = self.key("body_base64");
        out.push(b'"');
        let start = out.len();
        out.resize(start + body.len().div_ceil(3) * 4, 0);
        STANDARD.encode_slice(body, &mut out[start..]).expect("there is room for four characters per three bytes");
        out.push(b'"');
    }
}
