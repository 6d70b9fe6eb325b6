//! Stopping well, stopping badly, and starting again on the same data.

use std::collections::BTreeMap;
use std::time::Duration;

use keiko_tests::{Host, Options, wait};
use serde_json::{Value, json};

use crate::Running;

/// Longest wait for a state to be seen.
const SEEN_MAX: Duration = Duration::from_secs(30);

/// Fuel and time for a guest that only a stop can end.
fn endless() -> Value {
    json!({"fuel": 100_000_000_000_u64, "timeout_s": 3_000})
}

fn wait_running(running: &Running, ids: &[String]) {
    for id in ids {
        wait::until("a task to run", SEEN_MAX, || {
            Ok((running.client.task(id)?["state"] == "running").then_some(()))
        })
        .unwrap();
    }
}

#[test]
fn a_drain_lets_running_attempts_finish() {
    let mut running = Running::with_guests(&["contract"]);
    let client = running.client.clone();
    let id = client.submit("contract", "sleep", json!({"ms": 1_500}), Value::Null).unwrap();
    wait_running(&running, std::slice::from_ref(&id));
    assert!(running.stop().unwrap().success());
    running.start_again().unwrap();
    let task = client.task(&id).unwrap();
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(task["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(task["crashes"], 0);
}

#[test]
fn a_drain_hands_back_what_does_not_finish_and_burns_no_attempt() {
    let mut running = Running::with_config("[host]\ndrain_s = 1\n");
    let client = running.client.clone();
    client.install(&keiko_tests::tree::guest("contract").unwrap()).unwrap();
    let submit = |_| client.submit("contract", "spin", json!({}), endless()).unwrap();
    let ids: Vec<String> = (0..2).map(submit).collect();
    wait_running(&running, &ids);
    assert!(running.stop().unwrap().success());
    running.start_again().unwrap();
    for id in &ids {
        let task = client.task(id).unwrap();
        assert!(task["state"] == "pending" || task["state"] == "running", "{task}");
        assert_eq!((&task["attempts"], &task["crashes"]), (&json!([]), &json!(0)), "{task}");
        let cancelled = client.post(&format!("/v1/tasks/{id}/cancel"), &[], &[]).unwrap();
        assert_eq!(cancelled.expect(&[200]).unwrap()["state"], "cancelled");
    }
}

#[test]
fn what_was_accepted_survives_a_kill() {
    let mut running = Running::with_guests(&["family"]);
    let client = running.client.clone();
    let tasks: Vec<Value> = (0..500)
        .map(|n| json!({"plugin": "family", "kind": "child", "input": {"n": n, "which": 1}}))
        .collect();
    let answer = client.post_json("/v1/tasks", &json!({ "tasks": tasks }), Some("all")).unwrap();
    running.kill().unwrap();
    let accepted = answer.expect(&[201]).unwrap();
    running.start_again().unwrap();
    // The plugin is there without another upload, and the key finds the first submit.
    let again = client.post_json("/v1/tasks", &json!({ "tasks": tasks }), Some("all")).unwrap();
    assert_eq!(again.expect(&[200]).unwrap(), accepted);
    for (n, id) in accepted["tasks"].as_array().unwrap().iter().enumerate() {
        let task = client.ended(id.as_str().unwrap()).unwrap();
        assert_eq!(task["result"]["answer"], n * 10 + 1, "{task}");
    }
    assert_eq!(client.count("completed").unwrap(), 500);
}

#[test]
fn a_crash_is_charged_to_what_ran_and_not_to_what_waited() {
    let mut running = Running::with_config("[host]\nworkers = 1\nrunning_max = 1\n");
    let client = running.client.clone();
    client.install(&keiko_tests::tree::guest("contract").unwrap()).unwrap();
    let submit = |_| client.submit("contract", "spin", json!({}), endless()).unwrap();
    let ids: Vec<String> = (0..3).map(submit).collect();
    wait_running(&running, &ids[..1]);
    running.kill().unwrap();
    running.start_again().unwrap();
    let crashes: BTreeMap<&str, Value> =
        ids.iter().map(|id| (id.as_str(), client.task(id).unwrap()["crashes"].clone())).collect();
    assert_eq!(
        ids.iter().map(|id| &crashes[id.as_str()]).collect::<Vec<_>>(),
        [&json!(1), &json!(0), &json!(0)]
    );
}

#[test]
fn a_second_host_on_the_same_data_is_refused_in_a_sentence() {
    let running = Running::start();
    let mut options = Options::in_folder(running.folder.path()).unwrap();
    options.log = running.folder.path().join("second.log");
    let error = Host::start(options).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("the host ended while it started"), "{text}");
    assert!(text.contains(&running.pid().to_string()), "it names the process that has the data: {text}");
    assert_eq!(running.client.get("/livez").unwrap().status, 200);
}
