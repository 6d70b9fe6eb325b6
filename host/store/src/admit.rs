//! Which submits are stored: idempotency keys first, then agents and users, keys of kinds, and the quota. Each store loads what the
//! rule looks at and writes what it decided.

use std::collections::{BTreeSet, HashMap, HashSet};

use keiko_core::group::HELD_MS;
use keiko_core::id::{AgentId, TaskId, TenantId, UserId};
use keiko_core::limit::KEY_AGE_MS;
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
    let known = submit.key.as_ref().and_then(|key| keys.find(submit.tenant, &key.text, now_ms));
    if let (Some(key), Some(known)) = (&submit.key, known) {
        return if known.body == key.body { known.answer() } else { Submitted::Conflict };
    }
    let Some(first) = submit.tasks.first().map(|task| task.id) else {
        return Submitted::Accepted { first: TaskId(0), count: 0, duplicate: false, leased: false };
    };
    if let Some(missing) = people.missing(submit) {
        return missing;
    }
    let plan = match onces.plan(submit.tenant, &submit.tasks, now_ms) {
        Ok(plan) => plan,
        Err(refused) => return refused,
    };
    let wanted = (submit.tasks.len() - plan.found()) as u64;
    if wanted > 0 && *live + wanted > submit.queue_max {
        return Submitted::QueueFull { live: *live };
    }
    *live += wanted;
    let count = submit.tasks.len() as u32;
    let found = plan.found() > 0;
    let ids = found.then(|| submit.tasks.iter().map(|task| plan.stands_for(task.id)).collect::<Vec<_>>());
    onces.accept(plan);
    if let Some(key) = &submit.key {
        let ids = ids.clone();
        keys.remember(submit.tenant, key, Stood { first, count, ids }, now_ms);
    }
    match ids.as_deref() {
        None => Submitted::Accepted { first, count, duplicate: false, leased: false },
        Some(&[only]) => Submitted::Accepted { first: only, count, duplicate: true, leased: false },
        Some(ids) => Submitted::Mixed { ids: ids.to_vec(), stored: wanted as u32 },
    }
}

/// Whether an answer says that something of the submit is to be written.
pub(crate) fn stores(answer: &Submitted) -> bool {
    match answer {
        Submitted::Accepted { duplicate, .. } => !duplicate,
        Submitted::Mixed { stored, .. } => *stored > 0,
        _ => false,
    }
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

/// Whether a new task is nobody's in particular, is in no tree or group, of ordinary priority, and asks nothing of others.
pub(crate) fn asks_for_nothing(task: &NewTask) -> bool {
    let alone = task.lineage.parent.is_none() && task.lineage.root == task.id && task.lineage.depth == 0;
    let is_nobodys = task.agent.is_none() && task.user.is_none() && task.group.is_none();
    let is_ordinary = task.priority.is_ordinary() && !task.held;
    alone && is_nobodys && is_ordinary && task.slot_key.is_none() && task.once.is_none()
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

/// Tasks, or items, that a key stands for.
#[derive(Clone, Debug)]
pub(crate) struct Stood {
    pub(crate) first: TaskId,
    pub(crate) count: u32,
    /// All of them, where they do not follow each other.
    pub(crate) ids: Option<Vec<TaskId>>,
}

impl Stood {
    /// One task.
    pub(crate) fn one(id: TaskId) -> Stood {
        Stood { first: id, count: 1, ids: None }
    }
}

/// What a key stands for, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) tasks: Stood,
    pub(crate) body: [u8; 32],
    pub(crate) expires_ms: i64,
}

impl Known {
    /// The answer to another submit with the key and the same body.
    fn answer(&self) -> Submitted {
        let Stood { first, count, ids } = &self.tasks;
        match ids.as_deref() {
            None => Submitted::Accepted { first: *first, count: *count, duplicate: true, leased: false },
            Some(&[only]) => Submitted::Accepted { first: only, count: 1, duplicate: true, leased: false },
            Some(ids) => Submitted::Mixed { ids: ids.to_vec(), stored: 0 },
        }
    }
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
    pub(crate) fn find(&self, tenant: TenantId, text: &str, now_ms: i64) -> Option<&Known> {
        let known = self.known.get(&(tenant, text.to_owned()))?;
        (known.expires_ms > now_ms).then_some(known)
    }

    /// Makes the key stand for these tasks.
    pub(crate) fn remember(&mut self, tenant: TenantId, key: &Key, tasks: Stood, now_ms: i64) {
        let known = Known { tasks, body: key.body, expires_ms: now_ms.saturating_add(KEY_AGE_MS) };
        self.known.insert((tenant, key.text.clone()), known);
        self.fresh.insert((tenant, key.text.clone()));
    }

    /// Those of the named keys that stand for nothing, as rows that have expired when they are written: whoever has them
    /// writes over them what they stand for.
    pub(crate) fn claims(&self, named: &[(TenantId, &Key)], now_ms: i64) -> Keys {
        let mut claims = Keys::default();
        for (tenant, key) in named {
            if self.find(*tenant, &key.text, now_ms).is_none() {
                let nothing = Stood { first: TaskId(0), count: 0, ids: None };
                claims.remember(*tenant, key, nothing, now_ms - KEY_AGE_MS);
            }
        }
        claims
    }

    /// What was remembered, to be written; in order.
    pub(crate) fn fresh(&self) -> Vec<(&(TenantId, String), &Known)> {
        self.fresh.iter().filter_map(|key| Some((key, self.known.get(key)?))).collect()
    }
}

/// Notes of which submits everything was leased with them.
pub(crate) fn mark_leased(answers: &mut [Submitted], ids: &HashSet<TaskId>) {
    for answer in answers {
        if let Submitted::Accepted { first, count, duplicate: false, leased } = answer {
            *leased = (0..i64::from(*count)).all(|place| ids.contains(&TaskId(first.0 + place)));
        }
    }
}
