//! What users see: outcomes, history, heads, conversations, members.

use roost_ports::delivery::VerdictOutcome;
use roost_ports::store::{ConversationEntry, ConversationList, Member, MembersPage, StoreError};
use roost_protocol::frames::{ConversationKind, Head, Heads, HistoryRange, Message, Page};
use roost_protocol::limits::{HEADS_MAX, MEMBERS_MAX, PAGE_BYTES_MAX, PAGE_MESSAGES_MAX};
use roost_protocol::{ClientMsgId, ConversationId, Epoch, Seq, UserId};
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::cursor::Cursor;
use crate::pool::Pool;
use crate::rows::{conversation_id, get, known, message, number, number_or_none, signed, unreadable};

pub(crate) async fn epoch(pool: &Pool) -> Result<Epoch, StoreError> {
    let rows = pool.rows(sqlx::query("SELECT epoch FROM meta")).await?;
    epoch_of(rows.first().ok_or_else(not_migrated)?)
}

fn epoch_of(row: &PgRow) -> Result<Epoch, StoreError> {
    get::<Uuid>(row, "epoch").map(Epoch::from_uuid)
}

fn not_migrated() -> StoreError {
    StoreError::Refused("the store is empty: run the migration".into())
}

pub(crate) async fn outcome(
    pool: &Pool,
    conversation: ConversationId,
    sender: UserId,
    client_msg_id: ClientMsgId,
) -> Result<Option<VerdictOutcome>, StoreError> {
    let query = sqlx::query(
        "SELECT m.seq, m.time, m.digest, r.digest AS rejected_digest, r.code, r.message AS words
         FROM (SELECT $1::uuid AS conversation_id, $2::uuid AS sender_id, $3::uuid AS client_msg_id) k
         LEFT JOIN messages m USING (conversation_id, sender_id, client_msg_id)
         LEFT JOIN rejections r USING (conversation_id, sender_id, client_msg_id)",
    );
    let rows = pool.rows(query.bind(conversation.uuid()).bind(sender.uuid()).bind(client_msg_id.uuid())).await?;
    let known = rows.first().map(known).transpose()?.flatten();
    Ok(known.map(|known| known.verdict))
}

/// What of a conversation is for a user.
struct Sight {
    epoch: Epoch,
    first: Seq,
    last: Seq,
}

pub(crate) async fn history(
    pool: &Pool,
    user: UserId,
    conversation: ConversationId,
    range: HistoryRange,
    limit: u32,
) -> Result<Page, StoreError> {
    let sight = sight(pool, user, conversation).await?;
    let limit = limit.clamp(1, PAGE_MESSAGES_MAX);
    // Two statements without a transaction: numbers up to the newest one seen never change.
    let (messages, more) = match range {
        HistoryRange::After(seq) => {
            let from = seq.saturating_add(1).max(sight.first);
            slice(pool, AFTER, conversation, from, sight.last, limit).await?
        }
        HistoryRange::Before(seq) => {
            let to = seq.saturating_sub(1).min(sight.last);
            let (mut messages, more) = slice(pool, BEFORE, conversation, sight.first, to, limit).await?;
            messages.reverse();
            (messages, more)
        }
    };
    let (from, to) = settled(range, &sight, &messages, more);
    Ok(Page { conversation_id: conversation, from, to, messages, more, epoch: sight.epoch })
}

/// The range that a page settles. What is outside of the user's sight is settled too: it is not for them.
fn settled(range: HistoryRange, sight: &Sight, messages: &[Message], more: bool) -> (Seq, Seq) {
    match range {
        HistoryRange::After(seq) => {
            let to = messages.last().filter(|_| more).map_or(sight.last, |message| message.seq);
            // Nothing is known of what is not there yet.
            (seq.min(sight.last) + 1, to)
        }
        HistoryRange::Before(seq) => {
            let from = messages.first().filter(|_| more).map_or(1, |message| message.seq);
            (from, seq.saturating_sub(1).min(sight.last))
        }
    }
}

async fn sight(pool: &Pool, user: UserId, conversation: ConversationId) -> Result<Sight, StoreError> {
    let query = sqlx::query(
        "SELECT meta.epoch, m.from_seq, LEAST(c.last_seq, m.to_seq) AS last_seq
         FROM meta, members m JOIN conversations c USING (conversation_id)
         WHERE m.conversation_id = $1 AND m.user_id = $2",
    );
    let rows = pool.rows(query.bind(conversation.uuid()).bind(user.uuid())).await?;
    let row = rows.first().ok_or(StoreError::NotFound)?;
    Ok(Sight { epoch: epoch_of(row)?, first: number(row, "from_seq")?, last: number(row, "last_seq")? })
}

/// The messages from $2 to $3 until they are $4, or until their bodies pass $5 bytes; the first one always. One more
/// than that is read, without its body, to know whether there is one. octet_length does not read the body.
macro_rules! slice_statement {
    ($order:literal) => {
        concat!(
            "SELECT *, place > $4 OR (place > 1 AND total > $5) AS beyond FROM (
                 SELECT seq, row_number() OVER (ORDER BY seq ",
            $order,
            ") AS place, sum(octet_length(body)) OVER (ORDER BY seq ",
            $order,
            ") AS total
                 FROM (SELECT seq, body FROM messages
                       WHERE conversation_id = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq ",
            $order,
            " LIMIT $4 + 1) candidates
             ) sized
             JOIN messages USING (seq)
             WHERE conversation_id = $1 AND place <= $4 + 1 AND (place = 1 OR total - octet_length(body) <= $5)
             ORDER BY place"
        )
    };
}

const AFTER: &str = slice_statement!("ASC");
const BEFORE: &str = slice_statement!("DESC");

async fn slice(
    pool: &Pool,
    statement: &'static str,
    conversation: ConversationId,
    from: Seq,
    to: Seq,
    limit: u32,
) -> Result<(Vec<Message>, bool), StoreError> {
    if from > to {
        return Ok((Vec::new(), false));
    }
    let query = sqlx::query(statement)
        .bind(conversation.uuid())
        .bind(signed(from))
        .bind(signed(to))
        .bind(i64::from(limit))
        .bind(PAGE_BYTES_MAX as i64);
    let rows = pool.rows(query).await?;
    let mut messages = Vec::with_capacity(rows.len());
    for row in &rows {
        if get(row, "beyond")? {
            return Ok((messages, true));
        }
        messages.push(message(row)?);
    }
    Ok((messages, false))
}

/// One statement, so that the epoch, the running transactions and the rows are of one snapshot. It walks the user's
/// memberships by their index, and the conversations by their key.
const HEADS: &str = "
    SELECT meta.epoch, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS running,
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS ahead, heads.*
    FROM meta LEFT JOIN (
        SELECT c.conversation_id, c.changed, m.from_seq, LEAST(c.last_seq, m.to_seq) AS last_seq
        FROM members m JOIN conversations c USING (conversation_id)
        WHERE m.user_id = $1 AND (c.changed, c.conversation_id) > ($2, $3)
        ORDER BY c.changed, c.conversation_id LIMIT $4
    ) heads ON true
    ORDER BY changed, conversation_id";

pub(crate) async fn heads(pool: &Pool, user: UserId, since: Option<&str>, limit: u32) -> Result<Heads, StoreError> {
    let since: Option<Cursor> = since.map(|text| text.parse().map_err(|_| StoreError::InvalidCursor)).transpose()?;
    let limit = limit.clamp(1, HEADS_MAX) as usize;
    let (changed, conversation) = since.map_or((-1, Uuid::max()), |cursor| (cursor.changed, cursor.conversation));
    let query = sqlx::query(HEADS).bind(user.uuid()).bind(changed).bind(conversation).bind(limit as i64 + 1);
    let mut rows = pool.rows(query).await?;
    let first = rows.first().ok_or_else(not_migrated)?;
    let (epoch, running, ahead): (_, i64, i64) = (epoch_of(first)?, get(first, "running")?, get(first, "ahead")?);
    let since = since.unwrap_or_else(|| Cursor::start(epoch));
    // Of another history, or of a future that this one has not seen: an older copy of the database took its place.
    if since.epoch != epoch || since.changed >= ahead {
        return Err(StoreError::InvalidCursor);
    }
    rows.retain(|row| matches!(get::<Option<Uuid>>(row, "conversation_id"), Ok(Some(_)) | Err(_)));
    let more = rows.len() > limit;
    rows.truncate(limit);
    let conversations = rows.iter().map(head).collect::<Result<Vec<_>, _>>()?;
    let last = match rows.last() {
        Some(row) => Some((get(row, "changed")?, conversation_id(row)?)),
        None => None,
    };
    let next = since.after(last, running, more).to_string();
    Ok(Heads { conversations, next: Some(next), more, epoch: Some(epoch) })
}

fn head(row: &PgRow) -> Result<Head, StoreError> {
    Ok(Head {
        conversation_id: conversation_id(row)?,
        first_seq: Some(number(row, "from_seq")?),
        last_seq: number(row, "last_seq")?,
        // Nothing writes watermarks yet.
        read_seq: Some(0),
        delivered_seq: Some(0),
    })
}

pub(crate) async fn conversations(
    pool: &Pool,
    user: UserId,
    after: Option<ConversationId>,
    limit: u32,
) -> Result<ConversationList, StoreError> {
    let limit = limit.clamp(1, HEADS_MAX) as usize;
    let query = sqlx::query(
        "SELECT c.conversation_id, c.kind, c.title, m.from_seq, LEAST(c.last_seq, m.to_seq) AS last_seq,
                CASE c.kind WHEN 'direct' THEN (
                    SELECT p.user_id FROM members p
                    WHERE p.conversation_id = c.conversation_id AND p.user_id <> $1 LIMIT 1
                ) END AS peer
         FROM members m JOIN conversations c USING (conversation_id)
         WHERE m.user_id = $1 AND m.conversation_id > $2
         ORDER BY m.conversation_id LIMIT $3",
    );
    // No id is nil.
    let query = query.bind(user.uuid()).bind(after.map_or(Uuid::nil(), ConversationId::uuid)).bind(limit as i64 + 1);
    let mut rows = pool.rows(query).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let conversations = rows.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    Ok(ConversationList { conversations, more })
}

fn entry(row: &PgRow) -> Result<ConversationEntry, StoreError> {
    Ok(ConversationEntry {
        head: head(row)?,
        kind: ConversationKind::parse(get(row, "kind")?).ok_or_else(|| unreadable("kind"))?,
        title: get(row, "title")?,
        peer: get::<Option<Uuid>>(row, "peer")?.map(UserId::from_uuid),
    })
}

pub(crate) async fn members(
    pool: &Pool,
    conversation: ConversationId,
    after: Option<UserId>,
    limit: u32,
) -> Result<MembersPage, StoreError> {
    let limit = limit.clamp(1, MEMBERS_MAX as u32) as usize;
    // One statement, so that the version is the list's. Whoever left by the newest event is told of it.
    let query = sqlx::query(
        "SELECT c.members_version, m.user_id AS member, m.from_seq, m.to_seq
         FROM conversations c LEFT JOIN LATERAL (
             SELECT user_id, from_seq, to_seq FROM members
             WHERE conversation_id = c.conversation_id AND (to_seq IS NULL OR to_seq >= c.members_version)
               AND user_id > $2
             ORDER BY user_id LIMIT $3
         ) m ON true
         WHERE c.conversation_id = $1 ORDER BY member",
    );
    let query = query.bind(conversation.uuid()).bind(after.map_or(Uuid::nil(), UserId::uuid)).bind(limit as i64 + 1);
    let mut rows = pool.rows(query).await?;
    let version = number(rows.first().ok_or(StoreError::NotFound)?, "members_version")?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let mut members = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(user) = get::<Option<Uuid>>(row, "member")? else { continue };
        members.push(Member {
            user_id: UserId::from_uuid(user),
            from_seq: number(row, "from_seq")?,
            to_seq: number_or_none(row, "to_seq")?,
        });
    }
    Ok(MembersPage { version, members, more })
}
