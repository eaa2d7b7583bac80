//! Removing a client's mask in place.

/// XORs `bytes` with `key`, whose first byte falls on the frame's payload byte 0; `offset` says how far into the payload
/// `bytes` begins. Eight bytes at a time, which the compiler widens to the vector width.
pub(super) fn unmask(bytes: &mut [u8], mut key: [u8; 4], offset: usize) {
    key.rotate_left(offset % 4);
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_offset_agrees_with_the_definition() {
        let key = [0x11, 0x22, 0x44, 0x88];
        for length in 0..70 {
            for offset in 0..9 {
                let plain: Vec<u8> = (0..length).map(|i| i as u8 * 3).collect();
                let mut fast = plain.clone();
                unmask(&mut fast, key, offset);
                let slow: Vec<u8> = plain.iter().enumerate().map(|(i, b)| b ^ key[(i + offset) % 4]).collect();
                assert_eq!(fast, slow, "length {length}, offset {offset}");
            }
        }
    }
}
