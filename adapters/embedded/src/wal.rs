//! SQLite's write-ahead log, to be synced by whoever writes instead of by each COMMIT.

use std::fs::File;
use std::io;
use std::path::Path;

/// Opens the write-ahead log of a database. What was committed before this file is synced is durable then. It is the same
/// file for as long as a connection to the database is open.
pub(crate) fn open(database: &Path) -> io::Result<File> {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    let file = File::options().read(true).write(true).open(&name);
    file.map_err(|error| {
        io::Error::new(error.kind(), format!("{} cannot be opened: {error}", Path::new(&name).display()))
    })
}
