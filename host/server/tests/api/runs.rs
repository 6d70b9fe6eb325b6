//! `POST /v1/run` and `GET /v1/usage`.

use serde_json::{Value, json};

use crate::http::{Connection, head};
use crate::world::{Client, World, tenant};

const JSON: (&str, &str) = ("content-type", "application/json");

fn run(client: &Client, body: &str) -> crate::http::Response {
    client.post_json("/v1/run", body)
}

fn report(client: &Client, body: &str) -> Value {
    client.post_json("/v1/run?report=true", body).expect(200).json()
}

/// Waits until the host's metrics say this.
fn until(client: &Client, text: &str) {
    let says = |_| client.get("/metrics").expect(200).text().contains(text);
    assert!((0..100_000).any(says), "the host never says {text:?}");
}

#[test]
fn a_run_answers_with_its_result_and_what_it_spent() {
    let world = World::open();
    let client = world.client(None);
    // Neither the host nor a library may write the input anew.
    let input = r#"{"b":1.000,  "a":12345678901234567890123}"#;
    let answer = run(&client, &format!(r#"{{"kind":"echo","input":{input}}}"#)).expect(200);
    assert_eq!((answer.text().as_str(), answer.header("content-type")), (input, Some("application/json")));
    assert!(answer.header("keiko-fuel-used").unwrap().parse::<u64>().unwrap() > 0);
    assert!(answer.header("keiko-duration-us").unwrap().parse::<u64>().is_ok());
    assert_eq!((answer.header("keiko-pure"), answer.header("keiko-host-calls")), (Some("true"), Some("0")));
    let bytes =
        run(&client, r#"{"kind":"echo","input_base64":"AAH/","content_type":"text/html"}"#).expect(200);
    assert_eq!((bytes.body.as_slice(), bytes.header("content-type")), (&[0, 1, 255][..], Some("text/html")));
    assert!(bytes.header("content-security-policy").unwrap().contains("sandbox"));
    assert_eq!(client.get("/v1/tasks").expect(200).json(), json!({"tasks": []}), "a run is no task");
    let metrics = client.get("/metrics").expect(200).text();
    assert!(metrics.contains("\nkeiko_runs_total 2\n"), "{metrics}");
}

#[test]
fn a_failed_run_is_an_error_with_its_code() {
    let world = World::open();
    let client = world.client(None);
    let failed = run(&client, r#"{"kind":"fail","input":"no <films> today"}"#);
    assert!(failed.header("keiko-fuel-used").unwrap().parse::<u64>().unwrap() > 0);
    let problem = failed.problem(422, "plugin_failed");
    assert_eq!(problem["message"], "\"no <films> today\"");
    let problem = run(&client, r#"{"kind":"loop","fuel":100000}"#).problem(422, "fuel_exhausted");
    assert_eq!(problem["limit"], json!({"name": "fuel", "limit": 100_000, "set_by": "task"}));
    run(&client, r#"{"kind":"loop","fuel":100000000000,"timeout_s":1}"#).problem(422, "deadline_exceeded");
    run(&client, r#"{"kind":"none"}"#).problem(404, "not_found");
    run(&client, r#"{"kind":"echo","timeout_s":61}"#).problem(429, "quota_exceeded");
    run(&client, r#"{"kind":"echo","attempts":2}"#).problem(400, "invalid_input");
    run(&client, r#"{"kind":"echo","delay_ms":2}"#).problem(400, "invalid_input");
    client.send("POST", "/v1/run", &[("content-type", "text/plain")], b"{}").problem(415, "invalid_input");
    client.post_json("/v1/run?wait=5", r#"{"kind":"echo"}"#).problem(400, "invalid_input");
    client.get("/v1/run").problem(405, "invalid_input");
}

#[test]
fn a_report_has_everything_also_of_a_failure() {
    let world = World::open();
    let client = world.client(None);
    let said = report(&client, r#"{"kind":"say","input":"hello"}"#);
    assert_eq!(
        (&said["state"], &said["result"], &said["version"]),
        (&json!("completed"), &json!("hello"), &json!("0.1.0"))
    );
    assert_eq!(said["log"]["lines"][0]["message"], "\"hello\"");
    assert_eq!((&said["pure"], &said["host_calls"]), (&json!(true), &json!(1)));
    assert!(said["digest"].as_str().unwrap().starts_with("sha256:"));
    let failed = report(&client, r#"{"kind":"fail","input":1}"#);
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("plugin_failed")));
    let odd = report(&client, r#"{"kind":"odd"}"#);
    assert_eq!((&odd["result_base64"], &odd["content_type"]), (&json!("e10="), &json!("application/json")));
}

#[test]
fn a_tenant_without_room_is_told_when_to_come_back_and_its_neighbour_runs() {
    let ((ada, ada_token), (bob, bob_token)) = (tenant("ada", 1), tenant("bob", 2));
    let world = World::with(&format!("{ada}[tenants.ada.limits]\nrunning_max = 1\n{bob}"));
    let (ada, bob) = (world.client(Some(&ada_token)), world.client(Some(&bob_token)));
    ada.install("guest");
    bob.install("guest");
    let body = br#"{"kind":"loop","fuel":100000000000,"timeout_s":60}"#;
    let authorization = format!("Bearer {}", ada_token.reveal());
    let length = body.len().to_string();
    let head =
        head("POST", "/v1/run", &[JSON, ("authorization", &authorization), ("content-length", &length)]);
    let begin = |state: &str| {
        let mut connection = Connection::open(world.address);
        connection.write(&head);
        connection.write(body);
        until(&ada, state);
        connection
    };
    let open = [begin("\nkeiko_attempts_running 1\n"), begin("\nkeiko_runs_waiting 1\n")];
    let problem = run(&ada, r#"{"kind":"echo"}"#).problem(429, "queue_full");
    assert_eq!(problem["limit"], json!({"name": "runs_waiting", "limit": 1, "asked": 2, "set_by": "tenant"}));
    run(&bob, r#"{"kind":"echo"}"#).expect(200);
    // Their clients go away: the runs stop, and there is room again.
    drop(open);
    until(&ada, "\nkeiko_attempts_running 0\n");
    run(&ada, r#"{"kind":"echo"}"#).expect(200);
}

#[test]
fn a_draining_host_answers_its_runs() {
    let mut world = World::open();
    let body = br#"{"kind":"loop","fuel":100000000000,"timeout_s":60}"#;
    let mut connection = Connection::open(world.address);
    connection.write(&head("POST", "/v1/run", &[JSON, ("content-length", &body.len().to_string())]));
    connection.write(body);
    until(&world.client(None), "\nkeiko_attempts_running 1\n");
    let host = world.take_host();
    world.runtime.block_on(host.drain());
    connection.read().problem(503, "storage_busy");
}

#[test]
fn usage_tells_what_runs_and_tasks_spent_by_day() {
    let ((ada, ada_token), (bob, bob_token)) = (tenant("ada", 1), tenant("bob", 2));
    let config = format!("{ada}{bob}");
    let world = World::with(&config);
    let client = world.client(Some(&ada_token));
    client.install("guest");
    run(&client, r#"{"kind":"echo"}"#).expect(200);
    run(&client, r#"{"kind":"fail"}"#).problem(422, "plugin_failed");
    client.run(r#"{"kind":"echo"}"#);
    let world = World::start(world.stop(), &config);
    let usage = world.client(Some(&ada_token)).get("/v1/usage").expect(200).json();
    let day = &usage["days"][0];
    assert_eq!(
        (&day["attempts"], &day["completed"], &day["failed"]),
        (&json!(3), &json!(2), &json!(1)),
        "{usage}"
    );
    assert!(day["fuel_used"].as_u64().unwrap() > 0 && usage["to"] == day["day"], "{usage}");
    assert_eq!(world.client(Some(&bob_token)).get("/v1/usage").expect(200).json()["days"], json!([]));
    world.client(Some(&bob_token)).get("/v1/usage?from=x").problem(400, "invalid_input");
}
