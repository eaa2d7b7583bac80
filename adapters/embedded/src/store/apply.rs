//! The numbering transaction: claims, batches, and the published mark.

use std::collections::HashMap;

use roost_ports::log::Position;
use roost_ports::store::numbering::{self, ConversationState, Found, Needs, Plan};
use roost_ports::store::{Applied, ApplyBatch, Claim, PartBatch, PartOutcome, StoreError};
use roost_protocol::ConversationId;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::numbered::{ConversationNumber, InsertMessage, Lookup, insert_rejection, join_newest, newest_seq};
use super::schema;

/// Raises the owner's epoch and returns the progress.
pub(super) fn claim(
    connection: &Connection,
    log_id: &str,
    partition: u32,
) -> rusqlite::Result<Result<Claim, StoreError>> {
    let mut update = connection.prepare_cached(
        "UPDATE partition_offset SET owner_epoch = owner_epoch + 1 WHERE log_id = ?1 AND partition = ?2
         RETURNING owner_epoch, next_offset, published_offset, last_digest",
    )?;
    let read = |row: &Row<'_>| {
        Ok(Claim {
            epoch: row.get(0)?,
            next: Position(row.get(1)?),
            published: Position(row.get(2)?),
            last_digest: row.get(3)?,
        })
    };
    let claim = update.query_row(params![log_id, partition], read).optional()?;
    Ok(claim.ok_or_else(|| StoreError::Refused(format!("it was not migrated for partition {partition} of this log"))))
}

/// Notes what is published; a no-op for another owner, and never back.
pub(super) fn set_published(
    connection: &Connection,
    log_id: &str,
    partition: u32,
    epoch: u64,
    published: Position,
) -> rusqlite::Result<Result<(), StoreError>> {
    let mut update = connection.prepare_cached(
        "UPDATE partition_offset SET published_offset = MAX(published_offset, ?4)
         WHERE log_id = ?1 AND partition = ?2 AND owner_epoch = ?3",
    )?;
    update.execute(params![log_id, partition, epoch, published.0]).map(|_| Ok(()))
}

/// Applies a batch within the writer's transaction. One writer at a time needs no further locks.
pub(super) fn apply(connection: &Connection, batch: &ApplyBatch) -> rusqlite::Result<Applied> {
    let is_ours = take_over(connection, batch)?;
    pass("store-after-lock");
    let ours: Vec<&PartBatch> =
        batch.parts.iter().zip(&is_ours).filter(|(_, ours)| **ours).map(|(part, _)| part).collect();
    let (found, mut numbers) = look_up(connection, &Needs::of(&ours))?;
    pass("store-after-lookup");
    let plan = numbering::decide(&ours, &found);
    insert(connection, &batch.log_id, &plan, &mut numbers)?;
    pass("store-after-insert");
    let mut outcomes = plan.outcomes.into_iter();
    let mut outcome = || PartOutcome::Applied(outcomes.next().expect("one list per part of ours"));
    let parts = is_ours.iter().map(|ours| if *ours { outcome() } else { PartOutcome::NotOurs }).collect();
    pass("store-before-commit");
    Ok(Applied { parts })
}

/// Called once a batch is committed and before anybody hears of it.
pub(super) fn committed() {
    pass("store-after-commit");
}

/// Aborts the process here where the fail point is configured as `return`: no destructor runs, as in a real crash.
fn pass(name: &str) {
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}

/// Which parts are ours; their progress is moved.
fn take_over(connection: &Connection, batch: &ApplyBatch) -> rusqlite::Result<Vec<bool>> {
    let mut update = connection.prepare_cached(
        "UPDATE partition_offset
         SET next_offset = ?5, last_digest = ?6, published_offset = MAX(published_offset, ?7)
         WHERE log_id = ?1 AND partition = ?2 AND owner_epoch = ?3 AND next_offset = ?4",
    )?;
    let parts = batch.parts.iter().map(|part| {
        let last = part.records.last().expect("a part has at least one record");
        let (key, from) = ((&batch.log_id, part.partition, part.epoch), part.from.0);
        let rows = update.execute(params![key.0, key.1, key.2, from, last.next.0, last.digest, part.published.0])?;
        Ok(rows == 1)
    });
    parts.collect()
}

type Numbers = HashMap<ConversationId, ConversationNumber>;

fn look_up(connection: &Connection, needs: &Needs) -> rusqlite::Result<(Found, Numbers)> {
    let (mut found, mut numbers) = (Found::default(), Numbers::with_capacity(needs.conversations.len()));
    let mut select = connection.prepare_cached(concat!(
        "SELECT c.number, ",
        newest_seq!(),
        ", newest.members_version FROM conversations c ",
        join_newest!("c.number"),
        "WHERE c.conversation_id = ?1",
    ))?;
    for conversation in &needs.conversations {
        let mut rows = select.query([conversation.as_bytes()])?;
        if let Some(row) = rows.next()? {
            numbers.insert(*conversation, ConversationNumber(row.get(0)?));
            let state = ConversationState { last_seq: row.get(1)?, members_version: row.get(2)? };
            found.conversations.insert(*conversation, state);
        }
    }
    let mut lookup = Lookup::new(connection)?;
    for identity in &needs.identities {
        if let Some(known) = lookup.find(identity, numbers.get(&identity.conversation_id).copied())? {
            found.known.insert(*identity, known);
        }
    }
    let mut select = connection
        .prepare_cached("SELECT 1 FROM members WHERE conversation = ?1 AND user_id = ?2 AND to_seq IS NULL")?;
    for (conversation, user) in &needs.memberships {
        if let Some(number) = numbers.get(conversation)
            && select.exists(params![number.0, user.as_bytes()])?
        {
            found.members.insert((*conversation, *user));
        }
    }
    let mut select = connection.prepare_cached("SELECT 1 FROM accounts WHERE user_id = ?1")?;
    for user in &needs.users {
        if select.exists([user.as_bytes()])? {
            found.users.insert(*user);
        }
    }
    Ok((found, numbers))
}

fn insert(connection: &Connection, log_id: &str, plan: &Plan<'_>, numbers: &mut Numbers) -> rusqlite::Result<()> {
    if !plan.messages.is_empty() {
        let changed = schema::next_change(connection)?;
        insert_conversations(connection, plan, changed, numbers)?;
        // Where a conversation stands is in the row of its newest message: the plan's updates are these inserts.
        let mut message = InsertMessage::new(connection)?;
        for row in &plan.messages {
            message.insert(numbers[&row.identity.conversation_id], row, changed)?;
        }
    }
    for row in &plan.rejections {
        insert_rejection(connection, row)?;
    }
    for row in &plan.dead_letters {
        let mut insert = connection.prepare_cached(
            "INSERT INTO dead_letters (log_id, partition, position, digest, reason, payload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        insert.execute(params![log_id, row.partition, row.position.0, row.digest, row.reason, row.payload])?;
    }
    Ok(())
}

fn insert_conversations(
    connection: &Connection,
    plan: &Plan<'_>,
    changed: u64,
    numbers: &mut Numbers,
) -> rusqlite::Result<()> {
    for row in &plan.new_conversations {
        let mut insert = connection.prepare_cached(
            "INSERT INTO conversations (conversation_id, kind, title, created) VALUES (?1, ?2, ?3, ?4)",
        )?;
        insert.execute(params![row.conversation_id.as_bytes(), row.kind.as_str(), row.title, row.created])?;
        let number = connection.last_insert_rowid();
        numbers.insert(row.conversation_id, ConversationNumber(number));
        let mut insert = connection
            .prepare_cached("INSERT INTO members (conversation, user_id, from_seq, changed) VALUES (?1, ?2, ?3, ?4)")?;
        for member in row.members {
            insert.execute(params![number, member.as_bytes(), row.members_version, changed])?;
        }
    }
    Ok(())
}
