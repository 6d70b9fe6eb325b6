//! Comparisons with others: `cargo xtask bench queue`, `cargo xtask bench run` and `cargo xtask bench languages`; and of the host with
//! itself: `cargo xtask bench weight`.
//!
//! Sides take turns within one run, so that a busy machine disturbs all alike; what is printed for each figure is the
//! median of its rounds, and its ratio to the peer that it is compared with. Everything is a release build. The peers are
//! `benches/peers`, a workspace of its own, so that nothing of theirs comes near the lock file of the host.

mod languages;
mod queue;
mod run;
mod weight;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use keiko_tests::tree;
use serde_json::{Value, json};

pub use self::languages::languages;
pub use self::queue::queue;
pub use self::run::run;
pub use self::weight::weight;
use crate::arguments::Arguments;
use crate::guests::{self, Toolchain};
use crate::machine::Install;
use crate::measure::build_host;
use crate::step::{Steps, cargo};

/// Rounds of each side, unless `--rounds` asks for others.
const ROUNDS: usize = 3;
/// The guest that does nothing, a Rust component.
const GUEST: &str = "noop";
const KIND: &str = "noop";

/// How much of a comparison is wanted.
struct Plan {
    /// Only these sides.
    only: Option<String>,
    rounds: usize,
}

impl Plan {
    /// Takes `--sides A,B` and `--rounds N`.
    fn asked(arguments: &mut Arguments, sides: &[&str]) -> Result<Plan> {
        let only = arguments.option("--sides")?;
        let unknown = only.iter().flat_map(|only| only.split(',')).find(|side| !sides.contains(side));
        if let Some(unknown) = unknown {
            bail!("there is no side `{unknown}`; there are: {}", sides.join(", "));
        }
        let rounds = arguments.option("--rounds")?;
        let rounds = rounds.map_or(Ok(ROUNDS), |rounds| rounds.parse()).context("--rounds")?;
        Ok(Plan { only, rounds: rounds.max(1) })
    }

    fn wants(&self, side: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only.split(',').any(|one| one == side))
    }
}

/// The rounds of every figure of every side.
#[derive(Default)]
struct Rounds(BTreeMap<(String, String), Vec<f64>>);

impl Rounds {
    fn add(&mut self, side: &str, figure: &str, value: f64) {
        eprintln!("  {side:<16} {figure:<20} {value:.2}");
        self.0.entry((side.to_owned(), figure.to_owned())).or_default().push(value);
    }

    /// Adds a figure of a line of JSON.
    fn take(&mut self, side: &str, figure: &str, line: &Value, name: &str) -> Result<()> {
        let value = name.split('.').fold(line, |line, name| &line[name]).as_f64();
        self.add(side, figure, value.with_context(|| format!("{side} does not say `{name}`: {line}"))?);
        Ok(())
    }

    fn median(&self, side: &str, figure: &str) -> Option<f64> {
        let mut values = self.0.get(&(side.to_owned(), figure.to_owned()))?.clone();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }

    /// Prints every figure, and then how one side stands to others.
    fn print(&self, bench: &str, ratios: &[(&str, &str, &str)]) {
        let line = |side: &str, figure: &str, value: f64, unit: &str| {
            print_line(bench, side, figure, value, unit);
        };
        for (side, figure) in self.0.keys() {
            if let Some(value) = self.median(side, figure) {
                line(side, figure, value, unit(figure));
            }
        }
        for &(figure, side, peer) in ratios {
            if let (Some(value), Some(peers)) = (self.median(side, figure), self.median(peer, figure)) {
                line(&format!("{side}/{peer}"), figure, value / peers, "ratio");
            }
        }
    }

    /// Prints how much more sides take than another.
    fn print_beyond(&self, bench: &str, figure: &str, sides: &[&str], least: &str) {
        for side in sides {
            if let (Some(value), Some(of_least)) = (self.median(side, figure), self.median(least, figure)) {
                print_line(bench, &format!("{side}-{least}"), figure, value - of_least, unit(figure));
            }
        }
    }
}

fn print_line(bench: &str, side: &str, figure: &str, value: f64, unit: &str) {
    let value = (value * 1_000.0).round() / 1_000.0;
    println!("{}", json!({"bench": bench, "side": side, "figure": figure, "value": value, "unit": unit}));
}

fn unit(figure: &str) -> &'static str {
    match figure.split('@').next().unwrap_or(figure) {
        "requests_per_s" | "tasks_per_s" | "submits_per_s" => "per second",
        "p50_us" | "cpu_us" | "server_cpu_us" => "us",
        "wal_bytes" => "bytes",
        "statements" => "statements",
        _ => "ms",
    }
}

/// What the comparisons of hosts need.
struct Programs {
    keiko: PathBuf,
    component: PathBuf,
}

impl Programs {
    fn build(steps: &mut Steps, install: Install, asked: Option<Toolchain>) -> Result<Programs> {
        let toolchain = guests::set_up(steps, asked, install)?;
        guests::build(steps, toolchain, &[GUEST.to_owned()])?;
        let component = toolchain.guests_dir().join(GUEST).with_extension("wasm");
        Ok(Programs { keiko: build_host(steps)?, component })
    }

    /// Runs `keiko bench` and gives its figures.
    fn bench(&self, arguments: &[&str]) -> Result<Value> {
        bench(&self.keiko, arguments)
    }
}

/// Runs `keiko bench` and gives its figures.
fn bench(keiko: &Path, arguments: &[&str]) -> Result<Value> {
    line(Command::new(keiko).args(["bench", "--json"]).args(arguments))
}

/// Builds the peers, which are one program.
fn build_peers(steps: &mut Steps) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--manifest-path", "benches/peers/Cargo.toml"]);
    steps.run("build the peers", build.env("CARGO_TARGET_DIR", folder()))?;
    Ok(folder().join("release/keiko-peers"))
}

/// Where the peers are built and kept.
fn folder() -> PathBuf {
    tree::root().join("target/peers")
}

/// Runs a program whose output is one line of JSON.
fn line(command: &mut Command) -> Result<Value> {
    let output = command.stderr(Stdio::inherit()).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{:?} ended with {}: {text}", command.get_program(), output.status);
    }
    serde_json::from_str(text.trim()).with_context(|| format!("not a line of JSON: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_rounds() {
        let mut rounds = Rounds::default();
        for value in [3.0, 1.0, 2.0] {
            rounds.add("keiko", "cpu_us", value);
        }
        assert_eq!(rounds.median("keiko", "cpu_us"), Some(2.0));
        assert_eq!(rounds.median("axum", "cpu_us"), None);
    }

    #[test]
    fn a_line_that_lacks_a_figure_is_refused() {
        let mut rounds = Rounds::default();
        let line = json!({"latency_us": {"p50": 7}});
        assert!(rounds.take("keiko", "p50_us@1", &line, "latency_us.p50").is_ok());
        assert!(rounds.take("keiko", "p50_us@1", &line, "latency_us.p51").is_err());
        assert_eq!(unit("p50_us@64"), "us");
    }

    #[test]
    fn sides_are_chosen_by_name() {
        let asked = |words: &[&str]| {
            let mut arguments = Arguments::new(words.iter().map(|word| (*word).to_owned()));
            Plan::asked(&mut arguments, &["keiko", "axum"])
        };
        let plan = asked(&["--sides", "keiko", "--rounds", "5"]).expect("a plan");
        assert!(plan.wants("keiko") && !plan.wants("axum") && plan.rounds == 5);
        assert!(asked(&[]).expect("a plan").wants("axum"));
        assert!(asked(&["--sides", "keiko,nginx"]).is_err());
    }
}
