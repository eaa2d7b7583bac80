//! The history checker: proves the invariants of docs/guarantees.md on a recorded run.
//!
//! A run is what sessions did and saw, with monotonic times, and what the history holds in the end. The checker is itself
//! tested: one planted violation of each invariant must be found.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use roost_protocol::digest::Digest16;
use roost_protocol::{ClientMsgId, ConversationId, Seq, UserId};

/// What identifies a message's content, whoever saw it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// The sender's name for it.
    pub client_msg_id: ClientMsgId,
    /// Who sent it.
    pub sender: UserId,
    /// Its content.
    pub digest: Digest16,
}

/// What became of a send, as far as its session knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendOutcome {
    /// `sent` came.
    Ok {
        /// The number it said.
        seq: Seq,
    },
    /// `rejected` came: definitely not stored.
    Rejected,
    /// `retry`, or no answer: may be stored.
    Unknown,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A session began to send a message it had not sent before. Retries of it are not facts of their own.
    Begun {
        /// Which session (of the run, not of the server).
        session: u32,
        /// Where to.
        conversation: ConversationId,
        /// What.
        message: Identity,
        /// Monotonic.
        at_ns: u64,
    },
    /// The session learnt what became of it (again, if it is said again).
    Ended {
        /// Which session.
        session: u32,
        /// Where to.
        conversation: ConversationId,
        /// Whose.
        sender: UserId,
        /// Which.
        client_msg_id: ClientMsgId,
        /// What became of it.
        outcome: SendOutcome,
        /// Monotonic.
        at_ns: u64,
    },
    /// A session showed a message to its user: after duplicates were removed and gaps were filled.
    Shown {
        /// Which session.
        session: u32,
        /// Where.
        conversation: ConversationId,
        /// Its number.
        seq: Seq,
        /// What.
        message: Identity,
        /// Monotonic.
        at_ns: u64,
    },
    /// The message stood in a frame, a page or a log record, shown or not.
    Seen {
        /// Where.
        conversation: ConversationId,
        /// Its number.
        seq: Seq,
        /// What.
        message: Identity,
    },
}

/// A session of the run.
#[derive(Clone, Debug)]
pub struct SessionFact {
    /// Whose.
    pub user: UserId,
    /// It was connected when the run became quiet, and stayed so until the end.
    pub online_at_end: bool,
}

/// Everything that is known of a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What happened, in any order.
    pub facts: Vec<Fact>,
    /// The sessions, by the number that the facts use.
    pub sessions: BTreeMap<u32, SessionFact>,
    /// Who belongs to which conversation.
    pub members: HashMap<ConversationId, BTreeSet<UserId>>,
    /// The history in the end, read from the Store through the front door.
    pub history: HashMap<ConversationId, Vec<(Seq, Identity)>>,
}

/// What one session did in one conversation: when, as which fact, with which number.
type Lines = BTreeMap<(u32, ConversationId), Vec<(u64, usize, Seq)>>;

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which one, such as "I1".
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

impl Run {
    /// Every violation of I1 to I9.
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        self.acknowledged_are_in_history(&mut found);
        self.acknowledged_were_shown(&mut found);
        self.one_number_one_message(&mut found);
        self.history_has_no_holes(&mut found);
        self.one_message_one_number(&mut found);
        self.shown_in_order(&mut found);
        self.nothing_strange_is_seen(&mut found);
        self.later_sends_get_higher_numbers(&mut found);
        self.pipelined_sends_keep_their_order(&mut found);
        found
    }

    fn at(&self, conversation: ConversationId, seq: Seq) -> Option<Identity> {
        let history = self.history.get(&conversation)?;
        // Where there is no hole it is at its place.
        let guess = history.get((seq as usize).wrapping_sub(1)).filter(|(at, _)| *at == seq);
        guess.or_else(|| history.iter().find(|(at, _)| *at == seq)).map(|&(_, message)| message)
    }

    fn acknowledged(&self) -> impl Iterator<Item = (ConversationId, UserId, ClientMsgId, Seq, u64)> + '_ {
        self.facts.iter().filter_map(|fact| match fact {
            Fact::Ended { conversation, sender, client_msg_id, outcome: SendOutcome::Ok { seq }, at_ns, .. } => {
                Some((*conversation, *sender, *client_msg_id, *seq, *at_ns))
            }
            _ => None,
        })
    }

    fn begun(&self) -> impl Iterator<Item = (u32, ConversationId, Identity, u64)> + '_ {
        self.facts.iter().filter_map(|fact| match fact {
            Fact::Begun { session, conversation, message, at_ns } => Some((*session, *conversation, *message, *at_ns)),
            _ => None,
        })
    }

    /// Everything that says "(conversation, seq) is this message".
    fn sightings(&self) -> impl Iterator<Item = (ConversationId, Seq, Identity)> + '_ {
        let facts = self.facts.iter().filter_map(|fact| match fact {
            Fact::Shown { conversation, seq, message, .. } | Fact::Seen { conversation, seq, message } => {
                Some((*conversation, *seq, *message))
            }
            _ => None,
        });
        let history = self
            .history
            .iter()
            .flat_map(|(&conversation, rows)| rows.iter().map(move |&(seq, message)| (conversation, seq, message)));
        facts.chain(history)
    }

    fn acknowledged_are_in_history(&self, found: &mut Vec<Violation>) {
        let digests: HashMap<(ConversationId, UserId, ClientMsgId), Digest16> =
            self.begun().map(|(_, conversation, m, _)| ((conversation, m.sender, m.client_msg_id), m.digest)).collect();
        for (conversation, sender, client_msg_id, seq, _) in self.acknowledged() {
            let digest = digests.get(&(conversation, sender, client_msg_id)).copied();
            let right = self.at(conversation, seq).is_some_and(|m| {
                m.sender == sender && m.client_msg_id == client_msg_id && digest.is_none_or(|digest| digest == m.digest)
            });
            if !right {
                found.push(Violation {
                    invariant: "I1",
                    what: format!("{client_msg_id} was acknowledged at {conversation}/{seq} but is not there"),
                });
            }
        }
    }

    fn acknowledged_were_shown(&self, found: &mut Vec<Violation>) {
        let shown: HashSet<(u32, ConversationId, Seq)> = self
            .facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Shown { session, conversation, seq, .. } => Some((*session, *conversation, *seq)),
                _ => None,
            })
            .collect();
        for (conversation, _, _, seq, _) in self.acknowledged() {
            let Some(members) = self.members.get(&conversation) else { continue };
            for (&session, fact) in self.sessions.iter().filter(|(_, fact)| fact.online_at_end) {
                if members.contains(&fact.user) && !shown.contains(&(session, conversation, seq)) {
                    found.push(Violation {
                        invariant: "I2",
                        what: format!("session {session} was never shown {conversation}/{seq}"),
                    });
                }
            }
        }
    }

    fn one_number_one_message(&self, found: &mut Vec<Violation>) {
        let mut known: HashMap<(ConversationId, Seq), Identity> = HashMap::new();
        for (conversation, seq, message) in self.sightings() {
            let first = *known.entry((conversation, seq)).or_insert(message);
            if first != message {
                let what = format!("{conversation}/{seq} is both {first:?} and {message:?}");
                found.push(Violation { invariant: "I3", what });
            }
        }
    }

    fn history_has_no_holes(&self, found: &mut Vec<Violation>) {
        for (conversation, rows) in &self.history {
            if !rows.iter().map(|&(seq, _)| seq).eq(1..=rows.len() as u64) {
                let seqs: Vec<Seq> = rows.iter().map(|&(seq, _)| seq).collect();
                found.push(Violation { invariant: "I4", what: format!("{conversation} holds {seqs:?}") });
            }
        }
    }

    fn one_message_one_number(&self, found: &mut Vec<Violation>) {
        let mut known: HashMap<(ConversationId, UserId, ClientMsgId), Seq> = HashMap::new();
        let acknowledged =
            self.acknowledged().map(|(conversation, sender, id, seq, _)| (conversation, sender, id, seq));
        let seen = self.sightings().map(|(conversation, seq, m)| (conversation, m.sender, m.client_msg_id, seq));
        for (conversation, sender, id, seq) in acknowledged.chain(seen) {
            let first = *known.entry((conversation, sender, id)).or_insert(seq);
            if first != seq {
                let what = format!("{id} in {conversation} has the numbers {first} and {seq}");
                found.push(Violation { invariant: "I5", what });
            }
        }
    }

    fn shown_in_order(&self, found: &mut Vec<Violation>) {
        let mut shown: Lines = BTreeMap::new();
        for (index, fact) in self.facts.iter().enumerate() {
            if let Fact::Shown { session, conversation, seq, at_ns, .. } = fact {
                shown.entry((*session, *conversation)).or_default().push((*at_ns, index, *seq));
            }
        }
        for ((session, conversation), mut rows) in shown {
            rows.sort_unstable();
            for pair in rows.windows(2) {
                if pair[1].2 != pair[0].2 + 1 {
                    let what =
                        format!("session {session} showed {conversation}/{} right after {}", pair[1].2, pair[0].2);
                    found.push(Violation { invariant: "I6", what });
                }
            }
        }
    }

    fn nothing_strange_is_seen(&self, found: &mut Vec<Violation>) {
        let begun: HashSet<(ConversationId, Identity)> = self.begun().map(|(_, c, message, _)| (c, message)).collect();
        let rejected: HashSet<(ConversationId, UserId, ClientMsgId)> = self
            .facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Ended { conversation, sender, client_msg_id, outcome: SendOutcome::Rejected, .. } => {
                    Some((*conversation, *sender, *client_msg_id))
                }
                _ => None,
            })
            .collect();
        let mut judged = HashSet::new();
        for (conversation, seq, message) in self.sightings() {
            if !judged.insert((conversation, seq, message)) {
                continue;
            }
            let member = self.members.get(&conversation).is_none_or(|members| members.contains(&message.sender));
            let wrong = if rejected.contains(&(conversation, message.sender, message.client_msg_id)) {
                "was rejected"
            } else if !begun.contains(&(conversation, message)) {
                "was never sent"
            } else if !member {
                "comes from somebody who is no member"
            } else {
                continue;
            };
            let what = format!("{conversation}/{seq}, {}, {wrong}", message.client_msg_id);
            found.push(Violation { invariant: "I7", what });
        }
    }

    fn later_sends_get_higher_numbers(&self, found: &mut Vec<Violation>) {
        let mut begun_at: HashMap<(ConversationId, UserId, ClientMsgId), u64> = HashMap::new();
        for (_, conversation, message, at) in self.begun() {
            begun_at.insert((conversation, message.sender, message.client_msg_id), at);
        }
        // Per conversation in order of the acknowledgement, with the highest number acknowledged so far.
        let mut acknowledged: HashMap<ConversationId, Vec<(u64, Seq)>> = HashMap::new();
        for (conversation, _, _, seq, at) in self.acknowledged() {
            acknowledged.entry(conversation).or_default().push((at, seq));
        }
        for rows in acknowledged.values_mut() {
            rows.sort_unstable();
            let mut highest = 0;
            for row in rows.iter_mut() {
                highest = highest.max(row.1);
                row.1 = highest;
            }
        }
        for (conversation, sender, id, seq, _) in self.acknowledged() {
            let Some(&begun) = begun_at.get(&(conversation, sender, id)) else { continue };
            let rows = &acknowledged[&conversation];
            let before = rows.partition_point(|&(at, _)| at < begun);
            if before > 0 && rows[before - 1].1 >= seq {
                let what =
                    format!("{id} got {conversation}/{seq}, begun after {} was acknowledged", rows[before - 1].1);
                found.push(Violation { invariant: "I8", what });
            }
        }
    }

    fn pipelined_sends_keep_their_order(&self, found: &mut Vec<Violation>) {
        let numbers: HashMap<(ConversationId, Identity), Seq> = self
            .history
            .iter()
            .flat_map(|(&conversation, rows)| rows.iter().map(move |&(seq, message)| ((conversation, message), seq)))
            .collect();
        let mut lines: Lines = BTreeMap::new();
        for (index, (session, conversation, message, at)) in self.begun().enumerate() {
            if let Some(&seq) = numbers.get(&(conversation, message)) {
                lines.entry((session, conversation)).or_default().push((at, index, seq));
            }
        }
        for ((session, conversation), mut line) in lines {
            line.sort_unstable();
            for pair in line.windows(2) {
                if pair[1].2 <= pair[0].2 {
                    let what = format!(
                        "session {session} sent {conversation}/{} before {}, but it is numbered after",
                        pair[0].2, pair[1].2
                    );
                    found.push(Violation { invariant: "I9", what });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A right run: two users, two sessions, three messages, one of them rejected and one unknown that landed.
    struct Right {
        run: Run,
        conversation: ConversationId,
        messages: Vec<Identity>,
    }

    fn right() -> Right {
        let (anna, ben) = (UserId::new(), UserId::new());
        let conversation = ConversationId::direct(anna, ben);
        let message = |sender| Identity { client_msg_id: ClientMsgId::new(), sender, digest: [7; 16] };
        let messages = vec![message(anna), message(ben), message(anna), message(anna)];
        let mut run = Run::default();
        run.sessions.insert(0, SessionFact { user: anna, online_at_end: true });
        run.sessions.insert(1, SessionFact { user: ben, online_at_end: true });
        run.members.insert(conversation, [anna, ben].into());
        for (index, &message) in messages.iter().enumerate() {
            let at_ns = index as u64 * 100;
            let session = u32::from(message.sender == ben);
            run.facts.push(Fact::Begun { session, conversation, message, at_ns });
            let outcome = match index {
                2 => SendOutcome::Unknown,
                3 => SendOutcome::Rejected,
                _ => SendOutcome::Ok { seq: index as u64 + 1 },
            };
            let (sender, client_msg_id) = (message.sender, message.client_msg_id);
            run.facts.push(Fact::Ended { session, conversation, sender, client_msg_id, outcome, at_ns: at_ns + 50 });
            if index < 3 {
                for session in [0, 1] {
                    let seq = index as u64 + 1;
                    run.facts.push(Fact::Shown { session, conversation, seq, message, at_ns: at_ns + 60 });
                }
            }
        }
        let rows = messages[..3].iter().zip(1..).map(|(&message, seq)| (seq, message)).collect();
        run.history.insert(conversation, rows);
        Right { run, conversation, messages }
    }

    fn found(run: &Run) -> BTreeSet<&'static str> {
        run.check().into_iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn a_right_run_has_no_violation() {
        assert_eq!(right().run.check(), []);
    }

    #[test]
    fn i1_an_acknowledged_message_that_is_lost_or_altered() {
        let mut lost = right();
        lost.run.history.get_mut(&lost.conversation).expect("there").remove(1);
        assert!(found(&lost.run).contains("I1"));
        let mut altered = right();
        altered.run.history.get_mut(&altered.conversation).expect("there")[0].1.digest = [8; 16];
        assert!(found(&altered.run).contains("I1"));
    }

    #[test]
    fn i2_the_newest_message_never_reached_a_session() {
        let mut right = right();
        right.run.facts.retain(|fact| !matches!(fact, Fact::Shown { session: 1, seq: 2.., .. }));
        assert_eq!(found(&right.run), ["I2"].into());
        right.run.sessions.get_mut(&1).expect("there").online_at_end = false;
        assert_eq!(found(&right.run), BTreeSet::new());
    }

    #[test]
    fn i3_one_number_two_messages() {
        let mut right = right();
        let (conversation, message) = (right.conversation, right.messages[2]);
        right.run.facts.push(Fact::Seen { conversation, seq: 1, message });
        assert!(found(&right.run).contains("I3"));
    }

    #[test]
    fn i4_a_hole_in_the_history() {
        let mut right = right();
        right.run.history.get_mut(&right.conversation).expect("there")[2].0 = 4;
        assert!(found(&right.run).contains("I4"));
    }

    #[test]
    fn i5_one_message_two_numbers() {
        let mut right = right();
        let (conversation, message) = (right.conversation, right.messages[0]);
        right.run.history.get_mut(&conversation).expect("there").push((4, message));
        assert!(found(&right.run).contains("I5"));
    }

    #[test]
    fn i6_shown_with_a_gap_or_twice() {
        let mut gap = right();
        gap.run.facts.retain(|fact| !matches!(fact, Fact::Shown { session: 1, seq: 2, .. }));
        assert!(found(&gap.run).contains("I6"));
        let mut twice = right();
        let again = twice.run.facts.iter().find(|fact| matches!(fact, Fact::Shown { seq: 3, .. })).cloned();
        twice.run.facts.extend(again);
        assert_eq!(found(&twice.run), ["I6"].into());
    }

    #[test]
    fn i7_rejected_or_never_sent_or_by_a_stranger() {
        let mut rejected = right();
        let (conversation, message) = (rejected.conversation, rejected.messages[3]);
        rejected.run.history.get_mut(&conversation).expect("there").push((4, message));
        assert_eq!(found(&rejected.run), ["I7"].into());
        let mut never = right();
        let message = Identity { client_msg_id: ClientMsgId::new(), ..never.messages[0] };
        never.run.facts.push(Fact::Seen { conversation: never.conversation, seq: 9, message });
        assert_eq!(found(&never.run), ["I7"].into());
        let mut stranger = right();
        let sender = stranger.messages[1].sender;
        stranger.run.members.get_mut(&stranger.conversation).expect("there").remove(&sender);
        assert_eq!(found(&stranger.run), ["I7"].into());
    }

    #[test]
    fn i8_a_later_send_with_a_lower_number() {
        let mut right = right();
        for fact in &mut right.run.facts {
            if let Fact::Begun { at_ns, message, .. } = fact
                && *message == right.messages[0]
            {
                *at_ns = 1_000;
            }
        }
        assert!(found(&right.run).contains("I8"));
    }

    #[test]
    fn i9_pipelined_sends_out_of_order() {
        let mut right = right();
        let rows = right.run.history.get_mut(&right.conversation).expect("there");
        rows.swap(0, 2);
        rows[0].0 = 1;
        rows[2].0 = 3;
        assert!(found(&right.run).contains("I9"));
    }
}
