//! The session machine: what a client may count on, and what no order of events can break.

#[path = "../common/mod.rs"]
mod common;
mod harness;
mod opening;
mod properties;
mod sends;
mod staying;
