//! What `keiko run` says of an attempt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keiko_core::outcome::{AttemptReport, Outcome};
use serde_json::{Value, json};

use super::print;
use crate::api::time;

/// One line: how it ended and what it spent.
pub(super) fn summary(report: &AttemptReport) -> String {
    let how = match &report.outcome {
        Outcome::Completed(_) => "completed",
        Outcome::Failed(_) => "failed",
        Outcome::Stopped(_) => "stopped",
    };
    let meter = report.meter;
    let taint = if is_pure(report) {
        "pure".to_owned()
    } else if report.taint.is_none() {
        "not tainted".to_owned()
    } else {
        format!("tainted by {}", report.taint.names().join(", "))
    };
    format!(
        "{how} in {}: {} fuel, {} memory at most, {} host calls, {taint}",
        print::span(meter.elapsed_us),
        print::thousands(meter.fuel_used),
        print::size(meter.memory_bytes_peak),
        meter.host_calls
    )
}

fn is_pure(report: &AttemptReport) -> bool {
    matches!(report.outcome, Outcome::Completed(_)) && report.taint.is_none() && report.effects.is_empty()
}

/// Everything, for programs; the names are those of the HTTP API.
pub(super) fn json(report: &AttemptReport) -> String {
    let payload = |payload: &keiko_core::task::Payload| match serde_json::from_slice::<Value>(&payload.bytes)
    {
        Ok(value) if payload.content_type == keiko_core::task::JSON => ("", value),
        _ => ("_base64", Value::from(STANDARD.encode(&payload.bytes))),
    };
    let mut text = json!({
        "duration_us": report.meter.elapsed_us,
        "fuel_used": report.meter.fuel_used,
        "memory_bytes_peak": report.meter.memory_bytes_peak,
        "host_calls": report.meter.host_calls,
        "pure": is_pure(report),
        "tainted_by": report.taint.names(),
    });
    match &report.outcome {
        Outcome::Completed(result) => {
            let (form, value) = payload(result);
            text["state"] = "completed".into();
            text["content_type"] = result.content_type.as_str().into();
            text[format!("result{form}")] = value;
        }
        Outcome::Failed(failure) => {
            text["state"] = "failed".into();
            text["error"] = json!({
                "code": failure.code.as_str(),
                "message": failure.message,
                "limit": failure.limit,
                "backtrace": failure.backtrace,
            });
        }
        Outcome::Stopped(_) => text["state"] = "cancelled".into(),
    }
    let children = report.effects.children.iter().map(|child| {
        let (form, value) = payload(&child.input);
        json!({"id": child.id.to_string(), "delay_ms": child.delay_ms, format!("input{form}"): value})
    });
    text["children"] = children.collect();
    let lines = report.log.lines().iter().map(|line| {
        let fields: serde_json::Map<String, Value> =
            line.fields.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        json!({
            "at": time(line.at_ms),
            "level": line.level,
            "source": line.source,
            "message": line.message,
            "fields": fields,
        })
    });
    text["log"] = json!({"dropped": report.log.dropped(), "lines": lines.collect::<Vec<_>>()});
    text.to_string()
}
