//! `cargo xtask bench batch`: how fast items are added, how fast they go through a plugin, beside the same rows inserted
//! plainly, and how late those of a slow stream are. JSON lines, on both databases.
//!
//! Through a plugin they go twice a round: added and worked at once, as they would be, and worked alone, when all of them
//! are stored. The host's own count says when all are done: to ask what waits is to count it, which costs the database as
//! much as to work it.

#![allow(clippy::disallowed_methods, reason = "items of a stream are real times")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use keiko_tests::postgres::Database;
use keiko_tests::{Client, Host, Options, tree, wait};
use serde_json::{Value, json};

use crate::database::Found;
use crate::step::{Steps, cargo};

/// Items that go through the plugin at once, and how often.
const ITEMS: usize = 100_000;
const ROUNDS: usize = 3;
/// Items of one request, and those who send them.
const REQUEST: usize = 10_000;
const SENDERS: usize = 2;
/// Items of a batch, and of the plain statement that it stands beside.
const BATCH: &str = "1000";
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
const CALLS: [&str; 3] = ["1", "100", BATCH];

/// Measures everything; `program` is the host, built for release.
pub fn run(steps: &mut Steps, program: &Path, found: Found) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "--workspace", "--example", "batch_adds"]);
    steps.run("build the adds", &mut build)?;
    let server = steps.step("PostgreSQL", || found.start())?;
    let mut bare = [0.0; 2];
    for call in CALLS {
        // A statement of one row is a commit: fewer of them do.
        let items = if call == "1" { "25600" } else { "512000" };
        let database = Database::new(server.url())?;
        bare = [adds(&[items, call])?, adds(&[items, call, "--postgres", database.url()])?];
    }
    through_a_plugin(program, "sqlite", None, bare[0])?;
    let database = Database::new(server.url())?;
    through_a_plugin(program, "postgres", Some(database.url()), bare[1])?;
    drop(database);
    server.stop()
}

/// Measures adds; how many rows a second were inserted plainly.
fn adds(arguments: &[&str]) -> Result<f64> {
    let mut command = Command::new(tree::target_dir().join("release/examples/batch_adds"));
    let output = command.args(arguments).stderr(Stdio::inherit()).output().context("start the adds")?;
    if !output.status.success() {
        bail!("the adds could not be measured");
    }
    let text = String::from_utf8(output.stdout).context("lines of text")?;
    print!("{text}");
    let lines = text.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>().context("lines of JSON")?;
    let bare = lines.iter().find(|line| line["side"] == "bare-insert");
    bare.and_then(|line| line["items_per_s"].as_f64()).context("no line of plain inserts")
}

fn through_a_plugin(program: &Path, database: &str, url: Option<&str>, bare: f64) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder")?;
    let mut options = Options::of(program.to_owned(), folder.path())?.with_config(KEPT)?;
    if let Some(url) = url {
        options.arguments.extend(["--database".into(), url.into()]);
    }
    let mut host = Host::start(options)?;
    let client = host.client();
    client.install(&tree::guest("batches")?)?;
    let bodies: Vec<String> = (0..ITEMS / REQUEST).map(body).collect();
    for round in 0..ROUNDS {
        let before = done(&client)?;
        let start = Instant::now();
        send(&client, &bodies)?;
        let added = start.elapsed();
        until_done(&client, before + ITEMS as u64)?;
        tell("keiko-plugin", database, round, start.elapsed(), Some(added), bare);

        host_paused(&client, true)?;
        send(&client, &bodies)?;
        let start = Instant::now();
        host_paused(&client, false)?;
        until_done(&client, before + 2 * ITEMS as u64)?;
        tell("keiko-plugin-stored", database, round, start.elapsed(), None, bare);
    }
    for (streams, every) in STREAM_EVERY.into_iter().enumerate() {
        println!("{}", steady_stream(&client, database, every, streams)?);
    }
    host.stop().map(drop)
}

/// A request of items.
fn body(part: usize) -> String {
    let items: Vec<Value> = (0..REQUEST).map(|at| json!({ "item": [part, at] })).collect();
    json!({ "items": items }).to_string()
}

/// Sends all requests.
fn send(client: &Client, bodies: &[String]) -> Result<()> {
    let send = |bodies: &[String]| {
        for body in bodies {
            let headers = [("content-type", "application/json")];
            client.post("/v1/batches/plain/items", &headers, body.as_bytes())?.expect(&[201])?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let parts = bodies.chunks(bodies.len().div_ceil(SENDERS));
        let senders: Vec<_> = parts.map(|part| scope.spawn(move || send(part))).collect();
        let sent =
            senders.into_iter().map(|sender| sender.join().map_err(|_| anyhow!("a sender panicked"))?);
        sent.collect()
    })
}

fn host_paused(client: &Client, is_paused: bool) -> Result<()> {
    let path = if is_paused { "/v1/pause" } else { "/v1/resume" };
    client.post_json(path, &json!({ "host": true }), None)?.expect(&[200]).map(drop)
}

/// Items that the host has worked since it started.
fn done(client: &Client) -> Result<u64> {
    let text = String::from_utf8(client.get("/metrics")?.bytes).context("metrics that are text")?;
    let line = text.lines().find_map(|line| line.strip_prefix("keiko_batch_items_done_total "));
    line.and_then(|number| number.trim().parse().ok()).context("the host counts no items")
}

fn until_done(client: &Client, count: u64) -> Result<()> {
    wait::until("every item to be worked", WORKED_MAX, || Ok((done(client)? >= count).then_some(())))
}

fn tell(side: &str, database: &str, round: usize, took: Duration, added: Option<Duration>, bare: f64) {
    let per_s = |took: Duration| (ITEMS as f64 / took.as_secs_f64()).round();
    let line = json!({
        "bench": "batch",
        "side": side,
        "database": database,
        "round": round,
        "items": ITEMS,
        "items_per_request": REQUEST,
        "items_per_batch": 1_000,
        "rows_per_bare_insert": 1_000,
        "added_per_s": added.map(per_s),
        "items_per_s": per_s(took),
        "of_bare_insert": (per_s(took) / bare * 100.0).round() / 100.0,
    });
    println!("{line}");
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
