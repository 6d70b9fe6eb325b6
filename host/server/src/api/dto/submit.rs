//! What a submit's JSON becomes: one task, many, or a group.

use std::fmt;

use bytes::Bytes;
use keiko_core::Code;
use keiko_core::effect::check_key;
use keiko_core::group::NewGroup;
use keiko_core::limit::{BULK_TASKS_MAX, LimitFact, MIB};
use keiko_core::once::{Once, OnceRule};
use keiko_core::policy::BudgetRequest;
use keiko_core::priority::{PRIORITY_MAX, Priority};
use keiko_core::retry::RetryRequest;
use keiko_core::task::Amendment;
use keiko_runtime::TaskRequest;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::api::input::payload;
use crate::api::json;
use crate::api::problem::Problem;
use crate::api::query::parse;

/// A task as a client writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a task, which is an object")]
struct TaskBody<'a> {
    plugin: Option<String>,
    kind: Option<String>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    input_base64: Option<String>,
    content_type: Option<String>,
    fuel: Option<u64>,
    memory_mib: Option<u64>,
    timeout_s: Option<u64>,
    attempts: Option<u64>,
    queued_timeout_s: Option<u64>,
    total_timeout_s: Option<u64>,
    heartbeat_timeout_s: Option<u64>,
    tree_fuel: Option<u64>,
    tree_host_calls: Option<u64>,
    tree_timeout_s: Option<u64>,
    retry: Option<RetryRequest>,
    delay_ms: Option<u64>,
    run_at: Option<String>,
    priority: Option<u64>,
    concurrency_key: Option<String>,
    /// Only of a line of a stream.
    idempotency_key: Option<String>,
    unique: Option<UniqueBody>,
    debounce: Option<DebounceBody>,
    throttle: Option<ThrottleBody>,
    agent: Option<String>,
    user: Option<String>,
}

/// There is no other while one is live.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UniqueBody {
    key: String,
    /// Whether a submit is refused while one is live; otherwise it finds that one.
    #[serde(default)]
    refuse: bool,
}

/// The newest input counts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DebounceBody {
    key: String,
    wait_ms: u64,
    max_ms: Option<u64>,
}

/// Each keeps its distance.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThrottleBody {
    key: String,
    interval_ms: u64,
}

/// What a retry by hand changes, as a client writes it; what is left out stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "what to change, which is an object")]
struct AmendmentBody<'a> {
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    input_base64: Option<String>,
    content_type: Option<String>,
    fuel: Option<u64>,
    memory_mib: Option<u64>,
    timeout_s: Option<u64>,
    attempts: Option<u64>,
    queued_timeout_s: Option<u64>,
    total_timeout_s: Option<u64>,
    heartbeat_timeout_s: Option<u64>,
    retry: Option<RetryRequest>,
}

/// Only tells one task from many.
#[derive(Deserialize)]
#[serde(expecting = "a task or `tasks`, which is an object")]
struct Probe<'a> {
    #[serde(borrow, default)]
    tasks: Option<&'a RawValue>,
}

/// A group as a client writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a group, which is an object with `tasks`")]
struct GroupBody<'a> {
    #[serde(borrow)]
    tasks: Parts<'a>,
    live_max: Option<u32>,
    #[serde(default)]
    fail_fast: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many<'a> {
    #[serde(borrow)]
    tasks: Parts<'a>,
}

/// The tasks of a bulk submit, unread, and no more of them than may be.
struct Parts<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Parts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parts<'a>, D::Error> {
        struct Bounded;

        impl<'de> Visitor<'de> for Bounded {
            type Value = Parts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of 1 to {BULK_TASKS_MAX} tasks")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Parts<'de>, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                    if parts.len() > BULK_TASKS_MAX {
                        return Err(serde::de::Error::invalid_length(parts.len(), &self));
                    }
                }
                Ok(Parts(parts))
            }
        }

        deserializer.deserialize_seq(Bounded)
    }
}

/// What a submit asks for.
#[derive(Debug)]
pub(in crate::api) struct SubmitRequest {
    /// At least one task.
    pub(in crate::api) tasks: Vec<TaskRequest>,
    /// Whether it was written as many, which decides the shape of the answer.
    pub(in crate::api) many: bool,
}

/// Reads a JSON submit.
pub(in crate::api) fn submit(body: &Bytes, trace: Option<&str>) -> Result<SubmitRequest, Problem> {
    let probe: Probe<'_> = json::parse(body)?;
    if probe.tasks.is_none() {
        let task: TaskBody<'_> = json::parse(body)?;
        let tasks = vec![task.request(body, trace)?];
        return Ok(SubmitRequest { tasks, many: false });
    }
    let many: Many<'_> = json::parse(body)?;
    Ok(SubmitRequest { tasks: requests(&many.tasks, body, trace)?, many: true })
}

/// Reads the task of a schedule.
pub(in crate::api) fn template(body: &Bytes, task: &RawValue) -> Result<TaskRequest, Problem> {
    let parsed: TaskBody<'_> = json::parse_part(body, task, "task")?;
    parsed.request(body, None).map_err(|problem| within("task", problem))
}

/// Reads a submit of a group.
pub(in crate::api) fn submit_group(
    body: &Bytes,
    trace: Option<&str>,
) -> Result<(Vec<TaskRequest>, NewGroup), Problem> {
    let group: GroupBody<'_> = json::parse(body)?;
    let asked = NewGroup { live_max: group.live_max, fail_fast: group.fail_fast };
    Ok((requests(&group.tasks, body, trace)?, asked))
}

fn requests(parts: &Parts<'_>, body: &Bytes, trace: Option<&str>) -> Result<Vec<TaskRequest>, Problem> {
    let read = |(at, part): (usize, &RawValue)| {
        let path = format!("tasks[{at}]");
        let task: TaskBody<'_> = json::parse_part(body, part, &path)?;
        task.request(body, trace).map_err(|problem| within(&path, problem))
    };
    let tasks: Vec<_> = parts.0.iter().copied().enumerate().map(read).collect::<Result<_, _>>()?;
    if tasks.is_empty() {
        return Err(Problem::invalid(format!("tasks: expected 1 to {BULK_TASKS_MAX} tasks, found none")));
    }
    Ok(tasks)
}

/// Reads a submit that is one task a line.
pub(in crate::api) fn submit_lines(body: &Bytes, trace: Option<&str>) -> Result<SubmitRequest, Problem> {
    let mut tasks = Vec::new();
    for (at, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        if tasks.len() == BULK_TASKS_MAX {
            let fact = LimitFact::of_host("tasks", BULK_TASKS_MAX as u64, None);
            return Err(Problem::at_limit(Code::InvalidInput, fact));
        }
        let path = format!("line {}", at + 1);
        let task: TaskBody<'_> = json::parse(line).map_err(|problem| within(&path, problem))?;
        tasks.push(task.request(body, trace).map_err(|problem| within(&path, problem))?);
    }
    if tasks.is_empty() {
        return Err(Problem::invalid(format!(
            "expected 1 to {BULK_TASKS_MAX} lines with a task, found none"
        )));
    }
    Ok(SubmitRequest { tasks, many: true })
}

/// Reads a line of a stream: a task, and its idempotency key.
pub(in crate::api) fn stream_line(
    line: &Bytes,
    trace: Option<&str>,
) -> Result<(TaskRequest, Option<String>), Problem> {
    let mut task: TaskBody<'_> = json::parse(line)?;
    let key = task.idempotency_key.take();
    if let Some(key) = &key {
        check_key(key).map_err(|text| Problem::invalid(format!("`idempotency_key`: {text}")))?;
    }
    Ok((task.request(line, trace)?, key))
}

fn within(path: &str, problem: Problem) -> Problem {
    Problem { message: format!("{path}: {}", problem.message), ..problem }
}

impl TaskBody<'_> {
    fn request(self, body: &Bytes, trace: Option<&str>) -> Result<TaskRequest, Problem> {
        if self.idempotency_key.is_some() {
            let text = "`idempotency_key` goes with a line of a stream; elsewhere it is the header `Idempotency-Key`";
            return Err(Problem::invalid(text));
        }
        let input = payload(body, self.input, self.input_base64, self.content_type)?;
        Ok(TaskRequest {
            plugin: self.plugin,
            kind: self.kind,
            input,
            budget: BudgetRequest {
                fuel: self.fuel,
                memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(MIB)),
                wall_ms: self.timeout_s.map(ms),
                attempts: self.attempts,
                queued_ms: self.queued_timeout_s.map(ms),
                total_ms: self.total_timeout_s.map(ms),
                heartbeat_ms: self.heartbeat_timeout_s.map(ms),
                retry: self.retry.unwrap_or_default(),
                tree_fuel: self.tree_fuel,
                tree_host_calls: self.tree_host_calls,
                tree_ms: self.tree_timeout_s.map(ms),
            },
            delay_ms: self.delay_ms.unwrap_or(0),
            run_at_ms: run_at_ms(self.run_at)?,
            priority: priority(self.priority)?,
            once: once(self.unique, self.debounce, self.throttle)?,
            slot_key: self.concurrency_key,
            agent: parse("agent", self.agent)?,
            user: parse("user", self.user)?,
            trace: trace.map(str::to_owned),
        })
    }
}

/// Reads what a retry by hand changes.
pub(in crate::api) fn amendment(body: &Bytes) -> Result<Amendment, Problem> {
    let asked: AmendmentBody<'_> = json::parse(body)?;
    let names_input = asked.input.is_some() || asked.input_base64.is_some() || asked.content_type.is_some();
    let input = names_input.then(|| payload(body, asked.input, asked.input_base64, asked.content_type));
    let budget = BudgetRequest {
        fuel: asked.fuel,
        memory_bytes: asked.memory_mib.map(|mib| mib.saturating_mul(MIB)),
        wall_ms: asked.timeout_s.map(ms),
        attempts: asked.attempts,
        queued_ms: asked.queued_timeout_s.map(ms),
        total_ms: asked.total_timeout_s.map(ms),
        heartbeat_ms: asked.heartbeat_timeout_s.map(ms),
        retry: asked.retry.unwrap_or_default(),
        // What its tree may spend was settled when it completed, or is its root's.
        ..BudgetRequest::default()
    };
    Ok(Amendment { input: input.transpose()?, budget })
}

fn once(
    unique: Option<UniqueBody>,
    debounce: Option<DebounceBody>,
    throttle: Option<ThrottleBody>,
) -> Result<Option<Once>, Problem> {
    let unique = unique.map(|body| (body.key, OnceRule::Unique { refuse: body.refuse }));
    let debounce =
        debounce.map(|DebounceBody { key, wait_ms, max_ms }| (key, OnceRule::Debounce { wait_ms, max_ms }));
    let throttle =
        throttle.map(|ThrottleBody { key, interval_ms }| (key, OnceRule::Throttle { interval_ms }));
    let mut asked = unique.into_iter().chain(debounce).chain(throttle);
    let once = asked.next().map(|(key, rule)| Once { key, rule });
    if asked.next().is_some() {
        return Err(Problem::invalid("`unique`, `debounce` and `throttle` exclude each other"));
    }
    Ok(once)
}

fn ms(seconds: u64) -> u64 {
    seconds.saturating_mul(1_000)
}

fn run_at_ms(text: Option<String>) -> Result<Option<i64>, Problem> {
    let time: Option<jiff::Timestamp> = parse("run_at", text)?;
    Ok(time.map(|time| time.as_millisecond()))
}

fn priority(level: Option<u64>) -> Result<Priority, Problem> {
    let level = level.unwrap_or_default();
    Priority::new(level).ok_or_else(|| {
        let fact = LimitFact::of_host("priority", u64::from(PRIORITY_MAX), Some(level));
        Problem::at_limit(Code::InvalidInput, fact)
    })
}
