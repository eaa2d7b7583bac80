//! The threads of a producer: one for each broker, which sends and waits for the answer, and one that asks where the
//! leaders are.
//!
//! Threads that block, because each has one connection and one request on it: what comes meanwhile goes with the next.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::Ticket;
use super::line::{Answers, Line, Shipment};
use super::wire::{self, Api, Batch, Metadata, Produced, ProducerId};

const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Longer than a broker waits for its replicas.
const PRODUCE_WITHIN: Duration = Duration::from_secs(30);
/// Of a question; the next broker is asked after that.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A connection that was silent for longer is made anew: brokers close those that are idle for ten minutes.
const TRUSTED_IDLE: Duration = Duration::from_secs(300);
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// The shortest time between two requests to a broker for what is patient: a request costs the broker the same for one
/// record as for many, and so does the transaction that follows from it. After a longer silence nothing waits.
const PACE: Duration = Duration::from_millis(4);

/// What all threads of a producer share.
pub(super) struct Shared {
    /// `host:port` of brokers that know the others.
    bootstrap: Vec<String>,
    state: Mutex<State>,
    asked: Condvar,
}

struct State {
    line: Line<Ticket>,
    links: BTreeMap<i32, Link>,
    closed: bool,
}

/// The thread of one broker.
struct Link {
    stirred: Arc<Condvar>,
    /// It waits without a time.
    idle: bool,
}

impl Link {
    fn stir(&mut self) {
        if std::mem::take(&mut self.idle) {
            self.stirred.notify_one();
        }
    }
}

impl Shared {
    pub(super) fn start(brokers: &str) -> io::Result<Arc<Self>> {
        let state = State { line: Line::new(), links: BTreeMap::new(), closed: false };
        let shared = Arc::new(Self {
            bootstrap: brokers.split(',').map(str::to_owned).collect(),
            state: Mutex::new(state),
            asked: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("kafka-leaders".into()).spawn(move || own.look_for_leaders())?;
        Ok(shared)
    }

    /// Puts what the closure makes in line, under the lock of the line, and wakes whoever sends it.
    pub(super) fn push(
        &self,
        topic: &str,
        patient: bool,
        records: impl FnOnce() -> Vec<(u32, super::line::Waiting<Ticket>)>,
    ) {
        let mut state = self.state.lock();
        let State { line, links, .. } = &mut *state;
        let mut unknown = false;
        for (partition, record) in records() {
            match line.push(topic, patient, partition, record).and_then(|broker| links.get_mut(&broker)) {
                Some(link) => link.stir(),
                None => unknown = true,
            }
        }
        if unknown {
            self.asked.notify_one();
        }
    }

    /// What is in line is sent once more; what does not arrive then is unknown.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for link in state.links.values() {
            link.stirred.notify_one();
        }
        self.asked.notify_one();
    }

    /// The thread of one broker.
    fn send_to(&self, broker: i32, stirred: &Condvar) {
        let mut connection = Connection::default();
        let mut sent_at = None;
        while let Some((shipments, producer, address)) = self.next_for(broker, stirred, sent_at) {
            sent_at = Some(Instant::now());
            let exchanged = connection.produce(&address, producer, &shipments);
            let mut state = self.state.lock();
            let answers = match exchanged {
                Ok(produced) => state.line.answered(shipments, &produced, Instant::now()),
                Err(error) => {
                    tracing::warn!(%error, broker, address, "kafka producer: sending again");
                    connection = Connection::default();
                    state.line.lost(shipments, Instant::now())
                }
            };
            if state.line.wants() != (false, false) {
                self.asked.notify_one();
            }
            drop(state);
            tell(answers);
        }
    }

    /// Waits for something to send to this broker; none when the producer is closed and there is nothing more.
    fn next_for(
        &self,
        broker: i32,
        stirred: &Condvar,
        sent_at: Option<Instant>,
    ) -> Option<(Vec<Shipment<Ticket>>, ProducerId, String)> {
        let patience_ends = sent_at.map(|at| at + PACE);
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let due = state.line.due(broker, patience_ends).map(|at| at.filter(|&at| at > now));
            match due {
                Some(None) => {
                    let shipments = state.line.take(broker, now);
                    let (producer, address) = (state.line.producer()?, state.line.address(broker).unwrap_or_default());
                    return Some((shipments, producer, address));
                }
                _ if state.closed => return None,
                Some(Some(at)) => drop(stirred.wait_until(&mut state, at)),
                None => {
                    state.links.get_mut(&broker)?.idle = true;
                    stirred.wait(&mut state);
                }
            }
        }
    }

    /// The thread that asks for leaders and for a producer's id, whenever somebody misses one.
    fn look_for_leaders(self: Arc<Self>) {
        let mut connection = Connection::default();
        let (mut failures, mut turn) = (0, 0);
        loop {
            let (wanted, known) = {
                let mut state = self.state.lock();
                while state.line.wants() == (false, false) && !state.closed {
                    failures = 0;
                    self.asked.wait(&mut state);
                }
                if state.closed {
                    return;
                }
                let known: Vec<String> = state.line.brokers().map(|(_, address)| address.to_owned()).collect();
                ((state.line.wants(), state.line.topics()), known)
            };
            let addresses: Vec<&String> = known.iter().chain(&self.bootstrap).collect();
            let address = addresses[turn % addresses.len()];
            let ((wants_leaders, wants_producer), topics) = wanted;
            let leaders = wants_leaders.then(|| connection.metadata(address, &topics)).transpose();
            let producer = leaders
                .and_then(|leaders| Ok((leaders, wants_producer.then(|| connection.producer(address)).transpose()?)));
            match producer {
                Ok((leaders, producer)) => self.learn(leaders.as_ref(), producer),
                Err(error) => {
                    tracing::warn!(%error, address, "kafka producer: asking another broker");
                    connection = Connection::default();
                    turn += 1;
                }
            }
            // What is still missing is asked for again: an election takes its time.
            if self.state.lock().line.wants() != (false, false) {
                std::thread::sleep((ASK_AGAIN.0 * (1 << failures.min(10))).min(ASK_AGAIN.1));
                failures += 1;
            }
        }
    }

    fn learn(self: &Arc<Self>, leaders: Option<&Metadata>, producer: Option<ProducerId>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let answers = leaders.map(|leaders| state.line.learn(leaders, Instant::now())).unwrap_or_default();
        if let Some(producer) = producer {
            state.line.set_producer(producer);
        }
        let brokers: Vec<i32> = state.line.brokers().map(|(broker, _)| broker).collect();
        for broker in brokers.into_iter().filter(|broker| !state.links.contains_key(broker)).collect::<Vec<_>>() {
            let (own, stirred) = (Arc::clone(self), Arc::new(Condvar::new()));
            let link = Link { stirred: Arc::clone(&stirred), idle: false };
            let thread = std::thread::Builder::new().name(format!("kafka-to-{broker}"));
            match thread.spawn(move || own.send_to(broker, &stirred)) {
                Ok(_) => drop(state.links.insert(broker, link)),
                // Tried again with the next answer.
                Err(error) => tracing::error!(%error, broker, "a thread for a kafka broker"),
            }
        }
        for link in state.links.values_mut() {
            link.idle = false;
            link.stirred.notify_one();
        }
        tell(answers);
    }
}

fn tell(answers: Answers<Ticket>) {
    for (ticket, answer) in answers {
        ticket.settle(answer);
    }
}

/// A connection to a broker, made when it is needed.
#[derive(Default)]
struct Connection {
    stream: Option<TcpStream>,
    address: String,
    used: Option<Instant>,
    correlation: i32,
}

impl Connection {
    fn produce(
        &mut self,
        address: &str,
        producer: ProducerId,
        shipments: &[Shipment<Ticket>],
    ) -> io::Result<Vec<Produced>> {
        let mut batches: Vec<Batch<'_>> = shipments
            .iter()
            .map(|shipment| Batch {
                topic: &shipment.topic,
                partition: i32::try_from(shipment.partition).unwrap_or(i32::MAX),
                base_sequence: shipment.base_sequence,
                payloads: shipment.records.iter().map(|record| &record.payload).collect(),
            })
            .collect();
        batches.sort_by_key(|batch| batch.topic);
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let body = |bytes: &mut Vec<u8>| wire::produce_body(bytes, producer, now_ms, &batches);
        let mut answer = self.exchange(address, PRODUCE_WITHIN, wire::PRODUCE, body)?;
        wire::read_produced(&mut answer).map_err(io::Error::other)
    }

    fn metadata(&mut self, address: &str, topics: &[Arc<str>]) -> io::Result<Metadata> {
        let body = |bytes: &mut Vec<u8>| wire::metadata_body(bytes, topics.iter().map(|topic| &**topic));
        let mut answer = self.exchange(address, ANSWER_WITHIN, wire::METADATA, body)?;
        wire::read_metadata(&mut answer).map_err(io::Error::other)
    }

    fn producer(&mut self, address: &str) -> io::Result<ProducerId> {
        let mut answer = self.exchange(address, ANSWER_WITHIN, wire::INIT_PRODUCER_ID, wire::init_producer_id_body)?;
        let producer = wire::read_producer_id(&mut answer).map_err(io::Error::other)?;
        producer.map_err(|code| io::Error::other(format!("no producer's id: code {code}")))
    }

    /// One request, and its answer without the head.
    fn exchange(
        &mut self,
        address: &str,
        within: Duration,
        api: Api,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<Bytes> {
        if self.address != address || self.used.is_none_or(|used| used.elapsed() > TRUSTED_IDLE) {
            self.stream = None;
        }
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                address.clone_into(&mut self.address);
                none.insert(connect(address)?)
            }
        };
        stream.set_read_timeout(Some(within))?;
        self.correlation = self.correlation.wrapping_add(1);
        stream.write_all(&wire::request(api, self.correlation, body))?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the broker's answer is too large"));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        self.used = Some(Instant::now());
        let mut answer = Bytes::from(answer);
        if wire::correlation(&mut answer).map_err(io::Error::other)? != self.correlation {
            return Err(io::Error::other("the broker's answer is to another request"));
        }
        Ok(answer)
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut error = io::Error::other(format!("no address for {address}"));
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PRODUCE_WITHIN))?;
                return Ok(stream);
            }
            Err(failed) => error = failed,
        }
    }
    Err(error)
}
