//! From what has arrived to a batch: reading records, and sharing a batch's room among the partitions of a lane.

use roost_ports::log::LogRecord;
use roost_ports::store::Incoming;
use roost_ports::store::apply::Poison;
use roost_protocol::records::{IngressRecord, RecordError};
use roost_protocol::{digest, partition};

/// How large a batch may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Records.
    pub records: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Room {
    /// Takes a record's room; none left means that it does not fit. The first record of a batch always fits.
    fn take(&mut self, bytes: usize, first: bool) -> bool {
        if !first && (self.records == 0 || self.bytes < bytes) {
            return false;
        }
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

/// A record was written by a newer build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Newer(pub u32);

/// Reads a record as it stands in the log. What does not decode, or stands in a partition that is not its
/// conversation's, is poison; a newer format is not.
pub fn read(record: &LogRecord, partition: u32, partitions: u32) -> Result<Incoming, Newer> {
    let poison = |reason: &str| Poison { reason: reason.to_owned(), payload: record.payload.clone() };
    let content = match IngressRecord::decode(&record.payload) {
        Ok(ingress) if partition::of(ingress.conversation_id(), partitions) != partition => {
            Err(poison("it stands in a partition that is not its conversation's"))
        }
        Ok(ingress) => Ok(ingress.into_owned()),
        Err(RecordError::Poison(reason)) => Err(poison(reason)),
        Err(RecordError::Newer(version)) => return Err(Newer(version)),
    };
    let digest = digest::of_record(&record.payload);
    Ok(Incoming { position: record.position, next: record.next, digest, content })
}

/// Reads as many of a partition's first records as there is room for, up to one of a newer format.
pub fn fill<'a>(
    records: impl Iterator<Item = &'a LogRecord>,
    partition: u32,
    partitions: u32,
    room: &mut Room,
    batch_is_empty: bool,
) -> Result<Vec<Incoming>, Newer> {
    let mut filled = Vec::new();
    for record in records {
        if !room.take(record.payload.len(), batch_is_empty && filled.is_empty()) {
            break;
        }
        match read(record, partition, partitions) {
            Ok(incoming) => filled.push(incoming),
            Err(newer) if filled.is_empty() => return Err(newer),
            // What stands before it goes first; then it is met again as the first one.
            Err(_) => break,
        }
    }
    Ok(filled)
}

/// The partitions of a lane in an order that begins elsewhere every time, so that none waits for ever behind a busy one.
pub fn rotated(mut partitions: Vec<u32>, turn: usize) -> Vec<u32> {
    if !partitions.is_empty() {
        let by = turn % partitions.len();
        partitions.rotate_left(by);
    }
    partitions
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use bytes::Bytes;
    use roost_ports::log::Position;
    use roost_protocol::records::Action;
    use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};

    use super::*;

    const PARTITIONS: u32 = 4;

    fn record(position: u64, payload: Bytes) -> LogRecord {
        LogRecord { position: Position(position), next: Position(position + 1), payload }
    }

    fn send() -> (u32, Bytes) {
        let conversation_id = ConversationId::new();
        let ingress = IngressRecord {
            actor: UserId::new(),
            device: DeviceId::new(),
            client_msg_id: ClientMsgId::new(),
            time: 1,
            origin: None,
            if_last_seq: None,
            action: Action::Send { conversation_id, content_type: Cow::Borrowed("t"), body: Cow::Borrowed(b"x") },
        };
        (partition::of(conversation_id, PARTITIONS), ingress.encode())
    }

    /// A record of a format that does not exist yet: the version is the low byte of the first field.
    fn newer() -> Bytes {
        let mut bytes = send().1.to_vec();
        bytes[1] = 200;
        Bytes::from(bytes)
    }

    #[test]
    fn damaged_and_misplaced_records_are_poison_and_newer_ones_are_not() {
        let (home, payload) = send();
        assert!(read(&record(0, payload.clone()), home, PARTITIONS).expect("readable").content.is_ok());
        let misplaced = read(&record(0, payload), (home + 1) % PARTITIONS, PARTITIONS).expect("readable");
        assert!(misplaced.content.is_err());
        let damaged = read(&record(0, Bytes::from_static(b"\x00")), home, PARTITIONS).expect("readable");
        assert_eq!(damaged.content.expect_err("poison").payload, Bytes::from_static(b"\x00"));
        assert_eq!(read(&record(0, newer()), home, PARTITIONS), Err(Newer(200)));
    }

    #[test]
    fn a_batch_ends_before_a_newer_record_and_within_its_room() {
        let (home, payload) = send();
        let records =
            [record(0, payload.clone()), record(1, payload.clone()), record(2, newer()), record(3, payload.clone())];
        let mut room = Room { records: 10, bytes: 10_000 };
        let filled = fill(records.iter(), home, PARTITIONS, &mut room, true).expect("two before it");
        assert_eq!(filled.len(), 2);
        assert_eq!(fill(records[2..].iter(), home, PARTITIONS, &mut room, true), Err(Newer(200)));
        let mut small = Room { records: 10, bytes: 1 };
        let filled = fill(records.iter(), home, PARTITIONS, &mut small, true).expect("one");
        assert_eq!(filled.len(), 1, "the first one fits always, the second does not");
        assert!(fill(records.iter(), home, PARTITIONS, &mut small, false).expect("none").is_empty());
    }

    #[test]
    fn every_partition_comes_first_in_its_turn() {
        assert_eq!(rotated(vec![1, 3, 5], 1), [3, 5, 1]);
        assert_eq!(rotated(vec![1, 3, 5], 5), [5, 1, 3]);
        assert_eq!(rotated(vec![], 5), Vec::<u32>::new());
    }
}
