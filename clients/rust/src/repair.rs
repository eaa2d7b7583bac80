//! Gap repair: messages come out in order and without holes, whatever order and holes they come in with.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use roost_protocol::frames::{Head, Message, Page};
use roost_protocol::{ConversationId, Seq};

/// Messages kept beyond a gap, per conversation; what is dropped above it comes back by history.
const HELD_MAX: usize = 256;
/// The first wait after a page that did not help, doubled up to the most.
const WAIT_FIRST: Duration = Duration::from_millis(200);
const WAIT_MOST: Duration = Duration::from_secs(10);
/// So often nothing is settled, and a head's claim is given up: it was not for us.
const EMPTY_PAGES_MAX: u32 = 3;

/// The conversations and what is known of each.
///
/// Handlers: `on_head`, `on_message`, `on_page`, `on_failure`, `on_disconnected`, `release`. Polls: `poll_request`
/// until it gives nothing, then `next_deadline`. `room` is how many messages the application can take now; what it
/// cannot take waits here or, beyond the bound, on the server.
#[derive(Debug, Default)]
pub struct Repair {
    conversations: HashMap<ConversationId, Conversation>,
    /// Conversations with a gap to ask for, each at most once.
    gaps: VecDeque<ConversationId>,
    delayed: BTreeSet<(Instant, ConversationId)>,
    /// Conversations whose next message is here but had no room.
    withheld: BTreeSet<ConversationId>,
    unknown: BTreeSet<ConversationId>,
}

#[derive(Debug, Default)]
struct Conversation {
    /// There was a head: it is known where this conversation begins for us.
    known: bool,
    /// Where it began for us, or where the saved state stood.
    start: Seq,
    /// Everything up to here has come out.
    shown: Seq,
    /// The highest seq heard of.
    target: Seq,
    held: BTreeMap<Seq, Message>,
    /// A gap is in `gaps` or `delayed`, or a page is being waited for.
    busy: bool,
    /// Pages in a row that did not help.
    failures: u32,
}

impl Repair {
    /// Continues a conversation of a saved state.
    pub fn restore(&mut self, conversation: ConversationId, shown: Seq, target: Seq) {
        let target = target.max(shown);
        self.conversations
            .insert(conversation, Conversation { known: true, start: shown, shown, target, ..Default::default() });
        self.look(conversation);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// All known conversations with (where it began, the highest seq heard of).
    pub fn positions(&self) -> impl Iterator<Item = (ConversationId, Seq, Seq)> {
        self.conversations.iter().filter(|(_, c)| c.known).map(|(id, c)| (*id, c.start, c.target))
    }

    /// Whether there are conversations that need a sync before anything of them is shown.
    pub fn needs_sync(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Whether messages wait only for room.
    pub fn withholds(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// Whether `poll_request` may have something.
    pub fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// A head came. What was held for it comes out with `release`.
    pub fn on_head(&mut self, head: &Head) {
        let conversation = self.conversations.entry(head.conversation_id).or_default();
        conversation.target = conversation.target.max(head.last_seq);
        let before_first = head.first_seq.map(|first| first.saturating_sub(1));
        match (conversation.known, before_first) {
            (false, Some(before_first)) => {
                conversation.known = true;
                (conversation.start, conversation.shown) = (before_first, before_first);
                self.unknown.remove(&head.conversation_id);
            }
            (true, Some(before_first)) => {
                conversation.shown = conversation.shown.max(before_first);
            }
            (true, None) => {}
            (false, None) => {
                self.unknown.insert(head.conversation_id);
            }
        }
        self.look(head.conversation_id);
    }

    /// A message came; what can be shown now is appended to `out`.
    pub fn on_message(&mut self, message: Message, room: usize, out: &mut Vec<Message>) {
        let id = message.conversation_id;
        let conversation = self.conversations.entry(id).or_default();
        conversation.target = conversation.target.max(message.seq);
        if !conversation.known {
            conversation.hold(message);
            self.unknown.insert(id);
            return;
        }
        if message.seq <= conversation.shown {
            return;
        }
        if message.seq == conversation.shown + 1 && room > 0 {
            conversation.shown = message.seq;
            out.push(message);
            conversation.advance(room - 1, out);
        } else {
            conversation.hold(message);
        }
        self.look(id);
    }

    /// The answer to a request came; what can be shown now is appended to `out`, the page's messages whole.
    pub fn on_page(&mut self, page: Page, room: usize, now: Instant, out: &mut Vec<Message>) {
        let id = page.conversation_id;
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.busy = false;
        let shown = conversation.shown;
        if page.from <= page.to && page.from <= shown + 1 {
            conversation.failures = 0;
            let shows = out.len();
            out.extend(page.messages.into_iter().filter(|message| (shown + 1..=page.to).contains(&message.seq)));
            conversation.shown = shown.max(page.to);
            if page.more {
                conversation.target = conversation.target.max(page.to.saturating_add(1));
            }
            conversation.advance(room.saturating_sub(out.len() - shows), out);
            return self.look(id);
        }
        conversation.failures += 1;
        if conversation.failures >= EMPTY_PAGES_MAX && conversation.held.is_empty() {
            conversation.target = conversation.shown;
            conversation.failures = 0;
            return;
        }
        self.delay(id, now, Duration::ZERO);
    }

    /// A request failed; it is made again after the wait.
    pub fn on_failure(&mut self, conversation: ConversationId, wait: Duration, now: Instant) {
        if let Some(state) = self.conversations.get_mut(&conversation) {
            state.failures += 1;
            self.delay(conversation, now, wait);
        }
    }

    /// The server will never answer for this conversation: what was heard of it is not for us.
    pub fn give_up(&mut self, conversation: ConversationId) {
        if let Some(state) = self.conversations.get_mut(&conversation) {
            state.target = state.shown;
            state.held.clear();
            (state.busy, state.failures) = (false, 0);
            self.withheld.remove(&conversation);
        }
    }

    /// The connection is gone, and the answers with it.
    pub fn on_disconnected(&mut self) {
        self.gaps.clear();
        self.delayed.clear();
        let ids: Vec<_> = self.conversations.keys().copied().collect();
        for id in ids {
            let conversation = self.conversations.get_mut(&id).expect("just listed");
            (conversation.busy, conversation.failures) = (false, 0);
            self.look(id);
        }
    }

    /// There is room again: shows what waited for it.
    pub fn release(&mut self, room: usize, out: &mut Vec<Message>) {
        let start = out.len();
        for id in std::mem::take(&mut self.withheld) {
            let room = room.saturating_sub(out.len() - start);
            if let Some(conversation) = self.conversations.get_mut(&id) {
                conversation.advance(room, out);
            }
            self.look(id);
        }
    }

    /// The next page to ask for: a conversation and the seq after which.
    pub fn poll_request(&mut self, now: Instant) -> Option<(ConversationId, Seq)> {
        while let Some(&(at, id)) = self.delayed.first()
            && at <= now
        {
            self.delayed.pop_first();
            self.gaps.push_back(id);
        }
        while let Some(id) = self.gaps.pop_front() {
            let Some(conversation) = self.conversations.get_mut(&id) else { continue };
            if conversation.has_gap() {
                return Some((id, conversation.shown));
            }
            conversation.busy = false;
        }
        None
    }

    /// When `poll_request` has something without anything else happening.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Puts a conversation where it belongs after a change.
    fn look(&mut self, id: ConversationId) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        if conversation.next_is_held() {
            self.withheld.insert(id);
        }
        if conversation.has_gap() && !conversation.busy {
            conversation.busy = true;
            self.gaps.push_back(id);
        }
    }

    fn delay(&mut self, id: ConversationId, now: Instant, wait: Duration) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.busy = true;
        let backoff = WAIT_FIRST.saturating_mul(1 << conversation.failures.clamp(1, 10).saturating_sub(1));
        self.delayed.insert((now + wait.max(backoff.min(WAIT_MOST)), id));
    }
}

impl Conversation {
    fn hold(&mut self, message: Message) {
        self.held.insert(message.seq, message);
        if self.held.len() > HELD_MAX {
            self.held.pop_last();
        }
    }

    /// Shows what is held and follows without a gap.
    fn advance(&mut self, mut room: usize, out: &mut Vec<Message>) {
        while let Some(entry) = self.held.first_entry() {
            match *entry.key() {
                seq if seq <= self.shown => drop(entry.remove()),
                seq if seq == self.shown + 1 && room > 0 => {
                    out.push(entry.remove());
                    self.shown = seq;
                    room -= 1;
                }
                _ => break,
            }
        }
    }

    fn next_is_held(&self) -> bool {
        self.known && self.held.contains_key(&(self.shown + 1))
    }

    fn has_gap(&self) -> bool {
        self.known && self.shown < self.target && !self.next_is_held()
    }
}

#[cfg(test)]
mod tests;
