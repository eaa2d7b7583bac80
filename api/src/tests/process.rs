//! Api processes in a world, and the requests that tests make of them.

use std::sync::Arc;

use ::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::body::Body;
use http_body_util::BodyExt as _;
use roost_protocol::records::Endpoint;
use roost_protocol::{ClientMsgId, Incarnation};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::world::World;
use crate::{Api, Config, PasswordCost, Ports, Probes};

/// An answer of the api.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// The code of a problem, after checking that it is a whole one.
    #[track_caller]
    pub(super) fn code(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16(), "{}", self.text);
        for field in ["type", "title", "detail", "code"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", self.text);
        }
        let retry_after = self.headers.contains_key(header::RETRY_AFTER);
        assert_eq!(problem.get("retry_after_ms").is_some(), retry_after, "{}", self.text);
        problem["code"].as_str().expect("a code").to_owned()
    }

    #[track_caller]
    pub(super) fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }
}

/// A logged-in user.
pub(super) struct Person {
    pub(super) user_id: String,
    pub(super) device_id: String,
    pub(super) token: String,
    pub(super) refresh_token: String,
}

impl Person {
    pub(super) fn of(answer: &Answer) -> Self {
        let login = answer.json();
        let field = |name: &str| login[name].as_str().expect("a text").to_owned();
        Self {
            user_id: field("user_id"),
            device_id: field("device_id"),
            token: field("access_token"),
            refresh_token: field("refresh_token"),
        }
    }
}

/// One api process in a world.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) api: Arc<Api>,
    pub(super) world: Arc<World>,
}

pub(super) fn config() -> Config {
    let endpoint = Endpoint { address: String::new(), incarnation: Incarnation::new() };
    let mut config = Config::new(endpoint);
    config.password = PasswordCost { memory_kib: 64, passes: 1, parallel_max: 4, waiting_max: 64 };
    config.verdict_ms_max = 200;
    config
}

/// A new world with one process in it.
pub(super) fn process() -> Process {
    process_of(&World::new(), config())
}

/// One more process in a world.
pub(super) fn process_of(world: &Arc<World>, config: Config) -> Process {
    process_with(world, config, Probes::default())
}

pub(super) fn process_with(world: &Arc<World>, config: Config, probes: Probes) -> Process {
    let ports = Ports { log: world.clone(), store: world.clone(), registry: world.clone(), clock: world.clone() };
    let api = Api::new(config, ports, probes);
    world.sinks.lock().push(api.sink());
    Process { api, world: Arc::clone(world) }
}

impl Process {
    pub(super) async fn request(&self, request: Request<Body>) -> Answer {
        let response = crate::routes::router(Arc::clone(&self.api)).oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> Answer {
        let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        self.request(request.body(Body::empty()).expect("a request")).await
    }

    pub(super) async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.post_raw(path, token, body.to_string()).await
    }

    pub(super) async fn post_raw(&self, path: &str, token: &str, body: impl Into<Body>) -> Answer {
        let mut request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        self.request(request.body(body.into()).expect("a request")).await
    }

    pub(super) async fn delete(&self, path: &str, token: &str) -> Answer {
        let request = Request::builder().method(Method::DELETE).uri(path);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        self.request(request.body(Body::empty()).expect("a request")).await
    }

    pub(super) async fn register(&self, name: &str) -> Person {
        let answer = self.post("/v1/accounts", "", json!({"name": name, "password": "correct horse"})).await;
        Person::of(answer.is(201))
    }

    /// The id of the direct conversation of two, which exists after it.
    pub(super) async fn direct(&self, one: &Person, other: &Person) -> String {
        let body = json!({"client_msg_id": new_id(), "kind": "direct", "members": [other.user_id]});
        let answer = self.post("/v1/conversations", &one.token, body).await;
        assert!(answer.status.is_success(), "{}", answer.text);
        answer.json()["conversation_id"].as_str().expect("an id").to_owned()
    }
}

pub(super) fn new_id() -> String {
    ClientMsgId::new().to_string()
}
