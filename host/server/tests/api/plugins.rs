//! Plugins over HTTP.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::guest;
use crate::world::{World, tenant};

#[test]
fn a_plugin_is_installed_listed_and_removed() {
    let world = World::with("");
    let client = world.client(None);
    let component = guest::component("guest", "0.1.0");
    let plugin = client.upload("/v1/plugins", &component).expect(201).json();
    assert_eq!((&plugin["name"], &plugin["version"]), (&json!("guest"), &json!("0.1.0")));
    assert_eq!(plugin["component_bytes"], component.len());
    assert_eq!((&plugin["wants"], &plugin["denied"]), (&json!(["log", "tasks"]), &json!([])));
    assert_eq!(plugin["kinds"][0], json!({"name": "echo", "description": ""}));
    assert_eq!(client.upload("/v1/plugins", &component).expect(200).json(), plugin);
    assert_eq!(client.get("/v1/plugins/guest").expect(200).json(), plugin);
    assert_eq!(client.get("/v1/plugins").expect(200).json(), json!({ "plugins": [plugin] }));
    let kept = client.get("/v1/plugins/guest/component").expect(200);
    assert_eq!(
        (kept.body, kept.headers.iter().any(|(_, value)| value == "application/wasm")),
        (component, true)
    );
    client.delete("/v1/plugins/guest").expect(204);
    client.delete("/v1/plugins/guest").problem(404, "not_found");
    client.get("/v1/plugins/guest").problem(404, "not_found");
    client.get("/v1/plugins/guest/component").problem(404, "not_found");
    client.post_json("/v1/tasks", r#"{"plugin":"guest","kind":"echo"}"#).problem(404, "not_found");
}

#[test]
fn a_version_stands_for_the_same_bytes_for_ever() {
    let world = World::with("");
    let client = world.client(None);
    client.upload("/v1/plugins", &guest::component("guest", "0.1.0")).expect(201);
    let other = guest::padded(guest::component("guest", "0.1.0"), 8_192);
    client.upload("/v1/plugins", &other).problem(409, "conflict");
    let next = client.upload("/v1/plugins", &guest::component("guest", "0.2.0")).expect(201).json();
    assert_eq!(next["version"], "0.2.0");
}

#[test]
fn a_manifest_may_come_beside_the_component() {
    let world = World::with("");
    let client = world.client(None);
    client.upload("/v1/plugins", &guest::bare()).problem(422, "component_invalid");
    let path = |text: &str| format!("/v1/plugins?manifest={}", URL_SAFE_NO_PAD.encode(text));
    let plugin = client.upload(&path(&guest::manifest("beside", "1.0.0")), &guest::bare()).expect(201).json();
    assert_eq!(plugin["name"], "beside");
    client.upload(&path("[plugin]"), &guest::bare()).problem(400, "invalid_input");
    client.upload("/v1/plugins?manifest=*", &guest::bare()).problem(400, "invalid_input");
}

#[test]
fn what_is_no_component_is_refused() {
    let world = World::with("");
    let client = world.client(None);
    client.upload("/v1/plugins", b"").problem(422, "component_invalid");
    client.upload("/v1/plugins", b"\0asm\x01\0\0\0").problem(422, "component_invalid");
    let mut cut = guest::component("guest", "0.1.0");
    cut.truncate(200);
    client.upload("/v1/plugins", &cut).problem(422, "component_invalid");
    let headers = [("content-type", "application/octet-stream")];
    client.send("POST", "/v1/plugins", &headers, b"x").problem(415, "invalid_input");
    client.send("POST", "/v1/plugins", &[], b"x").problem(415, "invalid_input");
}

#[test]
fn a_plugin_with_open_tasks_stays() {
    let world = World::open();
    let client = world.client(None);
    let id = client.submit(r#"{"kind":"echo","delay_ms":3600000}"#);
    client.delete("/v1/plugins/guest").problem(409, "conflict");
    client.post(&format!("/v1/tasks/{id}/cancel")).expect(200);
    client.delete("/v1/plugins/guest").expect(204);
    // What ran under it can still be read.
    assert_eq!(client.get(&format!("/v1/tasks/{id}")).expect(200).json()["plugin"], "guest");
}

#[test]
fn what_a_policy_does_not_grant_is_told_at_the_install() {
    let (text, token) = tenant("acme", 1);
    let world = World::with(&format!("{text}grants = [\"attempt\"]\n"));
    let client = world.client(Some(&token));
    let plugin = client.upload("/v1/plugins", &guest::component("guest", "0.1.0")).expect(201).json();
    assert_eq!(plugin["denied"], json!(["tasks"]));
}
