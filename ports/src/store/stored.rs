//! The forms in which both SQL adapters keep what has no column type of its own: events, refusals, sync cursors, names.

use roost_protocol::frames::{ConversationKind, Event};
use roost_protocol::{ConversationId, Epoch, ErrorCode};

use super::StoreError;
use crate::delivery::VerdictOutcome;

/// An event as its row keeps it: JSON. Frozen: stored rows hold it.
pub fn event_to_text(event: &Event) -> String {
    match event {
        Event::Created { kind, title, member_count } => serde_json::json!({
            "type": "created",
            "kind": kind.as_str(),
            "title": title,
            "member_count": member_count,
        })
        .to_string(),
    }
}

/// The event of a row; none where the text is not one of ours.
pub fn event_from_text(text: &str) -> Option<Event> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    match value.get("type")?.as_str()? {
        "created" => Some(Event::Created {
            kind: ConversationKind::parse(value.get("kind")?.as_str()?)?,
            title: value.get("title").and_then(|title| title.as_str()).map(str::to_owned),
            member_count: value.get("member_count")?.as_u64()?.try_into().ok()?,
        }),
        _ => None,
    }
}

/// The verdict of a rejection's row. A code of a newer build is told as one that no retry can help.
pub fn rejection(code: &str, message: String) -> VerdictOutcome {
    VerdictOutcome::Rejected { code: ErrorCode::parse(code).unwrap_or(ErrorCode::InvalidField), message }
}

/// The form of a user name by which it is unique.
pub fn fold_name(name: &str) -> String {
    name.to_lowercase()
}

/// Where a sync goes on: at changes at or after `changed`, of which those up to the conversation `after` have been
/// told. Opaque to clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cursor {
    /// The first change not told wholly: a transaction's number in the Store.
    pub changed: u64,
    /// Within it, the last conversation told.
    pub after: Option<ConversationId>,
}

impl Cursor {
    /// The cursor as clients keep it: it names the Store's epoch, so that another history's is refused.
    pub fn to_text(self, epoch: Epoch) -> String {
        match self.after {
            None => format!("1.{epoch}.{}", self.changed),
            Some(after) => format!("1.{epoch}.{}.{after}", self.changed),
        }
    }

    /// Reads a cursor of this epoch; the caller still checks that `changed` is not in its future.
    pub fn parse(text: &str, epoch: Epoch) -> Result<Self, StoreError> {
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
    fn an_event_reads_back_and_its_form_is_frozen() {
        for title in [None, Some("naïve \"quotes\" \u{0}".to_owned())] {
            let event = Event::Created { kind: ConversationKind::Group, title, member_count: 10_000 };
            assert_eq!(event_from_text(&event_to_text(&event)), Some(event));
        }
        let event = Event::Created { kind: ConversationKind::Direct, title: None, member_count: 2 };
        let frozen = r#"{"type":"created","kind":"direct","title":null,"member_count":2}"#;
        assert_eq!(event_from_text(frozen), Some(event));
        assert_eq!(event_from_text("{}"), None);
        assert_eq!(event_from_text("not JSON"), None);
    }

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
