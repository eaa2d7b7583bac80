//! (being written)

pub mod store;
