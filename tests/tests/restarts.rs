//! Restarts, upgrades and cuts under load: whoever is connected is told or finds out, comes back, and has missed nothing.
//!
//! Rows F2 to F5, F7 and F10 of docs/guarantees.md, each on one cluster after the other. Limits are against waiting for
//! ever only.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use roost_protocol::{ClientMsgId, CloseCode, ConversationId};
use roost_tests::cluster::{Cluster, Composition, Holders, Size};
use roost_tests::people::{Account, LIVENESS, Recording, Talk, register, rest, seed};
use roost_tests::process::eventually;
use roost_tests::proxy::Proxy;
use roost_tests::raw::{Heard, Raw, Visit, status_of, visit};
use roost_tests::recorder::Evidence;
use roost_tests::servers::available;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// So that being frozen for longer takes no minute.
const LEASE_MS: u64 = 3_000;

/// People in the middle of their talk.
struct Load {
    name: &'static str,
    run: Arc<Recording>,
    talk: Talk,
}

impl Load {
    async fn on(name: &'static str, cluster: &Cluster, people: &[Account]) -> Self {
        Self::at(name, cluster, people, (0..cluster.gateways.len()).map(|gateway| cluster.url(gateway)).collect()).await
    }

    async fn at(name: &'static str, cluster: &Cluster, people: &[Account], gateways: Vec<String>) -> Self {
        let run = Recording::start_at(cluster, gateways);
        run.join_all(people).await;
        run.group(people).await;
        for members in people.windows(3).step_by(3) {
            run.group(members).await;
        }
        let talk = run.talk(seed(), 80);
        tokio::time::sleep(Duration::from_millis(500)).await;
        Self { name, run, talk }
    }

    /// Talk goes on for a moment, then everything is proved.
    async fn end(self) -> Evidence {
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.talk.stop().await;
        self.run.prove(self.name).await
    }
}

/// A session without an SDK that says what it can until it is told to go, and then stays.
struct Stayer(JoinHandle<Stayed>);

struct Stayed {
    told: bool,
    answered: usize,
    unanswered: usize,
    code: Option<u16>,
}

impl Stayer {
    async fn all(cluster: &Cluster, gateway: usize, people: &[Account]) -> Vec<Self> {
        let mut all = Vec::new();
        for pair in people.windows(2).take(3) {
            let created = rest(cluster).create_direct(pair[0].token(), pair[1].user()).await.expect("a conversation");
            let raw = Raw::connect(&cluster.url(gateway), pair[0].token()).await;
            all.push(Self(tokio::spawn(stay(raw, created.conversation_id))));
        }
        all
    }

    /// They were told, everything that they had said was answered, and then they were closed so that they may resume.
    async fn were_drained(all: Vec<Self>) {
        for stayer in all {
            let stayed = tokio::time::timeout(LIVENESS, stayer.0).await.expect("it is closed").expect("it ends well");
            assert!(stayed.told, "it was not told to go");
            assert_eq!(stayed.code, Some(CloseCode::Drained.code()));
            assert_eq!(stayed.unanswered, 0, "sends in flight are finished first");
            assert!(stayed.answered > 0, "inconclusive: nothing was in flight");
        }
    }
}

async fn stay(mut raw: Raw, conversation: ConversationId) -> Stayed {
    let mut waits = HashSet::new();
    let mut stayed = Stayed { told: false, answered: 0, unanswered: 0, code: None };
    for _ in 0..8 {
        waits.insert(say(&mut raw, conversation).await);
    }
    loop {
        let frame = match raw.next().await {
            Heard::Frame(frame) => frame,
            Heard::Closed(code) => return Stayed { code, unanswered: waits.len(), ..stayed },
        };
        let id = frame["client_msg_id"].as_str().unwrap_or("").to_owned();
        match frame["type"].as_str() {
            Some("sent" | "retry") if waits.remove(&id) => {
                stayed.answered += 1;
                if !stayed.told {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    waits.insert(say(&mut raw, conversation).await);
                }
            }
            Some("goaway") => stayed.told = true,
            _ => {}
        }
    }
}

async fn say(raw: &mut Raw, conversation: ConversationId) -> String {
    let id = ClientMsgId::new();
    raw.send(id, conversation, "before I go").await;
    id.to_string()
}

async fn f2_a_drain_under_load(cluster: &mut Cluster, people: &[Account]) {
    let load = Load::on("F2: drain", cluster, people).await;
    let stayers = Stayer::all(cluster, 0, people).await;
    let url = cluster.url(0);
    load.run.burst(4).await;
    cluster.gateways[0].ask_to_stop();
    // Not ready at once, while its clients are still there.
    eventually("it is not ready", LIVENESS, async || status_of(&url, "/readyz").await.is_none_or(|code| code == 503))
        .await;
    assert_eq!(status_of(&url, "/readyz").await, Some(503), "inconclusive: it had ended before it was asked");
    assert_eq!(cluster.gateways[0].ended().await, Some(0), "it ends by itself within its grace");
    Stayer::were_drained(stayers).await;
    assert!(waiting_sockets(&url) > 0, "inconclusive: the port was free");
    cluster.gateways[0].restart(None).await;
    let on_it = people.len().div_ceil(cluster.gateways.len()) as u64;
    load.run.until("its clients are back", |evidence| evidence.reconnects >= on_it).await;
    let evidence = load.end().await;
    assert!(evidence.goaways >= on_it, "inconclusive: not all were told to go");
}

/// Sockets of the server's port in TIME_WAIT: it closed first.
fn waiting_sockets(url: &str) -> usize {
    let port: u16 = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let waits = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
        local && words.nth(1) == Some("06")
    };
    table.lines().filter(waits).count()
}

async fn f3_a_step_of_the_drain_hangs(cluster: &mut Cluster, people: &[Account]) {
    cluster.gateways[0].stop().await;
    cluster.gateways[0].restart(Some("gateway-before-waves=pause")).await;
    let load = Load::on("F3: hanging drain", cluster, people).await;
    let stayers = Stayer::all(cluster, 0, people).await;
    assert_eq!(
        cluster.gateways[0].stop().await,
        Some(1),
        "the end of the grace ends it, and says that it was no good end"
    );
    Stayer::were_drained_late(stayers).await;
    let log = cluster.gateways[0].log();
    assert!(log.contains("the drain hangs") && log.contains("the stop hangs"), "inconclusive: it did not hang");
    cluster.gateways[0].restart(None).await;
    let evidence = load.end().await;
    assert!(evidence.goaways >= people.len() as u64, "inconclusive: not all were told to go");
    assert!(evidence.reconnects >= people.len() as u64, "inconclusive: not all came back");
}

impl Stayer {
    /// Nobody had the time to wait for their answers.
    async fn were_drained_late(all: Vec<Self>) {
        for stayer in all {
            let stayed = tokio::time::timeout(LIVENESS, stayer.0).await.expect("it is closed").expect("it ends well");
            assert_eq!((stayed.told, stayed.code), (true, Some(CloseCode::Drained.code())));
        }
    }
}

/// All gateways, one after the other: once in a usual run, as often as ROOST_ROLLING_RESTARTS says in others.
async fn f4_a_rolling_restart(cluster: &mut Cluster, people: &[Account]) {
    let rounds = std::env::var("ROOST_ROLLING_RESTARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let load = Load::on("F4: rolling restart", cluster, people).await;
    for _ in 0..rounds {
        let before = load.run.evidence().reconnects;
        for gateway in &mut cluster.gateways {
            assert_eq!(gateway.stop().await, Some(0), "it ends by itself within its grace");
            gateway.restart(None).await;
        }
        let all = before + people.len() as u64;
        load.run.until("everybody is back", |evidence| evidence.reconnects >= all).await;
    }
    let evidence = load.end().await;
    assert!(evidence.goaways >= rounds * people.len() as u64, "inconclusive: not all were told to go");
}

/// Clients that come and go all the time.
struct Visitors {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<Vec<Visit>>>,
}

impl Visitors {
    fn start(url: &str, account: &Account) -> Self {
        let stop = watch::Sender::new(false);
        let one = || {
            let (url, token, stopped) = (url.to_owned(), account.token().to_owned(), stop.subscribe());
            tokio::spawn(async move {
                let mut visits = Vec::new();
                while !*stopped.borrow() {
                    visits.push(visit(&url, &token).await);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                visits
            })
        };
        Self { tasks: (0..3).map(|_| one()).collect(), stop }
    }

    async fn stop(self) -> Vec<Visit> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.expect("it ends well"));
        }
        all
    }
}

async fn a_takeover_under_load(cluster: &mut Cluster, people: &[Account]) {
    let load = Load::on("takeover", cluster, people).await;
    ask_and_die(cluster).await;
    let listen = format!("127.0.0.1:{}", roost_tests::process::free_port());
    let path = cluster.takeover_path(0).display().to_string();
    let elsewhere = ["gateway", "--listen", &listen, "--registry", "redis://127.0.0.1:1", "--takeover", &path];
    let refused = cluster.refused(&elsewhere).await;
    assert!(refused.contains("to change the address"), "{refused}");
    let stayers = Stayer::all(cluster, 0, people).await;
    let visitors = Visitors::start(&cluster.url(0), &people[0]);
    // Twice: who has taken over is taken over itself.
    for _ in 0..2 {
        let successor = cluster.gateways[0].successor().await;
        let mut old = std::mem::replace(&mut cluster.gateways[0], successor);
        assert_eq!(cluster.gateways[0].address(), old.address());
        assert_eq!(old.ended().await, Some(0), "it ends by itself within its grace");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Stayer::were_drained(stayers).await;
    let visits = visitors.stop().await;
    let served = visits.iter().filter(|visit| **visit == Visit::Served).count();
    let turned_away = visits.iter().filter(|visit| **visit == Visit::TurnedAway).count();
    println!("takeover: {served} visits served, {turned_away} turned away");
    let broken: Vec<&Visit> = visits.iter().filter(|visit| matches!(visit, Visit::Broken(_))).collect();
    assert!(broken.is_empty(), "connections refused or reset: {broken:?}");
    assert!(served > turned_away, "inconclusive: {turned_away} were turned away");
    let evidence = load.end().await;
    let on_it = people.len().div_ceil(2) as u64;
    assert!(evidence.goaways >= on_it && evidence.reconnects >= on_it, "inconclusive: not all went over");
}

/// Gets the socket and dies: the gateway goes on as if nothing had happened.
async fn ask_and_die(cluster: &Cluster) {
    let path = cluster.takeover_path(0);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("a socket").permissions());
    assert_eq!(mode & 0o777, 0o600, "nobody else may ask");
    let mut asks = UnixStream::connect(&path).expect("the gateway waits there");
    asks.write_all(b"roost-takeover 1\n").expect("it listens");
    let mut answer = [0; 64];
    let count = asks.read(&mut answer).expect("it answers");
    assert!(answer[..count].starts_with(b"clients 127.0.0.1:"), "{answer:?}");
    drop(asks);
    let noticed = async || cluster.gateways[0].log().contains("a takeover came to nothing");
    eventually("the gateway goes on", LIVENESS, noticed).await;
    assert_eq!(status_of(&cluster.url(0), "/readyz").await, Some(200));
}

async fn f5_every_connection_is_cut_at_once(cluster: &Cluster, people: &[Account]) {
    let mut proxies = Vec::new();
    for gateway in 0..cluster.gateways.len() {
        proxies.push(Proxy::start(&cluster.url(gateway)).await);
    }
    let gateway = &cluster.gateways[0];
    let descriptors = gateway.descriptors();
    let load = Load::at("F5: cut", cluster, people, proxies.iter().map(Proxy::url).collect()).await;
    let (mut resident_kib, mut back) = (0, 0);
    for round in 0..4 {
        load.run.burst(4).await;
        back += people.len() as u64;
        proxies.iter().for_each(Proxy::cut);
        load.run.until("everybody is back", |evidence| evidence.reconnects >= back).await;
        if round == 0 {
            resident_kib = gateway.resident_kib();
        }
    }
    let after_kib = gateway.resident_kib();
    println!("F5: {resident_kib} KiB after the first cut, {after_kib} after the last");
    // A tenth, and what an allocator keeps for itself.
    assert!(after_kib <= resident_kib * 11 / 10 + 16 * 1024, "memory: {resident_kib} KiB before, {after_kib} after");
    let evidence = load.end().await;
    assert!(evidence.closes.get("none").is_some_and(|cut| *cut >= back), "inconclusive: {:?}", evidence.closes);
    assert!(evidence.unknown > 0, "inconclusive: nothing was in flight");
    let closed = async || proxies.iter().all(|proxy| proxy.open() == 0) && gateway.descriptors() <= descriptors + 4;
    eventually("connections and descriptors are back", LIVENESS, closed).await;
}

async fn f7_a_gateway_is_frozen_for_longer_than_its_lease(cluster: &Cluster, people: &[Account]) {
    let load = Load::on("F7: frozen gateway", cluster, people).await;
    load.run.burst(2).await;
    cluster.gateways[1].freeze();
    tokio::time::sleep(Duration::from_millis(2 * LEASE_MS + 1_000)).await;
    cluster.gateways[1].thaw();
    let (stale, code) = (people.len() as u64 / 2, CloseCode::LeaseLost.code().to_string());
    let closed = |evidence: &Evidence| evidence.closes.get(&code).is_some_and(|closed| *closed >= stale);
    load.run.until("stale sessions are closed", closed).await;
    load.run.until("they are back", |evidence| evidence.reconnects >= stale).await;
    // That nothing was shown twice is I6.
    let evidence = load.end().await;
    assert!(evidence.gap_repairs > 0, "inconclusive: nobody has missed anything");
}

async fn f10_a_slow_reader(cluster: &Cluster, people: &[Account]) {
    let (proxy, gateway) = (Proxy::start(&cluster.url(0)).await, &cluster.gateways[0]);
    let run = Recording::start_at(cluster, vec![cluster.url(0), proxy.url()]);
    let slow_endings = || gateway.log().lines().filter(|line| line.contains("Ours(Slow)")).count();
    let before = slow_endings();
    let anna = run.join(&people[0]).await;
    let ben = run.join(&people[1]).await;
    let carla = run.join(&people[2]).await;
    let conversation = run.group(&people[..3]).await;
    proxy.hold(true);
    let much = "x".repeat(32 * 1024);
    // As fast as another reads, so that only one is slow.
    for number in 0..400 {
        anna.say(conversation, &format!("{number} {much}")).await;
        if number % 8 == 7 {
            eventually("another has it all", LIVENESS, async || carla.shown(conversation) == number + 2).await;
        }
    }
    assert!(ben.shown(conversation) < 401, "inconclusive: he was not slow");
    eventually("the slow one is closed", LIVENESS, async || slow_endings() > before).await;
    proxy.hold(false);
    eventually("he has it all too", LIVENESS, async || ben.shown(conversation) == 401).await;
    let evidence = run.prove("F10: slow reader").await;
    assert!(evidence.reconnects > 0 && evidence.gap_repairs > 0, "inconclusive: he has not resumed");
}

#[tokio::test]
async fn embedded() {
    let holders = Holders { verbose: true, ..Holders::default() };
    let mut cluster = Cluster::start_with(Composition::Embedded, Size::ONE, holders).await;
    let people = &register(&cluster, 8).await;
    f2_a_drain_under_load(&mut cluster, people).await;
    f3_a_step_of_the_drain_hangs(&mut cluster, people).await;
    f5_every_connection_is_cut_at_once(&cluster, people).await;
    f10_a_slow_reader(&cluster, people).await;
}

#[tokio::test]
async fn distributed() {
    if !available("restarts::distributed") {
        return;
    }
    let holders = Holders { takeover: true, lease_ms: LEASE_MS, verbose: true, ..Holders::default() };
    let size = Size { gateways: 2, persist: 1, fanout: 1 };
    let mut cluster = Cluster::start_with(Composition::Distributed, size, holders).await;
    let people = &register(&cluster, 10).await;
    f2_a_drain_under_load(&mut cluster, people).await;
    f4_a_rolling_restart(&mut cluster, people).await;
    a_takeover_under_load(&mut cluster, people).await;
    f5_every_connection_is_cut_at_once(&cluster, people).await;
    f7_a_gateway_is_frozen_for_longer_than_its_lease(&cluster, people).await;
    f10_a_slow_reader(&cluster, people).await;
}
