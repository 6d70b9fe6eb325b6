//! Every error is a problem, wherever it comes from.

use crate::http::{Connection, head};
use crate::world::World;

#[test]
fn every_refusal_is_a_problem() {
    let world = World::open();
    let client = world.client(None);
    client.get("/").problem(404, "not_found");
    client.get("/v1/task").problem(404, "not_found");
    client.get("/v1/tasks/").problem(404, "not_found");
    let wrong_method = client.send("PUT", "/v1/tasks", &[], b"");
    assert!(wrong_method.header("allow").is_some_and(|allow| allow.contains("POST")), "{wrong_method:?}");
    wrong_method.problem(405, "invalid_input");
    client.delete("/v1/users/user_0000000000001").problem(405, "invalid_input");
    client.delete("/v1/tasks/task_0000000000001").problem(404, "not_found");
    client.get("/v1/tasks/1").problem(404, "not_found");
    client.get("/v1/tasks/task_0000000000001").problem(404, "not_found");
    client.get("/v1/tasks/%ff").problem(400, "invalid_input");
    client.get("/v1/plugins/%2e%2e%2fx").problem(404, "not_found");
    client.post_json("/v1/tasks/task_0000000000001/cancel", "{\"x\":1}").problem(400, "invalid_input");
}

#[test]
fn what_nobody_asked_for_is_refused() {
    let world = World::open();
    let client = world.client(None);
    for path in [
        "/v1/host?x=1",
        "/v1/tasks?stat=failed",
        "/v1/tasks/counts?x",
        "/v1/plugins?limit=1",
        "/v1/plugins/guest?x=1",
        "/v1/tasks/task_0000000000001?limit=1",
    ] {
        client.get(path).problem(400, "invalid_input");
    }
    let problem =
        client.post_json("/v1/tasks", "{\"kind\":\"echo\",\n\"inputt\":1}").problem(400, "invalid_input");
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("`inputt`") && message.contains("line 2 column 8"), "{message}");
    client.post_json("/v1/tasks?wait=", "{}").problem(400, "invalid_input");
    client.post_json("/v1/tasks", "{\"kind\":\"echo\",\"fuel\":0}").problem(400, "invalid_input");
    let problem = client
        .post_json("/v1/tasks", "{\"kind\":\"echo\",\"memory_mib\":1025}")
        .problem(429, "quota_exceeded");
    assert_eq!(problem["limit"]["name"], "memory_bytes");
}

#[test]
fn every_answer_has_a_name_and_its_headers() {
    let world = World::with("");
    let client = world.client(None);
    let named = client.send("GET", "/v1/host", &[("x-request-id", "my-request.1")], b"").expect(200);
    assert_eq!(named.header("x-request-id"), Some("my-request.1"));
    let given = client.send("GET", "/v1/none", &[("x-request-id", "a b")], b"");
    assert!(given.header("x-request-id").unwrap().starts_with("req_"));
    for answer in [named, given, client.get("/livez")] {
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.header("content-security-policy").unwrap().contains("default-src 'none'"));
    }
}

#[test]
fn a_connection_carries_many_requests() {
    let world = World::with("");
    let mut connection = Connection::open(world.address);
    for _ in 0..3 {
        connection.write(&head("GET", "/v1/host", &[]));
        connection.read().expect(200);
        connection.write(&head("GET", "/v1/none", &[]));
        connection.read().expect(404);
    }
    connection.write(&head("HEAD", "/livez", &[]));
    assert_eq!(connection.until_head().0, 200);
}
