//! The Registry port over one multiplexed connection that reconnects by itself.

use std::time::Duration;

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, RedisError, ScriptInvocation};
use roost_ports::Registry;
use roost_ports::registry::{
    GatewayEntry, Located, Rate, RateDecision, RegistryError, RegistryIncarnation, Renewal, SessionEntry,
};
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, SessionId, UserId};

use crate::RedisConfig;
use crate::scripts::Scripts;

/// No call may hold a handshake up for longer than a second: reconnecting and answering each get less than half.
const ANSWER_WITHIN: Duration = Duration::from_millis(450);
const CALL_WITHIN: Duration = Duration::from_millis(950);
/// Users or sessions in one script, so that none holds the server up for long.
const PER_SCRIPT: usize = 500;

/// A Redis server as Roost's registry.
pub struct RedisRegistry {
    connection: ConnectionManager,
    prefix: String,
    scripts: Scripts,
}

impl RedisRegistry {
    /// Prepares the connection; it is made when first needed, and again whenever it breaks. Needs a tokio runtime.
    pub fn new(config: RedisConfig) -> Result<Self, RegistryError> {
        let client = redis::Client::open(config.info).map_err(unavailable)?;
        let manager = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN))
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(100));
        let connection = ConnectionManager::new_lazy_with_config(client, manager).map_err(unavailable)?;
        Ok(Self { connection, prefix: config.prefix, scripts: Scripts::new() })
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, RegistryError> {
        let mut connection = self.connection.clone();
        match tokio::time::timeout(CALL_WITHIN, script.invoke_async(&mut connection)).await {
            Ok(answer) => answer.map_err(registry_error),
            Err(_) => Err(RegistryError::Unavailable("no answer in time".into())),
        }
    }

    async fn write_entries(
        &self,
        script: &redis::Script,
        gateway: Incarnation,
        sessions: &[SessionEntry],
    ) -> Result<u64, RegistryError> {
        let mut writes = 0;
        // An empty call still counts as one write, so that the caller's count and ours stay one sequence.
        let chunks: Vec<&[SessionEntry]> =
            if sessions.is_empty() { vec![sessions] } else { sessions.chunks(PER_SCRIPT).collect() };
        for chunk in chunks {
            let mut call = script.arg(&self.prefix);
            call.arg(gateway.to_string());
            for entry in chunk {
                call.arg(&entry.user_id.as_bytes()[..])
                    .arg(&entry.session_id.to_bytes()[..])
                    .arg(&entry.device_id.as_bytes()[..]);
            }
            writes = self.run(&call).await?;
        }
        Ok(writes)
    }
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn acquire(&self, gateway: &Endpoint, ttl_ms: u64) -> Result<Renewal, RegistryError> {
        let mut call = self.scripts.acquire.arg(&self.prefix);
        call.arg(gateway.incarnation.to_string()).arg(&gateway.address).arg(ttl_ms).arg(new_life());
        renewal(self.run(&call).await?)
    }

    async fn renew(
        &self,
        gateway: &Endpoint,
        known: RegistryIncarnation,
        ttl_ms: u64,
    ) -> Result<Renewal, RegistryError> {
        let mut call = self.scripts.renew.arg(&self.prefix);
        call.arg(gateway.incarnation.to_string())
            .arg(&gateway.address)
            .arg(ttl_ms)
            .arg(new_life())
            .arg(known.0.to_string());
        renewal(self.run(&call).await?)
    }

    async fn complete(&self, gateway: Incarnation, registry: RegistryIncarnation) -> Result<(), RegistryError> {
        let mut call = self.scripts.complete.arg(&self.prefix);
        call.arg(gateway.to_string()).arg(registry.0.to_string());
        self.run::<i64>(&call).await.map(drop)
    }

    async fn release(&self, gateway: Incarnation) -> Result<(), RegistryError> {
        loop {
            let mut call = self.scripts.release.arg(&self.prefix);
            call.arg(gateway.to_string());
            if self.run::<i64>(&call).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn register(&self, gateway: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.write_entries(&self.scripts.register, gateway, sessions).await
    }

    async fn unregister(&self, gateway: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.write_entries(&self.scripts.unregister, gateway, sessions).await
    }

    async fn locate(&self, users: &[UserId]) -> Result<Located, RegistryError> {
        let mut located = Located::default();
        let chunks: Vec<&[UserId]> = if users.is_empty() { vec![users] } else { users.chunks(PER_SCRIPT).collect() };
        for chunk in chunks {
            let mut call = self.scripts.locate.arg(&self.prefix);
            for user in chunk {
                call.arg(&user.as_bytes()[..]);
            }
            let (sessions, gateways): (Vec<Vec<u8>>, Vec<(String, String, u8)>) = self.run(&call).await?;
            for entry in &sessions {
                located.sessions.push(session(entry)?);
            }
            // The last chunk's view is the freshest.
            located.gateways = gateways.into_iter().map(gateway).collect::<Result<_, _>>()?;
        }
        Ok(located)
    }

    async fn allow(&self, key: &str, rate: Rate) -> Result<RateDecision, RegistryError> {
        let mut call = self.scripts.allow.arg(format!("{}r:{key}", self.prefix));
        call.arg(rate.burst).arg(rate.interval_ms);
        Ok(match self.run::<u64>(&call).await? {
            0 => RateDecision::Allowed,
            retry_after_ms => RateDecision::Limited { retry_after_ms },
        })
    }

    async fn check(&self) -> Result<(), RegistryError> {
        let mut connection = self.connection.clone();
        let ping = redis::cmd("PING");
        match tokio::time::timeout(CALL_WITHIN, ping.query_async::<String>(&mut connection)).await {
            Ok(answer) => answer.map(drop).map_err(registry_error),
            Err(_) => Err(RegistryError::Unavailable("no answer in time".into())),
        }
    }
}

/// A random number for a Registry that has lost or never had one.
fn new_life() -> String {
    Incarnation::new().0.to_string()
}

fn renewal((writes, life): (u64, String)) -> Result<Renewal, RegistryError> {
    let life = life.parse().map_err(|_| damaged())?;
    Ok(Renewal { writes, registry: RegistryIncarnation(life) })
}

fn session(entry: &[u8]) -> Result<SessionEntry, RegistryError> {
    if entry.len() != 48 {
        return Err(damaged());
    }
    Ok(SessionEntry {
        user_id: UserId::from_slice(&entry[..16]).map_err(|_| damaged())?,
        session_id: SessionId::from_slice(&entry[16..32]).map_err(|_| damaged())?,
        device_id: DeviceId::from_slice(&entry[32..]).map_err(|_| damaged())?,
    })
}

fn gateway((incarnation, address, complete): (String, String, u8)) -> Result<GatewayEntry, RegistryError> {
    let incarnation = Incarnation(u64::from_str_radix(&incarnation, 16).map_err(|_| damaged())?);
    Ok(GatewayEntry { endpoint: Endpoint { address, incarnation }, complete: complete == 1 })
}

fn damaged() -> RegistryError {
    RegistryError::Unavailable("the server holds something that is not ours under our prefix".into())
}

fn unavailable(error: RedisError) -> RegistryError {
    RegistryError::Unavailable(error.to_string())
}

fn registry_error(error: RedisError) -> RegistryError {
    if error.code() == Some("LEASELOST") { RegistryError::LeaseLost } else { unavailable(error) }
}
