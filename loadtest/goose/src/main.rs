//! REST load on Roost: people who register, log in, make a conversation, write to it and page through what was written.
//!
//!     cargo run --release --manifest-path loadtest/goose/Cargo.toml -- --host http://127.0.0.1:8080 --users 20 --run-time 30s

use std::process::ExitCode;
use std::time::Duration;

use goose::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

const PASSWORD: &str = "a long password";
/// Attempts at a request that the server asks to repeat.
const ATTEMPTS_MAX: u32 = 30;

#[tokio::main]
async fn main() -> Result<ExitCode, GooseError> {
    let metrics = GooseAttack::initialize()?
        .register_scenario(
            scenario!("Writer")
                .set_wait_time(Duration::from_millis(200), Duration::from_millis(800))?
                .register_transaction(transaction!(register).set_name("register").set_on_start())
                .register_transaction(transaction!(write).set_name("write").set_weight(6)?)
                .register_transaction(transaction!(read_back).set_name("read back").set_weight(3)?)
                .register_transaction(transaction!(list).set_name("list").set_weight(1)?),
        )
        .register_scenario(
            scenario!("Returner")
                .set_wait_time(Duration::from_secs(2), Duration::from_secs(5))?
                .register_transaction(transaction!(register).set_name("register").set_on_start())
                .register_transaction(transaction!(log_in).set_name("log in"))
                .register_transaction(transaction!(refresh).set_name("refresh")),
        )
        .execute()
        .await?;
    let failed: usize = metrics.requests.values().map(|request| request.fail_count).sum();
    let made: usize = metrics.requests.values().map(|request| request.success_count).sum();
    let wrong: usize = metrics.transactions.iter().flatten().map(|transaction| transaction.fail_count).sum();
    println!("{}", json!({ "requests": made, "failed_requests": failed, "failed_transactions": wrong }));
    Ok(if made > 0 && failed == 0 && wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Who a goose user is.
#[derive(Clone)]
struct Person {
    name: String,
    tokens: Tokens,
    conversation_id: String,
    /// The newest message of theirs, and how many there are.
    last_seq: u64,
    written: u64,
}

#[derive(Clone, Deserialize)]
struct Tokens {
    user_id: String,
    access_token: String,
    refresh_token: String,
}

/// Two accounts, and their conversation.
async fn register(user: &mut GooseUser) -> TransactionResult {
    let (name, peer) = (new_name(), new_name());
    let tokens = sign_up(user, &name).await?;
    let other = sign_up(user, &peer).await?;
    let body = json!({ "client_msg_id": Uuid::now_v7(), "kind": "direct", "members": [other.user_id] });
    let made = send(user, "/v1/conversations", Some(&tokens.access_token), &body, &[201, 200]).await?;
    let conversation_id = made["conversation_id"].as_str().unwrap_or_default().to_owned();
    let last_seq = made["seq"].as_u64().unwrap_or(0);
    user.set_session_data(Person { name, tokens, conversation_id, last_seq, written: 0 });
    Ok(())
}

async fn log_in(user: &mut GooseUser) -> TransactionResult {
    let name = user.get_session_data_unchecked::<Person>().name.clone();
    let body = json!({ "name": name, "password": PASSWORD, "device_label": "goose" });
    let answer = send(user, "/v1/sessions", None, &body, &[200]).await?;
    keep_tokens(user, answer)
}

/// A refresh token is used up by this: the next one counts.
async fn refresh(user: &mut GooseUser) -> TransactionResult {
    let token = user.get_session_data_unchecked::<Person>().tokens.refresh_token.clone();
    let answer = send(user, "/v1/tokens", None, &json!({ "refresh_token": token }), &[200]).await?;
    keep_tokens(user, answer)
}

async fn write(user: &mut GooseUser) -> TransactionResult {
    let person = user.get_session_data_unchecked::<Person>();
    let (token, before) = (person.tokens.access_token.clone(), person.last_seq);
    let body = json!({
        "client_msg_id": Uuid::now_v7(),
        "conversation_id": person.conversation_id,
        "text": format!("message {}", person.written + 1),
    });
    let answer = send(user, "/v1/messages", Some(&token), &body, &[201]).await?;
    let seq = answer["seq"].as_u64().unwrap_or(0);
    // Nobody else writes here: numbers are without holes.
    if seq != before + 1 {
        return wrong(&format!("a message got seq {seq} after {before}"));
    }
    let person = user.get_session_data_unchecked_mut::<Person>();
    (person.last_seq, person.written) = (seq, person.written + 1);
    Ok(())
}

/// Pages through the whole conversation, and finds every message once.
async fn read_back(user: &mut GooseUser) -> TransactionResult {
    let person = user.get_session_data_unchecked::<Person>();
    let (token, last_seq) = (person.tokens.access_token.clone(), person.last_seq);
    let conversation_id = person.conversation_id.clone();
    let mut after = 0;
    loop {
        let path = format!("/v1/messages?conversation_id={conversation_id}&after={after}&limit=50");
        let page = get(user, &path, "/v1/messages", &token).await?;
        for message in page["messages"].as_array().map(Vec::as_slice).unwrap_or_default() {
            if message["seq"].as_u64() != Some(after + 1) {
                return wrong(&format!("after seq {after} came {}", message["seq"]));
            }
            after += 1;
        }
        if page["more"] != true {
            break;
        }
    }
    if after == last_seq { Ok(()) } else { wrong(&format!("the pages end at seq {after}, not at {last_seq}")) }
}

async fn list(user: &mut GooseUser) -> TransactionResult {
    let person = user.get_session_data_unchecked::<Person>();
    let (token, wanted, last_seq) =
        (person.tokens.access_token.clone(), person.conversation_id.clone(), person.last_seq);
    let answer = get(user, "/v1/conversations", "/v1/conversations", &token).await?;
    let found = answer["conversations"].as_array().into_iter().flatten().find(|one| one["conversation_id"] == wanted);
    match found.and_then(|one| one["last_seq"].as_u64()) {
        Some(seq) if seq == last_seq => Ok(()),
        other => wrong(&format!("the list says {other:?} of a conversation at seq {last_seq}")),
    }
}

async fn sign_up(user: &mut GooseUser, name: &str) -> Result<Tokens, Box<TransactionError>> {
    let answer = send(user, "/v1/accounts", None, &json!({ "name": name, "password": PASSWORD }), &[201]).await?;
    tokens(answer)
}

fn keep_tokens(user: &mut GooseUser, answer: Value) -> TransactionResult {
    user.get_session_data_unchecked_mut::<Person>().tokens = tokens(answer)?;
    Ok(())
}

fn tokens(answer: Value) -> Result<Tokens, Box<TransactionError>> {
    serde_json::from_value(answer).or_else(|error| wrong(&format!("tokens: {error}")))
}

/// Posts, and repeats what is asked to be repeated: the same body, so that it is done once.
async fn send(
    user: &mut GooseUser,
    path: &str,
    token: Option<&str>,
    body: &Value,
    wanted: &[u16],
) -> Result<Value, Box<TransactionError>> {
    for _ in 0..ATTEMPTS_MAX {
        let mut builder = user.get_request_builder(&GooseMethod::Post, path)?.json(body);
        if let Some(token) = token {
            builder = builder.bearer_auth(token);
        }
        let request = GooseRequest::builder().path(path).set_request_builder(builder).build();
        let mut goose = user.request(request).await?;
        let response = goose.response?;
        let status = response.status().as_u16();
        let answer: Value = response.json().await?;
        match status {
            status if wanted.contains(&status) => return Ok(answer),
            202 => tokio::time::sleep(Duration::from_millis(200)).await,
            429 | 503 => {
                // An answer of a server that is busy, and no failure.
                user.set_success(&mut goose.request)?;
                let wait = answer["retry_after_ms"].as_u64().unwrap_or(1_000);
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            other => return wrong(&format!("{path}: {other} {answer}")),
        }
    }
    wrong(&format!("{path}: asked to repeat {ATTEMPTS_MAX} times"))
}

async fn get(user: &mut GooseUser, path: &str, name: &str, token: &str) -> Result<Value, Box<TransactionError>> {
    let builder = user.get_request_builder(&GooseMethod::Get, path)?.bearer_auth(token);
    let request = GooseRequest::builder().path(path).name(name).set_request_builder(builder).build();
    let response = user.request(request).await?.response?;
    let status = response.status();
    if !status.is_success() {
        return wrong(&format!("{name}: {status}"));
    }
    Ok(response.json().await?)
}

fn new_name() -> String {
    format!("goose-{}", Uuid::now_v7().simple())
}

/// What the server answered is not what it promises.
fn wrong<T>(what: &str) -> Result<T, Box<TransactionError>> {
    Err(Box::new(TransactionError::Custom(what.to_owned())))
}
