//! A database of its own for each test, on the server that ROOST_TEST_POSTGRES names.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod proxy;

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use roost_ports::conformance::store::StoreHarness;
use roost_ports::store::Store;
use roost_postgres::PostgresStore;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// One test at a time: a transaction that runs anywhere on the server makes a cursor of heads wait for it, and the
/// suite looks closely.
static TURN: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// A database that is dropped with this value.
pub struct Database {
    /// `postgres://…/name`.
    pub url: String,
    server: String,
    name: String,
    _turn: OwnedMutexGuard<()>,
}

impl Database {
    /// A new one; none where there is no server.
    pub async fn new() -> Option<Self> {
        let Ok(server) = std::env::var("ROOST_TEST_POSTGRES") else {
            let required = std::env::var("ROOST_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
            assert!(!required, "ROOST_TEST_POSTGRES names no server, and ROOST_REQUIRE_SERVERS asks for it");
            eprintln!("skipped: ROOST_TEST_POSTGRES names no server");
            return None;
        };
        let turn = Arc::clone(&TURN).lock_owned().await;
        let name = format!("roost_test_{}", uuid::Uuid::now_v7().simple());
        administer(&server, format!("CREATE DATABASE {name}")).await;
        let (base, _) = server.rsplit_once('/').expect("a URL with a database");
        Some(Self { url: format!("{base}/{name}"), server, name, _turn: turn })
    }

    /// A Store on it.
    pub async fn store(&self) -> Arc<dyn Store> {
        Arc::new(PostgresStore::connect(&self.url).await.expect("the server is there and its settings are durable"))
    }

    /// A session without any of the Store's settings.
    pub async fn session(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("a session")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, statement) = (self.server.clone(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
        // Not on the test's runtime, which may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(administer(&server, statement));
        });
        if dropping.join().is_err() {
            eprintln!("the database {} stays", self.name);
        }
    }
}

async fn administer(server: &str, statement: String) {
    let mut session = PgConnection::connect(server).await.expect("the server of ROOST_TEST_POSTGRES");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.expect("a database is made or dropped");
}

#[async_trait]
impl StoreHarness for Database {
    async fn make(&self) -> Arc<dyn Store> {
        self.store().await
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        self.store().await
    }
}
