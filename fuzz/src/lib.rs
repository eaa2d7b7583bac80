//! The bodies of the bounded tests, for the targets: nothing is written twice, and nothing can rot unseen.

#[path = "../../session/tests/common/mod.rs"]
mod common;
#[path = "../../session/tests/fuzz/oracle.rs"]
mod oracle;
#[path = "../../protocol/src/wire/tests/bodies.rs"]
pub mod protocol;
#[path = "../../session/tests/fuzz/bodies.rs"]
pub mod session;
