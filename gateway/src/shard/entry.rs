//! What a shard keeps beside each session, and who has sessions here.

use std::collections::HashMap;
use std::net::SocketAddr;

use roost_protocol::UserId;
use roost_session::framing::peer::Neighbour;
use roost_session::machine::Session;

use crate::admission::Reason;
use crate::slab::{Key, Slab};

const NONE: u32 = u32::MAX;

/// A connection of the shard.
pub(super) struct Entry {
    pub(super) session: Session,
    /// Only while it is not live: what is known of the peer for the HTTP server.
    pub(super) opening: Option<Box<Peer>>,
    /// Whom it is counted for.
    pub(super) neighbour: Option<Neighbour>,
    /// The next slot with a session of the same user.
    next_of_user: u32,
    /// What the driver was last told to receive at once.
    pub(super) receives: u32,
    /// Its queue as it was counted last.
    pub(super) counted_bytes: u32,
    /// It stands in the list of those to be polled.
    pub(super) touched: bool,
    /// It is in the users' map, and the Registry has been or will be told.
    pub(super) registered: bool,
    /// It is counted among those that are not live yet.
    pub(super) counted_opening: bool,
    /// It is counted as live.
    pub(super) counted_live: bool,
    /// The driver has been told to close or release it.
    pub(super) leaving: bool,
}

/// What the HTTP server would want to know.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) head: bytes::Bytes,
    /// Why it is not to become a session.
    pub(super) refused: Option<Reason>,
}

impl Entry {
    pub(super) fn new(
        session: Session,
        address: SocketAddr,
        neighbour: Option<Neighbour>,
        refused: Option<Reason>,
    ) -> Self {
        Self {
            session,
            opening: Some(Box::new(Peer { address, head: bytes::Bytes::new(), refused })),
            neighbour,
            next_of_user: NONE,
            receives: 0,
            counted_bytes: 0,
            touched: false,
            registered: false,
            counted_opening: true,
            counted_live: false,
            leaving: false,
        }
    }
}

/// Sessions by user: the first slot here, the others linked through their entries.
#[derive(Default)]
pub(super) struct Users {
    first: HashMap<UserId, u32>,
}

impl Users {
    pub(super) fn add(&mut self, user: UserId, key: Key, sessions: &mut Slab<Entry>) {
        let next = self.first.insert(user, key.slot).unwrap_or(NONE);
        if let Some(entry) = sessions.get_mut(key) {
            entry.next_of_user = next;
        }
    }

    pub(super) fn remove(&mut self, user: UserId, key: Key, sessions: &mut Slab<Entry>) {
        let Some(next) = sessions.get_mut(key).map(|entry| std::mem::replace(&mut entry.next_of_user, NONE)) else {
            return;
        };
        let Some(&first) = self.first.get(&user) else { return };
        if first == key.slot {
            match next {
                NONE => self.first.remove(&user),
                next => self.first.insert(user, next),
            };
            return;
        }
        let mut slot = first;
        while let Some(entry) = sessions.key_at(slot).and_then(|key| sessions.get_mut(key)) {
            if entry.next_of_user == key.slot {
                entry.next_of_user = next;
                return;
            }
            slot = entry.next_of_user;
        }
    }

    /// The user's sessions.
    pub(super) fn of(&self, user: UserId, sessions: &Slab<Entry>, into: &mut Vec<Key>) {
        let mut slot = self.first.get(&user).copied().unwrap_or(NONE);
        while let Some(key) = sessions.key_at(slot) {
            into.push(key);
            slot = sessions.get(key).map_or(NONE, |entry| entry.next_of_user);
        }
    }
}

#[cfg(test)]
mod tests {
    use roost_session::machine::{Now, Settings};

    use super::*;

    #[test]
    fn a_session_costs_little_beside_itself() {
        assert!(size_of::<Entry>() <= 288, "{} bytes", size_of::<Entry>());
    }

    #[test]
    fn a_users_sessions_are_found_until_they_leave() {
        let (mut users, mut sessions) = (Users::default(), Slab::new());
        let settings = Settings::default();
        let (user, other) = (UserId::new(), UserId::new());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let keys: Vec<Key> = (0..5)
            .map(|_| sessions.insert(Entry::new(Session::new(&settings, Now::default()), address, None, None)))
            .collect();
        users.add(other, keys[4], &mut sessions);
        for key in &keys[..4] {
            users.add(user, *key, &mut sessions);
        }
        for (gone, left) in [(1, vec![0, 2, 3]), (3, vec![0, 2]), (0, vec![2]), (2, vec![])] {
            users.remove(user, keys[gone], &mut sessions);
            let mut found = Vec::new();
            users.of(user, &sessions, &mut found);
            found.sort_by_key(|key| key.slot);
            assert_eq!(found, left.iter().map(|&at: &usize| keys[at]).collect::<Vec<_>>());
        }
        let mut found = Vec::new();
        users.of(other, &sessions, &mut found);
        assert_eq!(found, [keys[4]]);
    }
}
