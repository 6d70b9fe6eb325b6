//! What is kept of a task that went wrong: its log, its error, and where in the plugin it was.

use serde_json::{Value, json};

use crate::Running;

fn lines(running: &Running, id: &Value) -> Vec<Value> {
    let path = format!("/v1/tasks/{}/logs", id.as_str().unwrap());
    let logs = running.client.get(&path).unwrap().expect(&[200]).unwrap();
    let attempts = logs["attempts"].as_array().unwrap();
    attempts.iter().flat_map(|attempt| attempt["lines"].as_array().unwrap().clone()).collect()
}

#[test]
fn a_panic_names_functions_lines_and_its_message() {
    let running = Running::with_guests(&["contract"]);
    let task =
        running.client.run("contract", "panic", json!({"message": "the sky fell"}), Value::Null).unwrap();
    assert_eq!((&task["state"], &task["error"]["code"]), (&json!("failed"), &json!("trap")));
    let frames = task["error"]["backtrace"].as_array().unwrap();
    let is_ours = |frame: &&Value| {
        let text = |field: &str| frame[field].as_str().unwrap_or_default();
        text("function").contains("panic") && text("file").ends_with("src/harm.rs") && frame["line"].is_u64()
    };
    assert!(frames.iter().any(|frame| is_ours(&frame)), "no frame of the function that panics: {frames:#?}");
    let said = lines(&running, &task["id"]);
    let stderr = said.iter().filter(|line| line["source"] == "stderr");
    assert!(
        stderr.clone().any(|line| line["message"].as_str().unwrap().contains("the sky fell")),
        "{said:#?}"
    );
}

#[test]
fn lines_are_kept_with_their_level_source_and_fields() {
    let running = Running::with_guests(&["contract"]);
    let input = json!({"level": "warn", "message": "odd", "fields": [["colour", "red"]]});
    let task = running.client.run("contract", "log", input, Value::Null).unwrap();
    let said = lines(&running, &task["id"]);
    assert_eq!(said.len(), 1);
    assert_eq!(
        (&said[0]["level"], &said[0]["source"], &said[0]["message"]),
        (&json!("warn"), &json!("log"), &json!("odd"))
    );
    assert_eq!(said[0]["fields"], json!({"colour": "red"}));

    let print = json!({"stdout": "out\n", "stderr": "err\n", "times": 2});
    let task = running.client.run("contract", "print", print, Value::Null).unwrap();
    let said = lines(&running, &task["id"]);
    let of = |source: &str| said.iter().filter(|line| line["source"] == source).count();
    assert_eq!((of("stdout"), of("stderr")), (2, 2), "{said:#?}");
}

#[test]
fn a_flood_is_cut_and_counted() {
    let running = Running::with_guests(&["contract"]);
    let task = running
        .client
        .run("contract", "log-flood", json!({"lines": 2_000, "bytes": 1_000}), Value::Null)
        .unwrap();
    assert_eq!(task["state"], "completed", "{task}");
    let path = format!("/v1/tasks/{}/logs", task["id"].as_str().unwrap());
    let logs = running.client.get(&path).unwrap().expect(&[200]).unwrap();
    let attempt = &logs["attempts"][0];
    let kept = attempt["lines"].as_array().unwrap().len() as u64;
    assert_eq!(kept + attempt["dropped"].as_u64().unwrap(), 2_000);
    assert!((60..2_000).contains(&kept), "{kept} lines of 1,000 bytes within about a second of 64 KiB each");
}

#[test]
fn a_line_cannot_forge_another_one() {
    let running = Running::with_guests(&["contract"]);
    let message = "harmless\n2026-01-01T00:00:00Z ERROR keiko: the operator must pay\u{1b}[2J";
    let input = json!({"level": "error", "message": message});
    let task = running.client.run("contract", "log", input, Value::Null).unwrap();
    assert_eq!(lines(&running, &task["id"])[0]["message"], message, "kept as it came");
    let own = std::fs::read_to_string(running.log()).unwrap();
    assert!(!own.lines().any(|line| line.starts_with("2026-01-01")), "{own}");
    assert!(!own.contains('\u{1b}') || !own.contains("[2J"), "an escape reached the host's log");
}
