//! What a database error means for whoever asked.

use roost_ports::store::{ApplyError, StoreError};
use sqlx::error::DatabaseError;

/// What a failed statement means, whoever sent it.
pub(crate) enum Failure {
    /// The server is away, busy, out of space, or ended the statement: try again.
    Unavailable(String),
    /// The data of a parameter is refused, now and ever.
    Data(String),
    /// A row that must be new exists; with the name of the constraint.
    Exists(String),
    /// A row that must exist does not.
    Absent,
    /// The database is not what it should be.
    Refused(String),
}

impl Failure {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Self::of_server(error.as_ref()),
            sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Failure::Refused(format!("a row does not read as this build wrote it: {error}"))
            }
            sqlx::Error::Encode(_) => Failure::Data(error.to_string()),
            _ => Failure::Unavailable(error.to_string()),
        }
    }

    /// Only the server's primary message is repeated: the detail line holds data of rows.
    fn of_server(error: &dyn DatabaseError) -> Self {
        let code = error.code().unwrap_or_default();
        let words = format!("{} (SQLSTATE {code})", error.message());
        Self::of_state(&code, words, error.constraint().unwrap_or_default())
    }

    /// By SQLSTATE.
    fn of_state(code: &str, words: String, constraint: &str) -> Self {
        match code {
            "23505" => Failure::Exists(constraint.to_owned()),
            "23503" => Failure::Absent,
            // A value that does not fit: not null, check, exclusion.
            "23502" | "23514" | "23P01" => Failure::Data(words),
            // No such database, no such role, wrong password, not allowed.
            "3D000" | "28000" | "28P01" | "42501" => Failure::Refused(words),
            "42P01" | "42703" | "42704" | "3F000" => {
                Failure::Refused(format!("the schema is not this build's ({words}): run the migration"))
            }
            "25006" => Failure::Unavailable(format!("the server is a read-only standby: {words}")),
            // Data exceptions, and what is over a limit of the program (a row or a statement too large or complex).
            _ if code.starts_with("22") || code.starts_with("54") => Failure::Data(words),
            // Deadlock, serialization, lock and statement time-outs, disk full, memory, too many connections, shutdown,
            // and whatever we do not know: nothing that a record could be blamed for.
            _ => Failure::Unavailable(words),
        }
    }
}

/// For everything but the numbering transaction.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    match Failure::of(&error) {
        Failure::Unavailable(words) => StoreError::Unavailable(words),
        Failure::Exists(_) => StoreError::AlreadyExists,
        Failure::Absent => StoreError::NotFound,
        Failure::Data(words) | Failure::Refused(words) => StoreError::Refused(words),
    }
}

/// For a statement of the numbering transaction before COMMIT: nothing is committed.
pub(crate) fn before_commit(error: sqlx::Error) -> ApplyError {
    match Failure::of(&error) {
        // Not the record's fault: a person mends the database, and the batch is tried until then.
        Failure::Unavailable(words) | Failure::Refused(words) => ApplyError::Unavailable(words),
        Failure::Exists(constraint) => ApplyError::Conflict(format!("constraint {constraint}")),
        Failure::Absent => ApplyError::Conflict("a row that must exist does not".into()),
        Failure::Data(words) => ApplyError::Data(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_apply(code: &'static str) -> &'static str {
        match Failure::of_state(code, String::new(), "") {
            Failure::Unavailable(_) | Failure::Refused(_) => "unavailable",
            Failure::Data(_) => "data",
            Failure::Exists(_) | Failure::Absent => "conflict",
        }
    }

    #[test]
    fn only_data_is_a_records_fault() {
        let not_its_fault = [
            "40P01", "40001", "55P03", "57014", "57P01", "57P02", "57P03", "53100", "53200", "53300", "08006", "25P03",
            "25006", "XX000", "XX001", "58030", "42P01", "28P01", "", "99999",
        ];
        for code in not_its_fault {
            assert_eq!(in_apply(code), "unavailable", "{code}");
        }
        for code in ["22021", "22001", "22003", "22P05", "23502", "23514", "54000"] {
            assert_eq!(in_apply(code), "data", "{code}");
        }
        assert_eq!(in_apply("23505"), "conflict");
    }
}
