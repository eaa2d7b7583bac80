//! The receiver's side of the wire: parts become batches again.

use roost_ports::delivery::{DeliveryBatch, OUTSTANDING_BYTES_MAX};

use crate::proto;
use crate::wire::{ItemParts, WrongItem};

/// The batch that is coming in on a stream. Parts go in, whole batches come out.
#[derive(Default)]
pub(crate) struct Assembly {
    batch: u64,
    open: bool,
    items: Vec<ItemParts>,
    bytes: usize,
    wrong: Option<WrongItem>,
}

/// A batch whose parts are all there; or what is wrong in it, which is the batch's own failure and not the stream's.
pub(crate) type Assembled = (u64, Result<DeliveryBatch, WrongItem>);

/// The stream cannot go on: its sender does not keep to the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BrokenStream {
    #[error("batches are not numbered one after another")]
    Number,
    #[error("a batch is larger than may be outstanding")]
    Size,
}

impl Assembly {
    /// Takes the next part; the batch, if this was its last.
    pub(crate) fn push(&mut self, part: proto::Part, part_bytes: usize) -> Result<Option<Assembled>, BrokenStream> {
        let expected = if self.open { self.batch } else { self.batch + 1 };
        if part.batch != expected {
            return Err(BrokenStream::Number);
        }
        self.batch = part.batch;
        self.open = part.more;
        self.bytes += part_bytes;
        // Twice: items are a little larger on the wire than they count.
        if self.bytes > 2 * OUTSTANDING_BYTES_MAX {
            return Err(BrokenStream::Size);
        }
        for item in part.items {
            if self.wrong.is_none() {
                self.wrong = self.item(item).err();
            }
        }
        Ok(if part.more { None } else { Some((part.batch, self.finish())) })
    }

    fn item(&mut self, item: proto::Item) -> Result<(), WrongItem> {
        if item.continues {
            return self.items.last_mut().ok_or(WrongItem::Continues)?.continues(item);
        }
        self.items.push(ItemParts::first(item)?);
        Ok(())
    }

    fn finish(&mut self) -> Result<DeliveryBatch, WrongItem> {
        self.bytes = 0;
        let items = std::mem::take(&mut self.items);
        match self.wrong.take() {
            Some(wrong) => Err(wrong),
            None => Ok(DeliveryBatch { items: items.into_iter().map(ItemParts::finish).collect::<Result<_, _>>()? }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use prost::Message;
    use roost_ports::delivery::{Audience, DeliveryItem, Verdict, VerdictOutcome};
    use roost_protocol::{ClientMsgId, ConversationId, ErrorCode, Incarnation, SessionId, UserId};

    use super::*;
    use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_SHARED};
    use crate::proto::from_sender::Frame;
    use crate::wire::{Packer, TooLarge, parts};

    fn sessions(count: u32) -> Arc<[SessionId]> {
        (0..count).map(|slot| SessionId::new(Incarnation(1), 0, slot, 0)).collect()
    }

    fn every_kind() -> DeliveryBatch {
        let conversation_id = ConversationId::new();
        let verdict = |session, outcome| {
            let client_msg_id = ClientMsgId::new();
            DeliveryItem::Verdict(Verdict { session, request: 7, client_msg_id, conversation_id, outcome })
        };
        let rejected = VerdictOutcome::Rejected { code: ErrorCode::NotFound, message: "no".into() };
        let users: Arc<[UserId]> = (0..100_000).map(|_| UserId::new()).collect();
        DeliveryBatch {
            items: vec![
                verdict(None, VerdictOutcome::Committed { seq: 1, time: 2 }),
                verdict(Some(SessionId::new(Incarnation(1), 0, 1, 2)), rejected),
                DeliveryItem::Message { audience: Audience::Sessions(sessions(70_000)), record: Bytes::from("record") },
                DeliveryItem::Message { audience: Audience::Sessions(sessions(0)), record: Bytes::new() },
                DeliveryItem::Heads { audience: Audience::Users(users), conversation_id, last_seq: 9 },
                DeliveryItem::Heads { audience: Audience::Everyone, conversation_id, last_seq: 0 },
                DeliveryItem::SyncAll,
            ],
        }
    }

    fn through_the_wire(assembly: &mut Assembly, parts: Vec<proto::Part>) -> Result<Option<Assembled>, BrokenStream> {
        let mut packer = Packer::default();
        parts.into_iter().for_each(|part| packer.push(part));
        let mut last = None;
        for frame in packer.finish() {
            let bytes = frame.encode_to_vec();
            assert!(bytes.len() <= FRAME_BYTES_MAX, "{} bytes", bytes.len());
            let frame = proto::FromSender::decode(Bytes::from(bytes)).expect("decodes");
            let Some(Frame::Parts(frame)) = frame.frame else { panic!("parts") };
            for part in frame.parts {
                let part_bytes = part.encoded_len();
                last = assembly.push(part, part_bytes)?;
            }
        }
        Ok(last)
    }

    #[test]
    fn every_kind_of_item_comes_back_however_large_its_audience() {
        let batch = every_kind();
        let parts = parts(1, batch.clone()).expect("fits");
        assert!(parts.len() >= 2, "100,000 users do not fit in one frame");
        assert_eq!(through_the_wire(&mut Assembly::default(), parts), Ok(Some((1, Ok(batch)))));
    }

    #[test]
    fn small_batches_share_frames() {
        let mut packer = Packer::default();
        for number in 1..=1000 {
            let record = Bytes::from(vec![0; 200]);
            let item = DeliveryItem::Message { audience: Audience::Sessions(sessions(1)), record };
            parts(number, DeliveryBatch { items: vec![item] }).expect("fits").into_iter().for_each(|p| packer.push(p));
        }
        let frames = packer.finish();
        assert!(frames.iter().all(|frame| frame.encoded_len() <= FRAME_BYTES_SHARED + 16));
        assert!((2..10).contains(&frames.len()), "{} frames", frames.len());
    }

    #[test]
    fn an_empty_batch_is_a_batch() {
        let parts = parts(1, DeliveryBatch::default()).expect("fits");
        let back = through_the_wire(&mut Assembly::default(), parts);
        assert_eq!(back, Ok(Some((1, Ok(DeliveryBatch::default())))));
    }

    #[test]
    fn an_item_over_the_limit_is_refused_before_it_is_sent() {
        let record = Bytes::from(vec![0; FRAME_BYTES_MAX]);
        let item = DeliveryItem::Message { audience: Audience::Everyone, record };
        let refused: Result<_, TooLarge> = parts(1, DeliveryBatch { items: vec![item] });
        assert!(refused.is_err());
    }

    #[test]
    fn a_batch_that_is_not_understood_fails_alone() {
        let mut assembly = Assembly::default();
        let unknown = proto::Part { batch: 1, more: false, items: vec![proto::Item::default()] };
        assert_eq!(assembly.push(unknown, 1), Ok(Some((1, Err(WrongItem::Content)))));
        let continues = proto::Item { continues: true, ..proto::Item::default() };
        let orphan = proto::Part { batch: 2, more: false, items: vec![continues] };
        assert_eq!(assembly.push(orphan, 1), Ok(Some((2, Err(WrongItem::Continues)))));
        let audience = proto::Audience { whom: Some(proto::audience::Whom::Users(Bytes::from(vec![0; 17]))) };
        let content = proto::item::Content::Record(Bytes::new());
        let item = proto::Item { continues: false, audience: Some(audience), content: Some(content) };
        let odd = proto::Part { batch: 3, more: false, items: vec![item] };
        assert_eq!(assembly.push(odd, 1), Ok(Some((3, Err(WrongItem::Id)))));
        let good = proto::Part { batch: 4, more: false, items: Vec::new() };
        assert_eq!(assembly.push(good, 1), Ok(Some((4, Ok(DeliveryBatch::default())))));
    }

    #[test]
    fn a_stream_with_a_hole_or_an_endless_batch_is_broken() {
        let part = |batch, more| proto::Part { batch, more, items: Vec::new() };
        assert_eq!(Assembly::default().push(part(2, false), 1), Err(BrokenStream::Number));
        let mut assembly = Assembly::default();
        assert_eq!(assembly.push(part(1, true), 1), Ok(None));
        assert_eq!(assembly.push(part(2, false), 1), Err(BrokenStream::Number));
        let mut assembly = Assembly::default();
        let endless = (0..64).map(|_| assembly.push(part(1, true), FRAME_BYTES_MAX)).find_map(Result::err);
        assert_eq!(endless, Some(BrokenStream::Size));
    }
}
