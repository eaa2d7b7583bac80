//! Sessions of the database, lent out and given back.
//!
//! sqlx's own pool asks the server for a sign of life whenever a session comes back, which is a round trip for every
//! transaction, and waits without end for the answer of a server that cannot be heard. Here a session that is not
//! given back in so many words is dropped: an error, a time-out or a cancelled future can leave no transaction behind.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roost_ports::store::StoreError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{ANSWER_MAX, CONNECT_MAX, LEASE_MAX};
use crate::error::store_error;

/// A session that was idle for longer is asked for a sign of life first: the server may have been restarted.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// A session that was idle for longer is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A session is not used for longer than this, so that what it caches in the server does not grow for ever.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// A bounded number of sessions.
pub(crate) struct Pool {
    options: PgConnectOptions,
    permits: Arc<Semaphore>,
    /// The one used last is used next, so that the others may age.
    idle: Arc<Mutex<Vec<Session>>>,
}

struct Session {
    connection: PgConnection,
    opened: Instant,
    used: Instant,
}

/// A session on loan. Dropped, it is closed; only [`Lease::give_back`] lets another one use it.
pub(crate) struct Lease {
    session: Session,
    idle: Arc<Mutex<Vec<Session>>>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(options: PgConnectOptions, sessions_max: usize) -> Self {
        assert!(sessions_max > 0, "a pool has at least one session");
        Self { options, permits: Arc::new(Semaphore::new(sessions_max)), idle: Arc::default() }
    }

    /// A session, within the time that a lease may take.
    pub(crate) async fn lease(&self) -> Result<Lease, StoreError> {
        let permit = tokio::time::timeout(LEASE_MAX, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| StoreError::Unavailable("all sessions of the database are in use".into()))?
            .map_err(|_| StoreError::Unavailable("the pool is closed".into()))?;
        let session = match self.idle_session().await {
            Some(session) => session,
            None => self.open().await?,
        };
        Ok(Lease { session, idle: Arc::clone(&self.idle), _permit: permit })
    }

    /// All rows of one statement, as a transaction of its own.
    pub(crate) async fn rows(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, StoreError> {
        let mut lease = self.lease().await?;
        let rows = in_time(query.fetch_all(lease.connection())).await;
        lease.settle(rows)
    }

    /// One statement without rows, as a transaction of its own: how many rows it touched.
    pub(crate) async fn execute(&self, query: Query<'_, Postgres, PgArguments>) -> Result<u64, StoreError> {
        let mut lease = self.lease().await?;
        let done = in_time(query.execute(lease.connection())).await;
        lease.settle(done).map(|done| done.rows_affected())
    }

    async fn idle_session(&self) -> Option<Session> {
        loop {
            let mut session = self.idle.lock().pop()?;
            let idle = session.used.elapsed();
            if idle > IDLE_MAX || session.opened.elapsed() > AGE_MAX {
                continue;
            }
            if idle <= TRUSTED_IDLE
                || matches!(tokio::time::timeout(CONNECT_MAX, session.connection.ping()).await, Ok(Ok(())))
            {
                return Some(session);
            }
            // If one is dead, the server was restarted, and the others are dead too.
            self.idle.lock().clear();
        }
    }

    async fn open(&self) -> Result<Session, StoreError> {
        let connection = tokio::time::timeout(CONNECT_MAX, PgConnection::connect_with(&self.options))
            .await
            .map_err(|_| StoreError::Unavailable("no session of the database within the time allowed".into()))?
            .map_err(store_error)?;
        let now = Instant::now();
        Ok(Session { connection, opened: now, used: now })
    }
}

impl Lease {
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.session.connection
    }

    /// Lets others use the session. Only for one that is in no transaction and waits for no answer.
    pub(crate) fn give_back(self) {
        let Lease { mut session, idle, _permit } = self;
        session.used = Instant::now();
        idle.lock().push(session);
        // The permit is dropped last: whoever gets it finds the session.
    }

    /// Gives the session back after one statement outside a transaction, unless the error says that it is broken.
    fn settle<T>(self, result: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        if matches!(&result, Ok(_) | Err(sqlx::Error::RowNotFound)) {
            self.give_back();
        }
        result.map_err(store_error)
    }
}

/// The answer, unless it takes longer than the server may take for any statement.
pub(crate) async fn in_time<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(result) => result,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))),
    }
}
