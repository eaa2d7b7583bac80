//! Moves bytes and time between the engine, the WebSocket and the application. No protocol knowledge.

mod socket;

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roost_protocol::codes::ReconnectPolicy;
use roost_protocol::{ClientMsgId, ServerFrame};
use tokio::sync::{mpsc, oneshot, watch};

use self::socket::{Ended, Incoming, Socket};
use crate::auth::{Auth, RenewError};
use crate::backoff::{Backoff, Next};
use crate::client::Config;
use crate::engine::Engine;
use crate::event::{Event, Observed, Outcome, SavedState, Seen};
use crate::outbox::Entry;
use crate::rest::Tokens;

/// The wait after a failed token refresh on a live connection.
const REFRESH_AGAIN: Duration = Duration::from_secs(10);

/// What a handle asks.
#[derive(Debug)]
pub(crate) enum Command {
    State(oneshot::Sender<SavedState>),
    Cut,
    Stop(oneshot::Sender<SavedState>),
}

/// A message and who waits for its verdict. On a channel of its own: it may be full while commands still pass.
pub(crate) type Submission = (Entry, oneshot::Sender<Outcome>);

type Renewal = Pin<Box<dyn Future<Output = Result<Tokens, RenewError>> + Send>>;

/// Why a loop is left.
enum Leave {
    /// The connection is over.
    Ended(Ended),
    /// The application wants no more.
    Stop(Option<oneshot::Sender<SavedState>>),
}

pub(crate) struct Driver {
    config: Config,
    auth: Auth,
    engine: Engine,
    backoff: Backoff,
    commands: mpsc::Receiver<Command>,
    sends: mpsc::Receiver<Submission>,
    events: mpsc::Sender<Event>,
    /// Events that do not fit into the channel: at most a few pages and verdicts.
    outgoing: VecDeque<Event>,
    waiters: HashMap<ClientMsgId, Vec<oneshot::Sender<Outcome>>>,
    tokens: watch::Sender<Option<Tokens>>,
    connected: watch::Sender<bool>,
    attempts: usize,
}

impl Driver {
    pub(crate) fn new(
        mut config: Config,
        auth: Auth,
        inbox: (mpsc::Receiver<Command>, mpsc::Receiver<Submission>),
        events: mpsc::Sender<Event>,
        status: (watch::Sender<Option<Tokens>>, watch::Sender<bool>),
        seen: Arc<Mutex<Seen>>,
    ) -> Self {
        let engine = Engine::new(std::mem::take(&mut config.state), seen, now());
        let backoff = Backoff::new(config.backoff);
        let ((commands, sends), (tokens, connected)) = (inbox, status);
        let (outgoing, waiters) = (VecDeque::new(), HashMap::new());
        Self {
            config,
            auth,
            engine,
            backoff,
            commands,
            sends,
            events,
            outgoing,
            waiters,
            tokens,
            connected,
            attempts: 0,
        }
    }

    pub(crate) async fn run(mut self) {
        let (mut at, mut reauthenticate) = (now(), false);
        let stop = loop {
            let ended = match self.attempt(at, reauthenticate).await {
                Leave::Ended(ended) => ended,
                Leave::Stop(answer) => break answer,
            };
            self.connected.send_replace(false);
            if let Some(not_before) = self.engine.reconnect_at() {
                self.backoff.not_before(not_before);
            }
            if let Some(wait) = ended.retry_after {
                self.backoff.not_before(now() + wait);
            }
            self.engine.on_closed();
            let next = self.backoff.on_ended(ended.policy, now(), rand::random());
            let reconnect_in = match next {
                Next::Connect { at, .. } => Some(at.saturating_duration_since(now())),
                Next::Stop => None,
            };
            self.outgoing.push_back(Event::Disconnected {
                code: ended.code,
                reason: ended.reason.clone(),
                reconnect_in,
            });
            match next {
                Next::Connect { at: next_at, reauthenticate: next } => (at, reauthenticate) = (next_at, next),
                Next::Stop => {
                    self.outgoing.push_back(Event::Stopped { reason: ended.reason });
                    break None;
                }
            }
        };
        self.connected.send_replace(false);
        if let Some(answer) = stop {
            answer.send(self.engine.state()).ok();
        }
        self.take_events();
        // Those who wait for verdicts are told now, not when the last event is taken.
        self.sends.close();
        self.waiters.clear();
        // Without a command to stop, the application still gets all that it was to be told.
        for event in self.outgoing.drain(..) {
            if self.events.send(event).await.is_err() {
                break;
            }
        }
    }

    /// Waits, gets a token if need be, connects, and stays until the connection is over.
    async fn attempt(&mut self, at: Instant, reauthenticate: bool) -> Leave {
        if let Err(leave) = self.meanwhile(tokio::time::sleep_until(at.into())).await {
            return leave;
        }
        if reauthenticate {
            match self.meanwhile(self.auth.clone().renew()).await {
                Ok(Ok(tokens)) => self.take_tokens(tokens),
                Ok(Err(RenewError::Refused(reason))) => {
                    return Leave::Ended(Ended::local(ReconnectPolicy::Never, reason));
                }
                Ok(Err(RenewError::Later(retry_after, reason))) => {
                    return Leave::Ended(Ended {
                        retry_after,
                        ..Ended::local(ReconnectPolicy::Reauthenticate, reason)
                    });
                }
                Err(leave) => return leave,
            }
        }
        let opening = Socket::open(self.next_url(), self.config.trust.clone(), self.config.form);
        let mut socket = match self.meanwhile(opening).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(ended)) => return Leave::Ended(ended),
            Err(leave) => return leave,
        };
        self.observe(Observed::Opened);
        self.engine.on_opened(self.auth.access_token(), &self.config.client_name, now());
        let leave = self.session(&mut socket).await;
        match &leave {
            Leave::Ended(ended) => self.observe(Observed::Closed { code: ended.code, policy: ended.policy }),
            Leave::Stop(_) => {
                socket.close().await;
                self.observe(Observed::Closed { code: None, policy: ReconnectPolicy::Resume });
            }
        }
        leave
    }

    fn next_url(&mut self) -> String {
        let index = self.attempts % (1 + self.config.other_urls.len());
        self.attempts += 1;
        let others = &self.config.other_urls;
        index.checked_sub(1).map_or(&self.config.base_url, |index| &others[index]).clone()
    }

    /// One connection, from `connect` to its end.
    async fn session(&mut self, socket: &mut Socket) -> Leave {
        let mut renewal: Option<Renewal> = None;
        loop {
            if let Err(ended) = self.write(socket).await {
                return Leave::Ended(ended);
            }
            self.take_events();
            if let Some(ending) = self.engine.ending() {
                return Leave::Ended(Ended::local(ending.policy, ending.reason.clone()));
            }
            if renewal.is_none() && self.auth.can_renew() && self.engine.poll_refresh(now()) {
                renewal = Some(Box::pin(self.auth.clone().renew()));
            }
            let deadline = self.engine.next_deadline().unwrap_or_else(|| now() + Duration::from_secs(60));
            let takes_sends = self.engine.waiting() < self.config.outbox_max;
            let wanted = if self.outgoing.is_empty() { self.engine.wants_room(self.room()).unwrap_or(0) } else { 1 };
            tokio::select! {
                incoming = socket.next() => match incoming {
                    Incoming::Frame(frame) => self.on_frame(frame),
                    Incoming::Nothing => self.engine.on_heard(now()),
                    Incoming::Ended(ended) => return Leave::Ended(ended),
                },
                Some(submission) = self.sends.recv(), if takes_sends => self.on_submission(submission),
                command = self.commands.recv() => {
                    if let Some(leave) = self.on_command(command, true) {
                        return leave;
                    }
                }
                () = has_room(&self.events, wanted), if wanted > 0 => {
                    self.take_events();
                    self.engine.release(self.room());
                }
                renewed = finished(&mut renewal) => {
                    renewal = None;
                    self.on_renewed(renewed);
                }
                () = tokio::time::sleep_until(deadline.into()) => self.engine.on_timeout(now()),
            }
        }
    }

    async fn write(&mut self, socket: &mut Socket) -> Result<(), Ended> {
        let room = self.room();
        let mut wrote = false;
        while let Some(frame) = self.engine.poll_frame(room, now()) {
            if let Some(observer) = &self.config.observer {
                observer.observe(now(), Observed::Out(&frame));
            }
            let bytes = frame.encode(self.config.form);
            socket.write(bytes).await?;
            wrote = true;
        }
        if wrote { socket.flush().await } else { Ok(()) }
    }

    fn on_frame(&mut self, frame: ServerFrame) {
        self.observe(Observed::In(&frame));
        self.engine.on_heard(now());
        let was_up = self.engine.is_up();
        self.engine.on_frame(frame, self.room(), now());
        if !was_up && self.engine.is_up() {
            self.backoff.on_connected(now());
            self.connected.send_replace(true);
        }
    }

    /// Waits for something while there is no connection: commands are still taken.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Leave> {
        let mut future = pin!(future);
        loop {
            self.take_events();
            let takes_sends = self.engine.waiting() < self.config.outbox_max;
            tokio::select! {
                output = &mut future => return Ok(output),
                Some(submission) = self.sends.recv(), if takes_sends => self.on_submission(submission),
                command = self.commands.recv() => {
                    if let Some(leave) = self.on_command(command, false) {
                        return Err(leave);
                    }
                }
                () = has_room(&self.events, 1), if !self.outgoing.is_empty() => {}
            }
        }
    }

    fn on_submission(&mut self, (entry, waiter): Submission) {
        self.waiters.entry(entry.client_msg_id).or_default().push(waiter);
        self.engine.send(entry);
    }

    fn on_command(&mut self, command: Option<Command>, online: bool) -> Option<Leave> {
        // What was submitted before the command counts, full or not.
        while let Ok(submission) = self.sends.try_recv() {
            self.on_submission(submission);
        }
        match command {
            Some(Command::State(answer)) => {
                answer.send(self.engine.state()).ok();
                None
            }
            Some(Command::Cut) if online => {
                Some(Leave::Ended(Ended::local(ReconnectPolicy::Resume, "cut by the application".to_owned())))
            }
            Some(Command::Cut) => None,
            Some(Command::Stop(answer)) => Some(Leave::Stop(Some(answer))),
            None => Some(Leave::Stop(None)),
        }
    }

    fn on_renewed(&mut self, renewed: Result<Tokens, RenewError>) {
        match renewed {
            Ok(tokens) => {
                self.engine.refresh(&tokens.access_token, tokens.expires_at, now());
                self.take_tokens(tokens);
            }
            Err(RenewError::Later(wait, _)) => {
                self.engine.refresh_later(Some(now() + wait.unwrap_or(REFRESH_AGAIN).max(REFRESH_AGAIN)));
            }
            // The server closes when the token ends; then it is decided.
            Err(RenewError::Refused(_)) => self.engine.refresh_later(None),
        }
    }

    fn take_tokens(&mut self, tokens: Tokens) {
        self.auth.replace(tokens.clone());
        self.tokens.send_replace(Some(tokens));
        self.outgoing.push_back(Event::TokensChanged);
    }

    /// Passes on what the engine has for the application: verdicts to those who wait, the rest as events.
    fn take_events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            if let Event::Verdict { client_msg_id, outcome, .. } = &event
                && let Some(waiters) = self.waiters.remove(client_msg_id)
                && waiters.into_iter().filter_map(|waiter| waiter.send(outcome.clone()).ok()).count() > 0
            {
                continue;
            }
            self.outgoing.push_back(event);
        }
        while let Some(event) = self.outgoing.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.outgoing.push_front(event);
                    break;
                }
                // Nobody listens: the client goes on for its sends.
                Err(mpsc::error::TrySendError::Closed(_)) => self.outgoing.clear(),
            }
        }
    }

    /// How many messages the application can take.
    fn room(&self) -> usize {
        if self.outgoing.is_empty() { self.events.capacity() } else { 0 }
    }

    fn observe(&self, what: Observed<'_>) {
        if let Some(observer) = &self.config.observer {
            observer.observe(now(), what);
        }
    }
}

/// Waits until the application can take so many events, or wants none any more.
async fn has_room(events: &mpsc::Sender<Event>, wanted: usize) {
    events.reserve_many(wanted).await.map(drop).ok();
}

async fn finished(renewal: &mut Option<Renewal>) -> Result<Tokens, RenewError> {
    match renewal {
        Some(renewal) => renewal.await,
        None => pending().await,
    }
}

/// Tokio's time, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
