//! Kept results: equal to what a run gives, of pure runs only, and nobody else's.

use std::time::Duration;

use keiko_tests::check::attack::base64_url;
use keiko_tests::check::hostile::two_tenants;
use keiko_tests::{Client, Random, seed, tree, wait};
use serde_json::{Value, json};

use crate::Running;

const SOON: Duration = Duration::from_secs(30);
/// Inputs of each plugin, drawn at random.
const INPUTS: usize = 40;

/// Installs a component as a plugin of this name, with a manifest beside it.
fn install(client: &Client, name: &str, component: &[u8], kinds: &str) {
    let manifest = format!("[plugin]\nname = \"{name}\"\nversion = \"1\"\n{kinds}");
    let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
    let answer = client.post(&path, &[("content-type", "application/wasm")], component).unwrap();
    answer.expect(&[200, 201]).unwrap();
}

/// The tables of these kinds, with `more` in each.
fn kinds(names: &[&str], more: &str) -> String {
    names.iter().map(|name| format!("[[kind]]\nname = \"{name}\"\n{more}\n")).collect()
}

fn ends(client: &Client, plugin: &str, kind: &str, input: &Value) -> Value {
    let task = client.run(plugin, kind, input.clone(), json!({"attempts": 1})).unwrap();
    assert_eq!(task["state"], "completed", "{plugin} {kind}: {task}");
    task
}

/// Runs it until its result is a kept one: a result is kept while its first task ends.
fn is_memoized(client: &Client, plugin: &str, kind: &str, input: &Value) -> Value {
    wait::until("a kept result", SOON, || {
        let task = ends(client, plugin, kind, input);
        Ok(task.get("memoized_from").is_some().then_some(task))
    })
    .unwrap()
}

fn never_memoized(client: &Client, plugin: &str, kind: &str, input: &Value) -> Vec<Value> {
    let tasks: Vec<Value> = (0..3).map(|_| ends(client, plugin, kind, input)).collect();
    assert!(tasks.iter().all(|task| task.get("memoized_from").is_none()), "{kind}: {tasks:#?}");
    tasks
}

/// A plugin that is installed twice: as it is, and with its results kept.
struct Twice {
    component: Vec<u8>,
    kind: &'static str,
    more: &'static str,
    inputs: fn(&mut Random) -> Value,
}

fn words(random: &mut Random) -> String {
    let some = ["Alien", "the", "a\u{e9}rien", "x.", "\u{4e2d}\u{6587}", "42", "\"", "\\"];
    // The first is a word: without one some of the plugins fail.
    let others = (0..random.below(30)).map(|_| some[random.below(some.len() as u64) as usize]);
    std::iter::once(some[0]).chain(others).collect::<Vec<_>>().join(" ")
}

fn number(random: &mut Random) -> Value {
    json!(random.below(200))
}

fn guests() -> Vec<Twice> {
    let guest =
        |name: &str, kind, inputs| Twice { component: tree::guest(name).unwrap(), kind, more: "", inputs };
    let program = |name: &str, kind, more, inputs| Twice {
        component: tree::wasi_program(name).unwrap(),
        kind,
        more,
        inputs,
    };
    vec![
        guest("movie-facts", "normalise", |random| {
            let films: Vec<Value> =
                serde_json::from_slice(&tree::fixture("data/movies.json").unwrap()).unwrap();
            films[random.below(films.len() as u64) as usize].clone()
        }),
        guest("text-digest", "digest", |random| json!({ "text": words(random) })),
        guest("word-count", "count", |random| json!({ "text": words(random) })),
        // Hash maps of the standard library, and other insecure randomness.
        guest("contract", "hashes", |random| json!({ "strings": number(random) })),
        guest("contract", "random-insecure", |random| json!({ "bytes": number(random) })),
        guest(
            "contract",
            "trivial",
            |random| json!({ "b": words(random), "a": [number(random), 1.5, null] }),
        ),
        guest("family", "busy", |random| json!({ "turns": number(random) })),
        program(
            "count",
            "count",
            "[kind.command]\ncontent-type = \"application/json\"",
            |random| json!({ "text": words(random) }),
        ),
        program("rotate", "there", "[kind.command]\narguments = [\"3\"]", |random| json!(words(random))),
    ]
}

#[test]
fn memoized_equals_recomputed_over_random_inputs() {
    let (running, seed) = (Running::start(), seed());
    let mut random = Random::new(seed);
    for (at, Twice { component, kind, more, inputs }) in guests().into_iter().enumerate() {
        let (plain, kept) = (format!("plain-{at}"), format!("kept-{at}"));
        install(&running.client, &plain, &component, &kinds(&[kind], more));
        install(&running.client, &kept, &component, &kinds(&[kind], &format!("memoize = {{}}\n{more}")));
        for _ in 0..INPUTS {
            let input = inputs(&mut random);
            let expected = ends(&running.client, &plain, kind, &input);
            assert_eq!(expected["attempts"][0]["pure"], true, "seed {seed}: {expected}");
            let first = ends(&running.client, &kept, kind, &input);
            let again = is_memoized(&running.client, &kept, kind, &input);
            for task in [&first, &again] {
                let same = |name: &str| task[name] == expected[name];
                let equal = same("result") && same("result_base64") && same("content_type");
                assert!(equal, "seed {seed}: {kind} of {input}: {task} is not {expected}");
            }
            let attempt = &again["attempts"][0];
            assert_eq!((&attempt["fuel_used"], &attempt["pure"]), (&json!(0), &json!(true)), "{again}");
        }
    }
}

/// Interpreters that run as commands look at both clocks when they start, whatever the script does: nothing is kept of them, and
/// the task says why. Seeded random numbers make Python's sets have one order all the same.
#[test]
fn interpreters_that_look_at_clocks_are_never_memoized() {
    let (running, seed) = (Running::start(), seed());
    let mut random = Random::new(seed);
    let python = "fuel = 20000000000\nmemory-mib = 256\ntimeout-s = 120\nrandom = \"seeded\"\n[kind.command]\n\
        arguments = [\"-c\", \"import json, sys; print({str(n) for n in json.load(sys.stdin)})\"]";
    let quickjs = "[kind.command]\narguments = [\"--std\", \"-e\", \"std.out.puts(JSON.parse(std.in.readAsString()).sort().join())\"]";
    for (name, more) in [("python", python), ("quickjs", quickjs)] {
        let memoized = kinds(&["sort"], &format!("memoize = {{}}\n{more}"));
        install(&running.client, name, &tree::wasi_program(name).unwrap(), &memoized);
        let input: Vec<u64> = (0..=random.below(20)).map(|_| random.below(1_000)).collect();
        let tasks = never_memoized(&running.client, name, "sort", &json!(input));
        for task in &tasks {
            let tainted_by = &task["attempts"][0]["tainted_by"];
            assert_eq!(*tainted_by, json!(["wall-clock", "monotonic-clock"]), "{name}: {task}");
            assert_eq!(task["result_base64"], tasks[0]["result_base64"], "seed {seed}: {name} of {input:?}");
        }
    }
}

#[test]
fn what_asked_the_outside_is_never_memoized_and_says_what_it_asked() {
    let running = Running::start();
    let cases = [
        ("clock-wall", json!({}), "wall-clock"),
        ("clock-monotonic", json!({}), "monotonic-clock"),
        ("sleep", json!({"ms": 1}), "monotonic-clock"),
        ("random-secure", json!({"bytes": 4}), "random"),
        ("facts", json!({}), "attempt"),
        ("remaining", json!({}), "attempt"),
        ("config-get", json!({"key": "colour"}), "config"),
        ("config-get-all", json!({}), "config"),
        ("agents-load", json!({"ids": []}), "agents"),
        ("agents-list", json!({}), "agents"),
        ("agents-set-statuses", json!({"changes": []}), "agents"),
        ("history-user-tasks", json!({"user": "user_0000000000000"}), "history"),
        ("history-summarize", json!({"from_ms": 0, "to_ms": 1}), "history"),
        ("submit", json!({"child": {"kind": "trivial", "input": 1}}), "tasks"),
        ("batch-add", json!({"processor": "nobody", "items": [{"item": 1}]}), "batch"),
        ("measure", json!({"name": "nothing_total", "add": 1}), "metrics"),
        ("cache", json!({"steps": [{"do": "get", "key": "k"}]}), "cache"),
        ("memoized", json!({"input": 1}), "cache"),
    ];
    let names: Vec<&str> = cases.iter().map(|(kind, ..)| *kind).chain(["trivial"]).collect();
    install(&running.client, "contract", &tree::guest("contract").unwrap(), &kinds(&names, "memoize = {}"));
    for (kind, input, taint) in &cases {
        for task in never_memoized(&running.client, "contract", kind, input) {
            assert_eq!(task["attempts"][0]["tainted_by"], json!([taint]), "{kind}");
        }
    }
    // The same kind, for an input with which it asks nothing.
    is_memoized(&running.client, "contract", "cache", &json!({"steps": []}));
}

/// Secure numbers of a kind that wants them seeded follow from what is asked, and are kept for as long as it wants that.
#[test]
fn seeded_random_numbers_are_memoized_and_never_served_where_secure_ones_are_wanted() {
    let running = Running::start();
    let client = &running.client;
    let contract = tree::guest("contract").unwrap();
    let seeded = "memoize = {}\nrandom = \"seeded\"";
    let version = |name: &str, version: u32, more: &str| {
        let kinds = kinds(&["random-secure", "random-seed"], more);
        let manifest = format!("[plugin]\nname = \"{name}\"\nversion = \"{version}\"\n{kinds}");
        let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
        client.post(&path, &[("content-type", "application/wasm")], &contract).unwrap().expect(&[200, 201])
    };
    version("plain", 1, "random = \"seeded\"").unwrap();
    version("kept", 1, seeded).unwrap();
    for bytes in [1, 16, 17, 4_096] {
        let input = json!({ "bytes": bytes });
        let recomputed = [0, 1].map(|_| ends(client, "plain", "random-secure", &input));
        for task in &recomputed {
            assert_eq!(task["result"], recomputed[0]["result"]);
            let attempt = &task["attempts"][0];
            let told = [&attempt["pure"], &attempt["tainted_by"], &attempt["random_seeded"]];
            assert_eq!(told, [&json!(true), &json!([]), &json!(true)], "{task}");
        }
        let memoized = is_memoized(client, "kept", "random-secure", &input);
        assert_eq!(memoized["result"], recomputed[0]["result"]);
    }
    // What asks for insecure ones only needs nothing seeded, and says nothing of it.
    let insecure = ends(client, "plain", "random-seed", &json!({}));
    assert_eq!(insecure["attempts"][0].get("random_seeded"), None, "{insecure}");
    // The same component under a manifest without the seed: what was kept for it is not for this one.
    version("kept", 2, "memoize = {}").unwrap();
    let input = json!({"bytes": 16});
    let secure = never_memoized(client, "kept", "random-secure", &input);
    for (task, other) in secure.iter().zip(secure.iter().skip(1)) {
        assert_eq!(task["attempts"][0]["tainted_by"], json!(["random"]));
        assert_ne!(task["result"], other["result"]);
    }
    // And the other way round.
    client
        .post_json("/v1/plugins/kept/activate", &json!({"version": "1"}), None)
        .unwrap()
        .expect(&[200])
        .unwrap();
    is_memoized(client, "kept", "random-secure", &input);
}

/// What the attempt before left in the memory of an instance is of the outside, too.
#[test]
fn what_runs_on_a_kept_instance_is_not_memoized() {
    let running = Running::start();
    let client = &running.client;
    let kinds = format!("[plugin.reuse]\ninstances = 1\n{}", kinds(&["trivial"], "memoize = {}"));
    install(client, "contract", &tree::guest("contract").unwrap(), &kinds);
    let first = ends(client, "contract", "trivial", &json!("the first has a fresh one"));
    assert_eq!(first["attempts"][0]["pure"], true, "{first}");
    for task in never_memoized(client, "contract", "trivial", &json!("later")) {
        assert_eq!(task["attempts"][0]["tainted_by"], json!(["reused"]), "{task}");
    }
}

/// However late, and for however few inputs: a run that asked is not kept, and one of the same kind that did not is.
#[test]
fn what_asks_once_late_or_for_some_inputs_only_is_kept_exactly_for_the_others() {
    let running = Running::start();
    let client = &running.client;
    install(client, "contract", &tree::guest("contract").unwrap(), &kinds(&["asks"], "memoize = {}"));
    let taints = [
        ("wall-clock", "wall-clock"),
        ("monotonic-clock", "monotonic-clock"),
        ("random", "random"),
        ("facts", "attempt"),
        ("config", "config"),
        ("cache", "cache"),
    ];
    for (what, taint) in taints {
        for (when, turns) in [("first", 2), ("last", 2), ("last", 100_000), ("odd", 3)] {
            let input = json!({"what": what, "when": when, "turns": turns});
            for task in never_memoized(client, "contract", "asks", &input) {
                assert_eq!(task["attempts"][0]["tainted_by"], json!([taint]), "{input}");
            }
        }
        let input = json!({"what": what, "when": "odd", "turns": 4});
        let first = ends(client, "contract", "asks", &input);
        let again = is_memoized(client, "contract", "asks", &input);
        assert_eq!(again["result"], first["result"], "{input}");
    }
}

#[test]
fn only_what_was_asked_equally_is_answered_with_a_kept_result() {
    let running = Running::start();
    let client = &running.client;
    let contract = tree::guest("contract").unwrap();
    install(client, "contract", &contract, &kinds(&["trivial", "fail"], "memoize = {}"));
    let first = ends(client, "contract", "trivial", &json!({"a": 1, "b": [true]}));
    // Written otherwise it is the same input, and the guest was given one form of it.
    let spaced = br#"{"plugin": "contract", "kind": "trivial", "input": { "b" : [ true ], "\u0061": 1 }}"#;
    let again = wait::until("a kept result", SOON, || {
        let task = client.post("/v1/tasks?wait=30", &[("content-type", "application/json")], spaced)?;
        let task = task.expect(&[201])?;
        Ok(task.get("memoized_from").is_some().then_some(task))
    })
    .unwrap();
    assert_eq!((&again["memoized_from"], &again["result"]), (&first["id"], &first["result"]));
    // Another input, and another limit that is counted, are another result; another time limit is not.
    let run = |more: Value| client.run("contract", "trivial", json!({"a": 1, "b": [true]}), more).unwrap();
    assert!(run(json!({"fuel": 5_000_000})).get("memoized_from").is_none());
    assert!(run(json!({"memory_mib": 9})).get("memoized_from").is_none());
    assert_eq!(run(json!({"timeout_s": 7}))["memoized_from"], first["id"]);
    assert!(ends(client, "contract", "trivial", &json!({"a": 1})).get("memoized_from").is_none());
    // Nothing is a result that is kept only when that is asked for.
    never_memoized(client, "contract", "trivial", &Value::Null);
    // A failure is none.
    for _ in 0..2 {
        let failing = client.run("contract", "fail", json!({"as": "permanent"}), json!({"attempts": 1}));
        let failed = failing.unwrap();
        assert_eq!(failed["state"], "failed", "{failed}");
        assert!(failed.get("memoized_from").is_none() && failed["attempts"][0]["fuel_used"] != 0, "{failed}");
    }
    // An operator forgets the results of a kind.
    client.delete("/v1/cache/tag?namespace=r.contract&tag=trivial").unwrap().expect(&[200]).unwrap();
    assert!(run(json!({})).get("memoized_from").is_none());
    let metrics = client.get("/metrics").unwrap();
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    assert!(text.contains("keiko_tasks_memoized_total 2"), "{text}");
}

#[test]
fn another_tenants_results_are_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let (_host, ada, bob) = two_tenants(folder.path()).unwrap();
    let contract = tree::guest("contract").unwrap();
    for client in [&ada, &bob] {
        install(client, "contract", &contract, &kinds(&["hashes"], "memoize = {}"));
    }
    is_memoized(&ada, "contract", "hashes", &json!({"strings": 9}));
    let theirs = ends(&bob, "contract", "hashes", &json!({"strings": 9}));
    assert!(theirs.get("memoized_from").is_none(), "{theirs}");
}
