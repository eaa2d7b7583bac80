//! A row of the file: the records that one transaction put into one partition, under the position of the first.

use bytes::{BufMut, Bytes};
use roost_ports::log::Topic;

/// The bits of a key that hold the partition.
pub const PARTITION_BITS: u32 = 16;
const POSITION_BITS: u32 = 45;
const LENGTH_BYTES: usize = 4;

/// A row holds this many bytes before another one is begun, so that reading a little never reads much.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// And so many records, so that deletion, which takes whole rows, stays close to what is consumed.
pub const CHUNK_RECORDS_MAX: u64 = 128;

/// The number of a topic in keys. Frozen: it stands in files.
pub const fn topic_number(topic: Topic) -> u32 {
    match topic {
        Topic::Ingress => 0,
        Topic::Deliver => 1,
        Topic::DeadLetter => 2,
    }
}

/// The key of a chunk: topic, partition, position of its first record.
pub fn key(topic: Topic, partition: u32, position: u64) -> i64 {
    assert!(position < 1 << POSITION_BITS && partition < 1 << PARTITION_BITS, "{partition}, {position}");
    let place = (u64::from(topic_number(topic)) << PARTITION_BITS) | u64::from(partition);
    ((place << POSITION_BITS) | position) as i64
}

/// The last key that a partition can have.
pub fn last_key(topic: Topic, partition: u32) -> i64 {
    key(topic, partition, (1 << POSITION_BITS) - 1)
}

/// The position in a key.
pub fn position(key: i64) -> u64 {
    (key as u64) & ((1 << POSITION_BITS) - 1)
}

/// Adds a record to a chunk's bytes.
pub fn put(chunk: &mut Vec<u8>, payload: &[u8]) {
    chunk.put_u32_le(u32::try_from(payload.len()).expect("a record is far below 4 GiB"));
    chunk.put_slice(payload);
}

/// The records of a chunk, sharing its bytes; `None` where the row is damaged.
pub fn split(mut chunk: Bytes, records: usize) -> Option<Vec<Bytes>> {
    let mut payloads = Vec::with_capacity(records.min(chunk.len() / LENGTH_BYTES));
    while !chunk.is_empty() {
        if chunk.len() < LENGTH_BYTES {
            return None;
        }
        let length = chunk.split_to(LENGTH_BYTES);
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if chunk.len() < length {
            return None;
        }
        payloads.push(chunk.split_to(length));
    }
    (payloads.len() == records).then_some(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_topic_then_partition_then_position() {
        let mut keys = Vec::new();
        for topic in Topic::ALL {
            for partition in [0, 1, 47, (1 << PARTITION_BITS) - 1] {
                for at in [0, 1, 1 << 40] {
                    assert_eq!(position(key(topic, partition, at)), at);
                    keys.push(key(topic, partition, at));
                }
                keys.push(last_key(topic, partition));
            }
        }
        assert!(keys.is_sorted() && keys[0] >= 0, "{keys:?}");
    }

    #[test]
    fn a_chunk_gives_back_its_records_and_a_damaged_one_gives_none() {
        let mut chunk = Vec::new();
        for payload in [b"one".as_slice(), b"", b"three"] {
            put(&mut chunk, payload);
        }
        let bytes = Bytes::from(chunk);
        assert_eq!(split(bytes.clone(), 3).expect("whole"), ["one", "", "three"]);
        assert_eq!(split(bytes.clone(), 2), None);
        for cut in 1..bytes.len() {
            assert_eq!(split(bytes.slice(..cut), 3), None);
        }
    }
}
