//! What became of a run that is no task, as JSON: what `POST /v1/run?report=true` answers and `keiko run` shows.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keiko_core::limit::LimitFact;
use keiko_core::log::{Level, Line, Source};
use keiko_core::outcome::{AttemptReport, Failure, Frame, Outcome};
use keiko_core::task::Payload;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::dto::{Value, time, value};

/// The whole of it. A field that is missing has nothing to say.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    /// `completed`, `failed`, or `cancelled`.
    pub(crate) state: String,
    pub(crate) duration_us: u64,
    pub(crate) fuel_used: u64,
    pub(crate) memory_bytes_peak: u64,
    pub(crate) host_calls: u64,
    pub(crate) pure: bool,
    pub(crate) tainted_by: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(crate) random_seeded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<FailureReport>,
    pub(crate) log: LogReport,
    /// What it asked to be submitted, which only a run without a host is promised; nobody submits it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) children: Vec<ChildReport>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct FailureReport {
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<LimitFact>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) backtrace: Vec<Frame>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LogReport {
    pub(crate) dropped: u64,
    pub(crate) lines: Vec<LineReport>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LineReport {
    pub(crate) at: String,
    pub(crate) level: Level,
    pub(crate) source: Source,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub(crate) fields: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ChildReport {
    pub(crate) id: String,
    pub(crate) delay_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input_base64: Option<String>,
}

impl From<&AttemptReport> for Report {
    fn from(report: &AttemptReport) -> Report {
        let meter = report.meter;
        let (state, payload, failure) = match &report.outcome {
            Outcome::Completed(payload) => ("completed", Some(payload), None),
            Outcome::Failed(failure) => ("failed", None, Some(failure)),
            Outcome::Stopped(_) => ("cancelled", None, None),
        };
        let (result, result_base64) = payload.map_or((None, None), split);
        let child = |child: &keiko_core::effect::Child| {
            let (input, input_base64) = split(&child.input);
            ChildReport { id: child.id.to_string(), delay_ms: child.delay_ms, input, input_base64 }
        };
        Report {
            state: state.to_owned(),
            duration_us: meter.elapsed_us,
            fuel_used: meter.fuel_used,
            memory_bytes_peak: meter.memory_bytes_peak,
            host_calls: meter.host_calls,
            pure: is_pure(report),
            tainted_by: report.taint.names().into_iter().map(str::to_owned).collect(),
            random_seeded: report.taint.is_seeded(),
            version: None,
            digest: None,
            content_type: payload.map(|payload| payload.content_type.clone()),
            result,
            result_base64,
            error: failure.map(FailureReport::from),
            log: LogReport {
                dropped: report.log.dropped(),
                lines: report.log.lines().iter().map(LineReport::from).collect(),
            },
            children: report.effects.children.iter().map(child).collect(),
        }
    }
}

/// Whether it asked nothing of the outside and would give the same result again.
pub(super) fn is_pure(report: &AttemptReport) -> bool {
    matches!(report.outcome, Outcome::Completed(_)) && report.taint.is_none() && report.effects.is_empty()
}

impl Report {
    /// The bytes of the result, when it has one.
    pub(crate) fn result_bytes(&self) -> Option<Vec<u8>> {
        match (&self.result, &self.result_base64) {
            (Some(raw), _) => Some(raw.get().as_bytes().to_vec()),
            (None, Some(text)) => BASE64.decode(text).ok(),
            (None, None) => None,
        }
    }
}

fn split(payload: &Payload) -> (Option<Box<RawValue>>, Option<String>) {
    match value(payload) {
        Value::Json(raw) => (Some(raw.to_owned()), None),
        Value::Base64(text) => (None, Some(text)),
    }
}

impl From<&Failure> for FailureReport {
    fn from(failure: &Failure) -> FailureReport {
        FailureReport {
            code: failure.code.as_str().to_owned(),
            message: failure.message.clone(),
            limit: failure.limit.clone(),
            backtrace: failure.backtrace.clone(),
        }
    }
}

impl From<&Line> for LineReport {
    fn from(line: &Line) -> LineReport {
        LineReport {
            at: time(line.at_ms),
            level: line.level,
            source: line.source,
            message: line.message.clone(),
            fields: line.fields.iter().cloned().collect(),
        }
    }
}
