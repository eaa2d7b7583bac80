//! Delivery between processes over gRPC: [`MeshDelivery`] sends, [`MeshServer`] receives and calls a sink.
//!
//! One stream per sending process and endpoint life; batches are numbered, pipelined, and acknowledged one by one. What
//! is not acknowledged when a stream ends resolves as `Unavailable` and is never sent again by the mesh itself.
//!
//! **Trust.** Both ends prove in an HMAC over fresh nonces that they know the shared secret, which itself never travels.
//! What follows is neither encrypted nor authenticated: the network between the processes must be trusted. Without a
//! shared secret the server binds loopback addresses only.

mod assembly;
mod config;
mod delivery;
mod guard;
mod limits;
mod peer;
mod pending;
mod proof;
mod seats;
mod server;
mod service;
mod wire;

pub use config::{MeshConfig, Secret, SecretError};
pub use delivery::MeshDelivery;
pub use server::{MeshServer, MeshServerError};

/// The generated types; they stay behind this crate.
#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unused_qualifications,
    reason = "generated code"
)]
mod proto {
    tonic::include_proto!("roost.mesh.v1");
}
