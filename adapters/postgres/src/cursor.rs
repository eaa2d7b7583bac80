//! The cursor of heads: which changes a client has seen, opaque to it.

use std::fmt;
use std::str::FromStr;

use roost_protocol::limits::CURSOR_BYTES_MAX;
use roost_protocol::{ConversationId, Epoch};
use uuid::Uuid;

/// Everything up to `(changed, conversation)` has been told, and whatever a transaction below `floor` has changed.
///
/// Changes are named by their transaction, and transactions do not end in the order of their numbers. Hence the
/// floor: the lowest transaction that was still running when the first page of an answer was read. Where the pages end,
/// the next answer begins there, if that is lower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    pub(crate) epoch: Epoch,
    pub(crate) changed: i64,
    pub(crate) conversation: Uuid,
    pub(crate) floor: i64,
}

const _: () = assert!(2 + 36 + 1 + 16 + 1 + 32 + 1 + 16 <= CURSOR_BYTES_MAX, "the longest cursor fits");

impl Cursor {
    /// Before everything.
    pub(crate) fn start(epoch: Epoch) -> Self {
        Self { epoch, changed: 0, conversation: Uuid::nil(), floor: i64::MAX }
    }

    /// Where the answer that began at this cursor goes on.
    ///
    /// `last` is the last change told, `running` the lowest transaction that was running in the snapshot. At the end of
    /// the pages it is not the floor alone: a crash can forget transactions that changed nothing, and give their
    /// numbers again. What a client has been told is committed, and numbers up to there never come again.
    pub(crate) fn after(self, last: Option<(i64, ConversationId)>, running: i64, more: bool) -> Self {
        let floor = self.floor.min(running);
        let (changed, conversation) = last.map_or((self.changed, self.conversation), |(at, id)| (at, id.uuid()));
        if more {
            return Self { changed, conversation, floor, ..self };
        }
        Self { changed: changed.min(floor - 1), conversation: Uuid::max(), floor: i64::MAX, ..self }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (epoch, conversation) = (self.epoch, self.conversation);
        write!(f, "p.{epoch}.{:x}.{}.{:x}", self.changed, conversation.simple(), self.floor)
    }
}

/// Not one of ours.
#[derive(Debug)]
pub(crate) struct NotACursor;

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let read = |text: &str| {
            let mut parts = text.split('.');
            let tag = parts.next()?;
            let epoch = parts.next()?.parse().ok()?;
            let changed = i64::from_str_radix(parts.next()?, 16).ok()?;
            let conversation = Uuid::try_parse(parts.next()?).ok()?;
            let floor = i64::from_str_radix(parts.next()?, 16).ok()?;
            (tag == "p" && parts.next().is_none()).then_some(Cursor { epoch, changed, conversation, floor })
        };
        // What we would not have written ourselves is not ours: signs, upper case, hyphens.
        read(text).filter(|cursor| cursor.changed >= -1 && cursor.to_string() == text).ok_or(NotACursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_anything_else_is_refused() {
        let cursor = Cursor { epoch: Epoch::new(), changed: i64::MAX, conversation: Uuid::max(), floor: i64::MAX };
        let text = cursor.to_string();
        assert!(text.len() <= CURSOR_BYTES_MAX);
        assert_eq!(text.parse::<Cursor>().expect("ours"), cursor);
        for wrong in ["", "p", "x", &text[1..], &text.to_uppercase(), &format!("{text}."), &text.replace("p.", "p.+")] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_end_of_the_pages_goes_back_to_what_was_running_at_the_first() {
        let id = ConversationId::new();
        let first = Cursor::start(Epoch::new()).after(Some((90, id)), 80, true);
        assert_eq!((first.changed, first.conversation, first.floor), (90, id.uuid(), 80));
        let end = first.after(Some((120, id)), 130, false);
        assert_eq!((end.changed, end.conversation), (79, Uuid::max()), "80 may have ended since");
        let idle = end.after(None, 200, false);
        assert_eq!(idle.changed, 79, "numbers of transactions that changed nothing are not relied on");
        assert_eq!(idle.after(Some((150, id)), 200, false).changed, 150);
    }
}
