//! Settling: which sessions are known to have a conversation's newest number, and how far the log is dealt with.

use std::collections::{BTreeSet, HashMap, HashSet};

use roost_ports::delivery::Audience;
use roost_ports::log::Position;
use roost_protocol::{ConversationId, Incarnation, Seq, SessionId};

use super::route::Route;

/// When settling looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SettlingTimes {
    /// After a conversation's newest record; longer than a cached route lives.
    pub after_ms: u64,
    /// After its first unsettled record at the latest, however busy it is: or a conversation that never rests would
    /// hold the group's position for ever.
    pub after_ms_max: u64,
    /// Between two looks, while somebody has not acknowledged.
    pub again_ms: u64,
}

impl Default for SettlingTimes {
    fn default() -> Self {
        Self { after_ms: 3_000, after_ms_max: 10_000, again_ms: 1_000 }
    }
}

/// Who has not had the newest number, at one gateway.
#[derive(Clone, PartialEq, Debug)]
pub struct Untold {
    /// Index of the gateway in the route's `gateways`, or in its `ask` where the audience is users.
    pub index: usize,
    /// Whom to tell.
    pub audience: Audience,
    /// What to tell.
    pub seq: Seq,
}

/// The conversations whose newest records are not settled, and the position of each partition that follows.
#[derive(Debug)]
pub struct Settling {
    times: SettlingTimes,
    unsettled: HashMap<ConversationId, Unsettled>,
    due: BTreeSet<(u64, ConversationId)>,
    partitions: HashMap<u32, Track>,
    /// Partitions whose position may have moved.
    moved: BTreeSet<u32>,
}

#[derive(Debug)]
struct Unsettled {
    partition: u32,
    newest: Seq,
    version: Seq,
    /// What was newest when the running look began.
    target: Seq,
    /// The first record that is not settled, and the first one after the look that is running.
    first: Position,
    first_at: u64,
    after_look: Option<Position>,
    looking: bool,
    looked: bool,
    due_at: u64,
    served: Vec<Served>,
}

#[derive(Debug)]
struct Served {
    gateway: Option<Incarnation>,
    audience: Audience,
    seq: Seq,
}

#[derive(Debug, Default)]
struct Track {
    firsts: BTreeSet<(Position, ConversationId)>,
    read_to: Position,
}

/// Beyond so many different audiences the oldest is forgotten: those sessions are told once more than needed.
const SERVED_MAX: usize = 16;

impl Settling {
    /// Nothing to settle.
    pub fn new(times: SettlingTimes) -> Self {
        Self {
            times,
            unsettled: HashMap::new(),
            due: BTreeSet::new(),
            partitions: HashMap::new(),
            moved: BTreeSet::new(),
        }
    }

    /// How many conversations are not settled.
    pub fn len(&self) -> usize {
        self.unsettled.len()
    }

    /// Whether everything is settled.
    pub fn is_empty(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// A record has been dispatched.
    pub fn dispatched(
        &mut self,
        partition: u32,
        conversation: ConversationId,
        (seq, version): (Seq, Seq),
        (position, next): (Position, Position),
        now_ms: u64,
    ) {
        let track = self.partitions.entry(partition).or_default();
        track.read_to = track.read_to.max(next);
        let times = self.times;
        let entry = self.unsettled.entry(conversation).or_insert_with(|| {
            track.firsts.insert((position, conversation));
            Unsettled {
                partition,
                newest: seq,
                version,
                target: seq,
                first: position,
                first_at: now_ms,
                after_look: None,
                looking: false,
                looked: false,
                due_at: 0,
                served: Vec::new(),
            }
        });
        entry.newest = entry.newest.max(seq);
        entry.version = entry.version.max(version);
        if entry.looking {
            entry.after_look.get_or_insert(position);
        } else if !entry.looked {
            self.due.remove(&(entry.due_at, conversation));
            entry.due_at = (now_ms + times.after_ms).min(entry.first_at + times.after_ms_max);
            self.due.insert((entry.due_at, conversation));
        }
    }

    /// A record that goes to nobody has been passed.
    pub fn passed(&mut self, partition: u32, next: Position) {
        let track = self.partitions.entry(partition).or_default();
        track.read_to = track.read_to.max(next);
        self.moved.insert(partition);
    }

    /// A gateway has acknowledged for an audience.
    pub fn served(&mut self, gateway: Incarnation, conversation: ConversationId, seq: Seq, audience: Audience) {
        let Some(entry) = self.unsettled.get_mut(&conversation) else { return };
        let gateway = matches!(audience, Audience::Users(_) | Audience::Everyone).then_some(gateway);
        let same = entry.served.iter_mut().find(|served| served.is_for(gateway, &audience));
        match same {
            Some(served) => served.seq = served.seq.max(seq),
            None => {
                if entry.served.len() == SERVED_MAX {
                    entry.served.remove(0);
                }
                entry.served.push(Served { gateway, audience, seq });
            }
        }
    }

    /// When the next look is due.
    pub fn deadline(&self) -> Option<u64> {
        self.due.first().map(|&(at, _)| at)
    }

    /// The conversations to look up afresh now, with the version of the members that is needed.
    pub fn take_due(&mut self, now_ms: u64, max: usize) -> Vec<(ConversationId, Seq)> {
        let mut taken = Vec::new();
        while taken.len() < max && self.due.first().is_some_and(|&(at, _)| at <= now_ms) {
            let Some((_, conversation)) = self.due.pop_first() else { break };
            if let Some(entry) = self.unsettled.get_mut(&conversation) {
                entry.looking = true;
                entry.target = entry.newest;
                entry.after_look = None;
                taken.push((conversation, entry.version));
            }
        }
        taken
    }

    /// What a fresh look has found: who has to be told the newest number. Where that is nobody, the conversation is
    /// settled up to the moment the look began.
    pub fn looked(
        &mut self,
        conversation: ConversationId,
        route: &Route,
        gone: &HashSet<Incarnation>,
        now_ms: u64,
    ) -> Vec<Untold> {
        let Some(entry) = self.unsettled.get_mut(&conversation) else { return Vec::new() };
        let untold = entry.untold(route, gone);
        if untold.is_empty() {
            self.settle(conversation, now_ms);
        } else {
            self.look_again(conversation, now_ms);
        }
        untold
    }

    /// The look failed, or somebody had to be told: look again after a while.
    pub fn look_again(&mut self, conversation: ConversationId, now_ms: u64) {
        let Some(entry) = self.unsettled.get_mut(&conversation) else { return };
        entry.looking = false;
        entry.looked = true;
        entry.after_look = None;
        entry.due_at = now_ms + self.times.again_ms;
        self.due.insert((entry.due_at, conversation));
    }

    /// The conversation cannot be looked up at all, and never will be: it holds nothing back.
    pub fn give_up(&mut self, conversation: ConversationId) {
        if let Some(entry) = self.unsettled.remove(&conversation) {
            self.due.remove(&(entry.due_at, conversation));
            self.moved.insert(entry.partition);
            if let Some(track) = self.partitions.get_mut(&entry.partition) {
                track.firsts.remove(&(entry.first, conversation));
            }
        }
    }

    /// The partitions whose [`position`](Self::position) may have moved since the last call.
    pub fn take_moved(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.moved)
    }

    /// Everything of a partition before this is dealt with.
    pub fn position(&self, partition: u32) -> Option<Position> {
        let track = self.partitions.get(&partition)?;
        Some(track.firsts.first().map_or(track.read_to, |&(position, _)| position.min(track.read_to)))
    }

    /// The partition went to somebody else.
    pub fn forget(&mut self, partition: u32) {
        self.partitions.remove(&partition);
        let due = &mut self.due;
        self.unsettled.retain(|&conversation, entry| {
            if entry.partition == partition {
                due.remove(&(entry.due_at, conversation));
            }
            entry.partition != partition
        });
    }

    fn settle(&mut self, conversation: ConversationId, now_ms: u64) {
        let Some(entry) = self.unsettled.get_mut(&conversation) else { return };
        let Some(after) = entry.after_look else { return self.give_up(conversation) };
        self.moved.insert(entry.partition);
        if let Some(track) = self.partitions.get_mut(&entry.partition) {
            track.firsts.remove(&(entry.first, conversation));
            track.firsts.insert((after, conversation));
        }
        entry.first = after;
        entry.first_at = now_ms;
        entry.after_look = None;
        entry.looking = false;
        entry.looked = false;
        entry.due_at = now_ms + self.times.after_ms;
        self.due.insert((entry.due_at, conversation));
    }
}

impl Unsettled {
    /// Sessions that have acknowledged neither what was newest when the look began nor anything later.
    fn untold(&self, route: &Route, gone: &HashSet<Incarnation>) -> Vec<Untold> {
        let newest = self.newest;
        let current = || self.served.iter().filter(|served| served.seq >= self.target);
        let whole: HashSet<Incarnation> = current().filter_map(|served| served.gateway).collect();
        let told = |gateway: Incarnation| gone.contains(&gateway) || whole.contains(&gateway);
        let mut sessions: HashSet<SessionId> = HashSet::new();
        for served in current() {
            if let Audience::Sessions(some) = &served.audience {
                sessions.extend(some.iter().copied());
            }
        }
        let mut untold = Vec::new();
        for (index, gateway) in route.gateways.iter().enumerate() {
            if told(gateway.endpoint.incarnation) {
                continue;
            }
            let both = gateway.sessions.iter().zip(&gateway.users);
            let missing: Vec<SessionId> = both
                .filter(|&(session, _)| !sessions.contains(session))
                .filter(|&(_, &user)| route.sees(user, newest))
                .map(|(&session, _)| session)
                .collect();
            if !missing.is_empty() {
                untold.push(Untold { index, audience: Audience::Sessions(missing.into()), seq: newest });
            }
        }
        for (index, endpoint) in route.ask.iter().enumerate() {
            if !told(endpoint.incarnation) {
                let users = route.users.iter().copied().filter(|&user| route.sees(user, newest)).collect();
                untold.push(Untold { index, audience: Audience::Users(users), seq: newest });
            }
        }
        untold
    }
}

impl Served {
    fn is_for(&self, gateway: Option<Incarnation>, audience: &Audience) -> bool {
        match (&self.audience, audience) {
            // The allocation is the same for all messages of a cached route.
            (Audience::Sessions(one), Audience::Sessions(other)) => std::sync::Arc::ptr_eq(one, other) || one == other,
            (Audience::Sessions(_), _) | (_, Audience::Sessions(_)) => false,
            _ => self.gateway == gateway,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_ports::store::Member;
    use roost_protocol::UserId;
    use roost_protocol::records::Endpoint;

    use super::super::route::{GatewayRoute, MemberList};
    use super::*;

    const GATEWAY: Incarnation = Incarnation(1);

    fn sessions(slots: std::ops::Range<u32>) -> Arc<[SessionId]> {
        slots.map(|slot| SessionId::new(GATEWAY, 0, slot, 0)).collect()
    }

    fn route(count: u32, ask: bool) -> Route {
        let users: Vec<UserId> = (0..count).map(|number| UserId::from_bytes([number as u8; 16])).collect();
        let members = users.iter().map(|&user_id| Member { user_id, from_seq: 1, to_seq: None }).collect();
        let endpoint = Endpoint { address: String::new(), incarnation: GATEWAY };
        let known = GatewayRoute { endpoint: endpoint.clone(), sessions: sessions(0..count), users: users.clone() };
        Route {
            list: Arc::new(MemberList::new(1, members)),
            gateways: if ask { Vec::new() } else { vec![known] },
            ask: if ask { vec![endpoint] } else { Vec::new() },
            users: users.into(),
            at_ms: 0,
        }
    }

    fn dispatched(settling: &mut Settling, conversation: ConversationId, seq: Seq, position: u64, now_ms: u64) {
        settling.dispatched(0, conversation, (seq, 1), (Position(position), Position(position + 1)), now_ms);
    }

    #[test]
    fn a_session_that_a_cached_route_hid_is_told() {
        let (mut settling, conversation) = (Settling::new(SettlingTimes::default()), ConversationId::new());
        dispatched(&mut settling, conversation, 1, 10, 0);
        settling.served(GATEWAY, conversation, 1, Audience::Sessions(sessions(0..2)));
        assert_eq!(settling.take_due(2_999, 10), []);
        assert_eq!(settling.take_due(3_000, 10), [(conversation, 1)]);
        let untold = settling.looked(conversation, &route(3, false), &HashSet::new(), 3_000);
        assert_eq!(untold.len(), 1);
        assert_eq!(untold[0].audience, Audience::Sessions(sessions(2..3)));
        assert_eq!(settling.position(0), Some(Position(10)), "not before it is acknowledged");
        settling.served(GATEWAY, conversation, 1, untold[0].audience.clone());
        assert_eq!(settling.take_due(4_000, 10), [(conversation, 1)]);
        assert!(settling.looked(conversation, &route(3, false), &HashSet::new(), 4_000).is_empty());
        assert_eq!(settling.position(0), Some(Position(11)));
        assert!(settling.is_empty());
    }

    #[test]
    fn the_position_follows_the_contiguous_prefix_of_settled_conversations() {
        let mut settling = Settling::new(SettlingTimes::default());
        let (one, two) = (ConversationId::new(), ConversationId::new());
        dispatched(&mut settling, one, 1, 10, 0);
        dispatched(&mut settling, two, 1, 11, 0);
        dispatched(&mut settling, one, 2, 12, 0);
        settling.passed(0, Position(20));
        settling.take_due(3_000, 10);
        settling.served(GATEWAY, two, 1, Audience::Sessions(sessions(0..1)));
        settling.looked(two, &route(1, false), &HashSet::new(), 3_000);
        assert_eq!(settling.position(0), Some(Position(10)));
        settling.served(GATEWAY, one, 1, Audience::Sessions(sessions(0..1)));
        assert_eq!(settling.looked(one, &route(1, false), &HashSet::new(), 3_000).len(), 1, "it lacks the newest");
        settling.served(GATEWAY, one, 2, Audience::Sessions(sessions(0..1)));
        settling.take_due(10_000, 10);
        settling.looked(one, &route(1, false), &HashSet::new(), 10_000);
        assert_eq!(settling.position(0), Some(Position(20)));
    }

    #[test]
    fn a_conversation_that_never_rests_is_settled_up_to_each_look() {
        let (mut settling, conversation) = (Settling::new(SettlingTimes::default()), ConversationId::new());
        for second in 0..=10 {
            dispatched(&mut settling, conversation, second + 1, second, second * 1_000);
            settling.served(GATEWAY, conversation, second + 1, Audience::Sessions(sessions(0..1)));
        }
        assert_eq!(settling.take_due(10_000, 10).len(), 1);
        dispatched(&mut settling, conversation, 12, 11, 10_001);
        settling.served(GATEWAY, conversation, 12, Audience::Sessions(sessions(0..1)));
        settling.looked(conversation, &route(1, false), &HashSet::new(), 10_002);
        assert_eq!(settling.position(0), Some(Position(11)), "up to the look, not beyond");
        assert_eq!(settling.len(), 1);
    }

    #[test]
    fn gateways_that_were_asked_by_user_and_lives_that_are_over_count_as_told() {
        let (mut settling, conversation) = (Settling::new(SettlingTimes::default()), ConversationId::new());
        dispatched(&mut settling, conversation, 1, 0, 0);
        settling.take_due(3_000, 1);
        let untold = settling.looked(conversation, &route(2, true), &HashSet::new(), 3_000);
        assert!(matches!(untold[0].audience, Audience::Users(_)));
        settling.served(GATEWAY, conversation, 1, untold[0].audience.clone());
        settling.take_due(4_000, 1);
        assert!(settling.looked(conversation, &route(2, true), &HashSet::new(), 4_000).is_empty());
        dispatched(&mut settling, conversation, 2, 1, 5_000);
        settling.take_due(8_000, 1);
        let gone = HashSet::from([GATEWAY]);
        assert!(settling.looked(conversation, &route(2, false), &gone, 8_000).is_empty());
    }

    #[test]
    fn a_partition_that_went_away_leaves_nothing() {
        let (mut settling, conversation) = (Settling::new(SettlingTimes::default()), ConversationId::new());
        dispatched(&mut settling, conversation, 1, 0, 0);
        settling.forget(0);
        assert!(settling.is_empty() && settling.deadline().is_none() && settling.position(0).is_none());
    }
}
