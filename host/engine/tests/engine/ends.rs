//! How runs end, and what is said of it.

use keiko_core::Code;
use keiko_core::limit::{CONTENT_TYPE_BYTES_MAX, RESULT_BYTES_MAX};
use keiko_core::log::Source;
use keiko_core::outcome::RetryWish;

use crate::guest::{EXIT, Guest, LOG, PROGRESS, STDERR, TASKS, guest};
use crate::host::{Port, Run, block_on, completed, failed};

#[test]
fn a_result_comes_back_with_what_it_cost() {
    let echo = Run::of(guest("(call $answer (local.get $input) (local.get $length))")).input("[1]");
    let report = echo.report();
    assert_eq!(completed(&report), "[1]");
    assert!(report.meter.fuel_used > 0 && report.meter.fuel_used < 1_000, "{:?}", report.meter);
    assert_eq!(report.meter.host_calls, 0);
    assert_eq!(report.meter.memory_bytes_peak, 65_536);
    assert!(report.taint.is_none() && report.effects.is_empty() && report.log.lines().is_empty());
}

#[test]
fn the_plugins_own_failures_keep_their_kind() {
    let fail = |code: &str| Run::of(guest(code)).failure();
    let invalid = fail("(call $fail (i32.const 0) (i32.const 16) (i32.const 4))");
    assert_eq!((invalid.code, invalid.message.as_str()), (Code::InvalidInput, "null"));
    let permanent = fail("(call $fail (i32.const 1) (i32.const 16) (i32.const 4))");
    assert_eq!((permanent.code, permanent.retry), (Code::PluginFailed, RetryWish::ByCode));
    let retryable = fail("(call $fail (i32.const 2) (i32.const 16) (i32.const 4))");
    assert_eq!((retryable.code, retryable.retry), (Code::PluginFailed, RetryWish::After(None)));
    let later = "(drop (call $fail (i32.const 2) (i32.const 16) (i32.const 4)))
        (i32.store8 (i32.const 1048) (i32.const 1)) (i64.store (i32.const 1056) (i64.const 1500))
        (i32.const 1024)";
    assert_eq!(fail(later).retry, RetryWish::After(Some(1_500)));
}

#[test]
fn a_trap_names_the_functions_it_went_through() {
    let deep = guest("(call $outer) (call $done)").module(
        "(func $inner unreachable)
         (func $_ZN3app5outer17h0123456789abcdefE call $inner)
         (func $outer call $_ZN3app5outer17h0123456789abcdefE)",
    );
    let failure = Run::of(deep).failure();
    assert_eq!(failure.code, Code::Trap);
    assert!(failure.message.contains("unreachable"), "{}", failure.message);
    let names: Vec<_> = failure.backtrace.iter().map(|frame| frame.function.as_str()).collect();
    assert_eq!(names, ["inner", "app::outer", "outer", "run"]);
}

#[test]
fn a_backtrace_stops_at_its_limit() {
    let deep = guest("(call $down (i32.const 50)) (call $done)").module(
        "(func $down (param i32) (if (i32.eqz (local.get 0)) (then unreachable))
            (call $down (i32.sub (local.get 0) (i32.const 1))))",
    );
    assert_eq!(Run::of(deep).failure().backtrace.len(), keiko_core::limit::BACKTRACE_FRAMES_MAX);
}

/// Prints `text` to standard error and goes on with `then`.
pub fn prints(text: &str, then: &str) -> Guest {
    let length = text.len();
    let escaped = text.replace('\n', "\\n").replace('\'', "\\'");
    guest(&format!(
        "(local.set $i (call $get-stderr))
         (call $print (local.get $i) (i32.const 100) (i32.const {length}) (i32.const 2048)) {then}"
    ))
    .with(STDERR)
    .module(&format!("(data (i32.const 100) \"{escaped}\")"))
}

#[test]
fn a_panic_says_its_message() {
    let text =
        "thread '<unnamed>' panicked at src/lib.rs:3:5:\nno more beans\nnote: run with `RUST_BACKTRACE=1`\n";
    let report = Run::of(prints(text, "unreachable")).report();
    assert_eq!(report.log.lines().len(), 3);
    assert!(report.log.lines().iter().all(|line| line.source == Source::Stderr));
    let failure = failed(report);
    let expected = "panicked at src/lib.rs:3:5:\nno more beans (wasm trap: unreachable)";
    assert_eq!((failure.code, failure.message.as_str()), (Code::Trap, expected));
}

#[test]
fn what_was_printed_before_a_result_is_only_logged() {
    let report = Run::of(prints("careful\nwithout end", "(call $done)")).report();
    assert_eq!(completed(&report), "null");
    let lines: Vec<_> = report.log.lines().iter().map(|line| line.message.as_str()).collect();
    assert_eq!(lines, ["careful", "without end"]);
    // The stream, the write; a handle that is not dropped costs nothing.
    assert_eq!(report.meter.host_calls, 2);
    assert!(report.taint.is_none());
}

#[test]
fn an_exit_is_a_trap_with_its_status() {
    let exits = guest("(call $exit (i32.const 1)) (call $done)").with(EXIT);
    let failure = Run::of(exits).failure();
    assert_eq!((failure.code, failure.message.as_str()), (Code::Trap, "the guest exited with status 1"));
}

#[test]
fn a_guest_that_lies_to_the_host_traps() {
    let log = |pointer: &str, length: &str| {
        let call =
            format!("(call $log (i32.const 0) {pointer} {length} (i32.const 0) (i32.const 0)) (call $done)");
        Run::of(guest(&call).with(LOG).module("(data (i32.const 200) \"\\ff\")")).failure()
    };
    for failure in [
        log("(i32.const 200)", "(i32.const 1)"),
        log("(i32.const -1)", "(i32.const 1)"),
        log("(i32.const 0)", "(i32.const 65537)"),
    ] {
        assert_eq!(failure.code, Code::Trap);
        assert!(failure.message.starts_with("the guest broke the component ABI"), "{}", failure.message);
    }
    let outside = Run::of(guest("(i32.const 0x7ffffff8)")).failure();
    assert_eq!(outside.code, Code::Trap, "{}", outside.message);
    let discriminant =
        Run::of(guest("(drop (call $done)) (i32.store8 (i32.const 1024) (i32.const 7)) (i32.const 1024)"));
    assert_eq!(discriminant.failure().code, Code::Trap);
    let level = guest(
        "(call $log (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) (call $done)",
    );
    assert_eq!(Run::of(level.with(LOG)).failure().code, Code::Trap);
}

#[test]
fn a_result_stops_at_its_size_and_needs_a_media_type() {
    let of = |bytes: u64| guest(&format!("(call $answer (i32.const 4096) (i32.const {bytes}))")).pages("100");
    let report = Run::of(of(RESULT_BYTES_MAX)).report();
    assert_eq!(completed(&report).len() as u64, RESULT_BYTES_MAX);
    for bytes in [RESULT_BYTES_MAX + 1, 5 << 20] {
        let run = Run::of(of(bytes));
        assert_eq!(run.limit(), (Code::PluginFailed, "result_bytes".to_owned(), RESULT_BYTES_MAX));
        assert_eq!(run.failure().retry, RetryWish::ByCode);
    }
    let typed = |length: usize| {
        Run::of(guest(&format!(
            "(drop (call $done)) (memory.fill (i32.const 4096) (i32.const 120) (i32.const 1000))
             (i32.store (i32.const 1032) (i32.const 4096)) (i32.store (i32.const 1036) (i32.const {length}))
             (i32.const 1024)"
        )))
    };
    assert_eq!(typed(CONTENT_TYPE_BYTES_MAX).result(), "null");
    for length in [0, CONTENT_TYPE_BYTES_MAX + 1] {
        assert_eq!(typed(length).failure().code, Code::PluginFailed);
    }
}

#[test]
fn a_host_function_that_panics_is_the_hosts_fault() {
    let reports =
        guest("(call $progress (f64.const 0) (i32.const 0) (i32.const 0) (i32.const 2048)) (call $done)");
    let run = Run::of(reports.with(PROGRESS)).port(Port { panics: true, ..Port::default() });
    let failure = run.failure();
    assert_eq!(failure.code, Code::Internal);
    assert!(!failure.message.contains("a host function"), "{}", failure.message);
    // The thread, the pool and the engine go on.
    assert_eq!(Run::of(guest("(call $done)")).result(), "null");
}

#[test]
fn a_component_that_is_neither_loaded_nor_kept_is_told_as_that() {
    let run = Run::of(guest("(call $done)"));
    let attempt = run.attempt(keiko_core::Digest([9; 32]));
    let report =
        block_on(keiko_core::port::Runner::run(crate::host::shared(), attempt, run.port.clone(), run.stop));
    let failure = failed(report);
    assert_eq!(failure.code, Code::Integrity);
    assert!(failure.message.contains("is not kept"), "{failure:?}");
}

#[test]
fn effects_of_a_run_that_fails_are_forgotten() {
    let submits = |then: &str| {
        let zeros = "(i32.const 0) ".repeat(9);
        Run::of(
            guest(&format!(
                "(call $submit {zeros} (i32.const 16) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 0)
                    (i32.const 0) (i64.const 0) (i32.const 2048)) {then}"
            ))
            .with(TASKS),
        )
        .report()
    };
    assert_eq!(submits("(call $done)").effects.len(), 1);
    assert_eq!(submits("unreachable").effects.len(), 0);
    assert_eq!(submits("(call $fail (i32.const 1) (i32.const 0) (i32.const 0))").effects.len(), 0);
}
