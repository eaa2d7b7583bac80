//! One client's side of the protocol without I/O: frames, sends and the time go in, frames and events come out.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roost_protocol::codes::ReconnectPolicy;
use roost_protocol::frames::{
    ClientBody, ClientFrame, Connected, Heads, HistoryRange, Message, Page, Send, ServerBody, ServerFrame,
};
use roost_protocol::{ClientMsgId, ConversationId, Epoch, ErrorCode, TimeMs, UserId, limits};

use crate::event::{Event, Outcome, SavedConversation, SavedSend, SavedState, Seen};
use crate::outbox::{Entry, Outbox};
use crate::repair::Repair;

/// A send or request without an answer for so long on a live connection is made again.
const ANSWER_WITHIN: Duration = Duration::from_millis(limits::SEND_DEADLINE_MS + 5_000);
/// Requests of ours without an answer at one time, below the server's limit.
const REQUESTS_MAX: usize = limits::REQUESTS_IN_FLIGHT_MAX - 2;
/// A page's worth of room.
const PAGE_ROOM: usize = limits::PAGE_MESSAGES_MAX as usize;
/// The wait after a sync that failed without saying for how long, or did not bring what was asked for.
const SYNC_WAIT: Duration = Duration::from_millis(500);
/// So many syncs do not bring a conversation's head, and the next one starts from the beginning.
const SYNCS_IN_VAIN_MAX: u32 = 3;

/// Why the engine wants the connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ending {
    pub(crate) policy: ReconnectPolicy,
    pub(crate) reason: String,
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Sync,
    History(ConversationId),
    Refresh,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Sync {
    Idle,
    Wanted { at: Instant },
    Asked,
}

/// Handlers: `on_opened`, `on_frame`, `on_heard`, `on_closed`, `on_timeout`, `release`. Commands: `send`, `refresh`.
/// Polls, after each of them: `poll_frame` and `poll_event` until they give nothing, `ending`, `next_deadline`.
pub(crate) struct Engine {
    outbox: Outbox,
    repair: Repair,
    seen: Arc<Mutex<Seen>>,
    reloads: u64,
    epoch: Option<Epoch>,
    cursor: Option<String>,
    user: Option<UserId>,
    up: bool,
    sync: Sync,
    syncs_in_vain: u32,
    requests: HashMap<u32, (Request, Instant)>,
    next_id: u32,
    control: VecDeque<ClientFrame<'static>>,
    events: VecDeque<Event>,
    shown: Vec<Message>,
    heard_at: Instant,
    silence: Duration,
    token_clock: Option<TokenClock>,
    refresh_at: Option<Instant>,
    reconnect_at: Option<Instant>,
    ending: Option<Ending>,
}

/// The server's clock as it was at a moment of ours.
#[derive(Clone, Copy)]
struct TokenClock {
    server_time: TimeMs,
    at: Instant,
}

impl Engine {
    pub(crate) fn new(state: SavedState, seen: Arc<Mutex<Seen>>, now: Instant) -> Self {
        let mut repair = Repair::default();
        for saved in &state.conversations {
            repair.restore(saved.conversation_id, saved.shown, saved.target);
        }
        let mut outbox = Outbox::new(limits::SENDS_IN_FLIGHT_MAX, ANSWER_WITHIN);
        for send in state.outbox {
            outbox.push(send.into());
        }
        Self {
            outbox,
            repair,
            seen,
            reloads: 0,
            epoch: state.epoch,
            cursor: state.cursor,
            user: None,
            up: false,
            sync: Sync::Idle,
            syncs_in_vain: 0,
            requests: HashMap::new(),
            next_id: 0,
            control: VecDeque::new(),
            events: VecDeque::new(),
            shown: Vec::new(),
            heard_at: now,
            silence: Duration::from_millis(limits::PING_MS + limits::PONG_GRACE_MS),
            token_clock: None,
            refresh_at: None,
            reconnect_at: None,
            ending: None,
        }
    }

    /// What a client needs to go on later.
    pub(crate) fn state(&self) -> SavedState {
        let outbox = self.outbox.entries().map(SavedSend::from).collect();
        let seen = self.seen.lock();
        if seen.reloads != self.reloads {
            // The application has not yet been told to start anew: then the next life starts anew.
            return SavedState { outbox, ..SavedState::default() };
        }
        let place = |(conversation_id, start, target)| SavedConversation {
            conversation_id,
            shown: seen.shown.get(&conversation_id).copied().unwrap_or(start).max(start),
            target,
        };
        let conversations = self.repair.positions().map(place).collect();
        SavedState { epoch: self.epoch, cursor: self.cursor.clone(), conversations, outbox }
    }

    /// Sends without a verdict.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// How much room has to be there for something to go on; nothing, if nothing waits for room.
    pub(crate) fn wants_room(&self, room: usize) -> Option<usize> {
        if self.repair.withholds() {
            Some(1)
        } else if self.up && room < PAGE_ROOM && self.repair.has_gaps() && self.pages_asked() == 0 {
            Some(PAGE_ROOM)
        } else {
            None
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    pub(crate) fn send(&mut self, entry: Entry) {
        self.outbox.push(entry);
    }

    pub(crate) fn on_opened(&mut self, token: &str, client: &str, now: Instant) {
        self.heard_at = now;
        let connect = ClientBody::Connect {
            token: Some(Cow::Owned(token.to_owned())),
            device_id: None,
            client: Cow::Owned(client.to_owned()),
        };
        let id = self.take_id();
        self.control.push_back(ClientFrame { id: Some(id), body: connect });
    }

    pub(crate) fn on_closed(&mut self) {
        self.up = false;
        self.sync = Sync::Idle;
        self.requests.clear();
        self.control.clear();
        self.outbox.on_disconnected();
        self.repair.on_disconnected();
        (self.refresh_at, self.reconnect_at, self.ending) = (None, None, None);
    }

    /// Anything came, a WebSocket ping too.
    pub(crate) fn on_heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    pub(crate) fn on_frame(&mut self, frame: ServerFrame, room: usize, now: Instant) {
        match frame.body {
            ServerBody::Connected(connected) => self.on_connected(connected, now),
            ServerBody::Sent { client_msg_id, seq, time, .. } => {
                self.verdict(client_msg_id, Outcome::Sent { seq, time }, now);
            }
            ServerBody::Rejected { client_msg_id, code, message } => {
                self.verdict(client_msg_id, Outcome::Rejected { code, message }, now);
            }
            ServerBody::Retry { client_msg_id, retry_after_ms, .. } => {
                self.outbox.on_retry(client_msg_id, Duration::from_millis(retry_after_ms), now);
            }
            ServerBody::Message(message) => self.on_message(message, room, now),
            ServerBody::Heads(heads) => self.on_heads(frame.id, heads, room, now),
            ServerBody::Page(page) => self.on_page(frame.id, page, room, now),
            ServerBody::Error { code, message, retry_after_ms, fatal } => {
                self.on_error(frame.id, code, message, retry_after_ms.map(Duration::from_millis), fatal, now);
            }
            ServerBody::Reload { reason } => self.reload(reason, now),
            ServerBody::Goaway { reconnect_in_ms, .. } => {
                self.reconnect_at = Some(now + Duration::from_millis(reconnect_in_ms));
            }
            ServerBody::Ping => self.control.push_back(ClientFrame { id: frame.id, body: ClientBody::Pong }),
            ServerBody::Pong => {}
        }
    }

    /// There may be room again for what was withheld.
    pub(crate) fn release(&mut self, room: usize) {
        self.repair.release(room, &mut self.shown);
        self.show();
    }

    /// New tokens: tells the server on a live connection.
    pub(crate) fn refresh(&mut self, token: &str, expires_at: TimeMs, now: Instant) {
        if self.up {
            let token = Cow::Owned(token.to_owned());
            let id = self.ask(Request::Refresh, now);
            self.control.push_back(ClientFrame { id: Some(id), body: ClientBody::Refresh { token } });
            self.plan_refresh(expires_at, now);
        }
    }

    /// The refresh failed for now.
    pub(crate) fn refresh_later(&mut self, at: Option<Instant>) {
        self.refresh_at = at.filter(|_| self.up);
    }

    /// Whether the token should be refreshed now; says so once.
    pub(crate) fn poll_refresh(&mut self, now: Instant) -> bool {
        self.refresh_at.take_if(|at| *at <= now).is_some()
    }

    pub(crate) fn on_timeout(&mut self, now: Instant) {
        if now >= self.heard_at + self.silence {
            self.end(ReconnectPolicy::Resume, "the server is silent");
        }
        if self.reconnect_at.is_some_and(|at| at <= now) {
            self.end(ReconnectPolicy::Resume, "the server goes away");
        }
        if self.up {
            self.outbox.on_timeout(now);
        }
        let late = self.requests.iter().filter(|(_, (_, asked_at))| *asked_at + ANSWER_WITHIN <= now);
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            match self.requests.remove(&id) {
                Some((Request::Sync, _)) => self.sync = Sync::Wanted { at: now },
                Some((Request::History(conversation), _)) => {
                    self.repair.on_failure(conversation, Duration::ZERO, now);
                }
                Some((Request::Refresh, _)) | None => {}
            }
        }
    }

    /// The next frame to send. `room` is how many messages the application can take.
    pub(crate) fn poll_frame(&mut self, room: usize, now: Instant) -> Option<ClientFrame<'_>> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        if !self.up {
            return None;
        }
        if let Some(frame) = self.poll_request(room, now) {
            return Some(frame);
        }
        let entry = self.outbox.poll_send(now)?;
        let send = Send {
            client_msg_id: entry.client_msg_id,
            conversation_id: entry.conversation_id,
            content_type: Cow::Borrowed(&entry.content_type),
            body: Cow::Borrowed(&entry.body),
        };
        Some(ClientFrame { id: None, body: ClientBody::Send(send) })
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Not before this may be connected again.
    pub(crate) fn reconnect_at(&self) -> Option<Instant> {
        self.reconnect_at
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let while_up = [
            self.outbox.next_deadline(),
            if self.requests.len() < REQUESTS_MAX { self.repair.next_deadline() } else { None },
            match self.sync {
                Sync::Wanted { at } => Some(at),
                _ => None,
            },
            self.requests.values().map(|(_, asked_at)| *asked_at + ANSWER_WITHIN).min(),
            self.refresh_at,
            self.reconnect_at,
        ];
        let while_up = while_up.into_iter().flatten().filter(|_| self.up);
        while_up.chain([self.heard_at + self.silence]).min()
    }

    fn poll_request(&mut self, room: usize, now: Instant) -> Option<ClientFrame<'static>> {
        if self.requests.len() >= REQUESTS_MAX {
            return None;
        }
        if matches!(self.sync, Sync::Wanted { at } if at <= now) {
            self.sync = Sync::Asked;
            let id = self.ask(Request::Sync, now);
            let since = self.cursor.clone().map(Cow::Owned);
            return Some(ClientFrame { id: Some(id), body: ClientBody::Sync { since } });
        }
        if room < PAGE_ROOM * (self.pages_asked() + 1) {
            return None;
        }
        let (conversation_id, after) = self.repair.poll_request(now)?;
        let id = self.ask(Request::History(conversation_id), now);
        let body = ClientBody::History { conversation_id, range: HistoryRange::After(after), limit: None };
        Some(ClientFrame { id: Some(id), body })
    }

    fn pages_asked(&self) -> usize {
        self.requests.values().filter(|(request, _)| matches!(request, Request::History(_))).count()
    }

    fn ask(&mut self, request: Request, now: Instant) -> u32 {
        let id = self.take_id();
        self.requests.insert(id, (request, now));
        id
    }

    fn take_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    fn on_connected(&mut self, connected: Connected, now: Instant) {
        self.follow_epoch(connected.epoch, now);
        self.up = true;
        self.user = Some(connected.user_id);
        self.outbox.set_in_flight_max(connected.limits.sends_in_flight_max as usize);
        self.silence = Duration::from_millis(connected.ping_ms + limits::PONG_GRACE_MS);
        self.token_clock = Some(TokenClock { server_time: connected.server_time, at: now });
        self.plan_refresh(connected.expires_at, now);
        self.syncs_in_vain = 0;
        self.sync = Sync::Wanted { at: now };
        self.events.push_back(Event::Connected {
            session_id: connected.session_id,
            user_id: connected.user_id,
            device_id: connected.device_id,
        });
    }

    /// The refresh comes when four fifths of the time that is left have passed.
    fn plan_refresh(&mut self, expires_at: TimeMs, now: Instant) {
        let Some(clock) = self.token_clock else { return };
        let server_now = clock.server_time + now.saturating_duration_since(clock.at).as_millis() as u64;
        let left = Duration::from_millis(expires_at.saturating_sub(server_now));
        self.refresh_at = Some(now + (left * 4 / 5).max(Duration::from_secs(1)));
    }

    fn verdict(&mut self, client_msg_id: ClientMsgId, outcome: Outcome, now: Instant) {
        let entry = self.outbox.on_verdict(client_msg_id, now);
        self.tell(entry, outcome);
    }

    fn tell(&mut self, entry: Option<Entry>, outcome: Outcome) {
        if let Some(Entry { client_msg_id, conversation_id, .. }) = entry {
            self.events.push_back(Event::Verdict { client_msg_id, conversation_id, outcome });
        }
    }

    /// A message of ours that comes back is as good as `sent`.
    fn recognise(&mut self, message: &Message, now: Instant) {
        if Some(message.sender_id) == self.user {
            let entry = self.outbox.on_seen(message.client_msg_id, now);
            self.tell(entry, Outcome::Sent { seq: message.seq, time: message.time });
        }
    }

    fn on_message(&mut self, message: Message, room: usize, now: Instant) {
        self.recognise(&message, now);
        self.repair.on_message(message, room, &mut self.shown);
        self.show();
        self.want_sync_for_unknown(now);
    }

    fn on_heads(&mut self, id: Option<u32>, heads: Heads, room: usize, now: Instant) {
        let request = id.and_then(|id| self.requests.remove(&id));
        if let Some(epoch) = heads.epoch
            && self.follow_epoch(epoch, now)
        {
            return;
        }
        for head in &heads.conversations {
            self.repair.on_head(head);
        }
        if matches!(request, Some((Request::Sync, _))) {
            // Cursor and heads are kept together, so the cursor may go ahead of the gaps.
            self.cursor = heads.next.or(self.cursor.take());
            self.sync = if heads.more { Sync::Wanted { at: now } } else { Sync::Idle };
            if !heads.more {
                self.events.push_back(Event::Synced);
                self.syncs_in_vain = if self.repair.needs_sync() { self.syncs_in_vain + 1 } else { 0 };
            }
        }
        self.release(room);
        self.want_sync_for_unknown(now);
    }

    /// Messages of conversations without a head wait for a sync to bring it.
    fn want_sync_for_unknown(&mut self, now: Instant) {
        if self.sync == Sync::Idle && self.repair.needs_sync() {
            if self.syncs_in_vain == SYNCS_IN_VAIN_MAX {
                self.cursor = None;
            }
            self.sync = Sync::Wanted { at: now + SYNC_WAIT * self.syncs_in_vain.min(60) };
        }
    }

    fn on_page(&mut self, id: Option<u32>, page: Page, room: usize, now: Instant) {
        let Some((Request::History(_), _)) = id.and_then(|id| self.requests.remove(&id)) else { return };
        if self.follow_epoch(page.epoch, now) {
            return;
        }
        for message in &page.messages {
            self.recognise(message, now);
        }
        self.repair.on_page(page, room, now, &mut self.shown);
        self.show();
    }

    fn on_error(
        &mut self,
        id: Option<u32>,
        code: ErrorCode,
        message: String,
        retry_after: Option<Duration>,
        fatal: bool,
        now: Instant,
    ) {
        match id.and_then(|id| self.requests.remove(&id)) {
            Some((Request::Sync, _)) => {
                if code == ErrorCode::InvalidCursor {
                    self.cursor = None;
                }
                self.sync = Sync::Wanted { at: now + retry_after.unwrap_or(SYNC_WAIT) };
            }
            Some((Request::History(conversation), _)) => match retry_after {
                Some(wait) => self.repair.on_failure(conversation, wait, now),
                None if code.retryable() => self.repair.on_failure(conversation, Duration::ZERO, now),
                None => self.repair.give_up(conversation),
            },
            Some((Request::Refresh, _)) if code.retryable() => {
                self.refresh_at = Some(now + retry_after.unwrap_or(SYNC_WAIT));
            }
            Some((Request::Refresh, _)) => self.end(ReconnectPolicy::Reauthenticate, &message),
            None => {}
        }
        if fatal && let Some(wait) = retry_after {
            self.reconnect_at = Some(now + wait);
        }
        // The close frame that follows decides, unless it gets lost.
        if fatal && code == ErrorCode::Unauthenticated {
            self.end(ReconnectPolicy::Reauthenticate, &message);
        }
    }

    /// Starts anew if this is another history. Says whether it did.
    fn follow_epoch(&mut self, epoch: Epoch, now: Instant) -> bool {
        let another = self.epoch.is_some_and(|known| known != epoch);
        if another {
            self.reload("the server's history is another one".to_owned(), now);
        }
        self.epoch = Some(epoch);
        another
    }

    fn reload(&mut self, reason: String, now: Instant) {
        self.repair.clear();
        (self.cursor, self.epoch, self.syncs_in_vain) = (None, None, 0);
        // Answers to what was asked before are not waited for: they are of the other history.
        self.requests.retain(|_, (request, _)| matches!(request, Request::Refresh));
        self.reloads += 1;
        self.events.push_back(Event::Reloaded { reason });
        self.sync = if self.up { Sync::Wanted { at: now } } else { Sync::Idle };
    }

    fn show(&mut self) {
        self.events.extend(self.shown.drain(..).map(Event::Message));
    }

    fn end(&mut self, policy: ReconnectPolicy, reason: &str) {
        self.ending.get_or_insert_with(|| Ending { policy, reason: reason.to_owned() });
    }
}

#[cfg(test)]
mod tests;
