//! The cache as guests use it, through the fixture plugin `contract`: every call, every refusal, every limit at the limit and
//! one above, two tenants with one key, and what becomes of a fill whose holder is gone.

use std::process::Command;

use serde_json::{Value, json};

use keiko_tests::check::hostile::two_tenants;
use keiko_tests::{Client, tree, wait};

use crate::Running;
use crate::contract::{error_at, ok};

const SOON: std::time::Duration = std::time::Duration::from_secs(30);

fn steps(running: &Running, steps: Value) -> Vec<Value> {
    let answers = running.result("cache", json!({ "steps": steps }));
    answers.as_array().unwrap_or_else(|| panic!("{answers}")).clone()
}

fn name_of(answer: &Value) -> &str {
    answer["error"]["name"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

#[test]
fn values_come_back_alone_and_together_until_they_are_removed() {
    let running = Running::with_guests(&["contract"]);
    let answers = steps(
        &running,
        json!([
            {"do": "get", "key": "a"},
            {"do": "set", "key": "a", "value": "one"},
            {"do": "set", "key": "b", "value": "", "tags": ["t"]},
            {"do": "get-many", "keys": ["a", "none", "b"]},
            {"do": "remove-tag", "tag": "t"},
            {"do": "get-many", "keys": ["a", "b"]},
            {"do": "remove", "key": "a"},
            {"do": "get", "key": "a"},
        ]),
    );
    let expected = [
        ok(Value::Null),
        ok(Value::Null),
        ok(Value::Null),
        ok(json!(["one", null, ""])),
        ok(Value::Null),
        ok(json!(["one", null])),
        ok(Value::Null),
        ok(Value::Null),
    ];
    assert_eq!(answers, expected);
    let hits = running.result("cache-hits", json!({"key": "c", "bytes": 100, "gets": 1_000}));
    assert_eq!(hits, json!({"hits": 1_000}));
    // Another task of the plugin, and of the host after a restart, has it too.
    steps(&running, json!([{"do": "set", "key": "kept", "value": "v"}]));
    let task = running.contract("cache", json!({"steps": [{"do": "get", "key": "kept"}]}), Value::Null);
    assert_eq!(task["result"], json!([ok(json!("v"))]));
    assert_eq!(task["attempts"][0]["tainted_by"], json!(["cache"]), "{task}");
}

#[test]
fn each_limit_holds_and_one_above_it_is_refused() {
    let running = Running::with_guests(&["contract"]);
    let key = |bytes: usize| "k".repeat(bytes);
    let tags = |count: usize, bytes: usize| -> Vec<String> {
        (0..count).map(|number| format!("{number:0>bytes$}")).collect()
    };
    let answers = steps(
        &running,
        json!([
            {"do": "set", "key": key(512), "value_bytes": 2 << 20, "tags": tags(16, 128), "lifetime_ms": 2_592_000_000_u64},
            {"do": "get", "key": key(512)},
            {"do": "get", "key": key(513)},
            {"do": "get", "key": ""},
            {"do": "set", "key": "a\nb"},
            {"do": "set", "key": "k", "value_bytes": (2 << 20) + 1},
            {"do": "set", "key": "k", "tags": tags(17, 2)},
            {"do": "set", "key": "k", "tags": tags(1, 129)},
            {"do": "remove-tag", "tag": ""},
            {"do": "set", "key": "k", "lifetime_ms": 0},
            {"do": "set", "key": "k", "lifetime_ms": 2_592_000_001_u64},
            {"do": "get-many", "keys": ["none"], "copies": 100},
            {"do": "get-many", "keys": ["none"], "copies": 101},
            {"do": "get-many", "keys": [key(512)], "copies": 2},
            {"do": "get-many", "keys": [key(512)], "copies": 3},
        ]),
    );
    assert_eq!((&answers[0], &answers[1]), (&ok(Value::Null), &ok(json!(2 << 20))));
    let names: Vec<&str> = answers[2..11].iter().map(name_of).collect();
    let expected = [
        "invalid-key",
        "invalid-key",
        "invalid-key",
        "value-too-large",
        "too-many-tags",
        "invalid-tag",
        "invalid-tag",
        "invalid-lifetime",
        "invalid-lifetime",
    ];
    assert_eq!(names, expected);
    assert_eq!(answers[5], error_at("value-too-large", 2 << 20));
    assert_eq!(answers[6], error_at("too-many-tags", 16));
    assert_eq!(answers[10], error_at("invalid-lifetime", 2_592_000_000));
    assert_eq!(answers[11]["ok"].as_array().map(Vec::len), Some(100));
    assert_eq!(answers[12], error_at("too-many-keys", 100));
    assert_eq!(answers[13], ok(json!([2 << 20, 2 << 20])));
    assert_eq!(answers[14], error_at("answer-too-large", 4 << 20));
}

#[test]
fn a_fill_is_completed_once_and_one_at_a_time_is_held() {
    let running = Running::with_guests(&["contract"]);
    let answers = steps(
        &running,
        json!([
            {"do": "fill", "key": "a"},
            {"do": "fill", "key": "b"},
            {"do": "complete", "value": "v"},
            {"do": "fill", "key": "a"},
            {"do": "fill", "key": "b"},
            {"do": "drop"},
            {"do": "fill", "key": "c"},
            {"do": "complete", "lifetime_ms": 0},
            {"do": "fill", "key": "c"},
            {"do": "complete", "value_bytes": (2 << 20) + 1},
            {"do": "get", "key": "c"},
        ]),
    );
    let expected = [
        ok(json!("fill")),
        json!({"error": {"name": "fill-held"}}),
        ok(Value::Null),
        ok(json!({"hit": "v"})),
        ok(json!("fill")),
        ok(json!(true)),
        ok(json!("fill")),
        error_at("invalid-lifetime", 2_592_000_000),
        ok(json!("fill")),
        error_at("value-too-large", 2 << 20),
        ok(Value::Null),
    ];
    assert_eq!(answers, expected);
}

/// Whoever holds a fill and is gone, by its own fault or another's, hands it to the next who waits.
#[test]
fn a_fill_goes_on_when_its_holder_panics_ends_or_is_cancelled() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let submit = |steps: Value, wait: &str| {
        let body = json!({"plugin": "contract", "kind": "cache", "input": {"steps": steps}});
        client.post_json(&format!("/v1/tasks{wait}"), &body, None).unwrap().expect(&[200, 201, 202]).unwrap()
    };
    for (key, ending) in [("panics", json!([{"do": "panic"}])), ("ends", json!([]))] {
        let mut all = vec![json!({"do": "fill", "key": key})];
        all.extend(ending.as_array().cloned().unwrap_or_default());
        submit(json!(all), "?wait=30");
        assert_eq!(steps(&running, json!([{"do": "fill", "key": key}])), [ok(json!("fill"))], "{key}");
    }
    let holder = submit(json!([{"do": "fill", "key": "cancelled"}, {"do": "spin"}]), "");
    let id = holder["id"].as_str().unwrap();
    wait::until("the holder to run", SOON, || {
        let task = client.get(&format!("/v1/tasks/{id}"))?.expect(&[200])?;
        Ok((task["state"] == "running").then_some(()))
    })
    .unwrap();
    let waiter = submit(json!([{"do": "fill", "key": "cancelled"}, {"do": "complete", "value": "v"}]), "");
    client.post_json(&format!("/v1/tasks/{id}/cancel"), &json!({}), None).unwrap();
    let waiter = waiter["id"].as_str().unwrap();
    let ended = client.get(&format!("/v1/tasks/{waiter}?wait=30")).unwrap().expect(&[200]).unwrap();
    assert_eq!(ended["state"], "completed", "{ended}");
    assert_eq!(steps(&running, json!([{"do": "get", "key": "cancelled"}])), [ok(json!("v"))]);
}

#[test]
fn a_function_is_computed_once_for_an_input_and_again_after_a_failure() {
    let running = Running::with_guests(&["contract"]);
    let memoized = |input: Value| running.result("memoized", json!({ "input": input }));
    assert_eq!(memoized(json!({"b": 1, "a": 2}))["computed"], 1);
    let again = memoized(json!({"a": 2, "b": 1}));
    assert_eq!(again, json!({"output": {"of": {"a": 2, "b": 1}}, "computed": 0}));
    let body = json!({"plugin": "contract", "kind": "memoized", "input": {"input": 7, "fail": true}});
    let failed = running.client.post_json("/v1/tasks?wait=30", &body, None).unwrap().expect(&[201]).unwrap();
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(memoized(json!(7))["computed"], 1);
    // Nothing is kept only when that is asked for.
    let none = |keep: bool| running.result("memoized", json!({"input": null, "keep_none": keep}));
    for (keep, computed) in [(false, 1), (false, 1), (true, 1), (true, 0), (false, 0)] {
        assert_eq!(none(keep), json!({"output": null, "computed": computed}));
    }
}

#[test]
fn two_tenants_with_one_key_have_two_values() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, ada, bob) = two_tenants(folder.path()).unwrap();
    for client in [&ada, &bob] {
        client.install(&tree::guest("contract").unwrap()).unwrap();
    }
    let take = |client: &Client, all: Value| {
        client.run("contract", "cache", json!({ "steps": all }), Value::Null).unwrap()["result"].clone()
    };
    take(&ada, json!([{"do": "set", "key": "k", "value": "ada", "tags": ["t"]}]));
    assert_eq!(take(&bob, json!([{"do": "get", "key": "k"}])), json!([ok(Value::Null)]));
    let theirs = json!([{"do": "set", "key": "k", "value": "bob"}, {"do": "remove-tag", "tag": "t"}]);
    take(&bob, theirs);
    assert_eq!(take(&ada, json!([{"do": "get", "key": "k"}])), json!([ok(json!("ada"))]));
    take(&ada, json!([{"do": "remove", "key": "k"}]));
    assert_eq!(take(&bob, json!([{"do": "get", "key": "k"}])), json!([ok(json!("bob"))]));
}

#[test]
fn an_operator_sees_why_something_is_not_there_and_takes_things_away() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let get = |path: &str| client.get(path).unwrap().expect(&[200]).unwrap();
    let delete = |path: &str| client.delete(path).unwrap().expect(&[200]).unwrap();
    let state = |key: &str| get(&format!("/v1/cache/entry?namespace=p.contract&key={key}"));
    let kept = |key: &str| steps(&running, json!([{"do": "set", "key": key, "value": "v", "tags": ["t"]}]));
    kept("k");
    let there = state("k");
    assert_eq!((&there["found"], &there["value_base64"]), (&json!(true), &json!("dg==")));
    let levels = there["levels"].as_array().unwrap();
    assert_eq!(levels.iter().map(|level| &level["level"]).collect::<Vec<_>>(), ["memory", "database"]);
    assert!(levels.iter().all(|level| level["state"] == "fresh" && level["bytes"] == 1), "{there}");
    assert_eq!(levels[0]["tags"], json!(["t"]));
    assert!(levels[0]["component"].as_str().unwrap().starts_with("contract."), "{there}");
    assert_eq!(state("none")["levels"][0]["state"], "nothing");
    delete("/v1/cache/entry?namespace=p.contract&key=k");
    let gone = state("k");
    assert_eq!((&gone["found"], &gone["levels"][0]["state"]), (&json!(false), &json!("removed")));
    kept("k");
    delete("/v1/cache/tag?namespace=p.contract&tag=t");
    assert_eq!(state("k")["levels"][0]["state"], "tag_removed");
    kept("k");
    let usage = get("/v1/cache");
    assert!(usage["levels"][1]["entries"].as_u64().unwrap() >= 1, "{usage}");
    delete("/v1/cache");
    assert_eq!(state("k")["found"], false);
    assert_eq!(get("/v1/cache")["levels"][1]["entries"], 0);
    for bad in
        ["namespace=t.p.contract&key=k", "namespace=contract&key=k", "namespace=p.contract&key=", "key=k"]
    {
        client.get(&format!("/v1/cache/entry?{bad}")).unwrap().expect(&[400]).unwrap();
    }
    client.get("/v1/cache/entry?namespace=p.nobody&key=k").unwrap().expect(&[404]).unwrap();
}

/// Runs `keiko cache` to its end; what it wrote to standard output and to standard error.
#[track_caller]
fn keiko_cache(running: &Running, arguments: &[&str], status: i32) -> (String, String) {
    let server = format!("http://{}", running.client.address());
    let mut command = Command::new(tree::program().unwrap());
    let output = command.arg("cache").args(arguments).args(["--server", &server]).output().unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {out}{err}");
    (out, err)
}

#[test]
fn an_operator_does_the_same_from_the_command_line() {
    let running = Running::with_guests(&["contract"]);
    let keep = || steps(&running, json!([{"do": "set", "key": "k", "value": "v", "tags": ["t"]}]));
    keep();
    let (table, _) = keiko_cache(&running, &["stats"], 0);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["LEVEL", "STATE", "ENTRIES", "SIZE"], "{table}");
    assert_eq!(
        (&rows[1][..2], &rows[2][..2]),
        (&["memory", "works"][..], &["database", "works"][..]),
        "{table}"
    );
    let get = ["get", "p.contract", "k"];
    assert_eq!(keiko_cache(&running, &["get", "p.contract", "k", "--value"], 0).0, "v");
    let (table, note) = keiko_cache(&running, &get, 0);
    assert!(
        table.contains(" fresh ") && table.contains(" contract.") && note.contains("gets it"),
        "{table}{note}"
    );
    // Each way of taking it away is told by its name.
    let ways: [(&[&str], &str); 3] = [
        (&["remove", "p.contract", "k"], "removed"),
        (&["remove-tag", "p.contract", "t"], "tag_removed"),
        (&["clear"], "nothing"),
    ];
    for (way, why) in ways {
        keep();
        keiko_cache(&running, way, 0);
        let (table, note) = keiko_cache(&running, &get, 0);
        assert!(table.contains(why) && note.contains("gets nothing"), "{way:?}: {table}{note}");
        let explained: Value =
            serde_json::from_str(&keiko_cache(&running, &[&get[..], &["--json"]].concat(), 0).0).unwrap();
        assert_eq!(explained["found"], false, "{way:?}: {explained}");
    }
    let (_, error) = keiko_cache(&running, &["get", "p.contract", "k", "--value"], 3);
    assert!(error.contains("there is no value"), "{error}");
    let (_, error) = keiko_cache(&running, &["get", "p.nobody", "k"], 3);
    assert!(error.contains("there is no plugin `nobody`"), "{error}");
    let (_, error) = keiko_cache(&running, &["get", "contract", "k"], 3);
    assert!(error.contains("namespace: expected p.PLUGIN"), "{error}");
}
