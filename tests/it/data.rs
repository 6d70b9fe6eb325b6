//! The tenant's data as guests see it: agents, and what became of tasks, through the fixture plugin `contract`.

use serde_json::{Value, json};

use keiko_tests::check::hostile::two_tenants;
use keiko_tests::{Client, tree};

use crate::Running;
use crate::contract::{error_at, ok};

/// Makes an agent; the answer is its id.
fn agent(client: &Client, name: &str) -> String {
    let body = json!({"name": name, "kind": "reviewer"});
    made(client, "/v1/agents", &body)
}

/// Makes a user; the answer is the id.
fn user(client: &Client, name: &str) -> String {
    made(client, "/v1/users", &json!({ "name": name }))
}

fn made(client: &Client, path: &str, body: &Value) -> String {
    let answer = client.post_json(path, body, None).unwrap().expect(&[201]).unwrap();
    answer["id"].as_str().unwrap().to_owned()
}

/// The status of an agent as everybody sees it.
fn status(client: &Client, id: &str) -> Value {
    client.get(&format!("/v1/agents/{id}")).unwrap().expect(&[200]).unwrap()["status"].clone()
}

fn name_of(answer: &Value) -> &str {
    answer["error"]["name"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

/// An id of nobody.
const NO_AGENT: &str = "agent_0000000000001";

#[test]
fn agents_load() {
    let running = Running::with_guests(&["contract"]);
    let (max, eva) = (agent(&running.client, "Max"), agent(&running.client, "Eva"));
    let load = |input: Value| running.result("agents-load", input);
    let answer = load(json!({"ids": [eva, NO_AGENT, max, eva]}));
    let agents = answer["ok"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let names: Vec<&Value> = agents.iter().map(|agent| &agent["name"]).collect();
    assert_eq!(names, [&json!("Eva"), &Value::Null, &json!("Max"), &json!("Eva")]);
    assert_eq!(
        (&agents[2]["id"], &agents[2]["kind"], &agents[2]["status"]),
        (&json!(max), &json!("reviewer"), &json!("idle"))
    );
    assert!(agents[2]["created_ms"].as_u64().unwrap() > 1_700_000_000_000);

    let many = load(json!({"ids": [max], "copies": 1_000}));
    assert_eq!(many["ok"].as_array().unwrap().len(), 1_000);
    assert_eq!(load(json!({"ids": [max], "copies": 1_001})), error_at("ids-exceeded", 1_000));
    assert_eq!(name_of(&load(json!({"ids": ["task_0000000000001"]}))), "invalid-input");
    let task = running.contract("agents-load", json!({"ids": []}), Value::Null);
    assert_eq!(task["attempts"][0]["tainted_by"], json!(["agents"]), "{task}");
}

#[test]
fn agents_list() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let ids: Vec<String> = ["a", "b", "c"].iter().map(|name| agent(client, name)).collect();
    for (kind, state) in [("trivial", "completed"), ("trivial", "completed"), ("trap", "failed")] {
        let task = running.contract(kind, json!({}), json!({"attempts": 1, "agent": ids[0]}));
        assert_eq!(task["state"], state, "{task}");
    }
    let list = |input: Value| running.result("agents-list", input);
    let all = list(json!({}));
    let agents = all["ok"]["agents"].as_array().unwrap_or_else(|| panic!("{all}"));
    let names: Vec<&Value> = agents.iter().map(|listed| &listed["agent"]["name"]).collect();
    assert_eq!((names, &all["ok"]["next"]), (vec![&json!("c"), &json!("b"), &json!("a")], &Value::Null));
    let counted = |listed: &Value| {
        ["total", "completed", "failed", "cancelled"].map(|name| listed[name].as_u64().unwrap())
    };
    assert_eq!((counted(&agents[0]), counted(&agents[2])), ([0; 4], [3, 2, 1, 0]));
    assert!(agents[2]["average_us"].as_u64().unwrap() > 0);
    assert!((agents[2]["success_rate"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9);

    let first = list(json!({"limit": 2}));
    assert_eq!(first["ok"]["next"], json!(ids[1]), "{first}");
    let second = list(json!({"limit": 2, "before": ids[1]}));
    assert_eq!(
        (&second["ok"]["agents"][0]["agent"]["id"], &second["ok"]["next"]),
        (&json!(ids[0]), &Value::Null)
    );
    let none = json!({"agents": [], "next": null});
    assert_eq!(list(json!({"kind": "writer"})), ok(none.clone()));
    assert_eq!(list(json!({"status": "failed"})), ok(none));
    assert!(list(json!({"limit": 100}))["ok"].is_object());
    assert_eq!(list(json!({"limit": 101})), error_at("page-exceeded", 100));
    for odd in [json!({"limit": 0}), json!({"kind": "A B"}), json!({"before": "user_0000000000001"})] {
        assert_eq!(name_of(&list(odd.clone())), "invalid-input", "{odd}");
    }
}

#[test]
fn agents_set_statuses() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let (max, eva) = (agent(client, "Max"), agent(client, "Eva"));
    let set = |input: Value| running.result("agents-set-statuses", input);
    assert_eq!(set(json!({"changes": [[max, "failed"], [eva, "active"], [max, "paused"]]})), ok(Value::Null));
    assert_eq!((status(client, &max), status(client, &eva)), (json!("paused"), json!("active")));

    // What the attempt itself sees of it before anybody else does.
    let seen = set(json!({"changes": [[max, "active"]], "then": "load"}));
    assert_eq!(seen["ok"][0]["status"], "active", "{seen}");
    // What does not complete changes nothing.
    for then in ["permanent", "panic"] {
        let input = json!({"changes": [[max, "retired"]], "then": then});
        let task = running.contract("agents-set-statuses", input, Value::Null);
        assert_eq!(task["state"], "failed", "{then}: {task}");
    }
    assert_eq!(status(client, &max), "active");

    let unknown = set(json!({"changes": [[max, "idle"], [NO_AGENT, "idle"]]}));
    assert_eq!(unknown, json!({"error": {"name": "not-found", "text": NO_AGENT}}));
    assert_eq!(status(client, &max), "active", "all or none");
    assert_eq!(name_of(&set(json!({"changes": [["", "idle"]]}))), "invalid-input");
    assert_eq!(set(json!({"changes": [[max, "idle"]], "copies": 1_000})), ok(Value::Null));
    assert_eq!(set(json!({"changes": [[max, "idle"]], "copies": 1_001})), error_at("ids-exceeded", 1_000));
    assert_eq!(set(json!({"changes": [[max, "paused"]], "times": 1_000})), ok(Value::Null));
    assert_eq!(set(json!({"changes": [[max, "idle"]], "times": 1_001})), error_at("effects-exceeded", 1_000));
}

#[test]
fn history_user_tasks() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let (ada, max) = (user(client, "Ada"), agent(client, "Max"));
    let submit = |kind: &str, input: Value, more: Value| {
        let task = running.contract(kind, input, more);
        task["id"].as_str().unwrap().to_owned()
    };
    let first = submit("trivial", json!("it"), json!({"attempts": 1, "user": ada, "agent": max}));
    let second =
        submit("fail", json!({"as": "permanent", "message": "no"}), json!({"attempts": 1, "user": ada}));
    submit("trivial", json!("of nobody"), Value::Null);
    let ask = |input: Value| running.result("history-user-tasks", input);
    let answer = ask(json!({ "user": ada }));
    let tasks = answer["ok"]["tasks"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!((tasks.len(), &tasks[0]["id"], &tasks[1]["id"]), (2, &json!(second), &json!(first)));
    assert_eq!(tasks[0]["failure"], json!({"code": "plugin_failed", "message": "no"}));
    assert_eq!((&tasks[0]["agent"], &tasks[0]["output"]), (&Value::Null, &Value::Null));
    let completed = &tasks[1];
    assert_eq!(completed["user"], json!({"id": ada, "name": "Ada"}));
    assert_eq!(completed["agent"], json!({"id": max, "name": "Max", "kind": "reviewer"}));
    assert_eq!(
        (&completed["output"]["content_type"], &completed["output"]["bytes"]),
        (&json!("application/json"), &json!(4))
    );
    assert_eq!(
        (&completed["plugin"], &completed["kind"], &completed["state"]),
        (&json!("contract"), &json!("trivial"), &json!("completed"))
    );
    assert!(completed["ended_ms"].as_u64().unwrap() >= completed["created_ms"].as_u64().unwrap());

    let page = ask(json!({"user": ada, "limit": 1}));
    assert_eq!(page["ok"]["next"], json!(second), "{page}");
    let last = ask(json!({"user": ada, "limit": 1, "before": second}));
    assert_eq!((&last["ok"]["tasks"][0]["id"], &last["ok"]["next"]), (&json!(first), &Value::Null));
    assert!(ask(json!({"user": ada, "limit": 100}))["ok"].is_object());
    assert_eq!(ask(json!({"user": ada, "limit": 101})), error_at("page-exceeded", 100));
    let nobody = "user_0000000000001";
    assert_eq!(ask(json!({ "user": nobody })), json!({"error": {"name": "not-found", "text": nobody}}));
    for odd in [json!({"user": max}), json!({"user": ada, "before": ada}), json!({"user": ada, "limit": 0})] {
        assert_eq!(name_of(&ask(odd.clone())), "invalid-input", "{odd}");
    }
}

#[test]
fn a_page_of_results_stays_within_a_host_call() {
    let running = Running::with_guests(&["contract"]);
    let ada = user(&running.client, "Ada");
    for _ in 0..3 {
        let large = json!({"bytes": 2 << 20});
        let task = running.contract("output", large, json!({"attempts": 1, "user": ada}));
        assert_eq!(task["state"], "completed");
    }
    let (mut before, mut pages) = (Value::Null, Vec::new());
    loop {
        let page = running.result("history-user-tasks", json!({"user": ada, "before": before}));
        let tasks = page["ok"]["tasks"].as_array().unwrap_or_else(|| panic!("{page}"));
        assert!(tasks.iter().all(|task| task["output"]["bytes"] == 2 << 20), "results are whole: {page}");
        pages.push(tasks.len());
        before = page["ok"]["next"].clone();
        if before.is_null() {
            break;
        }
    }
    // Two of them and what is around them are more than 4 MiB.
    assert_eq!(pages, [1, 1, 1]);
}

#[test]
fn history_summarize() {
    let running = Running::with_guests(&["contract"]);
    for (kind, input) in [("trivial", json!(1)), ("trivial", json!(2)), ("trap", json!({}))] {
        running.contract(kind, input, Value::Null);
    }
    let ask = |from_ms: u64, to_ms: u64| {
        running.result("history-summarize", json!({"from_ms": from_ms, "to_ms": to_ms}))
    };
    let answer = ask(0, u64::MAX);
    let rows = answer["ok"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let found: Vec<[&Value; 4]> =
        rows.iter().map(|row| [&row["plugin"], &row["kind"], &row["state"], &row["count"]]).collect();
    let expected = [
        [json!("contract"), json!("history-summarize"), json!("running"), json!(1)],
        [json!("contract"), json!("trap"), json!("failed"), json!(1)],
        [json!("contract"), json!("trivial"), json!("completed"), json!(2)],
    ];
    assert_eq!(found, expected.each_ref().map(|row| row.each_ref()));
    let durations = |row: &Value| {
        ["minimum_us", "p50_us", "average_us", "p95_us", "maximum_us"].map(|name| row[name].as_u64().unwrap())
    };
    assert_eq!(durations(&rows[0]), [0; 5], "a task that runs has no duration");
    let [minimum, p50, average, p95, maximum] = durations(&rows[2]);
    assert!(0 < minimum && minimum <= average && average <= maximum, "{answer}");
    assert_eq!((p50, p95), (minimum, maximum), "of two, half is the first and 95 in 100 the second");
    assert_eq!(ask(0, 1), ok(json!([])));
    assert_eq!(name_of(&ask(2, 1)), "invalid-input");
}

#[test]
fn guests_of_two_tenants_with_the_same_data_see_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, one, other) = two_tenants(folder.path()).unwrap();
    let ids: Vec<(String, String)> = [&one, &other]
        .map(|client| {
            client.install(&tree::guest("contract").unwrap()).unwrap();
            let (max, ada) = (agent(client, "Max"), user(client, "Ada"));
            let more = json!({"agent": max, "user": ada});
            client.run("contract", "trivial", json!({}), more).unwrap();
            (max, ada)
        })
        .to_vec();
    let (max, ada) = &ids[1];
    let ask =
        |kind: &str, input: Value| one.run("contract", kind, input, Value::Null).unwrap()["result"].clone();
    assert_eq!(ask("agents-load", json!({"ids": [max, ids[0].0]}))["ok"][0], Value::Null);
    assert_eq!(name_of(&ask("agents-set-statuses", json!({"changes": [[max, "retired"]]}))), "not-found");
    assert_eq!(name_of(&ask("history-user-tasks", json!({ "user": ada }))), "not-found");
    let listed = ask("agents-list", json!({}));
    assert_eq!(
        (listed["ok"]["agents"].as_array().unwrap().len(), &listed["ok"]["agents"][0]["total"]),
        (1, &json!(1))
    );
    let summed = ask("history-summarize", json!({"from_ms": 0, "to_ms": 9_000_000_000_000_u64}));
    let trivial = summed["ok"].as_array().unwrap().iter().find(|row| row["kind"] == "trivial").unwrap();
    assert_eq!(trivial["count"], 1, "{summed}");
    assert_eq!(status(&other, max), "idle");
}
