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

/// Outcomes on their way into the input that a join is given: what its parent handed on, and an outcome for each of the
/// tasks, in their order. Of the results it keeps no more than the input can hold, however many there are.
pub struct Gathered<'a> {
    context: &'a Payload,
    tasks: Vec<TaskId>,
    outcomes: Vec<Held>,
    /// Bytes for results and messages.
    room: usize,
    /// What is left of them for results, if no outcome that is still to come has a message.
    left: usize,
}

/// An outcome that was read.
struct Held {
    outcome: Outcome,
    /// Whether its result did not fit and is dropped.
    omitted: bool,
}

impl<'a> Gathered<'a> {
    /// Nothing yet of these tasks.
    #[must_use]
    pub fn new(context: &'a Payload, tasks: Vec<TaskId>) -> Gathered<'a> {
        // What every outcome takes beside its result is there for all of them before the first result is.
        let besides = handed(context).get().len() + tasks.len() * OUTCOME_BYTES;
        let room = (INPUT_BYTES_MAX as usize).saturating_sub(besides);
        Gathered { context, outcomes: Vec::with_capacity(tasks.len()), tasks, room, left: room }
    }

    /// Adds the outcome of the next task that is not forgotten. A result for which there is no room is dropped here, and the
    /// messages of those that follow may take the room of one that is kept.
    pub fn push(&mut self, mut outcome: Outcome) {
        self.left = self.left.saturating_sub(told(&outcome));
        let fits = outcome.result.as_ref().is_none_or(|result| takes(&mut self.left, size(result)));
        outcome.result = outcome.result.filter(|_| fits);
        self.outcomes.push(Held { outcome, omitted: !fits });
    }

    /// The input, when all outcomes are there.
    #[must_use]
    pub fn into_input(self) -> Payload {
        let told: usize = self.outcomes.iter().map(|held| told(&held.outcome)).sum();
        let mut left = self.room.saturating_sub(told);
        let mut found = self.outcomes.iter().peekable();
        let mut joined = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            let held = found.next_if(|held| held.outcome.task == *task);
            joined.push(one(*task, held, &mut left));
        }
        let input = Input { context: handed(self.context), tasks: joined };
        Payload::json(serde_json::to_vec(&input).expect("texts are JSON"))
    }
}

fn handed(context: &Payload) -> &RawValue {
    serde_json::from_slice(&context.bytes).unwrap_or(RawValue::NULL)
}

fn one<'a>(task: TaskId, held: Option<&'a Held>, left: &mut usize) -> Joined<'a> {
    let outcome = held.map(|held| &held.outcome);
    let failure = outcome.and_then(|outcome| outcome.failure.as_ref());
    let mut joined = Joined {
        task: task.to_string(),
        state: outcome.map_or("forgotten", |outcome| outcome.state.as_str()),
        result: None,
        content_type: None,
        result_base64: None,
        result_omitted: held.is_some_and(|held| held.omitted),
        error: failure.map(|failure| Told { code: failure.code.as_str(), message: &failure.message }),
    };
    if joined.result_omitted {
        *left = 0;
    }
    let Some(result) = outcome.and_then(|outcome| outcome.result.as_ref()) else { return joined };
    if !takes(left, size(result)) {
        joined.result_omitted = true;
        return joined;
    }
    let json = Some(result).filter(|result| result.content_type == JSON);
    match json.and_then(|result| serde_json::from_slice(&result.bytes).ok()) {
        Some(raw) => joined.result = Some(raw),
        None => {
            joined.content_type = Some(&result.content_type);
            joined.result_base64 = Some(STANDARD.encode(&result.bytes));
        }
    }
    joined
}

/// Whether so many bytes are left, and takes them; what does not fit leaves nothing for those behind it.
fn takes(left: &mut usize, size: usize) -> bool {
    let rest = left.checked_sub(size);
    *left = rest.unwrap_or(0);
    rest.is_some()
}

/// What a result takes in the input.
fn size(result: &Payload) -> usize {
    if result.content_type == JSON {
        return result.bytes.len();
    }
    result.bytes.len().div_ceil(3) * 4 + result.content_type.len()
}

/// What an outcome's message takes in the input.
fn told(outcome: &Outcome) -> usize {
    outcome.failure.as_ref().map_or(0, |failure| 2 * failure.message.len())
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

    fn failed(task: i64, message: &str) -> Outcome {
        let failure = Some(Failure::new(Code::Trap, message));
        Outcome { task: TaskId(task), state: TaskState::Failed, result: None, failure }
    }

    /// A text of JSON of so many bytes.
    fn large(bytes: usize) -> Payload {
        Payload::json(format!("\"{}\"", "x".repeat(bytes - 2)))
    }

    fn input(context: &Payload, tasks: &[TaskId], outcomes: &[Outcome]) -> Payload {
        let mut gathered = Gathered::new(context, tasks.to_vec());
        outcomes.iter().for_each(|outcome| gathered.push(outcome.clone()));
        gathered.into_input()
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
        let failed = failed(3, "no \"way\"");
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
        let most = INPUT_BYTES_MAX as usize - 2 - 2 * OUTCOME_BYTES;
        let tasks = [TaskId(1), TaskId(2)];
        let omitted = |lens: [usize; 2]| {
            let outcomes = [completed(1, large(lens[0])), completed(2, large(lens[1]))];
            let input = input(&Payload::json("{}"), &tasks, &outcomes);
            assert!(input.bytes.len() <= INPUT_BYTES_MAX as usize);
            let value: serde_json::Value = serde_json::from_slice(&input.bytes).unwrap();
            [0, 1].map(|at| value["tasks"][at]["result_omitted"] == true)
        };
        assert_eq!(omitted([most, 3]), [false, true]);
        assert_eq!(omitted([most + 1, 3]), [true, true], "and nothing behind it");
        assert_eq!(omitted([1_000, 1_000]), [false, false]);
    }

    #[test]
    fn what_is_dropped_at_once_changes_no_byte_and_what_is_kept_fits() {
        let context = Payload::json("[7]");
        let check = |name: &str, outcomes: Vec<Outcome>, count: usize, dropped: usize| {
            let tasks: Vec<TaskId> = (1..=count as i64).map(TaskId).collect();
            let mut bounded = Gathered::new(&context, tasks.clone());
            let mut whole = Gathered { left: usize::MAX, ..Gathered::new(&context, tasks) };
            for outcome in outcomes {
                bounded.push(outcome.clone());
                whole.push(outcome);
                let results = bounded.outcomes.iter().filter_map(|held| held.outcome.result.as_ref());
                let kept: usize = results.map(|result| result.bytes.len()).sum();
                assert!(kept <= INPUT_BYTES_MAX as usize, "{name}: {kept} bytes are kept");
            }
            assert!(whole.outcomes.iter().all(|held| !held.omitted), "{name}");
            let omitted = bounded.outcomes.iter().filter(|held| held.omitted).count();
            assert_eq!(omitted, dropped, "{name}");
            assert!(bounded.into_input() == whole.into_input(), "{name}: the inputs differ");
        };
        let room = |count: usize| INPUT_BYTES_MAX as usize - 3 - count * OUTCOME_BYTES;
        let text = |size| Payload { content_type: "text/plain".to_owned(), bytes: vec![7; size].into() };
        let full = large(INPUT_BYTES_MAX as usize);
        let many: Vec<Outcome> = (1..=999).map(|task| completed(task, full.clone())).collect();
        check("nothing", Vec::new(), 2, 0);
        check("all fit", vec![completed(1, large(9)), completed(3, text(9))], 3, 0);
        check("at the limit", vec![completed(1, large(room(1)))], 1, 0);
        check("one above", vec![completed(1, large(room(1) + 1))], 1, 1);
        check("999 of the largest", many, 999, 999);
        let empty = Payload::json("");
        let behind = vec![completed(1, large(room(3))), completed(2, large(3)), completed(3, empty)];
        check("what is behind, but for an empty one", behind, 3, 1);
        let first = vec![completed(1, full), completed(2, large(3)), completed(3, text(3))];
        check("nothing is left", first, 3, 3);
        let base64 = vec![completed(1, text(room(2) / 2)), completed(2, text(room(2) / 2))];
        check("base64 is longer", base64, 2, 1);
        let later = vec![completed(1, large(room(2))), failed(2, "no")];
        check("a message takes the room of a result before it", later, 2, 0);
        let sooner = vec![failed(1, "no"), completed(2, large(room(2)))];
        check("and of one behind it", sooner, 2, 1);
    }
}
