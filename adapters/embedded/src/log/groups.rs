//! Consumer groups inside the process: who owns which partition, and what each group has committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use roost_ports::log::{Assignment, Topic};
use tokio::sync::Notify;

use super::database::GroupOffset;

/// All groups of all topics.
pub struct Groups {
    groups: Mutex<Vec<Arc<Group>>>,
    partitions: u32,
    /// The last number given: of members and of assignments alike.
    numbers: AtomicU64,
}

/// A group of one topic.
pub struct Group {
    topic: Topic,
    name: String,
    state: Mutex<GroupState>,
}

struct GroupState {
    members: BTreeMap<u64, Arc<Mailbox>>,
    owners: Vec<Option<(u64, Assignment)>>,
    committed: Vec<Option<u64>>,
    /// Committed and not yet in the file.
    dirty: BTreeSet<u32>,
}

/// What a member is told: not events but what holds now, so that it is bounded however long nobody looks.
pub struct Mailbox {
    /// Woken for new records and new targets.
    pub notify: Notify,
    version: AtomicU64,
    target: Mutex<Vec<Option<Assignment>>>,
}

/// A member's place in its group.
pub struct Membership {
    /// Its group.
    pub group: Arc<Group>,
    /// What it is told.
    pub mailbox: Arc<Mailbox>,
    /// Its number.
    pub id: u64,
}

impl Groups {
    /// The groups that the file knows.
    pub fn new(partitions: u32, offsets: Vec<GroupOffset>) -> Self {
        let groups = Self { groups: Mutex::new(Vec::new()), partitions, numbers: AtomicU64::new(0) };
        for offset in offsets {
            if offset.partition < partitions {
                let group = groups.find_or_make(&mut groups.groups.lock(), offset.topic, &offset.group);
                group.state.lock().committed[offset.partition as usize] = Some(offset.next);
            }
        }
        groups
    }

    /// Adds a member; everybody's share changes.
    pub fn join(&self, topic: Topic, name: &str) -> Membership {
        let mut groups = self.groups.lock();
        let group = self.find_or_make(&mut groups, topic, name);
        let mailbox = Arc::new(Mailbox {
            notify: Notify::new(),
            version: AtomicU64::new(0),
            target: Mutex::new(vec![None; self.partitions as usize]),
        });
        let id = self.number();
        let mut state = group.state.lock();
        state.members.insert(id, Arc::clone(&mailbox));
        state.rebalance(Assignment(self.number()));
        drop(state);
        Membership { group, mailbox, id }
    }

    /// Removes a member; the others take over.
    pub fn leave(&self, membership: &Membership) {
        let mut groups = self.groups.lock();
        let mut state = membership.group.state.lock();
        state.members.remove(&membership.id);
        state.rebalance(Assignment(self.number()));
        // A group that never committed anything and has nobody must not hold up deletion.
        let forgotten = state.members.is_empty() && state.committed.iter().all(Option::is_none);
        drop(state);
        if forgotten {
            groups.retain(|group| !Arc::ptr_eq(group, &membership.group));
        }
    }

    /// Wakes all members of a topic: it has new records.
    pub fn wake(&self, topic: Topic) {
        for group in self.groups.lock().iter().filter(|group| group.topic == topic) {
            group.wake();
        }
    }

    /// Wakes everybody: the log is closed.
    pub fn wake_all(&self) {
        self.groups.lock().iter().for_each(|group| group.wake());
    }

    /// The commits that are not in the file yet; they count as written from now on.
    pub fn take_dirty(&self) -> Vec<GroupOffset> {
        let mut offsets = Vec::new();
        for group in self.groups.lock().iter() {
            let mut state = group.state.lock();
            for partition in std::mem::take(&mut state.dirty) {
                if let Some(next) = state.committed[partition as usize] {
                    offsets.push(GroupOffset { group: group.name.clone(), topic: group.topic, partition, next });
                }
            }
        }
        offsets
    }

    /// What was taken could not be written.
    pub fn put_back(&self, offsets: &[GroupOffset]) {
        for group in self.groups.lock().iter() {
            let own = offsets.iter().filter(|offset| offset.group == group.name && offset.topic == group.topic);
            group.state.lock().dirty.extend(own.map(|offset| offset.partition));
        }
    }

    /// What all groups of a topic have committed, by partition: 0 where one of them has not; `None` for a topic that no
    /// group reads.
    pub fn committed_by_all(&self, topic: Topic) -> Option<Vec<u64>> {
        let mut least: Option<Vec<u64>> = None;
        for group in self.groups.lock().iter().filter(|group| group.topic == topic) {
            let state = group.state.lock();
            let own = state.committed.iter().map(|next| next.unwrap_or(0));
            least = Some(match least {
                None => own.collect(),
                Some(least) => least.into_iter().zip(own).map(|(one, other)| one.min(other)).collect(),
            });
        }
        least
    }

    fn find_or_make(&self, groups: &mut Vec<Arc<Group>>, topic: Topic, name: &str) -> Arc<Group> {
        if let Some(group) = groups.iter().find(|group| group.topic == topic && group.name == name) {
            return Arc::clone(group);
        }
        let count = self.partitions as usize;
        let state = GroupState {
            members: BTreeMap::new(),
            owners: vec![None; count],
            committed: vec![None; count],
            dirty: BTreeSet::new(),
        };
        let group = Arc::new(Group { topic, name: name.to_owned(), state: Mutex::new(state) });
        groups.push(Arc::clone(&group));
        group
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Group {
    /// Notes a commit; `false` for an assignment that is over.
    pub fn commit(&self, member: u64, partition: u32, assignment: Assignment, next: u64) -> bool {
        let mut state = self.state.lock();
        let accepted = state.owners[partition as usize] == Some((member, assignment));
        if accepted {
            state.committed[partition as usize] = Some(next);
            state.dirty.insert(partition);
        }
        accepted
    }

    /// A reader goes back: what it is about to read must not be deleted by an earlier commit.
    pub fn rewind(&self, partition: u32, to: u64) {
        let mut state = self.state.lock();
        if let Some(next) = &mut state.committed[partition as usize]
            && *next > to
        {
            *next = to;
            state.dirty.insert(partition);
        }
    }

    /// What the group has committed of a partition.
    pub fn committed(&self, partition: u32) -> Option<u64> {
        self.state.lock().committed[partition as usize]
    }

    fn wake(&self) {
        self.state.lock().members.values().for_each(|mailbox| mailbox.notify.notify_one());
    }
}

impl Mailbox {
    /// Rises with every change of [`Mailbox::target`].
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What the member owns, by partition, and the version of it.
    pub fn target(&self) -> (u64, Vec<Option<Assignment>>) {
        let target = self.target.lock();
        (self.version(), target.clone())
    }

    fn set_target(&self, new: Vec<Option<Assignment>>) {
        let mut target = self.target.lock();
        if *target != new {
            *target = new;
            self.version.fetch_add(1, Ordering::AcqRel);
            self.notify.notify_one();
        }
    }
}

impl GroupState {
    /// Gives every member its even share; moves as few partitions as that takes.
    fn rebalance(&mut self, assignment: Assignment) {
        let mut owned: BTreeMap<u64, Vec<usize>> = self.members.keys().map(|member| (*member, Vec::new())).collect();
        for (partition, owner) in self.owners.iter_mut().enumerate() {
            match owner.and_then(|(member, _)| owned.get_mut(&member)) {
                Some(partitions) => partitions.push(partition),
                None => *owner = None,
            }
        }
        if !owned.is_empty() {
            let (share, extra) = (self.owners.len() / owned.len(), self.owners.len() % owned.len());
            let mut by_load: Vec<(u64, Vec<usize>)> = owned.into_iter().collect();
            // Those that have most keep the odd ones.
            by_load.sort_by_key(|(member, partitions)| (std::cmp::Reverse(partitions.len()), *member));
            let quota = |rank: usize| share + usize::from(rank < extra);
            for (rank, (_, partitions)) in by_load.iter().enumerate() {
                for partition in partitions.iter().skip(quota(rank)) {
                    self.owners[*partition] = None;
                }
            }
            let mut free: Vec<usize> = (0..self.owners.len()).filter(|p| self.owners[*p].is_none()).collect();
            for (rank, (member, partitions)) in by_load.iter().enumerate() {
                let missing = quota(rank).saturating_sub(partitions.len());
                for partition in free.drain(..missing) {
                    self.owners[partition] = Some((*member, assignment));
                }
            }
            assert!(free.is_empty(), "partitions without an owner");
        }
        for (member, mailbox) in &self.members {
            let own =
                |owner: &Option<(u64, Assignment)>| owner.filter(|(id, _)| id == member).map(|(_, number)| number);
            mailbox.set_target(self.owners.iter().map(own).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(membership: &Membership) -> Vec<(u32, Assignment)> {
        let (_, target) = membership.mailbox.target();
        target.iter().enumerate().filter_map(|(p, number)| number.map(|number| (p as u32, number))).collect()
    }

    #[test]
    fn shares_are_even_and_as_little_moves_as_can_be() {
        let groups = Groups::new(48, Vec::new());
        let mut members = vec![groups.join(Topic::Ingress, "g")];
        for count in 2..=7 {
            let before: Vec<_> = members.iter().map(owned).collect();
            members.push(groups.join(Topic::Ingress, "g"));
            let sizes: Vec<_> = members.iter().map(|member| owned(member).len()).collect();
            assert_eq!(sizes.iter().sum::<usize>(), 48);
            assert!(sizes.iter().all(|size| (48 / count..=48usize.div_ceil(count)).contains(size)), "{sizes:?}");
            for (member, before) in members.iter().zip(before) {
                assert!(owned(member).iter().all(|kept| before.contains(kept)), "a share moved between the old ones");
            }
        }
        while members.len() > 1 {
            groups.leave(&members.swap_remove(0));
            assert_eq!(members.iter().map(|member| owned(member).len()).sum::<usize>(), 48);
        }
    }

    #[test]
    fn deletion_waits_for_the_slowest_group_and_for_no_group_that_is_gone() {
        let groups = Groups::new(2, Vec::new());
        assert_eq!(groups.committed_by_all(Topic::Ingress), None);
        let (one, other) = (groups.join(Topic::Ingress, "one"), groups.join(Topic::Ingress, "other"));
        let number = owned(&one)[0].1;
        assert!(one.group.commit(one.id, 0, number, 30));
        assert!(!one.group.commit(one.id, 0, Assignment(number.0 + 7), 40), "another assignment");
        assert_eq!(groups.committed_by_all(Topic::Ingress), Some(vec![0, 0]));
        groups.leave(&other);
        assert_eq!(groups.committed_by_all(Topic::Ingress), Some(vec![30, 0]));
        groups.leave(&one);
        assert_eq!(groups.committed_by_all(Topic::Ingress), Some(vec![30, 0]), "what is committed stays");
        assert_eq!(groups.take_dirty().len(), 1);
        assert_eq!(groups.take_dirty().len(), 0);
    }
}
