//! From the records of a partition to the buffers of the gateways: planned, looked up where needed, sent in order.

use super::{
    Arc, Bytes, ConversationId, DeliverRecord, Effect, HashMap, LOOKUP_RETRY_MS, LogRecord, Machine, Partition,
    Position, Purpose, Query, QueryFailure, RecordError, Route, Step, backoff_ms,
};

/// Records that are dispatched once all their routes are known.
pub(super) struct Plan {
    records: Vec<Planned>,
    routes: HashMap<ConversationId, Arc<Route>>,
    missing: Vec<Query>,
}

enum Planned {
    Message { position: Position, next: Position, record: DeliverRecord, bytes: Bytes },
    Poison { next: Position, reason: &'static str },
}

impl Machine {
    /// Plans the next records of a partition, and looks up or dispatches them.
    pub(super) fn begin_dispatch(&mut self, partition: u32, now_ms: u64) {
        let crowded = self.settling.len() >= self.config.unsettled_max;
        let (records_max, stopping) = (self.config.dispatch_records_max, self.stopping);
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        if let Some(command) = found.intake.regulate(partition) {
            self.steps.push_back(Step::Consumer(command));
        }
        if found.looking || found.refused || now_ms < found.retry_at {
            return;
        }
        if found.plan.is_none() {
            if found.intake.is_empty() || crowded || stopping {
                return;
            }
            match plan(found, records_max) {
                Ok(plan) => found.plan = Some(plan),
                Err(version) => {
                    found.refused = true;
                    return self
                        .alarm(partition, format!("a record of format {version} is newer than this build reads"));
                }
            }
        }
        self.look_up_or_send(partition, now_ms);
    }

    pub(super) fn on_planned(
        &mut self,
        partition: u32,
        generation: u64,
        routes: Vec<(ConversationId, Result<Route, QueryFailure>)>,
        now_ms: u64,
    ) {
        let routes: Vec<_> = routes.into_iter().map(|(id, route)| (id, route.map(Arc::new))).collect();
        for (conversation, route) in &routes {
            if let Ok(route) = route {
                self.cache.insert(*conversation, Arc::clone(route));
            }
        }
        let patience = self.config.unknown_conversation_attempts;
        let Some(found) = self.current(partition, generation) else { return };
        found.looking = false;
        let Some(plan) = &mut found.plan else { return };
        let mut failed = None;
        let mut lost = None;
        for (conversation, route) in routes {
            match route {
                Ok(route) => {
                    plan.routes.insert(conversation, route);
                }
                // The Store may be a moment behind after a failover; a conversation that it really lost must not hold
                // up everyone else's.
                Err(QueryFailure::Unknown) if found.failures >= patience => {
                    lost = Some(conversation);
                    plan.missing.retain(|query| query.conversation != conversation);
                }
                Err(failure) => failed = Some(failure),
            }
        }
        plan.missing.retain(|query| !plan.routes.contains_key(&query.conversation));
        match failed {
            Some(failure) => {
                found.failures += 1;
                found.retry_at = now_ms + backoff_ms(found.failures, LOOKUP_RETRY_MS.0, LOOKUP_RETRY_MS.1);
                tracing::warn!(partition, ?failure, "a look-up is tried again");
            }
            None => found.failures = 0,
        }
        if let Some(conversation) = lost {
            self.alarm(partition, format!("the store does not know the conversation {conversation}"));
        }
    }

    fn look_up_or_send(&mut self, partition: u32, now_ms: u64) {
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        let Some(plan) = &mut found.plan else { return };
        let cache = &mut self.cache;
        let routes = &mut plan.routes;
        let route_ms_max = self.config.route_ms_max;
        plan.missing.retain_mut(|query| {
            let Some(route) = cache.get(query.conversation) else { return true };
            let exact = route.list.version == query.version;
            query.list = exact.then(|| Arc::clone(&route.list));
            let usable = exact && now_ms.saturating_sub(route.at_ms) <= route_ms_max;
            if usable {
                routes.insert(query.conversation, route);
            }
            !usable
        });
        if plan.missing.is_empty() {
            if let Some(plan) = found.plan.take() {
                self.dispatch(partition, plan, now_ms);
            }
            return;
        }
        found.looking = true;
        let (queries, generation) = (plan.missing.clone(), found.generation);
        let number = self.number();
        self.lookups.insert(number, Purpose::Dispatch { partition, generation });
        self.work(Effect::Lookup { number, queries, at_ms: now_ms });
    }

    fn dispatch(&mut self, partition: u32, plan: Plan, now_ms: u64) {
        self.evidence.records.add(plan.records.len() as u64);
        for planned in plan.records {
            let (position, next, record, bytes) = match planned {
                Planned::Message { position, next, record, bytes } => (position, next, record, bytes),
                Planned::Poison { next, reason } => {
                    self.settling.passed(partition, next);
                    self.alarm(partition, format!("a record in deliver is not ours: {reason}"));
                    continue;
                }
            };
            let (conversation, seq) = (record.message.conversation_id, record.message.seq);
            let Some(route) = plan.routes.get(&conversation) else {
                self.settling.passed(partition, next);
                continue;
            };
            let numbers = (seq, record.members_version);
            self.settling.dispatched(partition, conversation, numbers, (position, next), now_ms);
            for (endpoint, audience) in route.audiences(seq) {
                if self.gone.contains(&endpoint.incarnation) {
                    continue;
                }
                if !self.link(endpoint).push_message(conversation, seq, audience, bytes.clone()) {
                    self.evidence.overflow.add(1);
                }
            }
        }
    }
}

/// The next records of a partition with what their routes need; or the format of a first record that is too new.
fn plan(found: &mut Partition, records_max: usize) -> Result<Plan, u32> {
    let mut records = Vec::new();
    let mut missing: Vec<Query> = Vec::new();
    let mut asked: HashMap<ConversationId, usize> = HashMap::new();
    for LogRecord { position, next, payload } in found.intake.records().take(records_max) {
        let (position, next) = (*position, *next);
        match DeliverRecord::decode(payload.clone()) {
            Ok(record) => {
                let (conversation, version) = (record.message.conversation_id, record.members_version);
                let index = *asked.entry(conversation).or_insert_with(|| {
                    missing.push(Query { conversation, version, list: None });
                    missing.len() - 1
                });
                missing[index].version = missing[index].version.max(version);
                records.push(Planned::Message { position, next, record, bytes: payload.clone() });
            }
            Err(RecordError::Poison(reason)) => records.push(Planned::Poison { next, reason }),
            Err(RecordError::Newer(version)) if records.is_empty() => return Err(version),
            Err(RecordError::Newer(_)) => break,
        }
    }
    found.intake.take(records.len());
    Ok(Plan { records, routes: HashMap::new(), missing })
}
