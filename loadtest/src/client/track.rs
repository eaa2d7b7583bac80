//! What one session has of one conversation: every number once, gaps noticed, duplicates counted.

use std::collections::BTreeSet;

use roost_protocol::ConversationId;

/// A conversation as a session sees it.
#[derive(Debug)]
pub struct Track {
    /// Its number in the plan.
    pub number: u32,
    /// Its id.
    pub conversation: ConversationId,
    /// What is at or below this came before the run; not known before the first head or message.
    base: Option<u64>,
    /// Everything up to here is here.
    shown: u64,
    /// What is here beyond a gap.
    beyond: BTreeSet<u64>,
    /// The highest seq told of.
    known: u64,
    /// A page is being waited for.
    pub asking: bool,
}

/// What a message is to a session.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// It is new.
    New,
    /// It was there already.
    Duplicate,
    /// It belongs to the time before the run.
    Old,
}

impl Track {
    /// Of a conversation that nothing is known of.
    pub fn new(number: u32, conversation: ConversationId) -> Self {
        let beyond = BTreeSet::new();
        Self { number, conversation, base: None, shown: 0, beyond, known: 0, asking: false }
    }

    /// A message has come.
    pub fn message(&mut self, seq: u64) -> News {
        // Who does not ask for heads begins with the first message.
        let base = *self.base.get_or_insert_with(|| {
            self.shown = seq.saturating_sub(1);
            self.shown
        });
        self.known = self.known.max(seq);
        if seq <= base {
            return News::Old;
        }
        if seq <= self.shown || !self.beyond.insert(seq) {
            return News::Duplicate;
        }
        self.advance();
        News::New
    }

    /// A head has come.
    pub fn head(&mut self, last_seq: u64, asked_for: bool) {
        if self.base.is_none() {
            // Told without having asked: the newest message is one that should have come.
            self.shown = if asked_for { last_seq } else { last_seq.saturating_sub(1) };
            self.base = Some(self.shown);
        }
        self.known = self.known.max(last_seq);
    }

    /// A page has come that settles this range. Its messages were given to [`Self::message`] before.
    pub fn page(&mut self, from: u64, to: u64) {
        self.asking = false;
        if from > to {
            // It settles nothing: what we were told of is not for us.
            self.known = self.shown;
        } else if from <= self.shown + 1 && to > self.shown {
            self.shown = to;
            self.beyond = self.beyond.split_off(&(to + 1));
            self.advance();
        }
    }

    /// After which seq history is to be asked for now, if at all.
    pub fn wants(&self) -> Option<u64> {
        (!self.asking && self.base.is_some() && self.known > self.shown).then_some(self.shown)
    }

    /// The connection is a new one: nothing is being waited for.
    pub fn reconnected(&mut self) {
        self.asking = false;
    }

    /// Counts from here on.
    pub fn begin(&mut self) {
        if self.base.is_some() {
            self.base = Some(self.shown);
        }
    }

    /// How many of these messages should be here, and how many are not.
    pub fn compare(&self, written: &[(u64, u64)]) -> (u64, u64) {
        let base = self.base.unwrap_or(0);
        let due = written.iter().flat_map(|&(from, to)| from.max(base + 1)..=to);
        let (mut expected, mut missing) = (0, 0);
        for seq in due {
            expected += 1;
            missing += u64::from(seq > self.shown && !self.beyond.contains(&seq));
        }
        (expected, missing)
    }

    fn advance(&mut self) {
        while self.beyond.remove(&(self.shown + 1)) {
            self.shown += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn track() -> Track {
        Track::new(0, ConversationId::from_bytes([1; 16]))
    }

    #[test]
    fn each_number_counts_once_and_a_gap_is_asked_for() {
        let mut track = track();
        track.head(4, true);
        assert_eq!(track.message(4), News::Old);
        assert_eq!(track.message(5), News::New);
        assert_eq!(track.message(7), News::New);
        assert_eq!(track.message(7), News::Duplicate);
        assert_eq!(track.wants(), Some(5));
        assert_eq!(track.compare(&[(5, 7)]), (3, 1));
        assert_eq!(track.message(6), News::New);
        assert_eq!((track.wants(), track.compare(&[(1, 7)])), (None, (3, 0)));
        track.begin();
        assert_eq!(track.compare(&[(1, 8)]), (1, 1), "counted from here on");
    }

    #[test]
    fn a_page_settles_its_range_and_an_empty_one_ends_the_asking() {
        let mut track = track();
        track.head(2, true);
        track.head(9, false);
        assert_eq!(track.wants(), Some(2));
        track.page(3, 6);
        assert_eq!(track.wants(), Some(6));
        track.page(7, 6);
        assert_eq!(track.wants(), None);
    }

    #[test]
    fn a_session_that_never_asked_begins_with_what_it_is_sent() {
        let mut one = track();
        assert_eq!(one.message(2), News::New);
        assert_eq!((one.wants(), one.compare(&[(2, 2)])), (None, (1, 0)));
        let mut other = track();
        assert_eq!(other.compare(&[(2, 2)]), (1, 1), "nothing came");
        other.head(2, false);
        assert_eq!(other.wants(), Some(1));
        assert_eq!(other.message(2), News::New);
    }
}
