//! What users see: history, heads, conversations, members.

use roost_ports::store::{ConversationEntry, ConversationList, Member, MembersPage, StoreError};
use roost_protocol::frames::{ConversationKind, Head, Heads, HistoryRange, Message, Page};
use roost_protocol::limits::{HEADS_MAX, MEMBERS_MAX, PAGE_BYTES_MAX, PAGE_MESSAGES_MAX};
use roost_protocol::{ConversationId, Epoch, Seq, UserId};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::cursor::Cursor;
use super::numbered::{ConversationNumber, deliver_record, join_newest, message_columns, newest_seq};
use super::schema;

/// The last seq of a conversation that is for a member `m`.
macro_rules! last_seq {
    () => {
        concat!("MIN(", newest_seq!(), ", IFNULL(m.to_seq, ", newest_seq!(), "))")
    };
}

/// A page of a conversation; none where it is not this user's.
pub(super) fn history(
    connection: &Connection,
    user: UserId,
    conversation: ConversationId,
    range: HistoryRange,
    limit: u32,
) -> rusqlite::Result<Option<Page>> {
    let mut select = connection.prepare_cached(concat!(
        "SELECT c.number, m.from_seq, ",
        last_seq!(),
        " FROM conversations c CROSS JOIN members m ON m.conversation = c.number AND m.user_id = ?2 ",
        join_newest!("c.number"),
        "WHERE c.conversation_id = ?1",
    ))?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let mine = select.query_row(params![conversation.as_bytes(), user.as_bytes()], read).optional()?;
    let Some((number, first, last)) = mine else {
        return Ok(None);
    };
    let mine = Mine { conversation, number: ConversationNumber(number), first, last };
    let limit = limit.clamp(1, PAGE_MESSAGES_MAX);
    let epoch = schema::epoch(connection)?;
    match range {
        HistoryRange::After(seq) => mine.after(connection, seq, limit, epoch).map(Some),
        HistoryRange::Before(seq) => mine.before(connection, seq, limit, epoch).map(Some),
    }
}

/// The part of a conversation that is for one user.
struct Mine {
    conversation: ConversationId,
    number: ConversationNumber,
    first: Seq,
    last: Seq,
}

impl Mine {
    fn after(&self, connection: &Connection, seq: Seq, limit: u32, epoch: Epoch) -> rusqlite::Result<Page> {
        let from = seq.min(self.last) + 1;
        let order =
            concat!("SELECT ", message_columns!(), " FROM messages WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3");
        let messages = self.messages(connection, order, from.max(self.first), self.last, limit)?;
        // What is before the first seq for this user is settled too: it is no gap.
        let newest = messages.last().map_or(self.last, |message| message.seq);
        let more = newest < self.last;
        Ok(Page { conversation_id: self.conversation, from, to: newest, messages, more, epoch })
    }

    fn before(&self, connection: &Connection, seq: Seq, limit: u32, epoch: Epoch) -> rusqlite::Result<Page> {
        let to = seq.saturating_sub(1).min(self.last);
        let order = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT ?3"
        );
        let mut messages = self.messages(connection, order, self.first, to, limit)?;
        messages.reverse();
        let oldest = messages.first().map_or(self.first, |message| message.seq);
        let more = oldest > self.first;
        let from = if more { oldest } else { 1 };
        Ok(Page { conversation_id: self.conversation, from, to, messages, more, epoch })
    }

    /// At most so many, and fewer where their bodies are large.
    fn messages(
        &self,
        connection: &Connection,
        sql: &str,
        from: Seq,
        to: Seq,
        limit: u32,
    ) -> rusqlite::Result<Vec<Message>> {
        if from > to {
            return Ok(Vec::new());
        }
        let mut select = connection.prepare_cached(sql)?;
        let ids = (self.number.message_id(from), self.number.message_id(to));
        let mut rows = select.query(params![ids.0, ids.1, limit])?;
        let (mut messages, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let message = deliver_record(self.conversation, row)?.message;
            bytes += message.body.len();
            if bytes > PAGE_BYTES_MAX && !messages.is_empty() {
                break;
            }
            messages.push(message);
        }
        Ok(messages)
    }
}

/// The heads that changed at or after the cursor.
///
/// There is one writer: what is committed has a lower `changed` than all that comes. So the cursor after a whole answer
/// is the number that the next transaction will take.
pub(super) fn heads(
    connection: &Connection,
    user: UserId,
    since: Option<&str>,
    limit: u32,
) -> rusqlite::Result<Result<Heads, StoreError>> {
    let (epoch, changed) = (schema::epoch(connection)?, schema::last_change(connection)?);
    let nothing_told = Cursor { changed: 0, after: None };
    let since = match since.map_or(Ok(nothing_told), |text| Cursor::parse(text, epoch)) {
        Ok(since) if since.changed <= changed + 1 => since,
        _ => return Ok(Err(StoreError::InvalidCursor)),
    };
    let limit = limit.clamp(1, HEADS_MAX) as usize;
    // A membership that has ended changes no more, whatever is said afterwards.
    let mut select = connection.prepare_cached(concat!(
        "SELECT c.conversation_id, m.from_seq, ",
        last_seq!(),
        ", m.read_seq, m.delivered_seq,
                IIF(m.to_seq IS NULL, MAX(newest.changed, m.changed), m.changed) AS last_change
         FROM members m CROSS JOIN conversations c ON c.number = m.conversation ",
        join_newest!("m.conversation"),
        "WHERE m.user_id = ?1 AND (last_change > ?2 OR (last_change = ?2 AND c.conversation_id > ?3))
         ORDER BY last_change, c.conversation_id LIMIT ?4",
    ))?;
    let after: &[u8] = since.after.as_ref().map_or(&[], |after| after.as_bytes());
    let rows = select.query_map(params![user.as_bytes(), since.changed, after, limit + 1], |row| {
        Ok((head(row)?, row.get::<_, u64>(5)?))
    })?;
    let mut told: Vec<(Head, u64)> = rows.collect::<rusqlite::Result<_>>()?;
    let more = told.len() > limit;
    told.truncate(limit);
    let next = match told.last() {
        Some((head, changed)) if more => Cursor { changed: *changed, after: Some(head.conversation_id) },
        _ => Cursor { changed: changed + 1, after: None },
    };
    let conversations = told.into_iter().map(|(head, _)| head).collect();
    Ok(Ok(Heads { conversations, next: Some(next.to_text(epoch)), more, epoch: Some(epoch) }))
}

/// A user's conversations in order of id.
pub(super) fn conversations(
    connection: &Connection,
    user: UserId,
    after: Option<ConversationId>,
    limit: u32,
) -> rusqlite::Result<ConversationList> {
    let limit = limit.clamp(1, HEADS_MAX) as usize;
    let mut select = connection.prepare_cached(concat!(
        "SELECT c.conversation_id, m.from_seq, ",
        last_seq!(),
        ", m.read_seq, m.delivered_seq, c.kind, c.title,
                IIF(c.kind = 'direct',
                    (SELECT peer.user_id FROM members peer WHERE peer.conversation = c.number AND peer.user_id <> ?1),
                    NULL)
         FROM members m CROSS JOIN conversations c ON c.number = m.conversation ",
        join_newest!("m.conversation"),
        "WHERE m.user_id = ?1 AND c.conversation_id > ?2
         ORDER BY c.conversation_id LIMIT ?3",
    ))?;
    let after: &[u8] = after.as_ref().map_or(&[], |after| after.as_bytes());
    let rows = select.query_map(params![user.as_bytes(), after, limit + 1], |row| {
        let unknown = || rusqlite::Error::FromSqlConversionFailure(5, Type::Text, "an unknown kind".into());
        Ok(ConversationEntry {
            head: head(row)?,
            kind: ConversationKind::parse(row.get_ref(5)?.as_str()?).ok_or_else(unknown)?,
            title: row.get(6)?,
            peer: row.get::<_, Option<[u8; 16]>>(7)?.map(UserId::from_bytes),
        })
    })?;
    let mut conversations: Vec<ConversationEntry> = rows.collect::<rusqlite::Result<_>>()?;
    let more = conversations.len() > limit;
    conversations.truncate(limit);
    Ok(ConversationList { conversations, more })
}

/// The first five columns of [`heads`] and [`conversations`].
fn head(row: &Row<'_>) -> rusqlite::Result<Head> {
    Ok(Head {
        conversation_id: ConversationId::from_bytes(row.get(0)?),
        first_seq: Some(row.get(1)?),
        last_seq: row.get(2)?,
        read_seq: Some(row.get(3)?),
        delivered_seq: Some(row.get(4)?),
    })
}

/// The members in order of id; none where there is no such conversation.
pub(super) fn members(
    connection: &Connection,
    conversation: ConversationId,
    after: Option<UserId>,
    limit: u32,
) -> rusqlite::Result<Option<MembersPage>> {
    let mut select = connection.prepare_cached(concat!(
        "SELECT c.number, newest.members_version FROM conversations c ",
        join_newest!("c.number"),
        "WHERE c.conversation_id = ?1",
    ))?;
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Seq>(1)?));
    let Some((number, version)) = select.query_row([conversation.as_bytes()], read).optional()? else {
        return Ok(None);
    };
    let limit = (limit as usize).clamp(1, MEMBERS_MAX);
    let mut select = connection.prepare_cached(
        "SELECT user_id, from_seq, to_seq FROM members
         WHERE conversation = ?1 AND user_id > ?2 AND (to_seq IS NULL OR to_seq >= ?4)
         ORDER BY user_id LIMIT ?3",
    )?;
    let after: &[u8] = after.as_ref().map_or(&[], |after| after.as_bytes());
    let rows = select.query_map(params![number, after, limit + 1, version], |row| {
        Ok(Member { user_id: UserId::from_bytes(row.get(0)?), from_seq: row.get(1)?, to_seq: row.get(2)? })
    })?;
    let mut members: Vec<Member> = rows.collect::<rusqlite::Result<_>>()?;
    let more = members.len() > limit;
    members.truncate(limit);
    Ok(Some(MembersPage { version, members, more }))
}
