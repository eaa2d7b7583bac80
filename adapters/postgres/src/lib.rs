//! The Store over PostgreSQL 15 or later: the numbering transaction, history, heads, accounts.
//!
//! | module | what |
//! |---|---|
//! | `config` | how a session of the database is set up, and how many there are |
//! | `pool` | connections, lent out and given back |
//! | `schema` | migrations, and what makes a server fit to be the Store |
//! | `apply`, `insert` | the numbering transaction |
//! | `progress` | claims, replay, the published mark |
//! | `reading`, `cursor` | what users see |
//! | `accounts` | accounts, devices, refresh tokens, signing keys, gateways |

mod accounts;
mod apply;
mod config;
mod cursor;
mod error;
mod insert;
mod pool;
mod progress;
mod reading;
mod rows;
mod schema;
mod store;

pub use config::PostgresConfig;
pub use store::PostgresStore;
