//! Schedules over HTTP and the command line.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{World, tenant};

const NIGHTLY: &str = r#"{"name":"nightly","cron":"30 2 * * *","zone":"Europe/Berlin","missed":"run_once",
    "overlap":"skip","task":{"kind":"echo","input":{"a": [1, 2]},"priority":3,"concurrency_key":"k"}}"#;

#[test]
fn a_schedule_is_made_shown_paused_resumed_and_removed() {
    let world = World::open();
    let client = world.client(None);
    let made = client.post_json("/v1/schedules", NIGHTLY).expect(201).json();
    assert_eq!((&made["missed"], &made["overlap"]), (&json!("run_once"), &json!("skip")));
    assert_eq!(made["task"], json!({"kind":"echo","input":{"a":[1,2]},"priority":3,"concurrency_key":"k"}));
    let next = made["next_at"].as_str().unwrap().to_owned();
    assert!(next.ends_with(":30:00.000Z"), "{next}");
    assert_eq!(client.get("/v1/schedules/nightly").expect(200).json(), made);
    client.post_json("/v1/schedules", NIGHTLY).problem(409, "conflict");

    let paused = client.post("/v1/schedules/nightly/pause").expect(200).json();
    assert!(paused["paused_at"].is_string() && paused.get("next_at").is_none(), "{paused}");
    assert_eq!(client.post("/v1/schedules/nightly/pause").expect(200).json(), paused);
    let resumed = client.post("/v1/schedules/nightly/resume").expect(200).json();
    assert_eq!((resumed.get("paused_at"), &resumed["next_at"]), (None, &json!(next)));

    for name in ["a", "z"] {
        let body = format!(r#"{{"name":"{name}","cron":"@hourly","paused":true,"task":{{"kind":"echo"}}}}"#);
        let made = client.post_json("/v1/schedules", &body).expect(201).json();
        assert_eq!((&made["zone"], made.get("next_at")), (&json!("UTC"), None));
    }
    let page = client.get("/v1/schedules?limit=2").expect(200).json();
    let names = |page: &Value| {
        let schedules = page["schedules"].as_array().unwrap();
        schedules.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&page), &page["next"]),
        (vec!["a".to_owned(), "nightly".to_owned()], &json!("nightly"))
    );
    assert_eq!(page["schedules"][1]["task"].get("input"), None, "a list has no inputs");
    let rest = client.get("/v1/schedules?after=nightly").expect(200).json();
    assert_eq!((names(&rest), rest.get("next")), (vec!["z".to_owned()], None));

    client.delete("/v1/schedules/nightly").expect(204);
    for path in ["", "/pause", "/resume"] {
        let path = format!("/v1/schedules/nightly{path}");
        let answer = if path.ends_with("nightly") { client.get(&path) } else { client.post(&path) };
        answer.problem(404, "not_found");
    }
    client.delete("/v1/schedules/nightly").problem(404, "not_found");
    client.delete("/v1/schedules/N%00").problem(404, "not_found");
}

#[test]
fn a_schedule_says_what_its_task_asks_for() {
    let world = World::open();
    let client = world.client(None);
    let limits = json!({
        "fuel": 100_000_000, "memory_mib": 8, "timeout_s": 9, "attempts": 2, "queued_timeout_s": 60,
        "total_timeout_s": 7_200, "heartbeat_timeout_s": 5, "tree_fuel": 1_000_000_000, "tree_host_calls": 1_000,
        "tree_timeout_s": 3_600, "retry": {"first_ms": 5, "factor": 3, "codes": ["trap"]},
    });
    let create = |name: &str, task: &Value| {
        let body = json!({"name": name, "cron": "@daily", "task": task}).to_string();
        client.post_json("/v1/schedules", &body).expect(201).json()["task"].clone()
    };
    let mut task = limits.clone();
    task["kind"] = "echo".into();
    let made = create("bounded", &task);
    assert_eq!(made, json!({"kind": "echo", "input": null, "priority": 0, "limits": limits}));
    assert_eq!(client.get("/v1/schedules/bounded").expect(200).json()["task"], made);
    assert_eq!(create("plain", &json!({"kind": "echo"})).get("limits"), None);
    let page = client.get("/v1/schedules").expect(200).json();
    let listed = |place: usize| page["schedules"][place]["task"].get("limits");
    assert_eq!((listed(0), listed(1)), (Some(&limits), None), "{page}");
}

#[test]
fn a_schedule_submits_its_task_and_says_so() {
    let world = World::open();
    let client = world.client(None);
    let body = r#"{"name":"tick","cron":"* * * * * *","task":{"kind":"echo","input":7}}"#;
    client.post_json("/v1/schedules", body).expect(201);
    let begun = Instant::now();
    let last = loop {
        let known = client.get("/v1/schedules/tick").expect(200).json();
        if known["last"]["task"].is_string() {
            break known["last"].clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{known}");
        std::thread::yield_now();
    };
    let task = format!("/v1/tasks/{}?wait=20", last["task"].as_str().unwrap());
    let task = client.get(&task).expect(200).json();
    assert_eq!((&task["state"], &task["result"]), (&json!("completed"), &json!(7)));
    assert!(task["created_at"].as_str().unwrap() >= last["at"].as_str().unwrap(), "{task} {last}");
}

#[test]
fn bad_schedules_are_refused_with_their_reason() {
    let world = World::open();
    let client = world.client(None);
    let check = |body: &str, expected: &str| {
        let problem = client.post_json("/v1/schedules", body).problem(400, "invalid_input");
        let message = problem["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
    };
    let with =
        |cron: &str, more: &str| format!(r#"{{"name":"s","cron":"{cron}","task":{{"kind":"echo"}}{more}}}"#);
    check(&with("61 * * * *", ""), "`cron`: ");
    check(&with("* * * *", ""), "`cron`: ");
    check(&with("0 0 30 2 *", ""), "there is no such time");
    check(&with("* * * * *", r#","zone":"Berlin""#), "there is no time zone `Berlin`");
    check(&with("* * * * *", r#","missed":"always""#), "expected `skip` or `run_once`");
    check(&with("* * * * *", r#","every":1"#), "every");
    check(
        r#"{"name":"A B","cron":"* * * * *","task":{"kind":"echo"}}"#,
        "`name`: a schedule name is 1 to 63",
    );
    check(r#"{"name":"s","cron":"* * * * *","task":{"kind":"echo","fule":1}}"#, "task");
    check(r#"{"name":"s","cron":"* * * * *","task":{"kind":"echo","delay_ms":1}}"#, "do not go with it");
    check(
        r#"{"name":"s","cron":"* * * * *","task":{"kind":"echo","unique":{"key":"k"}}}"#,
        "do not go with it",
    );
    let nothing = r#"{"name":"s","cron":"* * * * *","task":{"kind":"nothing"}}"#;
    client.post_json("/v1/schedules", nothing).problem(404, "not_found");
    assert_eq!(client.get("/v1/schedules").expect(200).json(), json!({"schedules": []}));
}

#[test]
fn a_tenant_has_so_many_schedules_of_its_own() {
    let ((ada, token), (bob, other)) = (tenant("ada", 1), tenant("bob", 2));
    let world = World::with(&format!("{ada}[tenants.ada.limits]\nschedules_max = 2\n{bob}"));
    let (ada, bob) = (world.client(Some(&token)), world.client(Some(&other)));
    ada.install("guest");
    bob.install("guest");
    let body = |name: &str| format!(r#"{{"name":"{name}","cron":"@daily","task":{{"kind":"echo"}}}}"#);
    for name in ["a", "b"] {
        ada.post_json("/v1/schedules", &body(name)).expect(201);
    }
    let problem = ada.post_json("/v1/schedules", &body("c")).problem(429, "quota_exceeded");
    assert_eq!((&problem["limit"]["name"], &problem["limit"]["limit"]), (&json!("schedules"), &json!(2)));
    bob.get("/v1/schedules/a").problem(404, "not_found");
    bob.delete("/v1/schedules/a").problem(404, "not_found");
    bob.post_json("/v1/schedules", &body("a")).expect(201);
    ada.delete("/v1/schedules/a").expect(204);
    ada.post_json("/v1/schedules", &body("c")).expect(201);
    bob.get("/v1/schedules/a").expect(200);
}
