//! What was seeded: how users are numbered, which conversations they are in, and the key that signs their tokens.
//!
//! Ids are derived from the user's number, so that a plan of a million users is a page of JSON. It holds a private key:
//! it is for test installations, and its file is for its owner only.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use roost_protocol::{ConversationId, DeviceId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::cli::TokensOptions;
use crate::{Result, clock};

/// A seeded installation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The `iss` of tokens.
    pub issuer: String,
    /// The `aud` of tokens.
    pub audience: String,
    /// The id of the signing key.
    pub kid: String,
    /// The Ed25519 seed in base64url. Secret.
    pub private_key: String,
    /// What makes this plan's users others than another's.
    pub seed: [u8; 5],
    /// Users are numbered from 0.
    pub users: u32,
    /// The first so many pairs of users (0 and 1, 2 and 3, …) have a direct conversation each.
    pub pairs: u32,
    /// Groups, numbered after the pairs.
    pub groups: Vec<Group>,
}

/// A group conversation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub conversation_id: ConversationId,
    /// Its members.
    pub members: Range,
}

/// Users by number: `first`, `first + step`, …, going round at the number of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first one.
    pub first: u32,
    /// From one to the next.
    pub step: u32,
    /// How many.
    pub count: u32,
}

impl Range {
    /// The user at a place of the range.
    pub fn at(&self, place: u32, users: u32) -> u32 {
        let number = u64::from(self.first) + u64::from(place) * u64::from(self.step);
        u32::try_from(number % u64::from(users.max(1))).expect("below the number of users")
    }

    /// The place of a user in the range, where the range does not go round.
    pub fn place_of(&self, user: u32) -> Option<u32> {
        let beyond = user.checked_sub(self.first)?;
        let place = beyond / self.step.max(1);
        (beyond.is_multiple_of(self.step.max(1)) && place < self.count).then_some(place)
    }

    /// A part of the range.
    pub fn part(&self, from: u32, count: u32) -> Range {
        // Kept as it is and not wrapped: `at` does that.
        Range { first: self.first + from * self.step, step: self.step, count }
    }
}

impl Plan {
    /// Reads a plan.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?)
    }

    /// Writes it, for its owner only.
    pub fn write(&self, path: &Path) -> Result<()> {
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let mut file = open.map_err(|error| format!("{}: {error}", path.display()))?;
        writeln!(file, "{}", serde_json::to_string_pretty(self)?)?;
        Ok(())
    }

    /// The id of a user.
    pub fn user(&self, number: u32) -> UserId {
        UserId::from_uuid(self.derived(1, number))
    }

    /// The id of a user's one device. It stands in tokens only: nothing asks the Store for it.
    pub fn device(&self, number: u32) -> DeviceId {
        DeviceId::from_uuid(self.derived(2, number))
    }

    /// A user's name.
    pub fn name(&self, number: u32) -> String {
        let seed = self.seed.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("swarm-{seed}-{number:08}")
    }

    /// The number of conversations.
    pub fn conversations(&self) -> u32 {
        self.pairs + u32::try_from(self.groups.len()).expect("groups are listed in memory")
    }

    /// The id of a conversation: pairs come first, then groups.
    pub fn conversation(&self, number: u32) -> ConversationId {
        match number.checked_sub(self.pairs) {
            None => ConversationId::direct(self.user(number * 2), self.user(number * 2 + 1)),
            Some(group) => self.groups[group as usize].conversation_id,
        }
    }

    /// What signs tokens.
    pub fn signer(&self) -> Result<Signer> {
        let secret: [u8; 32] = URL_SAFE_NO_PAD
            .decode(&self.private_key)?
            .try_into()
            .map_err(|_| "the plan's private key has another length than 32 bytes")?;
        let header = json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": self.kid });
        Ok(Signer {
            key: SigningKey::from_bytes(&secret),
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
        })
    }

    /// Rises with the number, so that a million rows are added at the end of their index.
    fn derived(&self, kind: u8, number: u32) -> Uuid {
        let mut bytes = [0; 16];
        bytes[0] = kind;
        bytes[1..6].copy_from_slice(&self.seed);
        bytes[12..].copy_from_slice(&number.to_be_bytes());
        Uuid::new_v8(bytes)
    }
}

/// Signs access tokens offline: a run measures sessions, not logins.
pub struct Signer {
    key: SigningKey,
    header: String,
    issuer: String,
    audience: String,
}

/// How long a token lives: longer than any run.
const TOKEN_SECONDS: u64 = 24 * 60 * 60;

impl Signer {
    /// A token that is valid from now on.
    pub fn token(&self, user: UserId, device: DeviceId) -> String {
        let now = clock::unix_ms() / 1000;
        let claims = json!({
            "iss": self.issuer, "aud": self.audience, "sub": user, "device_id": device,
            "iat": now, "nbf": now, "exp": now + TOKEN_SECONDS,
        });
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }
}

/// `roost-swarm tokens`: one JSON array for clients of other kinds.
pub fn print_tokens(options: &TokensOptions) -> Result<ExitCode> {
    let plan = Plan::read(&options.plan)?;
    let signer = plan.signer()?;
    let end = options.first_user.saturating_add(options.count);
    if end > plan.users {
        return Err(format!("the plan has {} users", plan.users).into());
    }
    let users: Vec<_> = (options.first_user..end)
        .map(|number| {
            let pair = Some(number / 2).filter(|&pair| pair < plan.pairs);
            let groups = plan.groups.iter().filter(|group| group.members.place_of(number).is_some());
            json!({
                "user_id": plan.user(number),
                "device_id": plan.device(number),
                "token": signer.token(plan.user(number), plan.device(number)),
                "direct": pair.map(|pair| plan.conversation(pair)),
                "groups": groups.map(|group| group.conversation_id).collect::<Vec<_>>(),
            })
        })
        .collect();
    println!("{}", serde_json::to_string_pretty(&users)?);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            issuer: "roost".to_owned(),
            audience: "roost".to_owned(),
            kid: "k".to_owned(),
            private_key: URL_SAFE_NO_PAD.encode([7; 32]),
            seed: [1, 2, 3, 4, 5],
            users: 100,
            pairs: 3,
            groups: Vec::new(),
        }
    }

    #[test]
    fn ids_differ_by_number_kind_and_plan_and_rise_with_the_number() {
        let plan = plan();
        let other = Plan { seed: [9; 5], ..plan.clone() };
        assert!(plan.user(1) < plan.user(2) && plan.user(255) < plan.user(256));
        assert_ne!(plan.user(1), other.user(1));
        assert_ne!(plan.user(1).as_bytes(), plan.device(1).as_bytes());
        assert_eq!(plan.conversation(2), ConversationId::direct(plan.user(5), plan.user(4)));
    }

    #[test]
    fn a_range_knows_its_members() {
        let range = Range { first: 3, step: 10, count: 4 };
        assert_eq!((0..4).map(|place| range.at(place, 100)).collect::<Vec<_>>(), [3, 13, 23, 33]);
        assert_eq!(range.place_of(23), Some(2));
        assert_eq!([2, 24, 43].map(|user| range.place_of(user)), [None; 3]);
        assert_eq!(range.part(2, 2).at(1, 100), 33);
        assert_eq!(range.at(3, 30), 3, "it goes round");
    }

    #[test]
    fn a_token_is_signed_by_the_plans_key() {
        let plan = plan();
        let token = plan.signer().expect("a signer").token(plan.user(1), plan.device(1));
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let signature: [u8; 64] = URL_SAFE_NO_PAD.decode(signature).expect("base64").try_into().expect("64 bytes");
        let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
        key.verify_strict(signed.as_bytes(), &signature.into()).expect("a good signature");
    }
}
