//! The numbering transaction: lock, look up, decide, write, commit.
//!
//! Three round trips: the locks with the look-up (a function of the schema, in which the look-up is a later statement
//! than the locks, or it would see an older snapshot), the rows, COMMIT; users to be looked up, new conversations,
//! rejections and dead letters take one more each. Numbers are given by the shared
//! rules of the port; here is only SQL. A session is given back only after COMMIT: whatever happens before drops it, and
//! the server rolls back.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};

use roost_ports::store::numbering::{ConversationState, Found, Identity, Needs, decide};
use roost_ports::store::{Applied, ApplyBatch, ApplyError, Outcome, PartBatch, PartOutcome, StoreError};
use roost_protocol::UserId;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::error::before_commit;
use crate::insert;
use crate::pool::{Lease, Pool, in_time};
use crate::rows::{get, known, number, number_or_none};

/// Where crash tests stop or fail the transaction.
macro_rules! fail_point {
    ($name:literal, $error:ident) => {
        fail::fail_point!($name, |_| Err(ApplyError::$error(concat!("fail point ", $name).into())));
    };
}

pub(crate) async fn apply(pool: &Pool, batch: &ApplyBatch) -> Result<Applied, ApplyError> {
    let all: Vec<&PartBatch> = batch.parts.iter().collect();
    let needs = Needs::of(&all);
    let mut lease = pool.lease().await.map_err(|error| ApplyError::Unavailable(error.to_string()))?;
    let (ours, mut found) = lock_and_look_up(lease.connection(), batch, &needs).await?;
    fail_point!("store-after-lock", Unavailable);
    let parts: Vec<&PartBatch> =
        batch.parts.iter().zip(&ours).filter(|(_, ours)| **ours).map(|(part, _)| part).collect();
    let outcomes = if parts.is_empty() {
        Vec::new()
    } else {
        look_up_users(lease.connection(), &needs, &mut found).await?;
        fail_point!("store-after-lookup", Unavailable);
        number_parts(lease.connection(), &batch.log_id, &parts, &found).await?
    };
    fail_point!("store-before-commit", Unavailable);
    commit(lease).await?;
    let mut outcomes = outcomes.into_iter();
    let parts = ours.into_iter().map(|ours| match ours {
        true => PartOutcome::Applied(outcomes.next().expect("one list of outcomes for each part that is ours")),
        false => PartOutcome::NotOurs,
    });
    Ok(Applied { parts: parts.collect() })
}

/// Begins, locks the progress rows and the conversations, and looks the identities up. Tells which parts are ours, and
/// what was found. What the others need is locked and looked up too, which harms nobody and saves a round trip.
async fn lock_and_look_up(
    connection: &mut PgConnection,
    batch: &ApplyBatch,
    needs: &Needs,
) -> Result<(Vec<bool>, Found), ApplyError> {
    let statements = sqlx::raw_sql(AssertSqlSafe(lock_statements(batch, needs)));
    let rows = in_time(statements.fetch_all(connection)).await.map_err(before_commit)?;
    let (mut held, mut found) = (HashMap::with_capacity(batch.parts.len()), Found::default());
    for row in &rows {
        match number_or_none(row, "next_offset").map_err(unreadable)? {
            Some(next) => {
                let partition: i32 = get(row, "partition").map_err(unreadable)?;
                held.insert(partition, (next, number(row, "owner_epoch").map_err(unreadable)?));
            }
            None => find(&needs.identities, row, &mut found).map_err(unreadable)?,
        }
    }
    let ours = |part: &PartBatch| held.get(&(part.partition as i32)) == Some(&(part.from.0, part.epoch));
    Ok((batch.parts.iter().map(ours).collect(), found))
}

/// BEGIN and the call in one message: only the simple protocol can do that, and it has no parameters. What is written
/// into the text is numbers, ids, and the log's name in quotes.
fn lock_statements(batch: &ApplyBatch, needs: &Needs) -> String {
    let log_id = batch.log_id.replace('\'', "''");
    let mut text = format!("BEGIN; SELECT * FROM lock_and_look_up('{log_id}', '{{");
    push_list(&mut text, batch.parts.iter().map(|part| part.partition));
    text.push_str("}', '{");
    push_list(&mut text, &needs.conversations);
    text.push_str("}', '{");
    push_list(&mut text, needs.identities.iter().map(|identity| identity.conversation_id));
    text.push_str("}', '{");
    push_list(&mut text, needs.identities.iter().map(|identity| identity.sender_id));
    text.push_str("}', '{");
    push_list(&mut text, needs.identities.iter().map(|identity| identity.client_msg_id));
    text.push_str("}')");
    text
}

fn push_list(text: &mut String, items: impl IntoIterator<Item = impl Display>) {
    for (number, item) in items.into_iter().enumerate() {
        let comma = if number > 0 { "," } else { "" };
        write!(text, "{comma}{item}").expect("a String takes all");
    }
}

/// Decides and writes, for the parts that are ours.
async fn number_parts(
    connection: &mut PgConnection,
    log_id: &str,
    parts: &[&PartBatch],
    found: &Found,
) -> Result<Vec<Vec<Outcome>>, ApplyError> {
    let (rare, messages, updated, outcomes) = {
        let plan = decide(parts, found);
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

/// Which of the members of new conversations exist.
async fn look_up_users(connection: &mut PgConnection, needs: &Needs, found: &mut Found) -> Result<(), ApplyError> {
    if needs.users.is_empty() {
        return Ok(());
    }
    let users: Vec<Uuid> = needs.users.iter().map(|user| user.uuid()).collect();
    let query = sqlx::query_scalar("SELECT user_id FROM users WHERE user_id = ANY($1)").bind(users);
    let users: Vec<Uuid> = in_time(query.fetch_all(connection)).await.map_err(before_commit)?;
    found.users = users.into_iter().map(UserId::from_uuid).collect();
    Ok(())
}

/// Reads an identity's row. Every membership that is asked for is the one of some identity's sender.
fn find(identities: &[Identity], row: &PgRow, found: &mut Found) -> Result<(), StoreError> {
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
    Ok(())
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
        let text = lock_statements(&batch, &Needs::of(&[]));
        assert!(text.contains("lock_and_look_up('it''s ''; DROP TABLE messages; --', '{"), "{text}");
    }
}
