//! Bounds of the routes of agents, users and statistics: at each limit and one above, and who is told what of many.

use serde_json::{Value, json};

use crate::world::{Client, World, tenant};

const MIB: usize = 1 << 20;

fn made(client: &Client, path: &str, body: &Value) -> String {
    client.post_json(path, &body.to_string()).expect(201).json()["id"].as_str().unwrap().to_owned()
}

fn agent(client: &Client, name: &str) -> String {
    made(client, "/v1/agents", &json!({"name": name, "kind": "writer"}))
}

fn user(client: &Client, name: &str) -> String {
    made(client, "/v1/users", &json!({ "name": name }))
}

fn length(list: &Value) -> usize {
    list.as_array().unwrap().len()
}

#[test]
fn no_route_of_the_data_answers_without_a_token() {
    let (text, _) = tenant("acme", 1);
    let world = World::with(&text);
    let stranger = world.client(None);
    let (agent, user) = ("/v1/agents/agent_0000000000001", "/v1/users/user_0000000000001");
    let tasks = format!("{user}/tasks");
    for (method, path) in [
        ("GET", "/v1/agents"),
        ("POST", "/v1/agents"),
        ("POST", "/v1/agents/load"),
        ("POST", "/v1/agents/statuses"),
        ("GET", agent),
        ("PATCH", agent),
        ("GET", "/v1/users"),
        ("POST", "/v1/users"),
        ("GET", user),
        ("GET", &tasks),
        ("GET", "/v1/statistics"),
    ] {
        stranger.send(method, path, &[], b"").problem(401, "unauthorized");
    }
}

#[test]
fn a_made_thing_has_an_address() {
    let world = World::with("");
    let client = world.client(None);
    for (path, body) in
        [("/v1/agents", r#"{"name":"Ada","kind":"writer"}"#), ("/v1/users", r#"{"name":"Ann"}"#)]
    {
        let answer = client.post_json(path, body).expect(201);
        let address = format!("{path}/{}", answer.json()["id"].as_str().unwrap());
        assert_eq!(answer.header("location"), Some(address.as_str()));
        let found = client.get(&address).expect(200).json();
        assert_eq!((&found["id"], &found["name"]), (&answer.json()["id"], &answer.json()["name"]));
    }
}

#[test]
fn many_are_made_together_up_to_a_thousand_and_none_beyond() {
    let world = World::with("");
    let client = world.client(None);
    for (path, of) in [("/v1/agents", "agents"), ("/v1/users", "users")] {
        let one = if of == "agents" { json!({"name": "n", "kind": "k"}) } else { json!({"name": "n"}) };
        let many = |count: usize| client.post_json(path, &json!({of: vec![one.clone(); count]}).to_string());
        let problem = many(1_001).problem(400, "invalid_input");
        assert_eq!((&problem["limit"]["name"], &problem["limit"]["asked"]), (&json!(of), &json!(1_001)));
        assert_eq!(client.get(path).expect(200).json()[of], json!([]), "{of}: all or none");
        assert_eq!(length(&many(1_000).expect(201).json()[of]), 1_000);
        let page = |limit: u32| client.get(&format!("{path}?limit={limit}"));
        assert_eq!(length(&client.get(path).expect(200).json()[of]), 100);
        assert_eq!(page(1_000).expect(200).json().get("next"), None);
        assert_eq!(page(1_001).problem(400, "invalid_input")["limit"]["limit"], 1_000);
        page(0).problem(400, "invalid_input");
    }
}

#[test]
fn names_stop_at_200_bytes_and_say_whose_they_are() {
    let world = World::with("");
    let client = world.client(None);
    let body = |bytes: usize| {
        let long = json!({"name": "n".repeat(bytes), "kind": "k"});
        json!({"agents": [{"name": "n", "kind": "k"}, long]}).to_string()
    };
    client.post_json("/v1/agents", &body(200)).expect(201);
    let problem = client.post_json("/v1/agents", &body(201)).problem(400, "invalid_input");
    assert!(problem["message"].as_str().unwrap().starts_with("agents[1]: "), "{problem}");
}

#[test]
fn bodies_are_bounded_json_documents() {
    let world = World::with("");
    let client = world.client(None);
    for path in ["/v1/agents", "/v1/agents/load", "/v1/agents/statuses", "/v1/users"] {
        let plain = [("content-type", "text/plain")];
        client.send("POST", path, &plain, b"{}").problem(415, "invalid_input");
        let large = format!("{{\"x\":\"{}\"}}", "x".repeat(3 * MIB));
        let problem = client.post_json(path, &large).problem(413, "invalid_input");
        assert_eq!(problem["limit"]["name"], "json_bytes", "{path}");
        client.post_json(path, "{").problem(400, "invalid_input");
        client.post_json(&format!("{path}?x=1"), "{}").problem(400, "invalid_input");
    }
    client.send("PUT", "/v1/agents", &[], b"").problem(405, "invalid_input");
}

#[test]
fn an_unknown_name_in_a_bulk_is_told_with_its_place() {
    let world = World::open();
    let client = world.client(None);
    let (ada, ann) = (agent(&client, "Ada"), user(&client, "Ann"));
    for (field, id) in [("agent", "agent_0000000000001"), ("user", "user_0000000000001")] {
        let known = json!({"kind": "echo", "agent": ada, "user": ann});
        let body = json!({"tasks": [known, {"kind": "echo"}, {"kind": "echo", field: id}]});
        let problem = client.post_json("/v1/tasks", &body.to_string()).problem(404, "not_found");
        assert_eq!(problem["message"], format!("tasks[2]: there is no {field} {id}"));
    }
    assert_eq!(client.get("/v1/tasks").expect(200).json()["tasks"], json!([]));
    assert_eq!(client.get(&format!("/v1/agents/{ada}")).expect(200).json()["tasks"]["total"], 0);
}

#[test]
fn every_unknown_id_of_many_is_told() {
    let world = World::with("");
    let client = world.client(None);
    let ada = agent(&client, "Ada");
    let unknown: Vec<String> = (1..=32).map(|number| keiko_core::AgentId(number).to_string()).collect();
    let change = |id: &String| json!({"agent": id, "status": "active"});
    let mut statuses = vec![change(&ada)];
    statuses.extend(unknown.iter().map(change));
    let body = json!({ "statuses": statuses }).to_string();
    let problem = client.post_json("/v1/agents/statuses", &body).problem(404, "not_found");
    let mut told: Vec<&str> =
        problem["unknown"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, unknown);
    assert!(problem["message"].as_str().unwrap().ends_with("and 12 more"), "{problem}");
    assert_eq!(client.get(&format!("/v1/agents/{ada}")).expect(200).json()["status"], "idle");
}

#[test]
fn statuses_stop_at_a_thousand_and_the_last_of_one_agent_counts() {
    let world = World::with("");
    let client = world.client(None);
    let ada = agent(&client, "Ada");
    let set = |count: usize| {
        let mut statuses = vec![json!({"agent": ada, "status": "active"}); count - 1];
        statuses.push(json!({"agent": ada, "status": "paused"}));
        client.post_json("/v1/agents/statuses", &json!({ "statuses": statuses }).to_string())
    };
    assert_eq!(set(1_001).problem(400, "invalid_input")["limit"]["limit"], 1_000);
    assert_eq!(set(1_000).expect(200).json(), json!({"changed": 1}));
    assert_eq!(client.get(&format!("/v1/agents/{ada}")).expect(200).json()["status"], "paused");
}

#[test]
fn a_page_of_a_users_tasks_ends_at_its_length_and_at_its_bytes() {
    let world = World::open();
    let client = world.client(None);
    let ann = user(&client, "Ann");
    let tasks = format!("/v1/users/{ann}/tasks");
    assert_eq!(client.get(&tasks).expect(200).json(), json!({"tasks": []}));
    assert_eq!(
        client.get(&format!("{tasks}?limit=101")).problem(400, "invalid_input")["limit"]["limit"],
        100
    );
    let result = "x".repeat(2 * MIB - 2);
    for _ in 0..9 {
        let done = client.run(&json!({"kind": "echo", "input": result, "user": ann}).to_string());
        assert_eq!(done["state"], "completed");
    }
    // Eight results of 2 MiB are 16 MiB, and what stands around them is more.
    let page = client.get(&format!("{tasks}?limit=100")).expect(200).json();
    assert_eq!(length(&page["tasks"]), 7);
    let rest = client.get(&format!("{tasks}?before={}", page["next"].as_str().unwrap())).expect(200).json();
    assert_eq!((length(&rest["tasks"]), rest.get("next")), (2, None));
    assert_eq!(rest["tasks"][1]["result"].as_str().unwrap().len(), 2 * MIB - 2);
}

#[test]
fn statistics_include_both_ends_of_their_range() {
    let world = World::open();
    let client = world.client(None);
    let task = client.run(r#"{"kind":"echo"}"#);
    let created = task["created_at"].as_str().unwrap();
    let count = |from: &str, to: &str| {
        let answer = client.get(&format!("/v1/statistics?from={from}&to={to}")).expect(200).json();
        assert_eq!((&answer["from"], &answer["to"]), (&json!(from), &json!(to)));
        answer["statistics"].as_array().unwrap().iter().map(|row| row["count"].as_u64().unwrap()).sum::<u64>()
    };
    let time: jiff::Timestamp = created.parse().unwrap();
    let moved = |ms: i64| {
        let moved = jiff::Timestamp::from_millisecond(time.as_millisecond() + ms).unwrap();
        format!("{moved:.3}")
    };
    assert_eq!(count(created, created), 1);
    assert_eq!(count(&moved(-5), created), 1);
    assert_eq!(count(&moved(-5), &moved(-1)), 0);
    assert_eq!(count(&moved(1), &moved(5)), 0);
    let backwards = format!("/v1/statistics?from={created}&to={}", moved(-1));
    client.get(&backwards).problem(400, "invalid_input");
    let days = |days: i64| format!("/v1/statistics?from={}&to={created}", moved(-days * 86_400_000));
    client.get(&days(366)).expect(200);
    assert_eq!(client.get(&days(367)).problem(400, "invalid_input")["limit"]["name"], "range_days");
}
