//! REST: accounts, tokens, conversations, history; the second door beside the gateway's sessions.
//!
//! The program makes an [`Api`] of its [`Config`] and [`Ports`], calls [`Api::prepare`], registers [`Api::sink`] with
//! Delivery under the endpoint's address and incarnation, and lets a [`Server`] serve: [`Server::serve`] a listener of
//! its own in the api role, [`Server::serve_connection`] what the gateway hands over.
//!
//! Nothing here takes a number: creations and messages go into the Log with this process as their origin, and the
//! persist worker's verdict comes back through the sink.

mod config;
mod extract;
mod ingress;
mod keys;
mod names;
mod passwords;
mod problem;
mod rates;
mod routes;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use roost_ports::DeliverySink;
use roost_ports::store::StoreError;

pub use config::{Config, MetricsText, PasswordCost, Ports, Probes, Rates, ReadinessCheck};
pub use server::Server;

/// The REST services of one process.
pub struct Api {
    config: Config,
    ports: Ports,
    probes: Probes,
    keys: keys::KeyRing,
    passwords: passwords::Passwords,
    limiter: rates::Limiter,
    ingress: ingress::Ingress,
    openapi_json: Bytes,
}

impl Api {
    /// Puts the services together; asks and starts nothing yet.
    ///
    /// # Panics
    ///
    /// If argon2 does not know such a [`PasswordCost`].
    pub fn new(config: Config, ports: Ports, probes: Probes) -> Arc<Self> {
        let ingress = ingress::Ingress::new(
            Arc::clone(&ports.log),
            Arc::clone(&ports.store),
            config.endpoint.clone(),
            config.verdict_ms_max,
            config.verdicts_waiting_max,
        );
        Arc::new(Self {
            keys: keys::KeyRing::new(&config, Arc::clone(&ports.store), Arc::clone(&ports.clock)),
            passwords: passwords::Passwords::new(config.password),
            limiter: rates::Limiter::new(Arc::clone(&ports.registry), Arc::clone(&ports.clock)),
            ingress,
            openapi_json: Bytes::from(Self::openapi_json()),
            config,
            ports,
            probes,
        })
    }

    /// Makes sure that there is a key to sign with. Called before gateways load the keys, so that the very first token
    /// is no stranger to them; whoever does not call it has the first login do it.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        self.keys.prepare().await
    }

    /// The receiving end of verdicts, for Delivery.
    pub fn sink(&self) -> Arc<dyn DeliverySink> {
        self.ingress.sink()
    }

    /// A server for these services.
    pub fn server(self: &Arc<Self>) -> Server {
        Server::new(routes::router(Arc::clone(self)), &self.config)
    }

    /// A server that answers only health, readiness and metrics: for gateways and workers.
    pub fn operations_server(config: &Config, probes: Probes) -> Server {
        Server::new(routes::operations_router(probes), config)
    }

    /// The OpenAPI document, as `/v1/openapi.json` serves it.
    pub fn openapi_json() -> String {
        routes::openapi().to_json().expect("the document has a JSON form")
    }
}
