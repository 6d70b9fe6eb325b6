//! A thousand tasks on two hosts that want one key of the cache which nobody has, all at the same time.
//!
//! One of them has the right to compute it, and sleeps until all others wait; then it is cancelled, and the right goes on to
//! one of those, on whichever host. So a thousand are there at once, however long it takes them to come.
//!
//! Promises, with Redis, while it does not answer, and after it was killed: one computes, all others get what that one
//! computed, and no task fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Report, metric};
use crate::postgres::{Database, Postgres, Programs};
use crate::redis::Redis;
use crate::{Client, Host, Options, tree, wait};

/// What is looked at.
pub const INVARIANTS: &[&str] = &["task failed", "computed once", "another value", "one host alone"];
/// How long it may take until all are there, and until all have ended.
const SOON: Duration = Duration::from_secs(120);
/// Longer than that, and ended by a cancel.
const ATTEMPT_S: u64 = 300;
/// Tasks of a request: few, so that both hosts get some.
const REQUEST: usize = 25;
/// Attempts of a worker at once.
const PER_WORKER: usize = 16;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Tasks that want the key, the one that has the right among them. Either host has room for all.
    pub readers: usize,
}

impl Plan {
    /// For every run of the tests.
    pub fn short() -> Plan {
        Plan { readers: 200 }
    }

    /// As many as a host may run.
    pub fn long() -> Plan {
        Plan { readers: 1_000 }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let postgres = Postgres::start(Programs::find(None)?)?;
    let database = Arc::new(postgres.new_database()?);
    let mut redis = Redis::start()?;
    let start = |number| start_host(plan, folder, number, &database, &redis.url());
    let hosts = (0..2).map(start).collect::<Result<Vec<Host>>>()?;
    let clients: Vec<Client> = hosts.iter().map(Host::client).collect();
    clients[0].install(&tree::guest("contract")?)?;
    let mut report = Report::new("cold-key", INVARIANTS);
    report.tried("readers", plan.readers);
    round(plan, "answering", &clients, &mut report)?;
    redis.pause()?;
    round(plan, "stopped", &clients, &mut report)?;
    redis.kill()?;
    round(plan, "killed", &clients, &mut report)?;
    Ok(report)
}

fn start_host(
    plan: &Plan,
    folder: &Path,
    number: usize,
    database: &Arc<Database>,
    redis: &str,
) -> Result<Host> {
    let folder = folder.join(format!("host-{number}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let (readers, workers) = (plan.readers, plan.readers.div_ceil(PER_WORKER));
    let config = format!(
        "[host]\nrunning_max = {readers}\nworkers = {workers}\n\n\
         [cache]\nredis_url = \"{redis}\"\n\n\
         [tenants.default.limits]\nrunning_max = {readers}\n"
    );
    Host::start(Options::in_folder(&folder)?.on(database).with_config(&config)?)
}

/// All want the key of this name, while Redis is as it says.
fn round(plan: &Plan, redis: &str, clients: &[Client], report: &mut Report) -> Result<()> {
    let waited = |client: &Client| metric(client, r#"keiko_cache_events_total{event="waited"}"#);
    let all_waited = || clients.iter().map(waited).collect::<Result<Vec<u64>>>();
    let before = all_waited()?;
    let holder = submit(
        &clients[0],
        &[json!([{"do": "fill", "key": redis}, {"do": "sleep", "ms": ATTEMPT_S * 1_000}])],
    )?;
    let holder = holder.first().context("an id")?;
    wait::until("the right to compute to be held", SOON, || {
        let tasks = clients.iter().map(|client| client.task(holder)).collect::<Result<Vec<Value>>>()?;
        Ok(tasks.iter().any(|task| task.get("progress").is_some()).then_some(()))
    })?;
    let reader = |number: usize| json!([{"do": "fill", "key": redis}, {"do": "complete", "value": format!("of reader {number}")}]);
    let readers: Vec<Value> = (1..plan.readers).map(reader).collect();
    let mut ids = Vec::new();
    for (at, part) in readers.chunks(REQUEST).enumerate() {
        ids.extend(submit(&clients[at % clients.len()], part)?);
    }
    // Of those on the other host, one waits for this one, and the others for that one.
    let waiting = wait::until("all to wait", SOON, || {
        let now = all_waited()?;
        let here: Vec<u64> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
        Ok((here.iter().sum::<u64>() + 1 >= ids.len() as u64).then_some(here))
    })?;
    report.require(waiting.iter().all(|waiting| *waiting > 0), "one host alone", || format!("{waiting:?}"));
    clients[0].post_json(&format!("/v1/tasks/{holder}/cancel"), &json!({}), None)?.expect(&[200])?;
    let tasks = ids.iter().map(|id| clients[0].ended(id)).collect::<Result<Vec<Value>>>()?;
    judge(redis, &tasks, report);
    report.tried(&format!("waiting_while_redis_is_{redis}"), waiting);
    Ok(())
}

/// Submits a task for each list of steps; their ids.
fn submit(client: &Client, steps: &[Value]) -> Result<Vec<String>> {
    let task = |steps: &Value| json!({"plugin": "contract", "kind": "cache", "input": {"steps": steps}, "attempts": 1, "timeout_s": ATTEMPT_S});
    let tasks: Vec<Value> = steps.iter().map(task).collect();
    let answer = client.post_json("/v1/tasks", &json!({ "tasks": tasks }), None)?.expect(&[201])?;
    let ids = answer["tasks"].as_array().context("a submit without ids")?;
    ids.iter().map(|id| id.as_str().map(str::to_owned).context("an id")).collect()
}

/// One has computed, and the others have what that one did.
fn judge(redis: &str, tasks: &[Value], report: &mut Report) {
    let answer = |task: &Value| task["result"][0]["ok"].clone();
    let filled = tasks.iter().filter(|task| answer(task) == "fill").count();
    report.require(filled == 1, "computed once", || format!("{filled} times while Redis was {redis}"));
    let values: Vec<Value> = tasks.iter().filter(|task| answer(task) != "fill").map(answer).collect();
    for task in tasks {
        report.require(task["state"] == "completed", "task failed", || task.to_string());
    }
    let all_alike = values.windows(2).all(|two| two[0] == two[1]);
    let is_hit = values.first().is_none_or(|value| value["hit"].is_string());
    report.require(all_alike && is_hit, "another value", || format!("while Redis was {redis}: {values:?}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_computation_another_value_and_a_failure_are_noticed() {
        let task = |state: &str, answer: Value| json!({"state": state, "result": [{ "ok": answer }]});
        let (fill, hit) =
            (|| task("completed", json!("fill")), |of: &str| task("completed", json!({ "hit": of })));
        let check = |tasks: &[Value], expected: &[&str]| {
            let mut report = Report::new("cold-key", INVARIANTS);
            judge("answering", tasks, &mut report);
            let found = report.json()["violations"].clone();
            let found: Vec<&str> = INVARIANTS.iter().copied().filter(|name| found[name] != 0).collect();
            assert_eq!(found, expected, "{tasks:?}");
        };
        check(&[fill(), hit("a"), hit("a")], &[]);
        check(&[fill(), fill(), hit("a")], &["computed once"]);
        check(&[hit("a"), hit("a")], &["computed once"]);
        check(&[fill(), hit("a"), hit("b")], &["another value"]);
        check(&[fill(), hit("a"), json!({"state": "failed"})], &["task failed", "another value"]);
    }
}
