//! An HTTP/1.1 request head: scanned once as it arrives, parsed once when it is whole, strict throughout.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use super::error::HttpError;

/// The longest request head: request line, headers and the empty line.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most header lines.
pub const HEADERS_MAX: usize = 64;

const TOO_LONG: HttpError = HttpError::new(431, "The request head is over 16 KiB: send fewer or shorter headers.");
const TOO_MANY: HttpError = HttpError::new(431, "The request has more than 64 headers: send fewer.");
const BARE_LINE_END: HttpError = HttpError::new(400, "Lines of a request head must end with CR LF.");
const FOLDED: HttpError = HttpError::new(400, "Folded headers are not accepted: write each header in one line.");
const BAD_BYTE: HttpError = HttpError::new(400, "The request head holds a byte that HTTP does not allow there.");
const BAD_REQUEST_LINE: HttpError =
    HttpError::new(400, "The request line is malformed: send METHOD, target and HTTP/1.1, with one space between.");
const BAD_VERSION: HttpError = HttpError::new(505, "Speak HTTP/1.1.");
const BAD_HEADER: HttpError = HttpError::new(400, "A header is malformed: write `Name: value`.");
const BAD_HOST: HttpError = HttpError::new(400, "Send exactly one Host header.");
const DUPLICATE: HttpError = HttpError::new(400, "A header that may come only once comes twice.");
const BAD_BODY_LENGTH: HttpError =
    HttpError::new(400, "Say the body's length either by one Content-Length in digits or by Transfer-Encoding.");

/// These decide where the request ends, where it goes or who sends it; two of one kind mean two readers may disagree.
const SINGLE: [&str; 5] =
    ["content-length", "transfer-encoding", "sec-websocket-key", "sec-websocket-version", "authorization"];

/// Finds the end of the head in bytes that arrive in any pieces, looking at each byte once.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    scanned: usize,
    line_bytes: usize,
    lines: usize,
    after_cr: bool,
}

impl HeadScan {
    /// Looks at the next piece; `Some(n)` once its first `n` bytes complete the head.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Option<usize>, HttpError> {
        for (index, &byte) in piece.iter().enumerate() {
            if self.scanned == HEAD_BYTES_MAX {
                return Err(TOO_LONG);
            }
            self.scanned += 1;
            if self.push_byte(byte)? {
                return Ok(Some(index + 1));
            }
        }
        Ok(None)
    }

    /// True if this byte ends the head.
    fn push_byte(&mut self, byte: u8) -> Result<bool, HttpError> {
        if self.after_cr || byte == b'\n' {
            if !(self.after_cr && byte == b'\n') {
                return Err(BARE_LINE_END);
            }
            let ended = self.line_bytes == 0;
            (self.after_cr, self.line_bytes, self.lines) = (false, 0, self.lines + 1);
            return Ok(ended);
        }
        if byte == b'\r' {
            self.after_cr = true;
            return if self.lines == 0 && self.line_bytes == 0 { Err(BAD_REQUEST_LINE) } else { Ok(false) };
        }
        if self.line_bytes == 0 && self.lines > 0 {
            if byte == b' ' || byte == b'\t' {
                return Err(FOLDED);
            }
            if self.lines > HEADERS_MAX {
                return Err(TOO_MANY);
            }
        }
        self.line_bytes += 1;
        let allowed = match self.lines {
            0 => (b' '..=b'~').contains(&byte),
            _ => byte == b'\t' || (byte >= b' ' && byte != 0x7f),
        };
        if allowed { Ok(false) } else { Err(BAD_BYTE) }
    }
}

/// A whole request head. Its `Debug` form shows no query and no header, for tokens stand there.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    head: Bytes,
    method: Range<usize>,
    path: Range<usize>,
    query: Option<Range<usize>>,
    minor_version: u8,
    headers: Vec<(Range<usize>, Range<usize>)>,
}

impl Request {
    /// Parses a head whose end and line ends [`HeadScan`] has found.
    pub(super) fn parse(head: Bytes) -> Result<Self, HttpError> {
        let line_end = find(&head, 0, b'\r').ok_or(BAD_REQUEST_LINE)?;
        let mut request = Self::parse_request_line(head, line_end)?;
        let mut start = line_end + 2;
        loop {
            let end = find(&request.head, start, b'\r').ok_or(BAD_HEADER)?;
            if end == start {
                break;
            }
            request.headers.push(parse_header_line(&request.head, start..end)?);
            start = end + 2;
        }
        request.check_headers()?;
        Ok(request)
    }

    fn parse_request_line(head: Bytes, line_end: usize) -> Result<Self, HttpError> {
        let method_end = find(&head[..line_end], 0, b' ').ok_or(BAD_REQUEST_LINE)?;
        let target_end = find(&head[..line_end], method_end + 1, b' ').ok_or(BAD_REQUEST_LINE)?;
        let minor_version = match &head[target_end + 1..line_end] {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            version if version.starts_with(b"HTTP/") && !version.contains(&b' ') => return Err(BAD_VERSION),
            _ => return Err(BAD_REQUEST_LINE),
        };
        let target = method_end + 1..target_end;
        if !is_token(&head[..method_end]) || target.is_empty() || head[target.clone()].contains(&b'#') {
            return Err(BAD_REQUEST_LINE);
        }
        let (path, query) = split_target(&head, target);
        Ok(Self { method: 0..method_end, path, query, minor_version, headers: Vec::new(), head })
    }

    fn check_headers(&self) -> Result<(), HttpError> {
        match self.header_lines("host").count() {
            0 if self.minor_version == 0 => {}
            1 => {}
            _ => return Err(BAD_HOST),
        }
        if SINGLE.iter().any(|name| self.header_lines(name).count() > 1) {
            return Err(DUPLICATE);
        }
        let coding = self.header("transfer-encoding");
        match self.header("content-length") {
            Some(_) if coding.is_some() => Err(BAD_BODY_LENGTH),
            Some(length) if length.is_empty() || !length.iter().all(u8::is_ascii_digit) => Err(BAD_BODY_LENGTH),
            None if coding.is_some() && self.minor_version == 0 => Err(BAD_BODY_LENGTH),
            _ => Ok(()),
        }
    }

    /// The method, in the case it was sent in.
    pub fn method(&self) -> &str {
        self.text(&self.method)
    }

    /// The path of the target as sent, not decoded (`*` for `OPTIONS *`; the authority for `CONNECT`).
    pub fn path(&self) -> &str {
        self.text(&self.path)
    }

    /// What follows the `?`, not decoded. Must not be logged.
    pub fn query(&self) -> Option<&str> {
        self.query.as_ref().map(|range| self.text(range))
    }

    /// 1 for HTTP/1.1, 0 for HTTP/1.0.
    pub fn minor_version(&self) -> u8 {
        self.minor_version
    }

    /// The first header of that name (in any case), without the white space around it.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.header_lines(name).next()
    }

    /// All headers of that name (in any case), in order.
    pub fn header_lines(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers().filter_map(move |(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }

    /// All headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (self.text(name), &self.head[value.clone()]))
    }

    /// The members of a comma-separated header, over all its lines, without white space; empty ones are left out.
    pub(super) fn list(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let members = self.header_lines(name).flat_map(|line| line.split(|byte| *byte == b','));
        members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
    }

    /// Whether a body follows the head.
    pub(super) fn has_body(&self) -> bool {
        let length = self.header("content-length");
        self.header("transfer-encoding").is_some() || length.is_some_and(|digits| digits.iter().any(|d| *d != b'0'))
    }

    /// Only for ranges that were checked to be ASCII.
    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.head[range.clone()]).unwrap_or_default()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Request {{ {} {}, {} headers }}", self.method(), self.path(), self.headers.len())
    }
}

/// Where path and query lie; the scheme and authority of an absolute target are passed over.
fn split_target(head: &[u8], target: Range<usize>) -> (Range<usize>, Option<Range<usize>>) {
    let mut start = target.start;
    for scheme in ["http://", "https://", "ws://", "wss://"] {
        let text = &head[target.clone()];
        if text.len() >= scheme.len() && text[..scheme.len()].eq_ignore_ascii_case(scheme.as_bytes()) {
            let authority = target.start + scheme.len();
            let length = head[authority..target.end].iter().position(|byte| matches!(byte, b'/' | b'?'));
            start = length.map_or(target.end, |length| authority + length);
        }
    }
    match find(&head[..target.end], start, b'?') {
        Some(mark) => (start..mark, Some(mark + 1..target.end)),
        None => (start..target.end, None),
    }
}

fn parse_header_line(head: &[u8], line: Range<usize>) -> Result<(Range<usize>, Range<usize>), HttpError> {
    let colon = find(&head[..line.end], line.start, b':').ok_or(BAD_HEADER)?;
    if !is_token(&head[line.start..colon]) {
        return Err(BAD_HEADER);
    }
    let value = &head[colon + 1..line.end];
    let leading = value.len() - value.trim_ascii_start().len();
    let start = colon + 1 + leading;
    Ok((line.start..colon, start..start + value.trim_ascii().len()))
}

fn find(bytes: &[u8], from: usize, wanted: u8) -> Option<usize> {
    bytes.get(from..)?.iter().position(|byte| *byte == wanted).map(|at| from + at)
}

/// A `token` of RFC 9110: a method or a header's name.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}
