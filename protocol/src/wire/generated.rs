//! What prost makes of the schema in `proto/`. The domain types stand in front of it everywhere outside this crate.
#![allow(missing_docs, reason = "the schema documents its fields")]
#![allow(dead_code, reason = "client frames and ingress records are prost's only in tests")]
#![allow(clippy::all, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/roost.v1.rs"));
