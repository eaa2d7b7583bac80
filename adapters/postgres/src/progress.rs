//! A partition's progress: claims, the replay of what is applied, the published mark.

use std::collections::HashMap;

use roost_ports::log::Position;
use roost_ports::store::numbering::{Identity, Known, content_digest};
use roost_ports::store::{Claim, Incoming, Replayed, StoreError};
use roost_protocol::records::DeliverRecord;

use crate::error::store_error;
use crate::pool::{Pool, in_time};
use crate::rows::{digest_or_none, get, known, message, number, signed};

pub(crate) async fn partitions(pool: &Pool, log_id: &str) -> Result<u32, StoreError> {
    let rows = pool
        .rows(sqlx::query("SELECT count(*) AS partitions FROM partition_offset WHERE log_id = $1").bind(log_id))
        .await?;
    match rows.first().map(|row| number(row, "partitions")).transpose()?.unwrap_or(0) {
        0 => Err(StoreError::NotFound),
        count => u32::try_from(count).map_err(|_| StoreError::Refused("too many partitions".into())),
    }
}

pub(crate) async fn claim(pool: &Pool, log_id: &str, partition: u32) -> Result<Claim, StoreError> {
    let rows = pool
        .rows(
            sqlx::query(
                "UPDATE partition_offset SET owner_epoch = owner_epoch + 1 WHERE log_id = $1 AND partition = $2
                 RETURNING owner_epoch, next_offset, published_offset, last_digest",
            )
            .bind(log_id)
            .bind(signed(partition.into())),
        )
        .await?;
    let row = rows.first().ok_or_else(|| {
        StoreError::Refused(format!("the store has no partition {partition} of the log {log_id:?}: run the migration"))
    })?;
    Ok(Claim {
        epoch: number(row, "owner_epoch")?,
        next: Position(number(row, "next_offset")?),
        published: Position(number(row, "published_offset")?),
        last_digest: digest_or_none(row, "last_digest")?,
    })
}

pub(crate) async fn set_published(
    pool: &Pool,
    log_id: &str,
    partition: u32,
    epoch: u64,
    published: Position,
) -> Result<(), StoreError> {
    // Never back, and never beyond what is applied.
    let query = sqlx::query(
        "UPDATE partition_offset SET published_offset = LEAST($4, next_offset)
         WHERE log_id = $1 AND partition = $2 AND owner_epoch = $3 AND published_offset < LEAST($4, next_offset)",
    );
    pool.execute(query.bind(log_id).bind(signed(partition.into())).bind(signed(epoch)).bind(signed(published.0)))
        .await
        .map(|_| ())
}

/// What the records became. Three look-ups that need no snapshot in common: what is asked for was committed before.
pub(crate) async fn replay(
    pool: &Pool,
    log_id: &str,
    partition: u32,
    records: &[Incoming],
) -> Result<Vec<Replayed>, StoreError> {
    let mut lease = pool.lease().await?;
    let identities: Vec<Identity> =
        records.iter().filter_map(|incoming| incoming.content.as_ref().ok()).map(Identity::of).collect();
    let positions: Vec<i64> = records.iter().map(|incoming| signed(incoming.position.0)).collect();
    let found = in_time(
        sqlx::query(
            "SELECT k.n AS place, m.*, r.digest AS rejected_digest, r.code, r.message AS words
             FROM unnest($1::uuid[], $2::uuid[], $3::uuid[])
                  WITH ORDINALITY AS k (conversation_id, sender_id, client_msg_id, n)
             LEFT JOIN messages m USING (conversation_id, sender_id, client_msg_id)
             LEFT JOIN rejections r USING (conversation_id, sender_id, client_msg_id)
             WHERE m.seq IS NOT NULL OR r.code IS NOT NULL",
        )
        .bind(identities.iter().map(|identity| identity.conversation_id.uuid()).collect::<Vec<_>>())
        .bind(identities.iter().map(|identity| identity.sender_id.uuid()).collect::<Vec<_>>())
        .bind(identities.iter().map(|identity| identity.client_msg_id.uuid()).collect::<Vec<_>>())
        .fetch_all(lease.connection()),
    )
    .await
    .map_err(store_error)?;
    let dead = in_time(
        sqlx::query(
            "SELECT position, reason FROM dead_letters WHERE log_id = $1 AND partition = $2 AND position = ANY($3)",
        )
        .bind(log_id)
        .bind(signed(partition.into()))
        .bind(positions)
        .fetch_all(lease.connection()),
    )
    .await
    .map_err(store_error)?;
    lease.give_back();

    let mut rows: HashMap<Identity, (Known, Option<Box<DeliverRecord>>)> = HashMap::with_capacity(found.len());
    for row in &found {
        let place = number(row, "place")? as usize - 1;
        let known = known(row)?.expect("the statement leaves out what is new");
        let deliver = match get::<Option<i64>>(row, "seq")? {
            Some(_) => Some(Box::new(DeliverRecord {
                members_version: number(row, "members_version")?,
                message: message(row)?,
            })),
            None => None,
        };
        rows.insert(identities[place], (known, deliver));
    }
    let mut reasons: HashMap<u64, String> = HashMap::with_capacity(dead.len());
    for row in &dead {
        reasons.insert(number(row, "position")?, get(row, "reason")?);
    }
    Ok(records.iter().map(|incoming| replayed(incoming, &rows, &reasons)).collect())
}

fn replayed(
    incoming: &Incoming,
    rows: &HashMap<Identity, (Known, Option<Box<DeliverRecord>>)>,
    reasons: &HashMap<u64, String>,
) -> Replayed {
    // A record that decodes may be a dead letter too: one that the database refused.
    if let Some(reason) = reasons.get(&incoming.position.0) {
        return Replayed::DeadLetter { reason: reason.clone() };
    }
    let Ok(record) = &incoming.content else { return Replayed::Missing };
    match rows.get(&Identity::of(record)) {
        None => Replayed::Missing,
        Some((known, Some(deliver))) if known.digest == content_digest(&record.action) => {
            Replayed::Numbered(deliver.clone())
        }
        Some((known, _)) => Replayed::Rejected(known.verdict_on(&content_digest(&record.action))),
    }
}
