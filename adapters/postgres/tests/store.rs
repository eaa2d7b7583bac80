//! The behaviour suite of the Store, on a real PostgreSQL.

mod common;

roost_ports::conformance_tests!(store, common::Database::new);
