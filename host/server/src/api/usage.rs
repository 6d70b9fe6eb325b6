//! `GET /v1/usage`: what a tenant spent, by UTC day.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use jiff::civil::Date;
use keiko_core::Code;
use keiko_core::limit::LimitFact;
use keiko_core::usage::{DaySpent, day};
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::dto::to_vec;
use super::limit::STATISTICS_DAYS_MAX;
use super::problem::Problem;
use super::{Api, json_answer, query};

/// Days of an answer to a request that names none.
const DAYS_DEFAULT: i64 = 30;

/// The days, both included; without an end today, without a beginning 30 days in all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct DayJson {
    day: String,
    attempts: u64,
    completed: u64,
    failed: u64,
    fuel_used: u64,
    guest_us: u64,
}

impl From<&DaySpent> for DayJson {
    fn from(row: &DaySpent) -> DayJson {
        let keiko_core::usage::Spent { attempts, completed, failed, fuel_used, guest_us } = row.spent;
        DayJson { day: date(row.day), attempts, completed, failed, fuel_used, guest_us }
    }
}

#[derive(Serialize)]
struct Answer {
    from: String,
    to: String,
    days: Vec<DayJson>,
}

pub(super) async fn get(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let (from, to) = range(query::read(&uri)?, day(api.clock.now_ms()))?;
    let rows = api.handle.usage(caller.tenant, from, to).await?;
    let answer = Answer { from: date(from), to: date(to), days: rows.iter().map(DayJson::from).collect() };
    Ok(json_answer(StatusCode::OK, to_vec(&answer)))
}

fn range(asked: Asked, today: i64) -> Result<(i64, i64), Problem> {
    let number = |name: &str, text| Ok::<_, Problem>(query::parse::<Date>(name, text)?.map(number));
    let to = number("to", asked.to)?.unwrap_or(today);
    let from = number("from", asked.from)?.unwrap_or(to - (DAYS_DEFAULT - 1));
    let days = to - from + 1;
    if days > STATISTICS_DAYS_MAX {
        let fact = LimitFact::of_host("range_days", STATISTICS_DAYS_MAX as u64, Some(days as u64));
        return Err(Problem::at_limit(Code::InvalidInput, fact));
    }
    if days < 1 {
        return Err(Problem::invalid("the range ends before it begins"));
    }
    Ok((from, to))
}

/// The day that 1970-01-01 is 0 of.
const FIRST: Date = Date::constant(1970, 1, 1);

fn number(date: Date) -> i64 {
    i64::from((date - FIRST).get_days())
}

fn date(number: i64) -> String {
    let days = jiff::Span::new().try_days(number);
    match days.and_then(|days| FIRST.checked_add(days)) {
        Ok(date) => date.to_string(),
        // No clock of a host says this; a broken row might.
        Err(_) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Result<(i64, i64), Problem> {
        range(query::read(&format!("/v1/usage{query}").parse().unwrap())?, 20_000)
    }

    #[test]
    fn a_range_of_days_has_both_ends_and_a_limit() {
        assert_eq!(asked("").unwrap(), (19_971, 20_000));
        assert_eq!((date(20_000).as_str(), date(0).as_str()), ("2024-10-04", "1970-01-01"));
        assert_eq!(asked("?from=2024-10-04&to=2024-10-04").unwrap(), (20_000, 20_000));
        assert_eq!(
            asked("?from=2024-01-01&to=2024-12-31").unwrap().1 - number(Date::constant(2024, 1, 1)),
            365
        );
        let long = asked("?from=2024-01-01&to=2025-01-01").unwrap_err();
        assert_eq!(long.limit.unwrap().asked, Some(367));
        assert!(asked("?from=2024-10-05&to=2024-10-04").is_err());
        assert!(asked("?from=today").unwrap_err().message.starts_with("from:"));
        assert!(asked("?since=1").is_err());
    }
}
