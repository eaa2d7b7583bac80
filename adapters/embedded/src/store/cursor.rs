//! The cursor of a sync.

use roost_ports::store::StoreError;
use roost_protocol::{ConversationId, Epoch};

/// Where a sync goes on: at changes at or after `changed`, of which those up to the conversation `after` have been
/// told. Opaque to clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Cursor {
    /// The first change not told wholly: a transaction's number in the Store.
    pub(super) changed: u64,
    /// Within it, the last conversation told.
    pub(super) after: Option<ConversationId>,
}

impl Cursor {
    /// The cursor as clients keep it: it names the Store's epoch, so that another history's is refused.
    pub(super) fn to_text(self, epoch: Epoch) -> String {
        match self.after {
            None => format!("1.{epoch}.{}", self.changed),
            Some(after) => format!("1.{epoch}.{}.{after}", self.changed),
        }
    }

    /// Reads a cursor of this epoch; the caller still checks that `changed` is not in its future.
    pub(super) fn parse(text: &str, epoch: Epoch) -> Result<Self, StoreError> {
        Self::read(text, epoch).ok_or(StoreError::InvalidCursor)
    }

    fn read(text: &str, epoch: Epoch) -> Option<Self> {
        let mut fields = text.split('.');
        if fields.next()? != "1" || fields.next()?.parse::<Epoch>().ok()? != epoch {
            return None;
        }
        let changed = fields.next()?;
        // One cursor has one text: no sign, no leading zero, nothing beyond what SQL integers hold.
        let value: u64 = changed.parse().ok().filter(|&value: &u64| i64::try_from(value).is_ok())?;
        if value.to_string() != changed {
            return None;
        }
        let after = fields.next().map(str::parse).transpose().ok()?;
        fields.next().is_none().then_some(Self { changed: value, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_in_its_own_epoch_only() {
        let epoch = Epoch::new();
        for after in [None, Some(ConversationId::new())] {
            let cursor = Cursor { changed: 7, after };
            let text = cursor.to_text(epoch);
            assert!(text.len() <= roost_protocol::limits::CURSOR_BYTES_MAX);
            assert_eq!(Cursor::parse(&text, epoch), Ok(cursor));
            assert_eq!(Cursor::parse(&text, Epoch::new()), Err(StoreError::InvalidCursor));
        }
        let longest = Cursor { changed: i64::MAX as u64, after: Some(ConversationId::new()) };
        assert!(longest.to_text(epoch).len() <= roost_protocol::limits::CURSOR_BYTES_MAX);
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let epoch = Epoch::new();
        let texts = ["", "1", "7", "-1", "1..7", "nonsense", "2.{}.7", "1.{}.", "1.{}.-7", "1.{}.+7", "1.{}.07"];
        let more = ["1.{}.7.x", "1.{}.7.", "1.{}.18446744073709551615", "1.{}.7.{}.", "1.{}.7 ", "\u{0}"];
        for text in texts.iter().chain(&more) {
            let text = text.replace("{}", &epoch.to_string());
            assert_eq!(Cursor::parse(&text, epoch), Err(StoreError::InvalidCursor), "{text}");
        }
    }
}
