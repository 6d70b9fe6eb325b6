//! What is stored: plain maps, and the two sets that a lease and a rescue walk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use keiko_core::agent::{Agent, AgentStatistics, User};
use keiko_core::catalog::Cause;
use keiko_core::group::Group;
use keiko_core::id::{
    AgentId, Digest, GroupId, Holder, KindId, PluginId, TaskId, TenantId, Token, UserId, VersionId,
};
use keiko_core::manifest::Manifest;
use keiko_core::name::{KindName, PluginName, ScheduleName, TenantName, VersionName};
use keiko_core::once::Once;
use keiko_core::outcome::Failure;
use keiko_core::pause::Paused;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{StoreError, StoreErrorKind};
use keiko_core::priority::Priority;
use keiko_core::schedule::Schedule;
use keiko_core::slot::Slot;
use keiko_core::task::{AttemptRecord, Key, Lineage, NewTask, Payload, TaskState};
use keiko_core::time_out::Ends;
use keiko_core::tree::Tree;
use keiko_core::usage::Spent;

use super::batches::Batches;
use super::canaries::CanaryRow;
use super::mutation::Mutation;
use super::onces::KeyRow;
use crate::admit::{Keys, Known, ends, place_ms};
use crate::count::Changes;
use crate::once::Name;

/// Everything that is stored. Its methods check before they write, so that an error leaves it as it was.
#[derive(Default)]
pub(super) struct State {
    pub(super) mutation: Option<Mutation>,
    /// What was seen to break the rules of leases, whatever the code that checks them says.
    pub(super) seen_broken: Vec<String>,
    /// Calls that wrote ends of attempts.
    pub(super) settles: u64,
    /// Tasks of leases that went with submits.
    pub(super) leased_along: u64,
    /// The last numbers that were given out.
    pub(super) last: Last,
    /// Until when each holder's lease lasts.
    pub(super) holders: BTreeMap<Holder, i64>,
    pub(super) tenants: BTreeMap<TenantId, TenantRow>,
    pub(super) plugins: BTreeMap<PluginId, PluginRow>,
    pub(super) kinds: BTreeMap<KindId, KindRow>,
    pub(super) versions: BTreeMap<VersionId, VersionRow>,
    pub(super) canaries: BTreeMap<PluginId, CanaryRow>,
    pub(super) components: BTreeMap<Digest, (Bytes, i64)>,
    /// Since when, and whether it is ending.
    pub(super) pauses: BTreeMap<Paused, (i64, bool)>,
    pub(super) tasks: BTreeMap<TaskId, Row>,
    /// Pending tasks in the order of a lease.
    pub(super) ready: BTreeSet<(TenantId, i64, TaskId)>,
    /// Pending tasks with a priority that have not taken their place, by due time.
    pub(super) unplaced: BTreeSet<(i64, TaskId)>,
    /// Running tasks.
    pub(super) running: BTreeSet<TaskId>,
    /// Every task of each tenant.
    pub(super) owned: BTreeSet<(TenantId, TaskId)>,
    pub(super) keys: BTreeMap<(TenantId, String), Known>,
    pub(super) task_keys: BTreeMap<Name, KeyRow>,
    pub(super) agents: BTreeMap<AgentId, (TenantId, Agent)>,
    pub(super) agent_counts: BTreeMap<AgentId, AgentStatistics>,
    pub(super) users: BTreeMap<UserId, (TenantId, User)>,
    pub(super) groups: BTreeMap<GroupId, GroupRow>,
    pub(super) trees: BTreeMap<TaskId, TreeRow>,
    /// Whose each slot is: of the lease of a task under a token.
    pub(super) slot_use: BTreeMap<(Slot, TaskId), Token>,
    /// Tasks that wait for a slot, by their places.
    pub(super) slot_wait: BTreeSet<(Slot, i64, TaskId)>,
    /// Tasks that were woken for a slot, with the tokens of their last leases; for what the store sees of itself.
    pub(super) slot_promised: BTreeMap<(Slot, TaskId), Token>,
    pub(super) schedules: BTreeMap<(TenantId, ScheduleName), Schedule>,
    pub(super) batches: Batches,
    /// By tenant and day.
    pub(super) usage: BTreeMap<(TenantId, i64), Spent>,
}

/// The last numbers that were given out.
#[derive(Default)]
pub(super) struct Last {
    pub(super) holder: i64,
    pub(super) task: i64,
    /// Grows with every install and every removal.
    pub(super) catalog: i64,
}

/// A group: as it is told, but for its next task, and how many of its tasks are not held.
#[derive(Clone, Copy)]
pub(super) struct GroupRow {
    pub(super) tenant: TenantId,
    pub(super) group: Group,
    pub(super) released: u32,
    pub(super) joined: bool,
}

/// A tree, and when its time is over.
#[derive(Clone, Copy)]
pub(super) struct TreeRow {
    pub(super) tree: Tree,
    pub(super) end_ms: Option<i64>,
}

/// A tenant and how many tasks it has.
pub(super) struct TenantRow {
    pub(super) name: TenantName,
    pub(super) live: i64,
    pub(super) completed: i64,
    pub(super) failed: i64,
    pub(super) cancelled: i64,
}

pub(super) struct PluginRow {
    pub(super) tenant: TenantId,
    pub(super) name: PluginName,
    pub(super) current: Option<VersionId>,
    pub(super) removed: bool,
    pub(super) draining: bool,
    /// Every swap in order; the number of one is its place, from 1.
    pub(super) generations: Vec<GenerationRow>,
}

/// A swap of a plugin's current version.
pub(super) struct GenerationRow {
    pub(super) version: VersionId,
    pub(super) cause: Cause,
    pub(super) at_ms: i64,
    /// The place of the swap that a rollback goes back to.
    pub(super) before: Option<usize>,
}

pub(super) struct KindRow {
    pub(super) tenant: TenantId,
    pub(super) plugin: PluginId,
    pub(super) name: KindName,
}

pub(super) struct VersionRow {
    pub(super) tenant: TenantId,
    pub(super) plugin: PluginId,
    pub(super) name: VersionName,
    pub(super) digest: Digest,
    pub(super) component_bytes: u64,
    pub(super) manifest: Arc<Manifest>,
    pub(super) installed_ms: i64,
}

/// An attempt that has ended.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) record: AttemptRecord,
    pub(super) failure: Option<Failure>,
}

/// A task, live or ended.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) tenant: TenantId,
    pub(super) kind: KindId,
    pub(super) state: TaskState,
    pub(super) token: Token,
    /// Who runs it; of running tasks only.
    pub(super) holder: Option<Holder>,
    pub(super) attempts: u32,
    pub(super) deadlines: u32,
    pub(super) crashes: u32,
    /// Attempts before the last retry by hand.
    pub(super) earlier: u32,
    pub(super) created_ms: i64,
    pub(super) run_at_ms: i64,
    pub(super) priority: Priority,
    /// Where it stands in the queue.
    pub(super) place_ms: i64,
    pub(super) finished_ms: Option<i64>,
    pub(super) lineage: Lineage,
    pub(super) budget: BudgetRequest,
    pub(super) ends: Ends,
    pub(super) group: Option<GroupId>,
    pub(super) slot_key: Option<String>,
    /// The key under which it is the only live one of its kind.
    pub(super) unique_key: Option<String>,
    pub(super) trace: Option<String>,
    pub(super) input: Payload,
    pub(super) agent: Option<AgentId>,
    pub(super) user: Option<UserId>,
    pub(super) result: Option<Payload>,
    pub(super) failure: Option<Failure>,
    /// Attempts that did not end it, in order.
    pub(super) kept: Vec<Kept>,
    /// The attempt that ended it, if one did.
    pub(super) last: Option<Kept>,
    /// Logs of attempts by number.
    pub(super) logs: BTreeMap<u32, Bytes>,
}

impl Row {
    fn new(tenant: TenantId, task: &NewTask) -> Row {
        Row {
            tenant,
            kind: task.kind,
            state: TaskState::Pending,
            token: Token(0),
            holder: None,
            attempts: 0,
            deadlines: 0,
            crashes: 0,
            earlier: 0,
            created_ms: task.created_ms,
            run_at_ms: task.run_at_ms,
            priority: task.priority,
            place_ms: place_ms(task),
            finished_ms: None,
            lineage: task.lineage,
            budget: task.budget,
            ends: ends(task),
            group: task.group,
            slot_key: task.slot_key.clone(),
            unique_key: task.once.as_ref().and_then(Once::unique_key).map(str::to_owned),
            trace: task.trace.clone(),
            input: task.input.clone(),
            agent: task.agent,
            user: task.user,
            result: None,
            failure: None,
            kept: Vec::new(),
            last: None,
            logs: BTreeMap::new(),
        }
    }

    /// What finds it when it has a priority and stands at its due time.
    fn unplaced(&self, id: TaskId) -> Option<(i64, TaskId)> {
        let stands = !self.priority.is_ordinary() && self.place_ms == self.run_at_ms;
        stands.then_some((self.run_at_ms, id))
    }

    /// Running time of the attempt that ended it, as it is counted.
    pub(super) fn elapsed_us(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.record.meter.elapsed_us)
    }
}

impl State {
    /// Whether this promise is broken here.
    pub(super) fn breaks(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// The tenant's task; with `others` broken, anybody's.
    pub(super) fn task_of(&self, tenant: TenantId, id: TaskId, others: Mutation) -> Option<&Row> {
        self.tasks.get(&id).filter(|row| row.tenant == tenant || self.breaks(others))
    }

    /// Writes new tasks, all or none, without counting them.
    pub(super) fn insert(&mut self, tasks: &[(TenantId, NewTask)]) -> Result<(), StoreError> {
        let mut ids = BTreeSet::new();
        for (tenant, task) in tasks {
            let of_tenant = |kind: &KindRow| kind.tenant == *tenant || self.breaks(Mutation::KindOfAnyTenant);
            if !self.kinds.get(&task.kind).is_some_and(of_tenant) {
                return Err(refused("a task names a kind that its tenant does not have"));
            }
            if self.tasks.contains_key(&task.id) || !ids.insert(task.id) {
                return Err(refused("a task's id is another's already"));
            }
        }
        for (tenant, task) in tasks {
            let mut row = Row::new(*tenant, task);
            match self.mutation {
                Some(Mutation::PriorityIgnored) if !task.held => row.place_ms = row.run_at_ms,
                Some(Mutation::WindowIgnored) => {
                    row.place_ms = row.priority.place_at_ms(row.run_at_ms, row.created_ms);
                }
                Some(Mutation::PriorityBeforeDue) if !task.held => {
                    row.place_ms = row.priority.place_ms(row.run_at_ms);
                }
                _ => {}
            }
            self.ready.insert((*tenant, row.place_ms, task.id));
            self.unplaced.extend(row.unplaced(task.id));
            self.tasks.insert(task.id, row);
            self.owned.insert((*tenant, task.id));
        }
        Ok(())
    }

    /// Changes a task and what finds it.
    pub(super) fn change(&mut self, id: TaskId, change: impl FnOnce(&mut Row)) {
        let Some(row) = self.tasks.get_mut(&id) else { return };
        self.ready.remove(&(row.tenant, row.place_ms, id));
        self.running.remove(&id);
        self.unplaced.remove(&(row.run_at_ms, id));
        change(row);
        match row.state {
            TaskState::Pending => {
                self.ready.insert((row.tenant, row.place_ms, id));
                self.unplaced.extend(row.unplaced(id));
            }
            TaskState::Running => {
                self.running.insert(id);
            }
            TaskState::Completed | TaskState::Failed | TaskState::Cancelled => {}
        }
    }

    /// Puts a running task back into the queue.
    pub(super) fn give_back(&mut self, id: TaskId, crashes: u32) {
        self.change(id, |row| {
            (row.state, row.holder) = (TaskState::Pending, None);
            row.crashes = row.crashes.saturating_add(crashes);
        });
    }

    /// Puts a task back whose lease under this token nobody has heard of.
    pub(super) fn give_back_unheard(&mut self, id: TaskId, token: Token) {
        let is_its = |row: &Row| row.state == TaskState::Running && row.token == token;
        if self.tasks.get(&id).is_some_and(is_its) {
            self.give_back(id, 0);
        }
    }

    /// What these keys stand for.
    pub(super) fn known_keys(&self, named: &[(TenantId, &Key)]) -> Keys {
        let mut known = HashMap::new();
        for &(tenant, key) in named {
            let own = self.keys.get(&(tenant, key.text.clone()));
            let any = || self.keys.iter().find(|((_, text), _)| *text == key.text).map(|(_, known)| known);
            let found = if self.breaks(Mutation::KeyOfAnyTenant) { own.or_else(any) } else { own };
            let Some(mut found) = found.cloned() else { continue };
            if self.breaks(Mutation::KeyNeverExpires) {
                found.expires_ms = i64::MAX;
            }
            known.insert((tenant, key.text.clone()), found);
        }
        Keys::of(known)
    }

    /// Writes the keys that a call remembered.
    pub(super) fn store_keys(&mut self, keys: &Keys) {
        let in_a_row = self.breaks(Mutation::KeyForgetsWhatWasFound);
        for (name, known) in keys.fresh() {
            let mut known = known.clone();
            known.tasks.ids = known.tasks.ids.filter(|_| !in_a_row);
            self.keys.insert(name.clone(), known);
        }
    }

    /// Writes what a call counted.
    pub(super) fn store_counts(&mut self, changes: &Changes) {
        for (tenant, live, completed, failed, cancelled) in changes.rows() {
            let Some(row) = self.tenants.get_mut(&TenantId(tenant)) else { continue };
            row.live += live;
            row.completed += completed;
            row.failed += failed;
            row.cancelled += cancelled;
        }
        for (agent, _, total, completed, failed, cancelled, timed, elapsed_us) in changes.agent_rows() {
            let untimed = self.breaks(Mutation::AgentTimeUncounted);
            let (timed, elapsed_us) = if untimed { (0, 0) } else { (timed, elapsed_us) };
            let count = self.agent_counts.entry(AgentId(agent)).or_default();
            count.total = count.total.saturating_add_signed(total);
            count.completed = count.completed.saturating_add_signed(completed);
            count.failed = count.failed.saturating_add_signed(failed);
            count.cancelled = count.cancelled.saturating_add_signed(cancelled);
            count.timed = count.timed.saturating_add_signed(timed);
            count.elapsed_us = count.elapsed_us.saturating_add_signed(elapsed_us);
        }
        if !self.breaks(Mutation::GroupUncounted) {
            self.count_groups(changes);
        }
    }

    /// Live tasks of a tenant, as the quota counts them.
    pub(super) fn live(&self, tenant: TenantId) -> u64 {
        self.tenants.get(&tenant).map_or(0, |row| row.live.max(0) as u64)
    }
}

/// A write that breaks a rule of what is stored.
pub(super) fn refused(message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Refused, message)
}
