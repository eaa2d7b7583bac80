//! Digests: of a log record (is the log still the one we read?) and of a message's content (is a retry the same message?).

use sha2::{Digest, Sha256};

/// The first 16 bytes of a SHA-256.
pub type Digest16 = [u8; 16];

/// The digest of a whole ingress record as it stands in the log.
pub fn of_record(record: &[u8]) -> Digest16 {
    truncate(Sha256::digest(record).as_ref())
}

/// The digest of (content_type, body): a retry under the same client_msg_id must have the same one.
pub fn of_content(content_type: &str, body: &[u8]) -> Digest16 {
    let mut hash = Sha256::new();
    hash.update((content_type.len() as u64).to_be_bytes());
    hash.update(content_type.as_bytes());
    hash.update(body);
    truncate(hash.finalize().as_ref())
}

fn truncate(digest: &[u8]) -> Digest16 {
    let mut out = [0u8; 16];
    out.copy_from_slice(&digest[..16]);
    out
}
