//! `cargo xtask bench batch`: how fast items are added, and how fast they go through a plugin, beside the same rows
//! inserted plainly. JSON lines, on both databases.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

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
/// Items of a call of the adds, beside each other.
const CALLS: [&str; 2] = ["1", "100"];

/// Measures everything; `program` is the host, built for release.
pub fn run(steps: &mut Steps, program: &Path, found: Found) -> Result<()> {
    let server = steps.step("PostgreSQL", || found.start())?;
    for call in CALLS {
        // A statement of one row is a commit: fewer of them do.
        let items = if call == "1" { "12800" } else { "256000" };
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
    let mut options = Options { program: program.to_owned(), ..Options::in_folder(folder.path())? };
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
    host.stop().map(drop)
}

fn is_quiet(client: &Client) -> Result<bool> {
    let found = client.get("/v1/batches/plain")?.expect(&[200])?;
    Ok(found["items"] == 0 && found["batches"] == 0)
}
