//! What the end-to-end and crash tests stand on: the history checker, private servers, and Roost's own processes in both
//! compositions. The tests themselves are in `tests/`.

pub mod checker;
pub mod cluster;
pub mod people;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod recorder;
pub mod servers;
