//! Every path of the REST interface, and what holds for all of them.

mod accounts;
mod conversations;
mod messages;
mod operations;
mod users;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use futures::FutureExt as _;
use http::header::{self, HeaderName, HeaderValue};
use roost_protocol::ErrorCode;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use crate::config::REQUEST_MS_MAX;
use crate::problem::Problem;
use crate::{Api, Probes};

/// Builds the router. Paths stand here and, for the document, on the handlers; a test compares the two.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/accounts", post(accounts::register))
        .route("/v1/sessions", post(accounts::log_in))
        .route("/v1/sessions/current", delete(accounts::log_out))
        .route("/v1/tokens", post(accounts::refresh))
        .route("/v1/users", get(users::by_name))
        .route("/v1/users/{user_id}", get(users::by_id))
        .route("/v1/conversations", post(conversations::create).get(conversations::list))
        .route("/v1/conversations/{conversation_id}/members", get(conversations::members))
        .route("/v1/messages", post(messages::send).get(messages::history))
        .route("/v1/openapi.json", get(operations::openapi))
        .route("/.well-known/jwks.json", get(operations::jwks))
        .with_state(Arc::clone(&api))
        .merge(operations_routes(api.probes.clone()))
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::from_fn(for_every_request))
}

/// Only what operators ask: for processes that hold no REST interface of their own.
pub(crate) fn operations_router(probes: Probes) -> Router {
    operations_routes(probes)
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::from_fn(for_every_request))
}

fn operations_routes(probes: Probes) -> Router {
    Router::new()
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics))
        .route("/", get(operations::front_page))
        .with_state(probes)
}

/// The document that `/v1/openapi.json` serves.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    #[derive(OpenApi)]
    #[openapi(
        info(
            title = "Roost",
            description = "Accounts, tokens, conversations and history. Live messages come over /v1/connect.",
            license(name = "Apache-2.0", identifier = "Apache-2.0"),
        ),
        paths(
            accounts::register,
            accounts::log_in,
            accounts::log_out,
            accounts::refresh,
            users::by_name,
            users::by_id,
            conversations::create,
            conversations::list,
            conversations::members,
            messages::send,
            messages::history,
            operations::openapi,
            operations::jwks,
            operations::healthz,
            operations::readyz,
            operations::metrics,
            operations::front_page,
        ),
        components(schemas(Problem))
    )]
    struct Document;
    let mut document = Document::openapi();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("bearer", bearer);
    document
}

/// A limit of time, no panic that ends a connection, the headers that every answer has, and the metrics.
async fn for_every_request(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let answered =
        tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), AssertUnwindSafe(next.run(request)).catch_unwind());
    let mut response = match answered.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Problem::internal(&"a handler panicked").into_response(),
        Err(_) => Problem::new(ErrorCode::Deadline, "The request took too long.").into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    let method = if known_method(method.as_str()) { method.to_string() } else { "other".to_owned() };
    let status = response.status().as_u16().to_string();
    metrics::counter!("roost_api_requests_total", "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("roost_api_request_seconds", "route" => route).record(started.elapsed().as_secs_f64());
    response
}

/// Answers are data for programs: nothing is sniffed, framed, run or kept, unless a handler says otherwise.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
];

/// A metric's labels are not for clients to choose.
fn known_method(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS")
}
