//! `GET /v1/statistics`: tasks of a range of days by plugin, kind and state.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use keiko_core::Code;
use keiko_core::history::{DateRange, Statistics};
use keiko_core::limit::LimitFact;
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::dto::{time, to_vec};
use super::limit::STATISTICS_DAYS_MAX;
use super::problem::Problem;
use super::{Api, json_answer, query};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// The range, as RFC 3339; without an end it ends now, without a beginning it is a day.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct StatisticsJson<'a> {
    plugin: &'a str,
    kind: &'a str,
    state: &'static str,
    count: u64,
    average_us: u64,
    minimum_us: u64,
    maximum_us: u64,
    p50_us: u64,
    p95_us: u64,
}

impl<'a> From<&'a Statistics> for StatisticsJson<'a> {
    fn from(row: &'a Statistics) -> StatisticsJson<'a> {
        let Statistics { count, average_us, minimum_us, maximum_us, p50_us, p95_us, .. } = *row;
        let (plugin, kind, state) = (row.plugin.as_str(), row.kind.as_str(), row.state.as_str());
        StatisticsJson { plugin, kind, state, count, average_us, minimum_us, maximum_us, p50_us, p95_us }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    from: String,
    to: String,
    statistics: Vec<StatisticsJson<'a>>,
}

pub(super) async fn get(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let range = range(query::read(&uri)?, api.clock.now_ms())?;
    let rows = api.handle.statistics(caller.tenant, range).await?;
    let answer = Answer {
        from: time(range.from_ms),
        to: time(range.to_ms),
        statistics: rows.iter().map(StatisticsJson::from).collect(),
    };
    Ok(json_answer(StatusCode::OK, to_vec(&answer)))
}

fn range(asked: Asked, now_ms: i64) -> Result<DateRange, Problem> {
    let ms = |name: &str, text: Option<String>| {
        let time: Option<jiff::Timestamp> = query::parse(name, text)?;
        Ok::<_, Problem>(time.map(|time| time.as_millisecond()))
    };
    let to_ms = ms("to", asked.to)?.unwrap_or(now_ms);
    let from_ms = ms("from", asked.from)?.unwrap_or(to_ms.saturating_sub(DAY_MS));
    let days = to_ms.saturating_sub(from_ms) / DAY_MS;
    if days > STATISTICS_DAYS_MAX {
        let fact = LimitFact::of_host("range_days", STATISTICS_DAYS_MAX as u64, Some(days as u64));
        return Err(Problem::at_limit(Code::InvalidInput, fact));
    }
    if from_ms > to_ms {
        return Err(Problem::invalid("the range ends before it begins"));
    }
    Ok(DateRange { from_ms, to_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn asked(query: &str) -> Result<DateRange, Problem> {
        range(query::read(&format!("/v1/statistics{query}").parse().unwrap())?, NOW)
    }

    #[test]
    fn a_range_has_both_ends_and_a_limit() {
        assert_eq!(asked("").unwrap(), DateRange { from_ms: NOW - DAY_MS, to_ms: NOW });
        let day = asked("?from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z").unwrap();
        assert_eq!(day.to_ms - day.from_ms, DAY_MS);
        assert!(asked("?from=2026-01-01T00:00:00Z&to=2027-01-02T00:00:00Z").is_ok());
        let long = asked("?from=2026-01-01T00:00:00Z&to=2027-01-03T00:00:00Z").unwrap_err();
        assert_eq!(long.limit.unwrap().limit, 366);
        assert!(asked("?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z").is_err());
        assert!(asked("?from=yesterday").unwrap_err().message.starts_with("from:"));
        assert!(asked("?since=1").is_err());
    }
}
