//! What a scenario comes to: whose sessions, what is sent, what goes wrong, and when.

use crate::Result;
use crate::cli::{RunOptions, Scenario};
use crate::clock::{Nanos, SECOND};
use crate::plan::{Plan, Range};
use crate::task::{Phases, Traffic, Trouble};

/// A scenario, as the parent and its children need it.
pub struct Setup {
    /// Its name.
    pub name: &'static str,
    /// The users of its sessions.
    pub users: Range,
    /// What is sent.
    pub traffic: Traffic,
    /// Bytes of a message.
    pub body_bytes: usize,
    /// What happens to a share of the sessions.
    pub trouble: Trouble,
    /// The share.
    pub share: f64,
    /// Seconds of load before the trouble.
    before: u64,
}

/// Pings a second that a session may send, with room for its answers to the server's.
const PINGS_PER_SESSION_MAX: u64 = 15;
/// Bytes of a message that only has to arrive.
const SMALL_BODY: usize = 32;

impl Setup {
    /// Of what was typed.
    pub fn of(scenario: Scenario) -> Result<(Self, RunOptions)> {
        let plain = Plain { trouble: Trouble::None, share: 0.0, before: 0 };
        Ok(match scenario {
            Scenario::Idle(options) => {
                let plan = Plan::read(&options.run.plan)?;
                let users = everybody(&plan, &options.run)?;
                let groups = groups_of_sample(&plan, users, options.sample)?;
                let traffic = Traffic::EachGroup { groups, per_second: options.per_second };
                (plain.setup("idle", users, traffic, SMALL_BODY), options.run)
            }
            Scenario::Chat(options) => {
                let traffic = Traffic::Pairs { per_second: options.talk.per_second };
                (plain.setup("chat", pairs(&options.run)?, traffic, options.talk.body_bytes), options.run)
            }
            Scenario::Broadcast(options) => {
                let users = members(&options.run, options.group)?;
                let (group, per_second, messages) = (options.group, options.per_second, options.messages);
                let traffic = Traffic::Group { group, per_second, messages };
                (plain.setup("broadcast", users, traffic, options.body_bytes), options.run)
            }
            Scenario::Ping(options) => {
                let users = everybody(&Plan::read(&options.run.plan)?, &options.run)?;
                if options.per_second > u64::from(users.count) * PINGS_PER_SESSION_MAX {
                    return Err(format!("at most {PINGS_PER_SESSION_MAX} pings a second for each session").into());
                }
                let traffic = Traffic::Pings { per_second: options.per_second };
                (plain.setup("ping", users, traffic, SMALL_BODY), options.run)
            }
            Scenario::Churn(options) => {
                let trouble = Trouble::Churn { per_second: options.churn as f64 };
                let trouble = Plain { trouble, share: options.share, before: 0 };
                let traffic = Traffic::Pairs { per_second: options.talk.per_second };
                (trouble.setup("churn", pairs(&options.run)?, traffic, options.talk.body_bytes), options.run)
            }
            Scenario::Storm(options) => {
                let trouble = Trouble::Storm { backoff: !options.no_backoff };
                let trouble = Plain { trouble, share: options.share, before: options.before };
                let traffic = Traffic::Pairs { per_second: options.talk.per_second };
                (trouble.setup("storm", pairs(&options.run)?, traffic, options.talk.body_bytes), options.run)
            }
            Scenario::Slow(options) => {
                let trouble = Plain { trouble: Trouble::Slow, share: options.share, before: options.before };
                let users = members(&options.run, options.group)?;
                let traffic = Traffic::Group { group: options.group, per_second: options.per_second, messages: None };
                (trouble.setup("slow", users, traffic, options.body_bytes), options.run)
            }
        })
    }

    /// When what begins, if the phase begins then.
    pub fn phases(&self, at: Nanos, options: &RunOptions) -> Phases {
        let (warm_up, duration) = (options.warm_up * SECOND, options.duration * SECOND);
        if matches!(self.traffic, Traffic::EachGroup { .. }) {
            // They sit there first; then comes the sample.
            let begin = at + duration;
            return Phases { begin, measured_from: begin, trouble_from: begin, until: Nanos::MAX };
        }
        let counted = self.traffic.limit().is_some();
        let measured_from = if counted { at } else { at + warm_up };
        let trouble_from = measured_from + self.before * SECOND;
        let until = if counted { Nanos::MAX } else { trouble_from + duration };
        Phases { begin: at, measured_from, trouble_from, until }
    }
}

/// What is the same for several scenarios.
struct Plain {
    trouble: Trouble,
    share: f64,
    before: u64,
}

impl Plain {
    fn setup(self, name: &'static str, users: Range, traffic: Traffic, body_bytes: usize) -> Setup {
        let Self { trouble, share, before } = self;
        Setup { name, users, traffic, body_bytes, trouble, share, before }
    }
}

/// Users in a row.
fn everybody(plan: &Plan, options: &RunOptions) -> Result<Range> {
    if options.sessions == 0 || u64::from(options.first_user) + u64::from(options.sessions) > u64::from(plan.users) {
        return Err(format!("the plan has {} users, and a session needs one of its own", plan.users).into());
    }
    Ok(Range { first: options.first_user, step: 1, count: options.sessions })
}

/// Users in a row, by whole pairs.
fn pairs(options: &RunOptions) -> Result<Range> {
    let plan = Plan::read(&options.plan)?;
    let users = everybody(&plan, options)?;
    if users.first % 2 != 0 || users.count % 2 != 0 {
        return Err("pairs begin with an even user, and their sessions are even in number".into());
    }
    if (users.first + users.count) / 2 > plan.pairs {
        return Err(format!("the plan has {} pairs: seed with --conversations pairs=…", plan.pairs).into());
    }
    Ok(users)
}

/// Members of a group.
fn members(options: &RunOptions, group: u32) -> Result<Range> {
    let plan = Plan::read(&options.plan)?;
    let found = plan.groups.get(group as usize);
    let group = found.ok_or("the plan has no such group: seed with --conversations groups=…,members=…")?;
    let (first, sessions) = (options.first_user, options.sessions);
    if sessions < 2 || u64::from(first) + u64::from(sessions) > u64::from(group.members.count) {
        return Err(format!("the group has {} members, and two are the least", group.members.count).into());
    }
    Ok(group.members.part(first, sessions))
}

/// How many of the first groups have so many members among these users.
fn groups_of_sample(plan: &Plan, users: Range, sample: u32) -> Result<u32> {
    let mut found = 0;
    for (number, group) in plan.groups.iter().enumerate() {
        if found >= sample {
            return Ok(u32::try_from(number)?);
        }
        let members = (0..group.members.count).map(|place| group.members.at(place, plan.users));
        found += u32::try_from(members.filter(|&user| users.place_of(user).is_some()).count())?;
    }
    if found < sample {
        return Err(format!("only {found} of these users are members of a group of the plan").into());
    }
    Ok(u32::try_from(plan.groups.len())?)
}
