//! Writes down what sessions do and see, as facts for the checker and as evidence that a fault had an effect.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use roost_client::{Observed, Observer};
use roost_protocol::digest::of_content;
use roost_protocol::frames::{ClientBody, Message, ServerBody};
use roost_protocol::{ClientMsgId, ConversationId, Seq, UserId};

use crate::checker::{Fact, Identity, Run, SendOutcome};

/// What identifies a message that was seen.
pub fn identity(message: &Message) -> Identity {
    let digest = of_content(&message.content_type, &message.body);
    Identity { client_msg_id: message.client_msg_id, sender: message.sender_id, digest }
}

/// What a run has to show for its faults: a run without it proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Messages that were to be sent.
    pub begun: u64,
    /// Messages in the history in the end.
    pub stored: u64,
    /// Connections beyond the first of each session.
    pub reconnects: u64,
    /// Sends that went out more than once.
    pub repeated: u64,
    /// Sends that went out again although the message was stored: the server has suppressed them.
    pub suppressed: u64,
    /// Sends whose connection broke, or that were answered `retry`.
    pub unknown: u64,
    /// Those of them that are stored.
    pub unknown_landed: u64,
    /// Pages that brought what a session had missed.
    pub gap_repairs: u64,
    /// Unsolicited heads that told a session something new.
    pub settled: u64,
    /// Sessions that were told that they stay and the gateway goes.
    pub goaways: u64,
    /// Sends refused for good.
    pub rejected: u64,
    /// Errors by their codes.
    pub errors: BTreeMap<String, u64>,
    /// Close codes.
    pub closes: BTreeMap<String, u64>,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} begun, {} stored; reconnects {}, sends repeated {}, suppressed duplicates {}, unknown {} (landed {}), \
             rejected {}, gap repairs {}, settled {}, goaways {}, errors {:?}, closes {:?}",
            self.begun,
            self.stored,
            self.reconnects,
            self.repeated,
            self.suppressed,
            self.unknown,
            self.unknown_landed,
            self.rejected,
            self.gap_repairs,
            self.settled,
            self.goaways,
            self.errors,
            self.closes
        )
    }
}

/// All that is recorded of one run.
#[derive(Debug, Default)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    start: Option<Instant>,
    facts: Vec<Fact>,
    seen: HashSet<(ConversationId, Seq, Identity)>,
    stored: HashSet<(UserId, ClientMsgId)>,
    sends: HashMap<(UserId, ClientMsgId), ConversationId>,
    outs: HashMap<(UserId, ClientMsgId), u32>,
    unknown: HashSet<(UserId, ClientMsgId)>,
    rejected: HashSet<(UserId, ClientMsgId)>,
    sessions: HashMap<u32, Session>,
    shown: HashMap<(u32, ConversationId), Seq>,
    created: HashSet<ConversationId>,
    problems: Vec<String>,
    evidence: Evidence,
}

#[derive(Debug, Default)]
struct Session {
    connections: u64,
    pending: HashSet<ClientMsgId>,
    highest: HashMap<ConversationId, Seq>,
}

impl State {
    fn ns(&mut self, at: Instant) -> u64 {
        let start = *self.start.get_or_insert(at);
        // The first fact may be observed by a task that read its clock a little later than another's.
        1_000_000_000 + at.saturating_duration_since(start).as_nanos() as u64
    }

    fn ended(&mut self, session: u32, sender: UserId, id: ClientMsgId, outcome: SendOutcome, at: Instant) {
        let Some(&conversation) = self.sends.get(&(sender, id)) else { return };
        let at_ns = self.ns(at);
        self.facts.push(Fact::Ended { session, conversation, sender, client_msg_id: id, outcome, at_ns });
        if let Some(session) = self.sessions.get_mut(&session) {
            session.pending.remove(&id);
        }
        match outcome {
            SendOutcome::Unknown => drop(self.unknown.insert((sender, id))),
            SendOutcome::Rejected => drop(self.rejected.insert((sender, id))),
            SendOutcome::Ok { .. } => drop(self.stored.insert((sender, id))),
        }
    }

    fn saw(&mut self, watcher: &Watcher, message: &Message, at: Instant) -> bool {
        let identity = identity(message);
        let (conversation, seq) = (message.conversation_id, message.seq);
        if self.seen.insert((conversation, seq, identity)) {
            self.facts.push(Fact::Seen { conversation, seq, message: identity });
            self.stored.insert((identity.sender, identity.client_msg_id));
        }
        if identity.sender == watcher.user && self.sends.contains_key(&(identity.sender, identity.client_msg_id)) {
            // One's own message that comes back counts as its `sent`.
            let outcome = SendOutcome::Ok { seq };
            self.ended(watcher.session, watcher.user, identity.client_msg_id, outcome, at);
        }
        let session = self.sessions.entry(watcher.session).or_default();
        let highest = session.highest.entry(conversation).or_default();
        let missed = *highest > 0 && seq > *highest;
        *highest = seq.max(*highest);
        missed
    }
}

impl Recorder {
    /// A send is about to begin. To be called before the first byte of it goes out.
    pub fn begun(&self, session: u32, conversation: ConversationId, message: Identity) {
        let mut state = self.state.lock();
        let at_ns = state.ns(Instant::now());
        state.facts.push(Fact::Begun { session, conversation, message, at_ns });
        state.sends.insert((message.sender, message.client_msg_id), conversation);
        state.evidence.begun += 1;
    }

    /// A conversation was created before anything was said in it. Only the first word on it counts.
    pub fn created(&self, session: u32, conversation: ConversationId, message: Identity) {
        let mut state = self.state.lock();
        if state.created.insert(conversation) {
            state.facts.push(Fact::Begun { session, conversation, message, at_ns: 0 });
        }
    }

    /// What became of a send that no observed session made (by REST, or by a raw client).
    pub fn ended(&self, session: u32, sender: UserId, id: ClientMsgId, outcome: SendOutcome) {
        self.state.lock().ended(session, sender, id, outcome, Instant::now());
    }

    /// A session gave a message to its user.
    pub fn shown(&self, session: u32, message: &Message) {
        let mut state = self.state.lock();
        let at_ns = state.ns(Instant::now());
        let (conversation, seq) = (message.conversation_id, message.seq);
        state.shown.insert((session, conversation), seq);
        state.facts.push(Fact::Shown { session, conversation, seq, message: identity(message), at_ns });
    }

    /// How far a session has shown a conversation.
    pub fn shown_up_to(&self, session: u32, conversation: ConversationId) -> Seq {
        self.state.lock().shown.get(&(session, conversation)).copied().unwrap_or(0)
    }

    /// Something that must not happen in any run.
    pub fn problem(&self, what: String) {
        self.state.lock().problems.push(what);
    }

    /// What has happened that must not.
    pub fn problems(&self) -> Vec<String> {
        self.state.lock().problems.clone()
    }

    /// What there is to show by now, without what only the history tells.
    pub fn evidence(&self) -> Evidence {
        let state = self.state.lock();
        let mut evidence = state.evidence.clone();
        evidence.unknown = state.unknown.len() as u64;
        evidence.rejected = state.rejected.len() as u64;
        evidence
    }

    /// Fills in the facts of these conversations, and what the history says about the sends.
    pub fn close(&self, run: &mut Run) -> Evidence {
        let mut evidence = self.evidence();
        let state = self.state.lock();
        let of = |fact: &Fact| match fact {
            Fact::Begun { conversation, .. }
            | Fact::Ended { conversation, .. }
            | Fact::Shown { conversation, .. }
            | Fact::Seen { conversation, .. } => *conversation,
        };
        let tracked: BTreeSet<ConversationId> = run.members.keys().copied().collect();
        run.facts.extend(state.facts.iter().filter(|fact| tracked.contains(&of(fact))).cloned());
        let rows = || run.history.values().flatten();
        let landed: HashSet<_> = rows().map(|(_, message)| (message.sender, message.client_msg_id)).collect();
        evidence.stored = rows().count() as u64;
        evidence.unknown_landed = state.unknown.intersection(&landed).count() as u64;
        evidence
    }
}

/// One session's eyes.
pub struct Watcher {
    /// Whose facts these are.
    pub session: u32,
    /// Its user.
    pub user: UserId,
    /// Where they are written down.
    pub recorder: Arc<Recorder>,
}

impl Watcher {
    fn incoming(&self, state: &mut State, id: Option<u32>, body: &ServerBody, at: Instant) {
        match body {
            ServerBody::Connected(_) => {
                let session = state.sessions.entry(self.session).or_default();
                session.connections += 1;
                state.evidence.reconnects += u64::from(session.connections > 1);
            }
            ServerBody::Sent { client_msg_id, seq, .. } => {
                state.ended(self.session, self.user, *client_msg_id, SendOutcome::Ok { seq: *seq }, at);
            }
            ServerBody::Rejected { client_msg_id, .. } => {
                state.ended(self.session, self.user, *client_msg_id, SendOutcome::Rejected, at);
            }
            ServerBody::Retry { client_msg_id, code, .. } => {
                *state.evidence.errors.entry(format!("retry {code}")).or_default() += 1;
                state.ended(self.session, self.user, *client_msg_id, SendOutcome::Unknown, at);
            }
            ServerBody::Message(message) => drop(state.saw(self, message, at)),
            ServerBody::Page(page) => {
                let missed = page.messages.iter().filter(|message| state.saw(self, message, at)).count();
                state.evidence.gap_repairs += u64::from(missed > 0);
            }
            ServerBody::Heads(heads) if id.is_none() => {
                let highest = &state.sessions.entry(self.session).or_default().highest;
                let highest = |conversation| highest.get(conversation).copied().unwrap_or(0);
                let news = heads.conversations.iter().filter(|head| head.last_seq > highest(&head.conversation_id));
                state.evidence.settled += news.count() as u64;
            }
            ServerBody::Error { code, .. } => *state.evidence.errors.entry(code.to_string()).or_default() += 1,
            ServerBody::Reload { reason } => state.problems.push(format!("session {}: reload: {reason}", self.session)),
            ServerBody::Goaway { .. } => state.evidence.goaways += 1,
            ServerBody::Heads(_) | ServerBody::Ping | ServerBody::Pong => {}
        }
    }

    fn outgoing(&self, state: &mut State, id: ClientMsgId) {
        let outs = state.outs.entry((self.user, id)).or_default();
        *outs += 1;
        if *outs > 1 {
            state.evidence.repeated += 1;
            state.evidence.suppressed += u64::from(state.stored.contains(&(self.user, id)));
        }
        state.sessions.entry(self.session).or_default().pending.insert(id);
    }
}

impl Observer for Watcher {
    fn observe(&self, at: Instant, what: Observed<'_>) {
        let state = &mut *self.recorder.state.lock();
        match what {
            Observed::Out(frame) => {
                if let ClientBody::Send(send) = &frame.body {
                    self.outgoing(state, send.client_msg_id);
                }
            }
            Observed::In(frame) => self.incoming(state, frame.id, &frame.body, at),
            Observed::Closed { code, .. } => {
                let code = code.map_or("none".to_owned(), |code| code.to_string());
                *state.evidence.closes.entry(code).or_default() += 1;
                let pending = std::mem::take(&mut state.sessions.entry(self.session).or_default().pending);
                for id in pending {
                    state.ended(self.session, self.user, id, SendOutcome::Unknown, at);
                }
            }
            _ => {}
        }
    }
}
