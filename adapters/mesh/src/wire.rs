//! Batches as they travel: a batch becomes parts, each small enough for a frame, and items come back from the wire.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use roost_ports::delivery::{
    Audience, DeliveryBatch, DeliveryError, DeliveryItem, OUTSTANDING_BYTES_MAX, Verdict, VerdictOutcome,
};
use roost_protocol::{ClientMsgId, ConversationId, ErrorCode, SessionId, UserId};

use crate::limits::{
    ACK_WORDS_BYTES_MAX, AUDIENCE_BYTES_MAX, BATCH_BYTES_MIN, FRAME_BYTES_MAX, FRAME_BYTES_SHARED, FRAME_PARTS_MAX,
    PART_BYTES_MAX,
};
use crate::proto;
use crate::proto::from_sender::Frame;
use crate::proto::item::Content;

/// What a batch counts against the bytes outstanding.
pub(crate) fn outstanding_bytes(batch: &DeliveryBatch) -> usize {
    batch.bytes().max(BATCH_BYTES_MIN)
}

/// An item that fits in no frame: its record is over the protocol's limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an item of {0} bytes is over the mesh's limit")]
pub(crate) struct TooLarge(usize);

/// Cuts a batch into its parts: one, unless it is larger than a frame.
pub(crate) fn parts(number: u64, batch: DeliveryBatch) -> Result<Vec<proto::Part>, TooLarge> {
    let mut parts = Vec::with_capacity(1);
    let mut part = proto::Part { batch: number, more: false, items: Vec::with_capacity(batch.items.len()) };
    let mut part_bytes = 16;
    for item in batch.items {
        for piece in pieces(item) {
            // A key of one byte and a length of at most four.
            let piece_bytes = piece.encoded_len() + 5;
            if piece_bytes + 16 > PART_BYTES_MAX {
                return Err(TooLarge(piece_bytes));
            }
            if part_bytes + piece_bytes > PART_BYTES_MAX {
                let next = proto::Part { batch: number, more: false, items: Vec::new() };
                parts.push(proto::Part { more: true, ..std::mem::replace(&mut part, next) });
                part_bytes = 16;
            }
            part_bytes += piece_bytes;
            part.items.push(piece);
        }
    }
    parts.push(part);
    Ok(parts)
}

/// Puts parts into frames, in their order: small ones share a frame.
#[derive(Default)]
pub(crate) struct Packer {
    frames: Vec<proto::FromSender>,
    parts: Vec<proto::Part>,
    bytes: usize,
}

impl Packer {
    /// Appends a part.
    pub(crate) fn push(&mut self, part: proto::Part) {
        let bytes = part.encoded_len() + 5;
        debug_assert!(bytes <= FRAME_BYTES_MAX);
        if !self.parts.is_empty() && (self.bytes + bytes > FRAME_BYTES_SHARED || self.parts.len() >= FRAME_PARTS_MAX) {
            self.close();
        }
        self.bytes += bytes;
        self.parts.push(part);
    }

    /// All frames.
    pub(crate) fn finish(mut self) -> Vec<proto::FromSender> {
        if !self.parts.is_empty() {
            self.close();
        }
        self.frames
    }

    fn close(&mut self) {
        self.bytes = 0;
        let parts = std::mem::take(&mut self.parts);
        self.frames.push(proto::FromSender { frame: Some(Frame::Parts(proto::Parts { parts })) });
    }
}

/// What is not understood in an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrongItem {
    #[error("an item has no content that this version knows")]
    Content,
    #[error("an item has no audience that this version knows")]
    Audience,
    #[error("an item continues nothing")]
    Continues,
    #[error("an id is not 16 bytes long")]
    Id,
}

/// An item as it comes together; its audience may continue.
pub(crate) struct ItemParts {
    pub(crate) content: Content,
    pub(crate) audience: AudienceParts,
}

/// An audience as it comes together.
#[derive(Debug, PartialEq)]
pub(crate) enum AudienceParts {
    Absent,
    Sessions(Vec<SessionId>),
    Users(Vec<UserId>),
    Everyone,
}

impl ItemParts {
    /// The item of its first piece.
    pub(crate) fn first(item: proto::Item) -> Result<Self, WrongItem> {
        let content = item.content.ok_or(WrongItem::Content)?;
        Ok(Self { content, audience: AudienceParts::read(item.audience)? })
    }

    /// Adds a further piece.
    pub(crate) fn continues(&mut self, item: proto::Item) -> Result<(), WrongItem> {
        match (&mut self.audience, AudienceParts::read(item.audience)?) {
            (AudienceParts::Sessions(all), AudienceParts::Sessions(more)) => all.extend(more),
            (AudienceParts::Users(all), AudienceParts::Users(more)) => all.extend(more),
            _ => return Err(WrongItem::Continues),
        }
        Ok(())
    }

    /// The whole item.
    pub(crate) fn finish(self) -> Result<DeliveryItem, WrongItem> {
        Ok(match self.content {
            Content::Verdict(verdict) => DeliveryItem::Verdict(read_verdict(verdict)?),
            Content::Record(record) => DeliveryItem::Message { audience: self.audience.finish()?, record },
            Content::Heads(heads) => DeliveryItem::Heads {
                audience: self.audience.finish()?,
                conversation_id: ConversationId::from_slice(&heads.conversation_id).map_err(|_| WrongItem::Id)?,
                last_seq: heads.last_seq,
            },
            Content::SyncAll(_) => DeliveryItem::SyncAll,
        })
    }
}

impl AudienceParts {
    fn read(audience: Option<proto::Audience>) -> Result<Self, WrongItem> {
        use crate::proto::audience::Whom;
        let Some(audience) = audience else { return Ok(Self::Absent) };
        Ok(match audience.whom.ok_or(WrongItem::Audience)? {
            Whom::Sessions(packed) => Self::Sessions(unpack(&packed, |id| SessionId::from_slice(id).ok())?),
            Whom::Users(packed) => Self::Users(unpack(&packed, |id| UserId::from_slice(id).ok())?),
            Whom::Everyone(_) => Self::Everyone,
        })
    }

    fn finish(self) -> Result<Audience, WrongItem> {
        match self {
            Self::Absent => Err(WrongItem::Audience),
            Self::Sessions(ids) => Ok(Audience::Sessions(ids.into())),
            Self::Users(ids) => Ok(Audience::Users(ids.into())),
            Self::Everyone => Ok(Audience::Everyone),
        }
    }
}

/// What the receiver says about a batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// The sink's answer.
    BySink(Result<(), DeliveryError>),
    /// The incarnation is over: the sink has not seen the batch, and will see none of its successors.
    Over,
}

/// An answer as it travels.
pub(crate) fn write_ack(batch: u64, answer: Answer) -> proto::Ack {
    let (outcome, words) = match answer {
        Answer::Over => (proto::Outcome::Over, String::new()),
        Answer::BySink(Ok(())) => (proto::Outcome::Ok, String::new()),
        Answer::BySink(Err(DeliveryError::Gone)) => (proto::Outcome::Gone, String::new()),
        Answer::BySink(Err(DeliveryError::Busy)) => (proto::Outcome::Busy, String::new()),
        Answer::BySink(Err(DeliveryError::Unavailable(mut words))) => {
            words.truncate(words.floor_char_boundary(ACK_WORDS_BYTES_MAX));
            (proto::Outcome::Failed, words)
        }
    };
    proto::Ack { batch, outcome: outcome.into(), words }
}

/// An answer as it came. What a later version says and this one does not know is no success.
pub(crate) fn read_ack(ack: proto::Ack) -> Answer {
    Answer::BySink(match proto::Outcome::try_from(ack.outcome) {
        Ok(proto::Outcome::Over) => return Answer::Over,
        Ok(proto::Outcome::Ok) => Ok(()),
        Ok(proto::Outcome::Gone) => Err(DeliveryError::Gone),
        Ok(proto::Outcome::Busy) => Err(DeliveryError::Busy),
        Ok(proto::Outcome::Failed) => Err(DeliveryError::Unavailable(ack.words)),
        Ok(proto::Outcome::Unspecified) | Err(_) => {
            Err(DeliveryError::Unavailable("the endpoint's answer is not understood".into()))
        }
    })
}

/// An item in one piece, or with its audience in several.
fn pieces(item: DeliveryItem) -> impl Iterator<Item = proto::Item> {
    let (audience, content) = match item {
        DeliveryItem::Verdict(verdict) => (None, Content::Verdict(write_verdict(verdict))),
        DeliveryItem::Message { audience, record } => (Some(audience), Content::Record(record)),
        DeliveryItem::Heads { audience, conversation_id, last_seq } => {
            let conversation_id = Bytes::copy_from_slice(conversation_id.as_bytes());
            (Some(audience), Content::Heads(proto::Heads { conversation_id, last_seq }))
        }
        DeliveryItem::SyncAll => (None, Content::SyncAll(true)),
    };
    let (first, rest) = match audience {
        None => (None, Vec::new()),
        Some(audience) => {
            let mut pieces = audience_pieces(&audience);
            let rest = pieces.split_off(1);
            (pieces.pop(), rest)
        }
    };
    let first = proto::Item { continues: false, audience: first, content: Some(content) };
    let rest =
        rest.into_iter().map(|audience| proto::Item { continues: true, audience: Some(audience), content: None });
    std::iter::once(first).chain(rest)
}

/// At least one piece, also of nobody.
fn audience_pieces(audience: &Audience) -> Vec<proto::Audience> {
    use crate::proto::audience::Whom;
    let cut = |packed: Bytes, whom: fn(Bytes) -> Whom| {
        let starts = (0..packed.len().max(1)).step_by(AUDIENCE_BYTES_MAX);
        let piece = |start: usize| packed.slice(start..packed.len().min(start + AUDIENCE_BYTES_MAX));
        starts.map(|start| proto::Audience { whom: Some(whom(piece(start))) }).collect()
    };
    match audience {
        Audience::Sessions(ids) => cut(pack(ids.iter().map(|id| id.to_bytes())), Whom::Sessions),
        Audience::Users(ids) => cut(pack(ids.iter().map(|id| *id.as_bytes())), Whom::Users),
        Audience::Everyone => vec![proto::Audience { whom: Some(Whom::Everyone(true)) }],
    }
}

fn pack(ids: impl ExactSizeIterator<Item = [u8; 16]>) -> Bytes {
    let mut packed = BytesMut::with_capacity(ids.len() * 16);
    ids.for_each(|id| packed.put_slice(&id));
    packed.freeze()
}

fn unpack<T>(packed: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, WrongItem> {
    packed.chunks(16).map(|id| read(id).ok_or(WrongItem::Id)).collect()
}

fn write_verdict(verdict: Verdict) -> proto::Verdict {
    use crate::proto::verdict::Outcome;
    proto::Verdict {
        session: verdict.session.map_or_else(Bytes::new, |session| Bytes::copy_from_slice(&session.to_bytes())),
        request: verdict.request,
        client_msg_id: Bytes::copy_from_slice(verdict.client_msg_id.as_bytes()),
        conversation_id: Bytes::copy_from_slice(verdict.conversation_id.as_bytes()),
        outcome: Some(match verdict.outcome {
            VerdictOutcome::Committed { seq, time } => Outcome::Committed(proto::Committed { seq, time }),
            VerdictOutcome::Rejected { code, message } => {
                Outcome::Rejected(proto::Rejected { code: code.as_str().to_owned(), message })
            }
        }),
    }
}

fn read_verdict(verdict: proto::Verdict) -> Result<Verdict, WrongItem> {
    use crate::proto::verdict::Outcome;
    let session = match verdict.session.is_empty() {
        true => None,
        false => Some(SessionId::from_slice(&verdict.session).map_err(|_| WrongItem::Id)?),
    };
    Ok(Verdict {
        session,
        request: verdict.request,
        client_msg_id: ClientMsgId::from_slice(&verdict.client_msg_id).map_err(|_| WrongItem::Id)?,
        conversation_id: ConversationId::from_slice(&verdict.conversation_id).map_err(|_| WrongItem::Id)?,
        outcome: match verdict.outcome.ok_or(WrongItem::Content)? {
            Outcome::Committed(proto::Committed { seq, time }) => VerdictOutcome::Committed { seq, time },
            // A code of a later version: a rejection is final, so it becomes one that no retry helps.
            Outcome::Rejected(proto::Rejected { code, message }) => {
                VerdictOutcome::Rejected { code: ErrorCode::parse(&code).unwrap_or(ErrorCode::InvalidField), message }
            }
        },
    })
}

const _: () = assert!(OUTSTANDING_BYTES_MAX >= PART_BYTES_MAX, "a batch of one large item can be sent at all");
