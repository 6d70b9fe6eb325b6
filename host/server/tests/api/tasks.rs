//! Tasks over HTTP.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keiko_core::limit::EPOCH_TICK_MS;
use serde_json::{Value, json};

use crate::world::{Client, World};

#[test]
fn a_task_runs_to_its_stored_result() {
    let world = World::open();
    let client = world.client(None);
    // Neither the host nor a library may write the input anew.
    let input = r#"{"b":1.000,  "a":12345678901234567890123, "a":"\u0041"}"#;
    let answer =
        client.post_json("/v1/tasks?wait=60", &format!(r#"{{"kind":"echo","input":{input}}}"#)).expect(201);
    let task = answer.json();
    assert_eq!(task["state"], "completed", "{task}");
    assert!(answer.text().contains(&format!(r#""result":{input}"#)), "{}", answer.text());
    let id = task["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), Some(format!("/v1/tasks/{id}").as_str()));
    let attempt = &task["attempts"][0];
    assert_eq!((&attempt["number"], &attempt["pure"]), (&json!(1), &json!(true)), "{attempt}");
    assert!(attempt["fuel_used"].as_u64().unwrap() > 0);
    assert_eq!(client.get(&format!("/v1/tasks/{id}")).expect(200).body, answer.body);
    let result = client.get(&format!("/v1/tasks/{id}/result")).expect(200);
    assert_eq!((result.text().as_str(), result.header("content-type")), (input, Some("application/json")));
}

#[test]
fn bytes_go_through_with_their_type() {
    let world = World::open();
    let client = world.client(None);
    let task = client.run(r#"{"kind":"echo","input_base64":"AAH/","content_type":"text/html"}"#);
    assert_eq!((&task["result_base64"], &task["content_type"]), (&json!("AAH/"), &json!("text/html")));
    let result = client.get(&format!("/v1/tasks/{}/result", task["id"].as_str().unwrap())).expect(200);
    assert_eq!(
        (result.body.as_slice(), result.header("content-type")),
        (&[0, 1, 255][..], Some("text/html"))
    );
    // A plugin's page must not run in a browser as if it were the host's.
    assert!(result.header("content-security-policy").unwrap().contains("sandbox"));
    let odd = client.run(r#"{"kind":"odd"}"#);
    assert_eq!((&odd["result_base64"], &odd["content_type"]), (&json!("e10="), &json!("application/json")));
    assert!(odd.get("result").is_none());
}

#[test]
fn a_failure_says_why_and_can_be_tried_again() {
    let world = World::open();
    let client = world.client(None);
    let task = client.run(r#"{"kind":"fail","input":"no <films> today"}"#);
    assert_eq!((&task["state"], &task["error"]["code"]), (&json!("failed"), &json!("plugin_failed")));
    assert_eq!(task["error"]["message"], "\"no <films> today\"");
    assert_eq!((&task["attempts"][0]["pure"], task.get("result")), (&json!(false), None));
    let id = task["id"].as_str().unwrap();
    client.get(&format!("/v1/tasks/{id}/result")).problem(409, "conflict");
    let again = client.post(&format!("/v1/tasks/{id}/retry")).expect(200).json();
    // It may have begun, and failed again, before the answer was read.
    let attempts = |task: &Value| task["attempts"].as_array().map(Vec::len);
    assert!(again["state"] != "failed" || attempts(&again) == Some(2), "{again}");
    let failed = client.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json();
    assert_eq!((&failed["state"], attempts(&failed)), (&json!("failed"), Some(2)));
    let done = client.run(r#"{"kind":"echo"}"#);
    client.post(&format!("/v1/tasks/{}/retry", done["id"].as_str().unwrap())).problem(409, "conflict");
}

#[test]
fn a_limit_of_the_submit_ends_the_run_under_its_name() {
    let world = World::open();
    let task = world.client(None).run(r#"{"kind":"loop","fuel":100000}"#);
    let error = &task["error"];
    assert_eq!(
        (&error["code"], &error["limit"]["name"]),
        (&json!("fuel_exhausted"), &json!("fuel")),
        "{task}"
    );
    assert_eq!((&error["limit"]["limit"], &error["limit"]["set_by"]), (&json!(100_000), &json!("task")));
}

#[test]
fn a_cancelled_task_never_completes() {
    let world = World::open();
    let client = world.client(None);
    let cancel = |id: &str| client.post(&format!("/v1/tasks/{id}/cancel"));
    let waiting = client.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    assert_eq!(cancel(&waiting).expect(200).json()["state"], "cancelled");
    assert_eq!(cancel(&waiting).expect(200).json()["state"], "cancelled");
    let running =
        client.post_json("/v1/tasks?wait=1", r#"{"kind":"loop","fuel":100000000000}"#).expect(201).json();
    assert_eq!(running["state"], "running", "{running}");
    let id = running["id"].as_str().unwrap();
    let cancelled = cancel(id).expect(200).json();
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(client.get(&format!("/v1/tasks/{id}?wait=5")).expect(200).json(), cancelled);
    let done = client.run(r#"{"kind":"echo"}"#);
    let problem = cancel(done["id"].as_str().unwrap()).problem(409, "conflict");
    assert!(problem["message"].as_str().unwrap().contains("completed"), "{problem}");
}

#[test]
fn a_guest_that_loops_is_stopped_soon() {
    let world = World::with("[host]\nrunning_max = 1\n");
    let client = world.client(None);
    client.install("guest");
    let endless = r#"{"kind":"loop","fuel":100000000000,"timeout_s":600}"#;
    let looping = client.post_json("/v1/tasks?wait=1", endless).expect(201).json();
    assert_eq!(looping["state"], "running", "{looping}");
    let next = client.post_json("/v1/tasks?wait=1", r#"{"kind":"echo"}"#).expect(201).json();
    assert_ne!(next["state"], "completed", "the loop has the only place");
    client.post(&format!("/v1/tasks/{}/cancel", looping["id"].as_str().unwrap())).expect(200);
    let cancelled = Instant::now();
    let next = client.get(&format!("/v1/tasks/{}?wait=60", next["id"].as_str().unwrap())).expect(200).json();
    assert_eq!(next["state"], "completed", "{next}");
    // Whoever misses the cancel looks for it within five seconds.
    assert!(cancelled.elapsed() < Duration::from_millis(200 * EPOCH_TICK_MS), "{:?}", cancelled.elapsed());
}

#[test]
fn many_tasks_are_accepted_together_or_not_at_all() {
    let world = World::open();
    let client = world.client(None);
    let answer =
        client.post_json("/v1/tasks", r#"{"tasks":[{"kind":"echo","input":1},{"kind":"echo","input":2}]}"#);
    let ids = answer.expect(201).json();
    let ids: Vec<&str> = ids["tasks"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    for (at, id) in ids.iter().enumerate() {
        let task = client.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json();
        assert_eq!(task["result"], at + 1);
    }
    let problem = client
        .post_json("/v1/tasks", r#"{"tasks":[{"kind":"echo"},{"kind":"nothing"}]}"#)
        .problem(404, "not_found");
    assert!(problem["message"].as_str().unwrap().starts_with("tasks[1]: "), "{problem}");
    let lines = b"{\"kind\":\"echo\",\"input\":3}\n{\"kind\":\"echo\",\"input\":4}\n";
    let lines =
        client.send("POST", "/v1/tasks", &[("content-type", "application/x-ndjson")], lines).expect(201);
    assert_eq!(lines.json()["tasks"].as_array().unwrap().len(), 2);
    let counts = client.get("/v1/tasks/counts").expect(200).json();
    let total: u64 = counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(total, 4, "{counts}");
    client.post_json("/v1/tasks?wait=1", r#"{"tasks":[{"kind":"echo"}]}"#).problem(400, "invalid_input");
}

#[test]
fn a_key_finds_its_first_submit() {
    let world = World::open();
    let client = world.client(None);
    let submit = |client: &Client, key: &str, body: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        client.send("POST", "/v1/tasks", &headers, body.as_bytes())
    };
    let body = r#"{"kind":"echo","input":{"a":1},"delay_ms":3600000}"#;
    let first = submit(&client, "k", body).expect(201).json()["id"].clone();
    assert_eq!(submit(&client, "k", body).expect(200).json()["id"], first);
    submit(&client, "k", &body.replace(":1}", ":2}")).problem(409, "conflict");
    submit(&client, &"k".repeat(255), body).expect(201);
    submit(&client, &"k".repeat(256), body).problem(400, "invalid_input");
    submit(&client, "", body).problem(400, "invalid_input");
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let (client, body) = (client.clone(), body.to_owned());
            std::thread::Builder::new()
                .spawn(move || submit(&client, "race", &body).json()["id"].as_str().unwrap().to_owned())
                .unwrap()
        })
        .collect();
    let ids: BTreeSet<String> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
    assert_eq!(ids.len(), 1, "one key, one task");
}

#[test]
fn a_list_is_read_page_by_page() {
    let world = World::open();
    let client = world.client(None);
    let bodies = ["echo", "fail", "echo", "say", "echo"].map(|kind| format!(r#"{{"kind":"{kind}"}}"#));
    let ids: Vec<String> =
        bodies.iter().map(|body| client.run(body)["id"].as_str().unwrap().to_owned()).collect();
    let newest_first: Vec<&String> = ids.iter().rev().collect();
    let mut seen = Vec::new();
    let mut before = String::new();
    loop {
        let page = client.get(&format!("/v1/tasks?limit=2{before}")).expect(200).json();
        seen.extend(
            page["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(seen.iter().collect::<Vec<_>>(), newest_first);
    let some = |query: &str| client.get(&format!("/v1/tasks?{query}")).expect(200).json()["tasks"].clone();
    assert_eq!(some("kind=echo").as_array().unwrap().len(), 3);
    let failed = some("state=failed&plugin=guest");
    assert_eq!((&failed[0]["id"], &failed[0]["code"]), (&json!(ids[1]), &json!("plugin_failed")));
    assert_eq!(failed[0]["attempts"], 1);
    assert_eq!(some("plugin=other"), json!([]));
    assert_eq!(some(&format!("parent={}", ids[0])), json!([]));
    // Exactly as many as there are: no next page is promised.
    assert!(client.get("/v1/tasks?limit=5").expect(200).json().get("next").is_none());
}

#[test]
fn a_log_is_kept_with_its_attempt() {
    let world = World::open();
    let client = world.client(None);
    let task = client.run(r#"{"kind":"say","input":"hello\n\u001b[31m"}"#);
    let logs = client.get(&format!("/v1/tasks/{}/logs", task["id"].as_str().unwrap())).expect(200).json();
    let attempt = &logs["attempts"][0];
    assert_eq!((&attempt["attempt"], &attempt["dropped"]), (&json!(1), &json!(0)));
    let line = &attempt["lines"][0];
    assert_eq!((&line["level"], &line["source"]), (&json!("warn"), &json!("log")), "{logs}");
    assert_eq!(line["message"], r#""hello\n\u001b[31m""#);
}

#[test]
fn a_task_waits_for_its_time_and_keeps_its_priority() {
    let world = World::open();
    let client = world.client(None);
    let far = r#"{"kind":"echo","run_at":"2999-01-01T00:00:00Z"}"#;
    let problem = client.post_json("/v1/tasks", far).problem(400, "invalid_input");
    assert_eq!(problem["limit"]["name"], "delay_ms", "{problem}");
    let both = r#"{"kind":"echo","run_at":"2026-01-01T00:00:00Z","delay_ms":1}"#;
    client.post_json("/v1/tasks", both).problem(400, "invalid_input");
    let problem =
        client.post_json("/v1/tasks", r#"{"kind":"echo","priority":10}"#).problem(400, "invalid_input");
    assert_eq!((&problem["limit"]["name"], &problem["limit"]["limit"]), (&json!("priority"), &json!(9)));
    let past = client.run(r#"{"kind":"echo","run_at":"2001-01-01T00:00:00Z","priority":9}"#);
    assert_eq!((&past["state"], &past["priority"]), (&json!("completed"), &json!(9)));
    // What hosts compare is on PostgreSQL's own clock, which moves while a submit is on its way.
    let (created, ended) = (past["created_at"].as_str(), past["finished_at"].as_str());
    let due = past["run_at"].as_str();
    assert!(created <= due && due <= ended, "what was due before it came is due when it came: {past}");
    let waits = client.submit(r#"{"kind":"echo","delay_ms":3600000,"priority":1}"#);
    let waits = client.get(&format!("/v1/tasks/{waits}?wait=1")).expect(200).json();
    assert_eq!((&waits["state"], &waits["priority"]), (&json!("pending"), &json!(1)));
    assert!(waits["run_at"].as_str() > waits["created_at"].as_str(), "{waits}");
    assert!(client.run(r#"{"kind":"echo"}"#).get("priority").is_none());
}

#[test]
fn a_task_ends_with_the_time_it_was_given() {
    let world = World::open();
    let client = world.client(None);
    let waits =
        client.submit(r#"{"kind":"loop","fuel":100000000000,"total_timeout_s":1,"retry":{"factor":1}}"#);
    let task = client.get(&format!("/v1/tasks/{waits}?wait=60")).expect(200).json();
    let error = &task["error"];
    assert_eq!((&error["code"], &error["limit"]["name"]), (&json!("deadline_exceeded"), &json!("total_ms")));
    assert_eq!((&error["limit"]["limit"], &error["limit"]["set_by"]), (&json!(1_000), &json!("task")));
    let refused = |body: &str| client.post_json("/v1/tasks", body).problem(400, "invalid_input");
    assert_eq!(refused(r#"{"kind":"echo","queued_timeout_s":0}"#)["limit"]["name"], "queued_ms");
    assert_eq!(refused(r#"{"kind":"echo","retry":{"factor":11}}"#)["limit"]["name"], "retry.factor");
    let text = refused(r#"{"kind":"echo","retry":{"codes":["oops"]}}"#)["message"].clone();
    assert!(text.as_str().unwrap().contains("`oops` is not a code"), "{text}");
    refused(r#"{"kind":"echo","retry":{"tries":1}}"#);
}

#[test]
fn a_group_has_one_outcome_for_each_task_in_order() {
    let world = World::open();
    let client = world.client(None);
    let tasks = r#"{"kind":"echo","input":1},{"kind":"fail","input":"no"},{"kind":"echo","input":[3]}"#;
    let body = format!(r#"{{"tasks":[{tasks}],"live_max":1}}"#);
    let answer = client.post_json("/v1/groups?wait=60", &body).expect(201);
    let group = answer.json();
    assert_eq!(
        (&group["state"], &group["completed"], &group["failed"]),
        (&json!("failed"), &json!(2), &json!(1))
    );
    let id = group["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), Some(format!("/v1/groups/{id}").as_str()));
    let page = client.get(&format!("/v1/groups/{id}/outcomes?limit=2")).expect(200).json();
    let outcomes = page["outcomes"].as_array().unwrap();
    assert_eq!((&outcomes[0]["place"], &outcomes[0]["result"]), (&json!(0), &json!(1)));
    assert_eq!((&outcomes[0]["task"], &page["next"]), (&group["tasks"][0], &json!(2)));
    assert_eq!(outcomes[1]["error"]["code"], "plugin_failed");
    let rest = client.get(&format!("/v1/groups/{id}/outcomes?from=2")).expect(200).json();
    assert_eq!((&rest["outcomes"][0]["result"], rest.get("next")), (&json!([3]), None));
    assert_eq!(client.get(&format!("/v1/groups/{id}")).expect(200).json()["state"], "failed");
    let body =
        r#"{"tasks":[{"kind":"echo","delay_ms":3600000},{"kind":"echo"}],"fail_fast":true,"live_max":1}"#;
    let open = client.post_json("/v1/groups?wait=0", body).expect(201).json();
    assert_eq!(open["state"], "open", "{open}");
    let path = format!("/v1/groups/{}", open["id"].as_str().unwrap());
    let cancelled = client.post(&format!("{path}/cancel")).expect(200).json();
    assert_eq!((&cancelled["state"], &cancelled["cancelled"]), (&json!("failed"), &json!(2)));
    client.get("/v1/groups/group_0000000000001").problem(404, "not_found");
    client.get("/v1/groups/task_0000000000001").problem(404, "not_found");
    client.post_json("/v1/groups", r#"{"tasks":[]}"#).problem(400, "invalid_input");
    client
        .post_json("/v1/groups", r#"{"tasks":[{"kind":"echo"}],"live_max":0}"#)
        .problem(400, "invalid_input");
    client.post_json("/v1/groups", r#"{"tasks":[{"kind":"echo"}],"window":1}"#).problem(400, "invalid_input");
}

#[test]
fn many_tasks_are_cancelled_and_tried_again_by_a_filter() {
    let world = World::open();
    let client = world.client(None);
    let later: Vec<String> = (0..5).map(|_| client.submit(r#"{"kind":"echo","delay_ms":3600000}"#)).collect();
    let other = client.submit(r#"{"kind":"say","delay_ms":3600000}"#);
    let post = |path: &str| client.post(path);
    post("/v1/tasks/cancel").problem(400, "invalid_input");
    post("/v1/tasks/cancel?state=failed").problem(400, "invalid_input");
    post("/v1/tasks/retry?kind=echo").problem(400, "invalid_input");
    let first = post("/v1/tasks/cancel?kind=echo&limit=3").expect(200).json();
    assert_eq!(
        (&first["matched"], &first["changed"], &first["next"]),
        (&json!(3), &json!(3), &json!(later[2]))
    );
    let rest = post(&format!("/v1/tasks/cancel?kind=echo&before={}", later[2])).expect(200).json();
    assert_eq!((&rest["changed"], rest.get("next")), (&json!(2), None));
    let state = |id: &str| client.get(&format!("/v1/tasks/{id}")).expect(200).json()["state"].clone();
    assert!(later.iter().all(|id| state(id) == "cancelled"));
    assert_eq!(state(&other), "pending");
    let again = post("/v1/tasks/retry?state=cancelled&kind=echo").expect(200).json();
    assert_eq!((&again["matched"], &again["changed"]), (&json!(5), &json!(5)));
    for id in &later {
        let task = client.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json();
        assert_eq!(task["state"], "completed", "a retry by hand does not wait for the old delay");
    }
    assert_eq!(post("/v1/tasks/retry?state=cancelled").expect(200).json()["matched"], 0);
}

#[test]
fn tasks_are_found_and_changed_by_their_root_their_group_and_their_times() {
    let world = World::open();
    let client = world.client(None);
    let later = r#"{"kind":"echo","delay_ms":3600000}"#;
    let group =
        client.post_json("/v1/groups", &format!(r#"{{"tasks":[{later},{later}]}}"#)).expect(201).json();
    let (id, of_group) = (group["id"].as_str().unwrap(), [&group["tasks"][1], &group["tasks"][0]]);
    let alone = client.submit(later);
    let ids = |query: &str| -> Vec<Value> {
        let tasks = client.get(&format!("/v1/tasks?{query}")).expect(200).json()["tasks"].clone();
        tasks.as_array().unwrap().iter().map(|task| task["id"].clone()).collect()
    };
    assert_eq!(ids(&format!("group={id}")), of_group.map(Value::clone));
    assert_eq!(ids(&format!("root={alone}")), [json!(alone)]);
    let created = client.get(&format!("/v1/tasks/{alone}")).expect(200).json()["created_at"].clone();
    let created = created.as_str().unwrap();
    assert!(ids(&format!("created_from={created}&created_to={created}")).contains(&json!(alone)));
    assert!(ids("created_to=2020-01-01T00:00:00Z").is_empty());
    let post = |path: &str| client.post(path).expect(200).json()["changed"].clone();
    assert_eq!(post("/v1/tasks/cancel?created_to=2020-01-01T00:00:00Z"), 0);
    assert_eq!(post(&format!("/v1/tasks/cancel?group={id}")), 2);
    assert_eq!(post(&format!("/v1/tasks/cancel?root={alone}")), 1);
    assert_eq!(ids(&format!("state=cancelled&finished_from={created}")).len(), 3);
    assert_eq!(
        post(&format!(
            "/v1/tasks/retry?state=cancelled&finished_to={created}&created_to=2020-01-01T00:00:00Z"
        )),
        0
    );
    assert_eq!(post(&format!("/v1/tasks/retry?state=cancelled&finished_from={created}")), 3);
    for query in [format!("finished_from={created}"), format!("state=running&finished_to={created}")] {
        client.get(&format!("/v1/tasks?{query}")).problem(400, "invalid_input");
        client.post(&format!("/v1/tasks/cancel?{query}")).problem(400, "invalid_input");
    }
}

#[test]
fn a_cancel_of_a_tree_takes_what_has_ended_too() {
    let world = World::open();
    let client = world.client(None);
    let cancel = |id: &str, tree: &str| client.post(&format!("/v1/tasks/{id}/cancel?tree={tree}"));
    let waiting = client.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    let told = cancel(&waiting, "true").expect(200).json();
    assert_eq!((&told["state"], &told["cancelled_below"]), (&json!("cancelled"), &json!(0)));
    let done = client.run(r#"{"kind":"echo","input":1}"#);
    let done = done["id"].as_str().unwrap();
    cancel(done, "false").problem(409, "conflict");
    let told = cancel(done, "true").expect(200).json();
    assert_eq!((&told["state"], &told["cancelled_below"]), (&json!("completed"), &json!(0)));
    cancel("task_0000000000001", "true").problem(404, "not_found");
    cancel(done, "all").problem(400, "invalid_input");
}

#[test]
fn a_wait_ends_with_its_time() {
    let world = World::open();
    let client = world.client(None);
    let id = client.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    let path = format!("/v1/tasks/{id}");
    assert_eq!(client.get(&format!("{path}?wait=0")).expect(200).json()["state"], "pending");
    assert_eq!(client.get(&format!("{path}?wait=1")).expect(200).json()["state"], "pending");
}

#[test]
fn a_failed_task_is_tried_again_with_what_was_wrong_changed() {
    let world = World::open();
    let client = world.client(None);
    let task = client.run(r#"{"kind":"loop","fuel":100000}"#);
    let retry = format!("/v1/tasks/{}/retry", task["id"].as_str().unwrap());
    let again = |body: &str| {
        client.post_json(&retry, body).expect(200);
        client.get(&format!("/v1/tasks/{}?wait=60", task["id"].as_str().unwrap())).expect(200).json()
    };
    let again = again(r#"{"fuel":200000}"#);
    assert_eq!(
        (&again["error"]["code"], &again["error"]["limit"]["limit"]),
        (&json!("fuel_exhausted"), &json!(200_000))
    );
    assert_eq!(again["attempts"].as_array().unwrap().len(), 2);
    // What is refused changes nothing, and the task stays as it ended.
    client.post_json(&retry, r#"{"fuel":100000000001}"#).problem(429, "quota_exceeded");
    client.post_json(&retry, r#"{"kind":"echo"}"#).problem(400, "invalid_input");
    client.post_json(&retry, r#"{"input":1,"input_base64":"AA=="}"#).problem(400, "invalid_input");
    client.send("POST", &retry, &[("content-type", "text/plain")], b"{}").problem(415, "invalid_input");
    let large = format!(r#"{{"input":"{}"}}"#, "x".repeat(2 << 20));
    client.post_json(&retry, &large).problem(413, "invalid_input");
    let huge = format!(r#"{{"input":"{}"}}"#, "x".repeat(3 << 20));
    client.post_json(&retry, &huge).problem(413, "invalid_input");
    assert_eq!(client.get(retry.trim_end_matches("/retry")).expect(200).json(), again);

    let failed = client.run(r#"{"kind":"fail","input":"one"}"#);
    let path = format!("/v1/tasks/{}", failed["id"].as_str().unwrap());
    client.post_json(&format!("{path}/retry"), r#"{"input":"two","attempts":1}"#).expect(200);
    let again = client.get(&format!("{path}?wait=60")).expect(200).json();
    assert_eq!(
        (&failed["error"]["message"], &again["error"]["message"]),
        (&json!("\"one\""), &json!("\"two\""))
    );
    client.post_json(&format!("{path}/retry"), "{}").expect(200);
    let same = client.get(&format!("{path}?wait=60")).expect(200).json();
    assert_eq!(same["error"]["message"], "\"two\"", "what was changed stays");
}

#[test]
fn ended_tasks_are_dropped_by_a_filter() {
    let world = World::open();
    let client = world.client(None);
    for _ in 0..3 {
        client.run(r#"{"kind":"fail","input":"x"}"#);
    }
    client.run(r#"{"kind":"echo"}"#);
    client.delete("/v1/tasks").problem(400, "invalid_input");
    client.delete("/v1/tasks?state=pending").problem(400, "invalid_input");
    client.delete("/v1/tasks?kind=fail").problem(400, "invalid_input");
    let page = client.delete("/v1/tasks?state=failed&kind=fail&limit=2").expect(200).json();
    assert_eq!((&page["matched"], &page["changed"]), (&json!(2), &json!(2)));
    let before = page["next"].as_str().unwrap();
    let rest = client.delete(&format!("/v1/tasks?state=failed&before={before}")).expect(200).json();
    assert_eq!(rest, json!({"matched": 1, "changed": 1}));
    let left = client.get("/v1/tasks").expect(200).json();
    assert_eq!(left["tasks"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(client.get("/v1/tasks/counts").expect(200).json()["failed"], 0);
}

#[test]
fn tasks_of_a_key_are_unique_debounced_or_throttled() {
    let world = World::open();
    let client = world.client(None);
    let body = |rule: &str| format!(r#"{{"kind":"echo","input":1,"delay_ms":3600000,{rule}}}"#);
    let unique = body(r#""unique":{"key":"k"}"#);
    let id = client.submit(&unique);
    let found = client.post_json("/v1/tasks", &unique).expect(200).json();
    assert_eq!(found["id"], json!(id));
    let refused = client.post_json("/v1/tasks", &body(r#""unique":{"key":"k","refuse":true}"#));
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    refused.problem(409, "conflict");
    assert!(message.contains(&id), "{message}");
    client.post(&format!("/v1/tasks/{id}/cancel")).expect(200);
    let second = client.submit(&unique);
    assert_ne!(second, id);
    let refused = client.post(&format!("/v1/tasks/{id}/retry"));
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    refused.problem(409, "conflict");
    assert!(message.contains(&second), "{message}");
    let many = client.post("/v1/tasks/retry?state=cancelled").expect(200).json();
    assert_eq!((&many["matched"], &many["changed"]), (&json!(1), &json!(0)));

    let debounce = |input: &str, wait_ms: u64| {
        let rule =
            format!(r#"{{"kind":"echo","input":"{input}","debounce":{{"key":"d","wait_ms":{wait_ms}}}}}"#);
        client.post_json("/v1/tasks", &rule)
    };
    let first = debounce("old", 3_600_000).expect(201).json();
    let second = debounce("new", 1).expect(200).json();
    assert_eq!(first["id"], second["id"]);
    let path = format!("/v1/tasks/{}?wait=60", first["id"].as_str().unwrap());
    assert_eq!(client.get(&path).expect(200).json()["result"], "new");

    let throttle = r#"{"kind":"echo","throttle":{"key":"t","interval_ms":3600000}}"#;
    assert_eq!(client.run(throttle)["state"], "completed");
    let next = client.post_json("/v1/tasks", throttle).expect(201).json();
    assert_eq!(next["state"], "pending", "{next}");
    assert!(next["run_at"].as_str() > next["created_at"].as_str());

    let both = r#""unique":{"key":"k"},"throttle":{"key":"k","interval_ms":1}"#;
    for rule in [
        both,
        r#""debounce":{"key":"k","wait_ms":1}"#,
        r#""unique":{"key":""}"#,
        r#""throttle":{"key":"k","interval_ms":0}"#,
        r#""unique":{"key":"k","always":true}"#,
    ] {
        client.post_json("/v1/tasks", &body(rule)).problem(400, "invalid_input");
    }
    // What must be equal for an idempotency key to mean the same.
    let keyed = |body: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", "i")];
        client.send("POST", "/v1/tasks", &headers, body.as_bytes())
    };
    keyed(&unique).expect(200);
    keyed(&body(r#""unique":{"key":"other"}"#)).problem(409, "conflict");
}

#[test]
fn many_tasks_find_others_by_their_keys_and_are_refused_together() {
    let world = World::open();
    let client = world.client(None);
    let of = |rule: &str| format!(r#"{{"kind":"echo","delay_ms":3600000,{rule}}}"#);
    let live = client.submit(&of(r#""unique":{"key":"k"}"#));
    let task = |key: &str, refuse: bool| of(&format!(r#""unique":{{"key":"{key}","refuse":{refuse}}}"#));
    let plain = r#"{"kind":"echo","delay_ms":3600000,"concurrency_key":"c"}"#;
    let lines = [plain, &task("k", false), &task("n", false), &task("n", false)].join("\n");
    let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", "i")];
    let made = client.send("POST", "/v1/tasks", &headers, lines.as_bytes()).expect(201).json();
    let ids: Vec<&str> = made["tasks"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!((ids[1], ids[2], ids.len()), (live.as_str(), ids[3], 4), "{made}");
    let again = client.send("POST", "/v1/tasks", &headers, lines.as_bytes()).expect(200).json();
    assert_eq!(again, made, "by its idempotency key");
    let found = format!(r#"{{"tasks":[{},{}]}}"#, task("k", false), task("n", false));
    assert_eq!(client.post_json("/v1/tasks", &found).expect(200).json()["tasks"][0], json!(live));
    let refused = format!(r#"{{"tasks":[{plain},{},{}]}}"#, task("fresh", false), task("k", true));
    let problem = client.post_json("/v1/tasks", &refused).problem(409, "conflict");
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("tasks[2]") && message.contains(&live), "{message}");
    client.post_json("/v1/tasks", &task("fresh", true)).expect(201);
    let bad = format!(r#"{{"tasks":[{plain},{}]}}"#, of(r#""throttle":{"key":"t","interval_ms":0}"#));
    let problem = client.post_json("/v1/tasks", &bad).problem(400, "invalid_input");
    assert!(problem["message"].as_str().unwrap().contains("tasks[1]"), "{problem}");
    let group = format!(r#"{{"tasks":[{}]}}"#, task("g", false));
    client.post_json("/v1/groups", &group).problem(400, "invalid_input");
    let live = client.get("/v1/tasks?state=pending").expect(200).json();
    assert_eq!(live["tasks"].as_array().unwrap().len(), 4, "{live}");
}

#[test]
fn few_tasks_of_a_kind_and_a_key_run_at_once() {
    let config = "[tenants.default.plugins.guest.kinds.loop.concurrency]\nmax = 2\n";
    let world = World::with(config);
    let client = world.client(None);
    client.install("guest");
    let start = |key: &str| {
        let body = format!(r#"{{"kind":"loop","fuel":100000000000,"concurrency_key":"{key}"}}"#);
        let task = client.post_json("/v1/tasks?wait=1", &body).expect(201).json();
        (task["id"].as_str().unwrap().to_owned(), task["state"].as_str().unwrap().to_owned())
    };
    let (first, state) = start("a");
    assert_eq!(state, "running");
    let (second, state) = start("a");
    assert_eq!(state, "pending", "its key has one slot");
    let (third, state) = start("b");
    assert_eq!(state, "running");
    let (fourth, state) = start("c");
    assert_eq!(state, "pending", "its kind has two");
    let other = client.run(r#"{"kind":"echo","input":1,"concurrency_key":"a"}"#);
    assert_eq!(other["state"], "completed", "another kind has slots of its own");
    client.post(&format!("/v1/tasks/{first}/cancel")).expect(200);
    let state = |id: &str| client.get(&format!("/v1/tasks/{id}")).expect(200).json()["state"].clone();
    let until_running = |id: &str| {
        let begun = Instant::now();
        while state(id) != "running" {
            assert!(begun.elapsed() < Duration::from_secs(20), "the slot is not taken");
            std::thread::yield_now();
        }
    };
    // Who waits for the kind is first, and then who waited for a key before.
    until_running(&fourth);
    assert_eq!(state(&second), "pending");
    client.post(&format!("/v1/tasks/{third}/cancel")).expect(200);
    until_running(&second);

    let refused = |key: &str| {
        let body = serde_json::json!({"kind": "echo", "concurrency_key": key}).to_string();
        client.post_json("/v1/tasks", &body).problem(400, "invalid_input")
    };
    refused("");
    refused("a\nb");
    refused(&"k".repeat(keiko_core::limit::KEY_BYTES_MAX + 1));
    client.submit(&format!(
        r#"{{"kind":"echo","concurrency_key":"{}"}}"#,
        "k".repeat(keiko_core::limit::KEY_BYTES_MAX)
    ));
}
