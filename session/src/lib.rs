//! One client connection as a state machine without I/O: its framing, its authentication and its life.

pub mod framing;
pub mod machine;
pub mod rate;
pub mod token;
