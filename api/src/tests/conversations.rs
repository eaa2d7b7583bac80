//! Creating conversations, and who sees them.

use std::sync::atomic::Ordering;

use roost_protocol::{ConversationId, UserId};
use serde_json::json;

use super::process::{new_id, process};
use super::world::LogMode;

#[tokio::test]
async fn a_pair_has_one_direct_conversation_whoever_asks() {
    let process = process();
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    let body = json!({"client_msg_id": new_id(), "kind": "direct", "members": [bob.user_id]});
    let made = process.post("/v1/conversations", &alice.token, body.clone()).await;
    assert_eq!(made.is(201).json()["seq"], 1);
    let appended = process.world.appended.load(Ordering::Relaxed);
    process.post("/v1/conversations", &alice.token, body).await.is(200);
    let body = json!({"client_msg_id": new_id(), "kind": "direct", "members": [alice.user_id, bob.user_id]});
    let there = process.post("/v1/conversations", &bob.token, body).await;
    assert_eq!(there.is(200).json(), made.json());
    assert_eq!(process.world.appended.load(Ordering::Relaxed), appended, "nothing need be logged for it");
    let id = |text: &str| text.parse::<UserId>().expect("an id");
    let expected = ConversationId::direct(id(&alice.user_id), id(&bob.user_id)).to_string();
    assert_eq!(made.json()["conversation_id"], expected);
    let list = process.get("/v1/conversations", &alice.token).await.is(200).json();
    assert_eq!(list["next"], json!(null));
    assert_eq!(
        list["conversations"][0],
        json!({
            "conversation_id": expected, "kind": "direct", "title": null, "first_seq": 1, "last_seq": 1, "read_seq": 0,
            "delivered_seq": 0, "peer": bob.user_id,
        })
    );
}

#[tokio::test]
async fn a_group_is_made_once_however_often_it_is_tried() {
    let process = process();
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    let name = new_id();
    let body =
        json!({"client_msg_id": name, "kind": "group", "title": "Köln 🎉", "members": [bob.user_id, bob.user_id]});
    process.world.set_mode(LogMode::NobodyApplies);
    let unknown = process.post("/v1/conversations", &alice.token, body.clone()).await;
    assert!(unknown.is(202).headers.contains_key("retry-after"));
    process.world.set_mode(LogMode::Applies);
    let made = process.post("/v1/conversations", &alice.token, body.clone()).await;
    assert_eq!(made.is(201).json()["conversation_id"], unknown.json()["conversation_id"]);
    let again = process.post("/v1/conversations", &alice.token, body).await;
    assert_eq!(again.is(201).json(), made.json());
    let other = json!({"client_msg_id": name, "kind": "group", "title": "other", "members": [bob.user_id]});
    let other = process.post("/v1/conversations", &alice.token, other).await;
    assert_eq!(other.is(409).code(), "idempotency_mismatch");
    // Bob's creation under the same name is another group.
    let bobs = json!({"client_msg_id": name, "kind": "group", "members": [alice.user_id]});
    let bobs = process.post("/v1/conversations", &bob.token, bobs).await;
    assert_ne!(bobs.is(201).json()["conversation_id"], made.json()["conversation_id"]);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let process = process();
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    for _ in 0..5 {
        let body = json!({"client_msg_id": new_id(), "kind": "group", "members": [bob.user_id]});
        process.post("/v1/conversations", &alice.token, body).await.is(201);
    }
    let mut seen = Vec::new();
    let mut path = "/v1/conversations?limit=2".to_owned();
    loop {
        let page = process.get(&path, &bob.token).await.is(200).json();
        let ids = page["conversations"].as_array().expect("a list").iter();
        seen.extend(ids.map(|conversation| conversation["conversation_id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/conversations?limit=2&after={next}");
    }
    assert_eq!(seen.len(), 5);
    let path = format!("/v1/conversations/{}/members", seen[0]);
    let members = process.get(&path, &bob.token).await.is(200).json();
    assert_eq!(members["members"].as_array().expect("a list").len(), 2);
    let first = process.get(&format!("{path}?limit=1"), &bob.token).await.is(200).json();
    let path = format!("{path}?limit=1&after={}", first["next"].as_str().expect("an id"));
    let rest = process.get(&path, &bob.token).await.is(200).json();
    assert_ne!(first["members"][0], rest["members"][0]);
    assert_eq!(rest["next"], json!(null));
}

#[tokio::test]
async fn creations_that_cannot_be() {
    let process = process();
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    let nobody = UserId::new().to_string();
    let many: Vec<String> = (0..10_000).map(|_| new_id()).collect();
    let nil = "00000000-0000-0000-0000-000000000000";
    let simple = bob.user_id.replace('-', "");
    for (status, body) in [
        (400, json!({"client_msg_id": new_id(), "kind": "direct", "members": []})),
        (400, json!({"client_msg_id": new_id(), "kind": "direct", "members": [alice.user_id]})),
        (400, json!({"client_msg_id": new_id(), "kind": "direct", "members": [bob.user_id, nobody]})),
        (400, json!({"client_msg_id": new_id(), "kind": "direct", "title": "x", "members": [bob.user_id]})),
        (400, json!({"client_msg_id": new_id(), "kind": "group", "members": []})),
        (400, json!({"client_msg_id": new_id(), "kind": "group", "members": many})),
        (400, json!({"client_msg_id": new_id(), "kind": "group", "title": "a\u{202e}b", "members": [bob.user_id]})),
        (400, json!({"client_msg_id": new_id(), "kind": "group", "title": "x".repeat(257), "members": [bob.user_id]})),
        (400, json!({"client_msg_id": new_id(), "kind": "room", "members": [bob.user_id]})),
        (400, json!({"client_msg_id": nil, "kind": "direct", "members": [bob.user_id]})),
        (400, json!({"client_msg_id": new_id(), "kind": "direct", "members": [simple]})),
        (400, json!({"kind": "direct", "members": [bob.user_id]})),
        (404, json!({"client_msg_id": new_id(), "kind": "direct", "members": [nobody]})),
        (404, json!({"client_msg_id": new_id(), "kind": "group", "members": [nobody, bob.user_id]})),
    ] {
        let text = body.to_string();
        let answer = process.post("/v1/conversations", &alice.token, body).await;
        let code = answer.is(status).code();
        assert_eq!(code, if status == 400 { "invalid_field" } else { "not_found" }, "{}", &text[..text.len().min(200)]);
    }
}

#[tokio::test]
async fn s28_a_foreign_conversation_is_like_one_that_does_not_exist() {
    let process = process();
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    let eve = process.register("eve").await;
    let foreign = process.direct(&alice, &bob).await;
    let nowhere = ConversationId::new().to_string();
    for make in [
        |id: &str| format!("/v1/conversations/{id}/members"),
        |id: &str| format!("/v1/messages?conversation_id={id}&after=0"),
    ] {
        let (theirs, nobodys) =
            (process.get(&make(&foreign), &eve.token).await, process.get(&make(&nowhere), &eve.token).await);
        assert_eq!(theirs.is(404).text, nobodys.is(404).text);
    }
    let send = |id: &str| json!({"client_msg_id": new_id(), "conversation_id": id, "text": "hello"});
    let theirs = process.post("/v1/messages", &eve.token, send(&foreign)).await;
    let nobodys = process.post("/v1/messages", &eve.token, send(&nowhere)).await;
    assert_eq!(theirs.is(404).text, nobodys.is(404).text);
    let page = process.get(&format!("/v1/messages?conversation_id={foreign}&after=0"), &alice.token).await;
    assert_eq!(page.is(200).json()["messages"].as_array().expect("a list").len(), 1, "no side effect");
    assert_eq!(process.get("/v1/conversations", &eve.token).await.json()["conversations"], json!([]));
}
