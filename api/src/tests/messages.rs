//! Messages and history over REST: what is taken from the client, and what becomes of a lost verdict.

use std::time::Duration;

use futures::FutureExt as _;
use roost_ports::delivery::{DeliveryBatch, DeliveryItem, Verdict, VerdictOutcome};
use roost_protocol::frames::Page;
use roost_protocol::{ClientMsgId, ConversationId};
use serde_json::json;

use super::process::{Person, Process, config, new_id, process, process_of};
use super::world::{LogMode, World};

async fn pair() -> (Process, Person, Person, String) {
    let process = process();
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    let conversation = process.direct(&alice, &bob).await;
    (process, alice, bob, conversation)
}

#[tokio::test]
async fn a_message_is_numbered_and_read_back() {
    let (process, alice, bob, conversation) = pair().await;
    let body = json!({"client_msg_id": new_id(), "conversation_id": conversation, "text": "héllo"});
    let sent = process.post("/v1/messages", &alice.token, body.clone()).await.is(201).json();
    assert_eq!((&sent["seq"], &sent["client_msg_id"]), (&json!(2), &body["client_msg_id"]));
    assert_eq!(process.post("/v1/messages", &alice.token, body).await.is(201).json(), sent);
    let bytes = json!({"client_msg_id": new_id(), "conversation_id": conversation, "body_base64": "/w==",
        "content_type": "image/png"});
    process.post("/v1/messages", &bob.token, bytes).await.is(201);
    let path = format!("/v1/messages?conversation_id={conversation}");
    let answer = process.get(&format!("{path}&after=0"), &bob.token).await;
    assert_eq!(answer.is(200).headers["content-type"], "application/json");
    let page = Page::from_json(answer.text.as_bytes()).expect("a page frame");
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(answer.json()["messages"][1]["text"], "héllo");
    assert_eq!(answer.json()["messages"][1]["content_type"], "text/plain");
    assert_eq!(answer.json()["messages"][2]["body_base64"], "/w==");
    let newest = process.get(&format!("{path}&before=9007199254740991&limit=1"), &alice.token).await;
    assert_eq!(newest.is(200).json()["messages"][0]["seq"], 3);
    assert_eq!(newest.json()["more"], true);
}

#[tokio::test]
async fn s30_the_servers_values_count_whatever_the_client_says() {
    let (process, alice, bob, conversation) = pair().await;
    let body = json!({
        "client_msg_id": new_id(), "conversation_id": conversation, "text": "x", "sender_id": bob.user_id, "seq": 99,
        "time": 1, "device_id": bob.device_id, "event": {"created": {}}, "role": "admin",
    });
    let sent = process.post("/v1/messages", &alice.token, body).await.is(201).json();
    assert_eq!((&sent["seq"], &sent["time"]), (&json!(2), &json!(1_800_000_000_000u64)));
    let message = process.world.message(&conversation, 2);
    assert_eq!(message.sender_id.to_string(), alice.user_id);
    assert_eq!(message.device_id.to_string(), alice.device_id);
    assert_eq!(message.event, None);
}

#[tokio::test]
async fn s31_the_same_id_with_another_body_is_refused_for_ever() {
    let (process, alice, _, conversation) = pair().await;
    let id = new_id();
    let body = |text: &str| json!({"client_msg_id": id, "conversation_id": conversation, "text": text});
    process.post("/v1/messages", &alice.token, body("one")).await.is(201);
    for _ in 0..2 {
        let answer = process.post("/v1/messages", &alice.token, body("two")).await;
        assert_eq!(answer.is(409).code(), "idempotency_mismatch");
    }
    assert_eq!(process.post("/v1/messages", &alice.token, body("one")).await.is(201).json()["seq"], 2);
}

#[tokio::test]
async fn s32_another_users_id_is_another_message() {
    let (process, alice, bob, conversation) = pair().await;
    let id = new_id();
    let body = |text: &str| json!({"client_msg_id": id, "conversation_id": conversation, "text": text});
    assert_eq!(process.post("/v1/messages", &alice.token, body("mine")).await.is(201).json()["seq"], 2);
    assert_eq!(process.post("/v1/messages", &bob.token, body("mine too")).await.is(201).json()["seq"], 3);
}

#[tokio::test]
async fn s33_history_beyond_negative_or_enormous() {
    let (process, alice, _, conversation) = pair().await;
    let path = format!("/v1/messages?conversation_id={conversation}");
    for clamped in ["after=999999", "after=18446744073709551615", "before=0", "after=0&limit=18446744073709551615"] {
        process.get(&format!("{path}&{clamped}"), &alice.token).await.is(200);
    }
    for wrong in [
        "after=-1",
        "after=1e3",
        "after=x",
        "after=",
        "after=0&limit=0",
        "after=0&limit=-5",
        "after=0&before=9",
        "limit=5",
        "after=0&after=1",
        "after=99999999999999999999999",
    ] {
        let answer = process.get(&format!("{path}&{wrong}"), &alice.token).await;
        assert_eq!(answer.is(400).code(), "invalid_field", "{wrong}");
    }
    for id in ["", "x", "%00", "018f2f3c000070008000000000000001"] {
        process.get(&format!("/v1/messages?conversation_id={id}&after=0"), &alice.token).await.is(400);
    }
}

#[tokio::test]
async fn messages_that_cannot_be() {
    let (process, alice, _, conversation) = pair().await;
    let id = new_id();
    let nil = "00000000-0000-0000-0000-000000000000";
    for body in [
        json!({"client_msg_id": id, "conversation_id": conversation}),
        json!({"client_msg_id": id, "conversation_id": conversation, "text": "x", "body_base64": "eA=="}),
        json!({"client_msg_id": id, "conversation_id": conversation, "body_base64": "eA"}),
        json!({"client_msg_id": id, "conversation_id": conversation, "text": "x", "content_type": ""}),
        json!({"client_msg_id": id, "conversation_id": conversation, "text": "x", "content_type": "a\nb"}),
        json!({"client_msg_id": id, "conversation_id": conversation, "text": "x", "content_type": "x".repeat(129)}),
        json!({"client_msg_id": nil, "conversation_id": conversation, "text": "x"}),
        json!({"client_msg_id": id, "conversation_id": nil, "text": "x"}),
        json!({"client_msg_id": 7, "conversation_id": conversation, "text": "x"}),
        json!({"client_msg_id": id, "conversation_id": conversation, "text": ["x"]}),
    ] {
        let answer = process.post("/v1/messages", &alice.token, body.clone()).await;
        assert_eq!(answer.is(400).code(), "invalid_field", "{body}");
    }
    let large = json!({"client_msg_id": id, "conversation_id": conversation, "text": "x".repeat(65_537)});
    assert_eq!(process.post("/v1/messages", &alice.token, large).await.is(413).code(), "body_too_large");
    let largest = json!({"client_msg_id": id, "conversation_id": conversation, "text": "x".repeat(65_536)});
    process.post("/v1/messages", &alice.token, largest).await.is(201);
}

#[tokio::test]
async fn a_lost_verdict_is_looked_up() {
    let (process, alice, _, conversation) = pair().await;
    let id = new_id();
    let body = |text: &str| json!({"client_msg_id": id, "conversation_id": conversation, "text": text});
    process.world.set_mode(LogMode::LosesVerdicts);
    assert_eq!(process.post("/v1/messages", &alice.token, body("one")).await.is(201).json()["seq"], 2);
    // Another body under the same id is not taken for the first one.
    let other = process.post("/v1/messages", &alice.token, body("two")).await;
    assert_eq!(other.is(409).code(), "idempotency_mismatch");
    let foreign = json!({"client_msg_id": new_id(), "conversation_id": ConversationId::new(), "text": "x"});
    process.post("/v1/messages", &alice.token, foreign).await.is(404);
    process.world.set_mode(LogMode::Unsure);
    let unsure = json!({"client_msg_id": new_id(), "conversation_id": conversation, "text": "three"});
    assert_eq!(process.post("/v1/messages", &alice.token, unsure).await.is(201).json()["seq"], 3);
}

#[tokio::test]
async fn what_is_not_known_in_time_is_said_to_be_unknown() {
    let (process, alice, _, conversation) = pair().await;
    let body = json!({"client_msg_id": new_id(), "conversation_id": conversation, "text": "one"});
    process.world.set_mode(LogMode::NobodyApplies);
    let unknown = process.post("/v1/messages", &alice.token, body.clone()).await;
    assert_eq!(
        unknown.is(202).json(),
        json!({"client_msg_id": body["client_msg_id"], "conversation_id": conversation, "retry_after_ms": 1000})
    );
    assert_eq!(unknown.headers["retry-after"], "1");
    process.world.set_mode(LogMode::Full);
    let busy = process.post("/v1/messages", &alice.token, body.clone()).await;
    assert_eq!(busy.is(503).code(), "busy");
    process.world.set_mode(LogMode::Applies);
    assert_eq!(process.post("/v1/messages", &alice.token, body).await.is(201).json()["seq"], 2);
}

#[tokio::test]
async fn those_who_wait_are_bounded_and_leave_nothing_behind() {
    let world = World::new();
    let mut bounded = config();
    bounded.verdicts_waiting_max = 2;
    bounded.verdict_ms_max = 60_000;
    let process = process_of(&world, bounded);
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    let conversation = process.direct(&alice, &bob).await;
    world.set_mode(LogMode::NobodyApplies);
    let body = || json!({"client_msg_id": new_id(), "conversation_id": conversation, "text": "x"});
    for _ in 0..3 {
        let (one, other) =
            (process.post("/v1/messages", &alice.token, body()), process.post("/v1/messages", &alice.token, body()));
        let both = futures::future::join(one, other);
        let third = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            process.post("/v1/messages", &alice.token, body()).await
        };
        // The two wait; both are dropped once the third has been refused.
        tokio::select! {
            _ = both => panic!("nobody answers them"),
            refused = third => assert_eq!(refused.is(503).code(), "busy"),
        }
    }
}

#[tokio::test]
async fn a_verdict_on_something_else_is_nobodys() {
    let (process, alice, _, conversation) = pair().await;
    process.world.set_mode(LogMode::NobodyApplies);
    let sink = process.api.sink();
    let forged = (0..100).map(|request| {
        DeliveryItem::Verdict(Verdict {
            session: None,
            request,
            client_msg_id: ClientMsgId::new(),
            conversation_id: conversation.parse().expect("an id"),
            outcome: VerdictOutcome::Committed { seq: 77, time: 1 },
        })
    });
    let batch = DeliveryBatch { items: forged.collect() };
    let body = json!({"client_msg_id": new_id(), "conversation_id": conversation, "text": "x"});
    let deliver = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(sink.deliver(batch).now_or_never(), Some(Ok(())));
    };
    let (answer, ()) = tokio::join!(process.post("/v1/messages", &alice.token, body), deliver);
    answer.is(202);
}
