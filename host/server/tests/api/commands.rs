//! What the command line does with schedules, keys, streams, events and components, as processes.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::cli::{Served, err, keiko, out, run};
use crate::guest;
use crate::world::tenant;

fn served() -> Served {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    served
}

/// The JSON that a command prints.
#[track_caller]
fn shown(served: &Served, arguments: &[&str]) -> Value {
    let all = [arguments, &["--json"]].concat();
    serde_json::from_str(&out(&served.run(&all, 0))).unwrap()
}

#[test]
fn a_person_makes_a_schedule_pauses_it_and_takes_it_away() {
    let served = served();
    let create = ["schedule", "create", "nightly", "--cron", "30 2 * * *", "--zone", "Europe/Berlin"];
    let task = ["--kind", "echo", "--input", "[1]", "--missed", "run_once", "--overlap", "skip"];
    let made = out(&served.run(&[&create[..], &task].concat(), 0));
    assert!(made.lines().nth(1).unwrap().starts_with("nightly "), "{made}");
    let known = shown(&served, &["schedule", "get", "nightly"]);
    assert_eq!((&known["zone"], &known["missed"]), (&json!("Europe/Berlin"), &json!("run_once")));
    assert_eq!(known["task"], json!({"kind": "echo", "input": [1], "priority": 0}));
    let next = known["next_at"].as_str().unwrap().to_owned();
    assert!(out(&served.run(&["schedule", "get", "nightly"], 0)).contains(&next));
    served.run(&[&create[..], &task].concat(), 3);
    served.run(&["schedule", "pause", "nightly"], 0);
    assert_eq!(shown(&served, &["schedule", "get", "nightly"]).get("next_at"), None);
    served.run(&["schedule", "resume", "nightly"], 0);
    assert_eq!(shown(&served, &["schedule", "get", "nightly"])["next_at"], json!(next));

    let whole = r#"{"kind":"echo","priority":3,"concurrency_key":"k","attempts":2}"#;
    let second = ["schedule", "create", "often", "--cron", "@hourly", "--paused", "--task", whole];
    served.run(&second, 0);
    let often = shown(&served, &["schedule", "get", "often"]);
    let (key, limits) = (&often["task"]["concurrency_key"], &often["task"]["limits"]);
    assert_eq!((key, limits), (&json!("k"), &json!({"attempts": 2})));
    let page = served.run(&["schedule", "list", "--limit", "1"], 0);
    let (table, note) = (out(&page), err(&page));
    assert!(table.contains("nightly") && !table.contains("often"), "{table}");
    assert!(note.contains("--after nightly"), "{note}");
    assert!(out(&served.run(&["schedule", "list", "--after", "nightly"], 0)).contains("often"));
    served.run(&["schedule", "remove", "nightly"], 0);
    served.run(&["schedule", "get", "nightly"], 3);
    served.run(&["schedule", "remove", "nightly"], 3);
    let wrong = served.run(&["schedule", "create", "bad", "--cron", "61 * * * *", "--kind", "echo"], 3);
    assert!(err(&wrong).contains("`cron`: "), "{}", err(&wrong));
    served.run(&["schedule", "create", "bad", "--cron", "@daily", "--kind", "echo", "--task", "{}"], 2);
}

#[test]
fn what_a_task_is_given_is_printed_as_it_is_until_it_completes() {
    let served = served();
    let submit = |kind: &str| {
        let all = ["task", "submit", "--kind", kind, "--input", r#"{"a": 1.0}"#, "--fuel", "100000000"];
        out(&served.run(&[&all[..], &["--concurrency-key", "k"]].concat(), 0)).trim().to_owned()
    };
    let failed = submit("fail");
    served.run(&["task", "wait", &failed, "--timeout", "60"], 1);
    assert_eq!(out(&served.run(&["task", "input", &failed], 0)), r#"{"a": 1.0}"#);
    assert_eq!(shown(&served, &["task", "input", &failed]), json!({"a": 1.0}));
    let told = out(&served.run(&["task", "get", &failed], 0));
    assert!(told.contains("key        k\n") && told.contains("limits     fuel 100000000\n"), "{told}");
    let done = submit("echo");
    served.run(&["task", "wait", &done, "--timeout", "60"], 0);
    let refused = served.run(&["task", "input", &done], 3);
    assert!(err(&refused).contains("it has completed (not_found"), "{}", err(&refused));
}

#[test]
fn tasks_with_one_concurrency_key_go_one_after_the_other() {
    let served = served();
    let submit = |fuel: &str| {
        let all = ["task", "submit", "--kind", "loop", "--fuel", fuel, "--concurrency-key", "k"];
        out(&served.run(&all, 0)).trim().to_owned()
    };
    let first = submit("100000000000");
    let state = |id: &str| shown(&served, &["task", "get", id])["state"].as_str().unwrap().to_owned();
    while state(&first) == "pending" {}
    let second = submit("1000000");
    served.run(&["task", "wait", &second, "--timeout", "1"], 6);
    assert_eq!((state(&first), state(&second)), ("running".to_owned(), "pending".to_owned()));
    served.run(&["task", "cancel", &first], 0);
    assert!(out(&served.run(&["task", "wait", &second, "--timeout", "60"], 1)).contains("fuel_exhausted"));
    let long = "k".repeat(256);
    let refused = served.run(&["task", "submit", "--kind", "echo", "--concurrency-key", &long], 3);
    assert!(err(&refused).contains("`concurrency_key`"), "{}", err(&refused));
}

#[test]
fn a_retry_by_hand_changes_time_outs_and_when_to_try_again() {
    let served = served();
    let submit = ["task", "submit", "--kind", "fail", "--input", "\"no\"", "--attempts", "1"];
    let id = out(&served.run(&submit, 0)).trim().to_owned();
    served.run(&["task", "wait", &id, "--timeout", "60"], 1);
    // The whole task is over before its second attempt would be due.
    let retry = r#"{"first_ms":86400000,"jitter_percent":0,"codes":["plugin_failed"]}"#;
    let change = ["--attempts", "2", "--total-timeout", "1", "--queued-timeout", "60", "--retry", retry];
    served.run(&[&["task", "retry", &id], &change[..]].concat(), 0);
    let ended = served.run(&["task", "wait", &id, "--timeout", "60"], 1);
    assert!(out(&ended).contains("failed"), "{}", out(&ended));
    served.run(&["task", "retry", &id, "--retry", "{}x"], 2);
    served.run(&["task", "retry", "--state", "failed", "--total-timeout", "1"], 2);
}

#[test]
fn a_debounced_task_waits_no_longer_than_it_may() {
    let served = served();
    let submit = |input: &str| {
        let all =
            ["task", "submit", "--kind", "echo", "--input", input, "--debounce", "k", "--every", "3600000"];
        out(&served.run(&[&all[..], &["--within", "1"]].concat(), 0)).trim().to_owned()
    };
    let first = submit("1");
    let waited = served.run(&["task", "wait", &first, "--timeout", "60"], 0);
    assert!(out(&waited).contains("completed"), "{}", out(&waited));
    served.run(&["task", "submit", "--kind", "echo", "--unique", "k", "--within", "1"], 2);
}

#[test]
fn a_person_follows_a_task_to_its_end() {
    let served = served();
    let id = out(&served.run(&["task", "submit", "--kind", "echo", "--input", "[7]"], 0));
    let followed = served.run(&["task", "watch", id.trim(), "--timeout", "60"], 0);
    let (result, notes) = (out(&followed), err(&followed));
    assert_eq!(result, "[7]\n", "its result alone");
    assert!(notes.contains(&format!("{} completed, attempt 1: ", id.trim())), "{notes}");
    let lines = out(&served.run(&["task", "watch", id.trim(), "--json"], 0));
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["data"]["state"]), (&json!("end"), &json!("completed")));

    let failed = out(&served.run(&["task", "submit", "--kind", "fail", "--input", "\"no\""], 0));
    assert!(err(&served.run(&["task", "watch", failed.trim()], 1)).contains("plugin_failed: "));
    let waits = out(&served.run(&["task", "submit", "--kind", "echo", "--delay", "3600000"], 0));
    let waited = served.run(&["task", "watch", waits.trim(), "--timeout", "1"], 6);
    assert_eq!(err(&waited), format!("{} pending\n", waits.trim()));
    served.run(&["task", "watch", "task_0000000000001"], 3);
    served.run(&["task", "watch", "nonsense"], 3);
}

#[test]
fn a_person_names_tasks_by_their_root_their_group_and_their_times() {
    let served = served();
    let file = served.folder.path().join("group.ndjson");
    std::fs::write(&file, "{\"kind\":\"echo\",\"delay_ms\":3600000}\n".repeat(2)).unwrap();
    let group = out(&served.run(&["group", "submit", file.to_str().unwrap()], 0)).trim().to_owned();
    let alone = out(&served.run(&["task", "submit", "--kind", "echo", "--delay", "3600000"], 0));
    let alone = alone.trim();
    let changed = |arguments: &[&str]| out(&served.run(&[&["task"], arguments].concat(), 0));
    assert_eq!(changed(&["cancel", "--root", alone, "--created-to", "2020-01-01T00:00:00Z"]), "0 tasks\n");
    assert_eq!(changed(&["cancel", "--group", &group]), "2 tasks\n");
    assert_eq!(changed(&["cancel", "--root", alone]), "1 tasks\n");
    let created = shown(&served, &["task", "get", alone])["created_at"].as_str().unwrap().to_owned();
    let list = changed(&["list", "--state", "cancelled", "--finished-from", &created]);
    assert_eq!(list.lines().count(), 4, "{list}");
    assert_eq!(changed(&["retry", "--state", "cancelled", "--finished-from", &created]), "3 tasks\n");
    let wrong = served.run(&["task", "cancel", "--created-from", "yesterday"], 3);
    assert!(err(&wrong).contains("created_from: "), "{}", err(&wrong));
    served.run(&["task", "cancel"], 2);
}

#[test]
fn a_stream_of_tasks_is_answered_as_it_comes_and_says_what_was_refused() {
    let served = served();
    let arguments = ["task", "submit", "--stream", "-", "--server", &served.server];
    let mut child = keiko(&arguments, served.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    stdin.write_all(b"{\"kind\":\"echo\",\"idempotency_key\":\"k\"}\n").unwrap();
    // Answered while the next one has not been written yet.
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("task_"), "{first}");
    stdin.write_all(b"\nnonsense\n{\"kind\":\"echo\",\"idempotency_key\":\"k\"}").unwrap();
    drop(stdin);
    assert_eq!(lines.next().unwrap().unwrap(), first, "the same by its key");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    assert!(
        err(&output).contains("line 3: ") && err(&output).ends_with("2 accepted, 1 refused\n"),
        "{}",
        err(&output)
    );

    // More than goes at a time, from a file.
    let file = served.folder.path().join("tasks.ndjson");
    std::fs::write(&file, "{\"kind\":\"echo\"}\n".repeat(450) + "{\"kind\":\"nothing\"}\n").unwrap();
    let file = file.to_str().unwrap();
    let sent = served.run(&["task", "submit", "--stream", file, "--json"], 3);
    let answers: Vec<Value> = out(&sent).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<u64> = answers.iter().map(|answer| answer["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=451).collect::<Vec<_>>());
    assert_eq!((answers[449]["id"].is_string(), &answers[450]["code"]), (true, &json!("not_found")));
    served.run(&["task", "submit", "--stream", file, "--kind", "echo"], 2);
    served.run(&["task", "submit", "--stream", "nowhere.ndjson"], 2);
}

#[test]
#[cfg(target_os = "linux")]
fn a_host_does_not_start_on_processors_that_it_may_not_use() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--worker-cores", "1023"];
    let wrong = run(&arguments, folder.path(), 2);
    assert!(err(&wrong).contains("may not use processor 1023"), "{}", err(&wrong));
    let shown = run(&["config", "--json", "--worker-cores", "0-1"], folder.path(), 0);
    let settings: Value = serde_json::from_str(&out(&shown)).unwrap();
    let of = |path: &str| {
        let all = settings["settings"].as_array().unwrap();
        all.iter().find(|entry| entry["path"] == path).unwrap()["value"].clone()
    };
    let names = ["workers", "worker_cores", "blocking_per_worker", "blocking_max"];
    let values = names.map(|name| of(&format!("host.{name}")));
    assert_eq!(values, [json!(2), json!("0-1"), json!(4), json!(64)]);
    let served = Served::start(&["--worker-cores", "all"]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    served.run(&["task", "submit", "--kind", "echo", "--wait", "60"], 0);
}

#[test]
fn an_inspection_refuses_what_an_install_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let told = |arguments: &[&str], status| -> Value {
        let all = [&["inspect", "--json"], arguments].concat();
        serde_json::from_slice(&run(&all, folder.path(), status).stdout).unwrap()
    };
    write("bare.wasm", &guest::bare());
    // What the manifest names has to be there, as at the install.
    write(
        "both.toml",
        format!("{}[[processor]]\nname = \"sink\"\n", guest::manifest("beside", "1")).as_bytes(),
    );
    assert_eq!(
        told(&["bare.wasm", "--manifest", "both.toml"], 3)["refused"],
        json!([
            "the manifest names processors, and the component does not export `keiko:plugin/batch@0.1.0`"
        ])
    );
    // It has to start with the memory that an attempt has without asking, or with what its own manifest asks for.
    let pages = "(module (memory (export \"memory\") 1025) (func (export \"_start\")))";
    write("large.wasm", &wat::parse_str(pages).unwrap());
    write("small.toml", b"[plugin]\nname = \"large\"\nversion = \"1\"\n[[kind]]\nname = \"run\"\n");
    assert_eq!(
        told(&["large.wasm", "--manifest", "small.toml"], 3)["refused"],
        json!(["67174400 exceeds the limit `memory_bytes` of 67108864"])
    );
}

#[test]
fn a_component_is_inspected_without_a_host() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("guest.wasm", &guest::component("guest", "0.1.0"));
    let shown = out(&run(&["inspect", "guest.wasm"], folder.path(), 0));
    for line in [
        "world        keiko:plugin/task-plugin",
        "profile      strict",
        "plugin       guest 0.1.0",
        "kinds        echo, fail, loop, say, odd",
        "memory       64.0 KiB at least",
        "exports      keiko:plugin/task@0.1.0",
        "keiko:log/log@0.1.0       log",
    ] {
        assert!(shown.lines().any(|shown| shown.starts_with(line)), "{line} in\n{shown}");
    }
    let told = |arguments: &[&str], status| -> Value {
        let all = [&["inspect", "--json"], arguments].concat();
        serde_json::from_slice(&run(&all, folder.path(), status).stdout).unwrap()
    };
    let guest = told(&["guest.wasm"], 0);
    assert_eq!(
        (&guest["kinds"][0], &guest["refused"], &guest["denied"]),
        (&json!("echo"), &json!([]), &json!([]))
    );
    let log = json!({"name": "keiko:log/log@0.1.0", "need": "grant", "grant": "log"});
    assert!(guest["imports"].as_array().unwrap().contains(&log), "{guest}");
    // A manifest beside it counts as one inside would.
    write("bare.wasm", &guest::bare());
    assert_eq!(
        told(&["bare.wasm"], 3)["refused"],
        json!(["it carries no manifest, and none was given beside it"])
    );
    write("plugin.toml", guest::manifest("beside", "1").as_bytes());
    let beside = told(&["bare.wasm", "--manifest", "plugin.toml"], 0);
    assert_eq!((&beside["name"], &beside["random_seeded"]), (&json!("beside"), &json!([])));
    let seeded = guest::manifest("beside", "1").replacen("[[kind]]", "[[kind]]\nrandom = \"seeded\"", 1);
    write("seeded.toml", seeded.as_bytes());
    let arguments = ["bare.wasm", "--manifest", "seeded.toml"];
    assert_eq!(told(&arguments, 0)["random_seeded"], json!(["echo"]));
    let shown = out(&run(&[&["inspect"][..], &arguments].concat(), folder.path(), 0));
    assert!(shown.contains("random       seeded by the input, so no secret, in echo\n"), "{shown}");
    write("concurrent.wasm", &guest::concurrent("guest", "0.1.0"));
    let shown = out(&run(&["inspect", "concurrent.wasm"], folder.path(), 3));
    assert!(shown.contains("profile      concurrent: it has sets of waitables\n"), "{shown}");
    // The policy is the tenant's.
    let ((acme, _), (other, _)) = (tenant("acme", 1), tenant("other", 2));
    write("keiko.toml", format!("{acme}grants = []\nprofiles = [\"concurrent\"]\n{other}").as_bytes());
    let of = |tenant: &str, status| told(&["concurrent.wasm", "--tenant", tenant], status);
    assert_eq!((&of("acme", 0)["profile"], &of("acme", 0)["refused"]), (&json!("concurrent"), &json!([])));
    let refused = of("other", 3)["refused"][0].as_str().unwrap().to_owned();
    assert!(refused.contains("which the tenant's policy does not permit"), "{refused}");
    assert_eq!(
        told(&["guest.wasm", "--tenant", "acme"], 0)["denied"],
        json!(["the policy does not grant tasks"])
    );
    run(&["inspect", "guest.wasm"], folder.path(), 2);
    run(&["inspect", "guest.wasm", "--tenant", "nobody"], folder.path(), 2);
    write("text.wasm", b"no wasm");
    run(&["inspect", "text.wasm", "--tenant", "acme"], folder.path(), 3);
}
