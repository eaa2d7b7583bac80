//! Looking up who is in a conversation and where they are; without the Registry, whom to ask instead.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::{future, stream};
use parking_lot::Mutex;
use roost_ports::registry::{GatewayEntry, Located, RegistryError, SessionEntry};
use roost_ports::store::{Member, StoreError};
use roost_ports::{Clock, Registry, Store};
use roost_protocol::records::Endpoint;
use roost_protocol::{ConversationId, Incarnation, Seq, SessionId, UserId};

use super::route::{GatewayRoute, MemberList, Route};

/// A conversation to look up.
#[derive(Clone, Debug)]
pub struct Query {
    /// Which.
    pub conversation: ConversationId,
    /// The version of its members that is needed at least.
    pub version: Seq,
    /// The members, where they are known at exactly that version.
    pub list: Option<Arc<MemberList>>,
}

/// Why a conversation could not be looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueryFailure {
    /// Try again.
    Unavailable(String),
    /// The Store has no such conversation.
    Unknown,
}

/// What a look-up has found.
#[derive(Debug)]
pub struct Answers {
    /// One per query.
    pub routes: Vec<(ConversationId, Result<Route, QueryFailure>)>,
    /// The gateways with a live lease; as far as is known, where the Registry is away.
    pub gateways: Vec<Endpoint>,
    /// The Registry has said so.
    pub by_registry: bool,
}

/// Looks up members in the Store and sessions in the Registry.
pub struct Lookup {
    store: Arc<dyn Store>,
    registry: Arc<dyn Registry>,
    clock: Arc<dyn Clock>,
    began: tokio::time::Instant,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// What the Registry said last.
    known: Vec<Endpoint>,
    /// What the Store said last, and when.
    stored: Option<(u64, Vec<Endpoint>)>,
    /// Since when the Registry, which answers, has not named gateways that stand in the Store.
    unnamed: HashMap<Incarnation, u64>,
    /// Nobody asks the Registry before this, so that its time-outs do not add up.
    away_until_ms: u64,
}

const MEMBERS_PAGE: u32 = 2_000;
const USERS_AT_ONCE: usize = 1_000;
const CALLS_AT_ONCE: usize = 8;
const AWAY_MS: u64 = 1_000;
const STORED_MS: u64 = 1_000;
/// Longer than a lease: by then a gateway that lives has renewed.
const UNNAMED_MS_MAX: u64 = 15_000;
/// A list that changes between two pages is read again so often at most.
const READS_MAX: usize = 5;

impl Lookup {
    /// Looks up here.
    pub fn new(store: Arc<dyn Store>, registry: Arc<dyn Registry>, clock: Arc<dyn Clock>) -> Self {
        let memory = Mutex::new(Memory::default());
        Self { store, registry, clock, began: tokio::time::Instant::now(), memory }
    }

    /// Looks up all of these, and which gateways there are.
    pub async fn find(&self, queries: Vec<Query>, at_ms: u64) -> Answers {
        let lists: Vec<(ConversationId, Result<Arc<MemberList>, QueryFailure>)> = stream::iter(queries)
            .map(|query| async move { (query.conversation, self.list(query).await) })
            .buffered(CALLS_AT_ONCE)
            .collect()
            .await;
        let mut users: Vec<UserId> = lists
            .iter()
            .filter_map(|(_, list)| list.as_ref().ok())
            .flat_map(|list| list.members.iter().map(|member| member.user_id))
            .collect();
        users.sort_unstable();
        users.dedup();
        let (located, noted) = future::join(self.locate(users), self.noted()).await;
        let by_registry = located.is_ok();
        let mut located = located.unwrap_or_default();
        match noted {
            Ok(noted) => self.add_unnamed(&mut located, noted, by_registry),
            // Nobody says who lives, and "nobody" would settle what nobody was told.
            Err(failure) if !by_registry => {
                let routes = lists.into_iter().map(|(conversation, _)| (conversation, Err(failure.clone())));
                return Answers { routes: routes.collect(), gateways: Vec::new(), by_registry };
            }
            Err(_) => {}
        }
        let places = Places::new(located);
        let routes = lists
            .into_iter()
            .map(|(conversation, list)| (conversation, list.map(|list| places.route(list, at_ms))))
            .collect();
        Answers { routes, gateways: places.gateways, by_registry }
    }

    async fn list(&self, query: Query) -> Result<Arc<MemberList>, QueryFailure> {
        if let Some(list) = query.list {
            return Ok(list);
        }
        for _ in 0..READS_MAX {
            if let Some(list) = self.read_list(query.conversation).await? {
                if list.version < query.version {
                    return Err(QueryFailure::Unavailable("the store is behind the log".into()));
                }
                return Ok(Arc::new(list));
            }
        }
        Err(QueryFailure::Unavailable("the members change faster than they can be read".into()))
    }

    /// All pages of one version; none where it changed meanwhile.
    async fn read_list(&self, conversation: ConversationId) -> Result<Option<MemberList>, QueryFailure> {
        let mut members: Vec<Member> = Vec::new();
        let mut version = None;
        loop {
            let after = members.last().map(|member| member.user_id);
            let page = self.store.members(conversation, after, MEMBERS_PAGE).await.map_err(|error| match error {
                StoreError::NotFound => QueryFailure::Unknown,
                other => QueryFailure::Unavailable(other.to_string()),
            })?;
            if version.is_some_and(|version| version != page.version) {
                return Ok(None);
            }
            version = Some(page.version);
            let more = page.more && !page.members.is_empty();
            members.extend(page.members);
            if !more {
                return Ok(Some(MemberList::new(page.version, members)));
            }
        }
    }

    async fn locate(&self, users: Vec<UserId>) -> Result<Located, RegistryError> {
        if self.now_ms() < self.memory.lock().away_until_ms {
            return Err(RegistryError::Unavailable("it was away a moment ago".into()));
        }
        let chunks: Vec<Vec<UserId>> = match users.is_empty() {
            true => vec![Vec::new()],
            false => users.chunks(USERS_AT_ONCE).map(<[UserId]>::to_vec).collect(),
        };
        let mut calls = stream::iter(chunks)
            .map(|users| async move { self.registry.locate(&users).await })
            .buffer_unordered(CALLS_AT_ONCE);
        let mut all = Located::default();
        while let Some(located) = calls.next().await {
            let located = located.inspect_err(|error| {
                tracing::warn!(%error, "fan-out goes without the registry");
                self.memory.lock().away_until_ms = self.now_ms() + AWAY_MS;
            })?;
            all.sessions.extend(located.sessions);
            for gateway in located.gateways {
                match all.gateways.iter_mut().find(|known| known.endpoint == gateway.endpoint) {
                    // Between two chunks a gateway may have begun to say something else: the cautious answer counts.
                    Some(known) => known.complete &= gateway.complete,
                    None => all.gateways.push(gateway),
                }
            }
        }
        self.memory.lock().known = all.gateways.iter().map(|gateway| gateway.endpoint.clone()).collect();
        Ok(all)
    }

    /// Adds the gateways that the Registry does not name, to be asked. Without it those are all that may live: those
    /// known last, and those in the Store. Beside it they count for a while only, for a Registry that came back empty
    /// names nobody before all have renewed, while the note of a dead gateway may stand long where a clock is wrong.
    fn add_unnamed(&self, located: &mut Located, noted: Vec<Endpoint>, by_registry: bool) {
        let now_ms = self.now_ms();
        let mut memory = self.memory.lock();
        let known = if by_registry { Vec::new() } else { memory.known.clone() };
        let named: HashSet<Incarnation> = located.gateways.iter().map(|gateway| gateway.endpoint.incarnation).collect();
        let mut since = HashMap::new();
        for endpoint in noted.into_iter().chain(known).filter(|endpoint| !named.contains(&endpoint.incarnation)) {
            let first = memory.unnamed.get(&endpoint.incarnation).copied().filter(|_| by_registry).unwrap_or(now_ms);
            let again = since.insert(endpoint.incarnation, first).is_some();
            if !again && now_ms.saturating_sub(first) < UNNAMED_MS_MAX {
                located.gateways.push(GatewayEntry { endpoint, complete: false });
            }
        }
        memory.unnamed = since;
    }

    /// The gateways that stand in the Store: as it said last, where it does not answer now.
    async fn noted(&self) -> Result<Vec<Endpoint>, QueryFailure> {
        let now_ms = self.now_ms();
        let held = self.memory.lock().stored.clone();
        if let Some((_, stored)) = held.clone().filter(|(at, _)| now_ms < at + STORED_MS) {
            return Ok(stored);
        }
        let stored = match (self.store.gateways(self.clock.now_ms()).await, held) {
            (Ok(stored), _) => stored,
            (Err(error), held) => {
                tracing::warn!(%error, "the store does not say which gateways there are");
                held.ok_or_else(|| QueryFailure::Unavailable(error.to_string()))?.1
            }
        };
        self.memory.lock().stored = Some((now_ms, stored.clone()));
        Ok(stored)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// An answer of the Registry, by user and by gateway.
struct Places {
    /// In order of user id.
    sessions: Vec<SessionEntry>,
    /// The gateways that are complete, and the index of each.
    complete: Vec<Endpoint>,
    indices: HashMap<Incarnation, usize>,
    ask: Vec<Endpoint>,
    gateways: Vec<Endpoint>,
}

impl Places {
    fn new(located: Located) -> Self {
        let mut sessions = located.sessions;
        sessions.sort_by_key(|entry| entry.user_id);
        let gateways: Vec<Endpoint> = located.gateways.iter().map(|gateway| gateway.endpoint.clone()).collect();
        let (complete, ask): (Vec<_>, Vec<_>) = located.gateways.into_iter().partition(|gateway| gateway.complete);
        let complete: Vec<Endpoint> = complete.into_iter().map(|gateway| gateway.endpoint).collect();
        let indices = complete.iter().enumerate().map(|(index, endpoint)| (endpoint.incarnation, index)).collect();
        Self { sessions, complete, indices, ask: ask.into_iter().map(|gateway| gateway.endpoint).collect(), gateways }
    }

    fn route(&self, list: Arc<MemberList>, at_ms: u64) -> Route {
        let mut by_gateway: Vec<Vec<(SessionId, UserId)>> = vec![Vec::new(); self.complete.len()];
        // Both are in order of user id, so that each member is looked for behind the one before.
        let mut behind = &self.sessions[..];
        for member in &list.members {
            behind = &behind[behind.partition_point(|entry| entry.user_id < member.user_id)..];
            for entry in behind.iter().take_while(|entry| entry.user_id == member.user_id) {
                // A gateway that is not complete is asked by user, which covers the sessions known there.
                if let Some(&index) = self.indices.get(&entry.session_id.incarnation()) {
                    by_gateway[index].push((entry.session_id, entry.user_id));
                }
            }
        }
        let held = self.complete.iter().zip(by_gateway).filter(|(_, sessions)| !sessions.is_empty());
        let gateways = held.map(|(endpoint, mut sessions)| {
            // In the order of the gateway's slots, so that its shards walk through memory and not all over it.
            sessions.sort_unstable();
            let (sessions, users): (Vec<SessionId>, Vec<UserId>) = sessions.into_iter().unzip();
            GatewayRoute { endpoint: endpoint.clone(), sessions: sessions.into(), users }
        });
        let users = match self.ask.is_empty() {
            true => Arc::from([]),
            false => list.members.iter().map(|member| member.user_id).collect(),
        };
        Route { gateways: gateways.collect(), ask: self.ask.clone(), users, at_ms, list }
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::DeviceId;

    use super::*;

    #[test]
    fn every_session_of_each_member_is_found_on_its_gateway_in_whatever_order_the_registry_answers() {
        let user = |number| UserId::from_bytes([number; 16]);
        let session = |gateway, slot| SessionId::new(Incarnation(gateway), 0, slot, 0);
        let entry = |number, gateway, slot| SessionEntry {
            user_id: user(number),
            device_id: DeviceId::from_bytes([0; 16]),
            session_id: session(gateway, slot),
        };
        let endpoint = |gateway| Endpoint { address: String::new(), incarnation: Incarnation(gateway) };
        let gateway = |number, complete| GatewayEntry { endpoint: endpoint(number), complete };
        // 2 is nobody's member here, 3 has no session, and gateway 3 is asked by user.
        let sessions =
            vec![entry(5, 1, 3), entry(2, 1, 2), entry(4, 1, 4), entry(1, 2, 0), entry(4, 2, 1), entry(1, 3, 0)];
        let gateways = vec![gateway(1, true), gateway(2, true), gateway(3, false), gateway(4, true)];
        let members = [1, 3, 4, 5].map(|number| Member { user_id: user(number), from_seq: 1, to_seq: None });
        let list = Arc::new(MemberList::new(1, members.to_vec()));
        let route = Places::new(Located { sessions, gateways }).route(list, 7);
        let held = |gateway, some: &[(u8, u32)]| GatewayRoute {
            endpoint: endpoint(gateway),
            sessions: some.iter().map(|&(_, slot)| session(gateway, slot)).collect(),
            users: some.iter().map(|&(number, _)| user(number)).collect(),
        };
        assert_eq!(route.gateways, [held(1, &[(5, 3), (4, 4)]), held(2, &[(1, 0), (4, 1)])]);
        assert_eq!((route.ask, route.users.len()), (vec![endpoint(3)], 4));
    }
}
