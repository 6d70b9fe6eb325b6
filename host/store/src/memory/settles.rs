//! Settling: first what every settlement becomes, without writing; then everything at once.

use std::collections::{BTreeMap, HashMap, HashSet};

use keiko_core::agent::AgentStatus;
use keiko_core::batch::NewItem;
use keiko_core::code::Code;
use keiko_core::id::{AgentId, Holder, TaskId, TenantId};
use keiko_core::outcome::{Failure, Meter, RetryWish};
use keiko_core::port::StoreError;
use keiko_core::task::{NewTask, Payload, Settled, Settlement, TaskState, Transition};
use keiko_core::tree::Spending;

use super::mutation::Mutation;
use super::state::{Kept, Row, State, TreeRow};
use super::tasks::strip;
use crate::admit::Stood;
use crate::count::{Change, Changes};
use crate::family::{self, ChildKeys, Parent};
use crate::gather::{WaitingChanges, of_tasks};
use crate::group;
use crate::stored::{Stored, count, statuses};
use crate::tree::{Opened, charges, opened};

/// What a call of settlements becomes.
struct Plan<'a> {
    answers: Vec<Settled>,
    /// Those that are stored.
    accepted: Vec<&'a Settlement>,
    children: Vec<(TenantId, NewTask)>,
    trees: Vec<Opened>,
    groups: Vec<group::Row>,
    named: ChildKeys,
    changes: Changes,
}

impl State {
    pub(super) fn settle(
        &mut self,
        holder: Holder,
        settlements: &[Settlement],
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let mut plan = self.plan(holder, settlements, now_ms);
        self.insert(&plan.children)?;
        std::mem::take(&mut plan.groups).into_iter().for_each(|row| self.insert_group_row(row));
        self.insert_items(&self.asked_items(settlements, &plan.answers), WaitingChanges::default())?;
        self.store_keys(&plan.named.keys);
        self.store_onces(&plan.named.onces);
        let stored: Vec<_> = plan.accepted.iter().filter_map(|one| self.store(one, now_ms)).collect();
        if !self.breaks(Mutation::SettleUncounted) {
            let usage = count(&stored, now_ms, &mut plan.changes);
            if !self.breaks(Mutation::SettleUnmetered) {
                self.add_usage(&usage, now_ms);
            }
        }
        self.store_counts(&plan.changes);
        self.store_trees(&plan.trees, charges(&stored));
        for (agent, tenant, status) in self.asked_statuses(settlements, &plan.answers) {
            self.set_status(TenantId(tenant), AgentId(agent), status, now_ms);
        }
        if self.breaks(Mutation::AnswersBackwards) {
            plan.answers.reverse();
        }
        Ok(plan.answers)
    }

    /// The items that a call asks for, of those that completed their task.
    fn asked_items<'a>(
        &self,
        settlements: &'a [Settlement],
        answers: &[Settled],
    ) -> Vec<(TenantId, &'a NewItem)> {
        if self.breaks(Mutation::TaskItemsLost) {
            return Vec::new();
        }
        if self.breaks(Mutation::TaskItemsThoughStale) {
            let every = settlements.iter();
            return every.flat_map(|one| one.effects.items.iter().map(|item| (one.tenant, item))).collect();
        }
        of_tasks(settlements, answers)
    }

    fn plan<'a>(&self, holder: Holder, settlements: &'a [Settlement], now_ms: i64) -> Plan<'a> {
        let mut named = Vec::new();
        let asking: Vec<_> = settlements.iter().filter(|one| family::asks(one)).collect();
        for one in &asking {
            named.extend(
                one.effects.children.iter().filter_map(|child| Some((one.tenant, child.key.as_ref()?))),
            );
        }
        let mut plan = Plan {
            answers: Vec::with_capacity(settlements.len()),
            accepted: Vec::new(),
            children: Vec::new(),
            groups: Vec::new(),
            trees: Vec::new(),
            named: ChildKeys {
                keys: self.known_keys(&named),
                onces: self.known_onces(family::asking_once(&asking)),
            },
            changes: Changes::default(),
        };
        let mut seen = HashSet::new();
        for one in settlements {
            let again = seen.contains(&one.id) && !self.breaks(Mutation::SettlesTwiceInOneCall);
            let answer = if again || !self.holds(holder, one) {
                if self.breaks(Mutation::EffectsThoughStale) {
                    self.plan_children(one, now_ms, &mut plan);
                }
                Settled::Stale
            } else {
                self.plan_children(one, now_ms, &mut plan)
            };
            if answer == Settled::Stored {
                seen.insert(one.id);
                plan.accepted.push(one);
            }
            plan.answers.push(answer);
        }
        plan
    }

    /// Whether the lease that a settlement names is its task's.
    fn holds(&self, holder: Holder, one: &Settlement) -> bool {
        let Some(row) = self.task_of(one.tenant, one.id, Mutation::SettlesForOthers) else { return false };
        let any = self.breaks(Mutation::NoFence);
        let token = row.token == one.token || any || self.breaks(Mutation::FenceByHolderOnly);
        let holder = row.holder == Some(holder) || any || self.breaks(Mutation::FenceByTokenOnly);
        row.state == TaskState::Running && token && holder
    }

    /// Adds the children of a settlement to the plan, unless one of them conflicts.
    fn plan_children(&self, one: &Settlement, now_ms: i64, plan: &mut Plan<'_>) -> Settled {
        let Some(row) = self.tasks.get(&one.id).filter(|_| family::asks(one)) else { return Settled::Stored };
        let mut one = one.clone();
        if self.breaks(Mutation::ChildKeyIgnored) {
            one.effects.children.iter_mut().for_each(|child| child.key = None);
        }
        if self.breaks(Mutation::JoinGoesAtOnce) {
            one.effects.children.iter_mut().for_each(|child| child.held &= child.group.is_some());
        }
        let mutation = self.mutation;
        one.effects.children.iter_mut().for_each(|child| match mutation {
            Some(Mutation::ChildDelayIgnored) => child.delay_ms = 0,
            Some(Mutation::ChildRunAtIgnored) => child.run_at_ms = None,
            Some(Mutation::ChildForgetsOwnPriority) => child.priority = None,
            Some(Mutation::ChildForgetsOwnBudget) => child.budget = Default::default(),
            Some(Mutation::ChildForgetsSlotKey) => child.slot_key = None,
            Some(Mutation::ChildOnceIgnored) => child.once = None,
            _ => {}
        });
        let parents = HashMap::from([(one.id, self.parent(&one, row))]);
        let (mut refused, mut changes) = (HashMap::new(), Changes::default());
        let children =
            family::children(&[&one], &parents, &mut plan.named, now_ms, &mut changes, &mut refused);
        if let Some(answer) = refused.remove(&one.id) {
            if self.breaks(Mutation::ChildConflictTakesKeys) {
                for child in &one.effects.children {
                    let key = child.key.iter();
                    key.for_each(|key| {
                        plan.named.keys.remember(one.tenant, key, Stood::one(child.id), now_ms);
                    });
                }
            }
            return if self.breaks(Mutation::ChildConflictIgnored) { Settled::Stored } else { answer };
        }
        if self.breaks(Mutation::EffectsLost) {
            return Settled::Stored;
        }
        if !self.breaks(Mutation::ChildrenUncounted) {
            for _ in &children {
                plan.changes.add(one.tenant, Change { live: 1, ..Change::default() });
            }
        }
        if !self.breaks(Mutation::AgentChildrenUncounted) {
            for (_, child) in &children {
                plan.changes.add_agent(one.tenant, child.agent, crate::count::AgentChange::NEW);
            }
        }
        let other = self.kinds.iter().find(|(_, kind)| kind.tenant != one.tenant);
        let other = other.filter(|_| self.breaks(Mutation::ChildForgetsTenant));
        plan.trees.extend(opened(&[&one], &parents, &refused));
        plan.groups.extend(group::joined(&[&one], &refused, now_ms));
        plan.children.extend(children.into_iter().map(|(tenant, child)| match other {
            Some((id, kind)) => (kind.tenant, NewTask { kind: *id, ..child }),
            None => (tenant, child),
        }));
        Settled::Stored
    }

    /// What children take from their parent. The fence was looked at before.
    fn parent(&self, one: &Settlement, row: &Row) -> Parent {
        let unless = |mutation| !self.breaks(mutation);
        let lineage = unless(Mutation::ChildForgetsLineage);
        Parent {
            tenant: one.tenant.0,
            token: one.token.0,
            root: if lineage { row.lineage.root } else { one.id },
            depth: if lineage { row.lineage.depth } else { 0 },
            budget: if unless(Mutation::ChildForgetsBudget) { row.budget } else { Default::default() },
            trace: row.trace.clone().filter(|_| unless(Mutation::ChildForgetsBudget)),
            agent: row.agent.filter(|_| unless(Mutation::ChildForgetsAgent)),
            user: row.user.filter(|_| unless(Mutation::ChildForgetsUser)),
            priority: if unless(Mutation::ChildForgetsPriority) { row.priority } else { Default::default() },
            end_by_ms: row.ends.end_by_ms,
            of_tree_ms: self
                .trees
                .get(&row.lineage.root)
                .filter(|_| unless(Mutation::TreeEndForgotten))
                .and_then(|row| row.end_ms),
        }
    }

    /// Opens trees, and charges those that are open.
    fn store_trees(&mut self, opened: &[Opened], charges: BTreeMap<TaskId, Spending>) {
        for &Opened { root, mut tree, end_ms, .. } in opened {
            if self.breaks(Mutation::RootUncharged) {
                tree.used = Spending::default();
            }
            self.trees.entry(root).or_insert(TreeRow { tree, end_ms });
        }
        for (root, used) in charges {
            let row = self.trees.get_mut(&root).filter(|_| self.mutation != Some(Mutation::TreeUncharged));
            if let Some(TreeRow { tree, .. }) = row {
                tree.used = tree.used.plus(used);
            }
        }
    }

    /// Writes one end; what is to be counted, except of a hand-back.
    fn store<'a>(&mut self, one: &'a Settlement, now_ms: i64) -> Option<Stored<'a>> {
        let mutation = self.mutation;
        let row = self.tasks.get(&one.id)?;
        if row.token != one.token || row.state != TaskState::Running {
            let (id, token) = (one.id, one.token);
            self.seen_broken
                .push(format!("{id} is settled under {token}, and its last lease is {}", row.token));
        }
        let number = row.earlier + row.attempts + 1;
        let agent = row.agent.filter(|_| mutation != Some(Mutation::AgentEndUncounted));
        let group = row.group;
        match &one.transition {
            Transition::HandBack => {
                let charged = u32::from(mutation == Some(Mutation::HandBackCharged));
                self.change(one.id, |row| {
                    (row.state, row.holder) = (TaskState::Pending, None);
                    row.attempts += charged;
                });
                return None;
            }
            Transition::Retry { run_at_ms, failure } => {
                let run_at_ms = if mutation == Some(Mutation::RetryDueAtOnce) { now_ms } else { *run_at_ms };
                self.change(one.id, |row| retry(row, one, number, failure, run_at_ms, mutation));
            }
            Transition::Complete(result) => {
                self.change(one.id, |row| complete(row, one, number, result, now_ms, mutation));
            }
            Transition::Fail(failure) => {
                self.change(one.id, |row| fail(row, one, number, failure, now_ms, mutation));
            }
        }
        Some(Stored { one, number, agent, group })
    }

    /// The statuses that settlements of a call ask for, of those that completed their task.
    fn asked_statuses(&self, settlements: &[Settlement], answers: &[Settled]) -> Vec<(i64, i64, i64)> {
        if self.breaks(Mutation::StatusesThoughStale) {
            return statuses(settlements, &vec![Settled::Stored; settlements.len()]);
        }
        if self.breaks(Mutation::StatusesThoughFailed) {
            let mut completed = settlements.to_vec();
            for one in &mut completed {
                one.transition = Transition::Complete(Payload::json(""));
            }
            return statuses(&completed, answers);
        }
        if self.breaks(Mutation::EffectsLost) {
            return Vec::new();
        }
        statuses(settlements, answers)
    }

    /// Gives the tenant's agent a status; another tenant's is none.
    pub(super) fn set_status(&mut self, tenant: TenantId, id: AgentId, status: i64, now_ms: i64) {
        let others = self.breaks(Mutation::StatusesForOthers);
        let Some((owner, agent)) = self.agents.get_mut(&id) else { return };
        if let Some(status) = AgentStatus::numbered(status).filter(|_| *owner == tenant || others) {
            (agent.status, agent.updated_ms) = (status, now_ms);
        }
    }
}

/// Takes note of the attempt that ends now.
fn attempt(
    row: &mut Row,
    one: &Settlement,
    number: u32,
    failure: Option<Failure>,
    mutation: Option<Mutation>,
) -> Kept {
    row.holder = None;
    row.attempts += 1;
    if !one.log.is_empty() {
        let of_log = if mutation == Some(Mutation::LogNumbersRepeat) { one.attempt.number } else { number };
        row.logs.insert(of_log, one.log.clone());
    }
    let mut record = one.attempt.clone();
    record.number = number;
    if mutation == Some(Mutation::MeterLost) {
        record.meter = Meter::default();
    }
    if mutation == Some(Mutation::MemoizedSourceLost) {
        record.memoized_from = None;
    }
    Kept { record, failure }
}

fn retry(
    row: &mut Row,
    one: &Settlement,
    number: u32,
    failure: &Failure,
    run_at_ms: i64,
    mutation: Option<Mutation>,
) {
    let counted = mutation != Some(Mutation::DeadlineUncounted);
    row.deadlines += u32::from(failure.code == Code::DeadlineExceeded && counted);
    let kept = attempt(row, one, number, Some(told(failure, mutation)), mutation);
    row.kept.extend(Some(kept).filter(|_| mutation != Some(Mutation::RetriedAttemptLost)));
    (row.state, row.run_at_ms, row.place_ms) = (TaskState::Pending, run_at_ms, run_at_ms);
    row.ends.start_by_ms = None;
}

fn complete(
    row: &mut Row,
    one: &Settlement,
    number: u32,
    result: &Payload,
    now_ms: i64,
    mutation: Option<Mutation>,
) {
    row.last = Some(attempt(row, one, number, None, mutation));
    row.state = TaskState::Completed;
    row.finished_ms = Some(now_ms).filter(|_| mutation != Some(Mutation::EndTimeLost));
    row.result = Some(result.clone()).filter(|_| mutation != Some(Mutation::ResultLost));
    strip(row);
}

fn fail(
    row: &mut Row,
    one: &Settlement,
    number: u32,
    failure: &Failure,
    now_ms: i64,
    mutation: Option<Mutation>,
) {
    let failure = told(failure, mutation);
    row.last = Some(attempt(row, one, number, Some(failure.clone()), mutation));
    (row.state, row.finished_ms, row.failure) = (TaskState::Failed, Some(now_ms), Some(failure));
    if mutation == Some(Mutation::InputLostOnFailure) {
        strip(row);
    }
}

/// A failure as it is kept.
fn told(failure: &Failure, mutation: Option<Mutation>) -> Failure {
    let mut failure = failure.clone();
    if mutation == Some(Mutation::FailureDetailLost) {
        (failure.limit, failure.retry) = (None, RetryWish::ByCode);
        failure.backtrace.clear();
    }
    failure
}
