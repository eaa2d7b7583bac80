//! SQLite's write-ahead log, to be synced by whoever writes instead of by each COMMIT.

use std::fs::File;
use std::io;

use rusqlite::Connection;

/// Opens the write-ahead log of a connection's database, which has looked at its tables. What was committed before this
/// file is synced is durable then. It is the same file for as long as a connection to the database is open.
pub(crate) fn open(connection: &Connection) -> io::Result<File> {
    // As SQLite has it: a link is followed.
    let name = format!("{}-wal", connection.path().unwrap_or_default());
    let file = File::options().read(true).write(true).open(&name);
    file.map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be opened: {error}")))
}
