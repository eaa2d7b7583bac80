//! The REST interface as its callers see it, over a world in memory whose parts can fail.

mod accounts;
mod conversations;
mod embedded;
mod http;
mod messages;
mod process;
mod tokens;
mod world;
