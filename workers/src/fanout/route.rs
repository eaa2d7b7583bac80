//! Who is in a conversation and where their sessions are, bounded and never older than it may be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use roost_ports::delivery::Audience;
use roost_ports::store::Member;
use roost_protocol::records::Endpoint;
use roost_protocol::{ConversationId, Seq, SessionId, UserId};

/// The members of a conversation as of one membership event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberList {
    /// Which event.
    pub version: Seq,
    /// In order of user id.
    pub members: Vec<Member>,
    /// Messages in this range are for every one of them.
    everyone: (Seq, Seq),
}

impl MemberList {
    /// A list of this version.
    pub fn new(version: Seq, members: Vec<Member>) -> Self {
        let from = members.iter().map(|member| member.from_seq).max().unwrap_or(0);
        let to = members.iter().filter_map(|member| member.to_seq).min().unwrap_or(Seq::MAX);
        Self { version, members, everyone: (from, to) }
    }

    /// Whether a message of this seq is for every member.
    fn everyone_sees(&self, seq: Seq) -> bool {
        (self.everyone.0..=self.everyone.1).contains(&seq)
    }

    fn sees(&self, user: UserId, seq: Seq) -> bool {
        let found = self.members.binary_search_by_key(&user, |member| member.user_id);
        found.is_ok_and(|index| self.members[index].sees(seq))
    }
}

/// The sessions of a conversation's members on one gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayRoute {
    /// Where.
    pub endpoint: Endpoint,
    /// Which sessions, in order: one allocation that every message of the next seconds shares.
    pub sessions: Arc<[SessionId]>,
    /// Whose, each at the same index.
    pub users: Vec<UserId>,
}

/// Where a conversation's members are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The members.
    pub list: Arc<MemberList>,
    /// Gateways that hold sessions of members and have registered everything they hold.
    pub gateways: Vec<GatewayRoute>,
    /// Gateways of which nobody knows what they hold: asked by user.
    pub ask: Vec<Endpoint>,
    /// All members, where somebody has to be asked.
    pub users: Arc<[UserId]>,
    /// When it was looked up.
    pub at_ms: u64,
}

impl Route {
    /// For whom a message of this seq is, per gateway: at most one audience each, none for gateways without any.
    pub fn audiences(&self, seq: Seq) -> Vec<(&Endpoint, Audience)> {
        let everyone = self.list.everyone_sees(seq);
        let known = self.gateways.iter().filter_map(|gateway| {
            let sessions = if everyone {
                Arc::clone(&gateway.sessions)
            } else {
                let both = gateway.sessions.iter().zip(&gateway.users);
                both.filter(|&(_, &user)| self.list.sees(user, seq)).map(|(&session, _)| session).collect()
            };
            (!sessions.is_empty()).then_some((&gateway.endpoint, Audience::Sessions(sessions)))
        });
        let mut audiences: Vec<_> = known.collect();
        if !self.ask.is_empty() {
            let users: Arc<[UserId]> = if everyone {
                Arc::clone(&self.users)
            } else {
                self.users.iter().copied().filter(|&user| self.list.sees(user, seq)).collect()
            };
            audiences.extend(self.ask.iter().map(|endpoint| (endpoint, Audience::Users(Arc::clone(&users)))));
        }
        audiences
    }

    /// Whether a message of this seq is for this user.
    pub fn sees(&self, user: UserId, seq: Seq) -> bool {
        self.list.everyone_sees(seq) || self.list.sees(user, seq)
    }

    fn weight(&self) -> usize {
        let sessions: usize = self.gateways.iter().map(|gateway| gateway.sessions.len()).sum();
        1 + self.list.members.len() + self.users.len() + sessions
    }
}

/// The routes last used, bounded by the sum of their members and sessions: the longest unused go first.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<ConversationId, (u64, Arc<Route>)>,
    by_use: BTreeMap<u64, ConversationId>,
    weight: usize,
    weight_max: usize,
    uses: u64,
}

impl Cache {
    /// An empty one.
    pub fn new(weight_max: usize) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), weight: 0, weight_max, uses: 0 }
    }

    /// What is held of a conversation, however old.
    pub fn get(&mut self, conversation: ConversationId) -> Option<Arc<Route>> {
        let (used, route) = self.entries.get_mut(&conversation)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, conversation);
        Some(Arc::clone(route))
    }

    /// Holds a newer one.
    pub fn insert(&mut self, conversation: ConversationId, route: Arc<Route>) {
        self.remove(conversation);
        self.uses += 1;
        self.weight += route.weight();
        self.by_use.insert(self.uses, conversation);
        self.entries.insert(conversation, (self.uses, route));
        while self.weight > self.weight_max && self.entries.len() > 1 {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some((_, route)) = self.entries.remove(&oldest) {
                self.weight -= route.weight();
            }
        }
    }

    fn remove(&mut self, conversation: ConversationId) {
        if let Some((used, route)) = self.entries.remove(&conversation) {
            self.by_use.remove(&used);
            self.weight -= route.weight();
        }
    }

    /// The sum of what is held.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::Incarnation;

    use super::*;

    fn user(number: u8) -> UserId {
        UserId::from_bytes([number; 16])
    }

    fn route(members: Vec<Member>, ask: Vec<Endpoint>) -> Route {
        let users: Vec<UserId> = members.iter().map(|member| member.user_id).collect();
        let incarnation = Incarnation(7);
        let sessions = (0..users.len() as u32).map(|slot| SessionId::new(incarnation, 0, slot, 0)).collect();
        let endpoint = Endpoint { address: "one".into(), incarnation };
        let gateways = vec![GatewayRoute { endpoint, sessions, users: users.clone() }];
        Route { list: Arc::new(MemberList::new(1, members)), gateways, ask, users: users.into(), at_ms: 0 }
    }

    fn member(number: u8, from_seq: Seq, to_seq: Option<Seq>) -> Member {
        Member { user_id: user(number), from_seq, to_seq }
    }

    #[test]
    fn a_message_goes_only_to_members_whose_range_holds_it_and_once_per_gateway() {
        let ask = Endpoint { address: "two".into(), incarnation: Incarnation(8) };
        let route = route(vec![member(1, 1, None), member(2, 5, None), member(3, 1, Some(3))], vec![ask]);
        let slots = |seq| match &route.audiences(seq)[0].1 {
            Audience::Sessions(sessions) => sessions.iter().map(|session| session.slot()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!((slots(1), slots(4), slots(5)), (vec![0, 2], vec![0], vec![0, 1]));
        let asked = route.audiences(4);
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[1].1, Audience::Users(vec![user(1)].into()));
    }

    #[test]
    fn everyones_audience_is_shared_and_not_copied() {
        let route = route(vec![member(1, 1, None), member(2, 1, None)], Vec::new());
        let Audience::Sessions(sessions) = &route.audiences(9)[0].1 else { panic!("sessions") };
        assert!(Arc::ptr_eq(sessions, &route.gateways[0].sessions));
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let one = Arc::new(route(vec![member(1, 1, None)], Vec::new()));
        let mut cache = Cache::new(one.weight() * 2);
        let ids: Vec<ConversationId> = (0..3).map(|_| ConversationId::new()).collect();
        cache.insert(ids[0], Arc::clone(&one));
        cache.insert(ids[1], Arc::clone(&one));
        assert!(cache.get(ids[0]).is_some());
        cache.insert(ids[2], Arc::clone(&one));
        assert!(cache.get(ids[1]).is_none(), "it was not used since");
        assert!(cache.get(ids[0]).is_some() && cache.get(ids[2]).is_some());
        assert_eq!(cache.weight(), one.weight() * 2);
    }
}
