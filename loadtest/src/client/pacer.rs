//! The schedule: an open loop. Everything has a moment when it is due and counts from then, whether or not the client
//! got round to it, so that a stalled server cannot hide behind a stalled client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::{self, Nanos, SECOND};
use crate::plan::Plan;
use crate::task::{Task, Traffic};

/// Something that one of this child's sessions does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which of the child's sessions.
    pub session: u32,
    /// The conversation it writes to; none for a ping.
    pub conversation: Option<u32>,
    /// When.
    pub due: Nanos,
}

/// The pacer looks up at least so often, so that an earlier end is seen.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Batches that wait for the sessions' thread; beyond, the pacer waits, and what is due meanwhile keeps its moment.
const BATCHES_MAX: usize = 1_024;

/// Hands out what is due, in batches of what has come due meanwhile, until `until`.
///
/// A thread of its own: a runtime's timer would be off by a millisecond.
pub fn start(task: &Task, begin: Nanos, until: Arc<AtomicU64>) -> mpsc::Receiver<Vec<Due>> {
    let (sender, receiver) = mpsc::channel(BATCHES_MAX);
    let schedule = Schedule::of(task, begin);
    std::thread::spawn(move || {
        let mut next = schedule.own_from(0);
        let mut batch = Vec::new();
        while let Some((number, due)) = next {
            if due.due >= until.load(Ordering::Relaxed) {
                break;
            }
            let wait = clock::until(due.due);
            if wait.is_zero() {
                batch.push(due);
                next = schedule.own_from(number + 1);
                continue;
            }
            if !batch.is_empty() && sender.blocking_send(std::mem::take(&mut batch)).is_err() {
                return;
            }
            std::thread::sleep(wait.min(LOOK_UP));
        }
        // The receiver learns of the end when the sender is dropped.
        let _ = sender.blocking_send(batch);
        if schedule.limit.is_none() {
            while clock::now() < until.load(Ordering::Relaxed) {
                std::thread::sleep(clock::until(until.load(Ordering::Relaxed)).min(LOOK_UP));
            }
        }
    });
    receiver
}

/// Who does what when; every child works out the same, and does its own part.
struct Schedule {
    plan: Plan,
    traffic: Traffic,
    users: crate::plan::Range,
    first: u32,
    count: u32,
    begin: Nanos,
    limit: Option<u64>,
    /// For [`Traffic::EachGroup`]: the session that writes to each group.
    writers: Vec<Option<u32>>,
}

/// Numbers looked at before the pacer comes up for air: a child with few of the sessions skips the others' quickly.
const SKIP_MAX: u64 = 10_000_000;

impl Schedule {
    fn of(task: &Task, begin: Nanos) -> Self {
        let writers = match task.traffic {
            Traffic::EachGroup { groups, .. } => (0..groups).map(|group| writer(task, group)).collect(),
            _ => Vec::new(),
        };
        Self {
            plan: task.plan.clone(),
            traffic: task.traffic,
            users: task.users,
            first: task.first,
            count: task.count,
            begin,
            limit: task.traffic.limit(),
            writers,
        }
    }

    /// The first of our own things from the n-th thing on.
    fn own_from(&self, number: u64) -> Option<(u64, Due)> {
        let per_second = self.traffic.per_second();
        if per_second == 0 {
            return None;
        }
        let end = self.limit.unwrap_or(u64::MAX).min(number.saturating_add(SKIP_MAX));
        (number..end).find_map(|number| {
            let (session, conversation) = self.who(number)?;
            let session = session.checked_sub(self.first).filter(|&session| session < self.count)?;
            let after = u128::from(number) * u128::from(SECOND) / u128::from(per_second);
            let due = self.begin.saturating_add(u64::try_from(after).unwrap_or(u64::MAX));
            Some((number, Due { session, conversation, due }))
        })
    }

    /// The session of the whole run that does the n-th thing, and the conversation.
    fn who(&self, number: u64) -> Option<(u32, Option<u32>)> {
        let small = |number: u64| u32::try_from(number).expect("below a u32");
        Some(match self.traffic {
            Traffic::Pairs { .. } => {
                let pairs = u64::from(self.users.count / 2);
                let (pair, side) = (number % pairs, number / pairs % 2);
                let session = small(pair * 2 + side);
                (session, Some(self.users.at(session, self.plan.users) / 2))
            }
            Traffic::Group { group, .. } => (0, Some(self.plan.pairs + group)),
            Traffic::EachGroup { .. } => {
                let writer = (*self.writers.get(usize::try_from(number).ok()?)?)?;
                (writer, Some(self.plan.pairs + small(number)))
            }
            Traffic::Pings { .. } => (small(number % u64::from(self.users.count)), None),
        })
    }
}

/// The first session of the run that is a member of the group.
fn writer(task: &Task, group: u32) -> Option<u32> {
    let members = task.plan.groups.get(group as usize)?.members;
    (0..members.count).find_map(|place| task.users.place_of(members.at(place, task.plan.users)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Range;
    use crate::task::Trouble;

    fn task(first: u32, count: u32, traffic: Traffic) -> Task {
        let plan = r#"{"issuer":"","audience":"","kid":"","private_key":"","seed":[0,0,0,0,0],"users":100,"pairs":50,
            "groups":[{"conversation_id":"018f2f3c-0000-7000-8000-000000000001","members":{"first":2,"step":10,"count":9}}]}"#;
        Task {
            plan: serde_json::from_str(plan).expect("a plan"),
            begun: 0,
            run: 1,
            targets: Vec::new(),
            sources: Vec::new(),
            users: Range { first: 10, step: 1, count: 40 },
            first,
            count,
            rate: 1.0,
            traffic,
            body_bytes: 16,
            trouble: Trouble::None,
            share: 0.0,
            settle: 0,
        }
    }

    fn all(task: &Task, until: u64) -> Vec<(u64, Due)> {
        let schedule = Schedule::of(task, 0);
        let mut found = Vec::new();
        let mut next = schedule.own_from(0);
        while let Some((number, due)) = next.filter(|(number, _)| *number < until) {
            found.push((number, due));
            next = schedule.own_from(number + 1);
        }
        found
    }

    #[test]
    fn the_parts_of_all_children_are_the_whole_schedule() {
        let traffic = Traffic::Pairs { per_second: 10 };
        let parts = [(0, 13), (13, 20), (33, 7)].map(|(first, count)| all(&task(first, count, traffic), 80));
        let mut numbers: Vec<u64> = parts.iter().flatten().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..80).collect::<Vec<_>>());
        let second = parts[0].iter().find(|(number, _)| *number == 21).expect("the second user of the second pair").1;
        assert_eq!(second, Due { session: 3, conversation: Some(6), due: 2_100_000_000 });
    }

    #[test]
    fn each_group_is_written_to_by_a_member_that_is_connected() {
        let due = all(&task(0, 40, Traffic::EachGroup { groups: 1, per_second: 1 }), 10);
        assert_eq!(due, [(0, Due { session: 2, conversation: Some(50), due: 0 })], "user 12 is session 2");
    }
}
