//! Finding other users, by exact name or by id.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use roost_ports::store::Account;
use roost_protocol::UserId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Api;
use crate::extract::{Caller, Params, PathId};
use crate::names;
use crate::problem::{Problem, Refusals};

/// A user as others see them.
#[derive(Serialize, ToSchema)]
pub(crate) struct User {
    /// The id.
    #[schema(value_type = uuid::Uuid)]
    user_id: UserId,
    /// The name.
    name: String,
}

impl From<Account> for User {
    fn from(account: Account) -> Self {
        Self { user_id: account.user_id, name: account.name }
    }
}

/// Whom to find.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ByName {
    /// The whole name, in any case.
    name: String,
}

/// Finds a user by the whole name.
#[utoipa::path(get, path = "/v1/users", operation_id = "find_user", params(ByName), security(("bearer" = [])),
    responses((status = 200, description = "The user.", body = User), Refusals))]
pub(crate) async fn by_name(
    State(api): State<Arc<Api>>,
    Caller(_caller): Caller,
    Params(asked): Params<ByName>,
) -> Result<Json<User>, Problem> {
    let name = names::account_name(&asked.name).map_err(|_| Problem::not_found())?;
    Ok(Json(api.ports.store.account_by_name(&name).await?.into()))
}

/// Finds a user by id.
#[utoipa::path(get, path = "/v1/users/{user_id}", operation_id = "get_user", security(("bearer" = [])),
    params(("user_id" = uuid::Uuid, Path, description = "The user's id.")),
    responses((status = 200, description = "The user.", body = User), Refusals))]
pub(crate) async fn by_id(
    State(api): State<Arc<Api>>,
    Caller(_caller): Caller,
    PathId(user): PathId<UserId>,
) -> Result<Json<User>, Problem> {
    Ok(Json(api.ports.store.account(user).await?.into()))
}
