//! The example plugins, from install to result.

use keiko_tests::check::attack::base64_url;
use keiko_tests::tree;
use serde_json::{Value, json};

use crate::Running;

#[test]
fn movie_facts() {
    let running = Running::start();
    let client = &running.client;
    let component = tree::guest("movie-facts").unwrap();
    let first = client.upload(&component).unwrap();
    assert_eq!(first.status, 201, "{first}");
    let plugin = first.json().unwrap();
    assert_eq!((&plugin["name"], &plugin["kinds"][0]["name"]), (&json!("movie-facts"), &json!("normalise")));
    assert_eq!(plugin["component_bytes"], component.len());
    let again = client.upload(&component).unwrap();
    assert_eq!(again.status, 200, "{again}");
    assert_eq!(client.get("/v1/plugins/movie-facts").unwrap().json().unwrap(), plugin);

    let films: Vec<Value> = serde_json::from_slice(&tree::fixture("data/movies.json").unwrap()).unwrap();
    let task = client.run("movie-facts", "normalise", films[0].clone(), json!(null)).unwrap();
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(task["result"]["title"], "The Land Girls");
    assert_eq!(task["result"]["release_date"], "1998-06-12");
    let attempt = &task["attempts"][0];
    assert_eq!(attempt["pure"], true, "{attempt}");
    assert_eq!(attempt["digest"], plugin["digest"]);
    assert!(attempt["fuel_used"].as_u64().unwrap() > 0 && attempt["memory_bytes_peak"].as_u64().unwrap() > 0);

    let no_film = client.run("movie-facts", "normalise", json!({"Title": null}), json!(null)).unwrap();
    assert_eq!((&no_film["state"], &no_film["error"]["code"]), (&json!("failed"), &json!("invalid_input")));
    assert_eq!(no_film["attempts"].as_array().unwrap().len(), 1, "it is not tried again: {no_film}");
}

#[test]
fn text_digest() {
    let running = Running::with_guests(&["text-digest"]);
    let text = "Keiko runs tasks. See https://example.com/a or write to a@example.com. Tasks survive.";
    let input = json!({"text": text, "sentences": 1});
    let task = running.client.run("text-digest", "digest", input, json!(null)).unwrap();
    assert_eq!(task["state"], "completed", "{task}");
    let result = task["result"].to_string();
    assert!(result.contains("https://example.com/a") && result.contains("a@example.com"), "{result}");
}

#[test]
fn a_plugin_with_live_tasks_stays_and_one_without_goes() {
    let running = Running::with_guests(&["family"]);
    let client = &running.client;
    let id = client
        .submit("family", "child", json!({"n": 1, "which": 0}), json!({"delay_ms": 3_600_000}))
        .unwrap();
    let busy = client.delete("/v1/plugins/family").unwrap();
    assert_eq!((busy.status, busy.code().as_str()), (409, "conflict"), "{busy}");
    client.post(&format!("/v1/tasks/{id}/cancel"), &[], &[]).unwrap().expect(&[200]).unwrap();
    assert_eq!(client.delete("/v1/plugins/family").unwrap().status, 204);
    assert_eq!(client.get("/v1/plugins/family").unwrap().code(), "not_found");
}

#[test]
fn a_manifest_can_come_beside_the_component() {
    let running = Running::start();
    let attack = keiko_tests::check::attack::Attack::named("unreachable").next().unwrap();
    let bare = attack.bare_component().unwrap();
    let nameless = running.client.upload(&bare).unwrap();
    assert_eq!(nameless.code(), "component_invalid", "{nameless}");
    let manifest = base64_url(keiko_tests::check::attack::manifest("given-beside").as_bytes());
    let path = format!("/v1/plugins?manifest={manifest}");
    let answer = running.client.post(&path, &[("content-type", "application/wasm")], &bare).unwrap();
    assert_eq!(answer.expect(&[201]).unwrap()["name"], "given-beside");
}
