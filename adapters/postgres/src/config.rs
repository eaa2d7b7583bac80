//! How a session of the database is set up, and how many there are.

use std::str::FromStr;
use std::time::Duration;

use roost_ports::store::StoreError;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// The server ends a transaction whose owner is silent for so long, and its row locks with it.
const IDLE_IN_TRANSACTION_MS: u64 = 3_000;
/// A statement waits at most so long for a lock.
const LOCK_MS: u64 = 2_000;
/// A statement runs at most so long.
const STATEMENT_MS: u64 = 10_000;
/// The server gives up a client that does not acknowledge what was sent to it.
const TCP_USER_TIMEOUT_MS: u64 = 5_000;
/// How often the server looks whether the client of a running statement is still there.
const CLIENT_CHECK_MS: u64 = 1_000;

/// The longest that we wait for the answer to one statement: the server has ended it long before, so that only a
/// server that is gone, or cannot be heard, takes longer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_millis(STATEMENT_MS + 2_000);
/// The longest that we wait for a new session.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The longest that we wait for a session that is lent out.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(5);

const _: () = {
    assert!(LOCK_MS < STATEMENT_MS, "a wait for a lock ends with its own error");
    // Consumer groups give a silent member up after 10 s.
    assert!(IDLE_IN_TRANSACTION_MS < 10_000 && TCP_USER_TIMEOUT_MS < 10_000, "a frozen worker cannot hold the rows");
};

/// Which database, and how many sessions of it.
#[derive(Clone)]
pub struct PostgresConfig {
    pub(crate) options: PgConnectOptions,
    /// Sessions for the numbering transaction: as many as lanes work at once. Reads never take one.
    pub apply_sessions_max: usize,
    /// Sessions for everything else.
    pub read_sessions_max: usize,
}

impl PostgresConfig {
    /// Reads the URL form, `postgres://[user[:password]@]host[:port]/database[?options]`, with 8 sessions for the
    /// numbering transaction and 16 for everything else.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let known = url.starts_with("postgres://") || url.starts_with("postgresql://");
        // The library's own error could repeat the password.
        let options = PgConnectOptions::from_str(url).ok().filter(|_| known).ok_or_else(|| {
            StoreError::Refused(
                "not a PostgreSQL address; write it as postgres://[user[:password]@]host[:port]/database".into(),
            )
        })?;
        Ok(Self { options: with_settings(options), apply_sessions_max: 8, read_sessions_max: 16 })
    }

    /// Options for a session that may wait: for the schema only.
    pub(crate) fn patient(&self) -> PgConnectOptions {
        self.options.clone().options([
            ("lock_timeout", "60s"),
            ("statement_timeout", "0"),
            ("idle_in_transaction_session_timeout", "60s"),
        ])
    }
}

impl std::fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options hold the password.
        f.debug_struct("PostgresConfig")
            .field("host", &self.options.get_host())
            .field("database", &self.options.get_database())
            .field("apply_sessions_max", &self.apply_sessions_max)
            .field("read_sessions_max", &self.read_sessions_max)
            .finish_non_exhaustive()
    }
}

fn with_settings(options: PgConnectOptions) -> PgConnectOptions {
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("roost"),
    };
    let milliseconds = [
        ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_MS),
        ("lock_timeout", LOCK_MS),
        ("statement_timeout", STATEMENT_MS),
        ("tcp_user_timeout", TCP_USER_TIMEOUT_MS),
        ("client_connection_check_interval", CLIENT_CHECK_MS),
    ];
    options
        .options(milliseconds.map(|(name, value)| (name, format!("{value}ms"))))
        .options([
            ("default_transaction_isolation", "read committed"),
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
            // Every statement is a look-up by keys that an index holds, prepared once: planning it anew each time costs
            // more than running it, and a plan made while the tables were small must not be one that reads them whole.
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
            // What is written into a statement as text is quoted by this rule.
            ("standard_conforming_strings", "on"),
        ])
        // Parameters are never logged, but a slow statement is the server's to log, with its own settings.
        .disable_statement_logging()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_url_says_what_to_write_and_keeps_the_password() {
        for wrong in ["redis://u:secret@x:1", "postgres://u:secret@x:port/db", "secret"] {
            let error = PostgresConfig::parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains("postgres://") && !error.contains("secret"), "{error}");
        }
        let config = PostgresConfig::parse("postgres://u:secret@x/db").expect("good");
        assert!(!format!("{config:?}").contains("secret"), "{config:?}");
    }
}
