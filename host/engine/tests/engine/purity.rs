//! What taints a run, and that untainted runs of equal input are equal.

use keiko_core::code::Code;
use keiko_core::limit::RANDOM_BYTES_MAX;
use keiko_core::manifest::Random;
use keiko_core::outcome::{AttemptReport, Taint};
use keiko_core::task::Payload;

use crate::guest::{
    AGENTS, ATTEMPT, CACHE, CONFIG, Guest, HISTORY, INSECURE, INSECURE_SEED, LOG, MONOTONIC_CLOCK, OUTPUT,
    PROGRESS, RANDOM, STDERR, TASKS, WALL_CLOCK, guest,
};
use crate::host::{NOW_MS, Run, completed};

#[test]
fn each_question_to_the_outside_taints() {
    let submit = format!("(call $submit {} (i64.const 0) (i32.const 2048))", "(i32.const 0) ".repeat(15));
    for (import, call, taint) in [
        (WALL_CLOCK, "(call $wall-now (i32.const 2048))", Taint::WALL_CLOCK),
        (MONOTONIC_CLOCK, "(drop (call $monotonic-now))", Taint::MONOTONIC_CLOCK),
        // A wait is an answer of the clock too, even when nobody reads it.
        (MONOTONIC_CLOCK, "(drop (call $subscribe (i64.const 0)))", Taint::MONOTONIC_CLOCK),
        (RANDOM, "(drop (call $random))", Taint::RANDOM),
        (RANDOM, "(call $random-bytes (i64.const 4) (i32.const 2048))", Taint::RANDOM),
        (ATTEMPT, "(call $attempt-get (i32.const 2048))", Taint::ATTEMPT),
        (ATTEMPT, "(call $remaining-ms (i32.const 2048))", Taint::ATTEMPT),
        (CONFIG, "(call $config-get (i32.const 0) (i32.const 1) (i32.const 2048))", Taint::CONFIG),
        (TASKS, submit.as_str(), Taint::TASKS),
        (AGENTS, "(call $load (i32.const 0) (i32.const 0) (i32.const 2048))", Taint::AGENTS),
        (CACHE, "(call $get (i32.const 16) (i32.const 4) (i32.const 2048))", Taint::CACHE),
        (CACHE, "(call $get-or-fill (i32.const 16) (i32.const 4) (i32.const 2048))", Taint::CACHE),
        (HISTORY, "(call $summarize (i64.const 0) (i64.const 1) (i32.const 2048))", Taint::HISTORY),
    ] {
        let report = Run::of(guest(&format!("{call} (call $done)")).with(import)).report();
        assert_eq!(report.taint, taint, "{call}");
        let silent = Run::of(guest("(call $done)").with(import)).report();
        assert!(silent.taint.is_none(), "only importing what {call} needs");
    }
}

#[test]
fn secure_numbers_that_are_seeded_follow_from_the_input_and_leave_the_run_pure() {
    let code = "(call $random-bytes (i64.const 32) (i32.const 2048))
        (i64.store (i32.load (i32.const 2048)) (call $random))
        (call $answer (i32.load (i32.const 2048)) (i32.const 32))";
    let run = |input: &'static str, random| {
        let mut run = Run::of(guest(code).with(RANDOM)).input(input);
        run.random = random;
        run.report()
    };
    let [first, again, other] = ["1", "1", "2"].map(|input| run(input, Random::Seeded));
    assert!(first.taint.is_none() && first.taint.is_seeded(), "{first:?}");
    assert_eq!((bytes(&first), first.meter.fuel_used), (bytes(&again), again.meter.fuel_used));
    assert_ne!(bytes(&first), bytes(&other));
    assert_ne!(bytes(&first)[..8], bytes(&first)[8..16], "one draw goes on where the last ended");
    let secure = ["1", "1"].map(|input| run(input, Random::Secure));
    assert!(secure.iter().all(|report| report.taint == Taint::RANDOM), "{secure:?}");
    let drawn = [bytes(&secure[0]), bytes(&secure[1]), bytes(&first)];
    assert!(drawn[0] != drawn[1] && drawn[0] != drawn[2] && drawn[1] != drawn[2]);
}

/// As of secure ones: a seed does not take a limit away.
#[test]
fn seeded_numbers_are_bounded_as_secure_ones_are() {
    let asking = |len: u64| {
        let code = format!("(call $random-bytes (i64.const {len}) (i32.const 2048)) (call $done)");
        let mut run = Run::of(guest(&code).with(RANDOM));
        run.random = Random::Seeded;
        run
    };
    assert!(asking(RANDOM_BYTES_MAX).report().taint.is_seeded());
    let (code, name, limit) = asking(RANDOM_BYTES_MAX + 1).limit();
    assert_eq!((code, name.as_str(), limit), (Code::HostcallTooLarge, "random_bytes", RANDOM_BYTES_MAX));
}

/// Logs, prints, reports, gives out, draws insecure bytes and its seed, and answers the bytes it drew.
fn talks() -> Guest {
    guest(
        "(call $log (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 0) (i32.const 0))
         (call $progress (f64.const 1) (i32.const 0) (i32.const 0) (i32.const 2048))
         (call $emit (i32.const 16) (i32.const 4) (i32.const 2048))
         (call $print (call $get-stderr) (i32.const 16) (i32.const 4) (i32.const 2048))
         (call $seed (i32.const 2064))
         (call $insecure-bytes (i64.const 100) (i32.const 2048))
         (memory.copy (i32.load (i32.const 2048)) (i32.const 2064) (i32.const 16))
         (call $answer (i32.load (i32.const 2048)) (i32.const 100))",
    )
    .with(LOG)
    .with(PROGRESS)
    .with(OUTPUT)
    .with(STDERR)
    .with(INSECURE_SEED)
    .with(INSECURE)
}

fn bytes(report: &AttemptReport) -> Vec<u8> {
    match &report.outcome {
        keiko_core::outcome::Outcome::Completed(Payload { bytes, .. }) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pure_runs_of_equal_input_are_equal() {
    let first = Run::of(talks()).report();
    assert!(first.taint.is_none() && first.effects.is_empty());
    for _ in 0..20 {
        let again = Run::of(talks()).report();
        assert_eq!(bytes(&again), bytes(&first));
        assert_eq!(again.meter.fuel_used, first.meter.fuel_used);
        assert_eq!(again.meter.host_calls, first.meter.host_calls);
        assert_eq!(again.meter.memory_bytes_peak, first.meter.memory_bytes_peak);
        assert_eq!(again.log, first.log);
    }
}

#[test]
fn insecure_bytes_depend_on_component_and_input() {
    let first = bytes(&Run::of(talks()).report());
    assert_ne!(bytes(&Run::of(talks()).input("other").report()), first);
    assert_ne!(bytes(&Run::of(talks().module("(func nop)")).report()), first);
}

#[test]
fn secure_bytes_differ() {
    let draws = || {
        let code = "(call $random-bytes (i64.const 32) (i32.const 2048))
            (call $answer (i32.load (i32.const 2048)) (i32.const 32))";
        bytes(&Run::of(guest(code).with(RANDOM)).report())
    };
    assert_ne!(draws(), draws());
}

#[test]
fn the_wall_clock_is_the_runtimes() {
    let code = format!(
        "(call $wall-now (i32.const 2048))
         (call $digit (i32.and (i64.eq (i64.load (i32.const 2048)) (i64.const {}))
            (i32.eq (i32.load (i32.const 2056)) (i32.const {}))))",
        NOW_MS / 1000,
        NOW_MS % 1000 * 1_000_000
    );
    assert_eq!(completed(&Run::of(guest(&code).with(WALL_CLOCK)).report()), "1");
}
