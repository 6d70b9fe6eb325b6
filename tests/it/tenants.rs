//! Two tenants in one host: neither sees, names or holds up what is the other's.

use keiko_tests::check::attack::base64_url;
use keiko_tests::check::hostile::two_tenants;
use keiko_tests::{Client, tree};
use serde_json::{Value, json};

#[test]
fn every_object_of_another_tenant_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, one, other) = two_tenants(folder.path()).unwrap();
    one.install(&tree::guest("family").unwrap()).unwrap();
    let id =
        one.submit("family", "child", json!({"n": 1, "which": 0}), json!({"delay_ms": 3_600_000})).unwrap();

    let made = |path: &str, body: Value| {
        let answer = one.post_json(path, &body, None).unwrap().expect(&[201]).unwrap();
        answer["id"].as_str().unwrap().to_owned()
    };
    let agent = made("/v1/agents", json!({"name": "Ada", "kind": "writer"}));
    let user = made("/v1/users", json!({"name": "Ann"}));
    let get = |path: &str| other.get(path).unwrap();
    let post_json = |path: &str, body: Value| other.post_json(path, &body, None).unwrap();
    let submit = |field: &str, id: &str| {
        let input = json!({"n": 1, "which": 0});
        post_json("/v1/tasks", json!({"plugin": "family", "kind": "child", "input": input, field: id}))
    };
    let post = |path: &str| other.post(path, &[], &[]).unwrap();
    for answer in [
        get(&format!("/v1/tasks/{id}")),
        get(&format!("/v1/tasks/{id}?wait=1")),
        get(&format!("/v1/tasks/{id}/input")),
        get(&format!("/v1/tasks/{id}/result")),
        get(&format!("/v1/tasks/{id}/logs")),
        post(&format!("/v1/tasks/{id}/cancel")),
        post(&format!("/v1/tasks/{id}/retry")),
        other.delete(&format!("/v1/tasks/{id}")).unwrap(),
        get("/v1/plugins/family"),
        get("/v1/plugins/family/history"),
        post("/v1/plugins/family/rollback"),
        post_json("/v1/plugins/family/activate", json!({"version": "0.1.0"})),
        other.delete("/v1/plugins/family").unwrap(),
        post_json("/v1/tasks", json!({"plugin": "family", "kind": "child", "input": {}})),
        post_json(&format!("/v1/tasks/{id}/retry"), json!({"input": {"n": 2, "which": 0}})),
        post_json("/v1/pause", json!({"plugin": "family", "kind": "child"})),
        post_json("/v1/resume", json!({"plugin": "family", "kind": "child"})),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{answer}");
    }
    // With a plugin of its own a stranger still names no agent and no user of another.
    other.install(&tree::guest("family").unwrap()).unwrap();
    let statuses = json!({"statuses": [{"agent": agent, "status": "failed"}]});
    for answer in [
        get(&format!("/v1/agents/{agent}")),
        get(&format!("/v1/users/{user}")),
        get(&format!("/v1/users/{user}/tasks")),
        post_json("/v1/agents/statuses", statuses),
        submit("agent", &agent),
        submit("user", &user),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{answer}");
    }
    let loaded = post_json("/v1/agents/load", json!({"ids": [agent]})).expect(&[200]).unwrap();
    assert_eq!(loaded, json!({"agents": [null], "missing": [agent]}));
    for (path, of) in [("/v1/agents", "agents"), ("/v1/users", "users"), ("/v1/statistics", "statistics")] {
        assert_eq!(get(path).expect(&[200]).unwrap()[of], json!([]), "{path}");
    }
    // A pause, and a drop of many, are of the tenant that asks.
    post_json("/v1/pause", json!({"plugin": "family", "kind": "child"})).expect(&[200]).unwrap();
    assert_eq!(one.get("/v1/pause").unwrap().expect(&[200]).unwrap()["kinds"], json!([]));
    let dropped = other.delete("/v1/tasks?state=completed").unwrap().expect(&[200]).unwrap();
    assert_eq!(dropped["matched"], 0);
    other.delete("/v1/plugins/family").unwrap();
    assert_eq!(other.list("", 10).unwrap(), [] as [Value; 0]);
    assert_eq!(other.list(&format!("&parent={id}"), 10).unwrap(), [] as [Value; 0]);
    assert_eq!(other.get("/v1/plugins").unwrap().json().unwrap(), json!({"plugins": []}));
    assert_eq!((one.live().unwrap(), other.live().unwrap()), (1, 0));
}

#[test]
fn a_canary_of_another_tenant_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, one, other) = two_tenants(folder.path()).unwrap();
    let guest = tree::guest("family").unwrap();
    one.install(&guest).unwrap();
    let manifest = "[plugin]\nname = \"family\"\nversion = \"2\"\n[[kind]]\nname = \"child\"\n";
    let path = format!("/v1/plugins?canary_percent=10&manifest={}", base64_url(manifest.as_bytes()));
    one.post(&path, &[("content-type", "application/wasm")], &guest).unwrap().expect(&[201]).unwrap();
    let tried = json!({"version": "2", "canary_percent": 10});
    for answer in [
        other.get("/v1/plugins/family/canary").unwrap(),
        other.delete("/v1/plugins/family/canary").unwrap(),
        other.post_json("/v1/plugins/family/activate", &tried, None).unwrap(),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{answer}");
    }
    let tried = one.get("/v1/plugins/family/canary").unwrap().expect(&[200]).unwrap();
    assert_eq!((&tried["state"], &tried["tasks"]), (&json!("trying"), &json!(0)));
}

#[test]
fn a_group_of_another_tenant_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, one, other) = two_tenants(folder.path()).unwrap();
    one.install(&tree::guest("family").unwrap()).unwrap();
    let member =
        json!({"plugin": "family", "kind": "child", "input": {"n": 1, "which": 0}, "delay_ms": 3_600_000});
    let made =
        one.post_json("/v1/groups", &json!({"tasks": [member]}), None).unwrap().expect(&[201]).unwrap();
    let path = format!("/v1/groups/{}", made["id"].as_str().unwrap());
    for answer in [
        other.get(&path).unwrap(),
        other.get(&format!("{path}?wait=1")).unwrap(),
        other.get(&format!("{path}/outcomes")).unwrap(),
        other.post(&format!("{path}/cancel"), &[], &[]).unwrap(),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{answer}");
    }
    assert_eq!(one.get(&path).unwrap().expect(&[200]).unwrap()["state"], "open");
}

#[test]
fn the_same_names_and_keys_mean_different_things() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, one, other) = two_tenants(folder.path()).unwrap();
    let run = |client: &Client, n: u64| {
        client.install(&tree::guest("family").unwrap()).unwrap();
        let body = json!({"plugin": "family", "kind": "child", "input": {"n": n, "which": 0}});
        let task = client.post_json("/v1/tasks?wait=30", &body, Some("the same key")).unwrap();
        task.expect(&[201]).unwrap()["result"]["answer"].clone()
    };
    assert_eq!((run(&one, 1), run(&other, 2)), (json!(10), json!(20)));
}

#[test]
fn without_a_valid_token_nothing_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (host, one, _) = two_tenants(folder.path()).unwrap();
    let stranger = host.client();
    for client in [&stranger, &stranger.with_token("keiko_0000000000_00"), &stranger.with_token("")] {
        for path in ["/v1/tasks", "/v1/plugins", "/v1/host", "/v1/tasks/counts"] {
            let answer = client.get(path).unwrap();
            assert_eq!((answer.status, answer.code().as_str()), (401, "unauthorized"), "{path}: {answer}");
        }
    }
    assert_eq!(stranger.get("/livez").unwrap().status, 200);
    assert_eq!(one.get("/v1/host").unwrap().expect(&[200]).unwrap()["tenant"], "attacker");
}
