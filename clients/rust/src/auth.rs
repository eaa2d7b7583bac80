//! Access tokens: where they come from, and how a new one is got.

use std::time::Duration;

use crate::client::Credentials;
use crate::rest::{Rest, RestError, Tokens};

/// Why there is no new token.
#[derive(Debug)]
pub(crate) enum RenewError {
    /// A person has to log in.
    Refused(String),
    /// The server did not answer, or wants to be asked later.
    Later(Option<Duration>, String),
}

/// The tokens of one client and what they can be renewed from.
#[derive(Clone)]
pub(crate) struct Auth {
    rest: Rest,
    credentials: Credentials,
    access_token: String,
    tokens: Option<Tokens>,
}

impl Auth {
    /// Logs in if the credentials are a name and a password.
    pub(crate) async fn start(rest: Rest, credentials: Credentials) -> Result<Self, RestError> {
        let tokens = match &credentials {
            Credentials::AccessToken(_) => None,
            Credentials::Tokens(tokens) => Some(tokens.clone()),
            Credentials::Password { name, password, device_label } => {
                Some(rest.log_in(name, password, device_label).await?)
            }
        };
        let access_token = match (&credentials, &tokens) {
            (Credentials::AccessToken(token), _) => token.clone(),
            (_, Some(tokens)) => tokens.access_token.clone(),
            (_, None) => String::new(),
        };
        Ok(Self { rest, credentials, access_token, tokens })
    }

    pub(crate) fn access_token(&self) -> &str {
        &self.access_token
    }

    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// Whether there is something to renew from.
    pub(crate) fn can_renew(&self) -> bool {
        self.tokens.is_some()
    }

    /// New tokens: by the refresh token, else by the password.
    pub(crate) async fn renew(self) -> Result<Tokens, RenewError> {
        let Some(tokens) = &self.tokens else {
            return Err(RenewError::Refused("the access token cannot be renewed".to_owned()));
        };
        let refused = match self.rest.refresh(&tokens.refresh_token).await {
            Ok(tokens) => return Ok(tokens),
            Err(error) => as_renewal(error)?,
        };
        match &self.credentials {
            Credentials::Password { name, password, device_label } => {
                match self.rest.log_in(name, password, device_label).await {
                    Ok(tokens) => Ok(tokens),
                    Err(error) => Err(RenewError::Refused(as_renewal(error)?)),
                }
            }
            _ => Err(RenewError::Refused(refused)),
        }
    }

    pub(crate) fn replace(&mut self, tokens: Tokens) {
        self.access_token.clone_from(&tokens.access_token);
        self.tokens = Some(tokens);
    }
}

/// The reason of a refusal, or an error that is worth another attempt.
fn as_renewal(error: RestError) -> Result<String, RenewError> {
    match error {
        RestError::Refused { status, detail, .. } if (400..500).contains(&status) && status != 429 => Ok(detail),
        RestError::Refused { retry_after, detail, .. } => Err(RenewError::Later(retry_after, detail)),
        other => Err(RenewError::Later(None, other.to_string())),
    }
}
