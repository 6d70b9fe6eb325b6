//! The database behind a host: backups that restore, PostgreSQL in place of files, and what the command line says of both.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use keiko_tests::postgres::Database;
use keiko_tests::{Host, Options, tree, wait};
use serde_json::{Value, json};

use crate::Running;

/// All tasks of a test have ended by then.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// Runs `keiko db` to its end.
#[track_caller]
fn db(arguments: &[&str], status: i32) -> Output {
    let output = Command::new(tree::program().unwrap()).arg("db").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}\n{}", out(&output));
    output
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn quiet(running: &Running) {
    let live = || Ok((running.client.live()? == 0).then_some(()));
    wait::until("every task to end", QUIET_MAX, live).unwrap();
}

/// Submits so many parents at once; each that completes has two children.
fn submit_parents(running: &Running, count: u64) {
    let task = |n: u64| json!({"plugin": "family", "kind": "parent", "input": {"n": n}});
    let body = json!({ "tasks": (0..count).map(task).collect::<Vec<_>>() });
    running.client.post_json("/v1/tasks", &body, None).unwrap().expect(&[201]).unwrap();
}

fn newest(running: &Running) -> String {
    let tasks = running.client.get("/v1/tasks?limit=1").unwrap().expect(&[200]).unwrap();
    tasks["tasks"][0]["id"].as_str().unwrap().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_of_a_busy_host_restores_and_its_age_is_told() {
    let mut running = Running::with_guests(&["family"]);
    let (data, copy) = (running.folder.path().join("data"), running.folder.path().join("copy"));
    submit_parents(&running, 300);
    db(&["backup", text(&copy), "--data-dir", text(&data)], 0);
    assert!(out(&db(&["check", "--data-dir", text(&copy)], 0)).contains("rules hold"));
    submit_parents(&running, 10);
    quiet(&running);
    let newest_before = newest(&running);
    assert!(running.stop().unwrap().success());
    db(&["check", "--data-dir", text(&data)], 0);

    for entry in fs::read_dir(&data).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("keiko.db") || name.starts_with("components.db") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    for name in ["keiko.db", "components.db"] {
        fs::copy(copy.join(name), data.join(name)).unwrap();
    }
    running.start_again().unwrap();
    let told = |running: &Running| {
        fs::read_to_string(running.log()).unwrap().matches("put back from a backup").count()
    };
    assert_eq!(told(&running), 1);
    quiet(&running);
    let tasks = running.client.list("", 1_000).unwrap();
    assert_eq!(tasks.len(), 900, "what came after the backup is gone, and nothing else");
    assert!(tasks.iter().all(|task| task["state"] == "completed"));
    submit_parents(&running, 1);
    assert!(newest(&running) > newest_before, "no number is given twice");
    quiet(&running);
    assert!(running.stop().unwrap().success());
    running.start_again().unwrap();
    assert_eq!(told(&running), 1, "told once");
    assert!(running.stop().unwrap().success());
    db(&["check", "--data-dir", text(&data)], 0);
}

fn on_postgres(folder: &Path, database: &Arc<Database>) -> Options {
    fs::create_dir_all(folder).unwrap();
    Options::in_folder(folder).unwrap().on(database)
}

#[test]
fn hosts_on_postgresql_share_tasks_and_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let database = Arc::new(Database::for_test().unwrap());
    let one_folder = folder.path().join("one");
    let mut one = Host::start(on_postgres(&one_folder, &database)).unwrap();
    let mut two = Host::start(on_postgres(&folder.path().join("two"), &database)).unwrap();
    one.client().install(&tree::guest("family").unwrap()).unwrap();
    let task = one.client().run("family", "parent", json!({"n": 1}), Value::Null).unwrap();
    assert_eq!(task["state"], "completed");
    let seen = two.client().task(task["id"].as_str().unwrap()).unwrap();
    assert_eq!((&seen["state"], &seen["result"]), (&task["state"], &task["result"]));

    let taken = Host::start(on_postgres(&one_folder, &database)).unwrap_err().to_string();
    assert!(taken.contains(&format!("in use by process {}", one.pid())), "{taken}");
    let data = one_folder.join("data");
    assert!(data.join("database.seen").is_file() && !data.join("keiko.db").exists());

    let status = || -> Value {
        serde_json::from_slice(&db(&["status", "--json", "--database", database.url()], 0).stdout).unwrap()
    };
    let now = status();
    assert_eq!((&now["engine"], now["holders"].as_array().unwrap().len()), (&json!("postgresql"), 2));
    db(&["check", "--database", database.url()], 0);
    assert!(one.stop().unwrap().success() && two.stop().unwrap().success());
    assert_eq!((&status()["holders"], &status()["tenants"][0]["live"]), (&json!([]), &json!(0)));
    let prune = |more: &[&str]| {
        let all = [&["prune", "--json", "--database", database.url()], more].concat();
        serde_json::from_slice::<Value>(&db(&all, 0).stdout).unwrap()["forgotten"].clone()
    };
    assert_eq!(prune(&[]), 0);
    // The three tasks, as if they were of 40 days ago: an id has the time in it.
    let days = "40::bigint * 24 * 60 * 60 * 1000";
    let older = format!("UPDATE finished SET id = id - (({days}) << 20), finished_ms = finished_ms - {days}");
    database.query(&older).unwrap();
    assert_eq!((prune(&["--completed-days", "50"]), prune(&["--completed-days", "0"])), (json!(0), json!(0)));
    assert_eq!((prune(&[]), prune(&[])), (json!(3), json!(0)));
    db(&["check", "--database", database.url()], 0);
    database.query("UPDATE tenant_count SET completed = completed + 1").unwrap();
    let broken: Value =
        serde_json::from_slice(&db(&["check", "--json", "--database", database.url()], 1).stdout).unwrap();
    assert_eq!(broken["rules_broken"], 1, "{broken}");
}

#[test]
fn an_empty_postgresql_is_migrated_by_hand() {
    let database = Database::for_test().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = ["--data-dir", text(folder.path()), "--database", database.url()];
    let run = |command: &str, status: i32| db(&[&[command], &place[..]].concat(), status);
    assert!(out(&run("status", 0)).contains("schema      0 "));
    run("check", 4);
    assert!(out(&run("migrate", 0)).starts_with("the schema was 0 and is "));
    assert!(out(&run("migrate", 0)).ends_with(" already\n"));
    run("check", 0);
}
