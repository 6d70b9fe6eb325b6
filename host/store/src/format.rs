//! The stored JSON formats. Each has a sample of its first form in the tests, which must decode for ever.
//!
//! A field may be added when a reader of the old form can do without it; nothing is renamed or removed.

use keiko_core::canary::{FailedRun, Trial};
use keiko_core::code::Code;
use keiko_core::id::{Digest, TaskId, VersionId};
use keiko_core::limit::{CANARY_PERCENT_MAX, LimitFact};
use keiko_core::manifest::Manifest;
use keiko_core::outcome::{Failure, Frame, Meter, RetryWish, Taint};
use keiko_core::policy::BudgetRequest;
use keiko_core::priority::Priority;
use keiko_core::retry::RetryRequest;
use keiko_core::task::{AttemptRecord, AttemptView, TaskState};
use serde::{Deserialize, Serialize};

use crate::lenient;

/// What is stored cannot be read: says what, never the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored {0} cannot be read")]
pub(crate) struct Undecodable(pub(crate) &'static str);

/// What a failure has beside its code and message, or an end that is none beside its result.
#[derive(Default, Serialize, Deserialize)]
struct Detail {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<LimitFact>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    backtrace: Vec<Frame>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after: Option<RetryAfter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memoized_from: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    canary: Option<Canary>,
}

/// The run on a canary that failed before, in the same attempt.
#[derive(Serialize, Deserialize)]
struct Canary {
    version: String,
    digest: String,
    code: String,
}

impl From<&FailedRun> for Canary {
    fn from(run: &FailedRun) -> Canary {
        let FailedRun { version, digest, code } = run;
        Canary { version: version.to_string(), digest: digest.to_string(), code: code.to_string() }
    }
}

impl Canary {
    fn read(self) -> Result<FailedRun, Undecodable> {
        Ok(FailedRun {
            version: self.version.parse().map_err(|_| Undecodable("version name of a canary"))?,
            digest: self.digest.parse().map_err(|_| Undecodable("digest of a canary"))?,
            code: self.code.parse().map_err(|_| Undecodable("failure code of a canary"))?,
        })
    }
}

/// That the plugin wished for another attempt, and when.
#[derive(Serialize, Deserialize)]
struct RetryAfter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
}

/// The detail of a failure; `None` when code and message say everything.
pub(crate) fn encode_detail(failure: &Failure) -> Option<String> {
    Detail::of(failure).text()
}

/// The detail of an attempt: of its failure, or of whose result it has, and of a run on a canary before; `None` when there is
/// nothing to say.
pub(crate) fn encode_end(failure: Option<&Failure>, attempt: &AttemptRecord) -> Option<String> {
    let mut detail = failure.map(Detail::of).unwrap_or_default();
    detail.memoized_from = attempt.memoized_from.filter(|_| failure.is_none()).map(|from| from.0);
    detail.canary = attempt.canary.as_ref().map(Canary::from);
    detail.text()
}

impl Detail {
    fn of(failure: &Failure) -> Detail {
        let retry_after = match failure.retry {
            RetryWish::ByCode => None,
            RetryWish::After(ms) => Some(RetryAfter { ms }),
        };
        let (limit, backtrace) = (failure.limit.clone(), failure.backtrace.clone());
        Detail { limit, backtrace, retry_after, ..Detail::default() }
    }

    fn text(&self) -> Option<String> {
        let Detail { limit, backtrace, retry_after, memoized_from, canary } = self;
        let is_empty = limit.is_none()
            && backtrace.is_empty()
            && retry_after.is_none()
            && memoized_from.is_none()
            && canary.is_none();
        (!is_empty).then(|| serde_json::to_string(self).expect("texts and numbers always encode"))
    }
}

/// What the stored detail of an attempt says beside its failure.
fn decode_beside(
    has_failed: bool,
    detail: Option<&str>,
) -> Result<(Option<TaskId>, Option<FailedRun>), Undecodable> {
    let Some(text) = detail else { return Ok((None, None)) };
    let detail: Detail = serde_json::from_str(text).map_err(|_| Undecodable("detail of an end"))?;
    let memoized_from = detail.memoized_from.filter(|_| !has_failed).map(TaskId);
    Ok((memoized_from, detail.canary.map(Canary::read).transpose()?))
}

/// A failure of its three stored parts.
pub(crate) fn decode_failure(
    code: &str,
    message: String,
    detail: Option<&str>,
) -> Result<Failure, Undecodable> {
    let code: Code = code.parse().map_err(|_| Undecodable("failure code"))?;
    let mut failure = Failure { code, message, limit: None, backtrace: Vec::new(), retry: RetryWish::ByCode };
    if let Some(text) = detail {
        let detail: Detail = serde_json::from_str(text).map_err(|_| Undecodable("failure detail"))?;
        failure.limit = detail.limit;
        failure.backtrace = detail.backtrace;
        failure.retry = detail.retry_after.map_or(RetryWish::ByCode, |after| RetryWish::After(after.ms));
    }
    Ok(failure)
}

/// Tasks that a key stands for, where they do not follow each other.
pub(crate) fn encode_ids(ids: &[TaskId]) -> String {
    let numbers: Vec<i64> = ids.iter().map(|id| id.0).collect();
    serde_json::to_string(&numbers).expect("numbers always encode")
}

/// Tasks that a key stands for.
pub(crate) fn decode_ids(text: &str) -> Result<Vec<TaskId>, Undecodable> {
    let numbers: Vec<i64> = serde_json::from_str(text).map_err(|_| Undecodable("ids of a key"))?;
    Ok(numbers.into_iter().map(TaskId).collect())
}

/// A budget's wishes as they are stored.
#[derive(Serialize, Deserialize)]
#[serde(remote = "BudgetRequest")]
struct Budget {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fuel: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wall_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
    // The statements of a retry by hand read these two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queued_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heartbeat_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "RetryRequest::is_empty")]
    retry: RetryRequest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tree_fuel: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tree_host_calls: Option<u64>,
    // And this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tree_ms: Option<u64>,
}

/// A budget's wishes; `None` when there are none.
pub(crate) fn encode_budget(budget: &BudgetRequest) -> Option<String> {
    if budget.is_empty() {
        return None;
    }
    let mut text = serde_json::Serializer::new(Vec::new());
    Budget::serialize(budget, &mut text).expect("numbers and names always encode");
    Some(String::from_utf8(text.into_inner()).expect("JSON is UTF-8"))
}

/// Reads what [`encode_budget`] wrote.
pub(crate) fn decode_budget(text: Option<&str>) -> Result<BudgetRequest, Undecodable> {
    let Some(text) = text else { return Ok(BudgetRequest::default()) };
    lenient::read(text, Budget::deserialize).map_err(|_| Undecodable("budget"))
}

/// The manifest of a version, which a newer release may have written.
pub(crate) fn decode_manifest(text: &str) -> Result<Manifest, Undecodable> {
    lenient::from_json(text).map_err(|_| Undecodable("manifest"))
}

/// The test of a canary as it is stored.
pub(crate) fn encode_trial(trial: &Trial) -> String {
    serde_json::to_string(trial).expect("numbers always encode")
}

/// Reads what [`encode_trial`] wrote.
pub(crate) fn decode_trial(text: &str) -> Result<Trial, Undecodable> {
    serde_json::from_str(text).map_err(|_| Undecodable("test of a canary"))
}

/// A canary's part of the tasks.
pub(crate) fn read_percent(stored: i64) -> Result<u8, Undecodable> {
    let percent = u8::try_from(stored).ok().filter(|percent| (1..=CANARY_PERCENT_MAX).contains(percent));
    percent.ok_or(Undecodable("part of a canary"))
}

/// The priority that a column holds; ordinary ones store none.
pub(crate) fn stored_priority(priority: Priority) -> Option<i64> {
    (!priority.is_ordinary()).then_some(i64::from(priority.level()))
}

/// Reads what [`stored_priority`] wrote.
pub(crate) fn read_priority(stored: Option<i64>) -> Result<Priority, Undecodable> {
    let level = u64::try_from(stored.unwrap_or_default()).ok();
    level.and_then(Priority::new).ok_or(Undecodable("priority"))
}

/// An attempt as a statement hands it over: in this order, as a JSON array made by the database. Not stored.
#[derive(Deserialize)]
struct AttemptRow(
    u32,
    i64,
    u64,
    u64,
    u64,
    u64,
    u32,
    u32,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

/// Attempts from a JSON array of: number, started_ms, fuel_used, memory_bytes_peak, host_calls, elapsed_us,
/// taint, effects, version, its name, its digest in hexadecimal, code, message, detail.
pub(crate) fn decode_attempts(text: &str) -> Result<Vec<AttemptView>, Undecodable> {
    let rows: Vec<AttemptRow> = serde_json::from_str(text).map_err(|_| Undecodable("attempts"))?;
    rows.into_iter().map(attempt_view).collect()
}

fn attempt_view(row: AttemptRow) -> Result<AttemptView, Undecodable> {
    let AttemptRow(number, started_ms, fuel_used, memory_bytes_peak, host_calls, elapsed_us, ..) = row;
    let AttemptRow(.., taint, effects, version, name, digest, code, message, detail) = row;
    let (memoized_from, canary) = decode_beside(code.is_some(), detail.as_deref())?;
    let record = AttemptRecord {
        number,
        started_ms,
        meter: Meter { fuel_used, memory_bytes_peak, host_calls, elapsed_us },
        taint: Taint(taint),
        effects,
        version: version.map(VersionId),
        memoized_from,
        canary,
    };
    let name = name.map(|name| name.parse().map_err(|_| Undecodable("version name"))).transpose()?;
    let failure =
        code.map(|code| decode_failure(&code, message.unwrap_or_default(), detail.as_deref())).transpose()?;
    let digest = digest.map(|hex| digest_of_hex(&hex).ok_or(Undecodable("digest"))).transpose()?;
    Ok(AttemptView { record, version: name, digest, failure })
}

/// Exactly one result for completed, one error for failed, none for others.
pub(crate) fn check_end(state: TaskState, result: bool, failure: bool) -> Result<(), Undecodable> {
    let fits = result == (state == TaskState::Completed) && failure == (state == TaskState::Failed);
    if fits { Ok(()) } else { Err(Undecodable("end of the task")) }
}

fn digest_of_hex(hex: &str) -> Option<Digest> {
    let mut bytes = [0u8; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(Digest(bytes))
}

#[cfg(test)]
mod tests {
    use keiko_core::canary::{Seen, Tallies, Tally, Unit};

    use super::*;

    #[test]
    fn the_first_failure_format_still_decodes() {
        let sample = r#"{"limit":{"name":"fuel","limit":5,"asked":6,"set_by":"tenant"},
            "backtrace":[{"function":"run","file":"lib.rs","line":3},{"function":"f"}],"retry_after":{"ms":7}}"#;
        let failure = decode_failure("trap", "it broke".to_owned(), Some(sample)).unwrap();
        assert_eq!(failure.code, Code::Trap);
        assert_eq!(failure.limit.as_ref().unwrap().asked, Some(6));
        assert_eq!(failure.backtrace[0].line, Some(3));
        assert_eq!(failure.retry, RetryWish::After(Some(7)));
        let again = encode_detail(&failure).unwrap();
        assert_eq!(decode_failure("trap", "it broke".to_owned(), Some(&again)), Ok(failure));
        assert_eq!(decode_failure("trap", String::new(), None).unwrap().retry, RetryWish::ByCode);
    }

    #[test]
    fn the_first_form_of_a_keys_tasks_still_decodes() {
        let ids = vec![TaskId(7), TaskId(3), TaskId(7)];
        assert_eq!(decode_ids("[7,3,7]"), Ok(ids.clone()));
        assert_eq!(encode_ids(&ids), "[7,3,7]");
        assert!(decode_ids("7").is_err());
    }

    #[test]
    fn a_plain_failure_stores_no_detail() {
        assert_eq!(encode_detail(&Failure::new(Code::Trap, "m")), None);
        let mut failure = Failure::new(Code::PluginFailed, "m");
        failure.retry = RetryWish::After(None);
        assert_eq!(encode_detail(&failure).as_deref(), Some(r#"{"retry_after":{}}"#));
    }

    #[test]
    fn the_first_budget_format_still_decodes() {
        let budget = decode_budget(Some(r#"{"fuel":1,"memory_bytes":2,"wall_ms":3,"attempts":4}"#)).unwrap();
        assert_eq!(budget.attempts, Some(4));
        assert_eq!(decode_budget(encode_budget(&budget).as_deref()), Ok(budget));
        let timed =
            r#"{"queued_ms":5,"total_ms":6,"heartbeat_ms":7,"retry":{"first_ms":1,"codes":["trap"]}}"#;
        let budget = decode_budget(Some(timed)).unwrap();
        assert_eq!((budget.total_ms, budget.retry.first_ms), (Some(6), Some(1)));
        assert_eq!(encode_budget(&budget).as_deref(), Some(timed));
        let of_tree = r#"{"tree_fuel":5,"tree_host_calls":6,"tree_ms":7}"#;
        assert_eq!(encode_budget(&decode_budget(Some(of_tree)).unwrap()).as_deref(), Some(of_tree));
        assert_eq!(encode_budget(&BudgetRequest::default()), None);
        assert_eq!(decode_budget(None), Ok(BudgetRequest::default()));
        assert_eq!(decode_budget(Some("{")), Err(Undecodable("budget")));
    }

    #[test]
    fn the_first_manifest_format_still_decodes() {
        let sample = r#"{"plugin":{"name":"p","version":"1","description":"d","wants":["log"]},
            "kind":[{"name":"k","description":"","fuel":1,"memory-mib":2,"timeout-s":3,"attempts":4}]}"#;
        let manifest = decode_manifest(sample).unwrap();
        assert_eq!(manifest.kinds[0].attempts, Some(4));
    }

    #[test]
    fn what_a_newer_release_stored_is_read_without_what_this_one_does_not_know() {
        let sample = r#"{"plugin":{"name":"p","version":"1","description":"d","wants":["log"],"later":[1]},
            "kind":[{"name":"k","later":{"a":1},"retry":{"first_ms":1,"later":2}}],"chunk":[{"name":"c"}]}"#;
        let manifest = decode_manifest(sample).unwrap();
        assert_eq!(manifest.kinds[0].retry.first_ms, Some(1));
        assert_eq!(decode_manifest(r#"{"plugin":{"name":"p"}}"#), Err(Undecodable("manifest")));
        let budget = decode_budget(Some(r#"{"fuel":1,"later":2,"retry":{"later":3,"factor":4}}"#)).unwrap();
        assert_eq!((budget.fuel, budget.retry.factor), (Some(1), Some(4)));
    }

    #[test]
    fn the_first_form_of_a_trial_still_decodes() {
        let sample = r#"{"counted":{"current":{"tasks":9,"declared":1,"broke":0},"canary":{"tasks":1,"declared":0,"broke":1}},
            "waiting":{"current":{"tasks":0,"declared":0,"broke":0},"canary":{"tasks":0,"declared":0,"broke":0}},
            "evidence":[1.5,-0.25]}"#;
        let mut trial = decode_trial(sample).unwrap();
        assert_eq!(decode_trial(&encode_trial(&trial)), Ok(trial));
        let seen =
            Tallies { current: Tally::default(), canary: Tally::default().with(Unit::Batch, Seen::Well) };
        trial.add(seen);
        assert_eq!((trial.seen().current.tasks, trial.seen().canary.tasks), (9, 2));
        assert_eq!((trial.seen().current.batches, trial.seen().canary.batches), (0, 1));
        assert_eq!(decode_trial(&encode_trial(&trial)), Ok(trial));
        assert_eq!(decode_trial("{}"), Err(Undecodable("test of a canary")));
    }

    #[test]
    fn a_part_of_the_tasks_keeps_to_its_limits() {
        assert_eq!([0, 1, 50, 51].map(|percent| read_percent(percent).ok()), [None, Some(1), Some(50), None]);
    }

    #[test]
    fn an_attempt_with_an_unknown_code_is_undecodable() {
        let row = |code: &str| format!(r#"[[1,2,3,4,5,6,0,0,null,null,null,{code},"m",null]]"#);
        assert_eq!(decode_attempts(&row("null")).unwrap()[0].failure, None);
        assert_eq!(
            decode_attempts(&row(r#""trap""#)).unwrap()[0].failure,
            Some(Failure::new(Code::Trap, "m"))
        );
        assert_eq!(decode_attempts(&row(r#""oops""#)), Err(Undecodable("failure code")));
    }

    #[test]
    fn the_first_form_of_a_memoized_end_still_decodes() {
        let row = |detail: &str| format!(r#"[[1,2,0,0,0,0,0,0,null,null,null,null,null,{detail}]]"#);
        let view = decode_attempts(&row(r#""{\"memoized_from\":77}""#)).unwrap().remove(0);
        assert_eq!((view.record.memoized_from, &view.failure), (Some(TaskId(77)), &None));
        assert_eq!(encode_end(None, &view.record).as_deref(), Some(r#"{"memoized_from":77}"#));
        let plain = decode_attempts(&row("null")).unwrap().remove(0);
        assert_eq!((plain.record.memoized_from, encode_end(None, &plain.record)), (None, None));
        assert_eq!(decode_attempts(&row(r#""[""#)), Err(Undecodable("detail of an end")));
    }

    #[test]
    fn the_first_form_of_a_canarys_failed_run_still_decodes() {
        let digest = Digest([7; 32]);
        let run = format!(r#""canary":{{"version":"0.2.0","digest":"{digest}","code":"trap"}}"#);
        let row = |code: &str, detail: &str| {
            let detail = serde_json::to_string(detail).unwrap();
            format!(r#"[[1,2,0,0,0,0,0,0,null,null,null,{code},"m",{detail}]]"#)
        };
        let expected = FailedRun { version: "0.2.0".parse().unwrap(), digest, code: Code::Trap };
        for (code, detail) in [
            ("null", format!("{{{run}}}")),
            ("null", format!(r#"{{"memoized_from":77,{run}}}"#)),
            (r#""plugin_failed""#, format!(r#"{{"retry_after":{{}},{run}}}"#)),
        ] {
            let view = decode_attempts(&row(code, &detail)).unwrap().remove(0);
            assert_eq!(view.record.canary.as_ref(), Some(&expected), "{detail}");
            assert_eq!(encode_end(view.failure.as_ref(), &view.record), Some(detail));
        }
        let odd = r#"{"canary":{"version":"0.2.0","digest":"x","code":"trap"}}"#;
        assert_eq!(decode_attempts(&row("null", odd)), Err(Undecodable("digest of a canary")));
    }
}
