//! Every limit of the protocol, named, derived from the others, with their relations asserted at compile time.

/// The largest body of a message, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest content type, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// The largest frame a client may send: in JSON a body grows by base64 (4/3), or by escapes where it is text.
pub const CLIENT_FRAME_BYTES_MAX: usize = BODY_BYTES_MAX * 2 + 4 * 1024;
/// The highest seq or time that travels: JSON numbers are exact up to here in every language.
pub const SEQ_MAX: u64 = (1 << 53) - 1;
/// The most bytes a client may send before it is connected.
pub const BEFORE_CONNECT_BYTES_MAX: usize = 4 * 1024;
/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 3 * 1024;
/// The longest name a client may give itself in `connect`.
pub const CLIENT_NAME_BYTES_MAX: usize = 64;
/// The longest sync cursor.
pub const CURSOR_BYTES_MAX: usize = 128;
/// The fragments one WebSocket message may come in.
pub const FRAGMENTS_MAX: u32 = 1024;
/// The nesting a JSON frame may have (our frames need 3).
pub const JSON_DEPTH_MAX: usize = 16;

/// A connection that has not completed its handshake by then is closed.
pub const HANDSHAKE_MS_MAX: u64 = 5_000;
/// A session that has not sent `connect` by then is closed.
pub const CONNECT_MS_MAX: u64 = 10_000;
/// The server pings after this much idleness.
pub const PING_MS: u64 = 25_000;
/// An answer that has not come this long after a ping means that the peer is gone.
pub const PONG_GRACE_MS: u64 = 15_000;
/// How long the gateway waits for the verdict on a send before it answers `retry`.
pub const SEND_DEADLINE_MS: u64 = 15_000;
/// What `retry` and busy errors ask a client to wait at least.
pub const RETRY_AFTER_MS: u64 = 1_000;

/// Sends of one session whose verdict is outstanding.
pub const SENDS_IN_FLIGHT_MAX: usize = 256;
/// Sends of one session a second in the long run, and how many at once.
pub const SENDS_PER_SECOND_MAX: u32 = 100;
/// See `SENDS_PER_SECOND_MAX`.
pub const SENDS_AT_ONCE_MAX: u32 = 1_000;
/// Requests (sync, history, refresh) of one session a second in the long run, and how many at once.
pub const REQUESTS_PER_SECOND_MAX: u32 = 50;
/// See `REQUESTS_PER_SECOND_MAX`.
pub const REQUESTS_AT_ONCE_MAX: u32 = 500;
/// Whoever is over a rate is asked to wait at least this long, so that the asking costs less than the waiting saves.
pub const RATE_WAIT_MS_MIN: u64 = 100;
/// A user with too many sessions is asked to wait this long: by then sessions whose peers are gone have been found.
pub const TOO_MANY_SESSIONS_RETRY_MS: u64 = PING_MS + PONG_GRACE_MS;
/// Requests (sync, history) of one session that are outstanding.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 8;
/// Pings, pongs and control frames of one session a second before it is closed.
pub const CONTROL_FRAMES_PER_SECOND_MAX: u32 = 20;

/// Above this a session's queue drops what may be lost.
pub const QUEUE_BYTES_SOFT: usize = 256 * 1024;
/// Above this a session is closed as slow; it resumes from history.
pub const QUEUE_BYTES_HARD: usize = 1024 * 1024;

/// Messages in one page of history.
pub const PAGE_MESSAGES_MAX: u32 = 200;
/// Bytes of bodies in one page: the page ends early and says `more`.
pub const PAGE_BYTES_MAX: usize = 256 * 1024;
/// Conversations in one `heads`.
pub const HEADS_MAX: u32 = 500;

/// Members of a conversation.
pub const MEMBERS_MAX: usize = 10_000;
/// Members of a group at the least, its creator included.
pub const MEMBERS_MIN: usize = 2;
/// The longest title of a conversation, in bytes.
pub const TITLE_BYTES_MAX: usize = 256;
/// The longest user name, in bytes, and the shortest.
pub const USER_NAME_BYTES_MAX: usize = 64;
/// The shortest user name, in bytes.
pub const USER_NAME_BYTES_MIN: usize = 2;
/// The longest password; argon2 reads all of it.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// The shortest password.
pub const PASSWORD_BYTES_MIN: usize = 8;

/// The largest log record: a creation with all members.
pub const RECORD_BYTES_MAX: usize = 512 * 1024;

/// An access token lives this long.
pub const ACCESS_TOKEN_MS: u64 = 15 * 60 * 1000;
/// A refresh token lives this long.
pub const REFRESH_TOKEN_MS: u64 = 30 * 24 * 60 * 60 * 1000;

const _: () = {
    assert!(TOKEN_BYTES_MAX + CLIENT_NAME_BYTES_MAX + 256 <= BEFORE_CONNECT_BYTES_MAX, "a connect frame must fit");
    assert!(BODY_BYTES_MAX * 4 / 3 + 1024 <= CLIENT_FRAME_BYTES_MAX, "the largest body must fit in JSON as base64");
    assert!(BODY_BYTES_MAX <= PAGE_BYTES_MAX, "a page holds at least one message");
    assert!(PAGE_BYTES_MAX * 2 <= QUEUE_BYTES_HARD, "a page, in JSON too, fits in a session's queue");
    assert!(MEMBERS_MAX * 18 + TITLE_BYTES_MAX + 1024 <= RECORD_BYTES_MAX, "a creation fits in a record");
    assert!(CLIENT_FRAME_BYTES_MAX + 1024 <= RECORD_BYTES_MAX, "a send fits in a record");
    assert!(SENDS_IN_FLIGHT_MAX <= SENDS_AT_ONCE_MAX as usize, "a client may resend all that is in flight at once");
    assert!(QUEUE_BYTES_SOFT < QUEUE_BYTES_HARD, "soft comes before hard");
    assert!(PING_MS + PONG_GRACE_MS <= 40_000, "a half-open peer is found within 40 s");
};
