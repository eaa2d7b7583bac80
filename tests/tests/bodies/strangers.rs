//! Clients that repeat themselves, lie, or ask for what is not theirs. They speak JSON, written by hand.

use std::time::Duration;

use roost_protocol::{ClientMsgId, ConversationId};
use roost_tests::checker::{Identity, SendOutcome};
use roost_tests::cluster::Cluster;
use roost_tests::people::{Account, Recording, rest};
use roost_tests::raw::{Raw, exchange, status};
use serde_json::{Value, json};

/// A conversation of two, and a raw session for the first of them.
async fn a_conversation(cluster: &Cluster, people: &[Account]) -> (ConversationId, Raw) {
    let created = rest(cluster).create_direct(people[0].token(), people[1].user()).await.expect("a conversation");
    (created.conversation_id, Raw::connect(&cluster.url(0), people[0].token()).await)
}

async fn texts(cluster: &Cluster, reader: &Account, conversation: ConversationId) -> Vec<Value> {
    let mut raw = Raw::connect(&cluster.url(0), reader.token()).await;
    let page = raw.ask(json!({"type": "history", "conversation_id": conversation, "after": 1})).await;
    page["messages"].as_array().expect("a page").clone()
}

pub async fn retries_are_suppressed(cluster: &Cluster, people: &[Account]) {
    let run = Recording::start(cluster);
    let conversation = run.direct(&people[0], &people[1]).await;
    let anna = run.join(&people[0]).await;
    run.join(&people[1]).await;
    for number in 0..20 {
        anna.say(conversation, &format!("once {number}")).await;
        for _ in 0..3 {
            anna.repeat(number).await;
        }
    }
    anna.answered().await;
    for number in 0..20 {
        anna.repeat(number).await;
    }
    // The same send on two more sessions at once, many times, and by REST.
    let (id, text) = (ClientMsgId::new(), "said everywhere");
    let digest = roost_protocol::digest::of_content("text/plain", text.as_bytes());
    let sender = people[0].user();
    let session = run.outsider();
    run.recorder().begun(session, conversation, Identity { client_msg_id: id, sender, digest });
    let mut one = Raw::connect(&cluster.url(0), people[0].token()).await;
    let mut two = Raw::connect(&cluster.url(1), people[0].token()).await;
    let mut seqs = Vec::new();
    for _ in 0..5 {
        let (a, b) = tokio::join!(one.verdict(id, conversation, text), two.verdict(id, conversation, text));
        seqs.extend([a["seq"].as_u64(), b["seq"].as_u64()]);
    }
    let stored = rest(cluster).send_text(people[0].token(), id, conversation, text).await.expect("stored");
    seqs.push(Some(stored.seq));
    for seq in seqs {
        let seq = seq.expect("sent");
        run.recorder().ended(session, sender, id, SendOutcome::Ok { seq });
    }
    let evidence = run.prove("retries").await;
    assert_eq!(evidence.stored, 22, "the creation, 20 and one");
    assert!(evidence.suppressed >= 20, "inconclusive: nothing was repeated");
}

pub async fn s28_a_foreign_conversation_is_as_one_that_does_not_exist(cluster: &Cluster, people: &[Account]) {
    let (foreign, _) = a_conversation(cluster, &people[..2]).await;
    let mut stranger = Raw::connect(&cluster.url(0), people[2].token()).await;
    let mut answers = Vec::new();
    for conversation in [foreign, ConversationId::new()] {
        let mut verdict = stranger.verdict(ClientMsgId::new(), conversation, "let me in").await;
        let mut page = stranger.ask(json!({"type": "history", "conversation_id": conversation, "after": 0})).await;
        assert_eq!((&verdict["type"], &verdict["code"]), (&"rejected".into(), &"not_found".into()));
        verdict["client_msg_id"].take();
        page["id"].take();
        let range = roost_protocol::frames::HistoryRange::After(0);
        let rest = rest(cluster);
        let by_rest = rest.history(people[2].token(), conversation, range, None).await.expect_err("foreign");
        let posted = rest.send_text(people[2].token(), ClientMsgId::new(), conversation, "x").await;
        let members = rest.members(people[2].token(), conversation, None, None).await.expect_err("foreign");
        let posted = posted.expect_err("foreign");
        answers.push((verdict.to_string(), page.to_string(), format!("{by_rest}, {posted}, {members}")));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(texts(cluster, &people[0], foreign).await, Vec::<Value>::new(), "no side effect");
    let heads = stranger.ask(json!({"type": "sync"})).await.to_string();
    assert!(!heads.contains(&foreign.to_string()), "{heads}");
}

pub async fn s30_the_servers_values_count(cluster: &Cluster, people: &[Account]) {
    let (conversation, mut raw) = a_conversation(cluster, people).await;
    let id = ClientMsgId::new();
    raw.say(json!({
        "type": "send", "client_msg_id": id, "conversation_id": conversation, "text": "it was Ben",
        "sender_id": people[1].user(), "device_id": people[1].tokens.device_id, "seq": 4711, "time": 1,
        "event": {"kind": "created"},
    }))
    .await;
    let message = raw.sees(conversation, id).await;
    assert_eq!(message["seq"], 2);
    assert_eq!(message["sender_id"], people[0].user().to_string());
    assert_eq!(message["device_id"], people[0].tokens.device_id.to_string());
    assert!(message["time"].as_u64().is_some_and(|time| time > 1_600_000_000_000), "{message}");
    assert!(message["event"].is_null(), "{message}");
    let foreign_device = json!({"type": "connect", "token": people[0].token(), "client": "x",
        "device_id": people[1].tokens.device_id});
    let mut raw = Raw::open(&cluster.url(0), &[]).await.expect("a WebSocket");
    raw.say(foreign_device).await;
    assert_eq!(raw.answer("error").await["code"], "device_mismatch");
    assert!(raw.closed().await.is_some_and(|code| (4100..4300).contains(&code)));
}

pub async fn s31_s32_another_body_and_another_users_id(cluster: &Cluster, people: &[Account]) {
    let (conversation, mut anna) = a_conversation(cluster, people).await;
    let mut ben = Raw::connect(&cluster.url(1), people[1].token()).await;
    let id = ClientMsgId::new();
    let first = anna.verdict(id, conversation, "as first said").await;
    assert_eq!((&first["type"], &first["seq"]), (&"sent".into(), &2.into()));
    let other = anna.verdict(id, conversation, "said otherwise").await;
    assert_eq!((&other["type"], &other["code"]), (&"rejected".into(), &"idempotency_mismatch".into()));
    let same = anna.verdict(id, conversation, "as first said").await;
    assert_eq!((&same["type"], &same["seq"]), (&"sent".into(), &2.into()), "the first verdict stays");
    let bens = ben.verdict(id, conversation, "Ben's own").await;
    assert_eq!((&bens["type"], &bens["seq"]), (&"sent".into(), &3.into()), "ids are each sender's own");
    let stored = texts(cluster, &people[0], conversation).await;
    let stored: Vec<_> = stored.iter().map(|message| message["text"].as_str().unwrap_or("")).collect();
    assert_eq!(stored, ["as first said", "Ben's own"]);
}

pub async fn s33_positions_and_cursors_out_of_bounds(cluster: &Cluster, people: &[Account]) {
    let (conversation, mut raw) = a_conversation(cluster, people).await;
    for number in 0..3 {
        assert_eq!(raw.verdict(ClientMsgId::new(), conversation, &number.to_string()).await["type"], "sent");
    }
    let history = |range: Value| {
        let mut request = json!({"type": "history", "conversation_id": conversation});
        request.as_object_mut().expect("an object").extend(range.as_object().expect("an object").clone());
        request
    };
    let beyond = raw.ask(history(json!({"after": 1_000_000}))).await;
    assert_eq!((&beyond["type"], &beyond["messages"], &beyond["more"]), (&"page".into(), &json!([]), &false.into()));
    let all = raw.ask(history(json!({"before": 9_007_199_254_740_991_u64, "limit": 4_000_000_000_u32}))).await;
    assert_eq!(all["messages"].as_array().map(Vec::len), Some(4), "{all}");
    let none = raw.ask(history(json!({"before": 0}))).await;
    assert_eq!((&none["type"], &none["messages"]), (&"page".into(), &json!([])));
    let cursor = raw.ask(json!({"type": "sync", "since": "'; drop table message; --"})).await;
    assert_eq!((&cursor["type"], &cursor["code"]), (&"error".into(), &"invalid_cursor".into()));
    for wrong in [json!({"after": -1}), json!({"after": 1, "before": 2}), json!({}), json!({"after": 0, "limit": 0})] {
        let mut raw = Raw::connect(&cluster.url(0), people[0].token()).await;
        raw.say(history(wrong.clone())).await;
        let error = raw.answer("error").await;
        assert!(error["code"] == "invalid_field" || error["code"] == "malformed", "{wrong}: {error}");
    }
}

pub async fn plain_http(cluster: &Cluster, someone: &Account) {
    let silent = Duration::from_secs(15);
    let api = cluster.api_url();
    let mut servers = vec![api.clone()];
    servers.extend(cluster.gateways.iter().map(|gateway| gateway.address().to_owned()));
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\n{more}\r\n").into_bytes()
    };
    for server in &servers {
        for path in ["/healthz", "/readyz", "/"] {
            let answer = exchange(server, &get(path, ""), silent).await;
            assert_eq!(status(&answer), 200, "{server}{path}: {}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(status(&exchange(server, &get("/nowhere", ""), silent).await), 404, "{server}");
        assert_eq!(status(&exchange(server, b"nonsense\r\n\r\n", silent).await), 400, "{server}");
    }
    let post = |path: &str, body: &str| {
        let (length, token) = (body.len(), someone.token());
        let head = format!("POST {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\nContent-Length: {length}\r\n");
        let head = format!("{head}Content-Type: application/json\r\nAuthorization: Bearer {token}\r\n\r\n");
        format!("{head}{body}").into_bytes()
    };
    for (path, body, expected) in [
        ("/v1/accounts", "{", 400),
        ("/v1/accounts", r#"{"name": "x", "password": "y"}"#, 400),
        ("/v1/conversations", r#"{"kind": "direct"}"#, 400),
        ("/v1/messages", "[]", 400),
        ("/v1/healthz", "{}", 404),
        ("/v1/users", "{}", 405),
    ] {
        let answer = exchange(&api, &post(path, body), silent).await;
        assert_eq!(status(&answer), expected, "{path} {body}: {}", String::from_utf8_lossy(&answer));
        assert!(String::from_utf8_lossy(&answer).contains("application/problem+json"), "{path} {body}");
    }
    assert_eq!(status(&exchange(&api, &get("/v1/conversations", ""), silent).await), 401);
}
