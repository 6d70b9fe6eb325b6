//! What the demo's tasks must come to, and how their results are shown.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

/// What the whole film list gives; `plugins/movie-facts/README.md` says how these figures came about.
pub const EXPECTED: Expected =
    Expected { films: 3_200, not_films: 1, problems: 9_478, worldwide_gross: 272_583_739_559 };

/// Totals over the whole list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Records that are films.
    pub films: u64,
    /// Records that cannot be films: `invalid_input`, at the first attempt.
    pub not_films: u64,
    /// Problems told in all films together.
    pub problems: u64,
    /// Dollars.
    pub worldwide_gross: u64,
}

/// What came out of a run.
#[derive(Debug)]
pub struct Summary {
    elapsed: Duration,
    tasks: usize,
    films: u64,
    not_films: u64,
    /// Tasks that ended otherwise.
    others: Vec<String>,
    problems: BTreeMap<String, u64>,
    decades: BTreeMap<Option<u64>, Decade>,
    fuel: Vec<u64>,
    memory_bytes: Vec<u64>,
    duration_us: Vec<u64>,
    pure_runs: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Decade {
    films: u64,
    us_gross: u64,
    worldwide_gross: u64,
}

impl Summary {
    /// Sums up these tasks, which took `elapsed` from the first submit to the last end.
    pub fn of(tasks: &[Value], elapsed: Duration) -> Result<Summary> {
        let mut summary = Summary {
            elapsed,
            tasks: tasks.len(),
            films: 0,
            not_films: 0,
            others: Vec::new(),
            problems: BTreeMap::new(),
            decades: BTreeMap::new(),
            fuel: Vec::new(),
            memory_bytes: Vec::new(),
            duration_us: Vec::new(),
            pure_runs: 0,
        };
        for task in tasks {
            summary.add(task)?;
        }
        Ok(summary)
    }

    fn add(&mut self, task: &Value) -> Result<()> {
        let attempts = task["attempts"].as_array().with_context(|| format!("no attempts in {task}"))?;
        let number = |attempt: &Value, field: &str| attempt[field].as_u64().unwrap_or_default();
        for attempt in attempts {
            self.fuel.push(number(attempt, "fuel_used"));
            self.memory_bytes.push(number(attempt, "memory_bytes_peak"));
            self.duration_us.push(number(attempt, "duration_us"));
            self.pure_runs += u64::from(attempt["pure"] == true);
        }
        match task["state"].as_str() {
            Some("completed") => self.add_film(&task["result"]),
            Some("failed") if task["error"]["code"] == "invalid_input" && attempts.len() == 1 => {
                self.not_films += 1;
            }
            _ => self.others.push(task.to_string()),
        }
        Ok(())
    }

    fn add_film(&mut self, film: &Value) {
        self.films += 1;
        for problem in film["problems"].as_array().into_iter().flatten() {
            let name = problem["problem"].as_str().unwrap_or("without a name");
            *self.problems.entry(name.to_owned()).or_default() += 1;
        }
        let decade = self.decades.entry(film["decade"].as_u64()).or_default();
        decade.films += 1;
        decade.us_gross += film["us_gross"].as_u64().unwrap_or_default();
        decade.worldwide_gross += film["worldwide_gross"].as_u64().unwrap_or_default();
    }

    /// Everything that is not as [`EXPECTED`].
    pub fn surprises(&self) -> Vec<String> {
        let worldwide_gross: u64 = self.decades.values().map(|decade| decade.worldwide_gross).sum();
        let figures = [
            ("films", self.films, EXPECTED.films),
            ("records that are no films", self.not_films, EXPECTED.not_films),
            ("problems", self.problems.values().sum(), EXPECTED.problems),
            ("dollars of worldwide gross", worldwide_gross, EXPECTED.worldwide_gross),
        ];
        let differs = figures.into_iter().filter(|(_, found, expected)| found != expected);
        let mut surprises: Vec<String> =
            differs.map(|(what, found, expected)| format!("{found} {what} instead of {expected}")).collect();
        surprises.extend(self.others.iter().take(5).map(|task| format!("a task ended as {task}")));
        surprises
    }

    /// Prints the tables and figures.
    pub fn print(&self) {
        println!("\n{} films, {} records that cannot be films", self.films, self.not_films);
        println!("{}", self.problem_table());
        println!("{}", self.decade_table());
        let seconds = self.elapsed.as_secs_f64();
        println!(
            "{} tasks in {seconds:.2} s: {:.0} tasks per second",
            self.tasks,
            self.tasks as f64 / seconds
        );
        let figure = |values: &[u64]| (middle(values), values.iter().max().copied().unwrap_or_default());
        let (fuel, fuel_max) = figure(&self.fuel);
        println!("fuel of an attempt: {} at the median, {} at most", grouped(fuel), grouped(fuel_max));
        let (memory, memory_max) = figure(&self.memory_bytes);
        println!(
            "memory of an attempt: {} KiB at the median, {} KiB at most",
            memory >> 10,
            memory_max >> 10
        );
        let (time, time_max) = figure(&self.duration_us);
        println!("time of an attempt: {} µs at the median, {} µs at most", grouped(time), grouped(time_max));
        println!("pure runs: {} of {} films", self.pure_runs, self.films);
    }

    fn problem_table(&self) -> Table {
        let mut table = table(&["problem", "times"]);
        let mut problems: Vec<_> = self.problems.iter().collect();
        problems.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
        for (name, count) in problems {
            table.add_row([name.clone(), grouped(*count)]);
        }
        table
    }

    fn decade_table(&self) -> Table {
        let mut table = table(&["decade", "films", "US gross, million $", "worldwide gross, million $"]);
        for (decade, sums) in &self.decades {
            let name = decade.map_or("unknown".to_owned(), |decade| format!("{decade}s"));
            let millions = |dollars: u64| grouped((dollars + 500_000) / 1_000_000);
            table.add_row([
                name,
                grouped(sums.films),
                millions(sums.us_gross),
                millions(sums.worldwide_gross),
            ]);
        }
        table
    }
}

/// The result of a digest in a few lines.
pub fn sample(task: &Value) -> Result<String> {
    let digest = task.get("result").with_context(|| format!("text-digest gave no result: {task}"))?;
    let texts = |field: &str| -> Vec<&str> {
        let values = digest[field].as_array().map(Vec::as_slice).unwrap_or_default();
        values.iter().filter_map(|value| value["term"].as_str().or(value.as_str())).collect()
    };
    let count = |field: &str| grouped(digest[field].as_u64().unwrap_or_default());
    let mut lines = vec![
        format!(
            "{} characters, {} words, {} sentences",
            count("characters"),
            count("words"),
            count("sentences")
        ),
        format!("terms: {}", texts("terms").join(", ")),
    ];
    if !texts("links").is_empty() {
        lines.push(format!("links: {}", texts("links").join(", ")));
    }
    lines.extend(texts("summary").iter().map(|sentence| format!("“{sentence}”")));
    Ok(lines.join("\n"))
}

/// A table with its first column to the left and numbers to the right.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn middle(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let check = |number, expected| assert_eq!(grouped(number), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(1_234_567, "1,234,567");
    }

    #[test]
    fn what_ended_otherwise_is_a_surprise() -> Result<()> {
        let film = json!({"state": "completed", "attempts": [{"fuel_used": 3, "pure": true}],
            "result": {"decade": 1990, "us_gross": 1, "worldwide_gross": 2, "problems": [{"problem": "zero"}]}});
        let refused = json!({"state": "failed", "attempts": [{}], "error": {"code": "invalid_input"}});
        let trapped = json!({"state": "failed", "attempts": [{}], "error": {"code": "trap"}});
        let summary = Summary::of(&[film, refused, trapped], Duration::from_secs(1))?;
        assert_eq!((summary.films, summary.not_films, summary.others.len()), (1, 1, 1));
        assert_eq!(summary.problems.get("zero"), Some(&1));
        let surprises = summary.surprises();
        assert!(surprises[0].starts_with("1 films instead of 3200"), "{surprises:?}");
        assert!(surprises.last().is_some_and(|last| last.contains("\"trap\"")), "{surprises:?}");
        Ok(())
    }
}
