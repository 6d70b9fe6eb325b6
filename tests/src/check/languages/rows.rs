//! What the guest `contract` is asked in every language, and what it must answer.
//!
//! A row is a kind of the guest with its input and what comes of it, as the guest's README says. Texts that begin with `@` are
//! names of what the tenant has; in an expected answer `$text`, `$number` and `$list` stand for any of these.

use serde_json::{Value, json};

/// Under which policy a row is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Under {
    /// Everything is granted.
    All,
    /// Nothing but the log is.
    Denied,
    /// Few children, and none of a child.
    Narrow,
    /// A queue, and processors, that hold three.
    Full,
}

/// What comes of a row.
#[derive(Clone, Debug)]
pub enum Comes {
    /// A result like this one.
    Result(Value),
    /// The last element of a result that is a list is like this one.
    Last(Value),
    /// A failure with one of these codes; this text is in its message, or in the log of the task.
    Failure(&'static [&'static str], &'static str),
}

/// One question.
#[derive(Clone, Debug)]
pub struct Row {
    /// Under which policy.
    pub under: Under,
    /// The functions of the contract that it calls, in the order of its answers.
    pub calls: Vec<&'static str>,
    /// The kind.
    pub kind: &'static str,
    /// Its input.
    pub input: Value,
    /// What else the submit says.
    pub more: Value,
    /// What must come of it.
    pub comes: Comes,
}

/// An answer that is good.
pub fn ok(value: Value) -> Value {
    json!({ "ok": value })
}

fn error(name: &str) -> Value {
    json!({"error": {"name": name}})
}

fn error_at(name: &str, number: u64) -> Value {
    json!({"error": {"name": name, "number": number}})
}

fn error_told(name: &str) -> Value {
    json!({"error": {"name": name, "text": "$text"}})
}

fn asks(under: Under, calls: &'static str, kind: &'static str, input: Value, comes: Comes) -> Row {
    let calls = if calls.is_empty() { Vec::new() } else { vec![calls] };
    Row { under, calls, kind, input, more: json!({"attempts": 1}), comes }
}

fn all(calls: &'static str, kind: &'static str, input: Value, answer: Value) -> Row {
    asks(Under::All, calls, kind, input, Comes::Result(answer))
}

impl Row {
    fn with(self, more: Value) -> Row {
        Row { more, ..self }
    }
}

/// All of them, in the order in which they are asked.
pub fn rows() -> Vec<Row> {
    let of_keiko = [small(), output(), metrics(), tasks(), asking(), batch(), agents(), history(), cache()];
    [of_keiko.concat(), wasi(), denied(), ends()].concat()
}

const LARGEST: u64 = 2 << 20;
const NOBODY: &str = "user_0000000000001";
const NO_AGENT: &str = "agent_0000000000001";

fn small() -> Vec<Row> {
    const GET: &str = "keiko:attempt/attempt.get";
    const REPORT: &str = "keiko:progress/progress.report";
    let facts = json!({"tenant": "@tenant", "task": "$text", "root": "$text", "parent": null, "depth": 0, "number": 1,
        "attempts_max": 1, "trace": null});
    let mut rows = vec![
        all(GET, "facts", json!({}), ok(facts)),
        all("keiko:attempt/attempt.remaining-ms", "remaining", json!({"calls": 3}), ok(json!("$number"))),
        all("keiko:config/config.get", "config-get", json!({"key": "colour"}), ok(json!("red"))),
        all("keiko:config/config.get", "config-get", json!({"key": "size"}), ok(Value::Null)),
        all(
            "keiko:config/config.get-all",
            "config-get-all",
            json!({}),
            ok(json!([["colour", "red"], ["shape", "räud"]])),
        ),
        all(REPORT, "progress", json!({"fraction": 0.5, "message": "half"}), ok(Value::Null)),
        all(REPORT, "progress", json!({"fraction": 1, "message_bytes": 1_024}), ok(Value::Null)),
        all(
            REPORT,
            "progress",
            json!({"fraction": 1, "message_bytes": 1_025}),
            error_at("message-too-long", 1_024),
        ),
    ];
    for level in ["trace", "debug", "info", "warn", "error"] {
        let line = json!({"level": level, "message": "m", "fields": [["a", "b"], ["c", "d"]]});
        rows.push(all("keiko:log/log.write", "log", line, json!({"fields": 2})));
    }
    for fraction in [json!(-0.01), json!(1.01), json!("nan"), json!("infinity"), json!("minus-infinity")] {
        let input = json!({ "fraction": fraction });
        rows.push(all(REPORT, "progress", input, error("fraction-out-of-range")));
    }
    rows
}

/// What a language's own library asks of WASI.
fn wasi() -> Vec<Row> {
    let random = |bytes: u64, shown: &str| {
        all("", "random-secure", json!({ "bytes": bytes }), json!({"bytes": bytes, shown: "$text"}))
    };
    vec![
        all("", "clock-wall", json!({}), json!({"unix_ms": "$number"})),
        random(16, "hex"),
        random(64, "hex"),
        random(1_000, "digest"),
    ]
}

fn output() -> Vec<Row> {
    let emit = |input: Value, answer: Value| all("keiko:progress/output.emit", "emit", input, answer);
    // Interpreters need more for so many calls.
    let emits = |input: Value, answer: Value| {
        emit(input, answer).with(json!({"attempts": 1, "fuel": 50_000_000_000_u64}))
    };
    vec![
        emit(json!({"text": "hälf"}), ok(Value::Null)),
        emit(json!({"bytes": 4_096}), ok(Value::Null)),
        emit(json!({"bytes": 4_097}), error_at("piece-too-large", 4_096)),
        emits(json!({"times": 10_000}), ok(Value::Null)),
        emits(json!({"times": 10_001}), error_at("too-many-pieces", 10_000)),
        emits(json!({"bytes": 4_096, "times": 2_048}), ok(Value::Null)),
        emits(json!({"bytes": 4_096, "times": 2_049}), error_at("too-many-bytes", 8 << 20)),
    ]
}

fn metrics() -> Vec<Row> {
    const ADD: &str = "keiko:metrics/metrics.add";
    const OBSERVE: &str = "keiko:metrics/metrics.observe";
    let sound = json!([["era", "sound"]]);
    vec![
        all(
            ADD,
            "measure",
            json!({"name": "films_total", "labels": sound, "add": 3, "times": 2}),
            ok(Value::Null),
        ),
        all(OBSERVE, "measure", json!({"name": "minutes", "observe": 60.5}), ok(Value::Null)),
        all(ADD, "measure", json!({"name": "films", "add": 1}), error_told("not-found")),
        all(OBSERVE, "measure", json!({"name": "films_total", "observe": 1.0}), error_told("not-found")),
        all(ADD, "measure", json!({"name": "films_total", "add": 1}), error_told("invalid-labels")),
        all(OBSERVE, "measure", json!({"name": "minutes", "observe": "nan"}), error("invalid-value")),
    ]
}

const SUBMIT: &str = "keiko:tasks/tasks.submit";

/// A child that does not run while the check does.
fn later(more: Value) -> Value {
    let mut child = json!({"kind": "trivial", "delay_ms": 3_600_000});
    child
        .as_object_mut()
        .into_iter()
        .for_each(|child| child.extend(more.as_object().cloned().unwrap_or_default()));
    child
}

/// A child that is submitted so many times, and the last answer.
fn submit(under: Under, child: Value, times: u64, last: Value) -> Row {
    let mut row = asks(under, SUBMIT, "submit", json!({"child": child, "times": times}), Comes::Last(last));
    row.calls = vec![SUBMIT; times as usize];
    row
}

fn tasks() -> Vec<Row> {
    const MANY: &str = "keiko:tasks/tasks.submit-many";
    const JOINED: &str = "keiko:tasks/tasks.submit-joined";
    let id = ok(json!("$text"));
    vec![
        submit(Under::All, later(json!({"input": {"any": [1, "ä"]}, "key": "once"})), 2, id.clone()),
        submit(Under::All, json!({"plugin": "nobody", "kind": "trivial"}), 1, error_told("not-found")),
        submit(
            Under::All,
            json!({"kind": "trivial", "content_type": "a\nb"}),
            1,
            error_told("invalid-input"),
        ),
        submit(Under::All, later(json!({"input_bytes": LARGEST})), 1, id.clone()),
        submit(
            Under::All,
            later(json!({"input_bytes": LARGEST + 1})),
            1,
            error_at("input-too-large", LARGEST),
        ),
        submit(
            Under::All,
            later(json!({"input_bytes": 2_000_000})),
            5,
            error_at("effect-bytes-exceeded", 8 << 20),
        ),
        submit(Under::Narrow, later(json!({})), 5, id),
        submit(Under::Narrow, later(json!({})), 6, error_at("fan-out-exceeded", 5)),
        submit(Under::Full, later(json!({})), 4, error_at("queue-full", 3)),
        all(
            MANY,
            "submit-many",
            json!({"children": [later(json!({}))], "copies": 2}),
            ok(json!(["$text", "$text"])),
        ),
        all(
            MANY,
            "submit-many",
            json!({"children": [later(json!({}))], "copies": 1_001}),
            error_at("effects-exceeded", 1_000),
        ),
        all(
            JOINED,
            "submit-joined",
            json!({"children": [later(json!({}))], "copies": 2, "live_max": 1, "fail_fast": true, "then": {"kind": "trivial"}}),
            ok(json!(["$text", "$text", "$text"])),
        ),
        all(
            JOINED,
            "submit-joined",
            json!({"children": [later(json!({"key": "k"}))], "then": {"kind": "trivial"}}),
            error_told("invalid-input"),
        ),
        asks(
            Under::All,
            MANY,
            "submit-many",
            json!({"children": [later(json!({}))], "then": "permanent"}),
            Comes::Failure(&["plugin_failed"], "permanent after submitting"),
        ),
    ]
}

/// Children that ask for something beside their input.
fn asking() -> Vec<Row> {
    const WITH: &str = "keiko:tasks/tasks.submit-with";
    const JOINED_WITH: &str = "keiko:tasks/tasks.submit-joined-with";
    let asking = |calls, options: Value, answer: Value| Row {
        calls: vec![calls],
        ..submit(Under::All, later(json!({ "options": options })), 1, answer)
    };
    let whole = json!({
        "priority": 9, "fuel": 2_000_000_000, "memory_bytes": 1 << 20, "timeout_ms": 1_000, "attempts": 7,
        "queued_timeout_ms": 5_000_000, "total_timeout_ms": 6_000_000, "heartbeat_timeout_ms": 500,
        "retry": {"first_ms": 1, "max_ms": 86_400_000, "factor": 10, "jitter_percent": 0, "codes": ["trap"]},
        "concurrency_key": "k", "once": ["u", "unique"],
    });
    let id = ok(json!("$text"));
    vec![
        asking(WITH, whole, id.clone()),
        asking(WITH, json!({"once": ["c", "unique_or_conflict"]}), id.clone()),
        asking(WITH, json!({"once": ["t", {"throttle": 7}]}), id),
        asking(WITH, json!({"once": ["d", {"debounce": {"wait_ms": 1}}]}), error_told("invalid-input")),
        asking(WITH, json!({"priority": 10}), error_told("invalid-input")),
        asking(WITH, json!({"retry": {"codes": ["no_such_code"]}}), error_told("invalid-input")),
        all(
            JOINED_WITH,
            "submit-joined",
            json!({"children": [later(json!({"options": {"priority": 1}}))], "then": {"kind": "trivial"}}),
            ok(json!(["$text", "$text"])),
        ),
    ]
}

fn batch() -> Vec<Row> {
    const ADD: &str = "keiko:batch/batch.add";
    let add = |under, items: Value, more: Value, comes: Value| {
        let mut input = json!({"processor": "things", "items": items});
        input
            .as_object_mut()
            .into_iter()
            .for_each(|input| input.extend(more.as_object().cloned().unwrap_or_default()));
        asks(under, ADD, "batch-add", input, Comes::Result(comes))
    };
    let done = json!([{"item": {"be": "done"}, "key": "k", "content_type": "application/json"}]);
    let megabyte = json!([{"item_bytes": 1 << 20}]);
    vec![
        add(Under::All, done.clone(), json!({"copies": 2}), ok(json!(["$text", "$text"]))),
        add(Under::All, done.clone(), json!({"processor": "nobody"}), error_told("not-found")),
        add(Under::All, json!([{"item": 1, "content_type": "a\nb"}]), json!({}), error_told("invalid-input")),
        add(
            Under::All,
            json!([{"item_bytes": (1 << 20) + 1}]),
            json!({}),
            error_at("item-too-large", 1 << 20),
        ),
        add(Under::All, done.clone(), json!({"copies": 1_001}), error_at("effects-exceeded", 1_000)),
        add(Under::Full, done, json!({"copies": 4}), error_at("queue-full", 3)),
        add(
            Under::All,
            megabyte,
            json!({"copies": 3, "times": 3}),
            error_at("effect-bytes-exceeded", 8 << 20),
        ),
    ]
}

fn agents() -> Vec<Row> {
    const LOAD: &str = "keiko:agents/agents.load";
    const LIST: &str = "keiko:agents/agents.list-agents";
    const SET: &str = "keiko:agents/agents.set-statuses";
    let max = |status: &str| {
        json!({"id": "@max", "name": "Max", "kind": "reviewer", "status": status, "created_ms": "$number",
            "updated_ms": "$number"})
    };
    let listed = json!({"agent": max("idle"), "total": "$number", "completed": "$number", "failed": "$number",
        "cancelled": "$number", "average_us": "$number", "success_rate": "$number"});
    let page = |agents: Value| ok(json!({"agents": agents, "next": null}));
    let set = |input: Value, answer: Value| all(SET, "agents-set-statuses", input, answer);
    vec![
        all(
            LOAD,
            "agents-load",
            json!({"ids": ["@max", NO_AGENT, "@max"]}),
            ok(json!([max("idle"), null, max("idle")])),
        ),
        all(LOAD, "agents-load", json!({"ids": ["@max"], "copies": 1_001}), error_at("ids-exceeded", 1_000)),
        all(LOAD, "agents-load", json!({"ids": [NOBODY]}), error_told("invalid-input")),
        all(
            LIST,
            "agents-list",
            json!({"kind": "reviewer", "status": "idle", "limit": 1}),
            page(json!([listed])),
        ),
        all(LIST, "agents-list", json!({"kind": "writer"}), page(json!([]))),
        all(LIST, "agents-list", json!({"before": "@max"}), page(json!([]))),
        all(LIST, "agents-list", json!({"limit": 101}), error_at("page-exceeded", 100)),
        all(LIST, "agents-list", json!({"limit": 0}), error_told("invalid-input")),
        Row {
            calls: vec![SET, LOAD],
            ..set(json!({"changes": [["@max", "active"]], "then": "load"}), ok(json!([max("active")])))
        },
        set(json!({"changes": [["@max", "retired"], ["@max", "paused"]]}), ok(Value::Null)),
        set(
            json!({"changes": [["@max", "idle"], [NO_AGENT, "idle"]]}),
            json!({"error": {"name": "not-found", "text": NO_AGENT}}),
        ),
        set(json!({"changes": [["", "idle"]]}), error_told("invalid-input")),
        set(json!({"changes": [["@max", "idle"]], "copies": 1_001}), error_at("ids-exceeded", 1_000)),
        set(json!({"changes": [["@max", "idle"]], "times": 1_001}), error_at("effects-exceeded", 1_000)),
    ]
}

fn history() -> Vec<Row> {
    const TASKS: &str = "keiko:history/history.user-tasks";
    const SUMMARIZE: &str = "keiko:history/history.summarize";
    let task = json!({"id": "$text", "plugin": "contract", "kind": "trivial", "state": "completed",
        "created_ms": "$number", "ended_ms": "$number", "user": {"id": "@ada", "name": "Ada"},
        "agent": {"id": "@max", "name": "Max", "kind": "reviewer"},
        "output": {"content_type": "application/json", "bytes": 4, "digest": "$text"}, "failure": null});
    let failed = json!({"id": "$text", "plugin": "contract", "kind": "fail", "state": "failed", "created_ms": "$number",
        "ended_ms": "$number", "user": {"id": "@ada", "name": "Ada"}, "agent": null, "output": null,
        "failure": {"code": "plugin_failed", "message": "no"}});
    let ask = |input: Value, answer: Value| all(TASKS, "history-user-tasks", input, answer);
    let statistics = json!({"plugin": "contract", "kind": "history-summarize", "state": "running", "count": 1,
        "average_us": 0, "minimum_us": 0, "maximum_us": 0, "p50_us": 0, "p95_us": 0});
    vec![
        asks(Under::All, "", "trivial", json!("it"), Comes::Result(json!("it")))
            .with(json!({"attempts": 1, "user": "@ada", "agent": "@max"})),
        asks(
            Under::All,
            "",
            "fail",
            json!({"as": "permanent", "message": "no"}),
            Comes::Failure(&["plugin_failed"], "no"),
        )
        .with(json!({"attempts": 1, "user": "@ada"})),
        ask(json!({"user": "@ada", "limit": 2}), ok(json!({"tasks": [failed, task], "next": null}))),
        ask(json!({"user": "@ada", "limit": 1}), ok(json!({"tasks": "$list", "next": "$text"}))),
        ask(json!({"user": "@ada", "limit": 101}), error_at("page-exceeded", 100)),
        ask(json!({ "user": NOBODY }), json!({"error": {"name": "not-found", "text": NOBODY}})),
        ask(json!({"user": "@ada", "before": "@ada"}), error_told("invalid-input")),
        // What is running is in the list as long as it is the only one of its kind.
        asks(
            Under::Narrow,
            SUMMARIZE,
            "history-summarize",
            json!({"from_ms": 0, "to_ms": 9_000_000_000_000_u64}),
            Comes::Result(ok(json!([statistics, "$any", "$any"]))),
        ),
        all(SUMMARIZE, "history-summarize", json!({"from_ms": 0, "to_ms": 1}), ok(json!([]))),
        all(SUMMARIZE, "history-summarize", json!({"from_ms": 2, "to_ms": 1}), error_told("invalid-input")),
    ]
}

/// What a step of the kind `cache` calls.
fn call_of(step: &Value) -> &'static str {
    match step["do"].as_str() {
        Some("get") => "keiko:cache/cache.get",
        Some("get-many") => "keiko:cache/cache.get-many",
        Some("set") => "keiko:cache/cache.set",
        Some("remove") => "keiko:cache/cache.remove",
        Some("remove-tag") => "keiko:cache/cache.remove-tag",
        Some("fill") => "keiko:cache/cache.get-or-fill",
        Some("complete") => "keiko:cache/cache.[method]fill.complete",
        _ => "",
    }
}

fn steps(under: Under, steps: &[(Value, Value)]) -> Row {
    let (input, answers): (Vec<Value>, Vec<Value>) = steps.iter().cloned().unzip();
    let calls = input.iter().map(call_of).collect();
    let comes = Comes::Result(json!(answers));
    Row { calls, ..asks(under, "", "cache", json!({ "steps": input }), comes) }
}

fn cache() -> Vec<Row> {
    let key = |bytes: usize| "k".repeat(bytes);
    let tags = |count: usize, bytes: usize| -> Vec<String> {
        (0..count).map(|number| format!("{number:0>bytes$}")).collect()
    };
    let null = || ok(Value::Null);
    let large = json!({"do": "set", "key": key(512), "value_bytes": LARGEST, "tags": tags(16, 128),
        "lifetime_ms": 2_592_000_000_u64});
    let values = [
        (json!({"do": "get", "key": "a"}), null()),
        (json!({"do": "set", "key": "a", "value": "öne", "lifetime_ms": 60_000}), null()),
        (json!({"do": "set", "key": "b", "value": "", "tags": ["t"]}), null()),
        (json!({"do": "get-many", "keys": ["a", "none", "b"]}), ok(json!(["öne", null, ""]))),
        (json!({"do": "remove-tag", "tag": "t"}), null()),
        (json!({"do": "get-many", "keys": ["a", "b"]}), ok(json!(["öne", null]))),
        (json!({"do": "remove", "key": "a"}), null()),
        (json!({"do": "get", "key": "a"}), null()),
        (large, null()),
        (json!({"do": "get", "key": key(512)}), ok(json!(LARGEST))),
    ];
    let limits = [
        (json!({"do": "get", "key": key(513)}), error_told("invalid-key")),
        (json!({"do": "remove-tag", "tag": ""}), error_told("invalid-tag")),
        (json!({"do": "set", "key": "k", "value_bytes": LARGEST + 1}), error_at("value-too-large", LARGEST)),
        (json!({"do": "set", "key": "k", "tags": tags(17, 2)}), error_at("too-many-tags", 16)),
        (json!({"do": "set", "key": "k", "lifetime_ms": 0}), error_at("invalid-lifetime", 2_592_000_000)),
        (json!({"do": "get-many", "keys": ["none"], "copies": 101}), error_at("too-many-keys", 100)),
        (json!({"do": "get-many", "keys": [key(512)], "copies": 3}), error_at("answer-too-large", 4 << 20)),
    ];
    let fills = [
        (json!({"do": "fill", "key": "f"}), ok(json!("fill"))),
        (json!({"do": "fill", "key": "g"}), error("fill-held")),
        (json!({"do": "complete", "value": "v", "tags": ["t"]}), null()),
        (json!({"do": "fill", "key": "f"}), ok(json!({"hit": "v"}))),
        (json!({"do": "fill", "key": "g"}), ok(json!("fill"))),
        (json!({"do": "drop"}), ok(json!(true))),
        (json!({"do": "fill", "key": "h"}), ok(json!("fill"))),
        (json!({"do": "complete", "lifetime_ms": 0}), error_at("invalid-lifetime", 2_592_000_000)),
        (json!({"do": "complete"}), ok(json!("no fill"))),
    ];
    let generous = json!({"attempts": 1, "memory_mib": 256});
    vec![
        steps(Under::All, &values).with(generous.clone()),
        steps(Under::All, &limits).with(generous),
        steps(Under::All, &fills),
    ]
}

fn denied() -> Vec<Row> {
    let denied = error("denied");
    let row = |calls, kind, input| asks(Under::Denied, calls, kind, input, Comes::Result(denied.clone()));
    let mut rows = vec![
        row("keiko:attempt/attempt.get", "facts", json!({})),
        row("keiko:attempt/attempt.remaining-ms", "remaining", json!({})),
        row("keiko:config/config.get", "config-get", json!({"key": "colour"})),
        row("keiko:config/config.get-all", "config-get-all", json!({})),
        row("keiko:progress/progress.report", "progress", json!({"fraction": 0.5})),
        row("keiko:progress/output.emit", "emit", json!({})),
        row("keiko:metrics/metrics.add", "measure", json!({"name": "films_total", "add": 1})),
        row("keiko:metrics/metrics.observe", "measure", json!({"name": "minutes", "observe": 1})),
        row("keiko:tasks/tasks.submit-many", "submit-many", json!({"children": [{"kind": "trivial"}]})),
        row("keiko:tasks/tasks.submit-joined", "submit-joined", json!({"children": [{}], "then": {}})),
        row("keiko:batch/batch.add", "batch-add", json!({"processor": "things", "items": []})),
        row("keiko:agents/agents.load", "agents-load", json!({"ids": []})),
        row("keiko:agents/agents.list-agents", "agents-list", json!({})),
        row("keiko:agents/agents.set-statuses", "agents-set-statuses", json!({"changes": []})),
        row("keiko:history/history.user-tasks", "history-user-tasks", json!({ "user": NOBODY })),
        row("keiko:history/history.summarize", "history-summarize", json!({"from_ms": 0, "to_ms": 1})),
    ];
    let submit = json!({"child": {"kind": "trivial"}});
    rows.push(asks(Under::Denied, "keiko:tasks/tasks.submit", "submit", submit, Comes::Last(denied.clone())));
    let all = [
        json!({"do": "get", "key": "k"}),
        json!({"do": "get-many", "keys": []}),
        json!({"do": "set", "key": "k"}),
        json!({"do": "remove", "key": "k"}),
        json!({"do": "remove-tag", "tag": "t"}),
        json!({"do": "fill", "key": "k"}),
    ];
    rows.push(steps(Under::Denied, &all.map(|step| (step, denied.clone()))));
    rows
}

fn ends() -> Vec<Row> {
    let result = |kind, input, result| asks(Under::All, "", kind, input, Comes::Result(result));
    let fails =
        |kind, input, codes, message| asks(Under::All, "", kind, input, Comes::Failure(codes, message));
    let described = json!({"content_type": "application/json", "bytes": 9, "digest": "$text"});
    let small = json!({"attempts": 1, "memory_mib": 48});
    vec![
        result("trivial", json!({"as": ["it", "cäme"]}), json!({"as": ["it", "cäme"]})),
        result("describe", json!({"a": 100}), described),
        result("recurse", json!({"depth": 20}), json!({"depth": 20})),
        result("spin", json!({"turns": 100}), json!({"turns": 100})),
        result("grow", json!({"mib": 2, "by": "allocation"}), json!({"mib": 2})),
        fails("fail", json!({"as": "invalid-input", "message": "nö"}), &["invalid_input"], "nö"),
        fails("fail", json!({"as": "permanent", "message": "no"}), &["plugin_failed"], "no"),
        fails(
            "fail",
            json!({"as": "retryable", "message": "later", "retry_after_ms": 1}),
            &["plugin_failed"],
            "later",
        )
        .with(json!({"attempts": 2})),
        fails("facts", json!({"unknown": 1}), &["invalid_input"], ""),
        fails("config-get", json!({}), &["invalid_input"], ""),
        fails("panic", json!({"message": "the sky fell"}), &["trap"], "the sky fell"),
        fails("recurse", json!({"depth": 5_000_000}), &["stack_exhausted", "trap"], ""),
        fails("spin", json!({}), &["fuel_exhausted"], "50000000")
            .with(json!({"fuel": 50_000_000, "attempts": 1})),
        fails("spin", json!({}), &["deadline_exceeded"], "1000")
            .with(json!({"fuel": 100_000_000_000_u64, "timeout_s": 1, "attempts": 1})),
        fails("grow", json!({"mib": 100, "by": "allocation"}), &["memory_exceeded"], "").with(small),
        fails("output", json!({"bytes": LARGEST + 1}), &["plugin_failed"], ""),
        fails("output", json!({"bytes": 1, "content_type": "a\nb"}), &["plugin_failed"], ""),
    ]
}
