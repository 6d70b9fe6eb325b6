//! Pauses over HTTP.

use serde_json::json;

use crate::cli::{Served, out};
use crate::world::{World, tenant};

#[test]
fn a_kind_is_paused_shown_and_resumed() {
    let world = World::open();
    let client = world.client(None);
    let nothing = json!({"host": false, "tenant": false, "kinds": []});
    assert_eq!(client.get("/v1/pause").expect(200).json(), nothing);
    let paused = client.post_json("/v1/pause", r#"{"kind":"echo"}"#).expect(200).json();
    assert_eq!(
        (&paused["kinds"][0]["plugin"], &paused["kinds"][0]["kind"]),
        (&json!("guest"), &json!("echo"))
    );
    assert!(paused["kinds"][0]["paused_at"].as_str().is_some_and(|at| at.ends_with('Z')));
    assert_eq!(client.get("/v1/pause").expect(200).json(), paused);
    let id = client.submit(r#"{"kind":"echo","input":1}"#);
    assert_eq!(client.run(r#"{"kind":"fail","input":"other kinds go on"}"#)["state"], "failed");
    assert_eq!(client.get(&format!("/v1/tasks/{id}")).expect(200).json()["state"], "pending");
    let resumed = client.post_json("/v1/resume", r#"{"plugin":"guest","kind":"echo"}"#).expect(200);
    assert_eq!(resumed.json(), nothing);
    assert_eq!(client.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json()["state"], "completed");
    client.post_json("/v1/pause", "{}").problem(400, "invalid_input");
    client.post_json("/v1/pause", r#"{"kind":"nothing"}"#).problem(404, "not_found");
    client.post_json("/v1/pause", r#"{"kind":"echo","tenant":true}"#).problem(400, "invalid_input");
}

#[test]
fn a_tenant_pauses_itself_and_only_an_operator_the_host() {
    let (one, mine) = tenant("acme", 1);
    let (two, other) = tenant("other", 2);
    let two = two.replace(" }]", ", operator = true }]");
    let world = World::with(&format!("{one}{two}"));
    let (acme, other) = (world.client(Some(&mine)), world.client(Some(&other)));
    acme.install("guest");
    other.install("guest");
    let paused = acme.post_json("/v1/pause", r#"{"tenant":true}"#).expect(200).json();
    assert_eq!((&paused["tenant"], &paused["host"]), (&json!(true), &json!(false)));
    let id = acme.submit(r#"{"kind":"echo"}"#);
    assert_eq!(other.run(r#"{"kind":"echo"}"#)["state"], "completed");
    assert_eq!(other.get("/v1/pause").expect(200).json()["tenant"], false, "another's pause is not told");
    assert_eq!(acme.get(&format!("/v1/tasks/{id}")).expect(200).json()["state"], "pending");
    acme.post_json("/v1/resume", r#"{"tenant":true}"#).expect(200);
    assert_eq!(acme.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json()["state"], "completed");

    acme.post_json("/v1/pause", r#"{"host":true}"#).problem(403, "denied");
    assert_eq!(other.post_json("/v1/pause", r#"{"host":true}"#).expect(200).json()["host"], true);
    let metrics = acme.get("/metrics").expect(200).text();
    assert!(metrics.lines().any(|line| line == "keiko_host_paused 1"), "{metrics}");
    let id = acme.submit(r#"{"kind":"echo"}"#);
    assert_eq!(acme.get(&format!("/v1/tasks/{id}")).expect(200).json()["state"], "pending");
    acme.post_json("/v1/resume", r#"{"host":true}"#).problem(403, "denied");
    other.post_json("/v1/resume", r#"{"host":true}"#).expect(200);
    assert_eq!(acme.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json()["state"], "completed");
}

#[test]
fn a_person_pauses_and_resumes() {
    let served = Served::start(&[]);
    served.run(&["plugin", "install", "guest.wasm"], 0);
    assert_eq!(out(&served.run(&["pause", "show"], 0)), "nothing is paused\n");
    served.run(&["pause", "kind", "--kind", "echo"], 0);
    served.run(&["pause", "tenant"], 0);
    let paused = out(&served.run(&["pause", "host"], 0));
    for part in ["this host", "the tenant", "guest echo"] {
        assert!(paused.contains(part), "{part} is not in {paused}");
    }
    let id = out(&served.run(&["task", "submit", "--kind", "echo"], 0));
    served.run(&["resume", "host"], 0);
    served.run(&["resume", "tenant"], 0);
    served.run(&["task", "wait", id.trim(), "--timeout", "1"], 6);
    served.run(&["resume", "kind", "--plugin", "guest", "--kind", "echo"], 0);
    served.run(&["task", "wait", id.trim(), "--timeout", "60"], 0);
    served.run(&["pause", "kind"], 2);
    served.run(&["pause", "kind", "--kind", "nothing"], 3);
}
