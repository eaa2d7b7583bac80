-- The Store on SQLite. Ids are 16 bytes, times Unix milliseconds.

CREATE TABLE store (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    version INTEGER NOT NULL,
    epoch BLOB NOT NULL
);

CREATE TABLE logs (
    log_id TEXT PRIMARY KEY,
    partitions INTEGER NOT NULL
) WITHOUT ROWID;

-- The only truth about progress. The row of no log holds, as its next_offset, the number of the last transaction that
-- changed a conversation or a membership; their rows carry it as `changed`. It stands here because such a transaction
-- writes this page anyway.
CREATE TABLE partition_offset (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    published_offset INTEGER NOT NULL,
    owner_epoch INTEGER NOT NULL,
    last_digest BLOB,
    PRIMARY KEY (log_id, partition)
) WITHOUT ROWID;

-- Nothing here changes with a message: where a conversation stands is in the row of its newest one, and there always is
-- one, for its creation takes a number.
CREATE TABLE conversations (
    number INTEGER PRIMARY KEY,
    conversation_id BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    title TEXT,
    created INTEGER NOT NULL
);

-- A message's id is its conversation's number << 32 | its seq: one tree, in order of (conversation, seq), whose inner
-- pages hold nothing but these integers. Ids of clients rise with time, so that the index by them grows at its end.
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    sender_id BLOB NOT NULL,
    device_id BLOB NOT NULL,
    client_msg_id BLOB NOT NULL,
    time INTEGER NOT NULL,
    members_version INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    digest BLOB NOT NULL,
    event TEXT,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX messages_by_identity ON messages (client_msg_id, sender_id, id >> 32);

-- The conversation need not exist.
CREATE TABLE rejections (
    client_msg_id BLOB NOT NULL,
    sender_id BLOB NOT NULL,
    conversation_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    time INTEGER NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (client_msg_id, sender_id, conversation_id)
) WITHOUT ROWID;

CREATE TABLE dead_letters (
    log_id TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    digest BLOB NOT NULL,
    reason TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (log_id, partition, position)
) WITHOUT ROWID;

-- to_seq is null while the membership holds.
CREATE TABLE members (
    conversation INTEGER NOT NULL,
    user_id BLOB NOT NULL,
    from_seq INTEGER NOT NULL,
    to_seq INTEGER,
    read_seq INTEGER NOT NULL DEFAULT 0,
    delivered_seq INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL,
    PRIMARY KEY (conversation, user_id)
) WITHOUT ROWID;
CREATE INDEX members_by_user ON members (user_id, conversation);

CREATE TABLE accounts (
    user_id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    name_folded TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    created INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE devices (
    device_id BLOB PRIMARY KEY,
    user_id BLOB NOT NULL,
    label TEXT NOT NULL,
    created INTEGER NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- The tokens of a device are one family; revoking it deletes them.
CREATE TABLE refresh_tokens (
    hash BLOB PRIMARY KEY,
    device_id BLOB NOT NULL,
    expires INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (device_id);

CREATE TABLE signing_keys (
    kid TEXT PRIMARY KEY,
    secret BLOB NOT NULL,
    public BLOB NOT NULL,
    created INTEGER NOT NULL,
    verify_until INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE gateways (
    address TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (address, incarnation)
) WITHOUT ROWID;
