//! The shapes of `docs/http-api.md`: what a request's JSON becomes, and what an answer's JSON is made of.

mod plugin;
mod submit;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keiko_core::TaskId;
use keiko_core::canary::FailedRun;
use keiko_core::limit::LimitFact;
use keiko_core::log::{Level, Line, Source};
use keiko_core::outcome::{Failure, Frame};
use keiko_core::task::{AttemptView, Payload, TaskCounts, TaskSummary};
use keiko_core::tree::Tree;
use keiko_runtime::{AttemptLog, Bulk, TaskDetail};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::depth;
use super::limit::JSON_DEPTH_MAX;
use crate::limits::Limits;

pub(super) use plugin::{Profiles, generations, plugin, plugins, tried, watched};
pub(super) use submit::{amendment, stream_line, submit, submit_group, submit_lines, template};

/// A time as answers have it: RFC 3339 in UTC with milliseconds.
pub(crate) fn time(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(time) => format!("{time:.3}"),
        // No clock of a host says this; a broken row might.
        Err(_) => ms.to_string(),
    }
}

/// Bytes as JSON when they are, otherwise as base64.
pub(super) enum Value<'a> {
    Json(&'a RawValue),
    Base64(String),
}

pub(super) fn value(payload: &Payload) -> Value<'_> {
    let named = payload.content_type.split(';').next().unwrap_or_default().trim();
    let is_json = named.eq_ignore_ascii_case("application/json");
    // A plugin may call anything JSON. Only what is, and what readers can bear, is put into the answer as it is.
    let raw: Option<&RawValue> = if is_json && depth(&payload.bytes) <= JSON_DEPTH_MAX {
        serde_json::from_slice(&payload.bytes).ok()
    } else {
        None
    };
    raw.map_or_else(|| Value::Base64(BASE64.encode(&payload.bytes)), Value::Json)
}

#[derive(Serialize)]
pub(super) struct FailureJson<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a LimitFact>,
    #[serde(skip_serializing_if = "<[Frame]>::is_empty")]
    backtrace: &'a [Frame],
}

impl<'a> From<&'a Failure> for FailureJson<'a> {
    fn from(failure: &'a Failure) -> FailureJson<'a> {
        FailureJson {
            code: failure.code.as_str(),
            message: &failure.message,
            limit: failure.limit.as_ref(),
            backtrace: &failure.backtrace,
        }
    }
}

#[derive(Serialize)]
struct ProgressJson<'a> {
    fraction: f64,
    message: &'a str,
}

#[derive(Serialize)]
struct AttemptJson<'a> {
    number: u32,
    started_at: String,
    duration_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    fuel_used: u64,
    memory_bytes_peak: u64,
    host_calls: u64,
    pure: bool,
    tainted_by: Vec<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    random_seeded: bool,
    effects: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<FailedRunJson<'a>>,
}

/// The run on a canary that failed before.
#[derive(Serialize)]
struct FailedRunJson<'a> {
    version: &'a str,
    digest: String,
    code: &'static str,
}

impl<'a> From<&'a FailedRun> for FailedRunJson<'a> {
    fn from(run: &'a FailedRun) -> FailedRunJson<'a> {
        let FailedRun { version, digest, code } = run;
        FailedRunJson { version: version.as_str(), digest: digest.to_string(), code: code.as_str() }
    }
}

impl<'a> From<&'a AttemptView> for AttemptJson<'a> {
    fn from(view: &'a AttemptView) -> AttemptJson<'a> {
        let record = &view.record;
        AttemptJson {
            number: record.number,
            started_at: time(record.started_ms),
            duration_us: record.meter.elapsed_us,
            version: view.version.as_ref().map(|version| version.as_str()),
            digest: view.digest.map(|digest| digest.to_string()),
            fuel_used: record.meter.fuel_used,
            memory_bytes_peak: record.meter.memory_bytes_peak,
            host_calls: record.meter.host_calls,
            pure: view.failure.is_none() && record.taint.is_none() && record.effects == 0,
            tainted_by: record.taint.names(),
            random_seeded: record.taint.is_seeded(),
            effects: record.effects,
            error: view.failure.as_ref().map(FailureJson::from),
            canary: record.canary.as_ref().map(FailedRunJson::from),
        }
    }
}

/// What a root and all below it may spend, and have spent.
#[derive(Serialize)]
struct TreeJson {
    fuel_max: u64,
    fuel_used: u64,
    host_calls_max: u64,
    host_calls_used: u64,
}

impl From<Tree> for TreeJson {
    fn from(Tree { max, used }: Tree) -> TreeJson {
        TreeJson {
            fuel_max: max.fuel,
            fuel_used: used.fuel,
            host_calls_max: max.host_calls,
            host_calls_used: used.host_calls,
        }
    }
}

/// What a task and its summary share.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    id: String,
    plugin: &'a str,
    kind: &'a str,
    state: &'static str,
    created_at: String,
    run_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    root: String,
    parent: Option<String>,
    depth: u32,
    crashes: u32,
    #[serde(skip_serializing_if = "is_zero")]
    priority: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

impl<'a> From<&'a TaskSummary> for Head<'a> {
    fn from(summary: &'a TaskSummary) -> Head<'a> {
        Head {
            id: summary.id.to_string(),
            plugin: summary.plugin.as_str(),
            kind: summary.kind.as_str(),
            state: summary.state.as_str(),
            created_at: time(summary.created_ms),
            run_at: time(summary.run_at_ms),
            finished_at: summary.finished_ms.map(time),
            root: summary.lineage.root.to_string(),
            parent: summary.lineage.parent.map(|parent| parent.to_string()),
            depth: summary.lineage.depth,
            crashes: summary.crashes,
            priority: summary.priority.level(),
            agent: summary.agent.map(|agent| agent.to_string()),
            user: summary.user.map(|user| user.to_string()),
        }
    }
}

fn is_zero(level: &u8) -> bool {
    *level == 0
}

#[derive(Serialize)]
struct TaskJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
    /// How many tasks below it were cancelled with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled_below: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree: Option<TreeJson>,
    /// The task that computed the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    memoized_from: Option<String>,
    attempts: Vec<AttemptJson<'a>>,
}

/// A result goes beside the other fields by hand: a raw value cannot pass through a flattened one.
#[derive(Serialize)]
struct ResultJson<'a> {
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
}

/// The JSON of a task.
pub(super) fn task(detail: &TaskDetail) -> Vec<u8> {
    task_and(detail, None)
}

/// A task, and how many below it were cancelled.
pub(super) fn cancelled_tree(detail: &TaskDetail, below: u64) -> Vec<u8> {
    task_and(detail, Some(below))
}

fn task_and(detail: &TaskDetail, cancelled_below: Option<u64>) -> Vec<u8> {
    let view = &detail.view;
    let progress = detail.progress.as_ref();
    let mut text = to_vec(&TaskJson {
        head: Head::from(&view.summary),
        group: view.group.map(|group| group.to_string()),
        concurrency_key: view.slot_key.as_deref(),
        limits: Limits::of(&view.budget),
        progress: progress
            .map(|progress| ProgressJson { fraction: progress.fraction, message: &progress.message }),
        error: view.failure.as_ref().map(FailureJson::from),
        cancelled_below,
        tree: view.tree.map(TreeJson::from),
        memoized_from: view
            .attempts
            .last()
            .and_then(|attempt| attempt.record.memoized_from)
            .map(|task| task.to_string()),
        attempts: view.attempts.iter().map(AttemptJson::from).collect(),
    });
    if let Some(payload) = &view.result {
        let (result, result_base64) = match value(payload) {
            Value::Json(raw) => (Some(raw), None),
            Value::Base64(encoded) => (None, Some(encoded)),
        };
        let part = to_vec(&ResultJson { content_type: &payload.content_type, result, result_base64 });
        text.pop();
        text.push(b',');
        text.extend_from_slice(&part[1..]);
    }
    text
}

#[derive(Serialize)]
struct SummaryJson<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
}

#[derive(Serialize)]
struct PageJson<'a> {
    tasks: Vec<SummaryJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The JSON of a page of at most `limit` tasks. One more than that says that there is another page.
pub(super) fn page(tasks: &[TaskSummary], limit: u32) -> Vec<u8> {
    let shown = &tasks[..tasks.len().min(limit as usize)];
    let next = if tasks.len() > shown.len() { shown.last().map(|last| last.id.to_string()) } else { None };
    to_vec(&PageJson { tasks: shown.iter().map(SummaryJson::from).collect(), next })
}

impl<'a> From<&'a TaskSummary> for SummaryJson<'a> {
    fn from(summary: &'a TaskSummary) -> SummaryJson<'a> {
        SummaryJson { head: Head::from(summary), attempts: summary.attempts, code: summary.code.as_deref() }
    }
}

/// The JSON of the ids of many tasks.
pub(super) fn ids(ids: impl Iterator<Item = TaskId>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Ids {
        tasks: Vec<String>,
    }
    to_vec(&Ids { tasks: ids.map(|id| id.to_string()).collect() })
}

/// The JSON of what became of many tasks.
pub(super) fn bulk(bulk: &Bulk) -> Vec<u8> {
    #[derive(Serialize)]
    struct BulkJson {
        matched: u64,
        changed: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    }
    let Bulk { matched, changed, next } = *bulk;
    to_vec(&BulkJson { matched, changed, next: next.map(|id| id.to_string()) })
}

/// The JSON of how many tasks there are.
pub(super) fn counts(counts: &TaskCounts) -> Vec<u8> {
    #[derive(Serialize)]
    struct Counts {
        pending: u64,
        running: u64,
        completed: u64,
        failed: u64,
        cancelled: u64,
    }
    let TaskCounts { pending, running, completed, failed, cancelled } = *counts;
    to_vec(&Counts { pending, running, completed, failed, cancelled })
}

#[derive(Serialize)]
struct LogsJson<'a> {
    attempts: Vec<AttemptLogJson<'a>>,
}

#[derive(Serialize)]
struct AttemptLogJson<'a> {
    attempt: u32,
    dropped: u64,
    lines: Vec<LineJson<'a>>,
}

#[derive(Serialize)]
struct LineJson<'a> {
    at: String,
    level: Level,
    source: Source,
    message: &'a str,
    #[serde(skip_serializing_if = "Fields::is_empty")]
    fields: Fields<'a>,
}

/// Named values as an object; of two with one name the later stays.
struct Fields<'a>(&'a [(String, String)]);

impl Fields<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, (name, value)) in self.0.iter().enumerate() {
            if self.0[at + 1..].iter().all(|(later, _)| later != name) {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
}

impl<'a> From<&'a Line> for LineJson<'a> {
    fn from(line: &'a Line) -> LineJson<'a> {
        LineJson {
            at: time(line.at_ms),
            level: line.level,
            source: line.source,
            message: &line.message,
            fields: Fields(&line.fields),
        }
    }
}

/// The JSON of a task's logs.
pub(super) fn logs(logs: &[AttemptLog]) -> Vec<u8> {
    to_vec(&LogsJson { attempts: logs.iter().map(AttemptLogJson::from).collect() })
}

impl<'a> From<&'a AttemptLog> for AttemptLogJson<'a> {
    fn from(log: &'a AttemptLog) -> AttemptLogJson<'a> {
        let lines = log.kept.lines.iter().map(LineJson::from).collect();
        AttemptLogJson { attempt: log.attempt, dropped: log.kept.dropped, lines }
    }
}

/// What a host says of itself.
#[derive(Serialize)]
pub(super) struct HostJson<'a> {
    pub(super) version: &'static str,
    pub(super) tenant: &'a str,
    pub(super) workers: usize,
    pub(super) queue_max: u64,
}

/// The JSON of any of these shapes.
pub(super) fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    // None of the shapes has a key that is not a text, and none of their parts refuses.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
