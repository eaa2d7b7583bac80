//! Sessions by user, over all shards.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;
use roost_protocol::UserId;

/// Maps that a user's id chooses among: none of them grows, and so is copied, all at once.
const MAPS: usize = 256;

/// See the module.
pub(super) struct Users {
    counts: Box<[Mutex<HashMap<UserId, u16>>]>,
    /// 0: nothing is counted.
    sessions_max: u16,
}

impl Users {
    pub(super) fn new(sessions_max: usize) -> Self {
        let sessions_max = u16::try_from(sessions_max).unwrap_or(u16::MAX);
        Self { counts: (0..MAPS).map(|_| Mutex::default()).collect(), sessions_max }
    }

    pub(super) fn enter(&self, user: UserId) -> bool {
        if self.sessions_max == 0 {
            return true;
        }
        let mut counts = self.map(user).lock();
        let count = counts.entry(user).or_insert(0);
        let fits = *count < self.sessions_max;
        *count += u16::from(fits);
        fits
    }

    pub(super) fn leave(&self, user: UserId) {
        if self.sessions_max == 0 {
            return;
        }
        if let Entry::Occupied(mut entry) = self.map(user).lock().entry(user) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// By the last byte, which is random in every kind of id.
    fn map(&self, user: UserId) -> &Mutex<HashMap<UserId, u16>> {
        &self.counts[usize::from(user.as_bytes()[15]) % MAPS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_refused_until_one_has_left() {
        let users = Users::new(2);
        let (one, other) = (UserId::new(), UserId::new());
        assert_eq!(
            [users.enter(one), users.enter(one), users.enter(one), users.enter(other)],
            [true, true, false, true]
        );
        users.leave(one);
        assert!(users.enter(one) && !users.enter(one));
        for _ in 0..2 {
            users.leave(one);
        }
        users.leave(other);
        assert!(users.counts.iter().all(|map| map.lock().is_empty()));
        let unlimited = Users::new(0);
        assert!((0..100_000).all(|_| unlimited.enter(one)));
    }
}
