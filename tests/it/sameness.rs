//! The same input gives the same result and the same fuel, on every run and in every host process.

use std::collections::BTreeSet;

use keiko_tests::{Client, tree};
use serde_json::{Value, json};

use crate::Running;

/// Runs of each input before and after the restart.
const RUNS: usize = 20;

/// What must not differ between two runs of the same input.
fn runs(client: &Client, plugin: &str, kind: &str, input: &Value) -> BTreeSet<String> {
    let run = |_| {
        let task = client.run(plugin, kind, input.clone(), Value::Null).unwrap();
        assert_eq!(task["state"], "completed", "{task}");
        let attempt = &task["attempts"][0];
        let pure = attempt["pure"] == true;
        json!([
            task["result"],
            attempt["fuel_used"],
            attempt["memory_bytes_peak"],
            attempt["host_calls"],
            pure
        ])
        .to_string()
    };
    (0..RUNS).map(run).collect()
}

#[test]
fn equal_inputs_give_equal_results_and_fuel_across_a_restart() {
    let films: Vec<Value> = serde_json::from_slice(&tree::fixture("data/movies.json").unwrap()).unwrap();
    let inputs = [
        // Hash maps of the standard library seed themselves from outside.
        ("contract", "hashes", json!({"strings": 200})),
        ("contract", "random-insecure", json!({"bytes": 32})),
        ("contract", "random-seed", json!({})),
        ("contract", "spin", json!({"turns": 5_000_000})),
        ("family", "busy", json!({"turns": 100_000})),
        ("movie-facts", "normalise", films[41].clone()),
        ("text-digest", "digest", json!({"text": "One two. Two three. Three one two."})),
    ];
    let mut running = Running::with_guests(&["contract", "family", "movie-facts", "text-digest"]);
    let client = running.client.clone();
    let before: Vec<_> =
        inputs.iter().map(|(plugin, kind, input)| runs(&client, plugin, kind, input)).collect();
    assert!(running.stop().unwrap().success());
    running.start_again().unwrap();
    for ((plugin, kind, input), before) in inputs.iter().zip(before) {
        let both: BTreeSet<String> = before.union(&runs(&client, plugin, kind, input)).cloned().collect();
        assert_eq!(both.len(), 1, "{plugin} {kind}: {both:#?}");
        assert!(both.first().unwrap().ends_with("true]"), "the run was not pure: {both:?}");
    }
}

#[test]
fn other_inputs_have_other_seeds() {
    let running = Running::with_guests(&["contract"]);
    let seed = |bytes: u64| {
        let task =
            running.client.run("contract", "random-insecure", json!({"bytes": bytes}), Value::Null).unwrap();
        task["result"]["hex"].as_str().unwrap()[..32].to_owned()
    };
    assert_ne!(seed(16), seed(17));
}

#[test]
fn secure_random_numbers_are_never_the_same() {
    let running = Running::with_guests(&["contract"]);
    let runs = |_| {
        let task =
            running.client.run("contract", "random-secure", json!({"bytes": 16}), Value::Null).unwrap();
        assert_eq!(task["attempts"][0]["pure"], false);
        assert_eq!(task["attempts"][0]["tainted_by"], json!(["random"]));
        task["result"]["hex"].to_string()
    };
    let seen: BTreeSet<String> = (0..5).map(runs).collect();
    assert_eq!(seen.len(), 5);
}
