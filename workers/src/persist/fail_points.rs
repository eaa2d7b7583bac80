//! The places between the steps of numbering where a test can crash, freeze or slow a worker.
//!
//! With the feature `failpoints`, `FAILPOINTS=persist-after-apply=return` (or `=3*off->return` for the fourth time)
//! aborts the process there; `pause` and `sleep(ms)` freeze it.

/// Before a partition is claimed.
pub const BEFORE_CLAIM: &str = "persist-before-claim";
/// The partition is claimed in the Store; the log has not been compared yet.
pub const AFTER_CLAIM: &str = "persist-after-claim";
/// Before records below the next position are looked up.
pub const BEFORE_REPLAY_LOOKUP: &str = "persist-before-replay-lookup";
/// They are looked up; nothing of them is published again.
pub const AFTER_REPLAY_LOOKUP: &str = "persist-after-replay-lookup";
/// A batch is made; its transaction has not begun.
pub const BEFORE_APPLY: &str = "persist-before-apply";
/// The transaction is committed and nobody has been told.
pub const AFTER_APPLY: &str = "persist-after-apply";
/// The verdicts are on their way; nothing is published.
pub const AFTER_VERDICTS: &str = "persist-after-verdicts";
/// Before the call that appends to `deliver`.
pub const BEFORE_PUBLISH: &str = "persist-before-publish";
/// The append is called, not acknowledged.
pub const AFTER_PUBLISH_CALL: &str = "persist-after-publish-call";
/// The append is acknowledged; the published mark has not moved.
pub const AFTER_ACK: &str = "persist-after-ack";
/// Before the published mark is written by itself.
pub const BEFORE_SET_PUBLISHED: &str = "persist-before-set-published";
/// The published mark is written; the group's position is not.
pub const AFTER_SET_PUBLISHED: &str = "persist-after-set-published";

/// Every fail point of the persist worker, in the order of the steps.
pub const ALL: [&str; 12] = [
    BEFORE_CLAIM,
    AFTER_CLAIM,
    BEFORE_REPLAY_LOOKUP,
    AFTER_REPLAY_LOOKUP,
    BEFORE_APPLY,
    AFTER_APPLY,
    AFTER_VERDICTS,
    BEFORE_PUBLISH,
    AFTER_PUBLISH_CALL,
    AFTER_ACK,
    BEFORE_SET_PUBLISHED,
    AFTER_SET_PUBLISHED,
];

/// Aborts the process here where the fail point is configured as `return`: no destructor runs, as in a real crash.
#[inline]
pub(crate) fn pass(name: &str) {
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}
