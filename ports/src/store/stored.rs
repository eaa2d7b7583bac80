//! The forms in which both SQL adapters keep what has no column type of its own: events, refusals, names.

use roost_protocol::ErrorCode;
use roost_protocol::frames::{ConversationKind, Event};

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
}
