//! The statements that write what was decided: plain inserts, many rows each, so that any conflict aborts.

use roost_ports::store::numbering::Plan;
use roost_ports::store::{PartBatch, stored};
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::rows::signed;

/// A statement with its values.
pub(crate) type Statement = Query<'static, Postgres, PgArguments>;

/// What nearly every batch does, in one statement: progress, the newest numbers, and the messages.
const MESSAGES: &str = "
    WITH progress AS (
        UPDATE partition_offset o
        SET next_offset = p.next, published_offset = LEAST(p.next, GREATEST(o.published_offset, p.published)),
            last_digest = p.digest
        FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::bytea[]) AS p (partition, next, published, digest)
        WHERE o.log_id = $1 AND o.partition = p.partition
        RETURNING 1
    ), newest AS (
        UPDATE conversations c
        SET last_seq = n.last_seq, members_version = n.members_version,
            changed = pg_current_xact_id()::text::bigint
        FROM unnest($6::uuid[], $7::bigint[], $8::bigint[]) AS n (conversation_id, last_seq, members_version)
        WHERE c.conversation_id = n.conversation_id
        RETURNING 1
    ), numbered AS (
        INSERT INTO messages (conversation_id, seq, sender_id, client_msg_id, device_id, time, members_version,
                              digest, content_type, body, event)
        SELECT * FROM unnest($9::uuid[], $10::bigint[], $11::uuid[], $12::uuid[], $13::uuid[], $14::bigint[],
                             $15::bigint[], $16::bytea[], $17::text[], $18::bytea[], $19::text[])
    )
    SELECT (SELECT count(*) FROM progress) AS progress, (SELECT count(*) FROM newest) AS newest";

/// Progress, newest numbers and messages; answers how many rows of the first two there were.
pub(crate) fn messages(log_id: &str, parts: &[&PartBatch], plan: &Plan<'_>) -> Statement {
    let last = parts.iter().map(|part| part.records.last().expect("a part has at least one record"));
    let (nexts, digests): (Vec<i64>, Vec<&[u8]>) =
        last.map(|record| (signed(record.next.0), &record.digest[..])).unzip();
    let updated = &plan.updated_conversations;
    let rows = &plan.messages;
    sqlx::query(MESSAGES)
        .bind(log_id)
        .bind(parts.iter().map(|part| part.partition as i32).collect::<Vec<_>>())
        .bind(nexts)
        .bind(parts.iter().map(|part| signed(part.published.0)).collect::<Vec<_>>())
        .bind(digests)
        .bind(updated.iter().map(|update| update.conversation_id.uuid()).collect::<Vec<_>>())
        .bind(updated.iter().map(|update| signed(update.last_seq)).collect::<Vec<_>>())
        .bind(updated.iter().map(|update| signed(update.members_version)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.identity.conversation_id.uuid()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| signed(row.seq)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.identity.sender_id.uuid()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.identity.client_msg_id.uuid()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.device_id.uuid()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| signed(row.time)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| signed(row.members_version)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| &row.digest[..]).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.content_type).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.body).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.event.as_ref().map(stored::event_to_text)).collect::<Vec<_>>())
}

/// What few batches have: new conversations with their members, rejections, dead letters; in this order.
pub(crate) fn rare(log_id: &str, plan: &Plan<'_>) -> Vec<Statement> {
    let mut statements = Vec::new();
    if !plan.new_conversations.is_empty() {
        statements.extend([conversations(plan), members(plan)]);
    }
    if !plan.rejections.is_empty() {
        statements.push(rejections(plan));
    }
    if !plan.dead_letters.is_empty() {
        statements.push(dead_letters(log_id, plan));
    }
    statements
}

fn conversations(plan: &Plan<'_>) -> Statement {
    let rows = &plan.new_conversations;
    sqlx::query(
        "INSERT INTO conversations (conversation_id, last_seq, members_version, changed, created, kind, title)
         SELECT n.conversation_id, n.last_seq, n.members_version, pg_current_xact_id()::text::bigint, n.created,
                n.kind, n.title
         FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])
              AS n (conversation_id, last_seq, members_version, created, kind, title)",
    )
    .bind(rows.iter().map(|row| row.conversation_id.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| signed(row.last_seq)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| signed(row.members_version)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| signed(row.created)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.kind.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.title).collect::<Vec<_>>())
}

fn members(plan: &Plan<'_>) -> Statement {
    let count = plan.new_conversations.iter().map(|row| row.members.len()).sum();
    let (mut conversations, mut users, mut from): (Vec<Uuid>, Vec<Uuid>, Vec<i64>) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    for row in &plan.new_conversations {
        for member in row.members {
            conversations.push(row.conversation_id.uuid());
            users.push(member.uuid());
            from.push(signed(row.members_version));
        }
    }
    sqlx::query(
        "INSERT INTO members (conversation_id, user_id, from_seq)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[])",
    )
    .bind(conversations)
    .bind(users)
    .bind(from)
}

fn rejections(plan: &Plan<'_>) -> Statement {
    let rows = &plan.rejections;
    sqlx::query(
        "INSERT INTO rejections (conversation_id, sender_id, client_msg_id, time, digest, code, message)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bytea[], $6::text[], $7::text[])",
    )
    .bind(rows.iter().map(|row| row.identity.conversation_id.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.identity.sender_id.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.identity.client_msg_id.uuid()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| signed(row.time)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| &row.digest[..]).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.code.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.message).collect::<Vec<_>>())
}

fn dead_letters(log_id: &str, plan: &Plan<'_>) -> Statement {
    let rows = &plan.dead_letters;
    sqlx::query(
        "INSERT INTO dead_letters (log_id, partition, position, digest, reason, payload)
         SELECT $1, d.* FROM unnest($2::integer[], $3::bigint[], $4::bytea[], $5::text[], $6::bytea[]) d",
    )
    .bind(log_id)
    .bind(rows.iter().map(|row| row.partition as i32).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| signed(row.position.0)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| &row.digest[..]).collect::<Vec<_>>())
    // Text in the database holds no NUL, and a reason must not be what makes a dead letter fail.
    .bind(rows.iter().map(|row| row.reason.replace('\0', "\u{fffd}")).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.payload).collect::<Vec<_>>())
}
