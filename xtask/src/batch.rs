//! `cargo xtask bench batch`: how fast items are added, how fast they go through a plugin, beside the same rows inserted
//! plainly, and how late those of a slow stream are. JSON lines, on both databases.

#![allow(clippy::disallowed_methods, reason = "items of a stream are real times")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use keiko_tests::postgres::Database;
use keiko_tests::{Client, Host, Options, tree, wait};
use serde_json::{Value, json};

use crate::database::Found;
use crate::step::{Steps, cargo};

/// Items that go through the plugin.
const ITEMS: usize = 100_000;
/// Items of one request.
const REQUEST: usize = 10_000;
/// Everything is worked by then.
const WORKED_MAX: Duration = Duration::from_secs(600);
/// Items of a stream, the times between two of them, and how long each of them waits for others: a stream that is quicker
/// than that must start no clock anew, and one that is slower must leave nobody waiting for the next.
const STREAM: usize = 100;
const STREAM_EVERY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(80)];
const STREAM_AGE_MS: i64 = 50;
/// The processor that keeps what the plugin tells.
const KEPT: &str = "[tenants.default.processors.kept]\nkeep = \"rows\"\nage_ms = 20\n";
/// Items of a call of the adds, beside each other.
const CALLS: [&str; 2] = ["1", "100"];

/// Measures everything; `program` is the host, built for release.
pub fn run(steps: &mut Steps, program: &Path, found: Found) -> Result<()> {
    let server = steps.step("PostgreSQL", || found.start())?;
    for call in CALLS {
        // A statement of one row is a commit: fewer of them do.
        let items = if call == "1" { "25600" } else { "512000" };
        adds(&[items, call])?;
        let database = Database::new(server.url())?;
        adds(&[items, call, "--postgres", database.url()])?;
    }
    through_a_plugin(program, "sqlite", None)?;
    let database = Database::new(server.url())?;
    through_a_plugin(program, "postgres", Some(database.url()))?;
    drop(database);
    server.stop()
}

fn adds(arguments: &[&str]) -> Result<()> {
    let mut command: Command = cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "keiko-store",
        "--example",
        "batch_adds",
        "--",
    ]);
    if !command.args(arguments).status().context("start cargo")?.success() {
        bail!("the adds could not be measured");
    }
    Ok(())
}

fn through_a_plugin(program: &Path, database: &str, url: Option<&str>) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder")?;
    let mut options = Options::of(program.to_owned(), folder.path())?.with_config(KEPT)?;
    if let Some(url) = url {
        options.arguments.extend(["--database".into(), url.into()]);
    }
    let mut host = Host::start(options)?;
    let client = host.client();
    client.install(&tree::guest("batches")?)?;
    let start = Instant::now();
    for part in 0..ITEMS / REQUEST {
        let items: Vec<Value> = (0..REQUEST).map(|at| json!({ "item": [part, at] })).collect();
        client.post_json("/v1/batches/plain/items", &json!({ "items": items }), None)?.expect(&[201])?;
    }
    let added = start.elapsed();
    wait::until("every item to be worked", WORKED_MAX, || Ok(is_quiet(&client)?.then_some(())))?;
    let line = json!({
        "bench": "batch",
        "side": "keiko-plugin",
        "database": database,
        "items": ITEMS,
        "items_per_batch": 1_000,
        "added_per_s": (ITEMS as f64 / added.as_secs_f64()).round(),
        "items_per_s": (ITEMS as f64 / start.elapsed().as_secs_f64()).round(),
    });
    println!("{line}");
    for (streams, every) in STREAM_EVERY.into_iter().enumerate() {
        println!("{}", steady_stream(&client, database, every, streams)?);
    }
    host.stop().map(drop)
}

/// How much later than their age the items of a stream came, behind so many other streams.
fn steady_stream(client: &Client, database: &str, every: Duration, streams: usize) -> Result<Value> {
    for _ in 0..STREAM {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).context("a time after 1970")?.as_millis();
        client
            .post_json("/v1/batches/clocked/items", &json!({ "item": now_ms as u64 }), None)?
            .expect(&[201])?;
        wait::pause(every);
    }
    let all = wait::until("the stream to be worked", WORKED_MAX, || {
        let page = client.get("/v1/batches/kept/rows?limit=1000")?.expect(&[200])?;
        let rows = page["rows"].as_array().context("a page without rows")?;
        let late: Vec<i64> = rows.iter().filter_map(|row| row["item"].as_i64()).collect();
        Ok((late.len() == STREAM * (streams + 1)).then_some(late))
    });
    let mut late: Vec<i64> =
        all?.into_iter().skip(STREAM * streams).map(|waited_ms| waited_ms - STREAM_AGE_MS).collect();
    late.sort_unstable();
    Ok(json!({
        "bench": "batch",
        "side": "keiko-stream",
        "database": database,
        "items": STREAM,
        "every_ms": every.as_millis() as u64,
        "age_ms": STREAM_AGE_MS,
        "late_ms_p50": late[STREAM / 2],
        "late_ms_p99": late[STREAM * 99 / 100],
        "late_ms_max": late[STREAM - 1],
    }))
}

fn is_quiet(client: &Client) -> Result<bool> {
    let found = client.get("/v1/batches/plain")?.expect(&[200])?;
    Ok(found["items"] == 0 && found["batches"] == 0)
}
