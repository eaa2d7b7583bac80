//! The little of protobuf that we need by hand: a reader that borrows, and a writer whose length is known beforehand.

use self::WireType::{Group, GroupEnd, LengthDelimited, SixtyFour, ThirtyTwo, Varint};

/// Unknown groups may nest this deep before the payload is refused; we use none.
const GROUP_DEPTH_MAX: u32 = 16;

/// Why bytes are not protobuf, or not the message expected.
pub(super) type Malformed = &'static str;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WireType {
    Varint,
    SixtyFour,
    LengthDelimited,
    Group,
    GroupEnd,
    ThirtyTwo,
}

/// The value of one field, as far as its wire type tells.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value<'a> {
    Varint(u64),
    SixtyFour,
    Bytes(&'a [u8]),
    /// A group, skipped.
    Group,
    ThirtyTwo(u32),
}

impl<'a> Value<'a> {
    pub(super) fn varint(self) -> Result<u64, Malformed> {
        match self {
            Value::Varint(value) => Ok(value),
            _ => Err("a field has the wrong wire type"),
        }
    }

    /// As protobuf wants it: the low 32 bits.
    pub(super) fn varint32(self) -> Result<u32, Malformed> {
        self.varint().map(|value| value as u32)
    }

    pub(super) fn fixed32(self) -> Result<u32, Malformed> {
        match self {
            Value::ThirtyTwo(value) => Ok(value),
            _ => Err("a field has the wrong wire type"),
        }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err("a field has the wrong wire type"),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a text field is not UTF-8")
    }

    pub(super) fn message(self) -> Result<Reader<'a>, Malformed> {
        self.bytes().map(Reader::new)
    }
}

/// Reads the fields of one message in their order on the wire. Never allocates; every length is checked against what
/// is there.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and value, or nothing at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = self.key()?;
        let value = match wire_type {
            Group => {
                self.skip_group(number, GROUP_DEPTH_MAX)?;
                Value::Group
            }
            GroupEnd => return Err("a group ends that did not begin"),
            simple => self.simple(simple)?,
        };
        Ok(Some((number, value)))
    }

    fn key(&mut self) -> Result<(u32, WireType), Malformed> {
        let key = u32::try_from(self.varint()?).map_err(|_| "a field number is out of range")?;
        let wire_type = match key & 7 {
            0 => Varint,
            1 => SixtyFour,
            2 => LengthDelimited,
            3 => Group,
            4 => GroupEnd,
            5 => ThirtyTwo,
            _ => return Err("a wire type does not exist"),
        };
        match key >> 3 {
            0 => Err("a field number is 0"),
            number => Ok((number, wire_type)),
        }
    }

    fn simple(&mut self, wire_type: WireType) -> Result<Value<'a>, Malformed> {
        Ok(match wire_type {
            Varint => Value::Varint(self.varint()?),
            SixtyFour => {
                self.take(8)?;
                Value::SixtyFour
            }
            LengthDelimited => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length goes beyond the end")?;
                Value::Bytes(self.take(length)?)
            }
            ThirtyTwo => {
                let mut bytes = [0u8; 4];
                bytes.copy_from_slice(self.take(4)?);
                Value::ThirtyTwo(u32::from_le_bytes(bytes))
            }
            Group | GroupEnd => unreachable!("groups are handled by the callers"),
        })
    }

    fn skip_group(&mut self, number: u32, depth_left: u32) -> Result<(), Malformed> {
        if depth_left == 0 {
            return Err("groups nest too deep");
        }
        loop {
            match self.key()? {
                (inner, GroupEnd) if inner == number => return Ok(()),
                (_, GroupEnd) => return Err("a group ends that did not begin"),
                (inner, Group) => self.skip_group(inner, depth_left - 1)?,
                (_, simple) => {
                    self.simple(simple)?;
                }
            }
        }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            if index == 9 && byte > 1 {
                return Err("a number does not fit in 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err("a number does not end")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("a length goes beyond the end")?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Where a message is written to: bytes, or just their count.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts what would be written.
struct Length(usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// A message that can write its fields: once to learn the length, once for the bytes.
pub(super) trait Fields {
    fn write(&self, out: &mut impl Sink);
}

/// The exact length of a message.
pub(super) fn length_of(message: &impl Fields) -> usize {
    let mut length = Length(0);
    message.write(&mut length);
    length.0
}

/// A message in one allocation of exactly its size.
pub(super) fn encode(message: &impl Fields) -> Vec<u8> {
    let mut out = Vec::with_capacity(length_of(message));
    message.write(&mut out);
    out
}

/// Writes one field. The names without `always` leave out the default value, as proto3 does for fields without
/// presence.
pub(super) fn put_varint(out: &mut impl Sink, number: u32, value: u64) {
    if value != 0 {
        put_varint_always(out, number, value);
    }
}

pub(super) fn put_varint_always(out: &mut impl Sink, number: u32, value: u64) {
    key(out, number, 0);
    varint(out, value);
}

pub(super) fn put_bytes(out: &mut impl Sink, number: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_bytes_always(out, number, bytes);
    }
}

pub(super) fn put_bytes_always(out: &mut impl Sink, number: u32, bytes: &[u8]) {
    key(out, number, 2);
    varint(out, bytes.len() as u64);
    out.put(bytes);
}

pub(super) fn put_fixed32(out: &mut impl Sink, number: u32, value: u32) {
    key(out, number, 5);
    out.put(&value.to_le_bytes());
}

pub(super) fn put_message(out: &mut impl Sink, number: u32, message: &impl Fields) {
    key(out, number, 2);
    varint(out, length_of(message) as u64);
    message.write(out);
}

fn key(out: &mut impl Sink, number: u32, wire_type: u32) {
    varint(out, u64::from(number << 3 | wire_type));
}

fn varint(out: &mut impl Sink, mut value: u64) {
    let mut bytes = [0u8; 10];
    let mut length = 0;
    loop {
        bytes[length] = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            break;
        }
        bytes[length] |= 0x80;
        length += 1;
    }
    out.put(&bytes[..=length]);
}
