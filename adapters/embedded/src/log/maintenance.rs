//! Lazy work inside somebody's transaction: group positions written, consumed records deleted.

use roost_ports::log::Topic;
use rusqlite::{Connection, params};

use super::groups::Groups;
use super::{Shared, chunk};

/// So many records have to have gathered before it pays to delete them.
const DELETE_RECORDS_MIN: u64 = 64;
/// At most so many records of a partition in one transaction …
const DELETE_RECORDS_MAX: u64 = 8_192;
/// … and so many partitions, so that no append waits long behind a deletion.
const DELETE_PARTITIONS_MAX: usize = 32;

const _: () = assert!(DELETE_RECORDS_MAX > chunk::CHUNK_RECORDS_MAX, "a round that deletes nothing would be the last");

/// What a round has done, to be made known after its commit.
#[derive(Default)]
pub struct Round {
    /// Slots that begin later now.
    pub begins: Vec<(usize, u64)>,
    /// There is more to delete.
    pub more: bool,
}

/// Writes the group positions that have changed.
pub fn write_offsets(connection: &Connection, groups: &Groups) -> rusqlite::Result<()> {
    let offsets = groups.take_dirty();
    let write = || {
        let upsert = "INSERT INTO group_offset (consumer_group, topic, partition, next) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT DO UPDATE SET next = excluded.next";
        let mut upsert = connection.prepare_cached(upsert)?;
        for offset in &offsets {
            let topic = chunk::topic_number(offset.topic);
            upsert.execute(params![offset.group, topic, offset.partition, offset.next as i64])?;
        }
        Ok(())
    };
    // A commit that is lost with a failed transaction is only a hint that is lost; put back where it is cheap.
    write().inspect_err(|_| groups.put_back(&offsets))
}

/// Where each slot may begin, by what its groups have committed; also where its records need not stay in memory.
pub fn consumed(shared: &Shared) -> Vec<u64> {
    let mut consumed = Vec::with_capacity(shared.partitions.len());
    for topic in Topic::ALL {
        match shared.groups.committed_by_all(topic) {
            Some(committed) => consumed.extend(committed),
            None => consumed.extend((0..shared.partition_count).map(|_| 0)),
        }
    }
    for (partition, consumed) in shared.partitions.iter().zip(&mut consumed) {
        *consumed = partition.end().min(*consumed);
    }
    consumed
}

/// Deletes consumed records, from `turn` on in the order of the slots; `everything` spares nobody's patience.
pub fn delete(
    connection: &Connection,
    shared: &Shared,
    consumed: &[u64],
    turn: &mut usize,
    everything: bool,
) -> rusqlite::Result<Round> {
    let unread: Vec<bool> = Topic::ALL.iter().map(|topic| shared.groups.committed_by_all(*topic).is_none()).collect();
    let mut round = Round::default();
    let count = shared.partitions.len();
    let first = *turn;
    for step in 0..count {
        let slot = (first + step) % count;
        let (topic, partition) = shared.slot_place(slot);
        let held = &shared.partitions[slot];
        let target = if unread[chunk::topic_number(topic) as usize] {
            held.end().saturating_sub(shared.keep_unread)
        } else {
            consumed[slot].saturating_sub(shared.keep_behind)
        };
        let least = if everything { 1 } else { DELETE_RECORDS_MIN };
        if target < held.begin() + least {
            continue;
        }
        if round.begins.len() == DELETE_PARTITIONS_MAX && !everything {
            *turn = slot;
            round.more = true;
            break;
        }
        let reach = held.begin() + DELETE_RECORDS_MAX;
        round.more |= target > reach;
        if let Some(begin) = delete_before(connection, topic, partition, target.min(reach))?
            && begin > held.begin()
        {
            round.begins.push((slot, begin));
        }
    }
    Ok(round)
}

/// Deletes the rows before the one that holds `target`: that one stays, so a partition's last row always does, and with
/// it the knowledge of the next position.
fn delete_before(connection: &Connection, topic: Topic, partition: u32, target: u64) -> rusqlite::Result<Option<u64>> {
    let (first_key, target_key) = (chunk::key(topic, partition, 0), chunk::key(topic, partition, target));
    let mut select = connection.prepare_cached("SELECT MAX(id) FROM chunk WHERE id BETWEEN ?1 AND ?2")?;
    let Some(kept) = select.query_row([first_key, target_key], |row| row.get::<_, Option<i64>>(0))? else {
        return Ok(None);
    };
    connection.prepare_cached("DELETE FROM chunk WHERE id >= ?1 AND id < ?2")?.execute([first_key, kept])?;
    Ok(Some(chunk::position(kept)))
}
