//! `cargo xtask bench queue`: no-op tasks in bulk, and one by one at a low rate, beside queues that run them without a
//! sandbox. All that use PostgreSQL use one server, made for this and as durable as an operator's, each in a database of
//! its own.
//!
//! The time of a task is from the first submit of the bulk until the last result is stored; its processor time is that of
//! the program, client included, and of the database's server. What a host adds is that beyond a bare attempt of the same
//! guest, which `benches/attempt` measures in turn with the others, on as many processors as the bulk has.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use keiko_tests::postgres::Database;
use serde_json::Value;

use super::{KIND, Plan, Programs, Rounds, build_peers, line};
use crate::arguments::Arguments;
use crate::database::{Server, Wish};
use crate::guests::Toolchain;
use crate::machine::Install;
use crate::step::{Steps, cargo};

const SIDES: &[&str] =
    &["keiko", "graphile_worker", "apalis-postgres", COMMITS, "keiko-sqlite", "apalis-sqlite", ATTEMPT];
/// An attempt without a host: no store, no queue.
const ATTEMPT: &str = "attempt";
/// The least that waits for the disk twice: it has a latency and nothing else.
const COMMITS: &str = "two-commits";
/// Tasks of one round, unless `--tasks` asks for others; fewer where each takes long.
const TASKS: u64 = 50_000;
const TASKS_SLOW: u64 = 2_000;
/// Tasks a second, and seconds, of a round of latencies.
const RATE: &str = "50";
const RATE_S: &str = "8";

/// Runs the comparison.
pub fn queue(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    let asked = Toolchain::asked(&mut arguments)?;
    let plan = Plan::asked(&mut arguments, SIDES)?;
    let bulk_only = arguments.flag("--bulk-only");
    let tasks = arguments.option("--tasks")?.map_or(Ok(TASKS), |tasks| tasks.parse()).context("--tasks")?;
    let found = Wish::asked(&mut arguments)?.ensure(install)?;
    arguments.finish()?;
    let mut steps = Steps::new();
    let programs = Programs::build(&mut steps, install, asked)?;
    let peers = build_peers(&mut steps)?;
    steps.run("build the attempt", bench_attempt().arg("--no-run"))?;
    let server = steps.step("PostgreSQL", || found.start_durable())?;
    server.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")?;
    let mut rounds = Rounds::default();
    for round in 1..=plan.rounds {
        eprintln!("round {round}");
        for side in SIDES.iter().filter(|side| plan.wants(side)) {
            let queue = Queue { programs: &programs, peers: &peers, server: &server, side };
            if *side == ATTEMPT {
                queue.attempt(&mut rounds)?;
                continue;
            }
            if *side != COMMITS {
                queue.bulk(tasks, &mut rounds)?;
            }
            if !bulk_only {
                queue.rate(&mut rounds)?;
            }
        }
    }
    let mut ratios = Vec::new();
    for figure in ["tasks_per_s", "cpu_us", "latency_p50_ms", "latency_p99_ms"] {
        ratios.extend([
            (figure, "keiko", "graphile_worker"),
            (figure, "keiko", "apalis-postgres"),
            (figure, "keiko", COMMITS),
            (figure, "keiko-sqlite", "apalis-sqlite"),
        ]);
    }
    ratios.extend(["keiko", "keiko-sqlite"].map(|side| ("cpu_us", side, ATTEMPT)));
    rounds.print("queue", &ratios);
    rounds.print_beyond("queue", "cpu_us", &["keiko", "keiko-sqlite"], ATTEMPT);
    server.stop()?;
    Ok(ExitCode::SUCCESS)
}

/// One side of the comparison.
struct Queue<'a> {
    programs: &'a Programs,
    peers: &'a Path,
    server: &'a Server,
    side: &'a str,
}

impl Queue<'_> {
    /// A database, or a file, of its own; it goes with what it was made for.
    fn place(&self) -> Result<Place> {
        if self.side.ends_with("sqlite") {
            return Ok(Place::File(tempfile::Builder::new().prefix("keiko-bench-").tempdir()?));
        }
        Ok(Place::Database(Database::new(self.server.url())?))
    }

    fn run(&self, place: &Place, keiko: &[&str], peer: &[&str]) -> Result<Value> {
        let component = self.programs.component.to_string_lossy();
        let guest = ["--component", &component, "--kind", KIND];
        let url = place.url();
        match self.side {
            "keiko" => self.programs.bench(&[keiko, &guest, &["--database", &url]].concat()),
            "keiko-sqlite" => self.programs.bench(&[keiko, &guest].concat()),
            side => {
                let mut command = Command::new(self.peers);
                line(command.arg(side).args(peer).env("DATABASE_URL", url))
            }
        }
    }

    fn is_keiko(&self) -> bool {
        self.side.starts_with("keiko")
    }

    fn bulk(&self, tasks: u64, rounds: &mut Rounds) -> Result<()> {
        let place = self.place()?;
        let tasks = if self.side == "apalis-sqlite" { tasks.min(TASKS_SLOW) } else { tasks };
        let given = tasks.to_string();
        let before = Spent::so_far(self.server)?;
        let line = self.run(&place, &["--tasks", &given], &["--tasks", &given])?;
        let spent = Spent::so_far(self.server)?;
        let each = |of: fn(&Spent) -> f64| (of(&spent) - of(&before)) / tasks as f64;
        let process = line["cpu_us"].as_f64().context("no cpu_us")?;
        let (per_second, submits) = match self.is_keiko() {
            true => ("per_second", "submits_per_second"),
            false => ("tasks_per_s", "submits_per_s"),
        };
        rounds.take(self.side, "tasks_per_s", &line, per_second)?;
        rounds.take(self.side, "submits_per_s", &line, submits)?;
        if let Place::File(_) = place {
            rounds.add(self.side, "cpu_us", process);
            return Ok(());
        }
        rounds.add(self.side, "cpu_us", process + each(|spent| spent.cpu_us));
        rounds.add(self.side, "server_cpu_us", each(|spent| spent.cpu_us));
        rounds.add(self.side, "wal_bytes", each(|spent| spent.wal_bytes));
        rounds.add(self.side, "statements", each(|spent| spent.statements));
        Ok(())
    }

    /// What the bare side of `cargo xtask bench attempt` takes of the processor, alone and as in a bulk, where every processor
    /// has work.
    fn attempt(&self, rounds: &mut Rounds) -> Result<()> {
        let mut bench = bench_attempt();
        let output = bench.env("KEIKO_BENCH_COMPONENT", &self.programs.component).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for (figure, named) in [("p50_us", "p50"), ("cpu_us", "cpu_us")] {
            let bare = |line: &&Value| line["side"] == "wasmtime" && line["figure"] == named;
            let line = lines.iter().find(bare).with_context(|| format!("no attempt: {}", output.status))?;
            rounds.take(self.side, figure, line, "value")?;
        }
        Ok(())
    }

    fn rate(&self, rounds: &mut Rounds) -> Result<()> {
        let place = self.place()?;
        let keiko = ["--rate", RATE, "--duration", RATE_S, "--connections", "16"];
        let line = self.run(&place, &keiko, &["--rate", RATE, "--seconds", RATE_S])?;
        for (figure, percent) in [("latency_p50_ms", "p50"), ("latency_p99_ms", "p99")] {
            if self.is_keiko() {
                let microseconds = line["latency_us"][percent].as_f64().context("no latency")?;
                rounds.add(self.side, figure, microseconds / 1e3);
            } else {
                rounds.take(self.side, figure, &line, figure)?;
            }
        }
        Ok(())
    }
}

fn bench_attempt() -> Command {
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--workspace", "--bench", "attempt"]);
    bench
}

/// What the database's server has spent.
struct Spent {
    cpu_us: f64,
    wal_bytes: f64,
    statements: f64,
}

impl Spent {
    fn so_far(server: &Server) -> Result<Spent> {
        let query = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, sum(calls) FROM pg_stat_statements";
        let text = server.query(query)?;
        let numbers = text
            .split_once('|')
            .and_then(|(wal, calls)| Some((wal.trim().parse().ok()?, calls.trim().parse().ok()?)));
        let (wal_bytes, statements) = numbers.with_context(|| format!("not two numbers: {text}"))?;
        Ok(Spent { cpu_us: server.pid().map_or(Ok(0.0), cpu_us)?, wal_bytes, statements })
    }
}

/// Processor time so far of a process and all that it has started.
fn cpu_us(first: u32) -> Result<f64> {
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended meanwhile is counted by the one that started it.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        if pid == first {
            ticks += (11..=14).map(number).sum::<u64>();
        } else if number(1) == u64::from(first) {
            ticks += number(11) + number(12);
        }
    }
    // The kernel counts in hundredths of a second.
    Ok(ticks as f64 * 10_000.0)
}

enum Place {
    Database(Database),
    File(tempfile::TempDir),
}

impl Place {
    fn url(&self) -> String {
        match self {
            Place::Database(database) => database.url().to_owned(),
            Place::File(folder) => format!("sqlite://{}/queue.db", folder.path().display()),
        }
    }
}
