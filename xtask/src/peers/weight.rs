//! `cargo xtask bench weight`: what no-op tasks in bulk lose on PostgreSQL beside a long history, beside a transaction that
//! holds its snapshot all the while, and with many tenants. Each side is the host itself, without and with that weight.

use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use keiko_tests::postgres::Database;
use keiko_tests::wait;

use super::{KIND, Plan, Programs, Rounds};
use crate::arguments::Arguments;
use crate::database::{Server, Wish};
use crate::guests::Toolchain;
use crate::machine::Install;
use crate::step::Steps;

const SIDES: &[&str] = &["keiko", HISTORY, SNAPSHOT, TENANTS];
/// Many finished tasks.
const HISTORY: &str = "history";
/// A transaction that began before the tasks and ends after them.
const SNAPSHOT: &str = "snapshot";
/// Many tenants with work.
const TENANTS: &str = "tenants";
/// Tasks of one round, unless `--tasks` asks for others.
const TASKS: u64 = 50_000;
/// Finished tasks of the history, unless `--finished` asks for others.
const FINISHED: u64 = 5_000_000;
const TENANTS_COUNT: u64 = 1_000;
/// Finished tasks that are written before those are multiplied.
const SEED_TASKS: &str = "1000";
/// The transaction holds its snapshot by then.
const HELD_MAX: Duration = Duration::from_secs(10);
/// How a transaction is known that holds its snapshot.
const HELD: &str = "keiko-bench-held";

/// Multiplies the finished tasks that there are up to so many, each with a number of its own among the oldest.
const FILL: &str = "
    DO $$
    DECLARE
        names text;
    BEGIN
        SELECT string_agg(quote_ident(attname), ', ') INTO names FROM pg_attribute
            WHERE attrelid = 'finished'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'root');
        EXECUTE format('INSERT INTO finished (id, root, %1$s)
            SELECT row_number() OVER (), row_number() OVER (), %1$s
            FROM (SELECT %1$s FROM finished LIMIT 1000) AS f, generate_series(1, @ / 1000)', names);
    END $$;
    VACUUM ANALYZE finished";

/// Runs the comparison.
pub fn weight(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    let asked = Toolchain::asked(&mut arguments)?;
    let plan = Plan::asked(&mut arguments, SIDES)?;
    let mut number = |name, default| -> Result<u64> {
        arguments.option(name)?.map_or(Ok(default), |text| text.parse()).context(name)
    };
    let (tasks, finished) = (number("--tasks", TASKS)?, number("--finished", FINISHED)?);
    let found = Wish::asked(&mut arguments)?.ensure(install)?;
    arguments.finish()?;
    let mut steps = Steps::new();
    let programs = Programs::build(&mut steps, install, asked)?;
    let server = steps.step("PostgreSQL", || found.start_durable())?;
    let weights = Weights { programs: &programs, server: &server, tasks };
    let history = plan.wants(HISTORY).then(|| steps.step("the history", || weights.history(finished)));
    let history = history.transpose()?;
    let mut rounds = Rounds::default();
    for round in 1..=plan.rounds {
        eprintln!("round {round}");
        for side in SIDES.iter().filter(|side| plan.wants(side)) {
            weights.round(side, history.as_ref(), &mut rounds)?;
        }
    }
    let beside = SIDES[1..].iter().map(|side| ("tasks_per_s", *side, SIDES[0]));
    rounds.print("weight", &beside.collect::<Vec<_>>());
    drop(history);
    server.stop()?;
    Ok(ExitCode::SUCCESS)
}

struct Weights<'a> {
    programs: &'a Programs,
    server: &'a Server,
    tasks: u64,
}

impl Weights<'_> {
    fn load(&self, database: &Database, more: &[&str]) -> Result<serde_json::Value> {
        let component = self.programs.component.to_string_lossy();
        let guest = ["--component", &component, "--kind", KIND, "--database", database.url()];
        self.programs.bench(&[&guest, more].concat())
    }

    /// A database with so many finished tasks.
    fn history(&self, finished: u64) -> Result<Database> {
        let database = Database::new(self.server.url())?;
        self.load(&database, &["--tasks", SEED_TASKS])?;
        for statement in FILL.replace('@', &finished.to_string()).split_inclusive("$$;") {
            database.query(statement)?;
        }
        Ok(database)
    }

    fn round(&self, side: &str, history: Option<&Database>, rounds: &mut Rounds) -> Result<()> {
        let fresh;
        let database = match history.filter(|_| side == HISTORY) {
            Some(database) => database,
            None => {
                fresh = Database::new(self.server.url())?;
                &fresh
            }
        };
        let tasks = self.tasks.to_string();
        // Each submit is for the next tenant, so that all of them have work.
        let (count, batch) = (TENANTS_COUNT.to_string(), (self.tasks / TENANTS_COUNT).max(1).to_string());
        let tenants = ["--tenants", &count, "--batch", &batch];
        let more = if side == TENANTS { &tenants[..] } else { &[] };
        let held = (side == SNAPSHOT).then(|| hold(database)).transpose()?;
        let line = self.load(database, &[&["--tasks", &tasks], more].concat())?;
        if let Some(held) = held {
            let_go(database, held)?;
        }
        rounds.take(side, "tasks_per_s", &line, "per_second")?;
        rounds.take(side, "submits_per_s", &line, "submits_per_second")
    }
}

/// Begins a transaction whose snapshot keeps every version of a row from then on.
fn hold(database: &Database) -> Result<JoinHandle<()>> {
    let url = database.url().to_owned();
    let statements = format!(
        "SET application_name = '{HELD}'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class;
         SELECT pg_sleep(3600)"
    );
    let holds = thread::Builder::new().name(HELD.to_owned()).spawn(move || {
        // It is ended from outside, which is an error here.
        let _ = keiko_tests::postgres::query_at(&url, &statements);
    });
    let holds = holds.context("a thread")?;
    let is_held = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{HELD}' AND backend_xmin IS NOT NULL
         AND query LIKE '%pg_sleep%'"
    );
    wait::until("the snapshot to be held", HELD_MAX, || {
        Ok((database.query(&is_held)?.trim() == "1").then_some(()))
    })?;
    Ok(holds)
}

fn let_go(database: &Database, holds: JoinHandle<()>) -> Result<()> {
    let ended = database.query(&format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{HELD}'
         AND backend_xmin IS NOT NULL"
    ))?;
    anyhow::ensure!(ended.trim() == "1", "the snapshot was not held until the end: {ended}");
    holds.join().map_err(|_| anyhow!("the thread that holds a snapshot panicked"))
}
