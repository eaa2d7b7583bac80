//! UTF-8 checked piece by piece, refusing the first byte that no continuation can repair.

/// The state between two pieces: at most three bytes of a sequence that has begun.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    pending: [u8; 4],
    pending_len: u8,
}

impl Utf8 {
    /// Takes the next piece. False as soon as what has come so far cannot be the beginning of valid UTF-8.
    ///
    /// `std::str::from_utf8` does the work (it is fast for ASCII) and tells an unfinished sequence from a wrong one.
    #[must_use]
    pub(super) fn push(&mut self, mut piece: &[u8]) -> bool {
        while self.pending_len > 0 {
            let Some((first, rest)) = piece.split_first() else { return true };
            self.pending[usize::from(self.pending_len)] = *first;
            self.pending_len += 1;
            piece = rest;
            match std::str::from_utf8(&self.pending[..usize::from(self.pending_len)]) {
                Ok(_) => self.pending_len = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let unfinished = &piece[error.valid_up_to()..];
                self.pending[..unfinished.len()].copy_from_slice(unfinished);
                self.pending_len = unfinished.len() as u8;
                true
            }
        }
    }

    /// Whether the text may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.pending_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scalar_value_passes_byte_by_byte_and_every_prefix_is_unfinished() {
        for scalar in
            (0..=0x10_FFFF).step_by(7).filter_map(char::from_u32).chain(['\u{10FFFF}', '\u{D7FF}', '\u{E000}'])
        {
            let mut encoded = [0; 4];
            let encoded = scalar.encode_utf8(&mut encoded).as_bytes();
            let mut utf8 = Utf8::default();
            for (index, byte) in encoded.iter().enumerate() {
                assert!(utf8.push(std::slice::from_ref(byte)), "{scalar:?}");
                assert_eq!(utf8.is_complete(), index + 1 == encoded.len(), "{scalar:?}");
            }
        }
    }

    #[test]
    fn the_first_impossible_byte_is_refused() {
        // (bytes, how many of them can still be the beginning of something valid)
        let cases: [(&[u8], usize); 9] = [
            (b"\xC0\xAF", 0),         // overlong
            (b"\xE0\x9F\xBF", 1),     // overlong
            (b"\xED\xA0\x80", 1),     // surrogate
            (b"\xF0\x8F\xBF\xBF", 1), // overlong
            (b"\xF4\x90\x80\x80", 1), // above U+10FFFF
            (b"\xF5\x80\x80\x80", 0),
            (b"a\x80", 1), // continuation without a start
            (b"\xE2\x28\xA1", 1),
            (b"\xF0\x9F\x92a", 3),
        ];
        for (bytes, fine) in cases {
            let mut utf8 = Utf8::default();
            let accepted = bytes.iter().take_while(|byte| utf8.push(std::slice::from_ref(byte))).count();
            assert_eq!(accepted, fine, "{bytes:x?}");
            assert!(!Utf8::default().push(bytes), "{bytes:x?}");
        }
    }
}
