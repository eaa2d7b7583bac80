//! The only place that names adapters: picks them by the scheme of their URL. Embedded is just the default.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use roost_embedded::delivery::LocalDelivery;
use roost_embedded::log::SqliteLog;
use roost_embedded::registry::MemoryRegistry;
use roost_embedded::store::{Applies, SqliteStore};
use roost_kafka::{KafkaConfig, KafkaLog};
use roost_mesh::{MeshConfig, MeshDelivery, Secret};
use roost_ports::log::LogError;
use roost_ports::registry::RegistryError;
use roost_ports::store::{Migration, StoreError};
use roost_ports::{Clock, Delivery, Log, Registry, Store, SystemClock};
use roost_postgres::PostgresStore;
use roost_redis::{RedisConfig, RedisRegistry};

use crate::cli::BackendArgs;

/// Why the program cannot go on: what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// Another process uses the data folder.
    #[error(
        "the data folder {0} is in use by another roost; stop that one, or give this one another folder with --data"
    )]
    Locked(PathBuf),
    /// The log is not what it should be.
    #[error("the log: {0}")]
    Log(#[from] LogError),
    /// The store is not what it should be.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The registry is not what it should be.
    #[error("the registry: {0}")]
    Registry(#[from] RegistryError),
    /// Something else that a person has to see.
    #[error("{0}")]
    Other(String),
}

/// Where something lives, by the scheme of its URL.
#[derive(Debug, Clone)]
enum Place<T> {
    Embedded,
    Server(T),
}

/// The shared parts of every role.
pub struct Backends {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    /// Held for as long as the process uses the folder.
    _data: Option<DataLock>,
}

impl Backends {
    /// Opens log and store. Servers that do not answer yet are waited for; what is refused is a problem.
    pub async fn open(args: &BackendArgs) -> Result<Self, Problem> {
        Self::open_with(args, Applies::OnTheWriter).await
    }

    /// The same for a process whose workers have a thread to themselves: it may stand still for a transaction.
    pub async fn open_beside_workers(args: &BackendArgs) -> Result<Self, Problem> {
        Self::open_with(args, Applies::OnTheCaller).await
    }

    async fn open_with(args: &BackendArgs, applies: Applies) -> Result<Self, Problem> {
        let (log_place, store_place) = places(args)?;
        let embedded = matches!(log_place, Place::Embedded) || matches!(store_place, Place::Embedded);
        let data = if embedded { Some(DataLock::take(&args.data)?) } else { None };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let log: Arc<dyn Log> = match log_place {
            Place::Embedded => SqliteLog::open(&args.data.join("log.db"), log_options(args))?,
            Place::Server(config) => {
                Arc::new(patiently("kafka", async || KafkaLog::open(config.clone()).await, log_is_away).await?)
            }
        };
        let store = open_store(args, &store_place, applies).await?;
        if embedded {
            store.migrate(&migration(log.log_id(), log.partitions())).await?;
        }
        let expected = patiently("store", async || store.partitions(log.log_id()).await, store_is_away).await?;
        if expected != log.partitions() {
            return Err(Problem::Setting(format!(
                "the log has {} partitions but the store was migrated for {expected}",
                log.partitions()
            )));
        }
        Ok(Self { log, store, clock, _data: data })
    }

    /// Makes or upgrades what both need.
    pub async fn migrate(args: &BackendArgs) -> Result<(), Problem> {
        let (log_place, store_place) = places(args)?;
        let (log_id, partitions) = match &log_place {
            Place::Embedded => {
                let _data = DataLock::take(&args.data)?;
                let log = SqliteLog::open(&args.data.join("log.db"), log_options(args))?;
                (log.log_id().to_owned(), log.partitions())
            }
            Place::Server(config) => {
                let partitions = match args.partitions {
                    Some(partitions) => partitions,
                    None => KafkaLog::partitions_held(config).await?.unwrap_or(roost_kafka::PARTITIONS_DEFAULT),
                };
                KafkaLog::create_topics(config, partitions).await?;
                (KafkaLog::log_id_of(config), partitions)
            }
        };
        let _data = if matches!(store_place, Place::Embedded) { Some(DataLock::take(&args.data)?) } else { None };
        let store = open_store(args, &store_place, Applies::OnTheWriter).await?;
        Ok(store.migrate(&migration(&log_id, partitions)).await?)
    }
}

/// Asks the log once: its name and how many partitions it has.
pub async fn check_log(args: &BackendArgs) -> Result<(String, u32), Problem> {
    match places(args)?.0 {
        Place::Embedded => {
            let _data = DataLock::take(&args.data)?;
            let log = SqliteLog::open(&args.data.join("log.db"), log_options(args))?;
            Ok((log.log_id().to_owned(), log.partitions()))
        }
        Place::Server(config) => {
            let log = KafkaLog::open(config).await?;
            log.check().await?;
            Ok((log.log_id().to_owned(), log.partitions()))
        }
    }
}

/// Asks the store once; with the log's name, also how many partitions it was migrated for.
pub async fn check_store(args: &BackendArgs, log_id: Option<&str>) -> Result<Option<u32>, Problem> {
    let place = places(args)?.1;
    let _data = if matches!(place, Place::Embedded) { Some(DataLock::take(&args.data)?) } else { None };
    let store: Arc<dyn Store> = match place {
        Place::Embedded => Arc::new(SqliteStore::open(&args.data.join("store.db"))?),
        Place::Server(url) => Arc::new(PostgresStore::connect(&url).await?),
    };
    store.check().await?;
    match log_id {
        Some(log_id) => Ok(Some(store.partitions(log_id).await?)),
        None => Ok(None),
    }
}

/// The registry of a URL.
pub fn registry(url: &str, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Registry>, Problem> {
    match scheme(url) {
        "embedded" => Ok(Arc::new(MemoryRegistry::new(Arc::clone(clock)))),
        "redis" | "rediss" => {
            let config = RedisConfig::parse(url).map_err(|error| Problem::Setting(format!("registry: {error}")))?;
            Ok(Arc::new(RedisRegistry::new(config)?))
        }
        other => Err(unknown("registry", other, "embedded: or redis://host:port")),
    }
}

/// Delivery inside this process.
pub fn local_delivery() -> Arc<LocalDelivery> {
    Arc::new(LocalDelivery::new())
}

/// Delivery between processes: the settings that both its ends share.
pub fn mesh_config(secret_file: Option<&Path>) -> Result<MeshConfig, Problem> {
    let mut config = MeshConfig::default();
    if let Some(path) = secret_file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problem::Setting(format!("mesh-secret-file {}: {error}", path.display())))?;
        let secret = Secret::new(text.trim())
            .map_err(|error| Problem::Setting(format!("mesh-secret-file {}: {error}", path.display())))?;
        config.shared_secret = Some(secret);
    }
    Ok(config)
}

/// The sending end of the mesh.
pub fn mesh_delivery(config: &MeshConfig) -> Arc<dyn Delivery> {
    Arc::new(MeshDelivery::new(config.clone()))
}

/// Asks again and again, with a growing pause, while the error says that the server is only away.
pub async fn patiently<T, E: std::fmt::Display>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
    is_away: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let mut pause = Duration::from_millis(100);
    loop {
        match ask().await {
            Err(error) if is_away(&error) => {
                tracing::warn!(%error, "waiting for {what}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            answer => return answer,
        }
    }
}

pub fn store_is_away(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_))
}

fn log_is_away(error: &LogError) -> bool {
    matches!(error, LogError::Unavailable(_))
}

fn places(args: &BackendArgs) -> Result<(Place<KafkaConfig>, Place<String>), Problem> {
    let log = match scheme(&args.log) {
        "embedded" => Place::Embedded,
        "kafka" => {
            Place::Server(KafkaConfig::parse(&args.log).map_err(|error| Problem::Setting(format!("log: {error}")))?)
        }
        other => return Err(unknown("log", other, "embedded: or kafka://host:port/prefix")),
    };
    let store = match scheme(&args.store) {
        "embedded" => Place::Embedded,
        "postgres" | "postgresql" => Place::Server(args.store.clone()),
        other => return Err(unknown("store", other, "embedded: or postgres://user@host:port/database")),
    };
    if args.partitions.is_some_and(|partitions| !(1..=4_096).contains(&partitions)) {
        return Err(Problem::Setting("partitions must be between 1 and 4096".into()));
    }
    Ok((log, store))
}

async fn open_store(args: &BackendArgs, place: &Place<String>, applies: Applies) -> Result<Arc<dyn Store>, Problem> {
    Ok(match place {
        Place::Embedded => Arc::new(SqliteStore::open_with(&args.data.join("store.db"), applies)?),
        Place::Server(url) => {
            Arc::new(patiently("postgres", async || PostgresStore::connect(url).await, store_is_away).await?)
        }
    })
}

fn log_options(args: &BackendArgs) -> roost_embedded::log::Options {
    let partitions = args.partitions.unwrap_or(roost_protocol::partition::PARTITIONS_DEFAULT);
    roost_embedded::log::Options { partitions, ..Default::default() }
}

fn migration(log_id: &str, partitions: u32) -> Migration {
    Migration { log_id: log_id.to_owned(), partitions }
}

fn scheme(url: &str) -> &str {
    url.split_once(':').map_or(url, |(scheme, _)| scheme)
}

fn unknown(setting: &str, scheme: &str, right: &str) -> Problem {
    // The rest of the address may hold a password: only the scheme is repeated.
    Problem::Setting(format!("{setting}: {scheme:?} is none of ours; write {right}"))
}

/// The exclusive lock on the data folder, held by the open file.
struct DataLock {
    _file: File,
}

impl DataLock {
    fn take(folder: &Path) -> Result<Self, Problem> {
        let failed = |what: &str, error: std::io::Error| {
            Problem::Setting(format!("the data folder {} cannot be {what}: {error}", folder.display()))
        };
        std::fs::create_dir_all(folder).map_err(|error| failed("made", error))?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .map_err(|error| failed("locked", error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(Problem::Locked(folder.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(failed("locked", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_has_one_user() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = DataLock::take(folder.path()).expect("free");
        let error = DataLock::take(folder.path()).err().expect("in use").to_string();
        assert!(error.contains("in use by another roost") && error.contains("--data"), "{error}");
        drop(first);
        DataLock::take(folder.path()).expect("free again");
    }

    #[test]
    fn an_unknown_scheme_is_named_but_not_its_secrets() {
        let args = BackendArgs {
            data: "data".into(),
            log: "embedded:".into(),
            store: "mysql://user:secret@host/db".into(),
            partitions: None,
        };
        let error = places(&args).expect_err("unknown").to_string();
        assert!(error.contains("mysql") && error.contains("postgres://") && !error.contains("secret"), "{error}");
    }
}
