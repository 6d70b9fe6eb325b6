//! The concurrent profile with a toolchain that needs it: JavaScript in QuickJS, where a task may `await`.

use keiko_tests::check::attack::base64_url;
use keiko_tests::{Answer, Client, tree};
use serde_json::{Value, json};

use crate::Running;

/// A tenant that may have concurrency.
const CONFIG: &str = "[tenants.default]\nprofiles = [\"concurrent\"]\n";

fn upload(client: &Client, guest: &str, version: &str, kinds: &[&str]) -> Answer {
    let kinds: String = kinds.iter().map(|kind| format!("[[kind]]\nname = \"{kind}\"\n")).collect();
    let manifest = format!("[plugin]\nname = \"films\"\nversion = \"{version}\"\n{kinds}");
    let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
    let component = std::fs::read(tree::language_guest_path(guest).unwrap()).unwrap();
    client.post(&path, &[("content-type", "application/wasm")], &component).unwrap()
}

fn run(client: &Client, kind: &str, input: Value) -> Value {
    client.run("films", kind, input, json!({"attempts": 1})).unwrap()
}

#[test]
fn javascript_awaits_where_the_policy_permits_it() {
    let mut running = Running::with_config(CONFIG);
    upload(&running.client, "eras-quickjs", "1", &["eras", "for-ever"]).expect(&[201]).unwrap();
    let films = json!([{"year": 1921}, {"year": 1927}, {"year": 1959}]);
    let task = run(&running.client, "eras", films.clone());
    assert_eq!(
        (&task["state"], &task["result"]),
        (&json!("completed"), &json!({"silent": 1, "sound": 2})),
        "{task}"
    );
    let refused = run(&running.client, "eras", json!([{"title": "Safety Last!"}]));
    assert_eq!(refused["error"]["code"], "invalid_input", "{refused}");
    assert_eq!(refused["error"]["message"], "a film has no year");
    // Nothing can come any more: it is not waited for until the deadline. wasmtime 48 takes such an end for a fault of its own
    // in builds with debug assertions.
    let code = if cfg!(debug_assertions) { "internal" } else { "trap" };
    let stuck = run(&running.client, "for-ever", json!([]));
    assert_eq!((&stuck["state"], &stuck["error"]["code"]), (&json!("failed"), &json!(code)), "{stuck}");

    running.host.stop().unwrap();
    running.host.start_again().unwrap();
    assert_eq!(run(&running.client, "eras", films)["result"], task["result"], "after a restart");
}

#[test]
fn javascript_that_needs_concurrency_is_refused_where_no_policy_names_it() {
    let running = Running::start();
    let problem = upload(&running.client, "eras-quickjs", "1", &["eras"]).expect(&[403]).unwrap();
    assert_eq!((&problem["code"], &problem["stage"]), (&json!("denied"), &json!("scan")), "{problem}");
    assert!(problem["message"].as_str().unwrap().contains("`concurrent`"), "{problem}");
}
