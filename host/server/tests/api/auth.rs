//! Who may do what, and that nobody sees what is another's.

use serde_json::json;

use crate::http::send;
use crate::world::{Client, World, tenant};

/// Every route behind the token, with a task and a plugin to name.
fn routes(id: &str, plugin: &str) -> Vec<(&'static str, String)> {
    let get = ["/input", "/result", "/logs", ""].map(|rest| ("GET", format!("/v1/tasks/{id}{rest}")));
    let post = ["/cancel", "/retry"].map(|rest| ("POST", format!("/v1/tasks/{id}{rest}")));
    let plugins = [
        ("GET", format!("/v1/plugins/{plugin}")),
        ("GET", format!("/v1/plugins/{plugin}/component")),
        ("GET", format!("/v1/plugins/{plugin}/history")),
        ("POST", format!("/v1/plugins/{plugin}/rollback")),
        ("GET", format!("/v1/plugins/{plugin}/canary")),
        ("DELETE", format!("/v1/plugins/{plugin}/canary")),
        ("DELETE", format!("/v1/plugins/{plugin}")),
    ];
    let wait = ("GET", format!("/v1/tasks/{id}?wait=1"));
    get.into_iter().chain(post).chain(plugins).chain([wait]).collect()
}

#[test]
fn no_route_answers_without_a_token() {
    let (text, token) = tenant("acme", 1);
    let world = World::with(&text);
    let mut all = routes("task_0000000000001", "guest");
    all.extend(
        [("GET", "/v1/tasks"), ("POST", "/v1/tasks"), ("GET", "/v1/tasks/counts"), ("GET", "/v1/plugins")]
            .map(|(method, path)| (method, path.to_owned())),
    );
    all.extend(
        [("GET", "/v1/pause"), ("POST", "/v1/pause"), ("POST", "/v1/resume")]
            .map(|(method, path)| (method, path.to_owned())),
    );
    all.extend(
        [("POST", "/v1/plugins"), ("GET", "/v1/host"), ("GET", "/v1/nothing"), ("GET", "/")]
            .map(|(method, path)| (method, path.to_owned())),
    );
    let wrong = token.reveal().replace("_0101", "_0202");
    let headers = [
        vec![],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer x".to_owned())],
        vec![("authorization", format!("Bearer {wrong}"))],
        vec![("authorization", format!("Bearer {}x", token.reveal()))],
        vec![("authorization", format!("Basic {}", token.reveal()))],
    ];
    for (method, path) in &all {
        for headers in &headers {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = send(world.address, method, path, &headers, b"");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{method} {path}");
            answer.problem(401, "unauthorized");
        }
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(send(world.address, "GET", path, &[], b"").expect(200).text(), "ok");
    }
    let host = world.client(Some(&token)).get("/v1/host").expect(200).json();
    assert_eq!((&host["tenant"], &host["workers"]), (&json!("acme"), &json!(1)));
    assert_eq!(host["queue_max"], 100_000);
}

#[test]
fn an_expired_token_is_worth_nothing() {
    let (text, token) = tenant("acme", 1);
    let world = World::with(&text.replace(" }]", ", expires = \"2020-01-01T00:00:00Z\" }]"));
    world.client(Some(&token)).get("/v1/host").problem(401, "unauthorized");
}

#[test]
fn nobody_sees_what_is_another_tenants() {
    let ((mine, my_token), (theirs, their_token)) = (tenant("mine", 1), tenant("theirs", 2));
    let world = World::with(&format!("{mine}{theirs}"));
    let (me, they) = (world.client(Some(&my_token)), world.client(Some(&their_token)));
    me.install("guest");
    let id = me.run(r#"{"kind":"echo","input":"secret"}"#)["id"].as_str().unwrap().to_owned();
    let failed = me.run(r#"{"kind":"fail","input":"secret"}"#)["id"].as_str().unwrap().to_owned();
    let waiting = me.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    let strangers = |they: &Client| {
        for id in [&id, &failed, &waiting] {
            for (method, path) in routes(id, "guest") {
                if path.starts_with("/v1/plugins") {
                    continue;
                }
                let problem = they.send(method, &path, &[], b"").problem(404, "not_found");
                assert!(!problem.to_string().contains("secret"), "{problem}");
            }
        }
        assert_eq!(they.get("/v1/tasks").expect(200).json()["tasks"], json!([]));
        assert_eq!(they.get(&format!("/v1/tasks?parent={id}")).expect(200).json()["tasks"], json!([]));
        assert_eq!(they.get("/v1/tasks/counts").expect(200).json()["completed"], 0);
    };
    strangers(&they);
    for (method, path) in routes(&id, "guest").into_iter().filter(|(_, path)| path.starts_with("/v1/plugins"))
    {
        they.send(method, &path, &[], b"").problem(404, "not_found");
    }
    they.post_json("/v1/tasks", r#"{"plugin":"guest","kind":"echo"}"#).problem(404, "not_found");
    assert_eq!(they.get("/v1/plugins").expect(200).json()["plugins"], json!([]));
    // A plugin of the same name is another plugin, and the same key another key.
    they.install("guest");
    strangers(&they);
    let keyed = |client: &Client| {
        let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
        client
            .send("POST", "/v1/tasks", &headers, br#"{"kind":"echo","delay_ms":3600000}"#)
            .expect(201)
            .json()["id"]
            .clone()
    };
    assert_ne!(keyed(&me), keyed(&they));
    they.delete("/v1/plugins/guest").problem(409, "conflict");
    assert_eq!(me.get(&format!("/v1/tasks/{waiting}")).expect(200).json()["state"], "pending");
}

#[test]
fn one_tenants_full_queue_is_not_anothers() {
    let ((mine, my_token), (theirs, their_token)) = (tenant("mine", 1), tenant("theirs", 2));
    let world = World::with(&format!("{mine}[tenants.mine.limits]\nqueue_max = 2\n{theirs}"));
    let (me, they) = (world.client(Some(&my_token)), world.client(Some(&their_token)));
    me.install("guest");
    they.install("guest");
    let body = r#"{"kind":"echo","delay_ms":3600000}"#;
    me.submit(body);
    me.submit(body);
    let answer = me.post_json("/v1/tasks", body);
    let problem = answer.problem(429, "queue_full");
    assert_eq!((&problem["limit"]["limit"], &problem["limit"]["set_by"]), (&json!(2), &json!("tenant")));
    they.submit(body);
}

#[test]
fn an_open_host_answers_no_foreign_page() {
    let world = World::with("");
    let client = world.client(None);
    client.send("GET", "/v1/host", &[("host", "evil.example")], b"").problem(403, "denied");
    let foreign = [("origin", "https://evil.example")];
    client.send("POST", "/v1/tasks/task_0000000000001/cancel", &foreign, b"").problem(403, "denied");
    let own = [("host", "localhost:1"), ("origin", "http://localhost:1")];
    client.send("GET", "/v1/host", &own, b"").expect(200);
    client.send("POST", "/v1/tasks", &[("content-type", "text/plain")], b"{}").problem(415, "invalid_input");
}
