//! `keiko stats`.

use std::process::ExitCode;

use serde::Deserialize;

use super::client::{self, Call, Query};
use super::exit::Failure;
use super::print;

/// Without an end the range ends now; without a beginning it is a day.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The first time of submission, as RFC 3339 (2026-01-31T00:00:00Z) [default: a day before the last]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// The last time of submission [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Deserialize)]
struct Statistics {
    from: String,
    to: String,
    statistics: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    plugin: String,
    kind: String,
    state: String,
    count: u64,
    average_us: u64,
    minimum_us: u64,
    maximum_us: u64,
    p50_us: u64,
    p95_us: u64,
}

pub(super) fn stats(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut query = Query::default();
    query.add("from", arguments.from.as_deref());
    query.add("to", arguments.to.as_deref());
    let answer = arguments.host.client()?.send(Call::get(&query.of("/v1/statistics")))?;
    if arguments.host.json {
        answer.print();
        return Ok(ExitCode::SUCCESS);
    }
    let Statistics { from, to, statistics } = answer.read()?;
    let row = |row: Row| {
        let times = [row.average_us, row.minimum_us, row.p50_us, row.p95_us, row.maximum_us].map(print::span);
        let mut cells = vec![row.plugin, row.kind, row.state, print::thousands(row.count)];
        cells.extend(times);
        cells
    };
    let head = ["plugin", "kind", "state", "count", "average", "minimum", "p50", "p95", "maximum"];
    print::table(&head, statistics.into_iter().map(row).collect());
    print::note(&format!("submitted from {} to {}", print::clean(&from), print::clean(&to)));
    Ok(ExitCode::SUCCESS)
}
