//! Wall clock, stops, and fairness between guests of one thread.

use std::time::{Duration, Instant};

use keiko_core::Code;
use keiko_core::limit::SetBy;
use keiko_core::outcome::Outcome;
use keiko_core::policy::{BUDGET_CEILING, Grants, Limit};
use keiko_core::stop::StopReason;

use crate::guest::{ATTEMPT, CACHE, Guest, MONOTONIC_CLOCK, TASKS, guest};
use crate::host::{Port, Run, block_on, completed, failed, install};

/// What an attempt may take beyond its deadline here: a tick, and a busy machine.
const OVERRUN: Duration = Duration::from_secs(5);

fn spins() -> Guest {
    guest("(loop $for-ever br $for-ever) unreachable")
}

/// Asks for a child, which the runtime of some tests never gives.
fn submits() -> Guest {
    let zeros = "(i32.const 0) ".repeat(15);
    guest(&format!("(call $submit {zeros} (i64.const 0) (i32.const 2048)) (call $done)")).with(TASKS)
}

#[track_caller]
fn ends_at_its_deadline(run: Run) {
    block_on(install(&run.guest)).unwrap();
    let began = Instant::now();
    let report = run.report();
    assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());
    assert!(began.elapsed() < OVERRUN, "{:?}", began.elapsed());
    assert!(report.meter.elapsed_us >= 50_000);
    let failure = failed(report);
    assert_eq!(failure.code, Code::DeadlineExceeded);
    let limit = failure.limit.unwrap();
    assert_eq!((limit.name.as_str(), limit.limit), ("wall_ms", 50));
}

#[test]
fn an_endless_loop_ends_at_its_deadline() {
    ends_at_its_deadline(Run::of(spins()).fuel(BUDGET_CEILING.fuel).wall_ms(50));
}

#[test]
fn an_endless_loop_in_a_start_function_ends_at_its_deadline() {
    // Installing instantiates too, without grants: the loop waits for an attempt that may ask.
    let starts = guest("(call $done)").with(ATTEMPT).module(
        "(func $begin (call $remaining-ms (i32.const 2048))
            (if (i32.eqz (i32.load8_u (i32.const 2048))) (then (loop $for-ever br $for-ever))))
         (start $begin)",
    );
    ends_at_its_deadline(Run::of(starts.clone()).fuel(BUDGET_CEILING.fuel).wall_ms(50));
    assert_eq!(Run::of(starts.clone()).grants(Grants::new([])).result(), "null");
    assert_eq!(Run::of(starts).fuel(10_000).failure().code, Code::FuelExhausted);
}

#[test]
fn a_wait_for_a_clock_ends_at_its_deadline() {
    let waits = guest("(call $block (call $subscribe (i64.const 0x7fffffffffffffff))) (call $done)");
    ends_at_its_deadline(Run::of(waits.with(MONOTONIC_CLOCK)).wall_ms(50));
}

#[test]
fn a_host_call_that_never_answers_ends_at_its_deadline() {
    let never = || Port { never_answers: true, ..Port::default() };
    ends_at_its_deadline(Run::of(submits()).port(never()).wall_ms(50));
}

#[test]
fn a_wait_for_a_value_that_another_computes_ends_at_its_deadline() {
    let waits = guest("(call $get-or-fill (i32.const 16) (i32.const 4) (i32.const 2048)) (call $done)");
    let never = Port { never_answers: true, ..Port::default() };
    ends_at_its_deadline(Run::of(waits.with(CACHE)).port(never).wall_ms(50));
}

fn heartbeat(mut run: Run, ms: u64) -> Run {
    run.budget.heartbeat_ms = Some(Limit { value: ms, set_by: SetBy::Task });
    run
}

#[test]
fn a_host_call_of_which_nothing_moves_ends_at_its_heartbeat() {
    let waits = guest("(call $block (call $subscribe (i64.const 0x7fffffffffffffff))) (call $done)");
    let never = Port { never_answers: true, ..Port::default() };
    for run in [Run::of(waits.with(MONOTONIC_CLOCK)), Run::of(submits()).port(never)] {
        let failure = heartbeat(run, 50).failure();
        assert_eq!(failure.code, Code::DeadlineExceeded);
        let limit = failure.limit.unwrap();
        assert_eq!((limit.name.as_str(), limit.limit, limit.set_by), ("heartbeat_ms", 50, SetBy::Task));
    }
}

#[test]
fn what_moves_outlives_its_heartbeat() {
    let wait = "(call $block (call $subscribe (i64.const 20000000)))";
    let waits = guest(&format!("{} (call $done)", wait.repeat(8)));
    assert_eq!(heartbeat(Run::of(waits.with(MONOTONIC_CLOCK)), 100).result(), "null");
    // A guest that computes is no host call that hangs.
    let failure = heartbeat(Run::of(spins()).fuel(BUDGET_CEILING.fuel).wall_ms(200), 50).failure();
    assert_eq!(failure.limit.unwrap().name, "wall_ms");
}

#[test]
fn a_wait_that_ends_in_time_goes_on() {
    let waits = guest("(call $block (call $subscribe (i64.const 1000000))) (call $done)");
    assert_eq!(Run::of(waits.with(MONOTONIC_CLOCK)).result(), "null");
}

#[test]
fn a_guest_that_loops_is_stopped() {
    for reason in [StopReason::Cancelled, StopReason::Drained, StopReason::LeaseLost] {
        let run = Run::of(spins()).fuel(BUDGET_CEILING.fuel);
        let stop = run.stop.clone();
        let report = block_on(async {
            install(&run.guest).await.unwrap();
            // The loop yields at its first tick, which is when the other side is polled.
            tokio::join!(run.report_async(), async { stop.set(reason) }).0
        });
        assert_eq!(report.outcome, Outcome::Stopped(reason));
    }
}

#[test]
fn a_guest_that_waits_is_stopped_at_once() {
    let run = Run::of(submits()).port(Port { never_answers: true, ..Port::default() });
    let (stop, port) = (run.stop.clone(), run.port.clone());
    let report = block_on(async {
        install(&run.guest).await.unwrap();
        let stopper = async {
            port.reserving.notified().await;
            stop.set(StopReason::Cancelled);
        };
        tokio::join!(run.report_async(), stopper).0
    });
    assert_eq!(report.outcome, Outcome::Stopped(StopReason::Cancelled));
    assert!(report.effects.is_empty());
}

#[test]
fn a_guest_that_was_stopped_before_it_began_ends_when_it_waits() {
    let run = Run::of(submits()).port(Port { never_answers: true, ..Port::default() });
    run.stop.set(StopReason::Drained);
    assert_eq!(run.report().outcome, Outcome::Stopped(StopReason::Drained));
}

#[test]
fn a_guest_that_loops_lets_its_neighbour_run() {
    let (spinner, neighbour) = (Run::of(spins()).fuel(BUDGET_CEILING.fuel), Run::of(guest("(call $done)")));
    block_on(async {
        install(&spinner.guest).await.unwrap();
        install(&neighbour.guest).await.unwrap();
        tokio::select! {
            biased;
            report = spinner.report_async() => panic!("the loop ended first: {:?}", report.outcome),
            report = neighbour.report_async() => assert_eq!(completed(&report), "null"),
        }
        // The loop was dropped in flight; its place in the pool is free again.
        for _ in 0..50 {
            assert_eq!(completed(&neighbour.report_async().await), "null");
        }
    });
}

#[test]
fn attempts_dropped_in_flight_give_their_places_back() {
    let run = Run::of(submits()).port(Port { never_answers: true, ..Port::default() });
    block_on(async {
        install(&run.guest).await.unwrap();
        // Several times the pool.
        for _ in 0..100 {
            tokio::select! {
                biased;
                report = run.report_async() => panic!("{:?}", report.outcome),
                () = run.port.reserving.notified() => {}
            }
        }
    });
    assert_eq!(Run::of(guest("(call $done)")).result(), "null");
}
