//! People who talk to one another.

use std::time::Duration;

use roost_ports::store::Account as StoredAccount;
use roost_protocol::{ClientMsgId, Seq, UserId};
use roost_tests::cluster::Cluster;
use roost_tests::people::{Account, LIVENESS, Recording, Session, patiently, rest, seed};
use roost_tests::process::eventually;
use roost_tests::raw::Raw;

const EACH: usize = 5_000;

/// Says many messages, pipelined.
async fn says(session: &Session, conversation: roost_protocol::ConversationId, count: usize, what: &str) {
    for number in 0..count {
        session.say(conversation, &format!("{what} {number}")).await;
    }
}

pub async fn two_exchange_ten_thousand_messages(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    // Both forms of frames, and both gateways where there are two.
    let anna = run.join(&people[0]).await;
    let ben = run.join(&people[1]).await;
    let _bens_other = run.join(&people[1].on_another_device(cluster).await).await;
    let conversation = run.direct(&people[0], &people[1]).await;
    tokio::join!(says(&anna, conversation, EACH, "from Anna"), says(&ben, conversation, EACH, "from Ben"));
    let evidence = run.prove("ten thousand messages").await;
    assert_eq!(evidence.stored, 2 * EACH as u64 + 1, "all, and the creation");
    assert_eq!(evidence.rejected, 0);
}

pub async fn a_receiver_is_offline_and_comes_back(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    let conversation = run.group(people).await;
    let anna = run.join(&people[0]).await;
    let ben = run.join(&people[1]).await;
    says(&anna, conversation, 20, "both are here").await;
    anna.answered().await;
    eventually("Ben has them", LIVENESS, async || ben.shown(conversation) == 21).await;
    let left_with = ben.leave().await;
    says(&anna, conversation, 450, "Ben is away").await;
    anna.answered().await;
    // One comes back where it was, the other has never been here.
    let ben_again = run.resume(&ben, left_with).await;
    let carla = run.join(&people[2]).await;
    eventually("Ben has missed nothing", LIVENESS, async || ben_again.shown(conversation) == 471).await;
    eventually("Carla has it from the start", LIVENESS, async || carla.shown(conversation) == 471).await;
    says(&ben_again, conversation, 5, "back").await;
    run.prove("offline and back").await;
}

pub async fn every_device_of_a_user_gets_everything(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    let conversation = run.direct(&people[0], &people[1]).await;
    let anna = run.join(&people[0]).await;
    let mut devices = vec![run.join(&people[1]).await];
    for _ in 0..3 {
        devices.push(run.join(&people[1].on_another_device(cluster).await).await);
    }
    says(&anna, conversation, 50, "to all devices").await;
    says(&devices[0], conversation, 50, "from one device to the others too").await;
    run.answered().await;
    for device in &devices {
        eventually("the device has all", LIVENESS, async || device.shown(conversation) == 101).await;
    }
    run.prove("several devices").await;
}

pub async fn a_group_of_fifty(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    run.join_all(people).await;
    run.group(people).await;
    let talk = run.talk(seed(), 100);
    tokio::time::sleep(Duration::from_secs(2)).await;
    talk.stop().await;
    let evidence = run.prove("a group of fifty").await;
    assert!(evidence.suppressed > 0, "inconclusive: nothing was repeated");
}

pub async fn rest_and_sessions_interleave(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    let conversation = run.group(people).await;
    let sessions = run.join_all(&people[1..]).await;
    let by_rest = async {
        let mut last: Seq = 1;
        for number in 0..20 {
            let seq = run.post(&people[0], conversation, &format!("by REST {number}")).await;
            assert!(seq > last, "{seq} after {last}");
            last = seq;
        }
    };
    tokio::join!(by_rest, says(&sessions[0], conversation, 100, "by session"));
    let evidence = run.prove("REST and sessions").await;
    assert_eq!(evidence.stored, 121);
}

pub async fn conversations_are_listed(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    let direct = run.direct(&people[0], &people[1]).await;
    let again = run.direct(&people[1], &people[0]).await;
    assert_eq!(direct, again, "one conversation for a pair");
    let group = run.group(people).await;
    run.post(&people[1], group, "hello").await;
    let rest = rest(cluster);
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let token = people[0].token();
        let part = patiently("the list", async || rest.conversations(token, after, Some(1)).await).await;
        found.extend(part.conversations);
        match part.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let entry = |id| found.iter().find(|entry| entry.conversation_id == id).expect("it is listed");
    assert_eq!((entry(direct).kind.as_str(), entry(direct).peer), ("direct", Some(people[1].user())));
    assert_eq!((entry(group).kind.as_str(), entry(group).last_seq, entry(group).first_seq), ("group", 2, 1));
    let members = rest.members(people[2].token(), group, None, None).await.expect("the members");
    assert_eq!(members.members.len(), 3);
    run.prove("a list of conversations").await;
}

pub async fn a_group_of_ten_thousand(cluster: &mut Cluster, people: &[Account]) {
    let mut members = crowd(cluster, 10_000 - people.len()).await;
    members.extend(people[1..].iter().map(Account::user));
    let (rest, id) = (rest(cluster), ClientMsgId::new());
    let token = people[0].token();
    let group = patiently("a huge group", async || rest.create_group(token, id, Some("all"), &members).await).await;
    let mut heard = Vec::new();
    for (index, one) in people.iter().enumerate() {
        heard.push(Raw::connect(&cluster.url(index), one.token()).await);
    }
    let message = ClientMsgId::new();
    heard[0].send(message, group.conversation_id, "hello, all").await;
    for raw in &mut heard {
        let seen = raw.sees(group.conversation_id, message).await;
        assert_eq!((&seen["seq"], &seen["text"]), (&2.into(), &"hello, all".into()));
    }
    let one_more = UserId::new();
    members.push(one_more);
    let error = rest.create_group(token, ClientMsgId::new(), None, &members).await.expect_err("too many");
    assert!(matches!(error, roost_client::RestError::Refused { status: 400, .. }), "{error}");
}

/// Accounts of people who never log in, put into the Store directly: registering each would take hours.
async fn crowd(cluster: &mut Cluster, count: usize) -> Vec<UserId> {
    let embedded = cluster.api.is_none();
    if embedded {
        cluster.gateways[0].stop().await;
    }
    let store = cluster.store().await;
    let accounts: Vec<StoredAccount> = (0..count)
        .map(|number| StoredAccount {
            user_id: UserId::new(),
            name: format!("crowd-{number}"),
            password_hash: "none".to_owned(),
            created: 1,
        })
        .collect();
    for part in accounts.chunks(500) {
        for made in futures::future::join_all(part.iter().map(|account| store.create_account(account))).await {
            made.expect("an account");
        }
    }
    drop(store);
    if embedded {
        cluster.gateways[0].restart(None).await;
    }
    accounts.iter().map(|account| account.user_id).collect()
}

pub async fn a_stop_loses_nothing(cluster: &mut Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    run.join_all(people).await;
    run.group(people).await;
    let talk = run.talk(seed(), 200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for gateway in &mut cluster.gateways {
        assert_eq!(gateway.stop().await, Some(0), "the exit code of a stop by SIGTERM");
        gateway.restart(None).await;
    }
    for worker in cluster.persist.iter_mut().chain(&mut cluster.fanout).chain(&mut cluster.api) {
        assert_eq!(worker.stop().await, Some(0), "the exit code of a stop by SIGTERM");
        worker.restart(None).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    talk.stop().await;
    let evidence = run.prove("stopped in mid-stream").await;
    assert!(evidence.goaways > 0, "inconclusive: nobody was told to go");
    assert!(evidence.reconnects >= people.len() as u64, "inconclusive: not all had to come back");
}
