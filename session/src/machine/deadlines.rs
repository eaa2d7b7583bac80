//! When the session wants to be woken, and what it does then.

use roost_protocol::{CloseCode, ErrorCode};

use super::opening::Stage;
use super::settings::ping_frame;
use super::{Context, Phase, Session, Settings};
use crate::framing::handshake::HttpError;

impl Session {
    /// When `handle_timeout` is to be called, on the steady clock. Later than an earlier answer is usual: a session
    /// that hears from its peer moves its next ping ahead with every byte.
    pub fn deadline(&self, settings: &Settings) -> Option<u64> {
        match &self.phase {
            Phase::Handshake(handshaking) => Some(handshaking.deadline_ms),
            Phase::Opening(opening) => Some(opening.deadline_ms),
            Phase::Closing { until_ms } => Some(*until_ms),
            Phase::Live => {
                let sends = self.outstanding.as_ref().and_then(|outstanding| outstanding.earliest_deadline());
                let own = self.keep_alive_ms(settings).min(self.token_ends_ms);
                Some(sends.map_or(own, |sends| sends.min(own)))
            }
            Phase::Http | Phase::Finished => None,
        }
    }

    /// Does what is due. Harmless when called too early.
    pub fn handle_timeout(&mut self, context: &Context<'_>) {
        let now_ms = context.now.steady_ms;
        match &self.phase {
            Phase::Handshake(handshaking) if now_ms >= handshaking.deadline_ms => {
                self.refuse_handshake(&HttpError::timeout(), context);
            }
            Phase::Opening(opening) if now_ms >= opening.deadline_ms => {
                let (stage, id) = (opening.stage, opening.connect_id);
                match stage {
                    Stage::Connecting => self.begin_close(CloseCode::ConnectTimeout, context),
                    Stage::Authenticating | Stage::Registering => {
                        let code = ErrorCode::Unavailable;
                        self.fail(id, code, code.help(), CloseCode::Overloaded, context);
                    }
                }
            }
            Phase::Closing { until_ms } if now_ms >= *until_ms => self.finish(),
            Phase::Live => self.live_timeout(context),
            _ => {}
        }
    }

    fn live_timeout(&mut self, context: &Context<'_>) {
        let now_ms = context.now.steady_ms;
        if now_ms >= self.token_ends_ms {
            return self.begin_close(CloseCode::TokenExpired, context);
        }
        while let Some(send) = self.outstanding.as_mut().and_then(|outstanding| outstanding.take_overdue(now_ms)) {
            self.send_again(&send, ErrorCode::Deadline, context);
        }
        if now_ms < self.keep_alive_ms(context.settings) {
            return;
        }
        if self.pinged_ms > 0 {
            return self.begin_close(CloseCode::Silent, context);
        }
        self.pinged_ms = now_ms.max(1);
        self.spoke_ms = now_ms;
        self.push(ping_frame(self.form), context);
    }

    /// Either side's silence makes a ping: the client, too, wants to hear something.
    fn keep_alive_ms(&self, settings: &Settings) -> u64 {
        let timings = &settings.timings;
        match self.pinged_ms {
            0 => self.heard_ms.min(self.spoke_ms) + timings.ping_ms,
            pinged_ms => pinged_ms + timings.pong_grace_ms,
        }
    }
}
