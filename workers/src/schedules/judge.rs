//! What must hold after every seed, judged against the log applied record by record, in order, by nobody but the rules.

use std::collections::{BTreeMap, HashMap, HashSet};

use roost_ports::log::Position;
use roost_ports::store::apply::Poison;
use roost_ports::store::numbering::Identity;
use roost_ports::store::{Outcome, PartBatch};
use roost_protocol::frames::{HistoryRange, Message};
use roost_protocol::records::{DeliverRecord, IngressRecord};
use roost_protocol::{ConversationId, Seq};

use super::model::State;
use super::world::{World, is_refused};
use super::{PARTITIONS, load::Load};
use crate::persist::batching;

/// Every promise, or the first that is broken.
pub(super) async fn judge(world: &World<'_>) -> Result<(), String> {
    let truth = Truth::of(&world.load);
    verdicts_never_contradict(world, &truth)?;
    everything_is_in_deliver(world, &truth)?;
    dead_letters_are_exactly_the_poison(world, &truth)?;
    progress_is_at_the_end(world).await?;
    history_is_dense_and_true(world, &truth).await?;
    outcomes_are_kept(world, &truth).await
}

/// What the log means.
struct Truth {
    state: State,
    outcomes: BTreeMap<(u32, Position), Outcome>,
    /// Every identity in the log, in the order of its first record.
    identities: Vec<Identity>,
}

impl Truth {
    fn of(load: &Load) -> Self {
        let mut state = State::default();
        for &user in load.members.iter().chain([&load.foreigner]) {
            state.add_user(user);
        }
        let mut outcomes = BTreeMap::new();
        let mut identities = Vec::new();
        let mut seen = HashSet::new();
        for (partition, records) in (0..PARTITIONS).zip(&load.log) {
            for record in records {
                let mut incoming = batching::read(record, partition, PARTITIONS).expect("no newer format is written");
                if incoming.content.as_ref().is_ok_and(is_refused) {
                    let reason = "the store refuses its data".to_owned();
                    incoming.content = Err(Poison { reason, payload: record.payload.clone() });
                }
                if let Ok(ingress) = &incoming.content {
                    let identity = Identity::of(ingress);
                    if seen.insert(identity) {
                        identities.push(identity);
                    }
                }
                let records = vec![incoming];
                let part = PartBatch { partition, epoch: 0, from: Position(0), published: Position(0), records };
                let outcome = state.apply_parts(&[&part]).remove(0).remove(0);
                outcomes.insert((partition, record.position), outcome);
            }
        }
        Self { state, outcomes, identities }
    }
}

fn verdicts_never_contradict(world: &World<'_>, truth: &Truth) -> Result<(), String> {
    for (request, told) in &world.verdicts {
        let place = world.load.requests[*request as usize];
        let meant = truth.outcomes[&place].verdict();
        if meant.as_ref() != Some(told) {
            return Err(format!("request {request} at {place:?} was told {told:?}, and the log means {meant:?}"));
        }
    }
    Ok(())
}

fn everything_is_in_deliver(world: &World<'_>, truth: &Truth) -> Result<(), String> {
    let mut delivered: HashMap<(ConversationId, Seq), DeliverRecord> = HashMap::new();
    for (partition, payload) in &world.deliver {
        let record = DeliverRecord::decode(payload.clone()).map_err(|error| error.to_string())?;
        let conversation = record.message.conversation_id;
        if roost_protocol::partition::of(conversation, PARTITIONS) != *partition {
            return Err(format!("a message of {conversation} was published in partition {partition}"));
        }
        let number = (conversation, record.message.seq);
        if let Some(before) = delivered.insert(number, record.clone())
            && before != record
        {
            return Err(format!("{number:?} means two messages: {before:?} and {record:?}"));
        }
    }
    let mut meant = 0;
    for (place, outcome) in &truth.outcomes {
        let Outcome::Numbered(record) = outcome else { continue };
        meant += 1;
        let number = (record.message.conversation_id, record.message.seq);
        match delivered.get(&number) {
            None => return Err(format!("{number:?} at {place:?} never reached deliver")),
            Some(found) if found != record.as_ref() => {
                return Err(format!("deliver says {found:?} where the log means {record:?}"));
            }
            Some(_) => {}
        }
    }
    match delivered.len() == meant {
        true => Ok(()),
        false => Err(format!("deliver holds {} numbers where the log means {meant}", delivered.len())),
    }
}

fn dead_letters_are_exactly_the_poison(world: &World<'_>, truth: &Truth) -> Result<(), String> {
    let noticed: HashSet<String> = world
        .dead_letters
        .iter()
        .map(|(_, payload)| {
            let text = String::from_utf8_lossy(payload);
            text.split(r#","digest""#).next().unwrap_or_default().to_owned()
        })
        .collect();
    let dead = truth.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::DeadLetter { .. }));
    let meant: HashSet<String> = dead
        .map(|((partition, position), _)| format!(r#"{{"version":1,"partition":{partition},"position":{}"#, position.0))
        .collect();
    match noticed == meant {
        true => Ok(()),
        false => Err(format!("dead letters were noticed of {noticed:?}, and the log means {meant:?}")),
    }
}

async fn progress_is_at_the_end(world: &World<'_>) -> Result<(), String> {
    for partition in 0..PARTITIONS {
        let claim = world.store.claim(&world.log_id, partition).await.map_err(|error| error.to_string())?;
        let end = world.load.end(partition);
        if claim.next != end || claim.published != end {
            let alarms = &world.alarms;
            return Err(format!("partition {partition} rests at {claim:?}, its log ends at {end:?}; {alarms:?}"));
        }
    }
    Ok(())
}

async fn history_is_dense_and_true(world: &World<'_>, truth: &Truth) -> Result<(), String> {
    for &conversation in &world.load.conversations {
        let mut messages: Vec<Message> = Vec::new();
        loop {
            let range = HistoryRange::After(messages.len() as Seq);
            let page = world.store.history(world.load.members[0], conversation, range, 50).await;
            let page = page.map_err(|error| format!("the history of {conversation}: {error}"))?;
            let empty = page.messages.is_empty();
            messages.extend(page.messages);
            if empty || !page.more {
                break;
            }
        }
        let dense = messages.iter().zip(1..).all(|(message, seq)| message.seq == seq);
        if !dense || messages != truth.state.messages(conversation) {
            return Err(format!("the history of {conversation} is not what the log means: {messages:?}"));
        }
        sends_keep_their_order(&messages, truth)?;
    }
    Ok(())
}

/// One sender's messages have numbers in the order in which they were first put into the log.
fn sends_keep_their_order(messages: &[Message], truth: &Truth) -> Result<(), String> {
    let order: HashMap<&Identity, usize> = truth.identities.iter().zip(0..).collect();
    let mut last: HashMap<roost_protocol::UserId, usize> = HashMap::new();
    for message in messages {
        let (conversation_id, sender_id, client_msg_id) =
            (message.conversation_id, message.sender_id, message.client_msg_id);
        let identity = Identity { conversation_id, sender_id, client_msg_id };
        let Some(&place) = order.get(&identity) else { return Err(format!("{identity:?} was never sent")) };
        if last.insert(sender_id, place).is_some_and(|before| before >= place) {
            return Err(format!("{identity:?} is out of its sender's order, or stands there twice"));
        }
    }
    Ok(())
}

async fn outcomes_are_kept(world: &World<'_>, truth: &Truth) -> Result<(), String> {
    let mut first: HashMap<Identity, &Outcome> = HashMap::new();
    for (partition, records) in (0..PARTITIONS).zip(&world.load.log) {
        for record in records {
            let outcome = &truth.outcomes[&(partition, record.position)];
            if let (false, Ok(ingress)) =
                (matches!(outcome, Outcome::DeadLetter { .. }), IngressRecord::decode(&record.payload))
            {
                first.entry(Identity::of(&ingress)).or_insert(outcome);
            }
        }
    }
    for (identity, outcome) in first {
        let kept = world.store.outcome(identity.conversation_id, identity.sender_id, identity.client_msg_id).await;
        let kept = kept.map_err(|error| error.to_string())?;
        if kept != outcome.verdict() {
            return Err(format!("{identity:?} is kept as {kept:?}, and was {outcome:?}"));
        }
    }
    Ok(())
}
