//! The client over real sockets, against a server that loses pushes, answers `retry` and breaks connections.

mod fake;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fake::{Fake, Push};
use roost_client::*;
use roost_protocol::frames::{ServerBody, ServerFrame};
use roost_protocol::{ClientMsgId, ConversationId, Epoch, ErrorCode, Form};

const PATIENCE: Duration = Duration::from_secs(30);

fn config(fake: &Fake) -> Config {
    let first = Duration::from_millis(20);
    Config {
        backoff: BackoffConfig { first, most: Duration::from_millis(100), ..BackoffConfig::default() },
        ..Config::new(fake.url.clone(), fake.credentials())
    }
}

async fn start(config: Config) -> (Client, Events) {
    let (client, events) = Client::connect(config).await.expect("it logs in");
    client.connected().await.expect("it connects");
    (client, events)
}

async fn until<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let wait = async {
        loop {
            let event = events.next().await.expect("the client runs");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the event comes")
}

/// Messages until a conversation has so many; each seq is the one before plus one.
async fn shown(events: &mut Events, conversation: ConversationId, from: u64, to: u64) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = from;
    while next <= to {
        let message = until(events, |event| match event {
            Event::Message(message) if message.conversation_id == conversation => Some(message),
            _ => None,
        })
        .await;
        assert_eq!(message.seq, next, "the next message has the next seq");
        texts.push(String::from_utf8(message.body.to_vec()).expect("text"));
        next += 1;
    }
    texts
}

fn room(fake: &Fake) -> ConversationId {
    let conversation = ConversationId::new();
    fake.world.lock().conversations.insert(conversation, Vec::new());
    conversation
}

/// True every so often, without a pattern.
fn sometimes(one_in: u64, mut seed: u64) -> Box<dyn FnMut() -> bool + Send> {
    Box::new(move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33).is_multiple_of(one_in)
    })
}

#[tokio::test]
async fn a_message_goes_out_and_comes_back_in_both_forms() {
    for form in Form::ALL {
        let fake = Fake::start().await;
        let conversation = room(&fake);
        let (client, mut events) = start(Config { form, ..config(&fake) }).await;
        let outcome = client.send_text(conversation, "hello").await.expect("taken").await;
        assert_eq!(outcome, Ok(Outcome::Sent { seq: 1, time: 1 }));
        assert_eq!(shown(&mut events, conversation, 1, 1).await, ["hello"]);
        let outcome = client.send_text(ConversationId::new(), "hello").await.expect("taken").await;
        assert!(matches!(outcome, Ok(Outcome::Rejected { code: ErrorCode::NotFound, .. })));
        client.stop().await.expect("it stops");
        assert!(client.send_text(conversation, "late").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losses_retries_and_cuts_change_nothing_for_the_application() {
    let fake = Fake::start().await;
    let conversations: Vec<_> = (0..3).map(|_| room(&fake)).collect();
    let (client, mut events) = start(config(&fake)).await;
    fake.world.lock().loses = sometimes(3, 1);
    fake.world.lock().retries = sometimes(7, 2);
    const EACH: usize = 200;
    let trouble = tokio::spawn({
        let (fake, client) = (fake.clone(), client.clone());
        async move {
            for step in 0u32.. {
                tokio::time::sleep(Duration::from_millis(15)).await;
                match step % 4 {
                    0 => fake.push(|| Push::Break),
                    1 => client.cut().await.expect("it runs"),
                    2 => fake.push(|| Push::Close(4002, "resume")),
                    _ => {}
                }
                fake.settle();
            }
        }
    });
    let sending = conversations.iter().map(|&conversation| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut handles = Vec::new();
            for number in 0..EACH {
                handles.push(client.send_text(conversation, &number.to_string()).await.expect("taken"));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for handle in handles {
                assert!(matches!(handle.await, Ok(Outcome::Sent { .. })));
            }
        })
    });
    let sending: Vec<_> = sending.collect();
    let mut last: HashMap<ConversationId, u64> = HashMap::new();
    while last.values().sum::<u64>() < (EACH * conversations.len()) as u64 {
        until(&mut events, |event| match event {
            Event::Message(message) => {
                let last = last.entry(message.conversation_id).or_default();
                assert_eq!(message.seq, *last + 1);
                // Pipelined sends keep their order, so message n has the seq n + 1.
                assert_eq!(message.body, (message.seq - 1).to_string());
                *last = message.seq;
                Some(())
            }
            _ => None,
        })
        .await;
    }
    for task in sending {
        tokio::time::timeout(PATIENCE, task).await.expect("verdicts come").expect("all are sent");
    }
    trouble.abort();
    assert!(fake.world.lock().connects > 3, "there was trouble");
}

#[tokio::test]
async fn a_killed_client_goes_on_from_its_saved_state() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    let (client, mut events) = start(config(&fake)).await;
    fake.say(conversation, "one".to_owned());
    shown(&mut events, conversation, 1, 1).await;
    fake.world.lock().retries = Box::new(|| true);
    let handle = client.send_text(conversation, "unanswered").await.expect("taken");
    let id = handle.client_msg_id();
    fake.say(conversation, "two".to_owned());
    let state = client.state().await.expect("it runs");
    client.kill();
    assert_eq!(handle.await, Err(Stopped));
    fake.say(conversation, "three".to_owned());
    fake.world.lock().retries = Box::new(|| false);
    let (_client, mut events) = start(Config { state, ..config(&fake) }).await;
    let mut verdict = None;
    let mut texts = Vec::new();
    while verdict.is_none() || texts.len() < 3 {
        until(&mut events, |event| match event {
            Event::Message(message) => {
                texts.push((message.seq, message.body));
                Some(())
            }
            Event::Verdict { client_msg_id, outcome, .. } => {
                verdict = Some((client_msg_id, outcome));
                Some(())
            }
            _ => None,
        })
        .await;
    }
    let texts: Vec<_> = texts.iter().map(|(seq, body)| (*seq, body.as_ref())).collect();
    assert_eq!(texts, [(2, &b"two"[..]), (3, b"three"), (4, b"unanswered")]);
    assert_eq!(verdict, Some((id, Outcome::Sent { seq: 4, time: 4 })));
}

#[tokio::test]
async fn a_slow_application_gets_everything_in_the_end() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    let (client, mut events) = start(Config { events_max: 256, ..config(&fake) }).await;
    for number in 0..2_000 {
        fake.say(conversation, number.to_string());
    }
    // Not one event is taken, and verdicts still come.
    let outcome = tokio::time::timeout(PATIENCE, client.send_text(conversation, "2000").await.expect("taken")).await;
    assert!(matches!(outcome, Ok(Ok(Outcome::Sent { seq: 2001, .. }))));
    let texts = shown(&mut events, conversation, 1, 2_001).await;
    assert_eq!(texts, (0..=2_000).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn close_codes_decide_what_comes_next() {
    let fake = Fake::start().await;
    let (client, mut events) = start(config(&fake)).await;
    let disconnected = |event| match event {
        Event::Disconnected { code, reconnect_in, .. } => Some((code, reconnect_in.is_some())),
        _ => None,
    };
    let connected = |event| matches!(event, Event::Connected { .. }).then_some(());
    until(&mut events, connected).await;
    fake.push(|| Push::Close(4000, "slow"));
    assert_eq!(until(&mut events, disconnected).await, (Some(4000), true));
    until(&mut events, connected).await;
    assert_eq!(fake.world.lock().refreshes, 0);

    fake.push(|| Push::Close(4101, "token expired"));
    assert_eq!(until(&mut events, disconnected).await, (Some(4101), true));
    until(&mut events, connected).await;
    assert_eq!(fake.world.lock().refreshes, 1);
    assert_eq!(client.tokens().map(|tokens| tokens.access_token).as_deref(), Some("access-1"));

    let goaway = || ServerBody::Goaway { reconnect_in_ms: 300, reason: "drained".to_owned() };
    fake.push(|| Push::Frame(ServerFrame::unsolicited(goaway())));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = Instant::now();
    fake.push(|| Push::Close(4003, "drained"));
    until(&mut events, connected).await;
    assert!(began.elapsed() >= Duration::from_millis(200), "it came back after {:?}", began.elapsed());

    fake.push(|| Push::Close(4202, "malformed"));
    assert_eq!(until(&mut events, disconnected).await, (Some(4202), false));
    until(&mut events, |event| matches!(event, Event::Stopped { .. }).then_some(())).await;
    assert_eq!(events.next().await, None);
    assert!(client.state().await.is_err());
}

#[tokio::test]
async fn tokens_are_refreshed_on_a_live_connection() {
    let fake = Fake::start().await;
    fake.world.lock().token_ms = 500;
    let (client, mut events) = start(config(&fake)).await;
    until(&mut events, |event| matches!(event, Event::TokensChanged).then_some(())).await;
    assert!(client.is_connected());
    let wait = async {
        while fake.world.lock().refreshed_live == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the server is told");
    assert_eq!(fake.world.lock().connects, 1);
}

#[tokio::test]
async fn a_refresh_token_that_is_refused_stops_the_client_unless_it_has_the_password() {
    let fake = Fake::start().await;
    let stale = fake.credentials();
    fake.world.lock().access_token = "another".to_owned();
    fake.world.lock().refresh_token = "another".to_owned();
    let (_client, mut events) =
        Client::connect(Config { credentials: stale, ..config(&fake) }).await.expect("tokens are taken as they are");
    until(&mut events, |event| matches!(event, Event::Stopped { .. }).then_some(())).await;

    let password = |password: &str| Credentials::Password {
        name: "ada".to_owned(),
        password: password.to_owned(),
        device_label: "test".to_owned(),
    };
    let wrong = Client::connect(Config { credentials: password("wrong"), ..config(&fake) }).await;
    assert!(matches!(wrong, Err(ConnectError::Rest(RestError::Refused { status: 401, .. }))));
    let (client, mut events) = start(Config { credentials: password("right"), ..config(&fake) }).await;
    fake.world.lock().access_token = "third".to_owned();
    fake.world.lock().refresh_token = "third".to_owned();
    client.cut().await.expect("it runs");
    until(&mut events, |event| matches!(event, Event::TokensChanged).then_some(())).await;
    client.connected().await.expect("it logs in again");
}

#[tokio::test]
async fn a_server_that_was_replaced_is_read_anew() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    fake.say(conversation, "old".to_owned());
    let (_client, mut events) = start(config(&fake)).await;
    assert_eq!(shown(&mut events, conversation, 1, 1).await, ["old"]);
    fake.world.lock().epoch = Epoch::new();
    fake.world.lock().conversations.insert(conversation, Vec::new());
    fake.say(conversation, "new".to_owned());
    fake.push(|| Push::Break);
    until(&mut events, |event| matches!(event, Event::Reloaded { .. }).then_some(())).await;
    assert_eq!(shown(&mut events, conversation, 1, 1).await, ["new"]);
}

#[tokio::test]
async fn a_client_starts_while_its_server_is_away_and_keeps_what_is_sent() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    let away = Config { base_url: "http://127.0.0.1:1".to_owned(), ..config(&fake) };
    let (client, mut events) = Client::connect(away).await.expect("tokens need no log-in");
    let _handle = client.send_text(conversation, "later").await.expect("taken");
    until(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
    let state = client.stop().await.expect("it stops");
    assert_eq!(state.outbox.len(), 1);
    let (_client, mut events) = start(Config { state, ..config(&fake) }).await;
    assert_eq!(shown(&mut events, conversation, 1, 1).await, ["later"]);
}

#[tokio::test]
async fn a_full_outbox_makes_send_wait_and_nothing_else() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    fake.world.lock().retries = Box::new(|| true);
    let (client, _events) = start(Config { outbox_max: 10, ..config(&fake) }).await;
    let mut handles = Vec::new();
    loop {
        let sending = client.send_text(conversation, "x");
        match tokio::time::timeout(Duration::from_millis(300), sending).await {
            Ok(handle) => handles.push(handle.expect("taken")),
            Err(_) => break,
        }
    }
    assert!((10..200).contains(&handles.len()), "{} were taken", handles.len());
    let state = client.state().await.expect("other commands pass");
    assert_eq!(state.outbox.len(), handles.len(), "nothing that was taken is missing");
}

#[tokio::test]
async fn another_gateway_is_tried_and_rest_may_be_elsewhere() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    let nowhere = "http://127.0.0.1:1".to_owned();
    let config = Config {
        base_url: nowhere.clone(),
        other_urls: vec![nowhere, fake.url.clone()],
        api_url: Some(fake.url.clone()),
        ..config(&fake)
    };
    let (client, mut events) = start(config).await;
    let connected = |event| matches!(event, Event::Connected { .. }).then_some(());
    until(&mut events, connected).await;
    fake.push(|| Push::Close(4101, "token expired"));
    until(&mut events, connected).await;
    assert_eq!(fake.world.lock().refreshes, 1);
    let outcome = client.send_text(conversation, "x").await.expect("taken").await;
    assert!(matches!(outcome, Ok(Outcome::Sent { .. })));
}

#[tokio::test]
async fn without_a_listener_sends_still_go_out() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    let (client, events) = start(config(&fake)).await;
    drop(events);
    for number in 1..=3_000 {
        fake.say(conversation, "noise".to_owned());
        if number % 1_000 == 0 {
            let sending = client.send_text(conversation, "x").await.expect("taken");
            let outcome = tokio::time::timeout(PATIENCE, sending).await;
            assert!(matches!(outcome, Ok(Ok(Outcome::Sent { .. }))));
        }
    }
    client.cut().await.expect("it runs");
    client.connected().await.expect("it connects again");
}

struct Counter(AtomicUsize, AtomicUsize);

impl Observer for Counter {
    fn observe(&self, _at: Instant, what: Observed<'_>) {
        match what {
            Observed::In(_) => self.0.fetch_add(1, Ordering::Relaxed),
            Observed::Out(_) => self.1.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

#[tokio::test]
async fn an_observer_sees_every_frame() {
    let fake = Fake::start().await;
    let conversation = room(&fake);
    let counter = Arc::new(Counter(AtomicUsize::new(0), AtomicUsize::new(0)));
    let (client, mut events) = start(Config { observer: Some(counter.clone()), ..config(&fake) }).await;
    until(&mut events, |event| matches!(event, Event::Synced).then_some(())).await;
    let id = ClientMsgId::new();
    for _ in 0..2 {
        let handle = client.send_as(id, conversation, "text/plain", "x").await.expect("taken");
        assert_eq!(handle.await, Ok(Outcome::Sent { seq: 1, time: 1 }), "the same id is the same message");
    }
    client.stop().await.expect("it stops");
    let seen = (counter.0.load(Ordering::Relaxed), counter.1.load(Ordering::Relaxed));
    // connected, heads, message, sent; perhaps the second sent, which comes after its message.
    assert!(matches!(seen, (4..=5, 4)), "{seen:?}");
}
