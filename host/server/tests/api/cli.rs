//! The command line, as processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use keiko_tests::Engine;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guest;
use crate::http::send;

/// The program with an environment of its own.
pub fn keiko(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keiko"));
    command.args(arguments).current_dir(folder).env_clear().env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

/// Runs the program to its end.
#[track_caller]
pub fn run(arguments: &[&str], folder: &Path, status: i32) -> Output {
    let output = keiko(arguments, folder).output().unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}\n{}{}", err(&output), out(&output));
    output
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `keiko serve` as a process.
pub struct Served {
    pub child: Child,
    pub folder: TempDir,
    pub server: String,
    /// Outlives the process.
    _engine: Engine,
}

impl Served {
    pub fn start(arguments: &[&str]) -> Served {
        Served::start_with(arguments, &[])
    }

    fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Served {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("guest.wasm"), guest::component("guest", "0.1.0")).unwrap();
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--workers", "1"];
        all.extend(arguments);
        let engine = Engine::of_this_run().unwrap();
        let mut command = keiko(&all, folder.path());
        let command =
            command.envs(engine.environment()).envs(environment.iter().copied()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.find(|line| line.as_ref().unwrap().contains("ready on ")).unwrap().unwrap();
        // Nobody reads the rest; a pipe that is full must not stop the host.
        let _drained = std::thread::Builder::new().spawn(move || lines.for_each(drop)).unwrap();
        let server = ready.split("ready on ").nth(1).unwrap().split(',').next().unwrap().to_owned();
        Served { child, folder, server, _engine: engine }
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str], status: i32) -> Output {
        let mut all = arguments.to_vec();
        all.extend(["--server", &self.server]);
        run(&all, self.folder.path(), status)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A test that ended it has nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_person_goes_from_a_plugin_to_a_result() {
    let served = Served::start(&[]);
    let installed = served.run(&["plugin", "install", "guest.wasm"], 0);
    assert!(out(&installed).starts_with("guest 0.1.0 sha256:"), "{}", out(&installed));
    let list = out(&served.run(&["plugin", "list"], 0));
    assert!(list.starts_with("NAME "), "{list}");
    assert!(list.contains("echo fail loop say odd"), "{list}");
    assert!(out(&served.run(&["plugin", "show", "guest"], 0)).contains("digest       sha256:"));
    let done =
        served.run(&["task", "submit", "--kind", "echo", "--input", r#"{"a": 1.0}"#, "--wait", "60"], 0);
    assert_eq!(out(&done), "{\"a\": 1.0}\n");
    assert!(err(&done).contains(" completed, attempt 1: "), "{}", err(&done));
    // An unescaped control character is neither JSON nor a file.
    served.run(&["task", "submit", "--kind", "say", "--input", "\"hi\u{1b}\""], 2);
}

#[test]
fn a_group_of_a_file_has_its_outcomes_in_order() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let file = served.folder.path().join("group.ndjson");
    let lines = "{\"kind\":\"echo\",\"input\":1}\n\n{\"kind\":\"fail\",\"input\":\"no\"}\n";
    std::fs::write(&file, lines).unwrap();
    let file = file.to_str().unwrap();
    let id = out(&served.run(&["group", "submit", file, "--live-max", "1"], 0)).trim().to_owned();
    let waited = out(&served.run(&["group", "wait", &id, "--timeout", "60"], 1));
    assert_eq!(waited, format!("{id} failed: 1 completed, 1 failed, 0 cancelled of 2\n"));
    let followed = served.run(&["group", "watch", &id, "--timeout", "60"], 1);
    assert_eq!((out(&followed), err(&followed)), (waited, String::new()), "it has ended");
    let outcomes = out(&served.run(&["group", "outcomes", &id], 0));
    let rows: Vec<&str> = outcomes.lines().collect();
    assert!(rows[1].starts_with("0 ") && rows[1].contains(" completed "), "{outcomes}");
    assert!(rows[2].starts_with("1 ") && rows[2].contains("plugin_failed: "), "{outcomes}");
    std::fs::write(file, "{\"kind\":\"echo\",\"delay_ms\":3600000}\n").unwrap();
    let id = out(&served.run(&["group", "submit", file], 0)).trim().to_owned();
    assert!(out(&served.run(&["group", "get", &id], 0)).contains(" open: 0 completed"));
    served.run(&["group", "wait", &id, "--timeout", "1"], 6);
    let followed = served.run(&["group", "watch", &id, "--timeout", "1", "--json"], 6);
    let event: Value = serde_json::from_str(&out(&followed)).unwrap();
    assert_eq!((&event["event"], &event["data"]["state"]), (&json!("state"), &json!("open")));
    assert!(out(&served.run(&["group", "cancel", &id], 0)).contains(" 1 cancelled of 1"));
    served.run(&["group", "get", "group_0000000000001"], 3);
    served.run(&["group", "watch", "group_0000000000001"], 3);
    served.run(&["group", "submit", "nowhere.ndjson"], 2);
}

#[test]
fn many_tasks_are_told_what_to_do_by_a_filter() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    for _ in 0..3 {
        served.run(&["task", "submit", "--kind", "echo", "--delay", "3600000"], 0);
    }
    served.run(&["task", "cancel"], 2);
    assert_eq!(out(&served.run(&["task", "cancel", "--kind", "echo"], 0)), "3 tasks\n");
    let again = served.run(&["task", "retry", "--state", "cancelled", "--plugin", "guest"], 0);
    assert_eq!(out(&again), "3 tasks\n");
    served.run(&["task", "retry", "--kind", "echo"], 3);
    let id =
        out(&served.run(&["task", "submit", "--kind", "echo", "--delay", "3600000"], 0)).trim().to_owned();
    served.run(&["task", "drop", &id], 3);
    served.run(&["task", "cancel", &id], 0);
    served.run(&["task", "drop", &id], 0);
    served.run(&["task", "get", &id], 3);
    let failed = served.run(&["task", "submit", "--kind", "fail", "--input", "1", "--wait", "60"], 1);
    let failed = err(&failed).split(' ').next().unwrap().to_owned();
    served.run(&["task", "retry", &failed, "--input", "\"two\"", "--attempts", "1"], 0);
    assert!(out(&served.run(&["task", "wait", &failed], 1)).contains("plugin_failed"));
    assert!(out(&served.run(&["task", "get", &failed], 0)).contains("plugin_failed: \"two\""));
    served.run(&["task", "retry", "--state", "failed", "--input", "2"], 2);
    served.run(&["task", "drop"], 2);
    assert_eq!(out(&served.run(&["task", "drop", "--state", "failed"], 0)), "1 tasks\n");
}

#[test]
fn a_person_goes_back_to_the_version_before() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let other = served.folder.path().join("other.wasm");
    std::fs::write(&other, guest::component("guest", "0.2.0")).unwrap();
    served.run(&["plugin", "install", "other.wasm"], 0);
    let back = out(&served.run(&["plugin", "rollback", "guest"], 0));
    assert!(back.starts_with("guest 0.1.0 sha256:") && back.ends_with(" generation 3\n"), "{back}");
    assert!(out(&served.run(&["plugin", "activate", "guest", "0.2.0"], 0)).starts_with("guest 0.2.0 "));
    served.run(&["plugin", "activate", "guest", "0.3.0"], 3);
    let history = out(&served.run(&["plugin", "history", "guest"], 0));
    let lines: Vec<&str> = history.lines().collect();
    assert_eq!(lines.len(), 5, "{history}");
    assert!(lines[1].starts_with("4 ") && lines[1].contains(" activate "), "{history}");
    assert!(lines[0].contains(" PROFILE ") && lines[1].contains(" strict "), "{history}");
    assert!(out(&served.run(&["plugin", "show", "guest"], 0)).contains("profile      strict"));
    let page = served.run(&["plugin", "history", "guest", "--limit", "2", "--before", "4"], 0);
    assert!(out(&page).lines().nth(1).unwrap().contains(" rollback "), "{}", out(&page));
    assert!(err(&page).contains("there are more: --before 2"), "{}", err(&page));
    served.run(&["task", "submit", "--kind", "echo", "--delay", "3600000"], 0);
    let waits = served.run(&["plugin", "remove", "guest", "--when-drained"], 0);
    assert!(err(&waits).contains("guest goes when 1 tasks have ended"), "{}", err(&waits));
    assert!(out(&served.run(&["plugin", "show", "guest"], 0)).contains("draining     goes when"));
    let refused = served.folder.path().join("refused.wasm");
    std::fs::write(&refused, b"\0asm").unwrap();
    let refused = served.run(&["plugin", "install", "refused.wasm"], 3);
    assert!(err(&refused).contains("(component_invalid, at the stage scan, request "), "{}", err(&refused));
}

#[test]
fn a_person_lets_a_part_of_the_tasks_try_a_version() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let other = served.folder.path().join("other.wasm");
    std::fs::write(&other, guest::component("guest", "0.2.0")).unwrap();
    served.run(&["plugin", "install", "other.wasm", "--canary", "ten"], 2);
    served.run(&["plugin", "install", "other.wasm", "--canary", "51%"], 3);
    let begun = out(&served.run(&["plugin", "install", "other.wasm", "--canary", "10%"], 0));
    assert!(
        begun.starts_with("guest 0.2.0 sha256:") && begun.ends_with(" canary of 10 % (trying)\n"),
        "{begun}"
    );
    let shown = out(&served.run(&["plugin", "show", "guest"], 0));
    assert!(
        shown.contains("canary       0.2.0, 10 % of tasks and batches (trying), profile strict"),
        "{shown}"
    );
    let stands = out(&served.run(&["plugin", "canary", "guest"], 0));
    assert!(stands.contains("state        trying") && stands.contains("PLUGIN FAILED"), "{stands}");
    served.run(&["plugin", "canary", "guest", "--withdraw"], 0);
    served.run(&["plugin", "canary", "guest", "--withdraw"], 3);
    let again = out(&served.run(&["plugin", "activate", "guest", "0.2.0", "--canary", "50"], 0));
    assert!(again.starts_with("guest 0.1.0 ") && again.contains(" canary of 50 % (trying)"), "{again}");
    assert!(out(&served.run(&["plugin", "activate", "guest", "0.2.0"], 0)).starts_with("guest 0.2.0 "));
    assert!(out(&served.run(&["plugin", "canary", "guest"], 0)).contains("state        ended"));
}

#[test]
fn exit_statuses_tell_what_happened() {
    let served = Served::start(&[]);
    served.run(&["task", "submit", "--kind", "echo"], 3);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    served.run(&["plugin", "install", "nowhere.wasm"], 2);
    let failed = served.run(&["task", "submit", "--kind", "fail", "--input", "\"why\"", "--wait", "60"], 1);
    assert!(err(&failed).contains("plugin_failed: \"why\""), "{}", err(&failed));
    let failed = err(&failed).split_whitespace().next().unwrap().to_owned();
    served.run(&["task", "wait", &failed], 1);
    served.run(&["task", "retry", &failed], 0);
    served.run(&["task", "get", "task_0000000000001"], 3);
    let late = served.run(&["task", "submit", "--kind", "echo", "--delay", "3600000", "--wait", "1"], 6);
    let late = err(&late).split_whitespace().next().unwrap().to_owned();
    served.run(&["task", "wait", &late, "--timeout", "1"], 6);
    assert_eq!(out(&served.run(&["task", "cancel", &late], 0)), format!("{late} cancelled\n"));
    served.run(&["task", "wait", &late], 1);
    served.run(&["plugin", "remove", "guest"], 0);
    served.run(&["plugin", "remove", "guest"], 3);
    let folder = served.folder.path();
    run(&["task", "list", "--server", "http://127.0.0.1:1"], folder, 4);
    run(&["task", "list", "--server", "https://example.com"], folder, 2);
    run(&["task", "list", "--nothing"], folder, 2);
    run(&["serve", "--listen", "0.0.0.0:0"], folder, 2);
    assert!(err(&run(&["serve", "--listen", "0.0.0.0:0"], folder, 2)).contains("no tenant has a token"));
    assert!(err(&run(&["serve"], folder, 4)).contains("keiko:"), "the data folder is in use");
}

#[test]
fn json_is_the_hosts_own() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm", "--json"], 0);
    let data = served.folder.path().join("data");
    let address: std::net::SocketAddr =
        std::fs::read_to_string(data.join("keiko.address")).unwrap().trim().parse().unwrap();
    let same = |arguments: &[&str], path: &str| {
        let printed = out(&served.run(arguments, 0));
        let answer = send(address, "GET", path, &[], b"").expect(200).text();
        assert_eq!(printed, format!("{answer}\n"));
        printed
    };
    let done = served.run(&["task", "submit", "--kind", "say", "--wait", "60", "--json"], 0);
    let done: Value = serde_json::from_str(&out(&done)).unwrap();
    let id = done["id"].as_str().unwrap();
    same(&["task", "get", id, "--json"], &format!("/v1/tasks/{id}"));
    same(&["task", "logs", id, "--json"], &format!("/v1/tasks/{id}/logs"));
    same(
        &["task", "list", "--json", "--state", "completed", "--limit", "5"],
        "/v1/tasks?state=completed&limit=5",
    );
    same(&["plugin", "list", "--json"], "/v1/plugins");
    same(&["plugin", "show", "guest", "--json"], "/v1/plugins/guest");
    let by_folder = run(&["task", "list", "--data-dir", "data"], served.folder.path(), 0);
    assert!(out(&by_folder).contains(id), "{}", out(&by_folder));
    assert!(out(&served.run(&["task", "logs", id], 0)).contains("warn"));
    assert!(out(&served.run(&["task", "get", id], 0)).contains("state      completed"));
}

#[test]
fn a_file_of_tasks_becomes_few_requests() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let folder = served.folder.path();
    std::fs::write(folder.join("inputs.ndjson"), "{\"n\":1}\n\n2\n").unwrap();
    std::fs::write(folder.join("tasks.ndjson"), "{\"kind\":\"echo\",\"input\":[3]}\n").unwrap();
    let mut ids = out(&served.run(&["task", "submit", "--kind", "echo", "--file", "inputs.ndjson"], 0));
    ids.push_str(&out(&served.run(&["task", "submit", "--file", "tasks.ndjson", "--key", "k"], 0)));
    let ids: Vec<&str> = ids.lines().collect();
    let again = out(&served.run(&["task", "submit", "--file", "tasks.ndjson", "--key", "k"], 0));
    assert_eq!((ids.len(), again.trim()), (3, ids[2]));
    let mut wait = vec!["task", "wait"];
    wait.extend(&ids);
    served.run(&wait, 0);
    let result = |id: &str| -> Value {
        let task: Value = serde_json::from_str(&out(&served.run(&["task", "get", id, "--json"], 0))).unwrap();
        task["result"].clone()
    };
    assert_eq!([result(ids[0]), result(ids[1]), result(ids[2])], [json!({"n": 1}), json!(2), json!([3])]);
    std::fs::write(folder.join("bad.ndjson"), "1\n{\n").unwrap();
    let bad = served.run(&["task", "submit", "--kind", "echo", "--file", "bad.ndjson"], 2);
    assert!(err(&bad).contains("line 2: not JSON"), "{}", err(&bad));
}

#[test]
fn a_run_needs_no_host() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("guest.wasm"), guest::component("guest", "0.1.0")).unwrap();
    std::fs::write(folder.join("bare.wasm"), guest::bare()).unwrap();
    std::fs::write(folder.join("none.wasm"), "none").unwrap();
    let done = run(&["run", "guest.wasm", "--kind", "say", "--input", "[1, 2]"], folder, 0);
    assert_eq!(out(&done), "[1, 2]\n");
    for part in ["warn  [1, 2]", "completed in ", " fuel, ", "host calls, pure"] {
        assert!(err(&done).contains(part), "{part} is not in {}", err(&done));
    }
    let failed = run(&["run", "guest.wasm", "--kind", "fail", "--input", "\"why\""], folder, 1);
    assert!(err(&failed).contains("plugin_failed: \"why\""), "{}", err(&failed));
    let stopped = run(&["run", "guest.wasm", "--kind", "loop", "--fuel", "100000"], folder, 5);
    assert!(err(&stopped).contains("fuel_exhausted"), "{}", err(&stopped));
    run(&["run", "guest.wasm", "--kind", "loop", "--fuel", "100000000000", "--timeout", "1"], folder, 5);
    assert!(err(&run(&["run", "guest.wasm"], folder, 2)).contains("echo, fail, loop, say, odd"));
    assert!(
        err(&run(&["run", "guest.wasm", "--kind", "none"], folder, 2)).contains("there is no kind `none`")
    );
    assert!(err(&run(&["run", "bare.wasm"], folder, 2)).contains("carries no manifest"));
    run(&["run", "bare.wasm", "--kind", "echo"], folder, 0);
    run(&["run", "guest.wasm", "--kind", "echo", "--memory", "1025"], folder, 2);
    assert!(err(&run(&["run", "none.wasm", "--kind", "echo"], folder, 3)).contains("component_invalid"));
    run(&["run", "nowhere.wasm", "--kind", "echo"], folder, 2);
    let json = run(&["run", "guest.wasm", "--kind", "echo", "--input", "[1]", "--json"], folder, 0);
    let report: Value = serde_json::from_str(&out(&json)).unwrap();
    assert_eq!(
        (&report["state"], &report["result"], &report["pure"]),
        (&json!("completed"), &json!([1]), &json!(true))
    );
    assert!(folder.join("cache/keiko/artifacts").is_dir(), "what was compiled is kept");
}

#[test]
fn a_run_fetches_an_installed_plugin() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let done = served.run(&["run", "guest", "--here", "--kind", "echo", "--input", "7"], 0);
    assert_eq!(out(&done), "7\n");
    assert!(err(&done).starts_with("guest 0.1.0 sha256:"), "{}", err(&done));
    served.run(&["run", "other", "--here", "--kind", "echo"], 3);
    let tasks = out(&served.run(&["task", "list", "--json"], 0));
    assert_eq!(tasks, "{\"tasks\":[]}\n", "a run is no task");
}

#[test]
fn a_run_on_a_host_is_bound_by_its_policy_and_kept_nowhere() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let done = served.run(&["run", "guest", "--kind", "say", "--input", "[1,  2]"], 0);
    assert_eq!(out(&done), "[1,  2]\n");
    assert!(err(&done).contains("warn  [1,  2]") && err(&done).contains("completed in"), "{}", err(&done));
    let failed = served.run(&["run", "guest", "--kind", "fail", "--input", "\"why\""], 1);
    assert!(err(&failed).contains("plugin_failed: \"why\""), "{}", err(&failed));
    served.run(&["run", "guest", "--kind", "loop", "--fuel", "100000"], 5);
    let json = served.run(&["run", "guest", "--kind", "echo", "--input", "[1]", "--json"], 0);
    assert_eq!(serde_json::from_str::<Value>(&out(&json)).unwrap()["result"], json!([1]));
    assert!(err(&served.run(&["run", "guest.wasm", "--kind", "echo"], 2)).contains("install the file first"));
    served.run(&["run", "guest", "--kind", "echo", "--setting", "a=b"], 2);
    served.run(&["run", "other", "--kind", "echo"], 3);
    served.run(&["run", "guest", "--kind", "echo", "--timeout", "61"], 3);
    assert_eq!(out(&served.run(&["task", "list", "--json"], 0)), "{\"tasks\":[]}\n", "a run is no task");
}

#[test]
fn a_load_says_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |more: &[&str]| {
        let arguments = [&["bench", "--json", "--duration", "1"], more].concat();
        serde_json::from_str::<Value>(&out(&run(&arguments, folder.path(), 0))).unwrap()
    };
    let bulk = bench(&["--tasks", "205", "--batch", "100", "--tenants", "2", "--workers", "1"]);
    assert_eq!(
        (&bulk["completed"], &bulk["failed"], &bulk["tenants"]),
        (&json!(205), &json!(0), &json!(2)),
        "{bulk}"
    );
    assert!(
        bulk["cpu_us"].as_f64().unwrap() > 0.0 && bulk["submits_per_second"].as_f64().unwrap() > 0.0,
        "{bulk}"
    );
    let rate = bench(&["--rate", "20", "--payload", "1000"]);
    assert_eq!((&rate["completed"], &rate["failed"]), (&json!(20), &json!(0)), "{rate}");
    let counted =
        rate["histogram"].as_array().unwrap().iter().map(|bucket| bucket[1].as_u64().unwrap()).sum::<u64>();
    assert!(
        counted == 20 && rate["latency_us"]["p50"].as_u64() <= rate["latency_us"]["maximum"].as_u64(),
        "{rate}"
    );
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let runs = bench(&[
        "--lane",
        "run",
        "--connections",
        "2",
        "--plugin",
        "guest",
        "--kind",
        "echo",
        "--server",
        &served.server,
    ]);
    assert!(runs["completed"].as_u64().unwrap() > 0 && runs["failed"] == 0, "{runs}");
    assert_eq!((&runs["own_host"], &runs["plugin"]), (&json!(false), &json!("guest")));
    let failing = ["bench", "--lane", "run", "--duration", "1", "--plugin", "guest", "--kind", "fail"];
    assert!(out(&served.run(&failing, 1)).contains("completed, failed      0, "));
    run(&["bench", "--server", "http://127.0.0.1:1"], folder.path(), 4);
    run(&["bench", "--server", "127.0.0.1"], folder.path(), 2);
    run(&["bench", "--batch", "10001"], folder.path(), 2);
}

#[test]
fn the_first_signal_drains_and_the_second_ends() {
    let mut served = Served::start(&["--data-dir", "d"]);
    assert!(served.folder.path().join("d/keiko.address").is_file());
    served.signal(Signal::TERM);
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
    assert!(!served.folder.path().join("d/keiko.address").exists());
    let mut served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    served.run(
        &["task", "submit", "--kind", "loop", "--fuel", "100000000000", "--timeout", "600", "--wait", "1"],
        6,
    );
    let address = served.server.trim_start_matches("http://").parse().unwrap();
    served.signal(Signal::INT);
    assert!((0..100_000).any(|_| send(address, "GET", "/readyz", &[], b"").status == 503));
    served.signal(Signal::INT);
    assert_eq!(served.child.wait().unwrap().code(), Some(1));
}

#[test]
fn settings_are_shown_with_their_origin() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("keiko.toml"), "[host]\nreaders = 3\n").unwrap();
    let output = keiko(&["config", "--json", "--workers", "2"], folder)
        .env("KEIKO_HOST__DRAIN_S", "9")
        .output()
        .unwrap();
    let settings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |path: &str| {
        let all = settings["settings"].as_array().unwrap();
        let entry = all.iter().find(|entry| entry["path"] == path).unwrap();
        (entry["value"].clone(), entry["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("host.readers"), (json!(3), "keiko.toml:2".to_owned()));
    assert_eq!(of("host.drain_s"), (json!(9), "KEIKO_HOST__DRAIN_S".to_owned()));
    assert_eq!(of("host.workers"), (json!(2), "--workers".to_owned()));
    assert_eq!(of("host.running_max"), (json!(100), "default".to_owned()));
    assert!(out(&run(&["config"], folder, 0)).contains("keiko.toml:2"));
    std::fs::write(folder.join("keiko.toml"), "[host]\nreaders = 0\nworker = 1\n").unwrap();
    let wrong = err(&run(&["config"], folder, 2));
    assert!(wrong.contains("2 mistakes") && wrong.contains("did you mean `workers`?"), "{wrong}");
}

#[test]
fn a_token_opens_a_host_that_asks_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(&["token", "hash", "--name", "laptop"], folder.path(), 0);
    let (line, notes) = (out(&made), err(&made));
    let token = notes.lines().find(|line| line.starts_with("keiko_")).unwrap();
    assert!(line.starts_with("{ id = \"") && line.contains("name = \"laptop\""), "{line}");
    let mut again = keiko(&["token", "hash", "--stdin", "--name", "laptop"], folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    again.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let mut same = String::new();
    again.stdout.take().unwrap().read_to_string(&mut same).unwrap();
    assert!(again.wait().unwrap().success());
    assert_eq!(same, line);
    let file = folder.path().join("keiko.toml");
    std::fs::write(&file, format!("[tenants.acme]\ntokens = [{}]\n", line.trim())).unwrap();
    let served = Served::start(&["--config", file.to_str().unwrap()]);
    served.run(&["plugin", "list"], 3);
    served.run(&["plugin", "list", "--token", token], 0);
}

#[test]
fn a_given_cluster_key_takes_the_place_of_the_folders_own() {
    let key = "0123456789abcdef".repeat(4);
    let served = Served::start_with(&[], &[("KEIKO_CLUSTER_KEY", &key)]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let data = served.folder.path().join("data");
    assert!(data.join("artifacts").is_dir() && !data.join("cluster.key").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(&data.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    let wrong = keiko(&["serve"], served.folder.path()).env("KEIKO_CLUSTER_KEY", &key[1..]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let text = err(&wrong);
    assert!(text.contains("KEIKO_CLUSTER_KEY") && !text.contains("0123456789"), "{text}");
}

#[test]
fn a_person_follows_an_agents_work_for_a_user() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    let made = out(&served.run(&["agent", "create", "Ada", "Ben", "--kind", "writer"], 0));
    let (ada, ben) = made.trim().split_once('\n').unwrap();
    let user = out(&served.run(&["user", "create", "Ann"], 0));
    let user = user.trim();
    let named = ["--agent", ada, "--user", user, "--wait", "60"];
    let submit = |kind: &str, status| {
        let mut all = vec!["task", "submit", "--kind", kind, "--input", "\"why\""];
        all.extend(named);
        served.run(&all, status)
    };
    submit("echo", 0);
    submit("fail", 1);
    let shown = out(&served.run(&["agent", "show", ada], 0));
    for part in ["name       Ada", "tasks      2", "failed     1", "success    50.0 %"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    served.run(&["agent", "status", "paused", ada, ben], 0);
    let paused = out(&served.run(&["agent", "list", "--status", "paused"], 0));
    assert!(paused.starts_with("ID ") && paused.lines().count() == 3, "{paused}");
    let first = served.run(&["agent", "list", "--limit", "1"], 0);
    assert!(err(&first).contains(&format!("--before {ben}")), "{}", err(&first));
    let changed = out(&served.run(&["agent", "update", ben, "--name", "Cem", "--status", "retired"], 0));
    assert!(changed.contains("Cem") && changed.contains("retired"), "{changed}");
    let tasks = out(&served.run(&["user", "tasks", user], 0));
    assert!(tasks.contains("Ada") && tasks.contains("\"why\"") && tasks.contains("plugin_failed"), "{tasks}");
    assert!(out(&served.run(&["user", "list"], 0)).contains("Ann"));
    assert!(out(&served.run(&["user", "show", user], 0)).contains("name       Ann"));
    let of_agent = out(&served.run(&["task", "list", "--agent", ada, "--user", user], 0));
    assert_eq!(of_agent.lines().count(), 3, "{of_agent}");
    assert_eq!(out(&served.run(&["task", "list", "--agent", ben], 0)).lines().count(), 1);
    let stats = served.run(&["stats"], 0);
    assert!(out(&stats).lines().count() == 3 && out(&stats).contains("failed"), "{}", out(&stats));
    assert!(err(&stats).contains("submitted from "), "{}", err(&stats));
    // For programs it is the host's own.
    let json: Value = serde_json::from_str(&out(&served.run(&["agent", "show", ada, "--json"], 0))).unwrap();
    assert_eq!((&json["status"], &json["tasks"]["total"]), (&json!("paused"), &json!(2)));
    let json: Value = serde_json::from_str(&out(&served.run(&["stats", "--json"], 0))).unwrap();
    assert_eq!(json["statistics"].as_array().unwrap().len(), 2);
}

#[test]
fn what_the_host_refuses_of_agents_and_users_is_told() {
    let served = Served::start(&[]);
    let nobody = "agent_0000000000001";
    let refused = served.run(&["agent", "status", "active", nobody], 3);
    assert!(err(&refused).contains(nobody) && err(&refused).contains("not_found"), "{}", err(&refused));
    served.run(&["agent", "show", nobody], 3);
    served.run(&["agent", "create", "Ada", "--kind", "A B"], 3);
    served.run(&["agent", "create", "--kind", "writer"], 2);
    served.run(&["agent", "update", nobody], 2);
    served.run(&["agent", "status", "busy", nobody], 2);
    served.run(&["user", "tasks", "user_0000000000001"], 3);
    served.run(&["stats", "--from", "yesterday"], 3);
}
