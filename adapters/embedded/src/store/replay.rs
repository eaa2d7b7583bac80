//! Looks up what records became, without applying anything.

use roost_ports::delivery::VerdictOutcome;
use roost_ports::log::Position;
use roost_ports::store::numbering::{self, Identity, Known};
use roost_ports::store::{Incoming, Replayed};
use roost_protocol::records::IngressRecord;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::numbered::{Lookup, message_by_identity, number_of};

/// The rows of these records as they are now.
pub(super) fn replay(
    connection: &Connection,
    log_id: &str,
    partition: u32,
    records: &[Incoming],
) -> rusqlite::Result<Vec<Replayed>> {
    let one = |incoming: &Incoming| {
        // First: a record that failed alone is in the dead letters though it decodes, whatever its sender did later.
        if let Some(reason) = dead_letter(connection, log_id, partition, incoming.position)? {
            return Ok(Replayed::DeadLetter { reason });
        }
        match &incoming.content {
            Ok(record) => replay_record(connection, record),
            Err(_) => Ok(Replayed::Missing),
        }
    };
    records.iter().map(one).collect()
}

/// What became of a request.
pub(super) fn outcome(connection: &Connection, identity: &Identity) -> rusqlite::Result<Option<VerdictOutcome>> {
    let number = number_of(connection, identity.conversation_id)?;
    Ok(Lookup::new(connection)?.find(identity, number)?.map(|known| known.verdict))
}

fn dead_letter(
    connection: &Connection,
    log_id: &str,
    partition: u32,
    position: Position,
) -> rusqlite::Result<Option<String>> {
    let mut select = connection
        .prepare_cached("SELECT reason FROM dead_letters WHERE log_id = ?1 AND partition = ?2 AND position = ?3")?;
    select.query_row(params![log_id, partition, position.0], |row| row.get(0)).optional()
}

fn replay_record(connection: &Connection, record: &IngressRecord<'_>) -> rusqlite::Result<Replayed> {
    let identity = Identity::of(record);
    let digest = numbering::content_digest(&record.action);
    let number = number_of(connection, identity.conversation_id)?;
    if let Some(number) = number
        && let Some((message, first)) = message_by_identity(connection, &identity, number)?
    {
        if first == digest {
            return Ok(Replayed::Numbered(Box::new(message)));
        }
        let verdict = VerdictOutcome::Committed { seq: message.message.seq, time: message.message.time };
        return Ok(Replayed::Rejected(Known { digest: first, verdict }.verdict_on(&digest)));
    }
    let known = Lookup::new(connection)?.find(&identity, None)?;
    Ok(known.map_or(Replayed::Missing, |known| Replayed::Rejected(known.verdict_on(&digest))))
}
