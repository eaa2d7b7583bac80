//! The stateless workers between the log and everyone: persist numbers what arrives, fan-out carries it to sessions.
//!
//! Each worker is a machine without I/O (events and `now` in, effects and a deadline out) and a thin driver that feeds
//! it from a consumer and performs what it asks; [`consume`] is the loop that both share.

pub mod consume;
pub mod evidence;
pub mod fanout;
pub mod persist;
pub mod schedules;
