//! The numbering transaction: lock, look up, decide, write, commit.
//!
//! Four round trips: the locks, the look-up (in a later statement than the locks, or it would see an older snapshot),
//! the rows, COMMIT; new conversations, rejections and dead letters take one more each. Numbers are given by the shared
//! rules of the port; here is only SQL. A session is given back only after COMMIT: whatever happens before drops it, and
//! the server rolls back.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};

use roost_ports::store::numbering::{ConversationState, Found, Identity, Needs, decide};
use roost_ports::store::{Applied, ApplyBatch, ApplyError, Outcome, PartBatch, PartOutcome, StoreError};
use roost_protocol::UserId;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use crate::error::before_commit;
use crate::insert;
use crate::pool::{Lease, Pool, in_time};
use crate::rows::{get, known, number, number_or_none, signed};

/// Where crash tests stop or fail the transaction.
macro_rules! fail_point {
    ($name:literal, $error:ident) => {
        fail::fail_point!($name, |_| Err(ApplyError::$error(concat!("fail point ", $name).into())));
    };
}

pub(crate) async fn apply(pool: &Pool, batch: &ApplyBatch) -> Result<Applied, ApplyError> {
    let mut lease = pool.lease().await.map_err(|error| ApplyError::Unavailable(error.to_string()))?;
    let ours = lock(lease.connection(), batch).await?;
    fail_point!("store-after-lock", Unavailable);
    let parts: Vec<&PartBatch> =
        batch.parts.iter().zip(&ours).filter(|(_, ours)| **ours).map(|(part, _)| part).collect();
    let outcomes =
        if parts.is_empty() { Vec::new() } else { number_parts(lease.connection(), &batch.log_id, &parts).await? };
    fail_point!("store-before-commit", Unavailable);
    commit(lease).await?;
    let mut outcomes = outcomes.into_iter();
    let parts = ours.into_iter().map(|ours| match ours {
        true => PartOutcome::Applied(outcomes.next().expect("one list of outcomes for each part that is ours")),
        false => PartOutcome::NotOurs,
    });
    Ok(Applied { parts: parts.collect() })
}

/// Begins, locks the progress rows in order of the partition, then the conversations in order of their ids, so that no
/// two transactions wait for each other in a circle. Tells which parts are ours. The conversations of the others are
/// locked too, which harms nobody and saves a round trip.
async fn lock(connection: &mut PgConnection, batch: &ApplyBatch) -> Result<Vec<bool>, ApplyError> {
    let statements = sqlx::raw_sql(AssertSqlSafe(lock_statements(batch)));
    let rows = in_time(statements.fetch_all(connection)).await.map_err(before_commit)?;
    let mut held = HashMap::with_capacity(rows.len());
    for row in rows.iter().filter(|row| row.len() == LOCKED_COLUMNS) {
        let column = |at: usize| row.try_get::<i64, _>(at).map_err(before_commit);
        held.insert(column(0)?, (column(1)?, column(2)?));
    }
    let ours = |part: &PartBatch| {
        let (next, epoch) = (signed(part.from.0), signed(part.epoch));
        held.get(&i64::from(part.partition)) == Some(&(next, epoch))
    };
    Ok(batch.parts.iter().map(ours).collect())
}

/// The columns that tell a progress row from the count of conversations.
const LOCKED_COLUMNS: usize = 3;

/// Three statements in one message, each with its own snapshot: only the simple protocol can do that, and it has no
/// parameters. What is written into the text is numbers, ids, and the log's name in quotes.
fn lock_statements(batch: &ApplyBatch) -> String {
    let log_id = batch.log_id.replace('\'', "''");
    let mut text = format!(
        "BEGIN; SELECT partition::bigint, next_offset, owner_epoch FROM partition_offset
         WHERE log_id = '{log_id}' AND partition = ANY ('{{"
    );
    push_list(&mut text, batch.parts.iter().map(|part| part.partition));
    text.push_str(
        "}'::bigint[]) ORDER BY partition FOR UPDATE;
         SELECT count(*) FROM (SELECT FROM conversations WHERE conversation_id = ANY ('{",
    );
    let parts: Vec<&PartBatch> = batch.parts.iter().collect();
    push_list(&mut text, Needs::of(&parts).conversations);
    text.push_str("}'::uuid[]) ORDER BY conversation_id FOR UPDATE) locked");
    text
}

fn push_list(text: &mut String, items: impl IntoIterator<Item = impl Display>) {
    for (number, item) in items.into_iter().enumerate() {
        let comma = if number > 0 { "," } else { "" };
        write!(text, "{comma}{item}").expect("a String takes all");
    }
}

/// Looks up, decides and writes, for the parts that are ours.
async fn number_parts(
    connection: &mut PgConnection,
    log_id: &str,
    parts: &[&PartBatch],
) -> Result<Vec<Vec<Outcome>>, ApplyError> {
    let needs = Needs::of(parts);
    let found = look_up(connection, &needs).await?;
    fail_point!("store-after-lookup", Unavailable);
    let (rare, messages, updated, outcomes) = {
        let plan = decide(parts, &found);
        let (rare, messages) = (insert::rare(log_id, &plan), insert::messages(log_id, parts, &plan));
        (rare, messages, plan.updated_conversations.len(), plan.outcomes)
    };
    for statement in rare {
        in_time(statement.execute(&mut *connection)).await.map_err(before_commit)?;
    }
    let row = in_time(messages.fetch_one(connection)).await.map_err(before_commit)?;
    // The rows are locked since they were looked up.
    assert_eq!(count(&row, "progress")?, parts.len(), "every progress row is still there");
    assert_eq!(count(&row, "newest")?, updated, "every conversation is still there");
    fail_point!("store-after-insert", Unavailable);
    Ok(outcomes)
}

/// One row for each identity: its conversation, its sender's membership, its message or rejection.
async fn look_up(connection: &mut PgConnection, needs: &Needs) -> Result<Found, ApplyError> {
    let (conversations, senders, names): (Vec<Uuid>, Vec<Uuid>, Vec<Uuid>) = (
        needs.identities.iter().map(|identity| identity.conversation_id.uuid()).collect(),
        needs.identities.iter().map(|identity| identity.sender_id.uuid()).collect(),
        needs.identities.iter().map(|identity| identity.client_msg_id.uuid()).collect(),
    );
    let query = sqlx::query(
        "SELECT k.n AS place, c.last_seq, c.members_version, p.user_id IS NOT NULL AS member,
                m.seq, m.time, m.digest, r.digest AS rejected_digest, r.code, r.message AS words
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[])
              WITH ORDINALITY AS k (conversation_id, sender_id, client_msg_id, n)
         LEFT JOIN conversations c ON c.conversation_id = k.conversation_id
         LEFT JOIN members p ON p.conversation_id = k.conversation_id AND p.user_id = k.sender_id
                            AND p.to_seq IS NULL
         LEFT JOIN messages m ON m.client_msg_id = k.client_msg_id AND m.sender_id = k.sender_id
                             AND m.conversation_id = k.conversation_id
         LEFT JOIN rejections r ON r.client_msg_id = k.client_msg_id AND r.sender_id = k.sender_id
                               AND r.conversation_id = k.conversation_id",
    )
    .bind(conversations)
    .bind(senders)
    .bind(names);
    let rows = in_time(query.fetch_all(&mut *connection)).await.map_err(before_commit)?;
    let mut found = found(&needs.identities, &rows).map_err(unreadable)?;
    if !needs.users.is_empty() {
        let users: Vec<Uuid> = needs.users.iter().map(|user| user.uuid()).collect();
        let query = sqlx::query_scalar("SELECT user_id FROM users WHERE user_id = ANY($1)").bind(users);
        let users: Vec<Uuid> = in_time(query.fetch_all(connection)).await.map_err(before_commit)?;
        found.users = users.into_iter().map(UserId::from_uuid).collect();
    }
    Ok(found)
}

/// Every membership that is asked for is the one of some identity's sender.
fn found(identities: &[Identity], rows: &[PgRow]) -> Result<Found, StoreError> {
    let mut found = Found::default();
    for row in rows {
        let identity = identities[number(row, "place")? as usize - 1];
        if let Some(last_seq) = number_or_none(row, "last_seq")? {
            let state = ConversationState { last_seq, members_version: number(row, "members_version")? };
            found.conversations.insert(identity.conversation_id, state);
        }
        if get(row, "member")? {
            found.members.insert((identity.conversation_id, identity.sender_id));
        }
        if let Some(known) = known(row)? {
            found.known.insert(identity, known);
        }
    }
    Ok(found)
}

fn count(row: &PgRow, column: &str) -> Result<usize, ApplyError> {
    number(row, column).map(|count| count as usize).map_err(unreadable)
}

/// Not the record's fault: a person mends the database, and the batch is tried until then.
fn unreadable(error: StoreError) -> ApplyError {
    ApplyError::Unavailable(error.to_string())
}

/// From here on an error tells nothing about what is committed.
async fn commit(mut lease: Lease) -> Result<(), ApplyError> {
    let committed = in_time(sqlx::raw_sql("COMMIT").execute(lease.connection())).await;
    committed.map_err(|error| ApplyError::Uncertain(error.to_string()))?;
    lease.give_back();
    fail_point!("store-after-commit", Uncertain);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_log_is_only_text() {
        let batch = ApplyBatch { log_id: "it's '; DROP TABLE messages; --".into(), parts: Vec::new() };
        let text = lock_statements(&batch);
        assert!(text.contains("log_id = 'it''s ''; DROP TABLE messages; --' AND"), "{text}");
    }
}
