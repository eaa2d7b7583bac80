//! What Roost needs from the world, as contracts in prose and traits, each with one conformance suite that every
//! adapter passes.
//!
//! | port | promise |
//! |---|---|
//! | [`Log`] | append returns when durable; order per partition; consumer groups; redelivery possible |
//! | [`Store`] | the numbering transaction as one call; history by range; accounts, devices, conversations, members |
//! | [`Registry`] | which session of which user lives on which gateway; leases; rate limits |
//! | [`Delivery`] | batches to one life of a process, acknowledged once they are in the session queues |
//! | [`Clock`] | the wall clock, and one that keeps running while the machine sleeps |

pub mod clock;
pub mod conformance;
pub mod delivery;
pub mod follow;
pub mod log;
pub mod registry;
pub mod store;

pub use clock::{Clock, SystemClock};
pub use delivery::{Delivery, DeliverySink};
pub use follow::follow;
pub use log::{Consumer, Log};
pub use registry::Registry;
pub use store::Store;
