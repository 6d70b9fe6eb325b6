//! What guests ask about the tenant's data: what they are answered, each error, and each limit.

use bytes::Bytes;
use keiko_core::agent::{Agent, AgentStatus, StatusChange, User};
use keiko_core::history::{Statistics, UserTask};
use keiko_core::limit::{AGENTS_MAX, EFFECTS_MAX, GUEST_PAGE_MAX, INPUT_BYTES_MAX, MIB};
use keiko_core::outcome::{Failure, Outcome, Taint};
use keiko_core::policy::Grants;
use keiko_core::port::AskError;
use keiko_core::task::{Lineage, Payload, TaskState, TaskSummary};
use keiko_core::{AgentId, Code, TaskId, UserId};

use crate::calls::{error_of, submit};
use crate::guest::{AGENTS, Guest, HISTORY, TASKS, guest};
use crate::host::{Port, Run, completed};

/// Ids as constants of a guest: agent 1 at 512, agent 2 at 544, user 3 at 576, task 4 at 608; at 640 two of agent 1 and
/// two of agent 2, as a list of ids; at 704 a change of agent 1 to `paused` and of agent 2 to `retired`.
const IDS: &str = r#"
    (data (i32.const 512) "agent_0000000000001") (data (i32.const 544) "agent_0000000000002")
    (data (i32.const 576) "user_0000000000003") (data (i32.const 608) "task_0000000000004")
    (data (i32.const 640) "\00\02\00\00\13\00\00\00\00\02\00\00\13\00\00\00\20\02\00\00\13\00\00\00\20\02\00\00\13\00\00\00")
    (data (i32.const 704) "\00\02\00\00\13\00\00\00\02\00\00\00\20\02\00\00\13\00\00\00\04\00\00\00")
"#;

/// Loads agents 1, 2 and 2.
const LOAD: &str = "(call $load (i32.const 648) (i32.const 3) (i32.const 2048))";
/// Gives agent 1 the status `paused`.
const PAUSE: &str = "(call $set-statuses (i32.const 704) (i32.const 1) (i32.const 2048))";
/// The same, and agent 2 is `retired`.
const PAUSE_AND_RETIRE: &str = "(call $set-statuses (i32.const 704) (i32.const 2) (i32.const 2048))";
const SUMMARIZE: &str = "(call $summarize (i64.const 5) (i64.const 5) (i32.const 2048))";

/// Lists agents; each part of the filter as its flat values.
fn list(kind: &str, status: &str, before: &str, limit: &str) -> String {
    format!("(call $list-agents {kind} {status} {before} {limit} (i32.const 2048))")
}

/// Asks for the tasks of whoever stands at 576.
fn user_tasks(before: &str, limit: &str) -> String {
    format!("(call $user-tasks (i32.const 576) (i32.const 18) {before} {limit} (i32.const 2048))")
}

const NO_TEXT: &str = "(i32.const 0) (i32.const 0) (i32.const 0)";
const NONE: &str = "(i32.const 0) (i32.const 0)";

fn some(number: u32) -> String {
    format!("(i32.const 1) (i32.const {number})")
}

fn text(pointer: u32, length: u32) -> String {
    format!("(i32.const 1) (i32.const {pointer}) (i32.const {length})")
}

/// The guest whose answer says whether `call` is an error and which.
fn asks(call: &str) -> Guest {
    error_of(call, 8).module(IDS).with(AGENTS).with(HISTORY).pages("4")
}

/// The guest that makes `call` and goes on with `code`.
fn answers(call: &str, code: &str) -> Guest {
    guest(&format!("{call} {code}")).module(IDS).with(AGENTS).with(HISTORY)
}

fn agent(id: i64, name: &str) -> Agent {
    Agent {
        id: AgentId(id),
        name: name.to_owned(),
        kind: "reviewer".parse().unwrap(),
        status: AgentStatus::Active,
        created_ms: 6,
        updated_ms: 7,
    }
}

fn task(id: i64, result: usize) -> UserTask {
    let id = TaskId(id);
    UserTask {
        summary: TaskSummary {
            id,
            plugin: "films".parse().unwrap(),
            kind: "cut".parse().unwrap(),
            state: TaskState::Completed,
            created_ms: 8,
            run_at_ms: 8,
            finished_ms: Some(9),
            attempts: 1,
            crashes: 0,
            code: None,
            lineage: Lineage::root(id),
            agent: Some(AgentId(1)),
            user: Some(UserId(3)),
            priority: Default::default(),
        },
        user: User { id: UserId(3), name: "Ada".to_owned(), created_ms: 1 },
        agent: Some(agent(1, "Max")),
        result: Some(Payload::json(Bytes::from(vec![b'r'; result]))),
        failure: None,
    }
}

/// A tenant with agents 1 and 2, and 101 tasks of a user.
fn port() -> Port {
    let statistics = Statistics {
        plugin: "films".parse().unwrap(),
        kind: "cut".parse().unwrap(),
        state: TaskState::Failed,
        count: 1,
        average_us: 2,
        minimum_us: 3,
        maximum_us: 4,
        p50_us: 5,
        p95_us: 6,
    };
    Port {
        agents: vec![agent(1, "Max"), agent(2, "Eva")],
        user_tasks: (0..=i64::from(GUEST_PAGE_MAX)).rev().map(|id| task(id, 4)).collect(),
        statistics: vec![statistics],
        ..Port::default()
    }
}

/// The two digits that `call` gets of this port.
fn asked(call: &str, port: Port) -> String {
    Run::of(asks(call)).port(port).result()
}

/// Every function with a call that is answered, the case of its denial and of a host that cannot answer, and its mark.
fn every_call() -> [(String, char, char, Taint); 5] {
    [
        (LOAD.to_owned(), '6', '7', Taint::AGENTS),
        (list(NO_TEXT, NONE, NO_TEXT, NONE), '6', '7', Taint::AGENTS),
        (PAUSE.to_owned(), '6', '7', Taint::AGENTS),
        (user_tasks(NO_TEXT, NONE), '4', '5', Taint::HISTORY),
        (SUMMARIZE.to_owned(), '4', '5', Taint::HISTORY),
    ]
}

#[test]
fn a_denied_question_gets_its_own_answer_and_still_counts() {
    for (call, denied, _, taint) in every_call() {
        let run = |grants: Grants| Run::of(asks(&call)).grants(grants).port(port());
        let refused = run(Grants::new([]));
        let report = refused.report();
        assert_eq!(completed(&report), format!("1{denied}"), "{call}");
        assert_eq!((report.taint, report.meter.host_calls), (taint, 1), "{call}");
        assert!(report.effects.is_empty(), "{call}");
        assert_eq!(*refused.port.asked.lock().unwrap(), [] as [String; 0], "{call}: nobody is asked");
        let granted = run(Grants::default()).report();
        assert!(completed(&granted).starts_with('0'), "{call}");
        assert_eq!((granted.taint, granted.meter.host_calls), (taint, 1), "{call}");
    }
}

#[test]
fn a_host_that_cannot_answer_says_so() {
    for (call, _, unavailable, _) in every_call() {
        let port = Port { unanswered: Some(AskError::Unavailable), ..port() };
        let report = Run::of(asks(&call)).port(port).report();
        assert_eq!(completed(&report), format!("1{unavailable}"), "{call}");
        assert!(report.effects.is_empty(), "{call}");
    }
}

#[test]
fn agents_are_loaded_in_the_order_of_the_ids() {
    // An entry has 56 bytes: whether there is one, and at 8 its id, at 16 its name, at 24 its kind, at 32 its status,
    // at 40 and 48 its times.
    let entry = |at: u32, code: &str| {
        let find = format!("(local.set $i (i32.add (i32.load (i32.const 2056)) (i32.const {})))", 56 * at);
        let port = Port { agents: vec![agent(2, "Eva")], ..port() };
        Run::of(answers(LOAD, &format!("{find} {code}"))).port(port).result()
    };
    let field = |at: u32| {
        format!(
            "(call $answer (i32.load offset={at} (local.get $i)) (i32.load offset={} (local.get $i)))",
            at + 4
        )
    };
    let is_there = "(call $digit (i32.load8_u (local.get $i)))";
    assert_eq!([0, 1, 2].map(|at| entry(at, is_there)), ["0", "1", "1"], "agent 1 is not the tenant's");
    assert_eq!(entry(2, &field(8)), AgentId(2).to_string());
    assert_eq!((entry(2, &field(16)), entry(2, &field(24))), ("Eva".to_owned(), "reviewer".to_owned()));
    assert_eq!(entry(2, "(call $digit (i32.load8_u offset=32 (local.get $i)))"), "1");
    assert_eq!(entry(2, "(call $digit (i32.load offset=40 (local.get $i)))"), "6");
    assert_eq!(entry(2, "(call $digit (i32.load offset=48 (local.get $i)))"), "7");
}

#[test]
fn an_attempt_sees_its_own_statuses_before_they_are_stored() {
    let status = |at: u32| {
        let code = format!(
            "{LOAD} (call $digit (i32.load8_u (i32.add (i32.load (i32.const 2056)) (i32.const {}))))",
            56 * at + 32
        );
        Run::of(answers(PAUSE_AND_RETIRE, &code)).port(port()).report()
    };
    let report = status(0);
    assert_eq!((completed(&report).as_str(), completed(&status(2)).as_str()), ("2", "4"));
    let expected = [(1, AgentStatus::Paused), (2, AgentStatus::Retired)];
    let expected = expected.map(|(agent, status)| StatusChange { agent: AgentId(agent), status });
    assert_eq!((report.effects.statuses.as_slice(), report.effects.len()), (&expected[..], 2));
}

#[test]
fn statuses_of_an_attempt_that_fails_are_dropped() {
    let fails = answers(PAUSE, "(call $fail (i32.const 1) (i32.const 16) (i32.const 4))");
    let report = Run::of(fails).port(port()).report();
    assert!(matches!(report.outcome, Outcome::Failed(Failure { code: Code::PluginFailed, .. })));
    assert!(report.effects.is_empty());
}

#[test]
fn unknown_agents_are_told_at_the_call_and_nothing_is_kept() {
    let port = || Port { agents: vec![agent(1, "Max")], ..port() };
    let report = Run::of(asks(PAUSE_AND_RETIRE)).port(port()).report();
    assert_eq!((completed(&report).as_str(), report.effects.len()), ("13", 0));
    let named = "(local.set $i (i32.load (i32.const 2064)))
        (if (i32.ne (i32.load (i32.const 2068)) (i32.const 1)) (then (unreachable)))
        (call $answer (i32.load (local.get $i)) (i32.load offset=4 (local.get $i)))";
    let first = Run::of(answers(PAUSE_AND_RETIRE, named)).port(port()).result();
    assert_eq!(first, AgentId(2).to_string());
}

/// Fills `count` entries of `size` bytes from 16384 on with agent 1, and its status `idle`.
fn fill(count: usize, size: usize) -> String {
    format!(
        "(local.set $i (i32.const 16384)) (local.set $j (i32.const {count}))
         (loop $more
            (i32.store (local.get $i) (i32.const 512)) (i32.store offset=4 (local.get $i) (i32.const 19))
            (local.set $i (i32.add (local.get $i) (i32.const {size})))
            (br_if $more (local.tee $j (i32.sub (local.get $j) (i32.const 1)))))"
    )
}

fn set_many(count: usize) -> String {
    let fill = fill(count, 12);
    format!("{fill} (call $set-statuses (i32.const 16384) (i32.const {count}) (i32.const 2048))")
}

#[test]
fn ids_and_changes_stop_at_their_number() {
    let load = |count: usize| {
        let fill = fill(count, 8);
        asked(&format!("{fill} (call $load (i32.const 16384) (i32.const {count}) (i32.const 2048))"), port())
    };
    assert!(load(AGENTS_MAX).starts_with('0'));
    assert_eq!(load(AGENTS_MAX + 1), "11");

    let set = |code: &str| {
        let report = Run::of(asks(code)).port(port()).report();
        (completed(&report), report.effects.len())
    };
    let (most, kept) = set(&set_many(AGENTS_MAX));
    assert!(most.starts_with('0'));
    assert_eq!(kept, AGENTS_MAX);
    assert_eq!(set(&set_many(AGENTS_MAX + 1)), ("11".to_owned(), 0));
    assert_eq!(set(&format!("{} {PAUSE}", set_many(EFFECTS_MAX))), ("14".to_owned(), EFFECTS_MAX));
    let (last, kept) = set(&format!("{} {PAUSE}", set_many(EFFECTS_MAX - 1)));
    assert!(last.starts_with('0'));
    assert_eq!(kept, EFFECTS_MAX);
}

#[test]
fn statuses_count_in_the_bytes_of_all_effects() {
    // Every effect counts 128 bytes beside its payload: four children leave room for one status, or for half of one.
    let with_children = |last: u64| {
        let children = submit(8192, INPUT_BYTES_MAX).repeat(3) + &submit(8192, last);
        let code = format!("{children} {PAUSE}");
        let report = Run::of(asks(&code).with(TASKS).pages("40")).port(port()).report();
        (completed(&report), report.effects.len())
    };
    let room = 8 * MIB - 3 * INPUT_BYTES_MAX - 5 * 128;
    let (inside, kept) = with_children(room);
    assert!(inside.starts_with('0'));
    assert_eq!(kept, 5);
    assert_eq!(with_children(room + 1), ("15".to_owned(), 4));
}

#[test]
fn lists_are_filtered_paged_and_bounded() {
    let ask = |kind: &str, status: &str, before: &str, limit: &str| {
        let run = Run::of(asks(&list(kind, status, before, limit))).port(port());
        (run.result(), run.port.asked.lock().unwrap().join(""))
    };
    let whole = ask(&text(0, 3), &some(3), &text(512, 19), &some(100));
    assert!(whole.0.starts_with('0'));
    for part in ["app", "Failed", &AgentId(1).to_string(), " 100"] {
        assert!(whole.1.contains(part), "{part} in {}", whole.1);
    }
    let plain = ask(NO_TEXT, NONE, NO_TEXT, NONE);
    assert_eq!(plain.1, "AgentFilter { kind: None, status: None, before: None } 100");
    assert_eq!(ask(NO_TEXT, NONE, NO_TEXT, &some(101)), ("12".to_owned(), String::new()));
    assert_eq!(ask(NO_TEXT, NONE, NO_TEXT, &some(0)), ("10".to_owned(), String::new()));

    // The list, then whether there is a next page and where it begins.
    let page = |limit: &str, code: &str| {
        Run::of(answers(&list(NO_TEXT, NONE, NO_TEXT, limit), code)).port(port()).result()
    };
    let next = "(if (i32.eqz (i32.load8_u (i32.const 2064))) (then (return (call $done))))
        (call $answer (i32.load (i32.const 2068)) (i32.load (i32.const 2072)))";
    assert_eq!(page(&some(1), next), AgentId(1).to_string());
    assert_eq!(page(&some(2), next), "null");
    // An entry is an agent of 48 bytes, and at 48 its total, at 80 its average.
    let number = |at: u32| {
        let code = format!("(call $digit (i32.load offset={at} (i32.load (i32.const 2056))))");
        page(NONE, &code)
    };
    assert_eq!((number(48), number(56), number(80)), ("4".to_owned(), "3".to_owned(), "7".to_owned()));
    let rate = "(call $digit (f64.eq (f64.load offset=88 (i32.load (i32.const 2056))) (f64.const 0.75)))";
    assert_eq!(page(NONE, rate), "1");
}

#[test]
fn what_is_no_id_or_name_is_refused_before_anybody_is_asked() {
    let not_an_id = "(i32.store (i32.const 644) (i32.const 18)) (i32.store (i32.const 708) (i32.const 18))";
    let nobody = "(i32.store8 (i32.const 576) (i32.const 85))";
    for call in [
        format!("{not_an_id} (call $load (i32.const 640) (i32.const 1) (i32.const 2048))"),
        format!("{not_an_id} {PAUSE}"),
        list(&text(512, 19), NONE, &text(576, 18), NONE),
        // A media type is no kind.
        list(&text(0, 16), NONE, NO_TEXT, NONE),
        format!("{nobody} {}", user_tasks(NO_TEXT, NONE)),
        user_tasks(&text(512, 18), NONE),
        user_tasks(NO_TEXT, &some(0)),
        "(call $summarize (i64.const 6) (i64.const 5) (i32.const 2048))".to_owned(),
    ] {
        let run = Run::of(asks(&call)).port(port());
        assert_eq!(run.result(), "10", "{call}");
        assert_eq!(*run.port.asked.lock().unwrap(), [] as [String; 0], "{call}");
    }
}

#[test]
fn a_users_tasks_come_with_agents_and_results() {
    let asked_for = |before: &str, limit: &str| {
        let run = Run::of(asks(&user_tasks(before, limit))).port(port());
        (run.result(), run.port.asked.lock().unwrap().join(""))
    };
    assert_eq!(asked_for(&text(608, 18), &some(100)).1, "user_0000000000003 Some(task_0000000000004) 100");
    assert_eq!(asked_for(NO_TEXT, NONE).1, "user_0000000000003 None 100");
    assert_eq!(asked_for(NO_TEXT, &some(101)), ("11".to_owned(), String::new()));

    let page = |limit: &str, code: &str| {
        let code = format!("(local.set $i (i32.load (i32.const 2056))) {code}");
        Run::of(answers(&user_tasks(NO_TEXT, limit), &code)).port(port()).result()
    };
    let field = |at: u32| {
        let code = format!(
            "(call $answer (i32.load offset={at} (local.get $i)) (i32.load offset={} (local.get $i)))",
            at + 4
        );
        page(&some(1), &code)
    };
    // id, plugin, kind, state at 24, created at 32, ended at 40, user at 56, agent at 72, output at 100, failure at 120.
    assert_eq!((field(0), field(8), field(16)), (TaskId(100).to_string(), "films".into(), "cut".into()));
    assert_eq!((field(64), field(84), field(112)), ("Ada".into(), "Max".into(), "rrrr".into()));
    assert_eq!(page(NONE, "(call $digit (i32.load8_u offset=24 (local.get $i)))"), "2");
    assert_eq!(page(NONE, "(call $digit (i32.load8_u offset=120 (local.get $i)))"), "0");
    // All but the oldest are on the first page, and the next begins behind the last of them.
    let next = "(if (i32.eqz (i32.load8_u (i32.const 2064))) (then (return (call $done))))
        (call $answer (i32.load (i32.const 2068)) (i32.load (i32.const 2072)))";
    assert_eq!(page(NONE, next), TaskId(1).to_string());
}

#[test]
fn what_is_not_there_or_too_large_is_told() {
    let refused = |call: &str, error: AskError| {
        let port = Port { unanswered: Some(error), ..port() };
        asked(call, port)
    };
    assert_eq!(refused(&user_tasks(NO_TEXT, NONE), AskError::NoUser(UserId(3))), "12");
    assert_eq!(refused(SUMMARIZE, AskError::TooLarge(4 * MIB)), "13");
    assert_eq!(refused(LOAD, AskError::TooLarge(4 * MIB)), "18", "agents have no case of their own for it");
}

#[test]
fn statistics_are_of_the_range_that_was_asked_for() {
    let range = |from: &str, to: &str| {
        let call = format!("(call $summarize (i64.const {from}) (i64.const {to}) (i32.const 2048))");
        let run = Run::of(asks(&call)).port(port());
        assert!(run.result().starts_with('0'), "{call}");
        run.port.asked.lock().unwrap().join("")
    };
    assert_eq!(range("5", "5"), "5 5");
    assert_eq!(range("0", "0xffffffffffffffff"), format!("0 {}", i64::MAX));
    // plugin, kind, state at 16, count at 24, then the durations.
    let at = |offset: u32| {
        let code = format!("(call $digit (i32.load8_u offset={offset} (i32.load (i32.const 2056))))");
        Run::of(answers(SUMMARIZE, &code)).port(port()).result()
    };
    assert_eq!([16, 24, 32, 40, 48, 56, 64].map(at), ["3", "1", "2", "3", "4", "5", "6"]);
}

#[test]
fn answers_are_charged_by_the_byte() {
    let fuel = |bytes: usize| {
        let port = Port { user_tasks: vec![task(4, bytes)], ..port() };
        let report = Run::of(asks(&user_tasks(NO_TEXT, NONE))).port(port).report();
        assert!(completed(&report).starts_with('0'));
        report.meter.fuel_used
    };
    assert!(fuel(MIB as usize) - fuel(0) >= MIB, "a result of 1 MiB costs as much fuel");
}
