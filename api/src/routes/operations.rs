//! For those who run Roost and for programs: health, readiness, metrics, keys, the document, and a first page.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures::future::join_all;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::{Problem, Refusals};
use crate::{Api, Probes};

/// How long one readiness check may take.
const CHECK_MS_MAX: u64 = 2_000;

/// Whether the process lives: always yes, or no answer.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz",
    responses((status = 200, description = "The process lives.", body = String, content_type = "text/plain")))]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether this process should get requests, and what stands in the way.
#[derive(Serialize, ToSchema)]
pub(crate) struct Readiness {
    /// All checks passed.
    ready: bool,
    /// The names of the checks that failed.
    failed: Vec<&'static str>,
}

/// Whether this process should get requests.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", responses(
    (status = 200, description = "Ready.", body = Readiness),
    (status = 503, description = "Not ready: the failed checks are named, their reasons are in the log.",
        body = Readiness)))]
pub(crate) async fn readyz(State(probes): State<Probes>) -> Response {
    let checks = probes.readiness.iter().map(|(name, check)| async move {
        let result = tokio::time::timeout(Duration::from_millis(CHECK_MS_MAX), check()).await;
        let reason = match result {
            Ok(Ok(())) => return None,
            Ok(Err(reason)) => reason,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(check = name, %reason, "not ready");
        Some(*name)
    });
    let failed: Vec<&'static str> = join_all(checks).await.into_iter().flatten().collect();
    let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: failed.is_empty(), failed })).into_response()
}

/// The metrics in Prometheus' text form.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", responses(
    (status = 200, description = "The metrics.", body = String, content_type = "text/plain"), Refusals))]
pub(crate) async fn metrics(State(probes): State<Probes>) -> Result<Response, Problem> {
    let text = probes.metrics.as_ref().ok_or_else(Problem::not_found)?();
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// The published signing keys.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the token module writes it; this describes it")]
pub(crate) struct KeySetDocument {
    /// RFC 7517 keys: OKP, Ed25519.
    #[schema(value_type = Vec<Object>)]
    keys: Vec<()>,
}

/// The public keys of the access tokens.
#[utoipa::path(get, path = "/.well-known/jwks.json", operation_id = "jwks", responses(
    (status = 200, description = "The keys (RFC 7517).", body = KeySetDocument), Refusals))]
pub(crate) async fn jwks(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    // Shorter than a new key is published before its first use.
    let cache = [(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60"))];
    Ok((cache, Json(api.keys.jwks().await?)).into_response())
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "openapi", responses(
    (status = 200, description = "The document.", body = Object, content_type = "application/json")))]
pub(crate) async fn openapi(State(api): State<Arc<Api>>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], api.openapi_json.clone()).into_response()
}

/// What this is, for a person who opens the address.
#[utoipa::path(get, path = "/", operation_id = "front_page", responses(
    (status = 200, description = "A page.", body = String, content_type = "text/html")))]
pub(crate) async fn front_page() -> axum::response::Html<&'static str> {
    axum::response::Html(include_str!("front_page.html"))
}
