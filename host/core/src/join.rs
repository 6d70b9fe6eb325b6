//! Joins: what a task is given that starts when all tasks of a group have ended.
//!
//! Until then there are no outcomes, and afterwards they are stored already: so the row of a join has the group's number in
//! the content type of its input, and the outcomes are read when an attempt begins.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::group::Outcome;
use crate::id::{GroupId, TaskId};
use crate::limit::INPUT_BYTES_MAX;
use crate::task::{JSON, Payload};

/// How the content type of a join's stored input begins.
pub const STORED_TYPE: &str = "application/vnd.keiko.join";

/// Whether this can be handed on to a join: JSON of its own.
pub fn check_context(payload: &Payload) -> Result<(), String> {
    if payload.content_type != JSON || serde_json::from_slice::<&RawValue>(&payload.bytes).is_err() {
        return Err("the input of a task that joins others is JSON".to_owned());
    }
    Ok(())
}

/// What is stored as the input of the task that joins this group.
#[must_use]
pub fn stored(group: GroupId, context: &Payload) -> Payload {
    Payload { content_type: format!("{STORED_TYPE}; group={group}"), bytes: context.bytes.clone() }
}

/// The group that a task with this stored input joins.
#[must_use]
pub fn group_of(stored: &Payload) -> Option<GroupId> {
    stored.content_type.strip_prefix(STORED_TYPE)?.strip_prefix("; group=")?.parse().ok()
}

#[derive(Serialize)]
struct Input<'a> {
    context: &'a RawValue,
    tasks: Vec<Joined<'a>>,
}

#[derive(Serialize)]
struct Joined<'a> {
    task: String,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    result_omitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    code: &'a str,
    message: &'a str,
}

/// The input that a join is given: what its parent handed on, and an outcome for each of the tasks, in their order.
#[must_use]
pub fn input(context: &Payload, tasks: &[TaskId], outcomes: &[Outcome]) -> Payload {
    let nothing = serde_json::value::to_raw_value(&()).expect("null is JSON");
    let handed: &RawValue = serde_json::from_slice(&context.bytes).unwrap_or(&nothing);
    // What every outcome takes beside its result is there for all of them before the first result is.
    let told: usize =
        outcomes.iter().filter_map(|one| one.failure.as_ref()).map(|one| 2 * one.message.len()).sum();
    let besides = handed.get().len() + told + tasks.len() * OUTCOME_BYTES;
    let mut left = (INPUT_BYTES_MAX as usize).saturating_sub(besides);
    let mut found = outcomes.iter().peekable();
    let mut joined = Vec::with_capacity(tasks.len());
    for task in tasks {
        let outcome = found.next_if(|outcome| outcome.task == *task);
        joined.push(one(*task, outcome, &mut left));
    }
    let bytes = serde_json::to_vec(&Input { context: handed, tasks: joined }).expect("texts are JSON");
    Payload::json(bytes)
}

fn one<'a>(task: TaskId, outcome: Option<&'a Outcome>, left: &mut usize) -> Joined<'a> {
    let failure = outcome.and_then(|outcome| outcome.failure.as_ref());
    let mut joined = Joined {
        task: task.to_string(),
        state: outcome.map_or("forgotten", |outcome| outcome.state.as_str()),
        result: None,
        content_type: None,
        result_base64: None,
        result_omitted: false,
        error: failure.map(|failure| Told { code: failure.code.as_str(), message: &failure.message }),
    };
    let Some(result) = outcome.and_then(|outcome| outcome.result.as_ref()) else { return joined };
    let json = (result.content_type == JSON).then(|| serde_json::from_slice::<&RawValue>(&result.bytes).ok());
    let size = match json {
        Some(_) => result.bytes.len(),
        None => result.bytes.len().div_ceil(3) * 4 + result.content_type.len(),
    };
    if size > *left {
        *left = 0;
        joined.result_omitted = true;
        return joined;
    }
    *left -= size;
    match json.flatten() {
        Some(raw) => joined.result = Some(raw),
        None => {
            joined.content_type = Some(&result.content_type);
            joined.result_base64 = Some(STANDARD.encode(&result.bytes));
        }
    }
    joined
}

/// Bytes of an outcome without result and message, at most.
const OUTCOME_BYTES: usize = 160;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::code::Code;
    use crate::outcome::Failure;
    use crate::task::TaskState;

    fn completed(task: i64, result: Payload) -> Outcome {
        Outcome { task: TaskId(task), state: TaskState::Completed, result: Some(result), failure: None }
    }

    #[test]
    fn a_stored_input_names_its_group() {
        let context = Payload::json("[1]");
        let stored = stored(GroupId(7), &context);
        assert_eq!((group_of(&stored), &stored.bytes), (Some(GroupId(7)), &context.bytes));
        assert_eq!(group_of(&context), None);
        assert!(crate::effect::check_content_type(&stored.content_type).is_err(), "nobody else writes one");
        assert!(check_context(&context).is_ok());
        let other = Payload { content_type: "text/plain".to_owned(), ..context };
        assert!(check_context(&other).is_err() && check_context(&Payload::json("{")).is_err());
    }

    #[test]
    fn an_input_has_an_outcome_for_each_task_in_order() {
        let failed = Outcome {
            task: TaskId(3),
            state: TaskState::Failed,
            result: None,
            failure: Some(Failure::new(Code::Trap, "no \"way\"")),
        };
        let bytes = Payload { content_type: "text/plain".to_owned(), bytes: Bytes::from_static(b"abc") };
        let outcomes = [completed(1, Payload::json("{\"a\": 1}")), failed, completed(4, bytes)];
        let tasks: Vec<TaskId> = (1..=4).map(TaskId).collect();
        let input = input(&Payload::json("[7]"), &tasks, &outcomes);
        let value: serde_json::Value = serde_json::from_slice(&input.bytes).unwrap();
        let id = |number| TaskId(number).to_string();
        assert_eq!(
            value,
            serde_json::json!({"context": [7], "tasks": [
                {"task": id(1), "state": "completed", "result": {"a": 1}},
                {"task": id(2), "state": "forgotten"},
                {"task": id(3), "state": "failed", "error": {"code": "trap", "message": "no \"way\""}},
                {"task": id(4), "state": "completed", "content_type": "text/plain", "result_base64": "YWJj"},
            ]})
        );
    }

    #[test]
    fn results_that_do_not_fit_are_left_out_and_say_so() {
        let large = |len: usize| Payload::json(Bytes::from(format!("\"{}\"", "x".repeat(len))));
        let most = INPUT_BYTES_MAX as usize - 2 - 2 * OUTCOME_BYTES - 2;
        let tasks = [TaskId(1), TaskId(2)];
        let omitted = |lens: [usize; 2]| {
            let outcomes = [completed(1, large(lens[0])), completed(2, large(lens[1]))];
            let input = input(&Payload::json("{}"), &tasks, &outcomes);
            assert!(input.bytes.len() <= INPUT_BYTES_MAX as usize);
            let value: serde_json::Value = serde_json::from_slice(&input.bytes).unwrap();
            [0, 1].map(|at| value["tasks"][at]["result_omitted"] == true)
        };
        assert_eq!(omitted([most, 1]), [false, true]);
        assert_eq!(omitted([most + 1, 1]), [true, true], "and nothing behind it");
        assert_eq!(omitted([1_000, 1_000]), [false, false]);
    }
}
