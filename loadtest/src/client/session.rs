//! One session, for as long as the run lasts: it connects, reads, and connects again.

use std::rc::Rc;

use roost_protocol::codes::{ReconnectPolicy, reconnect_policy};
use tokio_uring::buf::BoundedBuf as _;

use super::framing::{Frame, Opcode, Parser};
use super::open::{self, Refused};
use super::shard::{Ending, Link, Shard};
use crate::clock::{self, now};
use crate::task::{Traffic, Trouble};

/// Room to receive in an idle session: a ping of the server and a small frame behind it.
const IDLE_ROOM: usize = 48;
/// Room to receive in a session that takes part.
const BUSY_ROOM: usize = 4 * 1024;

/// Why a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// By a close frame.
    Closed(u16),
    /// Without one.
    Broken,
    /// The server did what it may not do.
    Wrong(&'static str),
}

/// Runs a session until it is not to come back.
///
/// The big futures are boxed for as long as they last: what is left in an idle session's task is one read.
pub async fn live(shard: Rc<Shard>, index: u32) {
    loop {
        let begun = now();
        match Box::pin(open::open(&shard, index)).await {
            Ok((link, parser)) => {
                shard.connected(index, &link, begun);
                let ended = serve(&shard, index, &link, parser).await;
                shard.disconnected(index, &ended);
                if !shard.comes_back(index, &ended) {
                    return;
                }
            }
            Err(refused) => {
                if !shard.refused(index, &refused) {
                    return;
                }
            }
        }
        let next = shard.next_attempt(index);
        Box::pin(tokio::time::sleep(clock::until(next))).await;
    }
}

/// Reads until the connection ends.
async fn serve(shard: &Rc<Shard>, index: u32, link: &Rc<Link>, mut parser: Parser) -> Ended {
    let room = shard.room(index);
    loop {
        if let Some(ended) = shard.take_frames(index, link, &mut parser) {
            return ended;
        }
        while shard.paused.get() && shard.troubled(index) {
            Box::pin(shard.resumed.notified()).await;
        }
        let buffer = parser.lend(room);
        let filled = buffer.len();
        let (read, buffer) = link.stream.read(buffer.slice(filled..)).await;
        parser.give_back(buffer.into_inner());
        match read {
            Ok(0) | Err(_) => return Ended::Broken,
            Ok(_) => {}
        }
    }
}

impl Shard {
    fn room(&self, index: u32) -> usize {
        // Sessions of an idle run's sample get one message: it makes its own room when it comes.
        let idle = matches!(self.task.traffic, Traffic::EachGroup { .. });
        if idle || self.sessions[index as usize].borrow().talk.is_none() { IDLE_ROOM } else { BUSY_ROOM }
    }

    fn take_frames(self: &Rc<Self>, index: u32, link: &Rc<Link>, parser: &mut Parser) -> Option<Ended> {
        loop {
            match parser.next() {
                Ok(None) => return None,
                Ok(Some(Frame::Binary(bytes))) => {
                    if self.receive(index, link, bytes).is_err() {
                        return Some(Ended::Wrong("a frame does not decode"));
                    }
                }
                Ok(Some(Frame::Ping(payload))) => link.write(Opcode::Pong, payload),
                Ok(Some(Frame::Pong)) => {}
                Ok(Some(Frame::Close(code))) => {
                    let echo = if code == 1005 { Vec::new() } else { code.to_be_bytes().to_vec() };
                    link.write(Opcode::Close, &echo);
                    return Some(Ended::Closed(code));
                }
                Err(broken) => return Some(Ended::Wrong(broken.0)),
            }
        }
    }

    /// A session is connected: it asks for its heads and writes what it still has to say.
    fn connected(self: &Rc<Self>, index: u32, link: &Rc<Link>, begun: u64) {
        let now = now();
        let mut session = self.sessions[index as usize].borrow_mut();
        session.link = Some(Rc::clone(link));
        session.backoff.connected();
        let again = std::mem::replace(&mut session.known, true);
        if std::mem::take(&mut session.away) {
            self.away.set(self.away.get() - 1);
            if self.away.get() == 0 {
                self.figures.borrow_mut().all_back = Some(now);
            }
        }
        if let Some(talk) = &mut session.talk {
            talk.outbox.again();
            talk.pings.clear();
            talk.tracks.iter_mut().for_each(super::track::Track::reconnected);
        }
        let syncs = self.task.traffic.syncs();
        if !syncs && !std::mem::replace(&mut session.synced, true) {
            self.synced.set(self.synced.get() + 1);
        }
        drop(session);
        {
            let mut figures = self.figures.borrow_mut();
            figures.connects += 1;
            figures.reconnects += u64::from(again);
            figures.connect.record(now - begun);
            let mut progress = self.progress.borrow_mut();
            progress.live += 1;
            progress.connects += 1;
        }
        self.second(now, |second| second.connects += 1);
        if syncs {
            self.sync(link, None);
        }
        self.transmit(index);
    }

    fn disconnected(&self, index: u32, ended: &Ended) {
        let mut session = self.sessions[index as usize].borrow_mut();
        session.link = None;
        let name = match (session.ending, ended) {
            (Some(Ending::Cut), _) => "cut".to_owned(),
            (Some(Ending::Leave), _) => "left".to_owned(),
            (Some(Ending::Goaway), Ended::Broken) => "goaway".to_owned(),
            (_, Ended::Closed(code)) => code.to_string(),
            (_, Ended::Broken) => "broken".to_owned(),
            (_, Ended::Wrong(reason)) => (*reason).to_owned(),
        };
        // A close frame behind megabytes that nobody reads may not come through: then there is only the end.
        let by_server = session.ending.is_none() && matches!(ended, Ended::Closed(4000) | Ended::Broken);
        let slow = by_server && self.task.trouble == Trouble::Slow && self.troubled(index);
        let newly_slow = slow && !std::mem::replace(&mut session.slow, true);
        drop(session);
        let mut figures = self.figures.borrow_mut();
        *figures.closes.entry(name).or_default() += 1;
        figures.slow_closed += u64::from(newly_slow);
        drop(figures);
        self.progress.borrow_mut().live -= 1;
        self.second(now(), |second| second.closes += 1);
    }

    /// Whether a session comes back after this end, as the close code's policy has it. A token is always a new one.
    fn comes_back(&self, index: u32, ended: &Ended) -> bool {
        let ours = self.sessions[index as usize].borrow_mut().ending.take();
        let policy = match ended {
            _ if ours.is_some() => ReconnectPolicy::Resume,
            Ended::Closed(code) => reconnect_policy(*code),
            Ended::Broken => ReconnectPolicy::Resume,
            Ended::Wrong(_) => ReconnectPolicy::Never,
        };
        let comes = policy != ReconnectPolicy::Never;
        self.figures.borrow_mut().given_up += u64::from(!comes);
        comes
    }

    /// An attempt failed. Whether there is another one.
    fn refused(&self, index: u32, refused: &Refused) -> bool {
        if let Some(wait_ms) = refused.wait_ms {
            self.sessions[index as usize].borrow_mut().backoff.asked_to_wait(wait_ms);
        }
        let mut figures = self.figures.borrow_mut();
        *figures.failures.entry(refused.reason.clone()).or_default() += 1;
        let comes = refused.code.is_none_or(|code| reconnect_policy(code) != ReconnectPolicy::Never);
        figures.given_up += u64::from(!comes);
        drop(figures);
        self.second(now(), |second| second.failures += 1);
        let mut progress = self.progress.borrow_mut();
        progress.failures += 1;
        progress.last_failure = Some(refused.reason.clone());
        comes
    }

    fn next_attempt(&self, index: u32) -> u64 {
        let polite = self.task.trouble != (Trouble::Storm { backoff: false }) || !self.troubled(index);
        self.sessions[index as usize].borrow_mut().backoff.next(polite)
    }
}
