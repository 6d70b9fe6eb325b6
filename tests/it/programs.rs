//! WASI programs that nobody here wrote, and small ones of foreign compilers, installed as they are and run as tasks.

use keiko_tests::check::attack::base64_url;
use keiko_tests::{Client, tree};
use serde_json::{Value, json};

use crate::Running;

/// Installs a program under a manifest that is given beside it.
fn install(client: &Client, name: &str, kinds: &str) -> keiko_tests::Answer {
    let manifest = format!("[plugin]\nname = \"{name}\"\nversion = \"1\"\n{kinds}");
    let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
    let headers = [("content-type", "application/wasm")];
    client.post(&path, &headers, &tree::wasi_program(name).unwrap()).unwrap()
}

/// Runs a task of a text and gives it as it ended.
fn run(client: &Client, plugin: &str, kind: &str, input: &str) -> Value {
    let input =
        json!({"plugin": plugin, "kind": kind, "content_type": "text/plain", "input_base64": base64(input)});
    let id = client.post_json("/v1/tasks", &input, None).unwrap().expect(&[201]).unwrap();
    client.ended(id["id"].as_str().unwrap()).unwrap()
}

fn base64(text: &str) -> String {
    let letters = base64_url(text.as_bytes()).replace('-', "+").replace('_', "/");
    let padding = (4 - letters.len() % 4) % 4;
    format!("{letters}{}", "=".repeat(padding))
}

#[track_caller]
fn result(task: &Value) -> &Value {
    assert_eq!(task["state"], "completed", "{task}");
    &task["result"]
}

#[test]
fn a_program_of_c_counts_words() {
    let running = Running::start();
    let kinds = "[[kind]]\nname = \"count\"\n[kind.command]\narguments = [\"LABEL\"]\n\
        environment = { LABEL = \"poem\" }\ncontent-type = \"application/json\"\n";
    install(&running.client, "count", kinds).expect(&[201]).unwrap();
    let task = run(&running.client, "count", "count", "to be or\nnot to be\n");
    assert_eq!(*result(&task), json!({"label": "poem", "bytes": 19, "words": 6, "lines": 2}));
    assert_eq!(task["attempts"][0]["pure"], true, "{task}");
    let refused = run(&running.client, "count", "count", "a\0b");
    assert_eq!((&refused["state"], refused["attempts"].as_array().unwrap().len()), (&json!("failed"), 1));
    let error = &refused["error"];
    assert_eq!(error["message"], "the program ended with status 65: byte 1 is zero");
    assert_eq!(error["code"], "invalid_input");
}

#[test]
fn a_program_of_zig_rotates_letters() {
    let running = Running::start();
    let kind = |name: &str, argument: &str| {
        format!(
            "[[kind]]\nname = \"{name}\"\n[kind.command]\narguments = [\"{argument}\"]\ncontent-type = \"application/json\"\n"
        )
    };
    let kinds = [kind("there", "3"), kind("back", "-3"), kind("nowhere", "x")].concat();
    install(&running.client, "rotate", &kinds).expect(&[201]).unwrap();
    let there = run(&running.client, "rotate", "there", "\"Xyz, abc\"");
    assert_eq!(*result(&there), "Abc, def");
    let back = run(&running.client, "rotate", "back", "\"Abc, def\"");
    assert_eq!(*result(&back), "Xyz, abc");
    let nowhere = run(&running.client, "rotate", "nowhere", "");
    assert_eq!(nowhere["error"]["message"], "the program ended with status 64: the places are no number");
    let logs = running.client.get(&format!("/v1/tasks/{}/logs", nowhere["id"].as_str().unwrap())).unwrap();
    let line = &logs.json().unwrap()["attempts"][0]["lines"][0];
    assert_eq!((&line["source"], &line["message"]), (&json!("stderr"), &json!("the places are no number")));
}

#[test]
fn quickjs_runs_a_script_over_its_input() {
    let running = Running::start();
    let script = "const films = JSON.parse(std.in.readAsString()); std.out.puts(JSON.stringify(films.map(f => f.length)))";
    let kinds = format!(
        "[[kind]]\nname = \"lengths\"\n[kind.command]\narguments = [\"--std\", \"-e\", \"{script}\"]\n\
         content-type = \"application/json\"\n"
    );
    install(&running.client, "quickjs", &kinds).expect(&[201]).unwrap();
    let task = run(&running.client, "quickjs", "lengths", r#"["Alien", "Brazil", "M"]"#);
    assert_eq!(*result(&task), json!([5, 6, 1]));
    let broken = run(&running.client, "quickjs", "lengths", "no JSON");
    assert_eq!(broken["error"]["code"], "plugin_failed");
    assert!(broken["error"]["message"].as_str().unwrap().contains("SyntaxError"), "{broken}");
}

#[test]
fn python_runs_a_script_over_its_input() {
    let running = Running::start();
    let script =
        "import json, sys, statistics; print(json.dumps(statistics.mean(json.load(sys.stdin))), end='')";
    let kinds = format!(
        "[[kind]]\nname = \"mean\"\nfuel = 20000000000\nmemory-mib = 256\ntimeout-s = 120\n[kind.command]\n\
         arguments = [\"-c\", \"{script}\"]\ncontent-type = \"application/json\"\n"
    );
    install(&running.client, "python", &kinds).expect(&[201]).unwrap();
    let id = run(&running.client, "python", "mean", "[1, 2, 6]");
    assert_eq!(*result(&id), json!(3), "{id}");
}

/// It ends with 10 when there is a solution, and with 20 when there is none.
const SOLVER: &str =
    "[[kind]]\nname = \"solve\"\n[kind.command]\narguments = [\"--smt2\"]\ncompletes-with = [10, 20]\n";

#[test]
fn a_solver_answers_with_a_status_of_its_own() {
    let running = Running::start();
    install(&running.client, "boolector", SOLVER).expect(&[201]).unwrap();
    let task = run(
        &running.client,
        "boolector",
        "solve",
        "(set-logic QF_BV)(declare-const x (_ BitVec 8))(assert (= (bvadd x #x01) #x00))(check-sat)",
    );
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(task["result_base64"], base64("sat\n"), "{task}");
    let task = run(&running.client, "boolector", "solve", "(set-logic QF_BV)(assert false)(check-sat)");
    assert_eq!(task["result_base64"], base64("unsat\n"), "{task}");
}

#[test]
fn installed_programs_are_there_after_a_restart() {
    let mut running = Running::start();
    let kinds = "[[kind]]\nname = \"count\"\n[kind.command]\ncontent-type = \"application/json\"\n";
    install(&running.client, "count", kinds).expect(&[201]).unwrap();
    let before = run(&running.client, "count", "count", "a b");
    assert!(running.stop().unwrap().success());
    running.start_again().unwrap();
    let after = run(&running.client, "count", "count", "a b");
    assert_eq!(result(&before), result(&after));
    assert_eq!(before["attempts"][0]["fuel_used"], after["attempts"][0]["fuel_used"]);
}
