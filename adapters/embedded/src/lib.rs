//! Everything that Roost needs from the world inside one process: Log and Store on SQLite, Registry and Delivery in
//! memory.

pub mod delivery;
pub mod log;
pub mod registry;
pub mod store;
mod wal;
