//! Hosts on PostgreSQL, seen from outside.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use keiko_tests::check::{batch_canary, canary};
use keiko_tests::postgres::{Database, Postgres, Programs};
use keiko_tests::{Client, Host, Options, tree, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A host that holds nothing costs its database no more than this.
const STATEMENTS_A_MINUTE_MAX: f64 = 5.0;
/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(60);
/// What a test waits for comes by then.
const SOON: Duration = Duration::from_secs(15);
/// A host that drains for a second has stopped by then, whatever its database does: see docs/operations.md.
const DRAINED: Duration = Duration::from_secs(31);
/// A host is through with its start by then: its first beat and its first look for tasks.
const SETTLED: Duration = Duration::from_secs(3);

fn host(folder: &tempfile::TempDir, database: &Database) -> Host {
    let config = format!("[database]\nurl = \"{}\"\npool_size = 2\npool_overflow = 2\n", database.url());
    let config = config + batch_canary::CONFIG;
    Host::start(Options::in_folder(folder.path()).unwrap().with_config(&config).unwrap()).unwrap()
}

/// Statements of the host so far: what the database has counted, less what asks for it.
fn statements(database: &Database) -> f64 {
    let query =
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid
        WHERE d.datname = current_database() AND s.query NOT LIKE '%pg_stat_statements%'";
    database.query(query).unwrap().parse().unwrap()
}

#[test]
fn an_idle_host_asks_its_database_next_to_nothing() {
    // A server of its own: on one that many tests use, statistics of statements are thrown away for others'.
    let postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = postgres.new_database().unwrap();
    database.query("CREATE EXTENSION pg_stat_statements").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _host = host(&folder, &database);
    wait::pause(SETTLED);
    let before = statements(&database);
    wait::pause(WATCHED);
    let asked = statements(&database) - before;
    let allowed = STATEMENTS_A_MINUTE_MAX * WATCHED.as_secs_f64() / 60.0;
    let every =
        "SELECT calls, left(query, 150) FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid
        WHERE d.datname = current_database() ORDER BY calls DESC LIMIT 30";
    assert!(
        asked <= allowed,
        "{asked} statements in a minute; all since the start:\n{}",
        database.query(every).unwrap()
    );
    assert!(asked >= 1.0, "the host beats, or it would lose its lease");
}

#[test]
fn a_task_alone_costs_its_database_two_statements() {
    let postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = postgres.new_database().unwrap();
    database.query("CREATE EXTENSION pg_stat_statements").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let host = host(&folder, &database);
    let client = host.client();
    client.install(&tree::guest("family").unwrap()).unwrap();
    let task = json!({"plugin": "family", "kind": "child", "input": {"n": 3, "which": 0}});
    let run = || client.post_json("/v1/tasks?wait=30", &task, None).unwrap().json().unwrap();
    // What it takes to know a plugin and a tenant is asked once.
    (0..10).for_each(|_| drop(run()));
    wait::pause(SETTLED);
    let before = statements(&database);
    (0..100).for_each(|_| assert_eq!(run()["state"], "completed"));
    let each = (statements(&database) - before) / 100.0;
    assert!((2.0..2.5).contains(&each), "{each} statements a task: one stores and leases it, one ends it");
}

#[test]
fn two_hosts_try_one_canary_together_and_follow_one_verdict() {
    let postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = postgres.new_database().unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let hosts = folders.each_ref().map(|folder| host(folder, &database));
    let clients = hosts.each_ref().map(Host::client);
    let report = canary::run_on(&canary::Plan::short(), &clients).unwrap();
    assert_eq!(report.violations(), 0, "{:#}", report.json());
    let report = batch_canary::run_on(&canary::Plan::short(), &clients).unwrap();
    assert_eq!(report.violations(), 0, "{:#}", report.json());
    for client in &clients {
        let page = String::from_utf8(client.get("/metrics").unwrap().bytes).unwrap();
        let tried = page.lines().find_map(|line| line.strip_prefix("keiko_canary_attempts_total "));
        let tried: f64 = tried.unwrap().parse().unwrap();
        assert!(tried > 0.0, "both hosts have tasks that try");
    }
}

/// What the host says to a watcher of a running task: how far it is, and what it has given out.
fn watched(client: &Client, id: &str) -> (Value, Value) {
    let address = client.address();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET /v1/tasks/{id}/events HTTP/1.1\r\nhost: {address}\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let (mut progress, mut output, mut name) = (None, None, String::new());
    while progress.is_none() || output.is_none() {
        let line = lines.next().expect("the host tells both");
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let data: Value = serde_json::from_str(data).unwrap();
        match name.as_str() {
            "progress" => progress = Some(data),
            "output" => output = Some(data),
            // As it stands when the watch begins.
            _ => progress = progress.or_else(|| data.get("progress").cloned()),
        }
    }
    progress.zip(output).unwrap()
}

#[test]
fn both_of_two_hosts_tell_what_a_task_says() {
    let postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = postgres.new_database().unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let hosts = folders.each_ref().map(|folder| host(folder, &database));
    let clients = hosts.each_ref().map(Host::client);
    clients[0].install(&tree::guest("family").unwrap()).unwrap();
    let input = json!({"n": 1, "sleep_ms": 60_000});
    let more = json!({"attempts": 1, "timeout_s": 120});
    let id = clients[0].submit("family", "parent", input, more).unwrap();
    let half = json!({"fraction": 0.5, "message": "its children are asked for"});
    let piece = json!({"attempt": 1, "number": 0, "text": "two children\n"});
    // One of them runs it.
    for client in &clients {
        assert_eq!(watched(client, &id), (half.clone(), piece.clone()));
        let progress = wait::until("the host to tell how far the task is", SOON, || {
            let task = client.task(&id)?;
            Ok(task.get("progress").cloned())
        });
        assert_eq!(progress.unwrap(), half);
    }
    assert_eq!(clients[1].task(&id).unwrap()["state"], "running");
    clients[1].post(&format!("/v1/tasks/{id}/cancel"), &[], b"").unwrap().expect(&[200]).unwrap();
}

/// Lets a server's processes stand still, or go on.
fn signal(postgres: &Postgres, signal: Signal) {
    let server = postgres.pid().unwrap().to_string();
    let parent = |stat: &str| Some(stat.rsplit_once(") ")?.1.split(' ').nth(1)? == server);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if entry.file_name() == *server || parent(&stat) == Some(true) {
            let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            // One that has ended meanwhile stands still.
            let _ = kill_process(pid.unwrap(), signal);
        }
    }
}

#[test]
fn a_server_that_stands_still_holds_up_no_stop() {
    let postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = postgres.new_database().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = format!("[host]\ndrain_s = 1\n[database]\nurl = \"{}\"\n", database.url());
    let options = Options::in_folder(folder.path()).unwrap().with_config(&config).unwrap();
    let mut host = Host::start(options).unwrap();
    let client = host.client();
    client.install(&tree::guest("family").unwrap()).unwrap();
    let more = json!({"attempts": 1, "timeout_s": 120});
    let id = client.submit("family", "parent", json!({"n": 1, "sleep_ms": 60_000}), more).unwrap();
    let runs = || Ok((client.task(&id)?["state"] == "running").then_some(()));
    wait::until("the task to run", SOON, runs).unwrap();
    signal(&postgres, Signal::STOP);
    host.ask_to_stop().unwrap();
    let ended = wait::until("the host to stop", DRAINED, || host.ended());
    signal(&postgres, Signal::CONT);
    assert!(ended.unwrap().success(), "in order");
    host.start_again().unwrap();
    let client = host.client();
    let back = wait::until("the task to run again", Duration::from_secs(60), || {
        let task = client.task(&id)?;
        Ok((task["state"] == "running").then_some(task))
    });
    assert_eq!(back.unwrap()["attempts"], json!([]), "the stop has cost it no attempt");
}

#[test]
fn a_database_that_goes_and_comes_back_loses_nothing() {
    let mut postgres = Postgres::start(Programs::find(None).unwrap()).unwrap();
    let database = postgres.new_database().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let host = host(&folder, &database);
    let client = host.client();
    client.install(&tree::guest("family").unwrap()).unwrap();
    let child = |n: u64| json!({"plugin": "family", "kind": "child", "input": {"n": n, "which": 0}});
    let before = client.post_json("/v1/tasks", &child(1), None).unwrap().expect(&[201]).unwrap();
    postgres.stop().unwrap();
    let refused = client.post_json("/v1/tasks", &child(2), None).unwrap();
    assert_eq!((refused.status, refused.code()), (503, "storage_down".to_owned()), "{refused:.400}");
    assert!(refused.headers.contains_key("retry-after"), "{refused:.400}");
    assert_eq!(client.get("/livez").unwrap().status, 200);
    assert_eq!(client.get("/readyz").unwrap().status, 503);
    postgres.restart(true).unwrap();
    let task = wait::until("a submit to be taken", Duration::from_secs(30), || {
        let answer = client.post_json("/v1/tasks?wait=30", &child(3), Some("again"))?;
        Ok((answer.status == 201 || answer.status == 200).then_some(answer.json()?))
    });
    assert_eq!(task.unwrap()["state"], "completed");
    let ended = client.ended(before["id"].as_str().unwrap()).unwrap();
    assert_eq!(ended["state"], "completed", "{ended}");
}
