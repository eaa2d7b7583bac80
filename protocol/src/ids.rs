//! The ids of Roost: UUIDs (16 bytes in binary, hyphenated text in JSON), and the packed id of a live session.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The bytes or the text were not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID")]
pub struct InvalidId;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, ordered by the time of its making (UUIDv7).
            #[allow(clippy::new_without_default, reason = "two new ids differ: a default would mislead")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id with exactly these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The id in 16 bytes, or an error for any other length.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidId)
            }

            /// The id's 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id as the `uuid` crate's type, for adapters.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The id of a `uuid` crate's value, for adapters.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // Only the hyphenated form: one id has one text.
                if text.len() != 36 {
                    return Err(InvalidId);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

uuid_id!(
    /// A person's account.
    UserId
);
uuid_id!(
    /// One logged-in device of a user; made by login, a claim of every token.
    DeviceId
);
uuid_id!(
    /// A direct or group conversation.
    ConversationId
);
uuid_id!(
    /// The client's own name for a send: the same id is the same message, however often it is tried.
    ClientMsgId
);
uuid_id!(
    /// Identity of the Store's history: another epoch means that what a client holds cannot be continued.
    Epoch
);

impl ConversationId {
    /// The one conversation of a pair of users, derived from the sorted pair (UUIDv8 over SHA-256).
    pub fn direct(one: UserId, other: UserId) -> Self {
        let (low, high) = if one <= other { (one, other) } else { (other, one) };
        let mut hash = Sha256::new();
        hash.update(b"roost.direct.v1");
        hash.update(low.as_bytes());
        hash.update(high.as_bytes());
        Self::of_hash(hash)
    }

    /// The group that a creation makes, derived from who creates it and their name for the creation (UUIDv8 over
    /// SHA-256): a retry names the same group, and nobody can aim at another's.
    pub fn group(actor: UserId, client_msg_id: ClientMsgId) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"roost.group.v1");
        hash.update(actor.as_bytes());
        hash.update(client_msg_id.as_bytes());
        Self::of_hash(hash)
    }

    fn of_hash(hash: Sha256) -> Self {
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Self(Uuid::new_v8(bytes))
    }
}

/// One life of a process: a gateway or api endpoint that starts again has another one. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// A new incarnation: the time in the high bits, randomness in the low ones. Fits in an i64.
    pub fn new() -> Self {
        let bytes = Uuid::now_v7().into_bytes();
        let time = u64::from_be_bytes([0, 0, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]);
        let random = u64::from_be_bytes([0, 0, 0, 0, 0, bytes[13], bytes[14], bytes[15]]) & 0xf_ffff;
        Self(((time << 20) | random) & (i64::MAX as u64))
    }
}

impl Default for Incarnation {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A live session: the gateway's incarnation, then shard (8 bits), slot (32 bits) and generation (24 bits), so that
/// a late frame finds its session without a map and never reaches a stranger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u128);

impl SessionId {
    /// The largest generation; after it a slot's generation starts again at 0.
    pub const GENERATION_MAX: u32 = 0xff_ffff;

    /// Packs a session's place.
    pub fn new(incarnation: Incarnation, shard: u8, slot: u32, generation: u32) -> Self {
        assert!(generation <= Self::GENERATION_MAX, "generation {generation} does not fit in 24 bits");
        let place = (u64::from(shard) << 56) | (u64::from(slot) << 24) | u64::from(generation);
        Self((u128::from(incarnation.0) << 64) | u128::from(place))
    }

    /// The gateway's life that this session belongs to.
    pub fn incarnation(self) -> Incarnation {
        Incarnation((self.0 >> 64) as u64)
    }

    /// The shard that holds it.
    pub fn shard(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Its slot in the shard's slab.
    pub fn slot(self) -> u32 {
        (self.0 >> 24) as u32
    }

    /// Which of the slot's sessions it is.
    pub fn generation(self) -> u32 {
        (self.0 as u32) & Self::GENERATION_MAX
    }

    /// The id's 16 bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id of 16 bytes, or an error for any other length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
        Ok(Self(u128::from_be_bytes(bytes.try_into().map_err(|_| InvalidId)?)))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.to_bytes()).fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SessionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::try_parse(text).map(|uuid| Self(uuid.as_u128())).map_err(|_| InvalidId)
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_gives_back_its_parts() {
        let incarnation = Incarnation::new();
        let id = SessionId::new(incarnation, 3, 0xdead_beef, 0xab_cdef);
        assert_eq!(
            (id.incarnation(), id.shard(), id.slot(), id.generation()),
            (incarnation, 3, 0xdead_beef, 0xab_cdef)
        );
        assert_eq!(id.to_string().parse::<SessionId>(), Ok(id));
        assert_eq!(SessionId::from_slice(&id.to_bytes()), Ok(id));
    }

    #[test]
    fn a_direct_conversation_has_one_id_whoever_asks() {
        let (one, other) = (UserId::new(), UserId::new());
        assert_eq!(ConversationId::direct(one, other), ConversationId::direct(other, one));
        assert_ne!(ConversationId::direct(one, other), ConversationId::direct(one, one));
    }

    #[test]
    fn a_group_is_named_by_its_creator_and_their_name_for_it() {
        let (one, other, name) = (UserId::new(), UserId::new(), ClientMsgId::new());
        assert_eq!(ConversationId::group(one, name), ConversationId::group(one, name));
        assert_ne!(ConversationId::group(one, name), ConversationId::group(other, name));
        assert_ne!(ConversationId::group(one, name), ConversationId::group(one, ClientMsgId::new()));
    }

    #[test]
    fn only_the_hyphenated_text_is_an_id() {
        let id = UserId::new();
        assert_eq!(id.to_string().parse::<UserId>(), Ok(id));
        assert_eq!(id.uuid().simple().to_string().parse::<UserId>(), Err(InvalidId));
    }
}
