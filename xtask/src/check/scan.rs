//! Just enough of a Rust lexer to find functions and their lengths, where tests begin, and `unsafe`.

/// What one source file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Lines before its module of unit tests.
    pub lines: usize,
    /// Functions with a body before the unit tests: name, and lines from `fn` to the closing brace.
    pub functions: Vec<(String, usize)>,
    /// Lines, counted from 1, where the word `unsafe` stands as code.
    pub unsafe_lines: Vec<usize>,
}

/// Reads a file's text. Source that does not parse gives something, not an error: the compiler is the judge.
pub fn scan(text: &str) -> Source {
    let lines = lines_before_tests(text);
    let tokens = tokens(text);
    let unsafe_lines = tokens.iter().filter(|token| token.text == "unsafe").map(|token| token.line).collect();
    let functions = functions(&tokens).into_iter().filter(|function| function.line <= lines);
    Source { lines, functions: functions.map(|function| (function.name, function.lines)).collect(), unsafe_lines }
}

fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        if *line != "#[cfg(test)]" {
            continue;
        }
        let item = lines[index + 1..].iter().find(|next| !next.starts_with("#["));
        if item.is_some_and(|item| item.starts_with("mod ") && item.ends_with('{')) {
            return index;
        }
    }
    lines.len()
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

fn functions(tokens: &[Token<'_>]) -> Vec<Function> {
    let mut found = Vec::new();
    for (index, pair) in tokens.windows(2).enumerate() {
        let [keyword, name] = pair else { continue };
        if keyword.text != "fn" || !name.text.starts_with(|first: char| first.is_alphabetic() || first == '_') {
            continue;
        }
        if let Some(end) = end_of_body(&tokens[index + 2..]) {
            found.push(Function { name: name.text.to_owned(), line: keyword.line, lines: end - keyword.line + 1 });
        }
    }
    found
}

/// The line of the brace that closes the first body, or None for a signature that ends with a semicolon.
fn end_of_body(tokens: &[Token<'_>]) -> Option<usize> {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for token in tokens {
        match token.text {
            "(" | "[" => others += 1,
            ")" | "]" => others = others.saturating_sub(1),
            ";" if braces == 0 && others == 0 => return None,
            "{" => braces += 1,
            "}" if braces <= 1 => return Some(token.line),
            "}" => braces -= 1,
            _ => {}
        }
    }
    None
}

struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Words and single punctuation marks; comments, strings and character literals are left out.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let skipped = comment(rest).or_else(|| string(rest)).or_else(|| character(rest));
        let length = skipped.unwrap_or_else(|| word(rest));
        if skipped.is_none() && !bytes[at].is_ascii_whitespace() {
            tokens.push(Token { text: &rest[..length], line });
        }
        line += rest[..length].matches('\n').count();
        at += length;
    }
    tokens
}

fn word(rest: &str) -> usize {
    let length: usize = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').map(char::len_utf8).sum();
    if length > 0 { length } else { rest.chars().next().map_or(1, char::len_utf8) }
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (bytes, mut depth, mut at) = (rest.as_bytes(), 0_usize, 0);
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return Some(at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    Some(rest.len())
}

fn string(rest: &str) -> Option<usize> {
    let body = ["br", "cr", "r", "b", "c", ""].iter().find_map(|prefix| {
        let body = rest.strip_prefix(prefix)?;
        let raw = prefix.ends_with('r');
        let hashes = if raw { body.bytes().take_while(|byte| *byte == b'#').count() } else { 0 };
        body[hashes..].starts_with('"').then_some((raw, hashes, prefix.len() + hashes + 1))
    });
    let (raw, hashes, start) = body?;
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(rest[start..].find(&end).map_or(rest.len(), |found| start + found + end.len()));
    }
    Some(after_unescaped(rest, start, b'"'))
}

/// A character literal, but not a lifetime or a label.
fn character(rest: &str) -> Option<usize> {
    let inner =
        rest.strip_prefix('\'').map(|inner| (inner, 1)).or_else(|| rest.strip_prefix("b'").map(|inner| (inner, 2)));
    let (inner, start) = inner?;
    let mut characters = inner.chars();
    let first = characters.next()?;
    let closed = characters.next() == Some('\'');
    (first == '\\' || closed).then(|| after_unescaped(rest, start, b'\''))
}

fn after_unescaped(rest: &str, start: usize, end: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == end => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_and_tests_left_out() {
        let text = r##"//! A file.
trait T { fn without_body(&self) -> [u8; 4]; }
const S: &str = r#"fn not_this() { "unsafe" "#; // fn nor_this() {
fn first<'a>(x: &'a str) -> char {
    let brace = '{'; /* } /* } */ */
    if x == "}" { '\'' } else { brace }
}
impl X {
    fn second() where X: Sized { let f: fn(u8) -> u8 = |x| x; }
}
#[cfg(test)]
use std::fmt;
fn third() { unsafe { hint() } }

#[cfg(test)]
#[allow(dead_code)]
mod tests {
    fn long() {
    }
}
"##;
        let source = scan(text);
        assert_eq!(source.lines, 14);
        let expected = [("first", 4), ("second", 1), ("third", 1)].map(|(name, lines)| (name.to_owned(), lines));
        assert_eq!(source.functions, expected);
        assert_eq!(source.unsafe_lines, [13]);
    }

    #[test]
    fn no_text_brings_it_down() {
        for text in ["", "'", "b'", "r#\"", "\"\\", "/*", "fn", "fn x(", "é'é", "'\\u{e9}' fn a() {}", "#"] {
            scan(text);
        }
    }
}
