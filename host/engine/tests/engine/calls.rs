//! Each capability: what it answers, each of its errors, and its denial.

use keiko_core::TaskId;
use keiko_core::effect::Child;
use keiko_core::limit::{
    EFFECTS_MAX, INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, OUTPUT_PIECE_BYTES_MAX, OUTPUT_PIECES_MAX,
    PROGRESS_MESSAGE_BYTES_MAX,
};
use keiko_core::log::{Level, Source};
use keiko_core::outcome::Taint;
use keiko_core::policy::Grants;
use keiko_core::port::ReserveError;
use keiko_core::task::JSON;

use crate::guest::{ATTEMPT, CONFIG, Guest, LOG, OUTPUT, PROGRESS, SOCKETS, TASKS, guest};
use crate::host::{NOW_MS, Port, Run, completed};

/// Does `call`, whose answer goes to 2048, and returns whether it is an error and which: two digits.
pub fn error_of(call: &str, payload_at: u32) -> Guest {
    guest(&format!(
        "{call}
         (i32.store8 (i32.const 32) (i32.add (i32.const 48) (i32.load8_u (i32.const 2048))))
         (i32.store8 (i32.const 33) (i32.add (i32.const 48) (i32.load8_u (i32.const {}))))
         (call $answer (i32.const 32) (i32.const 2))",
        2048 + payload_at
    ))
}

const PROGRESS_CALL: &str = "(call $progress (f64.const 0.5) (i32.const 16) (i32.const 4) (i32.const 2048))";
const EMIT_CALL: &str = "(call $emit (i32.const 16) (i32.const 4) (i32.const 2048))";
const GET_CALL: &str = "(call $attempt-get (i32.const 2048))";
const REMAINING_CALL: &str = "(call $remaining-ms (i32.const 2048))";
const CONFIG_CALL: &str = "(call $config-get (i32.const 16) (i32.const 4) (i32.const 2048))";
const CONFIG_ALL_CALL: &str = "(call $config-get-all (i32.const 2048))";

/// A child without plugin, kind, content type, key and delay, of `length` bytes of input from `pointer`.
pub fn submit(pointer: u32, length: u64) -> String {
    let nones = "(i32.const 0) ".repeat(9);
    format!(
        "(call $submit {nones} (i32.const {pointer}) (i32.const {length}) (i32.const 0) (i32.const 0) (i32.const 0)
            (i32.const 0) (i64.const 0) (i32.const 2048))"
    )
}

const SUBMIT_NONE: &str = "(call $submit-many (i32.const 4096) (i32.const 0) (i32.const 2048))";

#[test]
fn a_denied_call_gets_its_own_answer_and_still_counts() {
    let one = submit(16, 4);
    for (import, call, payload_at, case, taint) in [
        (PROGRESS, PROGRESS_CALL, 8, 2, Taint::NONE),
        (OUTPUT, EMIT_CALL, 8, 3, Taint::NONE),
        (ATTEMPT, GET_CALL, 4, 0, Taint::ATTEMPT),
        (ATTEMPT, REMAINING_CALL, 8, 0, Taint::ATTEMPT),
        (CONFIG, CONFIG_CALL, 4, 0, Taint::CONFIG),
        (CONFIG, CONFIG_ALL_CALL, 4, 0, Taint::CONFIG),
        (TASKS, one.as_str(), 8, 8, Taint::TASKS),
        (TASKS, SUBMIT_NONE, 8, 8, Taint::TASKS),
    ] {
        let guest = error_of(call, payload_at).with(import);
        let denied = Run::of(guest.clone()).grants(Grants::new([])).report();
        assert_eq!(completed(&denied), format!("1{case}"), "{call}");
        assert_eq!((denied.taint, denied.meter.host_calls), (taint, 1), "{call}");
        let granted = Run::of(guest).report();
        assert!(completed(&granted).starts_with('0'), "{call}");
        assert_eq!((granted.taint, granted.meter.host_calls), (taint, 1), "{call}");
    }
}

#[test]
fn the_log_is_granted_whatever_the_policy_says() {
    let logs = guest(
        "(i32.store (i32.const 100) (i32.const 0)) (i32.store (i32.const 104) (i32.const 11))
         (i32.store (i32.const 108) (i32.const 16)) (i32.store (i32.const 112) (i32.const 4))
         (call $log (i32.const 3) (i32.const 12) (i32.const 8) (i32.const 100) (i32.const 1)) (call $done)",
    );
    let report = Run::of(logs.with(LOG)).grants(Grants::new([])).report();
    let line = &report.log.lines()[0];
    assert_eq!((line.at_ms, line.level, line.source), (NOW_MS, Level::Warn, Source::Log));
    assert_eq!(line.message, "jsonnull");
    assert_eq!(line.fields, [("application".to_owned(), "null".to_owned())]);
    assert!(report.taint.is_none());
}

#[test]
fn facts_of_the_attempt_are_its_own() {
    // Answers the text that stands in the facts at an offset: pointer and length.
    let text = |offset: u32| {
        let (pointer, length) = (2048 + offset, 2052 + offset);
        let code = format!(
            "{GET_CALL} (call $answer (i32.load (i32.const {pointer})) (i32.load (i32.const {length})))"
        );
        Run::of(guest(&code).with(ATTEMPT)).result()
    };
    let number = |offset: u32| {
        let code = format!("{GET_CALL} (call $digit (i32.load (i32.const {})))", 2048 + offset);
        Run::of(guest(&code).with(ATTEMPT)).result()
    };
    assert_eq!(text(4), "acme");
    assert_eq!(text(12), TaskId(3).to_string());
    assert_eq!(text(20), TaskId(1).to_string());
    assert_eq!(text(32), TaskId(2).to_string());
    assert_eq!((number(40), number(44), number(48)), ("2".to_owned(), "4".to_owned(), "5".to_owned()));
    assert_eq!(text(56), "00-trace");
}

#[test]
fn what_is_left_of_the_wall_clock_is_within_it() {
    let code = format!(
        "{REMAINING_CALL} (call $digit (i32.and (i64.gt_u (i64.load (i32.const 2056)) (i64.const 1000))
            (i64.le_u (i64.load (i32.const 2056)) (i64.const 30000))))"
    );
    assert_eq!(Run::of(guest(&code).with(ATTEMPT)).wall_ms(30_000).result(), "1");
}

#[test]
fn settings_are_found_by_name() {
    let get = "(call $config-get (i32.const 16) (i32.const 4) (i32.const 2048))
        (if (i32.eqz (i32.load8_u (i32.const 2052))) (then (return (call $done))))
        (call $answer (i32.load (i32.const 2056)) (i32.load (i32.const 2060)))";
    let mut run = Run::of(guest(get).with(CONFIG));
    assert_eq!(run.result(), "null");
    run.settings.insert("null".to_owned(), "of course".to_owned());
    assert_eq!(run.result(), "of course");
    let count = format!("{CONFIG_ALL_CALL} (call $digit (i32.load (i32.const 2056)))");
    run.guest = guest(&count).with(CONFIG);
    run.settings.insert("a".to_owned(), String::new());
    assert_eq!(run.result(), "2");
}

#[test]
fn progress_is_checked_and_handed_on() {
    let report = |fraction: &str, length: usize| {
        let call = format!(
            "(call $progress (f64.const {fraction}) (i32.const 2100) (i32.const {length}) (i32.const 2048))"
        );
        let run = Run::of(error_of(&call, 8).with(PROGRESS));
        let result = run.result();
        let taken = run.port.progress.lock().unwrap().len();
        (result, taken)
    };
    for fraction in ["0", "1", "0.25"] {
        assert!(report(fraction, PROGRESS_MESSAGE_BYTES_MAX).0.starts_with('0'));
    }
    assert_eq!(report("0.5", 3).1, 1);
    for fraction in ["-0.1", "1.1", "nan", "inf"] {
        assert_eq!(report(fraction, 3), ("10".to_owned(), 0), "{fraction}");
    }
    assert_eq!(report("0.5", PROGRESS_MESSAGE_BYTES_MAX + 1), ("11".to_owned(), 0));
}

#[test]
fn pieces_are_handed_on_as_they_are_until_a_limit_is_met() {
    // The answer of the last of so many calls, and how many pieces were taken.
    let emit = |length: usize, times: u64| {
        let call = format!(
            "(local.set $i (i32.const {times}))
             (loop $again
               (call $emit (i32.const 16) (i32.const {length}) (i32.const 2048))
               (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))"
        );
        let run = Run::of(error_of(&call, 8).with(OUTPUT));
        let result = run.result();
        let taken = run.port.given.lock().unwrap().clone();
        (result, taken)
    };
    let taken = |length: usize, times: u64| {
        let (result, taken) = emit(length, times);
        assert!(result.starts_with('0'), "{length} {times}: {result}");
        assert_eq!(taken.len() as u64, times);
        taken
    };
    let refused = |length: usize, times: u64, case: &str| {
        let (result, taken) = emit(length, times);
        assert_eq!((result.as_str(), taken.len() as u64), (case, times - 1), "{length} {times}");
    };
    assert_eq!(taken(4, 2), ["null", "null"]);
    taken(OUTPUT_PIECE_BYTES_MAX, 1);
    refused(OUTPUT_PIECE_BYTES_MAX + 1, 1, "10");
    taken(0, OUTPUT_PIECES_MAX);
    refused(0, OUTPUT_PIECES_MAX + 1, "11");
    let whole = OUTPUT_BYTES_MAX / OUTPUT_PIECE_BYTES_MAX as u64;
    taken(OUTPUT_PIECE_BYTES_MAX, whole);
    refused(OUTPUT_PIECE_BYTES_MAX, whole + 1, "12");
}

#[test]
fn a_child_becomes_an_effect() {
    let whole = "(call $submit (i32.const 1) (i32.const 0) (i32.const 11) (i32.const 1) (i32.const 16) (i32.const 4)
            (i32.const 1) (i32.const 12) (i32.const 4) (i32.const 16) (i32.const 4) (i32.const 1) (i32.const 0)
            (i32.const 3) (i32.const 1) (i64.const 1500) (i32.const 2048))
        (call $answer (i32.load (i32.const 2056)) (i32.load (i32.const 2060)))";
    let report = Run::of(guest(whole).with(TASKS)).report();
    assert_eq!(completed(&report), TaskId(1).to_string());
    let [Child { input, key, delay_ms, .. }] = report.effects.children.as_slice() else {
        panic!("{:?}", report.effects);
    };
    assert_eq!((input.content_type.as_str(), &input.bytes[..]), ("json", &b"null"[..]));
    assert_eq!((key.as_ref().map(|key| key.text.as_str()), *delay_ms), (Some("app"), 1_500));

    let plain = Run::of(guest(&format!("{} (call $done)", submit(16, 4))).with(TASKS)).report();
    assert_eq!(plain.effects.children[0].input.content_type, JSON);
    assert_eq!(plain.effects.children[0].key, None);
}

#[test]
fn many_children_are_taken_together() {
    // 1,000 children of nothing but zeroes: 88 bytes each. Their input is empty and their key is none.
    let many = |count: usize| {
        let call = format!("(call $submit-many (i32.const 8192) (i32.const {count}) (i32.const 2048))");
        Run::of(error_of(&call, 8).with(TASKS).pages("4")).report()
    };
    let report = many(EFFECTS_MAX);
    assert!(completed(&report).starts_with('0'));
    assert_eq!(report.effects.len(), EFFECTS_MAX);
    let over = many(EFFECTS_MAX + 1);
    assert_eq!((completed(&over).as_str(), over.effects.len()), ("15", 0));
}

#[test]
fn a_child_that_is_refused_says_why() {
    let large = |bytes: u64| Run::of(error_of(&submit(4096, bytes), 8).with(TASKS).pages("40")).result();
    assert!(large(INPUT_BYTES_MAX).starts_with('0'));
    assert_eq!(large(INPUT_BYTES_MAX + 1), "12");
    let malformed = submit(16, 4).replacen(
        &"(i32.const 0) ".repeat(9),
        "(i32.const 0) (i32.const 0) (i32.const 0) \
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0)",
        1,
    );
    assert_eq!(Run::of(error_of(&malformed, 8).with(TASKS)).result(), "11");
    for (error, case) in [
        (ReserveError::NotFound("no such plugin".to_owned()), 0),
        (ReserveError::FanOutExceeded(3), 3),
        (ReserveError::DepthExceeded(8), 4),
        (ReserveError::QueueFull(9), 7),
        (ReserveError::Unavailable, 9),
    ] {
        let port = Port { refuse: Some(error).into(), ..Port::default() };
        let report = Run::of(error_of(&submit(16, 4), 8).with(TASKS)).port(port).report();
        assert_eq!((completed(&report), report.effects.len()), (format!("1{case}"), 0));
    }
}

#[test]
fn effects_of_several_calls_are_summed() {
    // Four children of 2 MiB fit in 8 MiB only without what each counts beside its input.
    let four = submit(4096, INPUT_BYTES_MAX).repeat(4);
    let report = Run::of(error_of(&four, 8).with(TASKS).pages("40")).report();
    assert_eq!((completed(&report).as_str(), report.effects.len()), ("16", 3));
}

#[test]
fn sockets_are_refused() {
    let create = error_of("(call $create-tcp (i32.const 0) (i32.const 2048))", 4).with(SOCKETS);
    let report = Run::of(create).report();
    // An error, and of all errors `access-denied`.
    assert_eq!(completed(&report), "11");
    assert!(report.taint.is_none());
}
