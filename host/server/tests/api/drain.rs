//! How a host stops, and what it finds when it starts again.

use std::sync::Arc;

use keiko::Host;
use serde_json::json;

use crate::http::{Connection, head};
use crate::world::World;

#[test]
fn a_draining_host_says_so_and_hands_its_tasks_back() {
    let mut world = World::with("[host]\ndrain_s = 2\n");
    let client = world.client(None);
    client.install("guest");
    let running =
        client.post_json("/v1/tasks?wait=1", r#"{"kind":"loop","fuel":100000000000,"timeout_s":600}"#);
    let id = running.expect(201).json()["id"].as_str().unwrap().to_owned();
    let host = world.take_host();
    let draining = world.runtime.spawn(host.drain());
    // From the first moment on until the drain time is up, every answer is whole.
    let refused = (0..100_000).any(|_| client.get("/readyz").status == 503);
    assert!(refused);
    client.get("/readyz").problem(503, "storage_busy");
    client.post_json("/v1/tasks", r#"{"kind":"echo"}"#).problem(503, "storage_busy");
    assert_eq!(client.get("/livez").expect(200).text(), "ok");
    assert_eq!(client.get(&format!("/v1/tasks/{id}?wait=60")).expect(200).json()["state"], "running");
    let report = world.runtime.block_on(draining).unwrap();
    assert_eq!((report.finished, report.handed_back), (0, 1));
    assert!(std::net::TcpStream::connect(world.address).is_err());
    let again = World::start(Arc::clone(&world.home), "");
    let task = again.client(None).get(&format!("/v1/tasks/{id}")).expect(200).json();
    assert!(matches!(task["state"].as_str(), Some("pending" | "running")), "{task}");
    assert_eq!((&task["attempts"], &task["crashes"]), (&json!([]), &json!(0)), "a drain charges nothing");
    again.client(None).post(&format!("/v1/tasks/{id}/cancel")).expect(200);
}

#[test]
fn what_was_accepted_is_there_after_a_restart() {
    let world = World::open();
    let done = world.client(None).run(r#"{"kind":"echo","input":[1]}"#);
    let waiting = world.client(None).submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    let world = World::start(world.stop(), "");
    let client = world.client(None);
    assert_eq!(client.get(&format!("/v1/tasks/{}", done["id"].as_str().unwrap())).expect(200).json(), done);
    assert_eq!(client.get(&format!("/v1/tasks/{waiting}")).expect(200).json()["state"], "pending");
    assert_eq!(client.run(r#"{"kind":"echo","input":2}"#)["result"], 2);
}

#[test]
fn an_idle_connection_does_not_hold_a_drain_up() {
    let mut world = World::with("");
    let mut idle = Connection::open(world.address);
    idle.write(&head("GET", "/livez", &[]));
    idle.read().expect(200);
    let host = world.take_host();
    let began = std::time::Instant::now();
    world.runtime.block_on(host.drain());
    assert!(idle.is_closed());
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn a_host_without_http_is_reached_through_its_handle() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let builder = Host::builder().data_dir(folder.path()).without_http();
        let host = builder
            .compiler(env!("CARGO_BIN_EXE_keiko"), vec!["compile-child".into()])
            .build()
            .await
            .unwrap();
        assert_eq!(host.address(), None);
        let handle = host.handle();
        let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
        let component = crate::guest::component("guest", "0.1.0");
        let (plugin, changed) = handle.install(tenant, component.into(), None).await.unwrap();
        assert_eq!((plugin.name.as_str(), changed), ("guest", true));
        let report = host.serve_until(async {}).await;
        assert_eq!((report.finished, report.handed_back, report.unstopped), (0, 0, vec![]));
        let refused = handle.submit(tenant, Vec::new(), None).await.unwrap_err();
        assert_eq!(refused.code.as_str(), "storage_busy");
    });
}

#[test]
fn an_open_host_cannot_be_exposed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let builder = Host::builder().data_dir(folder.path()).listen("0.0.0.0:0".parse().unwrap());
    let error = runtime.block_on(builder.build()).err().unwrap().to_string();
    assert!(error.contains("no tenant has a token"), "{error}");
}
