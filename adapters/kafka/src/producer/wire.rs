//! Three requests of Kafka's protocol and their answers, as bytes: metadata, a producer's id, and produce.
//!
//! The versions are the newest without compact fields, which every broker since 1.0 and before the next break speaks.
//! See <https://kafka.apache.org/protocol> and, for batches, its chapter on the message format.

use bytes::{Buf, BufMut, Bytes};

/// An answer that does not read as the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker's answer does not read: {0}")]
pub(super) struct Unreadable(&'static str);

/// Which request, in which version: api key and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Api(i16, i16);

pub(super) const PRODUCE: Api = Api(0, 7);
pub(super) const METADATA: Api = Api(3, 4);
pub(super) const INIT_PRODUCER_ID: Api = Api(22, 1);

const CLIENT_ID: &str = "roost";
/// What a request waits for at most, at the broker, for the other replicas.
const REPLICAS_WITHIN_MS: i32 = 10_000;
const ACKS_ALL: i16 = -1;
const NO_TRANSACTION: i16 = -1;
const BATCH_VERSION: i8 = 2;
/// Of a batch before what its checksum covers: offset, length, leader's epoch, version, checksum.
const BATCH_HEAD_BYTES: usize = 8 + 4 + 4 + 1 + 4;
/// Where the length of a batch ends.
const LENGTH_END: usize = 8 + 4;

/// A producer's id and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProducerId {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

/// The records of one partition in one request.
pub(super) struct Batch<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) base_sequence: i32,
    pub(super) payloads: Vec<&'a Bytes>,
}

/// What became of one partition's batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Produced {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) error: i16,
    pub(super) base_offset: i64,
}

/// What a broker knows of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    /// By their ids, `host:port`.
    pub(super) brokers: Vec<(i32, String)>,
    pub(super) topics: Vec<TopicMetadata>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicMetadata {
    pub(super) name: String,
    pub(super) error: i16,
    /// Partition and its leader, -1 where it has none.
    pub(super) leaders: Vec<(i32, i32)>,
}

/// A whole request with its length before it.
pub(super) fn request(api: Api, correlation: i32, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.put_i32(0);
    bytes.put_i16(api.0);
    bytes.put_i16(api.1);
    bytes.put_i32(correlation);
    put_text(&mut bytes, CLIENT_ID);
    body(&mut bytes);
    let length = length_of(bytes.len() - 4);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

pub(super) fn metadata_body<'a>(bytes: &mut Vec<u8>, topics: impl ExactSizeIterator<Item = &'a str>) {
    bytes.put_i32(length_of(topics.len()));
    for topic in topics {
        put_text(bytes, topic);
    }
    let create_topics = false;
    bytes.put_u8(u8::from(create_topics));
}

pub(super) fn init_producer_id_body(bytes: &mut Vec<u8>) {
    bytes.put_i16(NO_TRANSACTION);
    // Of no meaning without transactions.
    bytes.put_i32(i32::MAX);
}

/// Batches in the order of their topics: one entry for each topic.
pub(super) fn produce_body(bytes: &mut Vec<u8>, producer: ProducerId, now_ms: i64, batches: &[Batch<'_>]) {
    bytes.put_i16(NO_TRANSACTION);
    bytes.put_i16(ACKS_ALL);
    bytes.put_i32(REPLICAS_WITHIN_MS);
    let topics = || batches.chunk_by(|one, other| one.topic == other.topic);
    bytes.put_i32(length_of(topics().count()));
    for of_topic in topics() {
        put_text(bytes, of_topic[0].topic);
        bytes.put_i32(length_of(of_topic.len()));
        for batch in of_topic {
            bytes.put_i32(batch.partition);
            let length_at = bytes.len();
            bytes.put_i32(0);
            put_batch(bytes, producer, now_ms, batch);
            let length = length_of(bytes.len() - length_at - 4);
            bytes[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
}

fn put_batch(bytes: &mut Vec<u8>, producer: ProducerId, now_ms: i64, batch: &Batch<'_>) {
    let begin = bytes.len();
    let count = length_of(batch.payloads.len());
    bytes.put_bytes(0, BATCH_HEAD_BYTES);
    bytes.put_i16(0); // attributes: not compressed, the producer's time
    bytes.put_i32(count - 1);
    bytes.put_i64(now_ms);
    bytes.put_i64(now_ms);
    bytes.put_i64(producer.id);
    bytes.put_i16(producer.epoch);
    bytes.put_i32(batch.base_sequence);
    bytes.put_i32(count);
    for (offset_delta, payload) in batch.payloads.iter().enumerate() {
        put_record(bytes, offset_delta as u64, payload);
    }
    let (length, checksum) =
        (length_of(bytes.len() - begin - LENGTH_END), crc32c::crc32c(&bytes[begin + BATCH_HEAD_BYTES..]));
    let mut head = &mut bytes[begin..begin + BATCH_HEAD_BYTES];
    head.put_i64(0); // the broker gives the offset
    head.put_i32(length);
    head.put_i32(-1); // and the leader's epoch
    head.put_i8(BATCH_VERSION);
    head.put_u32(checksum);
}

fn put_record(bytes: &mut Vec<u8>, offset_delta: u64, payload: &[u8]) {
    const NO_KEY: u8 = 1;
    let (attributes, time_delta, headers) = (0, 0, 0);
    let payload_length = payload.len() as u64;
    let length = 3 + varint_bytes(offset_delta) + varint_bytes(payload_length) + payload.len() + 1;
    put_varint(bytes, length as u64);
    bytes.put_u8(attributes);
    bytes.put_u8(time_delta);
    put_varint(bytes, offset_delta);
    bytes.put_u8(NO_KEY);
    put_varint(bytes, payload_length);
    bytes.put_slice(payload);
    bytes.put_u8(headers);
}

/// A number that is not negative, zigzag.
fn put_varint(bytes: &mut Vec<u8>, value: u64) {
    let mut rest = value << 1;
    while rest >= 0x80 {
        bytes.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.put_u8(rest as u8);
}

fn varint_bytes(value: u64) -> usize {
    let bits = 64 - ((value << 1) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.put_i16(i16::try_from(text.len()).expect("names are short"));
    bytes.put_slice(text.as_bytes());
}

fn length_of(length: usize) -> i32 {
    i32::try_from(length).expect("requests are bounded")
}

/// The number of the request that an answer belongs to.
pub(super) fn correlation(answer: &mut Bytes) -> Result<i32, Unreadable> {
    Reader(answer).i32()
}

pub(super) fn read_produced(answer: &mut Bytes) -> Result<Vec<Produced>, Unreadable> {
    let mut reader = Reader(answer);
    let mut produced = Vec::new();
    for _ in 0..reader.count()? {
        let topic = reader.text()?;
        for _ in 0..reader.count()? {
            let (partition, error, base_offset) = (reader.i32()?, reader.i16()?, reader.i64()?);
            let (_append_time, _log_start) = (reader.i64()?, reader.i64()?);
            produced.push(Produced { topic: topic.clone(), partition, error, base_offset });
        }
    }
    Ok(produced)
}

/// The id, or the error's code.
pub(super) fn read_producer_id(answer: &mut Bytes) -> Result<Result<ProducerId, i16>, Unreadable> {
    let mut reader = Reader(answer);
    let _throttle_ms = reader.i32()?;
    let error = reader.i16()?;
    let producer = ProducerId { id: reader.i64()?, epoch: reader.i16()? };
    Ok(if error == 0 { Ok(producer) } else { Err(error) })
}

pub(super) fn read_metadata(answer: &mut Bytes) -> Result<Metadata, Unreadable> {
    let mut reader = Reader(answer);
    let _throttle_ms = reader.i32()?;
    let mut brokers = Vec::new();
    for _ in 0..reader.count()? {
        let (id, host, port) = (reader.i32()?, reader.text()?, reader.i32()?);
        let _rack = reader.text_or_none()?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        brokers.push((id, format!("{host}:{port}")));
    }
    let (_cluster, _controller) = (reader.text_or_none()?, reader.i32()?);
    let mut topics = Vec::new();
    for _ in 0..reader.count()? {
        let (error, name) = (reader.i16()?, reader.text()?);
        let _is_internal = reader.bytes(1)?;
        let mut leaders = Vec::new();
        for _ in 0..reader.count()? {
            let (_error, partition, leader) = (reader.i16()?, reader.i32()?, reader.i32()?);
            for _replicas_then_those_in_sync in 0..2 {
                let count = reader.count()?;
                reader.bytes(count * 4)?;
            }
            leaders.push((partition, leader));
        }
        topics.push(TopicMetadata { name, error, leaders });
    }
    Ok(Metadata { brokers, topics })
}

struct Reader<'a>(&'a mut Bytes);

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> Result<Bytes, Unreadable> {
        if self.0.len() < count {
            return Err(Unreadable("it ends early"));
        }
        Ok(self.0.split_to(count))
    }

    fn i16(&mut self) -> Result<i16, Unreadable> {
        Ok(self.bytes(2)?.get_i16())
    }

    fn i32(&mut self) -> Result<i32, Unreadable> {
        Ok(self.bytes(4)?.get_i32())
    }

    fn i64(&mut self) -> Result<i64, Unreadable> {
        Ok(self.bytes(8)?.get_i64())
    }

    /// Of a list; none at all is an empty one. Every item has bytes of its own, so that a count beyond them ends early.
    fn count(&mut self) -> Result<usize, Unreadable> {
        Ok(usize::try_from(self.i32()?).unwrap_or(0))
    }

    fn text(&mut self) -> Result<String, Unreadable> {
        self.text_or_none()?.ok_or(Unreadable("a text is missing"))
    }

    fn text_or_none(&mut self) -> Result<Option<String>, Unreadable> {
        let Ok(length) = usize::try_from(self.i16()?) else { return Ok(None) };
        let text = String::from_utf8(self.bytes(length)?.into()).map_err(|_| Unreadable("a text is not UTF-8"))?;
        Ok(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_laid_out_as_the_protocol_says() {
        let (one, two) = (Bytes::from_static(b"first"), Bytes::from(vec![b'x'; 100]));
        let batch = Batch { topic: "t", partition: 3, base_sequence: 7, payloads: vec![&one, &two] };
        let mut bytes = Vec::new();
        put_batch(&mut bytes, ProducerId { id: 11, epoch: 2 }, 1_000, &batch);
        let mut read = &bytes[..];
        assert_eq!((read.get_i64(), read.get_i32() as usize), (0, bytes.len() - LENGTH_END));
        assert_eq!((read.get_i32(), read.get_i8()), (-1, 2));
        assert_eq!(read.get_u32(), crc32c::crc32c(read), "the checksum covers what follows it");
        assert_eq!((read.get_i16(), read.get_i32(), read.get_i64(), read.get_i64()), (0, 1, 1_000, 1_000));
        assert_eq!((read.get_i64(), read.get_i16(), read.get_i32(), read.get_i32()), (11, 2, 7, 2));
        // Length 11 and 107, as zigzag: the second takes two bytes, and so does the length of its value.
        assert_eq!(&read[..12], b"\x16\x00\x00\x00\x01\x0afirst\x00"[..].get(..12).unwrap());
        assert_eq!(&read[12..19], b"\xd6\x01\x00\x00\x02\x01\xc8");
        assert_eq!(read.len(), 12 + 2 + 107);
    }

    #[test]
    fn numbers_take_as_many_bytes_as_are_said() {
        for value in [0, 1, 63, 64, 8_191, 8_192, 1_048_575, 1_048_576, u64::from(u32::MAX)] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_bytes(value), "{value}");
        }
    }

    #[test]
    fn an_answer_cut_anywhere_is_an_error_and_no_panic() {
        let mut answer = Vec::new();
        answer.put_i32(1);
        put_text(&mut answer, "t");
        answer.put_i32(1);
        answer.put_i32(3);
        answer.put_i16(0);
        answer.put_i64(42);
        answer.put_i64(-1);
        answer.put_i64(0);
        let whole = read_produced(&mut Bytes::from(answer.clone())).expect("readable");
        assert_eq!(whole, [Produced { topic: "t".into(), partition: 3, error: 0, base_offset: 42 }]);
        for length in 0..answer.len() {
            assert!(read_produced(&mut Bytes::copy_from_slice(&answer[..length])).is_err(), "{length}");
        }
    }
}
