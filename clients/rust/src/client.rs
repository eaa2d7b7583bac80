//! The handle of a running client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use roost_protocol::{ClientMsgId, ConversationId, Form};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::auth::Auth;
use crate::backoff::BackoffConfig;
use crate::driver::{Command, Driver, Submission};
use crate::event::{Events, Observer, Outcome, SavedState, Seen};
use crate::outbox::Entry;
use crate::rest::{Rest, RestError, Tokens};
use crate::trust::Trust;

/// Commands, and sends, on their way to the client's task.
const COMMANDS_MAX: usize = 64;

/// Who the client is.
#[derive(Clone)]
pub enum Credentials {
    /// What register, log in or an earlier client gave; renewed by the refresh token.
    Tokens(Tokens),
    /// An access token alone: the client stops when it ends.
    AccessToken(String),
    /// Logs in (which makes a device), and again if the refresh token is refused.
    Password {
        /// The account's name.
        name: String,
        /// Its password.
        password: String,
        /// What the user's list of devices says.
        device_label: String,
    },
}

/// How a client is to be.
#[derive(Clone)]
pub struct Config {
    /// Where sessions are: `https://HOST[:PORT]`, or `http://` without TLS.
    pub base_url: String,
    /// Further places for sessions: each attempt to connect goes to the next one.
    pub other_urls: Vec<String>,
    /// Where REST is, if it is not the same: with separate roles, the api's address.
    pub api_url: Option<String>,
    /// Whose certificates are trusted.
    pub trust: Trust,
    /// Who it is.
    pub credentials: Credentials,
    /// How frames are written.
    pub form: Form,
    /// The name and version that the server logs.
    pub client_name: String,
    /// What an earlier client left.
    pub state: SavedState,
    /// When it connects again.
    pub backoff: BackoffConfig,
    /// Events that wait for the application; above this, messages wait on the server.
    pub events_max: usize,
    /// Sends that wait for a verdict; above this, `send` waits.
    pub outbox_max: usize,
    /// Sees every frame.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Config {
    /// The usual settings: binary frames, a fresh state.
    pub fn new(base_url: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            base_url: base_url.into(),
            other_urls: Vec::new(),
            api_url: None,
            trust: Trust::default(),
            credentials,
            form: Form::Binary,
            client_name: concat!("roost-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            state: SavedState::default(),
            backoff: BackoffConfig::default(),
            events_max: 2048,
            outbox_max: 10_000,
            observer: None,
        }
    }
}

/// Why a client cannot start. A server that is away is no reason: it connects when the server is back.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The base URL is wrong, or the log-in failed.
    #[error(transparent)]
    Rest(#[from] RestError),
}

/// The client has stopped: by command, by itself (`Event::Stopped` says why), or its runtime ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the client has stopped")]
pub struct Stopped;

/// A running client. Clones are handles of the same one; it stops when the last is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    sends: mpsc::Sender<Submission>,
    tokens: watch::Receiver<Option<Tokens>>,
    connected: watch::Receiver<bool>,
    task: AbortHandle,
}

impl Client {
    /// Starts a client on the current tokio runtime. Returns once it is logged in; the session follows by itself.
    pub async fn connect(config: Config) -> Result<(Client, Events), ConnectError> {
        let rest = Rest::with_trust(config.api_url.as_deref().unwrap_or(&config.base_url), &config.trust)?;
        let auth = Auth::start(rest, config.credentials.clone()).await?;
        let (commands, commands_receiver) = mpsc::channel(COMMANDS_MAX);
        let (sends, sends_receiver) = mpsc::channel(COMMANDS_MAX);
        // A page has to fit, or nothing would ever be fetched.
        let events_max = config.events_max.max(256);
        let (events, receiver) = mpsc::channel(events_max);
        let (tokens_sender, tokens) = watch::channel(auth.tokens().cloned());
        let (connected_sender, connected) = watch::channel(false);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let inbox = (commands_receiver, sends_receiver);
        let driver = Driver::new(config, auth, inbox, events, (tokens_sender, connected_sender), seen.clone());
        let task = tokio::spawn(driver.run()).abort_handle();
        Ok((Client { commands, sends, tokens, connected, task }, Events { receiver, seen }))
    }

    /// Takes a message for delivery: it is repeated until there is a verdict. Waits while the outbox is full. Messages
    /// of one conversation keep the order of these calls.
    pub async fn send(
        &self,
        conversation: ConversationId,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<SendHandle, Stopped> {
        self.send_as(ClientMsgId::new(), conversation, content_type, body).await
    }

    /// Sends a text.
    pub async fn send_text(&self, conversation: ConversationId, text: &str) -> Result<SendHandle, Stopped> {
        self.send(conversation, "text/plain", text.to_owned()).await
    }

    /// Sends under a given id. An id that waits for a verdict already is not sent twice, only waited for twice; one
    /// that had its verdict is sent again and gets the same one.
    pub async fn send_as(
        &self,
        client_msg_id: ClientMsgId,
        conversation_id: ConversationId,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<SendHandle, Stopped> {
        let content_type = content_type.to_owned();
        let entry = Entry { client_msg_id, conversation_id, content_type, body: body.into() };
        let (sender, receiver) = oneshot::channel();
        self.sends.send((entry, sender)).await.map_err(|_| Stopped)?;
        Ok(SendHandle { client_msg_id, receiver })
    }

    /// What another client needs to go on where this one is: as far as the application has taken the events.
    pub async fn state(&self) -> Result<SavedState, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::State(sender)).await.map_err(|_| Stopped)?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Drops the connection without a word, as a broken network does. The client connects again.
    pub async fn cut(&self) -> Result<(), Stopped> {
        self.commands.send(Command::Cut).await.map_err(|_| Stopped)
    }

    /// Closes the connection and ends. Events that came before can still be taken.
    pub async fn stop(&self) -> Result<SavedState, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Stop(sender)).await.map_err(|_| Stopped)?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Ends at once, without a word to the server, as a killed process does.
    pub fn kill(&self) {
        self.task.abort();
    }

    /// The present tokens, unless the client has only an access token.
    pub fn tokens(&self) -> Option<Tokens> {
        self.tokens.borrow().clone()
    }

    /// Whether there is a session now.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until there is a session.
    pub async fn connected(&self) -> Result<(), Stopped> {
        self.connected.clone().wait_for(|connected| *connected).await.map(drop).map_err(|_| Stopped)
    }
}

/// A send on its way: await it for what became of it. Dropped, the send goes on, and its verdict comes as an event.
#[derive(Debug)]
pub struct SendHandle {
    client_msg_id: ClientMsgId,
    receiver: oneshot::Receiver<Outcome>,
}

impl SendHandle {
    /// The send's id.
    pub fn client_msg_id(&self) -> ClientMsgId {
        self.client_msg_id
    }
}

impl Future for SendHandle {
    type Output = Result<Outcome, Stopped>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|outcome| outcome.map_err(|_| Stopped))
    }
}
