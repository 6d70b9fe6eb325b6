//! Agents, users and statistics over HTTP.

use serde_json::{Value, json};

use crate::world::{Client, World, tenant};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Makes an agent; its id.
fn agent(client: &Client, name: &str, kind: &str) -> String {
    let body = json!({"name": name, "kind": kind}).to_string();
    client.post_json("/v1/agents", &body).expect(201).json()["id"].as_str().unwrap().to_owned()
}

/// Makes a user; the id.
fn user(client: &Client, name: &str) -> String {
    let body = json!({ "name": name }).to_string();
    client.post_json("/v1/users", &body).expect(201).json()["id"].as_str().unwrap().to_owned()
}

fn patch(client: &Client, id: &str, body: &str) -> crate::http::Response {
    client.send("PATCH", &format!("/v1/agents/{id}"), &[JSON], body.as_bytes())
}

fn ids(list: &Value, of: &str) -> Vec<String> {
    list[of].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_agent_is_made_changed_and_listed() {
    let world = World::open();
    let client = world.client(None);
    let first = agent(&client, "Ada", "writer");
    let made = client.get(&format!("/v1/agents/{first}")).expect(200).json();
    assert_eq!(
        (&made["name"], &made["status"], &made["kind"]),
        (&json!("Ada"), &json!("idle"), &json!("writer"))
    );
    assert_eq!(made["tasks"]["success_rate"], 0.0);
    let changed = patch(&client, &first, r#"{"status":"active"}"#).expect(200).json();
    assert_eq!((&changed["status"], &changed["name"]), (&json!("active"), &json!("Ada")));
    let many =
        r#"{"agents":[{"name":"Ben","kind":"reader"},{"name":"Cem","kind":"writer","status":"paused"}]}"#;
    let many = ids(&client.post_json("/v1/agents", many).expect(201).json(), "agents");
    let list = |query: &str| client.get(&format!("/v1/agents{query}")).expect(200).json();
    assert_eq!(ids(&list(""), "agents"), [many[1].clone(), many[0].clone(), first.clone()]);
    assert_eq!(ids(&list("?kind=writer&status=active"), "agents"), std::slice::from_ref(&first));
    let page = list("?limit=2");
    assert_eq!(page["next"], many[0]);
    let rest = list(&format!("?limit=2&before={}", many[0]));
    assert_eq!((ids(&rest, "agents"), rest.get("next")), (vec![first], None));
}

#[test]
fn agents_are_loaded_in_the_order_of_the_ids_and_missing_ones_are_told() {
    let world = World::open();
    let client = world.client(None);
    let (one, two) = (agent(&client, "Ada", "writer"), agent(&client, "Ben", "writer"));
    let missing = "agent_0000000000001";
    let body = json!({"ids": [two, missing, one]}).to_string();
    let loaded = client.post_json("/v1/agents/load", &body).expect(200).json();
    assert_eq!(loaded["missing"], json!([missing]));
    assert_eq!(loaded["agents"][0]["id"], two);
    assert_eq!(loaded["agents"][1], Value::Null);
    assert_eq!(loaded["agents"][2]["name"], "Ada");
}

#[test]
fn many_statuses_change_all_or_none() {
    let world = World::open();
    let client = world.client(None);
    let (one, two) = (agent(&client, "Ada", "writer"), agent(&client, "Ben", "writer"));
    let unknown = "agent_0000000000001";
    let set = |second: &str| {
        let statuses = json!([{"agent": one, "status": "active"}, {"agent": second, "status": "failed"}]);
        client.post_json("/v1/agents/statuses", &json!({ "statuses": statuses }).to_string())
    };
    let problem = set(unknown).problem(404, "not_found");
    assert!(problem["message"].as_str().unwrap().contains(unknown), "{problem}");
    let status = |id: &str| client.get(&format!("/v1/agents/{id}")).expect(200).json()["status"].clone();
    assert_eq!(status(&one), "idle");
    assert_eq!(set(&two).expect(200).json(), json!({"changed": 2}));
    assert_eq!((status(&one), status(&two)), (json!("active"), json!("failed")));
}

#[test]
fn a_task_is_counted_for_its_agent_and_found_for_its_user() {
    let world = World::open();
    let client = world.client(None);
    let (ada, ann) = (agent(&client, "Ada", "writer"), user(&client, "Ann"));
    let run = |kind: &str, input: &str| {
        client.run(&json!({"kind": kind, "input": input, "agent": ada, "user": ann}).to_string())
    };
    let done = run("echo", "hello");
    assert_eq!((&done["agent"], &done["user"]), (&json!(ada), &json!(ann)));
    let failed = run("fail", "no");
    client.run(r#"{"kind":"echo"}"#);
    let tasks = &client.get(&format!("/v1/agents/{ada}")).expect(200).json()["tasks"];
    assert_eq!((&tasks["total"], &tasks["completed"], &tasks["failed"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!(tasks["success_rate"], 0.5);
    assert!(tasks["average_us"].as_u64().unwrap() > 0);
    let listed = client.get(&format!("/v1/tasks?agent={ada}&user={ann}")).expect(200).json();
    let (done, failed) = (done["id"].as_str().unwrap(), failed["id"].as_str().unwrap());
    assert_eq!(ids(&listed, "tasks"), [failed, done]);
    let page = client.get(&format!("/v1/users/{ann}/tasks?limit=1")).expect(200).json();
    assert_eq!(page["tasks"][0]["task"]["id"], failed);
    assert_eq!(page["tasks"][0]["error"]["code"], "plugin_failed");
    let rest = client.get(&format!("/v1/users/{ann}/tasks?before={}", page["next"].as_str().unwrap()));
    let rest = rest.expect(200).json();
    let task = &rest["tasks"][0];
    assert_eq!((&task["result"], &task["user"]["name"]), (&json!("hello"), &json!("Ann")));
    assert_eq!((&task["agent"]["name"], rest.get("next")), (&json!("Ada"), None));
    let statistics = client.get("/v1/statistics").expect(200).json();
    let row = |kind: &str| {
        let rows = statistics["statistics"].as_array().unwrap();
        rows.iter().find(|row| row["kind"] == kind).unwrap().clone()
    };
    assert_eq!((&row("echo")["count"], &row("echo")["state"]), (&json!(2), &json!("completed")));
    assert!(row("echo")["p95_us"].as_u64() >= row("echo")["p50_us"].as_u64());
}

#[test]
fn an_agents_numbers_are_cached_until_fresh_ones_are_wanted() {
    let world = World::open();
    let client = world.client(None);
    let ada = agent(&client, "Ada", "writer");
    let run = || client.run(&json!({"kind": "echo", "input": 1, "agent": ada}).to_string());
    let get = |query: &str| client.get(&format!("/v1/agents/{ada}{query}")).expect(200).json();
    run();
    assert_eq!(get("")["tasks"]["total"], 1);
    run();
    assert_eq!(get("")["tasks"]["total"], 1, "an end of a task touches nothing that is cached");
    assert_eq!(get("?fresh=false")["tasks"]["total"], 1);
    assert_eq!(get("?fresh=true")["tasks"]["total"], 2);
    assert_eq!(get("")["tasks"]["total"], 2);
    // The agent itself is never an old one.
    patch(&client, &ada, r#"{"name":"Eva"}"#).expect(200);
    assert_eq!((&get("")["name"], &get("")["tasks"]["total"]), (&json!("Eva"), &json!(2)));
    client.get(&format!("/v1/agents/{ada}?fresh=1")).problem(400, "invalid_input");
    client.get("/v1/agents/agent_0000000000001?fresh=true").problem(404, "not_found");
}

#[test]
fn who_is_unknown_is_not_found_by_name() {
    let world = World::open();
    let client = world.client(None);
    for (field, id) in [("agent", "agent_0000000000001"), ("user", "user_0000000000001")] {
        let problem = client.post_json("/v1/tasks", &json!({"kind": "echo", field: id}).to_string());
        let problem = problem.problem(404, "not_found");
        assert!(problem["message"].as_str().unwrap().contains(id), "{problem}");
    }
    client.get("/v1/agents/agent_0000000000001").problem(404, "not_found");
    client.get("/v1/agents/nobody").problem(404, "not_found");
    client.get("/v1/users/user_0000000000001").problem(404, "not_found");
    client.get("/v1/users/user_0000000000001/tasks").problem(404, "not_found");
    patch(&client, "agent_0000000000001", r#"{"name":"x"}"#).problem(404, "not_found");
    assert_eq!(client.get("/v1/tasks").expect(200).json()["tasks"], json!([]));
}

#[test]
fn what_is_not_understood_is_refused() {
    let world = World::open();
    let client = world.client(None);
    let id = agent(&client, "Ada", "writer");
    let refused = |path: &str, body: &str, part: &str| {
        let problem = client.post_json(path, body).problem(400, "invalid_input");
        assert!(problem["message"].as_str().unwrap().contains(part), "{problem}");
    };
    refused("/v1/agents", r#"{"name":"","kind":"writer"}"#, "a name is");
    refused("/v1/agents", r#"{"name":"Ada","kind":"A B"}"#, "kind:");
    refused("/v1/agents", r#"{"name":"Ada","kind":"a","status":"busy"}"#, "`busy`");
    refused("/v1/agents", r#"{"name":"Ada","kind":"a","age":3}"#, "age");
    refused("/v1/agents", r#"{"agents":[]}"#, "found none");
    refused("/v1/agents/load", r#"{"ids":["agent_x"]}"#, "ids[0]");
    refused(
        "/v1/agents/statuses",
        &json!({"statuses": [{"agent": id, "status": "busy"}]}).to_string(),
        "statuses[0]",
    );
    refused("/v1/users", r#"{"users":[{"name":"Ann"},{"name":"a\nb"}]}"#, "users[1]");
    let many = |count: usize| json!({"ids": vec!["agent_0000000000001"; count]}).to_string();
    client.post_json("/v1/agents/load", &many(1_000)).expect(200);
    let problem = client.post_json("/v1/agents/load", &many(1_001)).problem(400, "invalid_input");
    assert_eq!(problem["limit"]["limit"], 1_000);
    patch(&client, &id, "{}").problem(400, "invalid_input");
    client.get("/v1/statistics?from=yesterday").problem(400, "invalid_input");
    client.get(&format!("/v1/users/{id}/tasks")).problem(404, "not_found");
}

#[test]
fn another_tenant_has_none_of_them() {
    let ((one, ada), (two, bob)) = (tenant("ada", 1), tenant("bob", 2));
    let world = World::with(&format!("{one}{two}"));
    let (ada, bob) = (world.client(Some(&ada)), world.client(Some(&bob)));
    bob.install("guest");
    let (agent, user) = (agent(&ada, "Ada", "writer"), user(&ada, "Ann"));
    bob.get(&format!("/v1/agents/{agent}")).problem(404, "not_found");
    bob.get(&format!("/v1/users/{user}")).problem(404, "not_found");
    bob.get(&format!("/v1/users/{user}/tasks")).problem(404, "not_found");
    patch(&bob, &agent, r#"{"name":"x"}"#).problem(404, "not_found");
    let statuses = json!({"statuses": [{"agent": agent, "status": "failed"}]}).to_string();
    bob.post_json("/v1/agents/statuses", &statuses).problem(404, "not_found");
    bob.post_json("/v1/tasks", &json!({"kind": "echo", "agent": agent}).to_string())
        .problem(404, "not_found");
    let loaded = bob.post_json("/v1/agents/load", &json!({"ids": [agent]}).to_string()).expect(200).json();
    assert_eq!(loaded["missing"], json!([agent]));
    assert_eq!(bob.get("/v1/agents").expect(200).json()["agents"], json!([]));
    assert_eq!(bob.get("/v1/users").expect(200).json()["users"], json!([]));
    assert_eq!(ada.get(&format!("/v1/agents/{agent}")).expect(200).json()["status"], "idle");
}

#[test]
fn metrics_need_no_token_and_name_no_tenant() {
    let (config, token) = tenant("ada", 1);
    let world = World::with(&config);
    let client = world.client(Some(&token));
    client.install("guest");
    client.run(r#"{"kind":"echo"}"#);
    let page = world.client(None).get("/metrics").expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = page.text();
    assert!(text.lines().any(|line| line == "keiko_tasks_leased_total 1"), "{text}");
    assert!(!text.contains("ada"), "{text}");
}
