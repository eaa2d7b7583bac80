//! Users, conversations and a signing key, put into the Store before the servers start: a run measures sessions, not
//! password hashes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use roost_ports::Store;
use roost_ports::log::Position;
use roost_ports::store::{Account, ApplyBatch, Incoming, Migration, Outcome, PartBatch, PartOutcome, SigningKey};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, UserId, digest, limits};

use crate::cli::SeedOptions;
use crate::plan::{Group, Plan, Range};
use crate::{Result, clock};

/// Accounts under way at one time: the embedded writer takes many into one transaction.
const ACCOUNTS_AT_ONCE: usize = 1_024;
/// The same where each has a session of the database to itself while it is under way.
const ACCOUNTS_AT_ONCE_POSTGRES: usize = 12;
/// Members in one batch of creations, about.
const MEMBERS_IN_BATCH: usize = 10_000;
/// How long tokens of the plan's key are accepted.
const KEY_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Seeds, and writes the plan.
pub async fn run(options: &SeedOptions) -> Result<ExitCode> {
    let wanted = Wanted::parse(&options.conversations, options.users)?;
    let store: Arc<dyn Store> = match (&options.data, &options.store) {
        (Some(folder), _) => {
            std::fs::create_dir_all(folder)?;
            Arc::new(roost_embedded::store::SqliteStore::open(&folder.join("store.db"))?)
        }
        (None, Some(url)) => Arc::new(roost_postgres::PostgresStore::connect(url).await?),
        (None, None) => return Err("either --data or --store".into()),
    };
    let seed: [u8; 5] = rand::random();
    let log_id = format!("swarm-seed-{}", URL_SAFE_NO_PAD.encode(seed));
    // Makes the schema too, where the program has not been there yet.
    store.migrate(&Migration { log_id: log_id.clone(), partitions: 1 }).await?;
    let mut plan = signing_key(&*store, seed).await?;
    plan.users = options.users;
    let at_once = if options.data.is_some() { ACCOUNTS_AT_ONCE } else { ACCOUNTS_AT_ONCE_POSTGRES };
    accounts(&*store, &plan, at_once).await?;
    plan.pairs = wanted.pairs;
    plan.groups = wanted.groups(&plan);
    conversations(&*store, &plan, log_id).await?;
    plan.write(&options.plan)?;
    let (users, conversations) = (plan.users, plan.conversations());
    println!("{}", serde_json::json!({ "event": "seeded", "users": users, "conversations": conversations }));
    Ok(ExitCode::SUCCESS)
}

/// A key of the plan's own, beside those of the installation.
async fn signing_key(store: &dyn Store, seed: [u8; 5]) -> Result<Plan> {
    let now = clock::unix_ms();
    let key = ed25519_dalek::SigningKey::from_bytes(&rand::random());
    let kid = format!("swarm-{}", seed.map(|byte| format!("{byte:02x}")).concat());
    let signing = SigningKey {
        kid: kid.clone(),
        secret: key.to_bytes(),
        public: key.verifying_key().to_bytes(),
        created: now,
        verify_until: now + KEY_MS,
    };
    store.add_signing_key(&signing, now + 1, now).await?;
    Ok(Plan {
        issuer: "roost".to_owned(),
        audience: "roost".to_owned(),
        kid,
        private_key: URL_SAFE_NO_PAD.encode(key.to_bytes()),
        seed,
        users: 0,
        pairs: 0,
        groups: Vec::new(),
    })
}

async fn accounts(store: &dyn Store, plan: &Plan, at_once: usize) -> Result<()> {
    let (begun, created) = (Instant::now(), clock::unix_ms());
    let account = |number: u32| Account {
        user_id: plan.user(number),
        name: plan.name(number),
        // No password has this hash: these accounts are entered by token only.
        password_hash: "none".to_owned(),
        created,
    };
    let making = stream::iter(0..plan.users).map(|number| {
        let account = account(number);
        async move { store.create_account(&account).await }
    });
    making.buffer_unordered(at_once).try_collect::<()>().await?;
    eprintln!("{} users in {:.1} s", plan.users, begun.elapsed().as_secs_f64());
    Ok(())
}

/// Conversations are made by the Store's own transaction, under a log of the seed's own.
async fn conversations(store: &dyn Store, plan: &Plan, log_id: String) -> Result<()> {
    let begun = Instant::now();
    let claim = store.claim(&log_id, 0).await?;
    let mut at = claim.next;
    let mut records = Vec::new();
    let mut members = 0;
    for number in 0..plan.conversations() {
        let record = creation(plan, number, at);
        at = record.next;
        members += if number < plan.pairs { 2 } else { plan.groups[(number - plan.pairs) as usize].members.count };
        records.push(record);
        if members as usize >= MEMBERS_IN_BATCH || number + 1 == plan.conversations() {
            apply(store, &log_id, claim.epoch, std::mem::take(&mut records)).await?;
            members = 0;
        }
    }
    if plan.conversations() > 0 {
        eprintln!("{} conversations in {:.1} s", plan.conversations(), begun.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn apply(store: &dyn Store, log_id: &str, epoch: u64, records: Vec<Incoming>) -> Result<()> {
    let from = records.first().expect("a batch has records").position;
    // Nothing of this log is ever published: nobody is connected yet who would have to hear of it.
    let part = PartBatch { partition: 0, epoch, from, published: Position(0), records };
    let applied = store.apply(&ApplyBatch { log_id: log_id.to_owned(), parts: vec![part] }).await?;
    match applied.parts.as_slice() {
        [PartOutcome::Applied(outcomes)] => match outcomes.iter().find(|one| !matches!(one, Outcome::Numbered(_))) {
            None => Ok(()),
            Some(other) => Err(format!("a conversation was not made: {other:?}").into()),
        },
        other => Err(format!("the seed was not applied: {other:?}").into()),
    }
}

fn creation(plan: &Plan, number: u32, position: Position) -> Incoming {
    let (kind, mut members, client_msg_id, title) = match number.checked_sub(plan.pairs) {
        None => {
            let two = vec![plan.user(number * 2), plan.user(number * 2 + 1)];
            (ConversationKind::Direct, two, ClientMsgId::new(), None)
        }
        Some(group) => {
            let range = plan.groups[group as usize].members;
            let members = (0..range.count).map(|place| plan.user(range.at(place, plan.users))).collect();
            (ConversationKind::Group, members, group_name(plan, group), Some(format!("group {group}").into()))
        }
    };
    let actor = members[0];
    members.sort_unstable();
    let record = IngressRecord {
        actor,
        device: plan.device(0),
        client_msg_id,
        time: clock::unix_ms(),
        origin: None,
        if_last_seq: None,
        action: Action::Create { conversation_id: plan.conversation(number), kind, title, members },
    };
    let digest = digest::of_record(&record.encode());
    Incoming { position, next: Position(position.0 + 1), digest, content: Ok(record) }
}

/// What the one who creates a group calls the creation: its id is derived from that.
fn group_name(plan: &Plan, group: u32) -> ClientMsgId {
    ClientMsgId::from_uuid(plan.device(u32::MAX - group).uuid())
}

fn group_id(plan: &Plan, actor: UserId, group: u32) -> ConversationId {
    ConversationId::group(actor, group_name(plan, group))
}

/// The conversations that were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    pairs: u32,
    groups: u32,
    members: u32,
}

impl Wanted {
    fn parse(text: &str, users: u32) -> Result<Self> {
        let mut wanted = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part}: NAME=NUMBER"))?;
            let value = value.parse().map_err(|error| format!("{part}: {error}"))?;
            match name {
                "pairs" => wanted.pairs = value,
                "groups" => wanted.groups = value,
                "members" => wanted.members = value,
                _ => return Err(format!("{name}: there are pairs, groups and members").into()),
            }
        }
        if u64::from(wanted.pairs) * 2 > u64::from(users) {
            return Err(format!("{} pairs need more than {users} users", wanted.pairs).into());
        }
        let (least, most) = (limits::MEMBERS_MIN, limits::MEMBERS_MAX.min(users as usize));
        if wanted.groups > 0 && !(least..=most).contains(&(wanted.members as usize)) {
            return Err(format!("groups of {} members: from {least} to {most}", wanted.members).into());
        }
        Ok(wanted)
    }

    /// Groups spread over all users, so that each process and each shard has its part; where there are users enough,
    /// nobody is in two.
    fn groups(&self, plan: &Plan) -> Vec<Group> {
        let apart = u64::from(self.groups) * u64::from(self.members) <= u64::from(plan.users);
        let ranges = (0..self.groups).map(|group| match apart {
            true => {
                let step = plan.users / self.members;
                Range { first: group * (step / self.groups), step, count: self.members }
            }
            false => Range {
                first: u32::try_from(u64::from(group) * u64::from(plan.users) / u64::from(self.groups))
                    .expect("below the number of users"),
                step: 1,
                count: self.members,
            },
        });
        let made = ranges.enumerate().map(|(number, members)| {
            let actor = plan.user(members.at(0, plan.users));
            Group { conversation_id: group_id(plan, actor, u32::try_from(number).expect("a u32")), members }
        });
        made.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(users: u32) -> Plan {
        let (issuer, kid, private_key) = (String::new(), String::new(), String::new());
        let (audience, groups) = (issuer.clone(), Vec::new());
        Plan { issuer, audience, kid, private_key, seed: [1; 5], users, pairs: 0, groups }
    }

    #[test]
    fn groups_are_apart_where_there_are_users_enough() {
        let wanted = Wanted::parse("groups=3,members=4", 30).expect("fine");
        let plan = plan(30);
        let groups = wanted.groups(&plan);
        let mut all: Vec<u32> =
            groups.iter().flat_map(|group| (0..4).map(|place| group.members.at(place, 30))).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12, "{groups:?}");
        assert!(groups.iter().all(|group| group.members.place_of(group.members.at(3, 30)) == Some(3)));
    }

    #[test]
    fn groups_overlap_where_there_are_not() {
        let wanted = Wanted::parse("groups=3,members=20,pairs=15", 30).expect("fine");
        assert_eq!(wanted.pairs, 15);
        for group in wanted.groups(&plan(30)) {
            let mut members: Vec<u32> = (0..20).map(|place| group.members.at(place, 30)).collect();
            members.sort_unstable();
            members.dedup();
            assert_eq!(members.len(), 20);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in ["pairs=16", "groups=1,members=31", "groups=1", "colours=1", "pairs"] {
            assert!(Wanted::parse(text, 30).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_seeded_store_has_the_accounts_and_the_members() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SeedOptions {
            data: Some(folder.path().join("data")),
            store: None,
            users: 40,
            conversations: "pairs=5,groups=2,members=10".to_owned(),
            plan: folder.path().join("plan.json"),
        };
        run(&options).await.expect("seeded");
        let plan = Plan::read(&options.plan).expect("the plan");
        let store = roost_embedded::store::SqliteStore::open(&folder.path().join("data/store.db")).expect("a store");
        assert_eq!(store.account(plan.user(39)).await.expect("an account").name, plan.name(39));
        let group = &plan.groups[1];
        let members = store.members(group.conversation_id, None, 100).await.expect("members").members;
        assert_eq!(members.len(), 10);
        assert_eq!(store.members(plan.conversation(4), None, 10).await.expect("members").members.len(), 2);
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&options.plan).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "the plan holds a private key");
    }
}
