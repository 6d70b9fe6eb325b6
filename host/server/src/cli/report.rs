//! What `keiko run` says of a run, wherever it ran.

use super::exit::{self, Failure};
use super::{print, task::frame_line};
use crate::api::Report;

/// Shows a report: the result on stdout, everything about it on stderr.
pub(super) fn show(report: &Report) {
    for line in &report.log.lines {
        let fields: String = line.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let level = format!("{:?}", line.level).to_lowercase();
        print::note(&print::clean(&format!("{level:<5} {}{fields}", line.message)));
    }
    if report.log.dropped > 0 {
        print::note(&format!("{} more lines exceeded the log's limits", report.log.dropped));
    }
    for child in &report.children {
        let input = child.input.as_ref().map_or("(bytes)", |raw| raw.get());
        print::note(&print::clean(&format!("child, not submitted: {} {input}", child.id)));
    }
    print::note(&summary(report));
    if let Some(bytes) = report.result_bytes() {
        print::result(&bytes);
        if report.content_type.as_deref() == Some(keiko_core::task::JSON) {
            print::bytes(b"\n");
        }
    }
    if let Some(error) = &report.error {
        print::note(&format!("{}: {}", print::clean(&error.code), print::clean_lines(&error.message)));
        error.backtrace.iter().for_each(|frame| print::note(&frame_line(frame)));
    }
}

/// The exit status of the run.
pub(super) fn status(report: &Report) -> Result<u8, Failure> {
    match (report.state.as_str(), &report.error) {
        ("completed", _) => Ok(0),
        (_, Some(error)) => error.code.parse().map(exit::of_run).map_err(|_| {
            Failure::Host(format!("the host answers with an unknown code: {}", print::clean(&error.code)))
        }),
        _ => Ok(exit::FAILED),
    }
}

/// One line: how it ended and what it spent.
fn summary(report: &Report) -> String {
    let how = match report.state.as_str() {
        "cancelled" => "stopped",
        state => state,
    };
    let taint = match (report.pure, &report.tainted_by[..]) {
        (true, _) => "pure".to_owned(),
        (false, []) => "not tainted".to_owned(),
        (false, names) => format!("tainted by {}", print::clean(&names.join(", "))),
    };
    let seeded = if report.random_seeded { ", random numbers seeded" } else { "" };
    format!(
        "{} in {}: {} fuel, {} memory at most, {} host calls, {taint}{seeded}",
        print::clean(how),
        print::span(report.duration_us),
        print::thousands(report.fuel_used),
        print::size(report.memory_bytes_peak),
        report.host_calls
    )
}
