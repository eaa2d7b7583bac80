-- Everything Roost keeps, as of its first schema. Times are Unix milliseconds; u64 values stand as bigint.

-- One row. The epoch is the identity of the history: a person changes it where clients cannot go on.
CREATE TABLE meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch uuid NOT NULL
);

-- The only truth about progress. Updated by every transaction: room for updates in place.
CREATE TABLE partition_offset (
    log_id text NOT NULL,
    partition integer NOT NULL CHECK (partition >= 0),
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    published_offset bigint NOT NULL CHECK (published_offset >= 0 AND published_offset <= next_offset),
    owner_epoch bigint NOT NULL CHECK (owner_epoch >= 0),
    last_digest bytea,
    PRIMARY KEY (log_id, partition)
) WITH (fillfactor = 25);

-- last_seq and changed are in no index, so that a new message updates its conversation in place (HOT).
-- changed: the transaction that touched it last, for the cursor of heads. Never a time.
CREATE TABLE conversations (
    conversation_id uuid PRIMARY KEY,
    last_seq bigint NOT NULL CHECK (last_seq >= 1),
    members_version bigint NOT NULL CHECK (members_version BETWEEN 1 AND last_seq),
    changed bigint NOT NULL,
    created bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('direct', 'group')),
    title text
) WITH (fillfactor = 60);

-- A member sees from_seq..to_seq; to_seq is absent while they are a member. No foreign keys on these tables: what the
-- numbering transaction writes has been looked up under the conversation's lock already.
CREATE TABLE members (
    conversation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    from_seq bigint NOT NULL,
    to_seq bigint,
    PRIMARY KEY (conversation_id, user_id)
);

-- A user's list, answered from the index alone.
CREATE UNIQUE INDEX members_of_user ON members (user_id, conversation_id) INCLUDE (from_seq, to_seq);

CREATE TABLE messages (
    conversation_id uuid NOT NULL,
    seq bigint NOT NULL CHECK (seq >= 1),
    sender_id uuid NOT NULL,
    client_msg_id uuid NOT NULL,
    device_id uuid NOT NULL,
    time bigint NOT NULL,
    members_version bigint NOT NULL,
    digest bytea NOT NULL,
    content_type text NOT NULL,
    body bytea NOT NULL,
    -- JSON. Text, so that it reads back to the letter.
    event text,
    PRIMARY KEY (conversation_id, seq),
    -- Ids of clients rise with time: an index that begins with them grows at its end.
    CONSTRAINT messages_identity UNIQUE (client_msg_id, sender_id, conversation_id)
);

-- Definitely not stored, and no later attempt with this identity will be. The conversation need not exist.
CREATE TABLE rejections (
    conversation_id uuid NOT NULL,
    sender_id uuid NOT NULL,
    client_msg_id uuid NOT NULL,
    time bigint NOT NULL,
    digest bytea NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (client_msg_id, sender_id, conversation_id)
);

CREATE TABLE dead_letters (
    log_id text NOT NULL,
    partition integer NOT NULL,
    position bigint NOT NULL,
    digest bytea NOT NULL,
    reason text NOT NULL,
    payload bytea NOT NULL,
    made timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, partition, position)
);

-- name_key: the name in lower case, folded by the program, so that no locale of the database matters.
CREATE TABLE users (
    user_id uuid PRIMARY KEY,
    name text NOT NULL,
    name_key text NOT NULL CONSTRAINT users_name UNIQUE,
    password_hash text NOT NULL,
    created bigint NOT NULL
);

-- A device is the family of its refresh tokens.
CREATE TABLE devices (
    device_id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users,
    label text NOT NULL,
    created bigint NOT NULL,
    revoked boolean NOT NULL DEFAULT false
);
CREATE INDEX devices_of_user ON devices (user_id);

CREATE TABLE refresh_tokens (
    hash bytea PRIMARY KEY,
    device_id uuid NOT NULL REFERENCES devices,
    expires bigint NOT NULL,
    used boolean NOT NULL DEFAULT false
);
CREATE INDEX refresh_tokens_of_device ON refresh_tokens (device_id);

CREATE TABLE signing_keys (
    kid text PRIMARY KEY,
    secret bytea NOT NULL,
    public bytea NOT NULL,
    created bigint NOT NULL,
    verify_until bigint NOT NULL
);

-- For when the Registry is away.
CREATE TABLE gateways (
    address text NOT NULL,
    incarnation bigint NOT NULL,
    until bigint NOT NULL,
    PRIMARY KEY (address, incarnation)
);
