//! Recorded people: they register, connect, talk, and in the end everything that was said is proved to be there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roost_client::{
    BackoffConfig, Client, Config, Credentials, Event, Events, Observer, Rest, RestError, SavedState, SendHandle,
    Tokens,
};
use roost_protocol::digest::of_content;
use roost_protocol::frames::{HistoryRange, Page};
use roost_protocol::{ClientMsgId, ConversationId, Form, Seq, UserId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::checker::{Identity, Run, SendOutcome, SessionFact};
use crate::cluster::Cluster;
use crate::process::eventually;
use crate::recorder::{Evidence, Recorder, Watcher, identity};

/// How long anything may take that has to happen. Never a measure, only against waiting for ever.
pub const LIVENESS: Duration = Duration::from_secs(90);
/// Everybody's password.
pub const PASSWORD: &str = "correct horse battery";
const TEXT: &str = "text/plain";

/// The seed of this run's random choices: given by ROOST_SEED, else new; printed in any case.
pub fn seed() -> u64 {
    let given = std::env::var("ROOST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("ROOST_SEED={seed}");
    seed
}

/// A registered user on one device.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Of its first device.
    pub tokens: Tokens,
}

impl Account {
    /// The user.
    pub fn user(&self) -> UserId {
        self.tokens.user_id
    }

    /// The access token.
    pub fn token(&self) -> &str {
        &self.tokens.access_token
    }

    /// The same user on another, new device.
    pub async fn on_another_device(&self, cluster: &Cluster) -> Account {
        let rest = rest(cluster);
        let tokens = patiently("log in", async || rest.log_in(&self.name, PASSWORD, "another").await).await;
        Account { name: self.name.clone(), tokens }
    }
}

/// The cluster's REST.
pub fn rest(cluster: &Cluster) -> Rest {
    Rest::new(&cluster.api_url()).expect("an address")
}

/// Registers new users. An installation lets 50 register at once, so tests reuse them.
pub async fn register(cluster: &Cluster, count: usize) -> Vec<Account> {
    let rest = &rest(cluster);
    let one = async |number: usize| {
        let random = uuid::Uuid::now_v7().simple().to_string();
        let name = format!("p{number}-{}", &random[12..]);
        let tokens = patiently("register", async || rest.register(&name, PASSWORD, "test").await).await;
        Ok::<_, RestError>(Account { name, tokens })
    };
    let accounts = futures::stream::iter(0..count).map(one).buffered(4);
    accounts.try_collect().await.expect("patiently() gives up by itself")
}

/// Repeats a request while the server says that it may help. What it asks for must be safe to ask for twice.
pub async fn patiently<T>(what: &str, ask: impl AsyncFn() -> Result<T, RestError>) -> T {
    let end = tokio::time::Instant::now() + LIVENESS;
    loop {
        let error = match ask().await {
            Ok(answer) => return answer,
            Err(error) => error,
        };
        let wait = match &error {
            RestError::NoAnswer(_) => Duration::from_millis(300),
            RestError::Refused { status: 429 | 500.., retry_after, .. } => {
                retry_after.unwrap_or(Duration::from_millis(300))
            }
            _ => panic!("{what}: {error}"),
        };
        assert!(tokio::time::Instant::now() + wait < end, "{what}: {error}");
        tokio::time::sleep(wait).await;
    }
}

/// One recorded run over a cluster.
pub struct Recording {
    rest: Rest,
    gateways: Vec<String>,
    recorder: Arc<Recorder>,
    conversations: Mutex<BTreeMap<ConversationId, Room>>,
    sessions: Mutex<Vec<Arc<Session>>>,
    numbers: AtomicU32,
}

#[derive(Clone, Debug)]
struct Room {
    members: Vec<Account>,
    hushed: bool,
}

/// A user's device in the run.
pub struct Session {
    /// Its number in the facts.
    pub number: u32,
    /// Whose it is.
    pub account: Account,
    /// The SDK's client.
    pub client: Client,
    recorder: Arc<Recorder>,
    /// Held from the note that a send begins until the client has it, so that notes and sends have one order.
    line: tokio::sync::Mutex<Vec<Said>>,
    unanswered: Mutex<Vec<SendHandle>>,
    left: Mutex<bool>,
    taking: JoinHandle<()>,
}

/// A message that a session has sent.
#[derive(Clone, Debug)]
struct Said {
    id: ClientMsgId,
    conversation: ConversationId,
    text: String,
}

impl Session {
    /// Says something; the outcome is waited for at the end of the run.
    pub async fn say(&self, conversation: ConversationId, text: &str) -> ClientMsgId {
        let id = ClientMsgId::new();
        let digest = of_content(TEXT, text.as_bytes());
        let mut line = self.line.lock().await;
        let message = Identity { client_msg_id: id, sender: self.account.user(), digest };
        self.recorder.begun(self.number, conversation, message);
        self.send(id, conversation, text).await;
        line.push(Said { id, conversation, text: text.to_owned() });
        id
    }

    /// Says again what it has said already, under the same id, as a client does that has lost the answer.
    pub async fn repeat(&self, which: usize) {
        let said = {
            let line = self.line.lock().await;
            if line.is_empty() {
                return;
            }
            line[which % line.len()].clone()
        };
        self.send(said.id, said.conversation, &said.text).await;
    }

    async fn send(&self, id: ClientMsgId, conversation: ConversationId, text: &str) {
        match self.client.send_as(id, conversation, TEXT, text.to_owned()).await {
            Ok(handle) => self.unanswered.lock().push(handle),
            Err(stopped) => self.recorder.problem(format!("session {}: {stopped}", self.number)),
        }
    }

    /// Waits for the verdict on everything said so far.
    pub async fn answered(&self) {
        let handles = std::mem::take(&mut *self.unanswered.lock());
        let count = handles.len();
        let all = futures::future::join_all(handles);
        if tokio::time::timeout(LIVENESS, all).await.is_err() {
            let number = self.number;
            self.recorder.problem(format!("session {number}: no verdict on one of its {count} sends"));
        }
    }

    /// Leaves the run: it is not online at its end.
    pub async fn leave(&self) -> SavedState {
        *self.left.lock() = true;
        self.client.stop().await.expect("it has not left before")
    }

    /// How far it has shown a conversation.
    pub fn shown(&self, conversation: ConversationId) -> Seq {
        self.recorder.shown_up_to(self.number, conversation)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.taking.abort();
    }
}

async fn take_events(mut events: Events, number: u32, recorder: Arc<Recorder>) {
    while let Some(event) = events.next().await {
        match event {
            Event::Message(message) => recorder.shown(number, &message),
            Event::Stopped { reason } => recorder.problem(format!("session {number} has stopped: {reason}")),
            Event::Reloaded { reason } => recorder.problem(format!("session {number} had to start anew: {reason}")),
            _ => {}
        }
    }
}

impl Recording {
    /// Begins a run.
    pub fn start(cluster: &Cluster) -> Arc<Self> {
        Self::start_at(cluster, (0..cluster.gateways.len()).map(|gateway| cluster.url(gateway)).collect())
    }

    /// The same with sessions that connect elsewhere, such as at proxies before the gateways.
    pub fn start_at(cluster: &Cluster, gateways: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            rest: rest(cluster),
            gateways,
            recorder: Arc::default(),
            conversations: Mutex::default(),
            sessions: Mutex::default(),
            numbers: AtomicU32::new(0),
        })
    }

    fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A user connects: to the gateways in turn, with the two forms of frames in turn.
    pub async fn join(&self, account: &Account) -> Arc<Session> {
        self.join_as(self.number(), account, SavedState::default()).await
    }

    /// The session of a device that has left is continued by a new client, from where the old one was.
    pub async fn resume(&self, earlier: &Session, state: SavedState) -> Arc<Session> {
        self.join_as(earlier.number, &earlier.account, state).await
    }

    async fn join_as(&self, number: u32, account: &Account, state: SavedState) -> Arc<Session> {
        let form = Form::ALL[(number as usize / self.gateways.len()) % 2];
        let watcher = Watcher { session: number, user: account.user(), recorder: self.recorder.clone() };
        let base_url = self.gateways[number as usize % self.gateways.len()].clone();
        let credentials = Credentials::AccessToken(account.token().to_owned());
        let observer: Option<Arc<dyn Observer>> = Some(Arc::new(watcher));
        // Few clients and short faults: they need not be as patient as a million.
        let most = Duration::from_secs(1);
        let backoff = BackoffConfig { first: Duration::from_millis(200), most, ..BackoffConfig::default() };
        let config = Config { form, observer, state, backoff, ..Config::new(base_url, credentials) };
        let (client, events) = Client::connect(config).await.expect("an address");
        let taking = tokio::spawn(take_events(events, number, self.recorder.clone()));
        let session = Arc::new(Session {
            number,
            account: account.clone(),
            client,
            recorder: self.recorder.clone(),
            line: tokio::sync::Mutex::default(),
            unanswered: Mutex::default(),
            left: Mutex::new(false),
            taking,
        });
        let connected = tokio::time::timeout(LIVENESS, session.client.connected()).await;
        connected.expect("a session in time").expect("a session");
        self.sessions.lock().push(session.clone());
        session
    }

    /// All of them connect.
    pub async fn join_all(&self, accounts: &[Account]) -> Vec<Arc<Session>> {
        let mut sessions = Vec::new();
        for account in accounts {
            sessions.push(self.join(account).await);
        }
        sessions
    }

    /// The direct conversation of two users.
    pub async fn direct(&self, one: &Account, other: &Account) -> ConversationId {
        let created =
            patiently("a direct conversation", async || self.rest.create_direct(one.token(), other.user()).await);
        let conversation = created.await.conversation_id;
        self.track(conversation, vec![one.clone(), other.clone()]);
        conversation
    }

    /// A new group; the first member makes it.
    pub async fn group(&self, members: &[Account]) -> ConversationId {
        let id = ClientMsgId::new();
        let others: Vec<UserId> = members[1..].iter().map(Account::user).collect();
        let created =
            patiently("a group", async || self.rest.create_group(members[0].token(), id, Some("group"), &others).await);
        let conversation = created.await.conversation_id;
        self.track(conversation, members.to_vec());
        conversation
    }

    fn track(&self, conversation: ConversationId, members: Vec<Account>) {
        self.conversations.lock().insert(conversation, Room { members, hushed: false });
    }

    /// Nobody talks there from now on: its newest message has nothing after it.
    pub fn hush(&self, conversation: ConversationId) {
        self.conversations.lock().get_mut(&conversation).expect("a conversation of this run").hushed = true;
    }

    /// A message by REST.
    pub async fn post(&self, account: &Account, conversation: ConversationId, text: &str) -> Seq {
        let (id, number) = (ClientMsgId::new(), self.number());
        let digest = of_content(TEXT, text.as_bytes());
        let message = Identity { client_msg_id: id, sender: account.user(), digest };
        self.recorder.begun(number, conversation, message);
        let token = account.token();
        let stored = patiently("post", async || self.rest.send_text(token, id, conversation, text).await).await;
        self.recorder.ended(number, account.user(), id, SendOutcome::Ok { seq: stored.seq });
        stored.seq
    }

    /// The evidence so far.
    pub fn evidence(&self) -> Evidence {
        self.recorder.evidence()
    }

    /// What is recorded, for facts that a test adds itself.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// A number of the run for a sender that is no session of it.
    pub fn outsider(&self) -> u32 {
        self.number()
    }

    /// Members talk in the background, so many messages a second, one in twenty a repetition.
    pub fn talk(self: &Arc<Self>, seed: u64, per_second: u32) -> Talk {
        let (stop, mut stopped) = watch::channel(false);
        let recording = self.clone();
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for number in 0.. {
                tokio::select! {
                    _ = ticks.tick() => recording.something_is_said(&mut random, number).await,
                    _ = stopped.changed() => return,
                }
            }
        });
        Talk { stop, task }
    }

    async fn something_is_said(&self, random: &mut StdRng, number: u64) {
        let open: Vec<(ConversationId, BTreeSet<UserId>)> = {
            let conversations = self.conversations.lock();
            let open = conversations.iter().filter(|(_, room)| !room.hushed);
            open.map(|(&id, room)| (id, room.members.iter().map(Account::user).collect())).collect()
        };
        if open.is_empty() {
            return;
        }
        let (conversation, members) = &open[random.random_range(0..open.len())];
        let speakers: Vec<Arc<Session>> = {
            let sessions = self.sessions.lock();
            sessions.iter().filter(|s| members.contains(&s.account.user()) && !*s.left.lock()).cloned().collect()
        };
        if speakers.is_empty() {
            return;
        }
        let speaker = &speakers[random.random_range(0..speakers.len())];
        if random.random_range(0..20) == 0 {
            speaker.repeat(random.random_range(0..1_000_000)).await;
        } else {
            speaker.say(*conversation, &format!("{number}: {}", "x".repeat(random.random_range(0..200)))).await;
        }
    }

    /// Waits until every send has its verdict.
    pub async fn answered(&self) {
        let sessions = self.sessions.lock().clone();
        futures::future::join_all(sessions.iter().filter(|s| !*s.left.lock()).map(|s| s.answered())).await;
    }

    /// Waits for every verdict and for quiet, reads the history, and puts the run together.
    pub async fn finish(&self) -> (Run, Evidence) {
        self.answered().await;
        let rooms = self.conversations.lock().clone();
        let mut run = Run::default();
        for (&conversation, room) in &rooms {
            run.members.insert(conversation, room.members.iter().map(Account::user).collect());
            let rows = self.history(&room.members[0], conversation).await;
            run.history.insert(conversation, rows);
        }
        self.quiet(&run).await;
        for session in self.sessions.lock().iter() {
            let online_at_end = !*session.left.lock();
            run.sessions.insert(session.number, SessionFact { user: session.account.user(), online_at_end });
        }
        // Again, in case that something has come after all: the checker will find it strange.
        for (&conversation, room) in &rooms {
            let rows = self.history(&room.members[room.members.len() - 1], conversation).await;
            run.history.insert(conversation, rows);
        }
        let evidence = self.recorder.close(&mut run);
        (run, evidence)
    }

    /// Many messages at once, from everybody and to everywhere, so that a crash right after it meets them in flight.
    pub async fn burst(&self, each: usize) {
        let rooms = self.conversations.lock().clone();
        let sessions = self.sessions.lock().clone();
        for session in sessions.iter().filter(|session| !*session.left.lock()) {
            let user = session.account.user();
            let mine = rooms.iter().filter(|(_, room)| room.members.iter().any(|member| member.user() == user));
            let mine: Vec<ConversationId> = mine.filter(|(_, room)| !room.hushed).map(|(&id, _)| id).collect();
            for number in 0..each {
                if let Some(conversation) = mine.get(number % mine.len().max(1)) {
                    session.say(*conversation, &format!("burst {number}")).await;
                }
            }
        }
    }

    /// Every session that has not left is connected, and has shown what there is. Whoever is late is the checker's.
    async fn quiet(&self, run: &Run) {
        let sessions: Vec<Arc<Session>> = self.sessions.lock().iter().filter(|s| !*s.left.lock()).cloned().collect();
        let newest: HashMap<ConversationId, Seq> =
            run.history.iter().map(|(&id, rows)| (id, rows.last().map_or(0, |row| row.0))).collect();
        let done = || {
            sessions.iter().all(|session| {
                let user = session.account.user();
                session.client.is_connected()
                    && (newest.iter()).all(|(id, &seq)| !run.members[id].contains(&user) || session.shown(*id) >= seq)
            })
        };
        let end = tokio::time::Instant::now() + LIVENESS;
        while !done() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All of a conversation's messages, by REST.
    pub async fn history(&self, reader: &Account, conversation: ConversationId) -> Vec<(Seq, Identity)> {
        let mut rows = Vec::new();
        let mut after = 0;
        loop {
            let page: Page = patiently("history", async || {
                self.rest.history(reader.token(), conversation, HistoryRange::After(after), None).await
            })
            .await;
            for message in &page.messages {
                rows.push((message.seq, identity(message)));
                if message.event.is_some() && message.seq == 1 {
                    self.recorder.created(u32::MAX, conversation, identity(message));
                }
            }
            if !page.more {
                return rows;
            }
            assert!(page.to > after, "a page that leads nowhere");
            after = page.to;
        }
    }

    /// Ends the run and proves I1 to I9.
    pub async fn prove(&self, name: &str) -> Evidence {
        let (run, evidence) = self.finish().await;
        let problems = self.recorder.problems();
        assert!(problems.is_empty(), "{name}: {problems:?}\n{evidence}");
        assert_clean(name, &run, &evidence);
        for session in self.sessions.lock().iter() {
            session.client.kill();
        }
        evidence
    }

    /// Waits until something can be shown for a fault.
    pub async fn until(&self, what: &str, holds: impl Fn(&Evidence) -> bool) {
        eventually(what, LIVENESS, async || holds(&self.recorder.evidence())).await;
    }
}

/// Prints the evidence and every violation, and fails if there is one.
pub fn assert_clean(name: &str, run: &Run, evidence: &Evidence) {
    let violations = run.check();
    println!("{name}: {evidence}");
    let shown: HashSet<String> = violations.iter().take(30).map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{name}: {} violations, such as {shown:#?}", violations.len());
}

/// Talk in the background.
pub struct Talk {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Talk {
    /// Ends it.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.expect("the talk ends");
    }
}
