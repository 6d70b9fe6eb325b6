//! The shapes, as `docs/http-api.md` shows them.

use bytes::Bytes;
use keiko_core::id::{Digest, VersionId};
use keiko_core::limit::{BULK_TASKS_MAX, MIB, SetBy};
use keiko_core::log::Kept;
use keiko_core::outcome::{Meter, Taint};
use keiko_core::policy::BudgetRequest;
use keiko_core::task::{AttemptRecord, Lineage, TaskState, TaskView};
use keiko_core::{AgentId, Code, GroupId, Token, UserId};
use keiko_runtime::Progress;

use super::submit::SubmitRequest;
use super::*;
use crate::api::problem::Problem;

fn read(text: &str) -> Result<SubmitRequest, Problem> {
    submit(&Bytes::copy_from_slice(text.as_bytes()), None)
}

#[test]
fn an_input_reaches_the_plugin_byte_for_byte() {
    let check = |input: &str| {
        let body = Bytes::from(format!("{{ \"kind\" : \"k\", \"input\" :\n {input} \n}}"));
        let tasks = submit(&body, None).unwrap().tasks;
        assert_eq!(tasks[0].input.bytes, input.as_bytes());
        assert_eq!(tasks[0].input.content_type, "application/json");
    };
    check(r#"{"b":1.000,  "a":1e5,"a":2}"#);
    check("-0.0");
    check("12345678901234567890123456789012345678901234567890");
    check("\"\\u0041 é \\/\"");
    check("[\n\n]");
    check("null");
    assert_eq!(read("{}").unwrap().tasks[0].input.bytes, "null");
}

#[test]
fn many_tasks_are_read_in_their_order() {
    let request =
        read(r#"{"tasks":[{"input":1},{"input":2,"fuel":7,"memory_mib":2,"timeout_s":3}]}"#).unwrap();
    assert!(request.many);
    assert_eq!(request.tasks[0].input.bytes, "1");
    let budget = request.tasks[1].budget;
    assert_eq!((budget.fuel, budget.memory_bytes, budget.wall_ms), (Some(7), Some(2 * MIB), Some(3_000)));
    let lines = Bytes::from("{\"input\":1}\n\n{\"input\":2}\r\n");
    let request = submit_lines(&lines, Some("t")).unwrap();
    assert_eq!((request.tasks.len(), request.tasks[1].trace.as_deref()), (2, Some("t")));
}

#[test]
fn a_task_says_when_and_how_urgently() {
    let request = read(r#"{"run_at":"2023-11-14T22:13:20+00:00","priority":9}"#).unwrap();
    let task = &request.tasks[0];
    assert_eq!((task.run_at_ms, task.priority.level()), (Some(1_700_000_000_000), 9));
    let plain = &read("{}").unwrap().tasks[0];
    assert_eq!((plain.run_at_ms, plain.priority.level()), (None, 0));
}

#[test]
fn bytes_come_as_base64() {
    let request = read(r#"{"input_base64":"AAH/","content_type":"image/png"}"#).unwrap();
    assert_eq!(request.tasks[0].input.bytes.as_ref(), [0, 1, 255]);
    assert_eq!(request.tasks[0].input.content_type, "image/png");
    assert_eq!(
        read(r#"{"input_base64":""}"#).unwrap().tasks[0].input.content_type,
        "application/octet-stream"
    );
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let problem = read(text).unwrap_err();
        assert!(problem.message.contains(expected), "{text}\ngave: {}", problem.message);
        assert_eq!(problem.status.as_u16(), 400);
    };
    check("", "EOF while parsing a value at line 1 column 0");
    check("[]", "the body does not parse");
    check("{\"plugin\":\"p\",\n \"fule\":1}", "unknown field `fule`, expected one of `plugin`");
    check("{\"plugin\":\"p\",\n \"fule\":1}", "at line 2 column 7");
    check("{\"fuel\":-1}", "invalid value");
    check("{\"fuel\":1.5}", "expected u64");
    check("{\"plugin\":\"p\",\"plugin\":\"p\"}", "duplicate field `plugin`");
    check("{} {}", "trailing characters");
    check("{\"input\":1,\"input_base64\":\"\"}", "exclude each other");
    check("{\"input\":1,\"content_type\":\"text/plain\"}", "`content_type` goes with `input_base64`");
    check("{\"input_base64\":\"*\"}", "input_base64: ");
    check("{\"agent\":\"task_0000000000001\"}", "agent: not an id: expected `agent_`");
    check("{\"tasks\":[{},{\"user\":\"\"}]}", "tasks[1]: user: not an id: expected `user_`");
    check("{\"input\":\"\u{1}\"}", "control character");
    check("{\"priority\":10}", "10 exceeds the limit `priority` of 9");
    check("{\"run_at\":\"tomorrow\"}", "run_at: ");
    check("{\"tasks\":[]}", "found none");
    check("{\"tasks\":[{}],\"plugin\":\"p\"}", "unknown field `plugin`, expected `tasks`");
    check("{\"tasks\":[{},\n{\"x\":1}]}", "tasks[1]: unknown field `x`");
    check("{\"tasks\":[{},\n{\"x\":1}]}", "at line 2 column 4");
    check("{\"tasks\":[{},7]}", "tasks[1]: invalid type: integer `7`, expected a task");
    check("{\"tasks\":7}", "expected a list of 1 to 10000 tasks");
    let error = submit(&Bytes::from_static(b"{\"input\":\"\xff\"}"), None).unwrap_err();
    assert!(error.message.contains("unicode"), "{}", error.message);
    let lines = submit_lines(&Bytes::from_static(b"{}\n{\"x\":1}\n"), None).unwrap_err();
    assert!(lines.message.starts_with("line 2: "), "{}", lines.message);
}

#[test]
fn a_bulk_stops_at_its_number() {
    let many = |count: usize| format!("{{\"tasks\":[{}]}}", vec!["{}"; count].join(","));
    assert_eq!(read(&many(BULK_TASKS_MAX)).unwrap().tasks.len(), BULK_TASKS_MAX);
    assert!(read(&many(BULK_TASKS_MAX + 1)).unwrap_err().message.contains("1 to 10000"));
    let lines = |count: usize| submit_lines(&Bytes::from("{}\n".repeat(count)), None);
    assert_eq!(lines(BULK_TASKS_MAX).unwrap().tasks.len(), BULK_TASKS_MAX);
    assert_eq!(lines(BULK_TASKS_MAX + 1).unwrap_err().limit.unwrap().limit, BULK_TASKS_MAX as u64);
}

fn detail(result: Option<Payload>) -> TaskDetail {
    let failure = Failure {
        limit: Some(LimitFact { name: "fuel".to_owned(), limit: 5, asked: None, set_by: SetBy::Task }),
        backtrace: vec![Frame { function: "run".to_owned(), file: Some("lib.rs".to_owned()), line: Some(3) }],
        ..Failure::new(Code::FuelExhausted, "out of fuel")
    };
    let attempt = |number, failure| AttemptView {
        record: AttemptRecord {
            number,
            started_ms: 1_700_000_000_005,
            meter: Meter { fuel_used: 9, memory_bytes_peak: 65_536, host_calls: 2, elapsed_us: 812 },
            taint: if number == 1 { Taint::RANDOM } else { Taint::SEEDED },
            effects: 0,
            version: Some(VersionId(1)),
            memoized_from: None,
            canary: (number == 2).then(|| FailedRun {
                version: "0.2.0".parse().unwrap(),
                digest: Digest([2; 32]),
                code: Code::Trap,
            }),
        },
        version: "0.1.0".parse().ok(),
        digest: Some(Digest([1; 32])),
        failure,
    };
    TaskDetail {
        view: TaskView {
            tree: None,
            group: None,
            slot_key: None,
            budget: Default::default(),
            summary: TaskSummary {
                id: TaskId(2),
                plugin: "movie-facts".parse().unwrap(),
                kind: "normalise".parse().unwrap(),
                state: TaskState::Completed,
                created_ms: 1_700_000_000_000,
                run_at_ms: 1_700_000_000_000,
                finished_ms: Some(1_700_000_001_000),
                attempts: 2,
                crashes: 0,
                code: None,
                lineage: Lineage { root: TaskId(1), parent: Some(TaskId(1)), depth: 1 },
                agent: Some(AgentId(3)),
                user: Some(UserId(4)),
                priority: Default::default(),
            },
            token: Token(2),
            result,
            failure: None,
            attempts: vec![attempt(1, Some(failure)), attempt(2, None)],
        },
        progress: None,
    }
}

#[test]
fn a_task_has_the_documented_shape() {
    let text = String::from_utf8(task(&detail(Some(Payload::json("{\"a\": 1.0}"))))).unwrap();
    let (digest, tried) = ("01".repeat(32), "02".repeat(32));
    let expected = format!(
        r#"{{"id":"task_0000000000002","plugin":"movie-facts","kind":"normalise","state":"completed","created_at":"2023-11-14T22:13:20.000Z","run_at":"2023-11-14T22:13:20.000Z","finished_at":"2023-11-14T22:13:21.000Z","root":"task_0000000000001","parent":"task_0000000000001","depth":1,"crashes":0,"agent":"agent_0000000000003","user":"user_0000000000004","attempts":[{{"number":1,"started_at":"2023-11-14T22:13:20.005Z","duration_us":812,"version":"0.1.0","digest":"sha256:{digest}","fuel_used":9,"memory_bytes_peak":65536,"host_calls":2,"pure":false,"tainted_by":["random"],"effects":0,"error":{{"code":"fuel_exhausted","message":"out of fuel","limit":{{"name":"fuel","limit":5,"set_by":"task"}},"backtrace":[{{"function":"run","file":"lib.rs","line":3}}]}}}},{{"number":2,"started_at":"2023-11-14T22:13:20.005Z","duration_us":812,"version":"0.1.0","digest":"sha256:{digest}","fuel_used":9,"memory_bytes_peak":65536,"host_calls":2,"pure":true,"tainted_by":[],"random_seeded":true,"effects":0,"canary":{{"version":"0.2.0","digest":"sha256:{tried}","code":"trap"}}}}],"content_type":"application/json","result":{{"a": 1.0}}}}"#
    );
    assert_eq!(text, expected);
}

#[test]
fn a_result_that_only_claims_to_be_json_is_base64() {
    let check = |content_type: &str, bytes: &[u8], is_json: bool| {
        let payload = Payload { content_type: content_type.to_owned(), bytes: Bytes::copy_from_slice(bytes) };
        let text = task(&detail(Some(payload)));
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["content_type"], content_type);
        assert_eq!((json.get("result").is_some(), json.get("result_base64").is_some()), (is_json, !is_json));
    };
    check("application/json", b"[1]", true);
    check("Application/JSON; charset=utf-8", b" [1]\n", true);
    check("application/json", b"", false);
    check("application/json", b"{\"a\":1},\"state\":\"failed\"", false);
    check("application/json", b"\"\xff\"", false);
    check("application/json", "[".repeat(65).as_bytes(), false);
    check("application/json", format!("{}{}", "[".repeat(65), "]".repeat(65)).as_bytes(), false);
    check("application/json", format!("{}{}", "[".repeat(64), "]".repeat(64)).as_bytes(), true);
    check("text/html", b"[1]", false);
    let none: serde_json::Value = serde_json::from_slice(&task(&detail(None))).unwrap();
    assert!(none.get("content_type").is_none() && none.get("error").is_none());
}

#[test]
fn progress_stands_there_while_there_is_some() {
    let mut detail = detail(None);
    detail.progress = Some(Progress { fraction: 0.5, message: "half".to_owned() });
    let json: serde_json::Value = serde_json::from_slice(&task(&detail)).unwrap();
    assert_eq!(json["progress"], serde_json::json!({"fraction": 0.5, "message": "half"}));
}

#[test]
fn what_was_asked_for_stands_there_in_the_words_of_a_submit() {
    let asked = r#"{"fuel":1,"memory_mib":2,"timeout_s":3,"attempts":4,"queued_timeout_s":5,"total_timeout_s":6,"heartbeat_timeout_s":7,"tree_fuel":8,"tree_host_calls":9,"tree_timeout_s":10,"retry":{"factor":3,"codes":["trap"]}}"#;
    let mut detail = detail(None);
    let json = |detail: &TaskDetail| serde_json::from_slice::<serde_json::Value>(&task(detail)).unwrap();
    detail.view.budget = read(asked).unwrap().tasks[0].budget;
    detail.view.slot_key = Some("k".to_owned());
    detail.view.group = Some(GroupId(5));
    let told = json(&detail);
    assert_eq!(told["limits"], serde_json::from_str::<serde_json::Value>(asked).unwrap());
    assert_eq!((&told["concurrency_key"], &told["group"]), (&"k".into(), &GroupId(5).to_string().into()));
    // A plugin asks in finer units.
    detail.view.budget =
        BudgetRequest { wall_ms: Some(1), memory_bytes: Some(MIB + 1), ..Default::default() };
    assert_eq!(json(&detail)["limits"], serde_json::json!({"timeout_s": 1, "memory_mib": 2}));
}

#[test]
fn a_page_names_the_next_only_when_there_is_one() {
    let summary = detail(None).view.summary;
    let json = |count: usize| -> serde_json::Value {
        serde_json::from_slice(&page(&vec![summary.clone(); count], 2)).unwrap()
    };
    assert_eq!(json(3)["next"], "task_0000000000002");
    assert_eq!((json(3)["tasks"].as_array().unwrap().len(), json(2).get("next")), (2, None));
    let first = &json(1)["tasks"][0];
    assert_eq!((&first["attempts"], first.get("code")), (&serde_json::json!(2), None));
}

#[test]
fn a_log_line_has_its_fields_as_an_object() {
    let fields =
        [("a", "1"), ("b", "2"), ("a", "3")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let message = "hello\u{1b}".to_owned();
    let line = Line { at_ms: 0, level: Level::Warn, source: Source::Stderr, message, fields: fields.into() };
    let kept = Kept { format: 1, dropped: 4, lines: vec![line] };
    let text = String::from_utf8(logs(&[AttemptLog { attempt: 1, kept }])).unwrap();
    assert_eq!(
        text,
        r#"{"attempts":[{"attempt":1,"dropped":4,"lines":[{"at":"1970-01-01T00:00:00.000Z","level":"warn","source":"stderr","message":"hello\u001b","fields":{"b":"2","a":"3"}}]}]}"#
    );
}
