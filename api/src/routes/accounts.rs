//! Registration, login, refresh and logout.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use roost_ports::store::{Account, NewRefreshToken, Rotation, StoreError};
use roost_protocol::{DeviceId, ErrorCode, TimeMs, UserId, limits};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::Api;
use crate::extract::{Caller, JsonBody, Peer};
use crate::names;
use crate::passwords::Passwords;
use crate::problem::{Problem, Refusals};

/// A name and a password.
#[derive(Deserialize, ToSchema)]
pub(crate) struct Credentials {
    /// 2 to 64 bytes of letters, digits and `. _ -`; unique without case.
    name: String,
    /// 8 to 1024 bytes.
    password: String,
    /// What the user calls this device.
    #[serde(default)]
    device_label: Option<String>,
}

/// The refresh token to be exchanged.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RefreshRequest {
    /// As it was given last. Each can be used once: using one twice ends the device's login.
    refresh_token: String,
}

/// A device's login.
#[derive(Serialize, ToSchema)]
pub(crate) struct Login {
    /// The user.
    #[schema(value_type = uuid::Uuid)]
    user_id: UserId,
    /// The device that this login made.
    #[schema(value_type = uuid::Uuid)]
    device_id: DeviceId,
    /// For `Authorization: Bearer` and for `connect`.
    access_token: String,
    /// For the next access token.
    refresh_token: String,
    /// When the access token ends, in Unix milliseconds.
    #[schema(value_type = u64)]
    expires_at: TimeMs,
}

/// Makes an account and logs its first device in.
#[utoipa::path(post, path = "/v1/accounts", operation_id = "register", request_body = Credentials,
    responses((status = 201, description = "The account and its first device.", body = Login), Refusals))]
pub(crate) async fn register(
    State(api): State<Arc<Api>>,
    Peer(peer): Peer,
    JsonBody(given): JsonBody<Credentials>,
) -> Result<(StatusCode, Json<Login>), Problem> {
    let name = names::account_name(&given.name)?;
    let label = names::device_label(given.device_label)?;
    Passwords::check(&given.password)?;
    api.limiter.address("register", peer, api.config.rates.register_per_address).await?;
    let password_hash = api.passwords.hash(given.password).await?;
    let account = Account { user_id: UserId::new(), name, password_hash, created: api.ports.clock.now_ms() };
    match api.ports.store.create_account(&account).await {
        Ok(()) => {}
        Err(StoreError::AlreadyExists) => {
            return Err(Problem::new(ErrorCode::AlreadyExists, "name: taken"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok((StatusCode::CREATED, Json(new_device(&api, account.user_id, &label).await?)))
}

/// Logs a new device in.
#[utoipa::path(post, path = "/v1/sessions", operation_id = "log_in", request_body = Credentials,
    responses((status = 200, description = "The new device.", body = Login), Refusals))]
pub(crate) async fn log_in(
    State(api): State<Arc<Api>>,
    Peer(peer): Peer,
    JsonBody(given): JsonBody<Credentials>,
) -> Result<Json<Login>, Problem> {
    let label = names::device_label(given.device_label)?;
    api.limiter.address("login", peer, api.config.rates.login_per_address).await?;
    // What no account can have is refused like what no account has, in the same time.
    let name = names::account_name(&given.name).ok();
    let plausible = given.password.len() <= limits::PASSWORD_BYTES_MAX;
    let account = match name {
        Some(name) if plausible => {
            api.limiter.name("login", &name, api.config.rates.login_per_name).await?;
            match api.ports.store.account_by_name(&name).await {
                Ok(account) => Some(account),
                Err(StoreError::NotFound) => None,
                Err(error) => return Err(error.into()),
            }
        }
        _ => None,
    };
    let password = if plausible { given.password } else { String::new() };
    let hash = account.as_ref().map(|account| account.password_hash.clone());
    let verified = api.passwords.verify(password, hash).await?;
    match account {
        Some(account) if verified => Ok(Json(new_device(&api, account.user_id, &label).await?)),
        _ => Err(Problem::new(ErrorCode::Unauthenticated, "The name or the password is wrong.")),
    }
}

/// Exchanges a refresh token for a new one and a new access token.
#[utoipa::path(post, path = "/v1/tokens", operation_id = "refresh", request_body = RefreshRequest,
    responses((status = 200, description = "New tokens of the same device.", body = Login), Refusals))]
pub(crate) async fn refresh(
    State(api): State<Arc<Api>>,
    Peer(peer): Peer,
    JsonBody(given): JsonBody<RefreshRequest>,
) -> Result<Json<Login>, Problem> {
    api.limiter.address("refresh", peer, api.config.rates.refresh_per_address).await?;
    let refused = || Problem::new(ErrorCode::Unauthenticated, "The refresh token is not valid; log in again.");
    let old = refresh_token_hash(&given.refresh_token).ok_or_else(refused)?;
    // A Store or key that fails after the exchange would cost the login: look for the key first.
    api.keys.prepare().await?;
    let now_ms = api.ports.clock.now_ms();
    let (refresh_token, new) = new_refresh_token(now_ms);
    let (user, device) = match api.ports.store.rotate_refresh_token(&old, &new, now_ms).await? {
        Rotation::Rotated { user, device } => (user, device),
        Rotation::Reused => {
            tracing::warn!("a refresh token was used twice; its login has ended");
            metrics::counter!("roost_api_refresh_reuses_total").increment(1);
            return Err(refused());
        }
        Rotation::Refused => return Err(refused()),
    };
    Ok(Json(login(&api, user, device, refresh_token).await?))
}

/// Logs this device out: its refresh tokens end now, its access token within its quarter of an hour.
#[utoipa::path(delete, path = "/v1/sessions/current", operation_id = "log_out", security(("bearer" = [])),
    responses((status = 204, description = "Logged out."), Refusals))]
pub(crate) async fn log_out(State(api): State<Arc<Api>>, Caller(caller): Caller) -> Result<StatusCode, Problem> {
    match api.ports.store.revoke_device(caller.user_id, caller.device_id).await {
        // Gone already: that is what was asked for.
        Ok(()) | Err(StoreError::NotFound) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into()),
    }
}

async fn new_device(api: &Api, user: UserId, label: &str) -> Result<Login, Problem> {
    let now_ms = api.ports.clock.now_ms();
    let device = DeviceId::new();
    let (refresh_token, stored) = new_refresh_token(now_ms);
    let login = login(api, user, device, refresh_token).await?;
    api.ports.store.create_device(user, device, label, &stored, now_ms).await?;
    Ok(login)
}

async fn login(api: &Api, user: UserId, device: DeviceId, refresh_token: String) -> Result<Login, Problem> {
    let access = api.keys.sign(user, device).await?;
    Ok(Login {
        user_id: user,
        device_id: device,
        access_token: access.token,
        refresh_token,
        expires_at: access.expires_at,
    })
}

fn new_refresh_token(now_ms: TimeMs) -> (String, NewRefreshToken) {
    let secret: [u8; 32] = rand::random();
    let stored = NewRefreshToken { hash: hash_of(&secret), expires: now_ms + limits::REFRESH_TOKEN_MS };
    (URL_SAFE_NO_PAD.encode(secret), stored)
}

fn refresh_token_hash(token: &str) -> Option<[u8; 32]> {
    let mut secret = [0u8; 32];
    // The exact length comes first; the decoder refuses every second way of writing the same bytes.
    if token.len() != 43 || URL_SAFE_NO_PAD.decode_slice(token, &mut secret).ok()? != secret.len() {
        return None;
    }
    Some(hash_of(&secret))
}

/// 256 random bits need no slow hash, and are found by their hash: no comparison leaks where they differ.
fn hash_of(secret: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(secret).into()
}
