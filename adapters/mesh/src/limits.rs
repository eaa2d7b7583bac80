//! Every limit of the mesh, with their relations asserted at compile time.

use std::time::Duration;

pub(crate) use roost_ports::delivery::OUTSTANDING_BYTES_MAX;
use roost_protocol::limits::RECORD_BYTES_MAX;

/// The version of the stream that this build speaks.
pub(crate) const VERSION: u32 = 1;

/// The largest frame that a sender makes.
pub(crate) const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The largest frame that a receiver takes: room for later versions.
pub(crate) const FRAME_BYTES_TAKEN: usize = 2 * 1024 * 1024;
/// Small batches that wait together share a frame up to here.
pub(crate) const FRAME_BYTES_SHARED: usize = 64 * 1024;
/// Parts in one frame, and acknowledgements.
pub(crate) const FRAME_PARTS_MAX: usize = 1024;
/// The largest part.
pub(crate) const PART_BYTES_MAX: usize = FRAME_BYTES_MAX - 64;
/// A larger audience is split.
pub(crate) const AUDIENCE_BYTES_MAX: usize = 256 * 1024;
/// The largest frame of acknowledgements.
pub(crate) const ACKS_BYTES_MAX: usize = FRAME_PARTS_MAX * (ACK_WORDS_BYTES_MAX + 32);
/// Words that explain a failure are cut here.
pub(crate) const ACK_WORDS_BYTES_MAX: usize = 256;

/// What a batch counts at least against the bytes outstanding.
pub(crate) const BATCH_BYTES_MIN: usize = 128;
/// Batches outstanding to one endpoint; the bytes are always used up first.
pub(crate) const OUTSTANDING_BATCHES_MAX: usize = OUTSTANDING_BYTES_MAX / BATCH_BYTES_MIN;

/// Endpoints that a sender knows at a time, those that are gone included.
pub(crate) const ENDPOINTS_MAX: usize = 4096;
/// Connections that a server holds; further ones wait in the listener's backlog.
pub(crate) const CONNECTIONS_MAX: usize = 4096;
/// Streams of one connection; a sender uses one.
pub(crate) const STREAMS_PER_CONNECTION_MAX: u32 = 2;
/// Bytes of the headers of a stream.
pub(crate) const HEADERS_BYTES_MAX: u32 = 8 * 1024;
/// What HTTP/2 lets a stream, and a connection, have on the way.
pub(crate) const WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// The HTTP/2 frames that a batch is cut into.
pub(crate) const HTTP2_FRAME_BYTES: u32 = 64 * 1024;

/// A connection that has no proven stream by then is closed, and so is a stream that has not opened.
pub(crate) const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// A TCP connection that is not there by then is not tried longer.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Between HTTP/2 pings, and the longest wait for their answer: a black hole is found within the sum.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(5);
/// A stop waits that long for the acknowledgements of what has arrived.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(5);
/// The shortest time between two looks at the clock, however short the configured times are.
pub(crate) const TICK_SHORTEST: Duration = Duration::from_millis(5);
/// The first wait before connecting again; it doubles up to the longest.
pub(crate) const BACK_OFF_FIRST: Duration = Duration::from_millis(20);
/// The longest wait before connecting again.
pub(crate) const BACK_OFF_LONGEST: Duration = Duration::from_secs(1);

const _: () = {
    assert!(RECORD_BYTES_MAX + AUDIENCE_BYTES_MAX + 1024 <= PART_BYTES_MAX, "an item's first piece fits in a part");
    assert!(AUDIENCE_BYTES_MAX.is_multiple_of(16), "audiences are split between ids");
    assert!(FRAME_BYTES_SHARED <= FRAME_BYTES_MAX && FRAME_BYTES_MAX <= FRAME_BYTES_TAKEN);
    assert!(FRAME_BYTES_TAKEN <= WINDOW_BYTES as usize, "a whole frame can be on the way");
    assert!(OUTSTANDING_BYTES_MAX <= u32::MAX as usize, "the budget is counted in u32 permits");
};
