//! Submits, and ends that no attempt wrote: cancel, quarantine, and the way back by hand.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use keiko_core::code::Code;
use keiko_core::id::{GroupId, TaskId, TenantId, Token};
use keiko_core::outcome::Failure;
use keiko_core::port::{Expired, FailedByKind, Pruned, StoreError};
use keiko_core::priority::Priority;
use keiko_core::retention::KeptFrom;
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, NewTask, RetryAnswer, Submit, Submitted, TaskState,
};
use keiko_core::time_out::Ends;

use super::mutation::Mutation;
use super::state::{Row, State};
use crate::admit::{Known, People, Stood, decide, stores};
use crate::count::{AgentChange, Change, Changes, Spent, Usage};
use crate::ending::End;
use crate::format::decode_failure;
use crate::once::of_submits;
use crate::prune::{Ended, answer, changes, doomed, end_of_walk};
use crate::time_out::{Candidate, Over};

impl State {
    pub(super) fn enqueue(&mut self, submits: &[Submit], now_ms: i64) -> Result<Vec<Submitted>, StoreError> {
        let submits: Vec<Cow<'_, Submit>> = submits.iter().map(|submit| self.bent(submit)).collect();
        let named: Vec<_> =
            submits.iter().filter_map(|submit| Some((submit.tenant, submit.key.as_ref()?))).collect();
        let mut keys = self.known_keys(&named);
        let people = self.people(&submits);
        let mut onces = self.known_onces(of_submits(submits.iter().map(Cow::as_ref)));
        let mut live: HashMap<TenantId, u64> = HashMap::new();
        let mut tasks: Vec<(TenantId, &NewTask)> = Vec::new();
        let mut answers = Vec::with_capacity(submits.len());
        for submit in &submits {
            let live = live.entry(submit.tenant).or_insert_with(|| self.live(submit.tenant));
            let over = *live + submit.tasks.len() as u64 > submit.queue_max;
            let answer = match decide(submit, now_ms, &mut keys, &people, &mut onces, live) {
                Submitted::Accepted { duplicate: true, .. }
                    if over && self.breaks(Mutation::QuotaBeforeKey) =>
                {
                    Submitted::QueueFull { live: *live }
                }
                Submitted::Accepted { count, duplicate: true, .. }
                    if self.breaks(Mutation::KeyAnswersNewIds) =>
                {
                    let first = submit.tasks.first().map_or(TaskId(0), |task| task.id);
                    Submitted::Accepted { first, count, duplicate: true, leased: false }
                }
                answer => answer,
            };
            let taken = match answer {
                _ if stores(&answer) => submit.tasks.len(),
                Submitted::QueueFull { .. } => self.taken_of_refused(submit, *live),
                _ => 0,
            };
            if self.breaks(Mutation::KeyTakenByRefused)
                && let (Submitted::QueueFull { .. }, Some(key)) = (&answer, &submit.key)
            {
                keys.remember(submit.tenant, key, Stood::one(submit.tasks[0].id), now_ms);
            }
            tasks.extend(submit.tasks[..taken].iter().map(|task| (submit.tenant, task)));
            answers.push(answer);
        }
        let tasks = onces.shape(tasks);
        let tasks: Vec<_> = tasks.into_iter().map(|(tenant, task)| (tenant, task.into_owned())).collect();
        self.insert(&tasks)?;
        for (submit, answer) in submits.iter().zip(&answers) {
            if matches!(answer, Submitted::Accepted { duplicate: false, .. }) {
                self.insert_group(submit, now_ms);
            }
        }
        self.store_keys(&keys);
        self.store_onces(&onces);
        let mut changes = Changes::default();
        for (tenant, task) in &tasks {
            changes.add(*tenant, Change { live: 1, ..Change::default() });
            if !self.breaks(Mutation::AgentTotalUncounted) {
                changes.add_agent(*tenant, task.agent, AgentChange::NEW);
            }
        }
        self.store_counts(&changes);
        Ok(answers)
    }

    /// The submit as it is decided on: itself, unless a broken promise sees another one.
    fn bent<'a>(&self, submit: &'a Submit) -> Cow<'a, Submit> {
        let Some(mutation) = self.mutation else { return Cow::Borrowed(submit) };
        let mut submit = submit.clone();
        match mutation {
            Mutation::KeyIgnored => submit.key = None,
            Mutation::KeyTakesAnyBody => submit.key.iter_mut().for_each(|key| key.body = [0; 32]),
            Mutation::QuotaUnchecked => submit.queue_max = u64::MAX,
            Mutation::QuotaOneMore => submit.queue_max = submit.queue_max.saturating_add(1),
            Mutation::QuotaOneLess => submit.queue_max = submit.queue_max.saturating_sub(1),
            _ => {}
        }
        Cow::Owned(submit)
    }

    /// How many tasks of a submit are stored that does not fit: none.
    fn taken_of_refused(&self, submit: &Submit, live: u64) -> usize {
        let room = submit.queue_max.saturating_sub(live) as usize;
        if self.breaks(Mutation::SubmitInPart) { room.min(submit.tasks.len()) } else { 0 }
    }

    fn people(&self, submits: &[Cow<'_, Submit>]) -> People {
        let mut people = People::default();
        for submit in submits {
            for task in &submit.tasks {
                if let Some((agent, (tenant, _))) = task.agent.and_then(|id| self.agents.get_key_value(&id)) {
                    let any = self.breaks(Mutation::AgentOfAnyTenant);
                    people.agents.insert((if any { submit.tenant.0 } else { tenant.0 }, *agent));
                }
                if let Some((user, (tenant, _))) = task.user.and_then(|id| self.users.get_key_value(&id)) {
                    let any = self.breaks(Mutation::UserOfAnyTenant);
                    people.users.insert((if any { submit.tenant.0 } else { tenant.0 }, *user));
                }
            }
        }
        people
    }

    /// Walks ended tasks and forgets those that are not kept.
    pub(super) fn prune_finished(
        &mut self,
        tenant: TenantId,
        kept: &KeptFrom,
        after: Option<TaskId>,
        count_max: u32,
    ) -> Pruned {
        let Some(end) = end_of_walk(kept) else { return Pruned::default() };
        let first = after.map_or(TaskId(i64::MIN), |after| TaskId(after.0.saturating_add(1)));
        let range = (tenant, first)..(tenant, end.max(first));
        let ended = self.owned.range(range).filter_map(|(_, id)| {
            let row = self.tasks.get(id)?;
            let open = self.open_group(row).is_some() && !self.breaks(Mutation::PruneOfOpenGroup);
            row.finished_ms.map(|finished_ms| (*id, row.state, Some(finished_ms).filter(|_| !open)))
        });
        let walked: Vec<Ended> = ended.take(count_max as usize).collect();
        let mut doomed = doomed(&walked, kept);
        if self.breaks(Mutation::PruneKeepsNothing) {
            doomed = walked.iter().map(|(id, state, _)| (*id, *state)).collect();
        }
        doomed.iter().for_each(|(id, _)| self.forget(tenant, *id));
        if !self.breaks(Mutation::PruneUncounted) {
            self.store_counts(&changes(tenant, doomed.iter().map(|(_, state)| *state)));
        }
        answer(&walked, doomed.len(), count_max)
    }

    /// The group of a task, if it is open.
    fn open_group(&self, row: &Row) -> Option<GroupId> {
        let open = |id: &GroupId| self.groups.get(id).is_some_and(|row| row.group.finished_ms.is_none());
        row.group.filter(open)
    }

    fn forget(&mut self, tenant: TenantId, id: TaskId) {
        self.tasks.remove(&id);
        self.owned.remove(&(tenant, id));
        if !self.breaks(Mutation::TreeOutlivesItsRoot) {
            self.trees.remove(&id);
        }
        let group = GroupId(id.0);
        if self.groups.get(&group).is_some_and(|row| row.group.finished_ms.is_some()) {
            self.groups.remove(&group);
        }
    }

    /// Forgets one ended task.
    pub(super) fn drop_task(&mut self, tenant: TenantId, id: TaskId) -> DropAnswer {
        let Some(row) = self.task_of(tenant, id, Mutation::DropForOthers) else {
            return DropAnswer::NotFound;
        };
        let (owner, state, open) = (row.tenant, row.state, self.open_group(row));
        if !state.is_terminal() && !self.breaks(Mutation::DropOfLive) {
            return DropAnswer::Live(state);
        }
        if let Some(group) = open.filter(|_| !self.breaks(Mutation::DropOfOpenGroup)) {
            return DropAnswer::OpenGroup(group);
        }
        self.ready.retain(|(.., ready)| *ready != id);
        self.forget(owner, id);
        if !self.breaks(Mutation::DropUncounted) {
            self.store_counts(&changes(owner, std::iter::once(state)));
        }
        DropAnswer::Dropped
    }

    /// Forgets keys that have expired, those that expired first first.
    pub(super) fn prune_keys(&mut self, now_ms: i64, count_max: u32) -> u64 {
        let live_too = self.breaks(Mutation::PruneForgetsLiveKeys);
        let count_max = if self.breaks(Mutation::PruneIgnoresItsNumber) { u32::MAX } else { count_max };
        let expired = |known: &Known| known.expires_ms <= now_ms || live_too;
        let mut names: Vec<_> = self.keys.iter().filter(|(_, known)| expired(known)).collect();
        names.sort_by_key(|(_, known)| known.expires_ms);
        let names: Vec<_> =
            names.into_iter().take(count_max as usize).map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.keys.remove(name);
        }
        names.len() as u64
    }

    pub(super) fn cancel(&mut self, tenant: TenantId, id: TaskId, now_ms: i64) -> CancelAnswer {
        let mut end = End::cancelled(tenant);
        if self.breaks(Mutation::CancelWithoutToken) {
            end.token = 0;
        }
        if self.breaks(Mutation::CancelForOthers) {
            end.tenant = None;
        }
        if !self.finish(&[id], &end, now_ms).is_empty() {
            return CancelAnswer::Cancelled;
        }
        match self.task_of(tenant, id, Mutation::CancelForOthers) {
            Some(row) => CancelAnswer::AlreadyTerminal(row.state),
            None => CancelAnswer::NotFound,
        }
    }

    /// Ends live tasks without an attempt and counts them; returns how many there were of each kind.
    pub(super) fn finish(&mut self, ids: &[TaskId], end: &End, now_ms: i64) -> FailedByKind {
        let of_ended = self.breaks(Mutation::CancelOfEnded);
        let (mut changes, mut usage) = (Changes::default(), Usage::default());
        let mut kinds = FailedByKind::default();
        for &id in ids {
            let Some(row) = self.tasks.get(&id) else { continue };
            let (tenant, kind, agent, group) = (row.tenant, row.kind, row.agent, row.group);
            if end.tenant.is_some_and(|only| only != tenant) || row.state.is_terminal() && !of_ended {
                continue;
            }
            self.change(id, |row| {
                (row.state, row.holder, row.finished_ms) = (end.state, None, Some(now_ms));
                row.token.0 += end.token;
                row.crashes = row.crashes.saturating_add(end.crashes as u32);
                row.failure = end.code.map(|code| failure(code, end));
            });
            let failed = i64::from(end.state == TaskState::Failed);
            let cancelled = i64::from(end.state == TaskState::Cancelled);
            changes.add(tenant, Change { live: -1, completed: 0, failed, cancelled });
            if failed > 0 {
                usage.add(tenant, Spent { failed: 1, ..Spent::default() });
            }
            if !self.breaks(Mutation::AgentEndUncounted) {
                changes.add_agent(tenant, agent, AgentChange::end(end.state, None, 1));
            }
            changes.add_group(tenant, group, end.state, 1, now_ms);
            *kinds.entry((tenant, kind)).or_default() += 1;
        }
        if !(self.breaks(Mutation::CancelUncounted) && end.state == TaskState::Cancelled) {
            self.store_counts(&changes);
        }
        self.add_usage(&usage, now_ms);
        kinds
    }

    /// Ends tasks whose time is over.
    pub(super) fn expire(&mut self, now_ms: i64, count_max: u32) -> Expired {
        let candidate = |(id, row): (&TaskId, &Row)| Candidate {
            id: *id,
            tenant: row.tenant,
            budget: row.budget,
            ends: row.ends,
            group: row.group,
            waits: row.state == TaskState::Pending && row.attempts == 0 && row.crashes == 0
                || self.breaks(Mutation::StartedTimesOutQueued),
        };
        let live = self.tasks.iter().filter(|(_, row)| !row.state.is_terminal());
        let live: Vec<Candidate> = live.map(candidate).collect();
        let early = if self.breaks(Mutation::TimeOutsEarly) { 1 } else { 0 };
        let is_over = |one: &Candidate| one.ends.over(one.waits, now_ms + early).is_some();
        let found: Vec<Candidate> = live.into_iter().filter(is_over).take(count_max as usize).collect();
        let more = found.len() == count_max as usize;
        let over = Over::of(found, now_ms + early);
        let mut failed = FailedByKind::default();
        let ends: Vec<(Vec<TaskId>, End)> = over.ends().map(|(ids, end)| (ids.to_vec(), end)).collect();
        for (ids, mut end) in ends {
            if self.breaks(Mutation::TimeOutWithoutToken) {
                end.token = 0;
            }
            if self.breaks(Mutation::TimeOutNamesNothing) {
                end.detail = None;
            }
            for (kind, count) in self.finish(&ids, &end, now_ms) {
                *failed.entry(kind).or_default() += count;
            }
        }
        let live = self.tasks.values().filter(|row| !row.state.is_terminal());
        let next = live.flat_map(|row| row.ends.start_by_ms.into_iter().chain(row.ends.end_by_ms));
        let next_ms = next.filter(|at_ms| *at_ms > now_ms).min();
        let next_ms = next_ms.filter(|_| !self.breaks(Mutation::NextTimeOutForgotten));
        failed.retain(|_, _| !self.breaks(Mutation::TimedOutKindsLost));
        over.expired(failed, more, next_ms, now_ms)
    }

    pub(super) fn retry(
        &mut self,
        tenant: TenantId,
        id: TaskId,
        amendment: &Amendment,
        queue_max: u64,
        now_ms: i64,
    ) -> RetryAnswer {
        let Some(row) = self.task_of(tenant, id, Mutation::RetryForOthers) else {
            return RetryAnswer::NotFound;
        };
        let (state, agent, group) = (row.state, row.agent, row.group);
        let elapsed_us = row.elapsed_us().map(crate::stored::stored_number);
        let change = match state {
            TaskState::Failed => Change { live: 1, failed: -1, ..Change::default() },
            TaskState::Cancelled => Change { live: 1, cancelled: -1, ..Change::default() },
            TaskState::Completed if self.breaks(Mutation::RetryOfCompleted) => {
                Change { live: 1, completed: -1, ..Change::default() }
            }
            TaskState::Pending | TaskState::Running | TaskState::Completed => {
                return RetryAnswer::NotRetryable(state);
            }
        };
        let onces = match self.take_again(id, now_ms) {
            Ok(onces) => onces,
            Err(other) => return RetryAnswer::Taken(other),
        };
        let live = self.live(tenant);
        if live >= queue_max && !self.breaks(Mutation::RetryUnchecked) {
            return RetryAnswer::QueueFull { live };
        }
        self.store_onces(&onces);
        let mutation = self.mutation;
        self.change(id, |row| {
            amend(row, amendment, mutation);
            revive(row, now_ms, mutation);
        });
        let mut changes = Changes::default();
        if !self.breaks(Mutation::RetryUncounted) {
            changes.add(tenant, change);
        }
        if !self.breaks(Mutation::AgentEndStaysAfterRetry) {
            changes.add_agent(tenant, agent, AgentChange::end(state, elapsed_us, -1));
        }
        changes.add_group(tenant, group, state, -1, now_ms);
        self.store_counts(&changes);
        RetryAnswer::Retried
    }
}

/// The failure of an end.
fn failure(code: Code, end: &End) -> Failure {
    let message = end.message.clone().unwrap_or_default().into_owned();
    decode_failure(code.as_str(), message, end.detail.as_deref()).expect("it was encoded here")
}

/// Changes what an ended task is given and asks for.
fn amend(row: &mut Row, amendment: &Amendment, mutation: Option<Mutation>) {
    if let Some(input) = amendment.input.clone().filter(|_| mutation != Some(Mutation::AmendedInputLost)) {
        row.input = input;
    }
    row.budget = match mutation {
        Some(Mutation::AmendedBudgetLost) => row.budget,
        Some(Mutation::AmendedBudgetForgetsTheRest) if !amendment.budget.is_empty() => amendment.budget,
        _ => row.budget.changed_by(&amendment.budget),
    };
}

/// Makes an ended task pending again. Its attempts count from none; their numbers go on behind the earlier ones.
fn revive(row: &mut Row, now_ms: i64, mutation: Option<Mutation>) {
    let last = row.last.take().filter(|_| mutation != Some(Mutation::RetryLosesLastAttempt));
    row.kept.extend(last);
    if mutation == Some(Mutation::RetryLosesHistory) {
        row.kept.clear();
    }
    if mutation != Some(Mutation::RetryRestartsNumbers) {
        row.earlier += row.attempts;
    }
    if mutation != Some(Mutation::RetryKeepsAttempts) {
        row.attempts = 0;
    }
    if mutation != Some(Mutation::RetryKeepsCrashes) {
        row.crashes = 0;
    }
    if mutation != Some(Mutation::RetryKeepsDeadlines) {
        row.deadlines = 0;
    }
    if mutation != Some(Mutation::RetryKeepsDueTime) {
        row.run_at_ms = now_ms;
    }
    row.place_ms = row.priority.place_at_ms(row.run_at_ms, now_ms);
    if mutation != Some(Mutation::RetryForgetsTimeOuts) {
        row.ends = Ends::of(&row.budget, now_ms);
    }
    if mutation == Some(Mutation::RetryForgetsPriority) {
        (row.priority, row.place_ms) = (Priority::default(), row.run_at_ms);
    }
    if mutation == Some(Mutation::RetryForgetsSlotKey) {
        row.slot_key = None;
    }
    if mutation == Some(Mutation::RetryRestartsTokens) {
        row.token = Token(0);
    }
    (row.state, row.finished_ms) = (TaskState::Pending, None);
    (row.result, row.failure) = (None, None);
}

/// What a task that completed needs no more.
pub(super) fn strip(row: &mut Row) {
    row.input.bytes = Bytes::new();
    row.budget = Default::default();
    row.trace = None;
    row.slot_key = None;
}
