//! What the gateway counts: evidence for tests, and figures for the operator.

use std::sync::atomic::{AtomicU64, Ordering};

use roost_protocol::CloseCode;
use roost_session::machine::Ending;

use crate::admission::Reason;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $field:ident = $name:literal;)*) => {
        /// Counters since the start, readable at any time.
        pub struct Metrics {
            $($(#[doc = $doc])* pub $field: Counter,)*
            closes: Vec<Counter>,
            peer_closes: Counter,
            lost: Counter,
        }

        impl Metrics {
            pub(crate) fn new() -> Self {
                Self {
                    $($field: Counter::new(metrics::counter!($name)),)*
                    closes: CloseCode::ALL
                        .iter()
                        .map(|code| Counter::new(metrics::counter!("roost_gateway_closes", "code" => code.code().to_string())))
                        .collect(),
                    peer_closes: Counter::new(metrics::counter!("roost_gateway_closes", "code" => "peer")),
                    lost: Counter::new(metrics::counter!("roost_gateway_closes", "code" => "lost")),
                }
            }

            /// Every counter with its name, the closes by code included.
            pub fn snapshot(&self) -> Vec<(String, u64)> {
                let mut all = vec![$((stringify!($field).to_owned(), self.$field.get()),)*];
                for code in CloseCode::ALL {
                    all.push((format!("closes_{}", code.code()), self.closed(*code)));
                }
                all.push(("closes_peer".to_owned(), self.peer_closes.get()));
                all.push(("closes_lost".to_owned(), self.lost.get()));
                all
            }
        }
    };
}

counters! {
    /// Connections accepted.
    accepted = "roost_gateway_accepted";
    /// Sessions that became live.
    sessions_begun = "roost_gateway_sessions_begun";
    /// Sends put into the log.
    sends = "roost_gateway_sends";
    /// Sends answered `retry`.
    retries = "roost_gateway_retries";
    /// Verdicts and messages that told a session's sender something new.
    settled = "roost_gateway_settled";
    /// Late words that were kept from sessions: of another life, or for a session that is gone or was answered.
    suppressed = "roost_gateway_suppressed";
    /// Frames put into session queues by deliveries.
    delivered = "roost_gateway_delivered";
    /// Heads put into session queues unasked.
    heads_unsolicited = "roost_gateway_heads_unsolicited";
    /// Deliveries refused because a shard's mailbox was full.
    deliveries_busy = "roost_gateway_deliveries_busy";
    /// Delivered records that do not decode.
    undecodable = "roost_gateway_undecodable";
    /// Times that everything was registered again.
    reregistrations = "roost_gateway_reregistrations";
    /// Sessions that became live although the Registry did not answer.
    registered_late = "roost_gateway_registered_late";
    /// Leases lost.
    leases_lost = "roost_gateway_leases_lost";
    /// Times that accepting was paused.
    accept_pauses = "roost_gateway_accept_pauses";
    /// Times that accepting waited for a token of the handshakes' bucket.
    accept_paces = "roost_gateway_accept_paces";
    /// Handshakes refused because the gateway holds as many connections as it may.
    refused_full = "roost_gateway_refused_full";
    /// Handshakes refused because the gateway is being drained.
    refused_draining = "roost_gateway_refused_draining";
    /// Handshakes refused because their address has as many connections as it may.
    refused_address_connections = "roost_gateway_refused_address_connections";
    /// Handshakes refused because their address begins too many.
    refused_address_rate = "roost_gateway_refused_address_rate";
    /// Sessions refused because their user has as many as are allowed.
    refused_user_sessions = "roost_gateway_refused_user_sessions";
    /// Connections closed without an answer, because their address had had enough of them.
    dropped = "roost_gateway_dropped";
    /// Connections of a trusted proxy that were closed because they did not begin with its header.
    refused_proxy_headers = "roost_gateway_refused_proxy_headers";
    /// Sends and requests that were over their session's rate.
    rate_limited = "roost_gateway_rate_limited";
    /// Syncs that had to wait for the bucket of resumes.
    resumes_delayed = "roost_gateway_resumes_delayed";
    /// Syncs that were told to come back, because the bucket of resumes was empty for too long.
    resumes_refused = "roost_gateway_resumes_refused";
    /// Times that a shard was found to make no progress.
    stalls = "roost_gateway_stalls";
    /// Connections handed over to the HTTP server.
    handed_over = "roost_gateway_handed_over";
}

impl Metrics {
    /// Sessions closed by us with this code.
    pub fn closed(&self, code: CloseCode) -> u64 {
        CloseCode::ALL.iter().position(|known| *known == code).map_or(0, |at| self.closes[at].get())
    }

    pub(crate) fn count_refusal(&self, reason: Reason) {
        match reason {
            Reason::Full => &self.refused_full,
            Reason::Draining => &self.refused_draining,
            Reason::AddressConnections => &self.refused_address_connections,
            Reason::AddressRate => &self.refused_address_rate,
        }
        .add(1);
    }

    pub(crate) fn count_ending(&self, ending: Option<Ending>) {
        match ending {
            Some(Ending::Ours(code)) => {
                if let Some(at) = CloseCode::ALL.iter().position(|known| *known == code) {
                    self.closes[at].add(1);
                }
            }
            Some(Ending::Peers(_)) => self.peer_closes.add(1),
            Some(Ending::Lost) => self.lost.add(1),
            Some(Ending::Http(_)) | None => {}
        }
    }
}

/// A number that only rises.
pub struct Counter {
    value: AtomicU64,
    exported: metrics::Counter,
}

impl Counter {
    fn new(exported: metrics::Counter) -> Self {
        Self { value: AtomicU64::new(0), exported }
    }

    pub(crate) fn add(&self, count: u64) {
        if count > 0 {
            self.value.fetch_add(count, Ordering::Relaxed);
            self.exported.increment(count);
        }
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}
