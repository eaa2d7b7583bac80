//! The bodies of the end-to-end tests.

pub mod strangers;
pub mod talk;
