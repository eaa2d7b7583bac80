//! Accounts, devices, refresh tokens and signing keys, as the Store keeps them.

use roost_protocol::{DeviceId, TimeMs, UserId};

/// A person's account.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub user_id: UserId,
    /// Its name, unique without case.
    pub name: String,
    /// The argon2 hash in PHC form.
    pub password_hash: String,
    /// When it was made.
    pub created: TimeMs,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The hash stays out of logs.
        f.debug_struct("Account").field("user_id", &self.user_id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A refresh token to be stored: only its hash is.
#[derive(Clone, PartialEq, Eq)]
pub struct NewRefreshToken {
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// When it ends.
    pub expires: TimeMs,
}

/// What became of an exchange of a refresh token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// The old one is used up, the new one stored.
    Rotated {
        /// Whose.
        user: UserId,
        /// Which device.
        device: DeviceId,
    },
    /// It was used before: the family is revoked now.
    Reused,
    /// There is no such token, it has ended, or its family is revoked.
    Refused,
}

/// A key that signs access tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Its id, the `kid` of the tokens.
    pub kid: String,
    /// The Ed25519 seed. Secret.
    pub secret: [u8; 32],
    /// The Ed25519 public key of that seed: whoever only verifies needs nothing else.
    pub public: [u8; 32],
    /// When it was made.
    pub created: TimeMs,
    /// Tokens signed with it are refused after this.
    pub verify_until: TimeMs,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}
