//! What a transaction's outcomes tell others: verdicts for the origins, publications for the log.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use roost_ports::delivery::{DeliveryBatch, DeliveryItem, Verdict, VerdictOutcome};
use roost_ports::log::Topic;
use roost_ports::store::{Incoming, Outcome, Replayed};
use roost_protocol::records::Endpoint;

use super::progress::Publication;

/// Verdicts, grouped by the process that waits for them, in the order in which they were given.
#[derive(Default)]
pub struct Verdicts {
    by_endpoint: HashMap<Endpoint, DeliveryBatch>,
}

impl Verdicts {
    /// Adds the verdict on a record, where somebody waits for it.
    pub fn add(&mut self, incoming: &Incoming, outcome: Option<VerdictOutcome>) {
        let (Ok(record), Some(outcome)) = (&incoming.content, outcome) else { return };
        let Some(origin) = &record.origin else { return };
        let verdict = Verdict {
            session: origin.session,
            request: origin.request,
            client_msg_id: record.client_msg_id,
            conversation_id: record.conversation_id(),
            outcome,
        };
        let item = DeliveryItem::Verdict(verdict);
        match self.by_endpoint.get_mut(&origin.endpoint) {
            Some(batch) => batch.items.push(item),
            None => {
                self.by_endpoint.insert(origin.endpoint.clone(), DeliveryBatch { items: vec![item] });
            }
        }
    }

    /// One batch per process.
    pub fn into_batches(self) -> Vec<(Endpoint, DeliveryBatch)> {
        self.by_endpoint.into_iter().collect()
    }
}

/// What an outcome publishes.
pub fn of_outcome(partition: u32, incoming: &Incoming, outcome: &Outcome) -> Option<Publication> {
    match outcome {
        Outcome::Numbered(record) => Some(Publication { topic: Topic::Deliver, payload: record.encode() }),
        Outcome::Duplicate(_) | Outcome::Rejected(_) => None,
        Outcome::DeadLetter { reason } => Some(dead_letter(partition, incoming, reason)),
    }
}

/// What a replayed record publishes again, and what its origin may still be waiting for.
pub fn of_replayed(
    partition: u32,
    incoming: &Incoming,
    replayed: &Replayed,
) -> (Option<Publication>, Option<VerdictOutcome>) {
    match replayed {
        Replayed::Numbered(record) => {
            let verdict = VerdictOutcome::Committed { seq: record.message.seq, time: record.message.time };
            (Some(Publication { topic: Topic::Deliver, payload: record.encode() }), Some(verdict))
        }
        Replayed::Rejected(verdict) => (None, Some(verdict.clone())),
        Replayed::DeadLetter { reason } => (Some(dead_letter(partition, incoming, reason)), None),
        Replayed::Missing => (None, None),
    }
}

/// The notice of a dead letter: where it stands and why, nothing of what it says.
fn dead_letter(partition: u32, incoming: &Incoming, reason: &str) -> Publication {
    let mut text = String::with_capacity(128 + reason.len());
    let position = incoming.position.0;
    let _ = write!(text, r#"{{"version":1,"partition":{partition},"position":{position},"digest":""#);
    for byte in incoming.digest {
        let _ = write!(text, "{byte:02x}");
    }
    text.push_str(r#"","reason":""#);
    for character in reason.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            plain => text.push(plain),
        }
    }
    text.push_str(r#""}"#);
    Publication { topic: Topic::DeadLetter, payload: Bytes::from(text) }
}

#[cfg(test)]
mod tests {
    use roost_ports::log::Position;
    use roost_ports::store::apply::Poison;

    use super::*;

    #[test]
    fn a_dead_letters_notice_holds_no_content() {
        let poison = Poison { reason: "a \"reason\"\n".into(), payload: Bytes::from_static(b"secret") };
        let incoming =
            Incoming { position: Position(4), next: Position(5), digest: [0xab; 16], content: Err(poison.clone()) };
        let publication = of_outcome(3, &incoming, &Outcome::DeadLetter { reason: poison.reason }).expect("a notice");
        assert_eq!(publication.topic, Topic::DeadLetter);
        let expected = concat!(
            r#"{"version":1,"partition":3,"position":4,"digest":"abababababababababababababababab","#,
            r#""reason":"a \"reason\"\u000a"}"#
        );
        assert_eq!(publication.payload, Bytes::from_static(expected.as_bytes()));
    }
}
