//! Registration, login, refresh, logout, and how often they may be tried.

use std::sync::atomic::Ordering;

use roost_ports::registry::Rate;
use serde_json::json;

use super::process::{Person, config, process, process_of};
use super::world::World;

fn credentials(name: &str, password: &str) -> serde_json::Value {
    json!({"name": name, "password": password, "device_label": "test"})
}

#[tokio::test]
async fn an_account_is_made_once_and_logged_into_often() {
    let process = process();
    let alice = process.register("Alice").await;
    let taken = process.post("/v1/accounts", "", credentials("aLICE", "another one")).await;
    assert_eq!(taken.is(409).code(), "already_exists");
    let again = process.post("/v1/sessions", "", credentials("alice", "correct horse")).await;
    let again = Person::of(again.is(200));
    assert_eq!(again.user_id, alice.user_id);
    assert_ne!(again.device_id, alice.device_id);
    let found = process.get("/v1/users?name=ALICE", &again.token).await;
    assert_eq!(found.is(200).json(), json!({"user_id": alice.user_id, "name": "Alice"}));
    let found = process.get(&format!("/v1/users/{}", alice.user_id), &alice.token).await;
    assert_eq!(found.is(200).json()["name"], "Alice");
    let login = process.post("/v1/sessions", "", credentials("alice", "correct horse")).await;
    assert_eq!(login.json()["expires_at"], 1_800_000_000_000u64 + 15 * 60 * 1000);
    assert_eq!(login.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn nobody_learns_whether_the_name_or_the_password_was_wrong() {
    let process = process();
    process.register("alice").await;
    let wrong = process.post("/v1/sessions", "", credentials("alice", "wrong horse")).await;
    let long = "x".repeat(2_000);
    for (name, password) in [("bob", "correct horse"), ("\0", "correct horse"), ("alice", long.as_str()), ("alice", "")]
    {
        let other = process.post("/v1/sessions", "", credentials(name, password)).await;
        assert_eq!(other.is(401).text, wrong.is(401).text);
    }
    assert_eq!(wrong.code(), "unauthenticated");
}

#[tokio::test]
async fn users_are_found_by_callers_only_and_by_their_whole_name() {
    let process = process();
    let alice = process.register("alice").await;
    for path in ["/v1/users?name=ali", "/v1/users?name=%00", "/v1/users?name=%ff", "/v1/users/nobody"] {
        assert_eq!(process.get(path, &alice.token).await.is(404).code(), "not_found");
    }
    process.get("/v1/users?name=alice", "").await.is(401);
    assert_eq!(process.get("/v1/users", &alice.token).await.is(400).code(), "invalid_field");
}

#[tokio::test]
async fn s26_a_refresh_token_works_once_and_used_twice_ends_its_family() {
    let process = process();
    let first = process.register("alice").await;
    let other_device = process.post("/v1/sessions", "", credentials("alice", "correct horse")).await;
    let other_device = Person::of(other_device.is(200));
    let api = &process;
    let refresh = |token: String| async move { api.post("/v1/tokens", "", json!({"refresh_token": token})).await };
    let second = Person::of(refresh(first.refresh_token.clone()).await.is(200));
    assert_eq!((&second.user_id, &second.device_id), (&first.user_id, &first.device_id));
    assert_ne!(second.refresh_token, first.refresh_token);
    assert_eq!(refresh(first.refresh_token).await.is(401).code(), "unauthenticated");
    // The thief and the owner are both out; another device is not concerned.
    refresh(second.refresh_token).await.is(401);
    refresh(other_device.refresh_token).await.is(200);
}

#[tokio::test]
async fn a_refresh_token_ends_by_time_logout_or_nonsense() {
    let process = process();
    let alice = process.register("alice").await;
    let api = &process;
    let refresh = |token: String| async move { api.post("/v1/tokens", "", json!({"refresh_token": token})).await };
    for nonsense in ["", "x", &"A".repeat(43), &"é".repeat(43), &format!("{}A", alice.refresh_token)] {
        assert_eq!(refresh(nonsense.to_owned()).await.is(401).code(), "unauthenticated");
    }
    let old = Person::of(process.post("/v1/sessions", "", credentials("alice", "correct horse")).await.is(200));
    process.delete("/v1/sessions/current", &alice.token).await.is(204);
    process.delete("/v1/sessions/current", &alice.token).await.is(204);
    refresh(alice.refresh_token).await.is(401);
    process.world.pass_ms(roost_protocol::limits::REFRESH_TOKEN_MS);
    refresh(old.refresh_token).await.is(401);
}

#[tokio::test]
async fn s38_names_and_labels_that_deceive_or_flood() {
    let process = process();
    let tower = format!("a{}", "\u{301}".repeat(7_000));
    for name in ["a", "a\0b", "a\u{202e}b", "a\nb", "", &tower] {
        let answer = process.post("/v1/accounts", "", credentials(name, "correct horse")).await;
        assert_eq!(answer.is(400).code(), "invalid_field", "{name:?}");
    }
    let megabyte = "\u{301}".repeat(500_000);
    let answer = process.post("/v1/accounts", "", credentials(&megabyte, "correct horse")).await;
    assert_eq!(answer.is(413).code(), "body_too_large");
    let label = json!({"name": "alice", "password": "correct horse", "device_label": "a\u{202e}b"});
    process.post("/v1/accounts", "", label).await.is(400);
    for password in ["short", &"x".repeat(1_025)] {
        process.post("/v1/accounts", "", credentials("alice", password)).await.is(400);
    }
}

#[tokio::test]
async fn s39_injections_are_names_that_nobody_may_have_and_texts_that_are_kept_literally() {
    let process = process();
    let alice = process.register("alice").await;
    for name in ["' OR 1=1 --", "\"; DROP TABLE accounts", "a%0d%0aSet-Cookie: x"] {
        process.post("/v1/accounts", "", credentials(name, "correct horse")).await.is(400);
        process.post("/v1/sessions", "", credentials(name, "correct horse")).await.is(401);
    }
    let path = "/v1/users?name=%27%20OR%201%3D1%20--";
    process.get(path, &alice.token).await.is(404);
}

#[tokio::test]
async fn s40_logins_to_a_name_are_limited_over_all_processes() {
    let world = World::new();
    let mut limited = config();
    limited.rates.login_per_name = Rate { burst: 3, interval_ms: 1_000 };
    let (one, other) = (process_of(&world, limited.clone()), process_of(&world, limited));
    one.register("alice").await;
    let attempt = |process: super::process::Process| async move {
        process.post("/v1/sessions", "", credentials("alice", "wrong horse")).await
    };
    for process in [&one, &other, &one] {
        attempt(process.clone()).await.is(401);
    }
    let answer = attempt(other.clone()).await;
    assert_eq!(answer.is(429).code(), "rate_limited");
    assert_eq!(answer.json()["retry_after_ms"], 1_000);
    assert_eq!(answer.headers["retry-after"], "1");
    // Another name is not concerned, and time heals.
    one.post("/v1/sessions", "", credentials("bob", "wrong horse")).await.is(401);
    world.pass_ms(1_000);
    attempt(one).await.is(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn s40_in_parallel_on_two_processes_no_more_than_the_limit_gets_through() {
    let world = World::new();
    let mut limited = config();
    limited.rates.login_per_name = Rate { burst: 7, interval_ms: 60_000 };
    let (one, other) = (process_of(&world, limited.clone()), process_of(&world, limited));
    one.register("alice").await;
    let attempts: Vec<_> = (0..40)
        .map(|number| {
            let process = if number % 2 == 0 { one.clone() } else { other.clone() };
            tokio::spawn(async move { process.post("/v1/sessions", "", credentials("alice", "wrong horse")).await })
        })
        .collect();
    let mut through = 0;
    for attempt in attempts {
        let answer = attempt.await.expect("an answer");
        match answer.status.as_u16() {
            401 => through += 1,
            429 => assert!(answer.headers.contains_key("retry-after")),
            // Not more hashes at a time than the process can do.
            503 => {}
            other => panic!("{other}"),
        }
    }
    assert!((1..=7).contains(&through), "{through} of 7");
}

#[tokio::test]
async fn s41_without_the_registry_each_process_limits_alone() {
    let world = World::new();
    let mut limited = config();
    limited.rates.register_per_address = Rate { burst: 2, interval_ms: 1_000 };
    let process = process_of(&world, limited);
    world.registry_away.store(true, Ordering::Relaxed);
    process.register("alice").await;
    process.register("bobby").await;
    let answer = process.post("/v1/accounts", "", credentials("carol", "correct horse")).await;
    assert_eq!(answer.is(429).code(), "rate_limited");
}

#[tokio::test]
async fn one_users_requests_are_limited_and_others_are_not_concerned() {
    let world = World::new();
    let mut limited = config();
    limited.rates.requests_per_user = Rate { burst: 5, interval_ms: 1_000 };
    let process = process_of(&world, limited);
    let (alice, bob) = (process.register("alice").await, process.register("bobby").await);
    for _ in 0..5 {
        process.get("/v1/conversations", &alice.token).await.is(200);
    }
    assert_eq!(process.get("/v1/conversations", &alice.token).await.is(429).code(), "rate_limited");
    process.get("/v1/conversations", &bob.token).await.is(200);
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_keeps_its_reasons() {
    let process = process();
    let alice = process.register("alice").await;
    process.world.store_away.store(true, Ordering::Relaxed);
    let answers = [
        process.post("/v1/sessions", "", credentials("alice", "correct horse")).await,
        process.post("/v1/accounts", "", credentials("bobby", "correct horse")).await,
        process.post("/v1/tokens", "", json!({"refresh_token": alice.refresh_token})).await,
        process.get("/v1/conversations", &alice.token).await,
    ];
    for answer in answers {
        assert_eq!(answer.is(503).code(), "unavailable");
        assert!(!answer.text.contains("secret"), "{}", answer.text);
    }
    process.world.store_away.store(false, Ordering::Relaxed);
    process.post("/v1/tokens", "", json!({"refresh_token": alice.refresh_token})).await.is(200);
}
