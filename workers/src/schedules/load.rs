//! What the clients of a schedule put into the log: sends, retries, foreigners, and what no client would write.

use std::borrow::Cow;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use roost_ports::log::{LogRecord, Position};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, Endpoint, IngressRecord, Origin};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Incarnation, UserId, partition};

use super::PARTITIONS;

/// A body that the Store of the schedules refuses with a data error.
pub const REFUSED_BODY: &[u8] = b"data that the store refuses";

/// A log's partition: positions with holes, since they are opaque.
const STRIDE: u64 = 3;

/// The people, their conversations, and the log they write.
pub struct Load {
    /// Members of every conversation.
    pub members: Vec<UserId>,
    /// An account that is a member of nothing.
    pub foreigner: UserId,
    /// Fixed in number and in partition by the seed; their ids differ from run to run.
    pub conversations: Vec<ConversationId>,
    /// The topic `ingress`.
    pub log: Vec<Vec<LogRecord>>,
    /// Where the record of a request stands: the index is the request's number.
    pub requests: Vec<(u32, Position)>,
    sent: Vec<IngressRecord<'static>>,
}

impl Load {
    /// People and conversations, nothing written yet.
    pub fn new() -> Self {
        let mut members: Vec<UserId> = (0..3).map(|_| UserId::new()).collect();
        members.sort_unstable();
        // Two conversations in the first partition, one in each of the others.
        let conversations = [0, 0, 1, 2, 3].map(conversation_in).to_vec();
        let log = (0..PARTITIONS).map(|_| Vec::new()).collect();
        Self { members, foreigner: UserId::new(), conversations, log, requests: Vec::new(), sent: Vec::new() }
    }

    /// Every conversation is made, most of them before anything is sent to it.
    pub fn create(&mut self, index: usize) {
        let mut members = self.members.clone();
        members.sort_unstable();
        let action = Action::Create {
            conversation_id: self.conversations[index],
            kind: ConversationKind::Group,
            title: None,
            members,
        };
        let record = self.record(self.members[0], action);
        self.send(record);
    }

    /// One more record, of a kind that the seed chooses.
    pub fn produce(&mut self, random: &mut StdRng) {
        let conversation_id = self.conversations[random.random_range(0..self.conversations.len())];
        let sender = self.members[random.random_range(0..self.members.len())];
        match random.random_range(0..100) {
            0..20 if !self.sent.is_empty() => self.retry(random, false),
            20..25 if !self.sent.is_empty() => self.retry(random, true),
            25..30 => self.text(self.foreigner, conversation_id, b"let me in"),
            30..33 => self.append(random.random_range(0..PARTITIONS), Bytes::from_static(b"\xff not a record")),
            33..35 => {
                let action = self.message(conversation_id, b"misplaced");
                let record = self.record(sender, action);
                let wrong = (partition::of(conversation_id, PARTITIONS) + 1) % PARTITIONS;
                self.append(wrong, record.encode());
            }
            35..37 => self.text(sender, conversation_id, REFUSED_BODY),
            37..39 => self.create(random.random_range(0..self.conversations.len())),
            _ => {
                let body = random.next_u64().to_be_bytes();
                self.text(sender, conversation_id, &body);
            }
        }
    }

    /// After the last record of a partition.
    pub fn end(&self, partition: u32) -> Position {
        self.log[partition as usize].last().map_or(Position(0), |record| record.next)
    }

    fn retry(&mut self, random: &mut StdRng, other_body: bool) {
        let mut record = self.sent[random.random_range(0..self.sent.len())].clone();
        if let (true, Action::Send { body, .. }) = (other_body, &mut record.action) {
            *body = Cow::Borrowed(b"another body");
        }
        record.origin = self.origin();
        self.send(record);
    }

    fn text(&mut self, sender: UserId, conversation_id: ConversationId, body: &[u8]) {
        let action = self.message(conversation_id, body);
        let record = self.record(sender, action);
        self.send(record);
    }

    fn message(&self, conversation_id: ConversationId, body: &[u8]) -> Action<'static> {
        Action::Send { conversation_id, content_type: Cow::Borrowed("text/plain"), body: Cow::Owned(body.to_vec()) }
    }

    fn record(&self, actor: UserId, action: Action<'static>) -> IngressRecord<'static> {
        IngressRecord {
            actor,
            device: DeviceId::from_bytes([7; 16]),
            client_msg_id: ClientMsgId::new(),
            time: 1_000 + self.requests.len() as u64,
            origin: self.origin(),
            if_last_seq: None,
            action,
        }
    }

    fn origin(&self) -> Option<Origin> {
        let endpoint = Endpoint { address: "schedule".into(), incarnation: Incarnation(1) };
        Some(Origin { endpoint, session: None, request: self.requests.len() as u64 })
    }

    fn send(&mut self, record: IngressRecord<'static>) {
        let home = partition::of(record.conversation_id(), PARTITIONS);
        let payload = record.encode();
        self.sent.push(record);
        self.append(home, payload);
    }

    fn append(&mut self, partition: u32, payload: Bytes) {
        let records = &mut self.log[partition as usize];
        let position = Position(records.len() as u64 * STRIDE);
        records.push(LogRecord { position, next: Position(position.0 + 1), payload });
        self.requests.push((partition, position));
    }
}

fn conversation_in(wanted: u32) -> ConversationId {
    loop {
        let id = ConversationId::new();
        if partition::of(id, PARTITIONS) == wanted {
            return id;
        }
    }
}
