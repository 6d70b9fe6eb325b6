//! Each limit of the HTTP side, at the limit and one above.

use serde_json::json;

use crate::guest;
use crate::http::{Connection, head, send};
use crate::world::{World, tenant};

const JSON: (&str, &str) = ("content-type", "application/json");
const MIB: usize = 1 << 20;

/// A task that a body of exactly `bytes` describes.
fn filled(bytes: usize) -> Vec<u8> {
    let mut body = br#"{"kind":"echo","input":1}"#.to_vec();
    body.resize(bytes, b' ');
    body
}

#[test]
fn a_json_body_stops_at_3_mib() {
    let world = World::open();
    let client = world.client(None);
    let submit = |body: &[u8]| client.send("POST", "/v1/tasks", &[JSON], body);
    submit(&filled(3 * MIB)).expect(201);
    let problem = submit(&filled(3 * MIB + 1)).problem(413, "invalid_input");
    assert_eq!(
        (&problem["limit"]["name"], &problem["limit"]["limit"]),
        (&json!("json_bytes"), &json!(3 * MIB))
    );
    // Without a length in its head, a body over the limit is found on the way.
    for (bytes, status) in [(3 * MIB, 201), (3 * MIB + 1, 413)] {
        let mut connection = Connection::open(world.address);
        connection.write(&head("POST", "/v1/tasks", &[JSON, ("transfer-encoding", "chunked")]));
        for chunk in filled(bytes).chunks(MIB) {
            connection.write(format!("{:x}\r\n", chunk.len()).as_bytes());
            connection.write(chunk);
            connection.write(b"\r\n");
        }
        connection.write(b"0\r\n\r\n");
        connection.read().expect(status);
    }
}

#[test]
fn a_bulk_body_stops_at_64_mib_and_10_000_tasks() {
    let world = World::open();
    let client = world.client(None);
    let mut body = br#"{"tasks":[{"kind":"echo"}]}"#.to_vec();
    body.resize(64 * MIB, b' ');
    client.send("POST", "/v1/tasks", &[JSON], &body).expect(201);
    let mut connection = Connection::open(world.address);
    connection.write(&head("POST", "/v1/tasks", &[JSON, ("content-length", &(64 * MIB + 1).to_string())]));
    // Nothing of it needs to arrive for the answer; the host still reads on for a moment, for the sender's sake.
    connection.write(&vec![b' '; 9 * MIB]);
    connection.read().problem(413, "invalid_input");
    let many = |count: usize| {
        let task = r#"{"kind":"echo","delay_ms":3600000}"#;
        format!("{{\"tasks\":[{}]}}", vec![task; count].join(","))
    };
    let ids = client.post_json("/v1/tasks", &many(10_000)).expect(201).json();
    assert_eq!(ids["tasks"].as_array().unwrap().len(), 10_000);
    client.post_json("/v1/tasks", &many(10_001)).problem(400, "invalid_input");
}

#[test]
fn an_input_stops_at_2_mib() {
    let world = World::open();
    let client = world.client(None);
    let submit = |bytes: usize, rest: &str| {
        let text = "x".repeat(bytes - 2);
        client.post_json("/v1/tasks?wait=60", &format!(r#"{{"kind":"echo","input":"{text}"{rest}}}"#))
    };
    let task = submit(2 * MIB, "").expect(201).json();
    assert_eq!(task["state"], "completed", "{}", task["error"]);
    assert_eq!(task["result"].as_str().unwrap().len(), 2 * MIB - 2);
    let problem = submit(2 * MIB + 1, "").problem(413, "invalid_input");
    assert_eq!(
        (&problem["limit"]["name"], &problem["limit"]["asked"]),
        (&json!("input_bytes"), &json!(2 * MIB + 1))
    );
}

#[test]
fn json_stops_at_64_levels() {
    let world = World::open();
    let client = world.client(None);
    let submit = |levels: usize| {
        let input = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        client.post_json("/v1/tasks?wait=60", &format!(r#"{{"kind":"echo","input":{input}}}"#))
    };
    assert_eq!(submit(63).expect(201).json()["state"], "completed");
    let problem = submit(64).problem(400, "invalid_input");
    assert_eq!((&problem["limit"]["limit"], &problem["limit"]["asked"]), (&json!(64), &json!(65)));
    submit(1_000_000).problem(400, "invalid_input");
}

#[test]
fn a_head_stops_at_its_limits() {
    let world = World::with("");
    let url = |bytes: usize| format!("/v1/host?{}", "u".repeat(bytes - 9));
    let get = |path: &str, headers: &[(&str, &str)]| send(world.address, "GET", path, headers, b"");
    get(&url(8_192), &[]).problem(400, "invalid_input");
    get(&url(8_193), &[]).problem(414, "invalid_input");
    // `host: localhost` has 17 bytes, `x: ` with its line end 5.
    let value = "v".repeat(32_768 - 17 - 5);
    get("/livez", &[("x", &value)]).expect(200);
    let problem = get("/livez", &[("x", &format!("{value}v"))]).problem(431, "invalid_input");
    assert_eq!(problem["limit"]["asked"], 32_769);
    // Far beyond, the answer comes from below the API, and the host is none the worse.
    assert_eq!(get("/livez", &[("x", &"v".repeat(200_000))]).status, 431);
    get("/livez", &[]).expect(200);
}

#[test]
fn a_wait_stops_at_60_seconds() {
    let world = World::open();
    let client = world.client(None);
    let id = client.run(r#"{"kind":"echo"}"#)["id"].as_str().unwrap().to_owned();
    client.get(&format!("/v1/tasks/{id}?wait=60")).expect(200);
    let problem = client.get(&format!("/v1/tasks/{id}?wait=61")).problem(400, "invalid_input");
    assert_eq!(problem["limit"]["name"], "wait_s");
}

#[test]
fn each_class_of_requests_has_its_own_room() {
    let world = World::with("[api]\nrequests_max = 2\nwaits_max = 1\nuploads_max = 1\n");
    let client = world.client(None);
    let classes: [(&str, &str, (&str, &str), usize); 3] = [
        ("/v1/tasks", "requests", JSON, 2),
        ("/v1/tasks?wait=1", "waits", JSON, 1),
        ("/v1/plugins", "uploads", ("content-type", "application/wasm"), 1),
    ];
    let mut inside = Vec::new();
    for (path, name, content_type, room) in classes {
        for _ in 0..room {
            let mut connection = Connection::open(world.address);
            connection.begin("POST", path, &[content_type], 2);
            inside.push(connection);
        }
        let problem = client.send("POST", path, &[content_type], b"{}").problem(503, "rate_limited");
        assert_eq!((&problem["limit"]["name"], &problem["limit"]["limit"]), (&json!(name), &json!(room)));
    }
    for path in ["/livez", "/readyz"] {
        client.get(path).expect(200);
    }
    for connection in &mut inside {
        connection.write(b"{}");
        // Neither is there a plugin, nor is `{}` one: whatever the answer is, it is the request's own.
        let answer = connection.read();
        assert!((400..500).contains(&answer.status), "{}", answer.text());
    }
    client.get("/v1/host").expect(200);
}

/// Whoever is still writing sees why there is no room, and no broken connection.
#[test]
fn the_largest_component_sees_that_there_is_no_room() {
    let world = World::with("[api]\nuploads_max = 1\n");
    let wasm = ("content-type", "application/wasm");
    let mut inside = Connection::open(world.address);
    inside.begin("POST", "/v1/plugins", &[wasm], 2);
    let largest = vec![0; 32 * MIB];
    let mut refused = Connection::open(world.address);
    refused.write(&head("POST", "/v1/plugins", &[wasm, ("content-length", &largest.len().to_string())]));
    refused.try_write(&largest).expect("the host reads on");
    assert_eq!(refused.read().problem(503, "rate_limited")["limit"]["name"], "uploads");
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let world = World::with("[api]\nconnections_max = 2\n");
    let mut open: Vec<Connection> = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::open(world.address);
        connection.write(&head("GET", "/livez", &[]));
        connection.read().expect(200);
        open.push(connection);
    }
    let mut third = Connection::open(world.address);
    third.write(&head("GET", "/livez", &[]));
    let refused = third.read().expect(503);
    assert_eq!(
        (refused.header("retry-after"), refused.json()["code"].as_str()),
        (Some("1"), Some("rate_limited"))
    );
    assert!(third.is_closed());
    // A connection that closes makes room, as soon as the host has seen it.
    open[0].write(&head("GET", "/livez", &[("connection", "close")]));
    open[0].read().expect(200);
    assert!(open[0].is_closed());
    let answered = (0..1_000).any(|_| send(world.address, "GET", "/livez", &[], b"").status == 200);
    assert!(answered);
}

#[test]
fn whoever_is_slow_is_not_waited_for() {
    let world = World::with("[api]\nheader_s = 1\nrequest_s = 1\n");
    let mut slow_head = Connection::open(world.address);
    slow_head.write(b"GET /livez HTTP/1.1\r\nhost: loc");
    let mut slow_body = Connection::open(world.address);
    slow_body.write(&head("POST", "/v1/tasks", &[JSON, ("content-length", "9")]));
    slow_body.write(b"{");
    let problem = slow_body.read().problem(408, "deadline_exceeded");
    assert!(problem["message"].as_str().unwrap().contains("did not arrive in time"), "{problem}");
    assert!(slow_head.try_read().is_none_or(|answer| answer.status == 408));
}

#[test]
fn a_component_stops_at_its_tenants_limit() {
    let (text, token) = tenant("acme", 1);
    let world = World::with(&format!("{text}[tenants.acme.limits]\ncomponent_mib_max = 1\n"));
    let client = world.client(Some(&token));
    let component = |bytes: usize| guest::padded(guest::component("guest", "0.1.0"), bytes);
    let problem = client.upload("/v1/plugins", &component(MIB + 1)).problem(413, "quota_exceeded");
    assert_eq!(
        (&problem["limit"]["name"], &problem["limit"]["set_by"]),
        (&json!("component_bytes"), &json!("tenant"))
    );
    let plugin = client.upload("/v1/plugins", &component(MIB)).expect(201).json();
    assert_eq!(plugin["component_bytes"], MIB);
    let mut chunked = Connection::open(world.address);
    let authorization = format!("Bearer {}", token.reveal());
    let headers = [
        ("content-type", "application/wasm"),
        ("authorization", authorization.as_str()),
        ("transfer-encoding", "chunked"),
    ];
    chunked.write(&head("POST", "/v1/plugins", &headers));
    chunked.write(format!("{:x}\r\n", MIB + 1).as_bytes());
    chunked.write(&component(MIB + 1));
    chunked.write(b"\r\n0\r\n\r\n");
    chunked.read().problem(413, "quota_exceeded");
}
