//! What the driver knows of a slot of its table.

use std::os::fd::OwnedFd;

/// A connection, from its adoption to its last word.
pub(super) struct Connection {
    pub(super) generation: u32,
    /// What the shard wants at once; 0: nothing now.
    pub(super) bytes_max: u32,
    /// When bytes came last.
    pub(super) heard_ms: u32,
    /// Its send under way.
    pub(super) send: Option<u32>,
    /// Completions still to come. The slot is given up at 0 only.
    pub(super) under_way: u8,
    pub(super) leaving: Leaving,
    pub(super) receiving: Receiving,
    /// A poll is armed.
    pub(super) polling: bool,
    /// The kernel may have bytes, an end or an error for us.
    pub(super) readable: bool,
    /// The peer has closed or the connection is broken: only a receive of 0 says that everything was read.
    pub(super) hung_up: bool,
    /// It stands in the list of those to be received from.
    pub(super) queued: bool,
    /// It stands in the list of the busy.
    pub(super) listed: bool,
    /// The shard has been told that nothing more comes.
    pub(super) ended: bool,
}

/// How its bytes are received.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing is asked for: the poll tells when there is something.
    No,
    /// Once, without waiting.
    Once,
    /// Until it is cancelled.
    Many,
    /// It is being cancelled.
    Stopping,
}

/// How far its leaving has got.
pub(super) enum Leaving {
    /// It is here.
    No,
    /// Told to close: the last completion is the last word.
    Close,
    /// Told to give the socket back; what is under way is being cancelled.
    Release,
    /// It becomes a descriptor of the process.
    Installing,
    /// It is one, and leaves the table.
    Released(OwnedFd),
}

impl Connection {
    pub(super) fn new(generation: u32, bytes_max: u32) -> Self {
        Self {
            generation,
            bytes_max,
            heard_ms: 0,
            send: None,
            under_way: 0,
            leaving: Leaving::No,
            receiving: Receiving::No,
            polling: false,
            readable: false,
            hung_up: false,
            queued: false,
            listed: false,
            ended: false,
        }
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(self.leaving, Leaving::No)
    }

    /// Whether a receive would be of use now.
    pub(super) fn may_receive(&self) -> bool {
        self.readable && self.bytes_max > 0 && self.receiving == Receiving::No && !self.ended && self.is_here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_costs_little() {
        assert!(size_of::<Option<Connection>>() <= 40, "{} bytes", size_of::<Option<Connection>>());
    }
}
