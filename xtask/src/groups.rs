//! The demo's batches: the facts of all films go through the processor `films`, which sums them up by decade and
//! distributor, into rows that the host keeps.
//!
//! Every run uses distributors' rows of its own: what earlier runs left is counted and skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use keiko_tests::{Client, wait};
use serde_json::{Value, json};

use crate::films::EXPECTED;

/// The processor that the demo's host keeps rows of.
pub const CONFIG: &str = "[tenants.default.processors.film-groups]\nkeep = \"rows\"\nage_ms = 200\n";
/// Films of one task that feeds; each is an effect of it.
const FEED: usize = 500;
/// Everything is grouped by then.
const GROUPED_MAX: Duration = Duration::from_secs(120);
/// Groups that are shown.
const SHOWN: usize = 10;

/// A decade and a distributor.
type Group = (Option<u64>, Option<String>);

/// What the rows of a run come to.
#[derive(Debug)]
pub struct Groups {
    elapsed: Duration,
    batches: usize,
    films: u64,
    worldwide_gross: u64,
    largest: Vec<(Group, (u64, u64))>,
    groups: usize,
}

/// Feeds the facts of these tasks that completed, and reads what came of them.
pub fn run(client: &Client, tasks: &[Value]) -> Result<Groups> {
    let before: BTreeSet<String> = rows(client)?.iter().filter_map(id).collect();
    let start = Instant::now();
    let films: Vec<&Value> =
        tasks.iter().filter(|task| task["state"] == "completed").map(|task| &task["result"]).collect();
    for films in films.chunks(FEED) {
        let task = client.run("film-feed", "feed", json!(films), Value::Null)?;
        if task["state"] != "completed" {
            bail!("a task that feeds films ended as {task}");
        }
    }
    for processor in ["films", "film-groups"] {
        wait::until("every film to be grouped", GROUPED_MAX, || {
            let found = client.get(&format!("/v1/batches/{processor}"))?.expect(&[200])?;
            Ok((found["items"] == 0 && found["batches"] == 0).then_some(()))
        })?;
    }
    let elapsed = start.elapsed();
    let rows: Vec<Value> =
        rows(client)?.into_iter().filter(|row| id(row).is_some_and(|id| !before.contains(&id))).collect();
    Ok(Groups::of(&rows, elapsed))
}

fn id(row: &Value) -> Option<String> {
    row["id"].as_str().map(str::to_owned)
}

/// Every row of the processor `film-groups`.
fn rows(client: &Client) -> Result<Vec<Value>> {
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/batches/film-groups/rows?limit=1000{after}");
        let page = client.get(&path)?.expect(&[200])?;
        rows.extend(page["rows"].as_array().context("a page without rows")?.iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(rows),
        }
    }
}

impl Groups {
    /// Adds up rows, one of each batch, decade and distributor.
    fn of(rows: &[Value], elapsed: Duration) -> Groups {
        let mut sums: BTreeMap<(Option<u64>, Option<String>), (u64, u64)> = BTreeMap::new();
        let mut batches = BTreeSet::new();
        for row in rows.iter().map(|row| &row["item"]) {
            let distributor = row["distributor"].as_str().map(str::to_owned);
            let sum = sums.entry((row["decade"].as_u64(), distributor)).or_default();
            sum.0 += row["films"].as_u64().unwrap_or_default();
            sum.1 += row["worldwide_gross"].as_u64().unwrap_or_default();
            batches.insert(row["batch"].as_str().unwrap_or_default());
        }
        let films = sums.values().map(|(films, _)| films).sum();
        let worldwide_gross = sums.values().map(|(_, gross)| gross).sum();
        let (groups, batches) = (sums.len(), batches.len());
        let mut largest: Vec<_> = sums.into_iter().collect();
        largest.sort_by_key(|(_, (_, gross))| std::cmp::Reverse(*gross));
        largest.truncate(SHOWN);
        Groups { elapsed, batches, films, worldwide_gross, largest, groups }
    }

    /// Everything that is not as [`EXPECTED`]: each film was counted once.
    pub fn surprises(&self) -> Vec<String> {
        let figures = [
            ("films in groups", self.films, EXPECTED.films),
            ("dollars of worldwide gross in groups", self.worldwide_gross, EXPECTED.worldwide_gross),
        ];
        let differs = figures.into_iter().filter(|(_, found, expected)| found != expected);
        differs.map(|(what, found, expected)| format!("{found} {what} instead of {expected}")).collect()
    }

    /// Prints the largest groups.
    pub fn print(&self) {
        let header = ["decade", "distributor", "films", "worldwide, $m"];
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY).set_header(header);
        for ((decade, distributor), (films, gross)) in &self.largest {
            let decade = decade.map_or("no date".to_owned(), |decade| format!("{decade}s"));
            let distributor = distributor.clone().unwrap_or_else(|| "nobody named".to_owned());
            table.add_row([decade, distributor, films.to_string(), (gross / 1_000_000).to_string()]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!(
            "\n{} films in {} batches became {} groups by decade and distributor in {:.1} s; the largest:\n{table}",
            self.films,
            self.batches,
            self.groups,
            self.elapsed.as_secs_f64()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_many_batches_add_up() {
        let row = |batch: &str, films: u64| {
            json!({ "id": "x", "item": { "decade": 1990, "distributor": "Fox", "films": films, "worldwide_gross": 5,
                "batch": batch } })
        };
        let groups = Groups::of(&[row("a", 2), row("b", 3)], Duration::ZERO);
        assert_eq!((groups.films, groups.worldwide_gross, groups.batches, groups.groups), (5, 10, 2, 1));
        assert_eq!(groups.surprises().len(), 2);
    }
}
