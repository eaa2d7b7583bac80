//! What a crowd can be told to do, and what it answers.

use std::str::FromStr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use roost_protocol::ConversationId;
use serde_json::{Value, json};

use super::session::{Session, State};
use super::{Counts, Crowd, wire};
use crate::Result;

/// Connections in their handshakes at one time, where the order is not a storm.
const OPENING_MAX: usize = 256;
/// What has not come by then after the last one was due is not coming.
const SETTLE: Duration = Duration::from_secs(10);
/// Nothing is waited for longer without looking whether the order is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Opening that makes no progress for so long has failed.
const OPEN_STALL: Duration = Duration::from_secs(60);

impl Crowd {
    /// Carries out one order:
    ///
    /// * `open TOTAL PER_SECOND`: connects until so many sessions are live.
    /// * `broadcast SESSION CONVERSATION COUNT PER_SECOND EACH`: messages by one session, each to be received EACH times here.
    /// * `send SESSION CONVERSATION`: one message, not waited for.
    /// * `ping COUNT PER_SECOND`: pings by all sessions in turn, in an order that has nothing to do with theirs.
    /// * `storm SECONDS_MAX`: cuts all connections at once; they come back as the product's clients do.
    /// * `reset`, and `counts`.
    ///
    /// While it broadcasts or pings it looks again and again and never sleeps: a sender pays for waking a sleeping receiver,
    /// and what that costs would depend on how fast the server is.
    pub(super) fn obey(&mut self, order: &str) -> Result<Value> {
        let words: Vec<&str> = order.split_whitespace().collect();
        match words.as_slice() {
            ["open", total, per_second] => self.open(number(total)?, number(per_second)?),
            ["broadcast", session, conversation, count, per_second, each] => {
                let conversation = ConversationId::from_str(conversation).map_err(|_| "a conversation is a UUID")?;
                let sender = Sender { session: number(session)?, conversation };
                self.broadcast(sender, number(count)?, number(per_second)?, number(each)?)
            }
            ["send", session, conversation] => {
                let conversation = ConversationId::from_str(conversation).map_err(|_| "a conversation is a UUID")?;
                self.due.push(Instant::now());
                self.send(Sender { session: number(session)?, conversation })?;
                Ok(json!({}))
            }
            ["ping", count, per_second] => self.ping(number(count)?, number(per_second)?),
            ["storm", seconds_max] => self.storm(Duration::from_secs(number(seconds_max)? as u64)),
            ["reset"] => {
                self.begin();
                Ok(json!({}))
            }
            ["counts"] => Ok(self.outcome(0)),
            _ => Err(format!("no such order: {order}").into()),
        }
    }

    fn begin(&mut self) {
        let Counts { live, opening, .. } = self.counts;
        self.counts = Counts { live, opening, ..Counts::default() };
        self.latencies.reset();
        self.due.clear();
        self.lived.clear();
        for session in &mut self.sessions {
            (session.answers, session.asked) = (0, false);
        }
    }

    fn open(&mut self, total: usize, per_second: usize) -> Result<Value> {
        self.begin();
        self.reconnects = true;
        let (begun, first) = (Instant::now(), self.sessions.len());
        let mut progress = (self.counts.live, Instant::now());
        while self.counts.live < total {
            let allowed = first + (begun.elapsed().as_secs_f64() * per_second as f64) as usize;
            while self.sessions.len() < total.min(allowed) && self.counts.opening < OPENING_MAX {
                self.sessions.push(Session::new());
                self.connect(self.sessions.len() - 1)?;
            }
            self.turn(LOOK_EVERY.min(Duration::from_millis(2)))?;
            if self.counts.live > progress.0 {
                progress = (self.counts.live, Instant::now());
            } else if progress.1.elapsed() > OPEN_STALL {
                break;
            }
        }
        self.reconnects = false;
        let mut outcome = self.outcome(0);
        outcome["seconds"] = begun.elapsed().as_secs_f64().into();
        Ok(outcome)
    }

    fn broadcast(&mut self, sender: Sender, count: usize, per_second: usize, each: usize) -> Result<Value> {
        self.begin();
        let begun = Instant::now();
        let mut last = begun;
        while self.due.len() < count {
            last = begun + Duration::from_secs_f64(self.due.len() as f64 / per_second as f64);
            let left = last.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.due.push(last);
                self.send(sender)?;
            } else {
                self.turn(Duration::ZERO)?;
            }
        }
        let expected = (count * each) as u64;
        while self.counts.answers < expected && last.elapsed() < SETTLE {
            self.turn(Duration::ZERO)?;
        }
        Ok(self.outcome(expected))
    }

    fn send(&mut self, sender: Sender) -> Result<()> {
        let message = wire::message(sender.conversation, self.body_bytes);
        if self.sessions.get_mut(sender.session).is_some_and(|session| session.write(&message)) {
            Ok(())
        } else {
            Err("the session that sends is gone".into())
        }
    }

    fn ping(&mut self, count: usize, per_second: usize) -> Result<Value> {
        self.begin();
        let turns = shuffled(self.sessions.len());
        let (begun, ping) = (Instant::now(), wire::ping());
        let (mut last, mut skipped) = (begun, 0);
        while self.due.len() < count {
            let number = self.due.len();
            last = begun + Duration::from_secs_f64(number as f64 / per_second as f64);
            let left = last.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                self.turn(Duration::ZERO)?;
                continue;
            }
            self.due.push(last);
            let session = &mut self.sessions[turns[number % turns.len()]];
            if session.asked || session.state != State::Live {
                skipped += 1;
                continue;
            }
            (session.asked, session.due) = (true, u32::try_from(number)?);
            if !session.write(&ping) {
                return Err("a session that pings is gone".into());
            }
        }
        let expected = (count - skipped) as u64;
        while self.counts.answers < expected && last.elapsed() < SETTLE {
            self.turn(Duration::ZERO)?;
        }
        let mut outcome = self.outcome(expected);
        outcome["skipped"] = skipped.into();
        Ok(outcome)
    }

    fn storm(&mut self, at_most: Duration) -> Result<Value> {
        self.begin();
        self.reconnects = true;
        let (cut, begun) = (self.counts.live, Instant::now());
        for index in 0..self.sessions.len() {
            if self.sessions[index].state == State::Live {
                self.sessions[index].cut();
                self.ended(index, Duration::ZERO);
            }
        }
        self.counts.lost = 0;
        while self.counts.live < cut && begun.elapsed() < at_most {
            self.turn(LOOK_EVERY)?;
        }
        self.reconnects = false;
        let mut each_second = vec![0_u64; begun.elapsed().as_secs() as usize + 1];
        for lived in &self.lived {
            each_second[lived.saturating_duration_since(begun).as_secs() as usize] += 1;
        }
        let mut outcome = self.outcome(0);
        outcome["cut"] = cut.into();
        outcome["seconds"] = begun.elapsed().as_secs_f64().into();
        outcome["back_each_second"] = each_second.into();
        Ok(outcome)
    }

    fn outcome(&self, expected: u64) -> Value {
        let ms = |quantile: f64| milliseconds(&self.latencies, quantile);
        json!({
            "live": self.counts.live,
            "answers": self.counts.answers,
            "expected": expected,
            "refused": self.counts.refused,
            "lost": self.counts.lost,
            "closed_by_server": self.counts.closed_by_server,
            "not_taken": self.counts.not_taken,
            "p50_ms": ms(0.5),
            "p90_ms": ms(0.9),
            "p99_ms": ms(0.99),
            "max_ms": ms(1.0),
        })
    }
}

#[derive(Clone, Copy)]
struct Sender {
    session: usize,
    conversation: ConversationId,
}

/// An order of so many, the same for every server. In the order of their connecting they would reach a server that
/// shares them out in turn one thread after the other, and none would ever find two at once.
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut StdRng::seed_from_u64(1));
    order
}

fn milliseconds(micros: &Histogram<u64>, quantile: f64) -> f64 {
    micros.value_at_quantile(quantile) as f64 / 1000.0
}

fn number(word: &str) -> Result<usize> {
    word.parse().map_err(|_| format!("{word} is no number").into())
}
