//! Which submits are stored: idempotency keys first, then agents and users, keys of kinds, and the quota. Each store loads what the
//! rule looks at and writes what it decided.

use std::collections::{BTreeSet, HashMap, HashSet};

use keiko_core::group::HELD_MS;
use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::limit::KEY_AGE_MS;
use keiko_core::once::Verdict;
use keiko_core::task::{JSON, Key, NewTask, Payload, Submit, Submitted};
use keiko_core::time_out::Ends;

use crate::once::Onces;

/// The answer to a submit. What it takes is taken from `keys`, `onces` and `live` at once, for the submits behind it.
pub(crate) fn decide(
    submit: &Submit,
    now_ms: i64,
    keys: &mut Keys,
    people: &People,
    onces: &mut Onces,
    live: &mut u64,
) -> Submitted {
    let wanted = submit.tasks.len() as u64;
    let known = submit.key.as_ref().and_then(|key| keys.find(submit.tenant, &key.text, now_ms));
    if let (Some(key), Some(known)) = (&submit.key, known) {
        return if known.body == key.body {
            Submitted::Accepted { first: known.first, count: known.count, duplicate: true }
        } else {
            Submitted::Conflict
        };
    }
    let Some(first) = submit.tasks.first().map(|task| task.id) else {
        return Submitted::Accepted { first: TaskId(0), count: 0, duplicate: false };
    };
    if let Some(missing) = people.missing(submit) {
        return missing;
    }
    let verdict = onces.verdict(submit, now_ms);
    match verdict {
        Some(Verdict::Taken(task)) => return Submitted::Taken(task),
        Some(Verdict::TooLate { ahead_ms }) => return Submitted::TooLate { ahead_ms },
        Some(Verdict::Found(task) | Verdict::Replaces { task, .. }) => {
            if let Some(Verdict::Replaces { due_ms, .. }) = verdict {
                onces.replace(submit, task, due_ms, now_ms);
            }
            if let Some(key) = &submit.key {
                keys.remember(submit.tenant, key, task, 1, now_ms);
            }
            return Submitted::Accepted { first: task, count: 1, duplicate: true };
        }
        Some(Verdict::New { .. }) | None => {}
    }
    if *live + wanted > submit.queue_max {
        return Submitted::QueueFull { live: *live };
    }
    *live += wanted;
    if let Some(Verdict::New { due_ms }) = verdict {
        onces.note(submit, due_ms, now_ms);
    }
    let count = wanted as u32;
    if let Some(key) = &submit.key {
        keys.remember(submit.tenant, key, first, count, now_ms);
    }
    Submitted::Accepted { first, count, duplicate: false }
}

/// The agents and users that submits name, as far as they exist.
#[derive(Default)]
pub(crate) struct People {
    pub(crate) agents: HashSet<(i64, AgentId)>,
    pub(crate) users: HashSet<(i64, UserId)>,
}

impl People {
    /// The answer to a submit that names somebody whom its tenant does not have.
    fn missing(&self, submit: &Submit) -> Option<Submitted> {
        submit.tasks.iter().find_map(|task| {
            let agent = task.agent.filter(|id| !self.agents.contains(&(submit.tenant.0, *id)));
            let user = task.user.filter(|id| !self.users.contains(&(submit.tenant.0, *id)));
            agent.map(Submitted::NoAgent).or(user.map(Submitted::NoUser))
        })
    }
}

/// Where a new task stands in the queue.
pub(crate) fn place_ms(task: &NewTask) -> i64 {
    if task.held { HELD_MS } else { task.priority.place_at_ms(task.run_at_ms, task.created_ms) }
}

/// The due time that a column holds: ordinary tasks that are not held stand at theirs, and store none.
pub(crate) fn stored_due_ms(task: &NewTask) -> Option<i64> {
    (!task.priority.is_ordinary() || task.held).then_some(task.run_at_ms)
}

/// Until when a new task has to start and to end.
pub(crate) fn ends(task: &NewTask) -> Ends {
    Ends::of(&task.budget, task.run_at_ms).within(task.tree_end_ms)
}

/// The media type as a column holds it: most payloads are JSON and store none.
pub(crate) fn stored_type(payload: &Payload) -> Option<&str> {
    (payload.content_type != JSON).then_some(payload.content_type.as_str())
}

/// The media type that a column holds.
pub(crate) fn read_type(stored: Option<String>) -> String {
    stored.unwrap_or_else(|| JSON.to_owned())
}

/// The hash that a column holds. A damaged one equals no body's, so its key answers `Conflict`: nothing is stored twice.
pub(crate) fn read_body(stored: Vec<u8>) -> [u8; 32] {
    stored.try_into().unwrap_or([0; 32])
}

/// What a key stands for.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) first: TaskId,
    pub(crate) count: u32,
    pub(crate) body: [u8; 32],
    pub(crate) expires_ms: i64,
}

/// The idempotency keys that a call names: as they are stored, and as the call changes them.
#[derive(Default)]
pub(crate) struct Keys {
    known: HashMap<(TenantId, String), Known>,
    fresh: BTreeSet<(TenantId, String)>,
}

impl Keys {
    /// Those of the keys that are stored.
    pub(crate) fn of(known: HashMap<(TenantId, String), Known>) -> Keys {
        Keys { known, fresh: BTreeSet::new() }
    }

    /// What the key stands for, unless it has expired.
    pub(crate) fn find(&self, tenant: TenantId, text: &str, now_ms: i64) -> Option<Known> {
        let known = self.known.get(&(tenant, text.to_owned()))?;
        (known.expires_ms > now_ms).then_some(*known)
    }

    /// Makes the key stand for these tasks.
    pub(crate) fn remember(&mut self, tenant: TenantId, key: &Key, first: TaskId, count: u32, now_ms: i64) {
        let known = Known { first, count, body: key.body, expires_ms: now_ms.saturating_add(KEY_AGE_MS) };
        self.known.insert((tenant, key.text.clone()), known);
        self.fresh.insert((tenant, key.text.clone()));
    }

    /// What was remembered, to be written; in order.
    pub(crate) fn fresh(&self) -> Vec<(&(TenantId, String), &Known)> {
        self.fresh.iter().filter_map(|key| Some((key, self.known.get(key)?))).collect()
    }
}
