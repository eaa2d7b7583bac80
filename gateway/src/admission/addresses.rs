//! Connections and handshakes by address: one small entry for each address that has any.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;
use roost_session::framing::peer::Neighbour;
use roost_session::rate::{Bucket, Rate};

use super::{Entrance, Reason};

/// An address may take this part of the handshakes, and of those that are under way.
const SHARE: usize = 2;
/// Connections over its limits that an address has answered at one time. Beyond, they are dropped.
const ANSWERS_MAX: u32 = 64;
/// Entries that only wait for their bucket to fill are looked for when there are twice as many as after the last look.
const CLEANED_AT: usize = 1_024;

/// See the module.
pub(super) struct Addresses {
    known: Mutex<Known>,
    /// 0: nothing is counted.
    connections_max: u32,
    openings_max: u32,
    rate: Rate,
}

struct Known {
    entries: HashMap<Neighbour, Address>,
    cleaned_at: usize,
}

#[derive(Default)]
struct Address {
    connections: u32,
    openings: u32,
    handshakes: Bucket,
}

impl Addresses {
    pub(super) fn new(connections_max: usize, openings_max: usize, all: Rate) -> Self {
        let share = |whole: u32| if whole == 0 { 0 } else { (whole / SHARE as u32).max(1) };
        Self {
            known: Mutex::new(Known { entries: HashMap::new(), cleaned_at: CLEANED_AT }),
            connections_max: u32::try_from(connections_max).unwrap_or(u32::MAX),
            openings_max: u32::try_from(openings_max / SHARE).unwrap_or(u32::MAX).max(1),
            rate: Rate { per_second: share(all.per_second), burst: share(all.burst) },
        }
    }

    /// Judges one more connection, and says whether it is counted: then it has to leave one day.
    pub(super) fn enter(&self, neighbour: Neighbour, now_ms: u64) -> (Entrance, bool) {
        if self.connections_max == 0 {
            return (Entrance::Open, false);
        }
        let mut known = self.known.lock();
        known.clean(now_ms);
        let address = known.entries.entry(neighbour).or_default();
        let over = if address.connections >= self.connections_max {
            Some(Reason::AddressConnections)
        } else if address.openings >= self.openings_max || address.handshakes.take(self.rate, now_ms).is_err() {
            Some(Reason::AddressRate)
        } else {
            None
        };
        let entrance = match over {
            None => Entrance::Open,
            Some(_) if address.openings >= self.openings_max.saturating_add(ANSWERS_MAX) => Entrance::Dropped,
            Some(_) if address.connections >= self.connections_max.saturating_add(ANSWERS_MAX) => Entrance::Dropped,
            Some(reason) => Entrance::Refused(reason),
        };
        let counted = entrance != Entrance::Dropped;
        if counted {
            address.connections += 1;
            address.openings += 1;
        }
        (entrance, counted)
    }

    pub(super) fn no_longer_opening(&self, neighbour: Neighbour) {
        if let Some(address) = self.known.lock().entries.get_mut(&neighbour) {
            address.openings -= 1;
        }
    }

    pub(super) fn leave(&self, neighbour: Neighbour, now_ms: u64) {
        let mut known = self.known.lock();
        if let Entry::Occupied(mut entry) = known.entries.entry(neighbour) {
            entry.get_mut().connections -= 1;
            if entry.get().is_idle(now_ms) {
                entry.remove();
            }
        }
    }
}

impl Address {
    fn is_idle(&self, now_ms: u64) -> bool {
        self.connections == 0 && self.handshakes.is_full(now_ms)
    }
}

impl Known {
    fn clean(&mut self, now_ms: u64) {
        if self.entries.len() >= self.cleaned_at {
            self.entries.retain(|_, address| !address.is_idle(now_ms));
            self.cleaned_at = (2 * self.entries.len()).max(CLEANED_AT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(number: u32) -> Neighbour {
        Neighbour::of(std::net::Ipv4Addr::from(number).into())
    }

    #[test]
    fn an_address_has_its_connections_and_answers_and_no_more() {
        let addresses = Addresses::new(3, 1_000, Rate::UNLIMITED);
        let one = neighbour(1);
        let judged: Vec<_> = (0..70).map(|_| addresses.enter(one, 0)).collect();
        assert!(judged[..3].iter().all(|judged| *judged == (Entrance::Open, true)));
        assert!(judged[3..67].iter().all(|judged| *judged == (Entrance::Refused(Reason::AddressConnections), true)));
        assert!(judged[67..].iter().all(|judged| *judged == (Entrance::Dropped, false)));
        assert_eq!(addresses.enter(neighbour(2), 0), (Entrance::Open, true), "others do not notice");
        for _ in 0..67 {
            addresses.no_longer_opening(one);
            addresses.leave(one, 1);
        }
        assert_eq!(addresses.known.lock().entries.len(), 1);
        assert_eq!(addresses.enter(one, 1), (Entrance::Open, true));
    }

    #[test]
    fn an_address_has_its_share_of_the_handshakes() {
        let addresses = Addresses::new(1_000, 1_000, Rate { per_second: 20, burst: 8 });
        let open =
            |number, now_ms| (0..10).filter(|_| addresses.enter(neighbour(number), now_ms).0 == Entrance::Open).count();
        assert_eq!((open(1, 0), open(1, 0), open(2, 0)), (4, 0, 4));
        assert_eq!(open(1, 100), 1, "one in a tenth of a second");
        let silent = Addresses::new(1_000, 8, Rate::UNLIMITED);
        let judged = (0..100).map(|_| silent.enter(neighbour(1), 0).0);
        let open = judged.filter(|entrance| *entrance == Entrance::Open).count();
        assert_eq!(open, 4, "half of those under way");
    }

    #[test]
    fn what_is_remembered_is_bounded_by_who_is_there() {
        let addresses = Addresses::new(10, 1_000, Rate::per_second(100));
        for number in 0..100_000 {
            let now_ms = u64::from(number);
            assert_eq!(addresses.enter(neighbour(number), now_ms), (Entrance::Open, true));
            addresses.no_longer_opening(neighbour(number));
            addresses.leave(neighbour(number), now_ms);
        }
        assert!(addresses.known.lock().entries.len() <= CLEANED_AT);
        let nobody = Addresses::new(0, 1_000, Rate::per_second(1));
        assert!((0..100).all(|_| nobody.enter(neighbour(1), 0) == (Entrance::Open, false)));
        assert!(nobody.known.lock().entries.is_empty());
    }
}
