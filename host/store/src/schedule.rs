//! Schedules: how all databases store what one is, and what they note of an occurrence.

use keiko_core::id::{AgentId, TaskId, UserId};
use keiko_core::port::{DueSchedules, Firing, ScheduleKey, StoreError};
use keiko_core::schedule::{Last, Missed, Overlap, Recurrence, Schedule, Template};
use keiko_core::task::{Payload, Submitted};
use serde::{Deserialize, Serialize};

use crate::format::{Undecodable, decode_budget, encode_budget, read_priority, stored_priority};

/// When a schedule occurs and what its tasks are, but for their input.
#[derive(Serialize, Deserialize)]
struct StoredSchedule {
    cron: String,
    zone: String,
    missed: Missed,
    overlap: Overlap,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plugin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// As a task's column holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot_key: Option<String>,
}

/// What a column holds of a schedule.
pub(crate) fn encode(schedule: &Schedule) -> String {
    let Schedule { recurrence, task, .. } = schedule;
    let stored = StoredSchedule {
        cron: recurrence.cron.clone(),
        zone: recurrence.zone.clone(),
        missed: recurrence.missed,
        overlap: recurrence.overlap,
        plugin: task.plugin.clone(),
        kind: task.kind.clone(),
        budget: encode_budget(&task.budget),
        priority: stored_priority(task.priority),
        agent: task.agent.map(|id| id.0),
        user: task.user.map(|id| id.0),
        slot_key: task.slot_key.clone(),
    };
    serde_json::to_string(&stored).expect("numbers and texts always encode")
}

/// Reads what [`encode`] wrote, with the input beside it.
pub(crate) fn decode(text: &str, input: Payload) -> Result<(Recurrence, Template), Undecodable> {
    let stored: StoredSchedule = serde_json::from_str(text).map_err(|_| Undecodable("schedule"))?;
    let StoredSchedule { cron, zone, missed, overlap, plugin, kind, slot_key, .. } = stored;
    let template = Template {
        plugin,
        kind,
        input,
        budget: decode_budget(stored.budget.as_deref())?,
        priority: read_priority(stored.priority)?,
        agent: stored.agent.map(AgentId),
        user: stored.user.map(UserId),
        slot_key,
    };
    Ok((Recurrence { cron, zone, missed, overlap }, template))
}

/// Rows that are due, apart from those that cannot be read.
pub(crate) fn due(
    rows: Vec<(ScheduleKey, Result<Schedule, StoreError>)>,
    now_ms: i64,
    next_ms: Option<i64>,
) -> DueSchedules {
    let mut due = DueSchedules { now_ms, next_ms, ..DueSchedules::default() };
    for (key, row) in rows {
        match row {
            Ok(schedule) => due.schedules.push(schedule),
            Err(error) => due.unreadable.push((key, error)),
        }
    }
    due
}

/// What is noted of an occurrence whose submit was answered so; `None` when it was missed.
pub(crate) fn noted(firing: &Firing, answer: Option<&Submitted>) -> Option<Last> {
    let (at_ms, outcome) = firing.occurrence.as_ref()?;
    let problem = |code: &str, text: String| Some((code.to_owned(), text));
    let (task, problem) = match (outcome, answer) {
        (Err((code, text)), _) => (None, problem(code.as_str(), text.clone())),
        (Ok(_), Some(Submitted::Accepted { first, duplicate: false, .. })) => (Some(*first), None),
        (Ok(_), Some(Submitted::Accepted { first, duplicate: true, .. })) => {
            let text = "the task of an occurrence before has not ended".to_owned();
            (Some(*first), problem("conflict", text))
        }
        (Ok(submit), Some(Submitted::QueueFull { live })) => {
            let text = format!("the tenant has {live} live tasks and may have {}", submit.queue_max);
            (None, problem("queue_full", text))
        }
        (Ok(_), Some(Submitted::NoAgent(id))) => {
            (None, problem("not_found", format!("there is no agent {id}")))
        }
        (Ok(_), Some(Submitted::NoUser(id))) => {
            (None, problem("not_found", format!("there is no user {id}")))
        }
        // One task without a key finds or refuses nothing else.
        (
            Ok(_),
            Some(
                Submitted::Conflict
                | Submitted::Mixed { .. }
                | Submitted::Taken { .. }
                | Submitted::TooLate { .. },
            )
            | None,
        ) => (None, problem("internal", "the store did not take the task".to_owned())),
    };
    Some(Last { at_ms: *at_ms, task, problem })
}

/// What columns hold of an occurrence.
pub(crate) type LastColumns = (Option<i64>, Option<i64>, Option<String>, Option<String>);

/// The columns of an occurrence.
pub(crate) fn columns(last: Option<Last>) -> LastColumns {
    let Some(Last { at_ms, task, problem }) = last else { return (None, None, None, None) };
    let (code, message) = problem.unzip();
    (Some(at_ms), task.map(|id| id.0), code, message)
}

/// The occurrence that columns hold.
pub(crate) fn last((at_ms, task, code, message): LastColumns) -> Option<Last> {
    Some(Last { at_ms: at_ms?, task: task.map(TaskId), problem: code.zip(message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_format_still_decodes() {
        let text = r#"{"cron":"0 9 * * *","zone":"Europe/Berlin","missed":"run_once","overlap":"skip","kind":"k","budget":"{\"fuel\":7}","priority":3,"user":8}"#;
        let (recurrence, task) = decode(text, Payload::json("1")).unwrap();
        assert_eq!((recurrence.missed, recurrence.overlap), (Missed::RunOnce, Overlap::Skip));
        assert_eq!((task.budget.fuel, task.priority.level(), task.user), (Some(7), 3, Some(UserId(8))));
        let schedule = Schedule {
            tenant: keiko_core::TenantId(1),
            name: "n".parse().unwrap(),
            recurrence,
            task,
            created_ms: 0,
            paused_ms: None,
            next_ms: None,
            last: None,
        };
        assert_eq!(encode(&schedule), text);
        assert_eq!(decode("{", Payload::json("1")).err(), Some(Undecodable("schedule")));
    }
}
