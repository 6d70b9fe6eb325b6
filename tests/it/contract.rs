//! Every import of the contract and every case of its errors, through the fixture plugin `contract`.
//!
//! The plugin answers what the host answered, so a row here is a kind, its input, and what must come back.

use std::process::Command;

use keiko_tests::tree;
use serde_json::{Value, json};

use crate::Running;

/// A host whose only tenant has these limits, grants and settings.
fn with_tenant(text: &str) -> Running {
    let running = Running::with_config(&format!("[tenants.default]\n{text}\n"));
    running.client.install(&tree::guest("contract").unwrap()).unwrap();
    running
}

impl Running {
    /// One attempt of a kind, as the task that it was.
    pub(crate) fn contract(&self, kind: &str, input: Value, more: Value) -> Value {
        let mut more = more;
        if more.is_null() {
            more = json!({"attempts": 1});
        }
        self.client.run("contract", kind, input, more).unwrap()
    }

    /// The result of a kind that completes.
    pub(crate) fn result(&self, kind: &str, input: Value) -> Value {
        let task = self.contract(kind, input, Value::Null);
        assert_eq!(task["state"], "completed", "{kind}: {task}");
        task["result"].clone()
    }

    /// A kind that must fail with this code.
    fn fails(&self, kind: &str, input: Value, more: Value, code: &str) -> Value {
        let task = self.contract(kind, input, more);
        assert_eq!(
            (&task["state"], &task["error"]["code"]),
            (&json!("failed"), &json!(code)),
            "{kind}: {task}"
        );
        assert!(task.get("result").is_none(), "{kind}: {task}");
        task
    }
}

pub(crate) fn ok(value: Value) -> Value {
    json!({ "ok": value })
}

fn error(name: &str) -> Value {
    json!({"error": {"name": name}})
}

pub(crate) fn error_at(name: &str, number: u64) -> Value {
    json!({"error": {"name": name, "number": number}})
}

#[test]
fn contract() {
    let running = Running::with_guests(&["contract"]);
    let plugin = running.client.get("/v1/plugins/contract").unwrap().json().unwrap();
    assert_eq!(
        plugin["wants"],
        json!([
            "agents", "attempt", "batch", "cache", "config", "history", "log", "metrics", "progress", "tasks"
        ])
    );
    assert_eq!(plugin["denied"], json!([]));
    assert_eq!(running.result("trivial", json!({"as": ["it", "came"]})), json!({"as": ["it", "came"]}));
}

#[test]
fn input_and_output_are_any_bytes_with_their_type() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let submit = |kind: &str| {
        let body = json!({"plugin": "contract", "kind": kind, "input_base64": "AP/+", "content_type": "image/x-odd"});
        client.post_json("/v1/tasks?wait=30", &body, None).unwrap().expect(&[201]).unwrap()
    };
    let described = submit("describe");
    assert_eq!(
        (&described["result"]["content_type"], &described["result"]["bytes"]),
        (&json!("image/x-odd"), &json!(3))
    );
    let returned = submit("trivial");
    assert_eq!(
        (&returned["result_base64"], &returned["content_type"]),
        (&json!("AP/+"), &json!("image/x-odd"))
    );
    let path = format!("/v1/tasks/{}/result", returned["id"].as_str().unwrap());
    let raw = client.get(&path).unwrap();
    assert_eq!(
        (raw.status, raw.header("content-type"), &raw.bytes[..]),
        (200, Some("image/x-odd"), &[0, 255, 254][..])
    );
}

#[test]
fn facts_are_those_of_the_attempt() {
    let running = Running::with_guests(&["contract"]);
    let client = &running.client;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = json!({"plugin": "contract", "kind": "facts", "input": {}, "attempts": 3});
    let headers = [("content-type", "application/json"), ("traceparent", trace)];
    let task = client.post("/v1/tasks?wait=30", &headers, body.to_string().as_bytes()).unwrap();
    let task = task.expect(&[201]).unwrap();
    let facts = &task["result"]["ok"];
    assert_eq!(facts["tenant"], "default");
    assert_eq!((&facts["task"], &facts["root"], &facts["parent"]), (&task["id"], &task["id"], &Value::Null));
    assert_eq!(
        (&facts["depth"], &facts["number"], &facts["attempts_max"]),
        (&json!(0), &json!(1), &json!(3))
    );
    // The trace goes on; the attempt is a span of its own.
    let seen = facts["trace"].as_str().unwrap();
    assert_eq!(&seen[..36], &trace[..36], "{seen}");
    assert_eq!(task["attempts"][0]["tainted_by"], json!(["attempt"]));

    let left =
        running.contract("remaining", json!({}), json!({"timeout_s": 9}))["result"]["ok"].as_u64().unwrap();
    assert!((1..=9_000).contains(&left), "{left} ms left of 9,000");
}

#[test]
fn settings_are_those_of_the_plugin() {
    let running =
        with_tenant("[tenants.default.plugins.contract.settings]\ncolour = \"red\"\nshape = \"round\"\n");
    assert_eq!(running.result("config-get", json!({"key": "colour"})), ok(json!("red")));
    assert_eq!(running.result("config-get", json!({"key": "size"})), ok(Value::Null));
    assert_eq!(
        running.result("config-get-all", json!({})),
        ok(json!([["colour", "red"], ["shape", "round"]]))
    );
}

#[test]
fn what_is_not_granted_is_denied_at_install_by_name_and_at_the_call_by_an_answer() {
    let running = with_tenant("grants = [\"log\"]");
    let plugin = running.client.get("/v1/plugins/contract").unwrap().json().unwrap();
    assert_eq!(
        plugin["denied"],
        json!(["agents", "attempt", "batch", "cache", "config", "history", "metrics", "progress", "tasks"])
    );
    let denied = error("denied");
    for (kind, input) in [
        ("facts", json!({})),
        ("remaining", json!({})),
        ("config-get", json!({"key": "colour"})),
        ("config-get-all", json!({})),
        ("progress", json!({"fraction": 0.5})),
        ("emit", json!({"text": "half"})),
        ("measure", json!({"name": "films_total", "add": 1})),
        ("submit-many", json!({"children": [{"kind": "trivial"}]})),
        ("submit-joined", json!({"children": [{"kind": "trivial"}], "then": {"kind": "trivial"}})),
        ("batch-add", json!({"processor": "things", "items": []})),
        ("agents-load", json!({"ids": []})),
        ("agents-list", json!({})),
        ("agents-set-statuses", json!({"changes": []})),
        ("history-user-tasks", json!({"user": "user_0000000000001"})),
        ("history-summarize", json!({"from_ms": 0, "to_ms": 1})),
    ] {
        assert_eq!(running.result(kind, input), denied, "{kind}");
    }
    assert_eq!(running.result("submit", json!({"child": {"kind": "trivial"}})), json!([denied]));
    let steps = json!([{"do": "get", "key": "k"}, {"do": "get-many", "keys": []}, {"do": "set", "key": "k"},
        {"do": "remove", "key": "k"}, {"do": "remove-tag", "tag": "t"}, {"do": "fill", "key": "k"}]);
    assert_eq!(running.result("cache", json!({ "steps": steps })), json!(vec![&denied; 6]));
    assert_eq!(
        running.result("log", json!({"level": "info", "message": "granted always"})),
        json!({"fields": 0})
    );
}

#[test]
fn progress_is_held_to_its_bounds() {
    let running = Running::with_guests(&["contract"]);
    let report = |input: Value| running.result("progress", input);
    for fraction in [0.0, 0.5, 1.0] {
        assert_eq!(report(json!({ "fraction": fraction })), ok(Value::Null), "{fraction}");
    }
    let odd = [json!(-0.01), json!(1.01), json!("nan"), json!("infinity"), json!("minus-infinity")];
    for fraction in odd {
        assert_eq!(report(json!({ "fraction": fraction })), error("fraction-out-of-range"), "{fraction}");
    }
    assert_eq!(report(json!({"fraction": 1, "message_bytes": 1_024})), ok(Value::Null));
    assert_eq!(report(json!({"fraction": 1, "message_bytes": 1_025})), error_at("message-too-long", 1_024));
    let task = running.contract("progress", json!({"fraction": 0.5}), Value::Null);
    assert_eq!(task["attempts"][0]["pure"], true, "a report answers nothing of the outside: {task}");
}

#[test]
fn what_is_given_out_is_told_to_who_watches_and_the_result_stands_for_itself() {
    let running = Running::with_guests(&["contract"]);
    let events = |input: Value| {
        let more = json!({"delay_ms": 500, "attempts": 1});
        let id = running.client.submit("contract", "emit", input, more).unwrap();
        let stream = running.client.get(&format!("/v1/tasks/{id}/events")).unwrap();
        let text = String::from_utf8(stream.bytes).unwrap();
        let event = |event: &str| {
            let field =
                |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            (field("event: ").to_owned(), serde_json::from_str::<Value>(field("data: ")).unwrap())
        };
        text.split_terminator("\n\n").map(event).collect::<Vec<_>>()
    };
    let told = events(json!({"text": "hälf\n", "times": 3}));
    let pieces: Vec<&Value> =
        told.iter().filter(|(name, _)| name == "output").map(|(_, data)| data).collect();
    let piece = |number: u64| json!({"attempt": 1, "number": number, "text": "hälf\n"});
    assert_eq!(pieces, [&piece(0), &piece(1), &piece(2)], "{told:?}");
    let (name, task) = told.last().unwrap();
    assert_eq!((name.as_str(), &task["result"]), ("end", &ok(Value::Null)));
    assert_eq!(task["attempts"][0]["pure"], true, "a piece answers nothing of the outside: {task}");
    for end in ["\n", ""] {
        let (text, more) = (format!("one\ntwo\u{7}{end}"), json!({"delay_ms": 500, "attempts": 1}));
        let id = running.client.submit("contract", "emit", json!({"text": text}), more).unwrap();
        let server = format!("http://{}", running.client.address());
        let watched = Command::new(tree::program().unwrap())
            .args(["task", "watch", &id, "--timeout", "30", "--server", &server])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(watched.stdout).unwrap(), "{\"ok\":null}\n", "the result alone");
        let notes = String::from_utf8(watched.stderr).unwrap();
        let lines = format!("\none\ntwo\\u{{7}}\n{id} completed");
        assert!(notes.contains(&lines), "a state has a line of its own: {notes}");
    }
    // More than is kept for somebody who is slow: what is told is in order.
    let told = events(json!({"bytes": 4_096, "times": 100}));
    let numbers: Vec<u64> = told.iter().filter_map(|(_, data)| data["number"].as_u64()).collect();
    assert!(numbers.is_sorted() && numbers.last() == Some(&99), "{numbers:?}");
}

#[test]
fn what_is_measured_is_shown_and_what_is_not_declared_is_refused_by_name() {
    let running = Running::with_guests(&["contract"]);
    let measure = |input: Value| running.result("measure", input);
    let page = || String::from_utf8(running.client.get("/metrics").unwrap().bytes).unwrap();
    let shows = |line: &str| {
        let page = page();
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    };
    let whose = r#"tenant="default",plugin="contract""#;
    // Everything that the manifest declares is there before it is counted.
    shows(&format!("keiko_plugin_films_total{{{whose},era=\"silent\"}} 0"));
    shows("# HELP keiko_plugin_films_total Films by their era.");
    shows("# TYPE keiko_plugin_minutes histogram");
    let sound = json!([["era", "sound"]]);
    assert_eq!(
        measure(json!({"name": "films_total", "labels": sound, "add": 3, "times": 2})),
        ok(Value::Null)
    );
    shows(&format!("keiko_plugin_films_total{{{whose},era=\"sound\"}} 6"));
    for minutes in [60.0, 60.5, 400.0] {
        assert_eq!(measure(json!({"name": "minutes", "observe": minutes})), ok(Value::Null));
    }
    shows(&format!("keiko_plugin_minutes_bucket{{{whose},le=\"60\"}} 1"));
    shows(&format!("keiko_plugin_minutes_bucket{{{whose},le=\"90.5\"}} 2"));
    shows(&format!("keiko_plugin_minutes_bucket{{{whose},le=\"+Inf\"}} 3"));
    shows(&format!("keiko_plugin_minutes_sum{{{whose}}} 520.5"));
    // A counter stops at its largest number.
    let most = json!({"name": "films_total", "labels": [["era", "silent"]], "add": u64::MAX});
    assert_eq!([measure(most.clone()), measure(most)], [ok(Value::Null), ok(Value::Null)]);
    shows(&format!("keiko_plugin_films_total{{{whose},era=\"silent\"}} {}", u64::MAX));
    let name = |input: Value| measure(input)["error"]["name"].as_str().unwrap_or_default().to_owned();
    for (input, expected) in [
        (json!({"name": "films", "add": 1}), "not-found"),
        (json!({"name": "minutes", "add": 1}), "not-found"),
        (json!({"name": "films_total", "labels": sound, "observe": 1.0}), "not-found"),
        (json!({"name": "films_total", "add": 1}), "invalid-labels"),
        (json!({"name": "films_total", "labels": [["era", "talkie"]], "add": 1}), "invalid-labels"),
        (json!({"name": "films_total", "labels": [["age", "sound"]], "add": 1}), "invalid-labels"),
        (
            json!({"name": "films_total", "labels": [["era", "sound"], ["a", "b"]], "add": 1}),
            "invalid-labels",
        ),
        (json!({"name": "minutes", "observe": "nan"}), "invalid-value"),
        (json!({"name": "minutes", "observe": "infinity"}), "invalid-value"),
    ] {
        assert_eq!(name(input.clone()), expected, "{input}");
    }
    let task = running.contract("measure", json!({"name": "minutes", "observe": 1}), Value::Null);
    assert_eq!(task["attempts"][0]["pure"], true, "what is taken answers nothing of the outside: {task}");
    let task = running.contract("measure", json!({"name": "films", "add": 1}), Value::Null);
    assert_eq!(task["attempts"][0]["tainted_by"], json!(["metrics"]), "{task}");
    // A failed attempt has measured all the same, and its task counts by how it failed.
    running.contract("measure", json!({"nothing": 1}), Value::Null);
    shows(
        r#"keiko_task_errors_total{tenant="default",plugin="contract",kind="measure",error_kind="invalid_input"} 1"#,
    );
}

#[test]
fn children_are_refused_by_name() {
    let running = with_tenant("limits = { fan_out_max = 5, depth_max = 1 }");
    let submit = |child: Value, times: u64| {
        let answers = running.result("submit", json!({"child": child, "times": times}));
        answers.as_array().unwrap().last().unwrap().clone()
    };
    let name = |answer: &Value| answer["error"]["name"].as_str().unwrap_or_default().to_owned();
    assert_eq!(name(&submit(json!({"plugin": "nobody", "kind": "trivial"}), 1)), "not-found");
    assert_eq!(name(&submit(json!({"kind": "nothing"}), 1)), "not-found");
    assert_eq!(name(&submit(json!({"kind": "trivial", "content_type": "a\nb"}), 1)), "invalid-input");
    assert_eq!(name(&submit(json!({"kind": "trivial", "key": ""}), 1)), "invalid-input");
    let largest = 2 << 20;
    assert_eq!(
        submit(json!({"kind": "trivial", "input_bytes": largest + 1}), 1),
        error_at("input-too-large", largest)
    );
    assert!(submit(json!({"kind": "describe", "input_bytes": largest}), 1)["ok"].is_string());
    assert!(submit(json!({"kind": "trivial"}), 5)["ok"].is_string());
    assert_eq!(submit(json!({"kind": "trivial"}), 6), error_at("fan-out-exceeded", 5));

    // A child at the greatest depth may not have one of its own.
    let child = json!({"kind": "submit", "input": {"child": {"kind": "trivial"}}});
    let parent = running.contract("submit", json!({ "child": child }), Value::Null);
    let id = parent["result"][0]["ok"].as_str().unwrap();
    let task = running.client.ended(id).unwrap();
    assert_eq!(task["result"], json!([error_at("depth-exceeded", 1)]), "{task}");
}

#[test]
fn a_child_gets_what_it_asks_for_and_no_more_than_its_tenant() {
    let running = with_tenant("limits = { fuel_max = 2000000000, attempts_max = 7 }");
    let submit = |options: Value| {
        let child = json!({"kind": "trivial", "delay_ms": 3_600_000, "options": options});
        running.result("submit", json!({ "child": child }))[0].clone()
    };
    let whole = json!({
        "priority": 9, "fuel": 2_000_000_000, "memory_bytes": 1 << 20, "timeout_ms": 1_000, "attempts": 7,
        "queued_timeout_ms": 5_000_000, "total_timeout_ms": 6_000_000, "heartbeat_timeout_ms": 500,
        "retry": {"first_ms": 1, "max_ms": 86_400_000, "factor": 10, "jitter_percent": 0, "codes": ["trap"]},
        "concurrency_key": "k".repeat(255), "once": ["u", "unique"],
    });
    let id = submit(whole.clone())["ok"].as_str().unwrap().to_owned();
    let task = running.client.task(&id).unwrap();
    assert_eq!((&task["priority"], &task["state"]), (&json!(9), &json!("pending")), "{task}");
    let again = submit(whole)["ok"].as_str().unwrap().to_owned();
    assert_ne!(again, id, "its id was given before its key was looked at");
    assert_eq!(running.client.list("&kind=trivial", 10).unwrap().len(), 1, "and it is the first one");
    let day = 86_400_000_u64;
    for bad in [
        json!({"priority": 10}),
        json!({"fuel": 2_000_000_001}),
        json!({"attempts": 8}),
        json!({"attempts": 0}),
        json!({"retry": {"first_ms": day + 1}}),
        json!({"retry": {"factor": 11}}),
        json!({"retry": {"codes": ["no_such_code"]}}),
        json!({"concurrency_key": "k".repeat(256)}),
        json!({"concurrency_key": ""}),
        json!({"run_at_ms": 1}),
        json!({"once": ["", "unique"]}),
        json!({"once": ["k", {"throttle": 0}]}),
        json!({"once": ["k", {"throttle": 366 * day + 1}]}),
        json!({"once": ["k", {"debounce": {"wait_ms": 1}}]}),
    ] {
        assert_eq!(submit(bad.clone())["error"]["name"], "invalid-input", "{bad}");
    }
    let far = json!({"kind": "trivial", "options": {"run_at_ms": u64::MAX}});
    let refused = running.result("submit", json!({ "child": far }));
    assert_eq!(refused[0]["error"]["name"], "invalid-input", "{refused}");

    // What conflicts when it is stored fails the task that asked for it.
    let taken = json!({"kind": "trivial", "options": {"once": ["u", "unique_or_conflict"]}});
    let failed = running.contract("submit", json!({ "child": taken }), Value::Null);
    assert_eq!(failed["error"]["code"], "conflict", "{failed}");
}

#[test]
fn effects_are_held_to_their_number_and_bytes() {
    let running = Running::with_guests(&["contract"]);
    let many = |copies: u64| {
        let children = json!([{"kind": "trivial", "delay_ms": 3_600_000}]);
        running.result("submit-many", json!({"children": children, "copies": copies}))
    };
    assert_eq!(many(1_000)["ok"].as_array().unwrap().len(), 1_000);
    let refused = many(1_001);
    let name = refused["error"]["name"].as_str().unwrap();
    assert!(["effects-exceeded", "fan-out-exceeded"].contains(&name), "{refused}");
    assert_eq!(refused["error"]["number"], 1_000);

    let child = json!({"kind": "describe", "input_bytes": 2_000_000, "delay_ms": 3_600_000});
    let answers = running.result("submit", json!({"child": child, "times": 5}));
    assert_eq!(answers[4], error_at("effect-bytes-exceeded", 8 << 20), "{answers}");
    assert!(answers[3]["ok"].is_string());
}

#[test]
fn a_full_queue_is_told_to_guest_and_client() {
    let running = with_tenant("limits = { queue_max = 3 }");
    let child = json!({"kind": "trivial", "delay_ms": 3_600_000});
    let answers = running.result("submit", json!({"child": child, "times": 4}));
    assert_eq!(answers.as_array().unwrap().last().unwrap(), &error_at("queue-full", 3), "{answers}");
    let later = json!({"plugin": "contract", "kind": "trivial", "delay_ms": 3_600_000});
    let body = json!({ "tasks": vec![later; 4] });
    let refused = running.client.post_json("/v1/tasks", &body, None).unwrap();
    assert_eq!((refused.status, refused.code().as_str()), (429, "queue_full"), "{refused}");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.json().unwrap()["limit"]["limit"], 3);
}

#[test]
fn a_full_processor_is_told_to_guests_by_items_and_by_bytes() {
    let check = |limits: &str, fits: (Value, u64), above: (Value, u64), limit: u64| {
        let running = with_tenant(&format!("limits = {{ {limits} }}"));
        let add = |(item, copies): (Value, u64)| {
            running.result("batch-add", json!({"processor": "things", "items": [item], "copies": copies}))
        };
        // What is refused takes no room of what follows.
        assert_eq!(add(above), error_at("queue-full", limit), "{limits}");
        let taken = add(fits);
        assert!(taken["ok"].is_array(), "{limits}: {taken}");
    };
    let small = json!({"item": {"be": "done"}});
    check("waiting_items_max = 3", (small.clone(), 3), (small, 4), 3);
    // An item counts 128 bytes beside its payload.
    let of = |bytes: u64| (json!({ "item_bytes": bytes - 128 }), 1);
    check("waiting_mib_max = 1", of(1 << 20), of((1 << 20) + 1), 1 << 20);
}

#[test]
fn a_key_of_a_child_finds_the_first_child_or_fails_the_parent() {
    let running = Running::with_guests(&["contract"]);
    let submit = |input: u64| {
        let child = json!({"kind": "trivial", "key": "only-one", "input": input});
        running.contract("submit", json!({ "child": child }), Value::Null)
    };
    assert_eq!(submit(1)["state"], "completed");
    assert_eq!(submit(1)["state"], "completed");
    assert_eq!(running.client.list("&kind=trivial", 10).unwrap().len(), 1);
    assert_eq!(submit(2)["error"]["code"], "conflict");
    assert_eq!(running.client.list("&kind=trivial", 10).unwrap().len(), 1);
}

#[test]
fn children_of_an_attempt_that_did_not_complete_do_not_exist() {
    let running = Running::with_guests(&["contract"]);
    for then in ["permanent", "retryable", "panic"] {
        let task = running.contract(
            "submit-many",
            json!({"children": [{"kind": "trivial"}], "then": then}),
            Value::Null,
        );
        assert_eq!(task["state"], "failed", "{then}: {task}");
    }
    assert_eq!(running.client.list("&kind=trivial", 10).unwrap(), [] as [Value; 0]);
}

#[test]
fn wasi_is_bounded_and_marks_the_run() {
    let running = Running::with_guests(&["contract"]);
    let tainted = |kind: &str, input: Value, by: &[&str]| {
        let task = running.contract(kind, input, Value::Null);
        assert_eq!(task["state"], "completed", "{kind}: {task}");
        assert_eq!(task["attempts"][0]["tainted_by"], json!(by), "{kind}");
        assert_eq!(task["attempts"][0]["pure"], by.is_empty(), "{kind}");
        task["result"].clone()
    };
    assert!(
        tainted("clock-wall", json!({}), &["wall-clock"])["unix_ms"].as_u64().unwrap() > 1_700_000_000_000
    );
    assert_eq!(tainted("clock-monotonic", json!({}), &["monotonic-clock"])["went_back"], false);
    tainted("sleep", json!({"ms": 10}), &["monotonic-clock"]);
    tainted("random-secure", json!({"bytes": 65_536}), &["random"]);
    tainted("random-insecure", json!({"bytes": 65_536}), &[]);
    tainted("random-seed", json!({}), &[]);
    tainted("print", json!({"stdout": "seen", "stderr": "seen"}), &[]);
    let environment = tainted("environment", json!({}), &[]);
    assert_eq!(environment["environment"], json!([]));
    assert_eq!(environment["stdin"], ok(json!("")));
    for (kind, input) in [
        ("open", json!({"path": "/etc/passwd"})),
        ("open", json!({"path": "../../../etc/passwd"})),
        ("connect", json!({"address": "127.0.0.1:80"})),
        ("resolve", json!({"address": "localhost:80"})),
    ] {
        assert!(running.result(kind, input)["error"]["name"].is_string(), "{kind} must be denied");
    }
    running.fails("random-secure", json!({"bytes": 65_537}), Value::Null, "hostcall_too_large");
    running.fails("random-insecure", json!({"bytes": 65_537}), Value::Null, "hostcall_too_large");
}

#[test]
fn failures_are_those_the_plugin_names() {
    let running = Running::with_guests(&["contract"]);
    let told =
        running.fails("fail", json!({"as": "invalid-input", "message": "no"}), Value::Null, "invalid_input");
    assert_eq!(told["error"]["message"], "no");
    running.fails(
        "fail",
        json!({"as": "permanent", "message": "no"}),
        json!({"attempts": 3}),
        "plugin_failed",
    );
    let long = running.fails(
        "fail",
        json!({"as": "permanent", "message_bytes": 5_000}),
        Value::Null,
        "plugin_failed",
    );
    assert_eq!(long["error"]["message"].as_str().unwrap().len(), 4_096);
    let again = json!({"as": "retryable", "message": "later", "retry_after_ms": 1});
    let retried = running.fails("fail", again, json!({"attempts": 2}), "plugin_failed");
    assert_eq!(retried["attempts"].as_array().unwrap().len(), 2);
    let unknown = running
        .client
        .post_json("/v1/tasks", &json!({"plugin": "contract", "kind": "nothing"}), None)
        .unwrap();
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "not_found"), "{unknown}");
}

#[test]
fn limits_end_an_attempt_with_their_own_code_and_number() {
    let running = Running::with_guests(&["contract"]);
    let limit =
        |task: &Value| (task["error"]["limit"]["limit"].clone(), task["error"]["limit"]["set_by"].clone());
    let fuel = running.fails("spin", json!({}), json!({"fuel": 5_000_000}), "fuel_exhausted");
    assert_eq!(limit(&fuel), (json!(5_000_000), json!("task")));
    assert!(fuel["attempts"][0]["fuel_used"].as_u64().unwrap() >= 5_000_000);
    let endless = json!({"fuel": 100_000_000_000_u64, "timeout_s": 1, "attempts": 1});
    let late = running.fails("spin", json!({}), endless.clone(), "deadline_exceeded");
    assert_eq!(limit(&late), (json!(1_000), json!("task")));
    running.fails("sleep", json!({"ms": 60_000}), endless, "deadline_exceeded");
    for by in ["allocation", "instruction"] {
        let small = json!({"memory_mib": 16, "attempts": 1});
        let grown = running.fails("grow", json!({"mib": 100, "by": by}), small, "memory_exceeded");
        assert_eq!(limit(&grown), (json!(16 << 20), json!("task")));
    }
    running.fails("recurse", json!({"depth": 5_000_000}), Value::Null, "stack_exhausted");
    running.fails("remaining", json!({"calls": 2_000_000}), Value::Null, "hostcall_budget");
    running.fails("trap", json!({}), Value::Null, "trap");
    running.fails("panic", json!({"message": "no"}), Value::Null, "trap");
    let largest = 2 << 20;
    assert_eq!(running.contract("output", json!({"bytes": largest}), Value::Null)["state"], "completed");
    running.fails("output", json!({"bytes": largest + 1}), Value::Null, "plugin_failed");
    running.fails("output", json!({"bytes": 1, "content_type": "a\nb"}), Value::Null, "plugin_failed");
}

#[test]
fn an_attempt_whose_host_call_hangs_for_its_heartbeat_ends_and_is_tried_again() {
    let running = Running::with_guests(&["contract"]);
    let asked = json!({"heartbeat_timeout_s": 1, "timeout_s": 10, "attempts": 2, "retry": {"first_ms": 0}});
    let task = running.fails("sleep", json!({"ms": 60_000}), asked.clone(), "deadline_exceeded");
    let attempts = task["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{task}");
    for attempt in attempts {
        let limit = &attempt["error"]["limit"];
        let told = (&limit["name"], &limit["limit"], &limit["set_by"]);
        assert_eq!(told, (&json!("heartbeat_ms"), &json!(1_000), &json!("task")), "{attempt}");
        assert!(attempt["duration_us"].as_u64().unwrap() >= 1_000_000, "{attempt}");
    }
    let task = running.contract("sleep", json!({"ms": 10}), asked);
    assert_eq!(task["state"], "completed", "{task}");
}

#[test]
fn an_exit_is_told_as_what_it_was() {
    let running = Running::with_guests(&["contract"]);
    for (code, message) in [(3, "the guest exited with status 1"), (0, "the guest exited with status 0")] {
        // WASI knows success and failure only.
        let task = running.fails("exit", json!({ "code": code }), Value::Null, "trap");
        assert_eq!(task["error"]["message"], message);
    }
}

#[test]
fn what_a_submit_asks_beyond_the_policy_is_refused() {
    let running = with_tenant(
        "limits = { fuel_max = 2_000_000_000, memory_mib_max = 64, timeout_s_max = 60, attempts_max = 5 }",
    );
    let submit = |field: &str, value: u64| {
        let body = json!({"plugin": "contract", "kind": "trivial", field: value});
        running.client.post_json("/v1/tasks", &body, None).unwrap()
    };
    for (field, largest) in [("fuel", 2_000_000_000), ("memory_mib", 64), ("timeout_s", 60), ("attempts", 5)]
    {
        assert_eq!(submit(field, largest).status, 201, "{field}");
        let refused = submit(field, largest + 1);
        assert_eq!((refused.status, refused.code().as_str()), (429, "quota_exceeded"), "{field}: {refused}");
        assert_eq!(submit(field, 0).code(), "invalid_input", "{field}");
    }
}
