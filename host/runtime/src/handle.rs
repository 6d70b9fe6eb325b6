//! The way to talk to a running host.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use keiko_core::admission::admit;
use keiko_core::code::Code;
use keiko_core::effect::{Body, BodyHash, check_content_type, check_key};
use keiko_core::group::NewGroup;
use keiko_core::limit::{BULK_TASKS_MAX, DELAY_MS_MAX, INPUT_BYTES_MAX, LimitFact, SetBy};
use keiko_core::log::Kept;
use keiko_core::once::{OnceError, OnceRule};
use keiko_core::policy::{BudgetRequest, TenantPolicy};
use keiko_core::task::{
    Amendment, CancelAnswer, DropAnswer, Key, Lineage, NewTask, Payload, RetryAnswer, Submit, Submitted,
    TaskCounts, TaskFilter, TaskState, TaskSummary,
};
use keiko_core::time_out::Ends;
use keiko_core::{AgentId, GroupId, KindId, TaskId, TenantId, TenantName, UserId, join};

use crate::batch::BatchFigures;
use crate::cache::Cache;
use crate::joins;
use crate::options::Options;
use crate::request::{Accepted, AttemptLog, Error, TaskDetail, TaskRequest};
use crate::shared::{Figures, Shared, TenantEntry};

/// How long a caller waits for a new task before it looks what became of it: more than most tasks take.
const UNTOLD: Duration = Duration::from_millis(20);

/// Talks to a runtime; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) names: Arc<HashMap<TenantName, TenantId>>,
}

impl Handle {
    /// The row of a configured tenant.
    pub fn tenant(&self, name: &TenantName) -> Option<TenantId> {
        self.names.get(name).copied()
    }

    /// What a tenant may do.
    pub fn policy(&self, tenant: TenantId) -> Option<TenantPolicy> {
        self.shared.tenant(tenant).map(|entry| entry.policy.clone())
    }

    /// The options this host runs with.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.shared.cache
    }

    /// What this host has counted since it started.
    pub fn figures(&self) -> Figures {
        self.shared.figures()
    }

    /// Stores tasks, all or none; they are durable when this returns.
    ///
    /// Errors: `invalid_input`, `not_found`, `quota_exceeded`, `queue_full`, `conflict`, `storage_*`.
    pub async fn submit(
        &self,
        tenant: TenantId,
        tasks: Vec<TaskRequest>,
        key: Option<String>,
    ) -> Result<Accepted, Error> {
        self.submit_all(tenant, tasks, key, None).await
    }

    /// Stores tasks as [`Handle::submit`] does, as one group or as none.
    pub(crate) async fn submit_all(
        &self,
        tenant: TenantId,
        tasks: Vec<TaskRequest>,
        key: Option<String>,
        group: Option<NewGroup>,
    ) -> Result<Accepted, Error> {
        if !self.shared.accepting.load(Ordering::Acquire) {
            return Err(Error::new(Code::StorageBusy, "the host is stopping and takes no tasks"));
        }
        if tasks.is_empty() || tasks.len() > BULK_TASKS_MAX {
            let fact = LimitFact::of_host("tasks", BULK_TASKS_MAX as u64, Some(tasks.len() as u64));
            return Err(Error::at_limit(Code::InvalidInput, fact));
        }
        let entry = self.entry(tenant)?;
        let named: Vec<_> = tasks.iter().map(|task| (task.agent, task.user)).collect();
        let handlers = match self.check_or_read(tenant, &tasks).await {
            Ok(handlers) => handlers,
            Err(refused) => return self.repeated(tenant, &tasks, key, group, refused).await,
        };
        let submit = self.shape(tenant, tasks, handlers, key, group).await?;
        let times =
            submit.tasks.iter().filter_map(|task| Ends::of(&task.budget, task.run_at_ms).first_ms()).min();
        let moves = submit.tasks.iter().any(|task| task.once.is_some());
        let answer = self.shared.tasks.enqueue(vec![submit], self.shared.clock.now_ms()).await?.pop();
        let accepted = self.submitted(tenant, entry, &named, answer)?;
        times.into_iter().for_each(|over_ms| self.shared.time_outs.note(over_ms));
        if moves {
            // Its time may be another one than was asked for, and that of a task that was there may have moved.
            self.shared.time_outs.look();
            self.shared.ready();
        }
        Ok(accepted)
    }

    /// What the store is told of tasks that a client asks for, whose handlers are those of [`Handle::check_or_read`].
    pub(crate) async fn shape(
        &self,
        tenant: TenantId,
        tasks: Vec<TaskRequest>,
        handlers: Vec<(KindId, BudgetRequest)>,
        key: Option<String>,
        group: Option<NewGroup>,
    ) -> Result<Submit, Error> {
        let entry = self.entry(tenant)?;
        let count = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        for (place, task) in tasks.iter().enumerate() {
            check_once(task, group.is_some()).map_err(|error| at(place, tasks.len(), error))?;
        }
        let key = key.map(|text| self.key(text, &tasks, &handlers, group)).transpose()?;
        let first = self.shared.ids.take(count).await?;
        let now_ms = self.shared.clock.now_ms();
        let ids = (first.0..).map(TaskId);
        let tasks = ids.zip(tasks).zip(handlers);
        let tasks = tasks.map(|((id, task), (kind, manifest))| new_task(id, kind, &manifest, task, now_ms));
        let mut tasks: Vec<NewTask> = tasks.collect();
        for (place, task) in tasks.iter_mut().enumerate() {
            task.group = group.map(|_| GroupId(first.0));
            task.held = group.is_some_and(|group| group.holds(place));
        }
        let queue_max = entry.policy.queue_max.saturating_sub(self.shared.gauge.promised(tenant));
        Ok(Submit { tenant, tasks, key, group, queue_max })
    }

    /// Which handlers tasks mean, and what their manifests ask for, if the tenant may have them; also of a plugin that was
    /// installed elsewhere just now.
    pub(crate) async fn check_or_read(
        &self,
        tenant: TenantId,
        tasks: &[TaskRequest],
    ) -> Result<Vec<(KindId, BudgetRequest)>, Error> {
        let entry = self.entry(tenant)?;
        match self.check_all(tenant, entry, tasks) {
            Err(error) if error.code == Code::NotFound => {
                self.shared.catalog.read_again().await?;
                self.check_all(tenant, entry, tasks)
            }
            checked => checked,
        }
    }

    pub(crate) fn submitted(
        &self,
        tenant: TenantId,
        entry: &TenantEntry,
        named: &[(Option<AgentId>, Option<UserId>)],
        answer: Option<Submitted>,
    ) -> Result<Accepted, Error> {
        let unknown = |index: Option<usize>, text: String| {
            at(index.unwrap_or(0), named.len(), Error::new(Code::NotFound, text))
        };
        match answer {
            Some(Submitted::Accepted { first, count, duplicate, leased }) => {
                self.stored(tenant, if duplicate { 0 } else { count }, leased);
                Ok(Accepted { first, count, duplicate, mixed: None })
            }
            Some(Submitted::Mixed { ids, stored }) => {
                self.stored(tenant, stored, false);
                let first = ids.first().copied().unwrap_or(TaskId(0));
                Ok(Accepted { first, count: ids.len() as u32, duplicate: stored == 0, mixed: Some(ids) })
            }
            Some(Submitted::Conflict) => {
                Err(Error::new(Code::Conflict, "the idempotency key stands for another submit"))
            }
            Some(Submitted::Taken { task, place }) => Err(at(place as usize, named.len(), taken(task))),
            Some(Submitted::TooLate { ahead_ms, place }) => {
                let fact = LimitFact::of_host("delay_ms", DELAY_MS_MAX, Some(ahead_ms));
                Err(at(place as usize, named.len(), Error::at_limit(Code::RateLimited, fact)))
            }
            Some(Submitted::NoAgent(id)) => {
                let index = named.iter().position(|(agent, _)| *agent == Some(id));
                Err(unknown(index, format!("there is no agent {id}")))
            }
            Some(Submitted::NoUser(id)) => {
                let index = named.iter().position(|(_, user)| *user == Some(id));
                Err(unknown(index, format!("there is no user {id}")))
            }
            Some(Submitted::QueueFull { live }) => Err(queue_full(entry, live + named.len() as u64)),
            None => Err(Error::new(Code::Internal, "the store did not answer a submit")),
        }
    }

    /// So many tasks are in the queue that were not before; those that are `leased` wait for nobody.
    fn stored(&self, tenant: TenantId, count: u32, leased: bool) {
        if count == 0 {
            return;
        }
        self.shared.gauge.change(tenant, i64::from(count));
        if !leased {
            self.shared.ready();
        }
    }

    fn check_all(
        &self,
        tenant: TenantId,
        entry: &TenantEntry,
        tasks: &[TaskRequest],
    ) -> Result<Vec<(KindId, BudgetRequest)>, Error> {
        let check =
            |(index, task)| self.check(tenant, entry, task).map_err(|error| at(index, tasks.len(), error));
        tasks.iter().enumerate().map(check).collect()
    }

    /// The kind of a task that may be submitted, and what its manifest asks for.
    fn check(
        &self,
        tenant: TenantId,
        entry: &TenantEntry,
        task: &TaskRequest,
    ) -> Result<(KindId, BudgetRequest), Error> {
        if task.run_at_ms.is_some() && task.delay_ms > 0 {
            let text = "a delay and a time to run at exclude each other";
            return Err(Error::new(Code::InvalidInput, text));
        }
        if let Some(key) = &task.slot_key {
            let named = |text| Error::new(Code::InvalidInput, format!("`concurrency_key`: {text}"));
            check_key(key).map_err(named)?;
        }
        let ahead_ms = task.run_at_ms.map_or(0, |at| at.saturating_sub(self.shared.clock.now_ms()).max(0));
        let delay_ms = task.delay_ms.max(ahead_ms as u64);
        if delay_ms > DELAY_MS_MAX {
            let fact = LimitFact::of_host("delay_ms", DELAY_MS_MAX, Some(delay_ms));
            return Err(Error::at_limit(Code::InvalidInput, fact));
        }
        self.admit(tenant, entry, (task.plugin.as_deref(), task.kind.as_deref()), &task.input, &task.budget)
    }

    /// Which handler a plugin and a kind mean, and what its manifest asks for, if it takes this input and may have this
    /// budget.
    pub(crate) fn admit(
        &self,
        tenant: TenantId,
        entry: &TenantEntry,
        (plugin, kind): (Option<&str>, Option<&str>),
        input: &Payload,
        budget: &BudgetRequest,
    ) -> Result<(KindId, BudgetRequest), Error> {
        let bytes = input.bytes.len() as u64;
        if bytes > INPUT_BYTES_MAX {
            let fact = LimitFact::of_host("input_bytes", INPUT_BYTES_MAX, Some(bytes));
            return Err(Error::at_limit(Code::InvalidInput, fact));
        }
        check_content_type(&input.content_type).map_err(|text| Error::new(Code::InvalidInput, text))?;
        let (id, handler) = self.shared.catalog.resolve(tenant, plugin, kind)?;
        let plugin = &handler.loaded.plugin;
        if plugin.draining {
            let message = format!("plugin {} is being removed and takes no new tasks", plugin.name);
            return Err(Error::new(Code::Conflict, message));
        }
        let manifest = handler.budget();
        admit(&entry.policy, &manifest, budget).map_err(|denied| Error {
            limit: Some(denied.fact.clone()),
            ..Error::new(denied.code, denied.to_string())
        })?;
        Ok((id, manifest))
    }

    /// The key of a submit, with what must be equal for a second one to be the same.
    pub(crate) fn key(
        &self,
        text: String,
        tasks: &[TaskRequest],
        kinds: &[(KindId, BudgetRequest)],
        group: Option<NewGroup>,
    ) -> Result<Key, Error> {
        check_key(&text).map_err(|text| Error::new(Code::InvalidInput, text))?;
        let mut body = BodyHash::default();
        group.iter().for_each(|group| body.add_group(group));
        for (task, (kind, _)) in tasks.iter().zip(kinds) {
            task.once.iter().for_each(|once| body.add_once(once));
            body.add(&Body {
                delay_ms: task.delay_ms,
                run_at_ms: task.run_at_ms,
                budget: task.budget,
                agent: task.agent,
                user: task.user,
                priority: task.priority,
                slot_key: task.slot_key.as_deref(),
                ..Body::of(*kind, &task.input)
            });
        }
        Ok(Key { text, body: body.finish() })
    }

    /// A task with everything that is kept of it.
    pub async fn task(&self, tenant: TenantId, id: TaskId) -> Result<TaskDetail, Error> {
        let view = self.shared.records.task(tenant, id).await?.ok_or_else(|| no_task(id))?;
        let runs = view.summary.state == TaskState::Running;
        let progress = if runs { self.shared.progress(tenant, id, view.token) } else { None };
        Ok(TaskDetail { view, progress })
    }

    /// A task as soon as it has ended, or as it is after `at_most`, or when the host stops.
    pub async fn wait(&self, tenant: TenantId, id: TaskId, at_most: Duration) -> Result<TaskDetail, Error> {
        self.wait_from(tenant, id, at_most, Duration::ZERO).await
    }

    /// The same for a task that was submitted just now: it can hardly have ended before its caller waits, so that nobody
    /// looks before somebody tells, or [`UNTOLD`] has gone by.
    pub async fn wait_for_new(
        &self,
        tenant: TenantId,
        id: TaskId,
        at_most: Duration,
    ) -> Result<TaskDetail, Error> {
        self.wait_from(tenant, id, at_most, UNTOLD.min(at_most)).await
    }

    async fn wait_from(
        &self,
        tenant: TenantId,
        id: TaskId,
        at_most: Duration,
        untold: Duration,
    ) -> Result<TaskDetail, Error> {
        let deadline = tokio::time::Instant::now() + at_most;
        let waiter = self.shared.waiters.wait(id);
        if !untold.is_zero() {
            let _ = tokio::time::timeout(untold, waiter.changed()).await;
        }
        loop {
            let changed = waiter.changed();
            if let Some(view) = waiter.ended(tenant) {
                return Ok(TaskDetail { view: Arc::unwrap_or_clone(view), progress: None });
            }
            let detail = self.task(tenant, id).await?;
            let stopping = !self.shared.accepting.load(Ordering::Acquire);
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if detail.view.summary.state.is_terminal() || left.is_zero() || stopping {
                return Ok(detail);
            }
            // Running out of time is a reason to look again, as being told is.
            let _ = tokio::time::timeout(left.min(self.shared.options.look_again), changed).await;
        }
    }

    /// Up to `limit` tasks, newest first.
    ///
    /// Errors: `invalid_input` when the filter contradicts itself or is too wide; `storage_*`.
    pub async fn list(
        &self,
        tenant: TenantId,
        filter: &TaskFilter,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, Error> {
        filter.check().map_err(|text| Error::new(Code::InvalidInput, text))?;
        Ok(self.shared.records.list(tenant, filter, limit).await?)
    }

    /// How many tasks there are in each state.
    pub async fn counts(&self, tenant: TenantId) -> Result<TaskCounts, Error> {
        Ok(self.shared.records.counts(tenant).await?)
    }

    /// What a task is given, which is kept until it completes; of one that joins others, with their outcomes as they are now.
    ///
    /// Errors: `not_found`, `storage_*`.
    pub async fn input(&self, tenant: TenantId, id: TaskId) -> Result<Payload, Error> {
        let Some(stored) = self.shared.records.input(tenant, id).await? else {
            self.task(tenant, id).await?;
            let text = format!("the input of task {id} is not kept: it has completed");
            return Err(Error::new(Code::NotFound, text));
        };
        match join::group_of(&stored) {
            Some(group) => Ok(joins::input(&self.shared, tenant, group, id, &stored).await?),
            None => Ok(stored),
        }
    }

    /// The logs of a task's ended attempts.
    pub async fn logs(&self, tenant: TenantId, id: TaskId) -> Result<Vec<AttemptLog>, Error> {
        self.task(tenant, id).await?;
        let decode = |(attempt, bytes): (u32, Bytes)| {
            let kept = Kept::decode(&bytes).map_err(|error| {
                tracing::error!(task = %id, attempt, error = %error, "a stored log does not decode");
                Error::new(Code::Integrity, format!("the log of attempt {attempt} does not decode"))
            })?;
            Ok(AttemptLog { attempt, kept })
        };
        self.shared.records.logs(tenant, id).await?.into_iter().map(decode).collect()
    }

    /// Ends a task that has not ended. The answer is final: a running attempt stops and stores nothing.
    pub async fn cancel(&self, tenant: TenantId, id: TaskId) -> Result<TaskDetail, Error> {
        match self.shared.tasks.cancel(tenant, id, self.shared.clock.now_ms()).await? {
            CancelAnswer::Cancelled => {
                self.shared.cancelled(tenant, vec![id]);
                self.task(tenant, id).await
            }
            CancelAnswer::AlreadyTerminal(TaskState::Cancelled) => self.task(tenant, id).await,
            CancelAnswer::AlreadyTerminal(state) => {
                Err(Error::new(Code::Conflict, format!("the task had ended before, as {}", state.as_str())))
            }
            CancelAnswer::NotFound => Err(no_task(id)),
        }
    }

    /// Makes a failed or cancelled task pending again, changed by the amendment.
    pub async fn retry(
        &self,
        tenant: TenantId,
        id: TaskId,
        amendment: Amendment,
    ) -> Result<TaskDetail, Error> {
        let entry = self.entry(tenant)?;
        if !amendment.is_empty() {
            let of = self.task(tenant, id).await?.view.summary;
            let named = (Some(of.plugin.as_str()), Some(of.kind.as_str()));
            let input = amendment.input.clone().unwrap_or_else(|| Payload::json("null"));
            self.admit(tenant, entry, named, &input, &amendment.budget)?;
        }
        let queue_max = entry.policy.queue_max.saturating_sub(self.shared.gauge.promised(tenant));
        match self.shared.tasks.retry(tenant, id, amendment, queue_max, self.shared.clock.now_ms()).await? {
            RetryAnswer::Retried => {
                self.retried(tenant, 1);
                self.task(tenant, id).await
            }
            RetryAnswer::NotRetryable(state) => Err(Error::new(
                Code::Conflict,
                format!("only failed and cancelled tasks can be retried; this one is {}", state.as_str()),
            )),
            RetryAnswer::Taken(other) => Err(taken(other)),
            RetryAnswer::QueueFull { live } => Err(queue_full(entry, live + 1)),
            RetryAnswer::NotFound => Err(no_task(id)),
        }
    }

    /// Forgets an ended task, with everything that is kept of it.
    pub async fn drop_task(&self, tenant: TenantId, id: TaskId) -> Result<(), Error> {
        match self.shared.tasks.drop_task(tenant, id).await? {
            DropAnswer::Dropped => Ok(()),
            DropAnswer::Live(state) => Err(Error::new(
                Code::Conflict,
                format!("only ended tasks can be dropped; this one is {}", state.as_str()),
            )),
            DropAnswer::OpenGroup(group) => Err(Error::new(
                Code::Conflict,
                format!("tasks of a group can be dropped when all of them have ended; {group} is open"),
            )),
            DropAnswer::NotFound => Err(no_task(id)),
        }
    }

    /// Whether the host takes tasks and its database answers.
    pub async fn ready(&self) -> Result<(), Error> {
        if !self.shared.accepting.load(Ordering::Acquire) {
            return Err(Error::new(Code::StorageBusy, "the host is stopping"));
        }
        Ok(self.shared.records.ping().await?)
    }

    /// What this host has counted of batches since it started.
    pub fn batch_figures(&self) -> BatchFigures {
        self.shared.batches.figures()
    }

    pub(crate) fn entry(&self, tenant: TenantId) -> Result<&TenantEntry, Error> {
        let entry = self.shared.tenant(tenant).map(Arc::as_ref);
        entry.ok_or_else(|| Error::new(Code::NotFound, "there is no such tenant"))
    }
}

/// Whether a task may ask what it asks of others of its kind and a key.
fn check_once(task: &TaskRequest, of_group: bool) -> Result<(), Error> {
    let Some(once) = &task.once else { return Ok(()) };
    let invalid = |text: &str| Err(Error::new(Code::InvalidInput, text));
    if of_group {
        return invalid("`unique`, `debounce` and `throttle` find other tasks, which a group cannot have");
    }
    if matches!(once.rule, OnceRule::Debounce { .. }) && (task.delay_ms > 0 || task.run_at_ms.is_some()) {
        return invalid("`debounce` says when the task is due; `delay_ms` and `run_at` exclude it");
    }
    match once.check() {
        Ok(()) => Ok(()),
        Err(OnceError::Time(fact)) => Err(Error::at_limit(Code::InvalidInput, fact)),
        Err(error @ OnceError::Key(_)) => invalid(&error.to_string()),
    }
}

fn new_task(id: TaskId, kind: KindId, manifest: &BudgetRequest, task: TaskRequest, now_ms: i64) -> NewTask {
    let mut budget = task.budget.with_time_outs_of(manifest);
    budget.tree_ms = budget.tree_ms.or(manifest.tree_ms);
    NewTask {
        id,
        kind,
        input: task.input,
        created_ms: now_ms,
        // What was due before it came has not waited yet: it goes behind what has.
        run_at_ms: task.run_at_ms.unwrap_or(now_ms).max(now_ms).saturating_add_unsigned(task.delay_ms),
        priority: task.priority,
        budget,
        lineage: Lineage::root(id),
        agent: task.agent,
        user: task.user,
        trace: task.trace,
        group: None,
        held: false,
        tree_end_ms: None,
        slot_key: task.slot_key,
        once: task.once,
    }
}

pub(crate) fn queue_full(entry: &TenantEntry, asked: u64) -> Error {
    let fact = LimitFact {
        name: "queue".to_owned(),
        limit: entry.policy.queue_max,
        asked: Some(asked),
        set_by: SetBy::Tenant,
    };
    Error::at_limit(Code::QueueFull, fact)
}

fn taken(task: TaskId) -> Error {
    Error::new(Code::Conflict, format!("a task of this kind and key has not ended: {task}"))
}

fn no_task(id: TaskId) -> Error {
    Error::new(Code::NotFound, format!("there is no task {id}"))
}

/// Says which of many tasks an error belongs to.
fn at(index: usize, count: usize, mut error: Error) -> Error {
    if count > 1 {
        error.message = format!("tasks[{index}]: {}", error.message);
    }
    error
}
