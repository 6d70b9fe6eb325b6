//! Every limit of an attempt at the limit and one above, with the code and the name it has.

use keiko_core::Code;
use keiko_core::limit::{
    HANDLES_MAX, HOSTCALL_BYTES_MAX, HOSTCALL_FUEL_BASE, LOG_BYTES_PER_SECOND, RANDOM_BYTES_MAX,
    RESOURCES_MAX, SetBy, TABLE_ELEMENTS_MAX, WASM_STACK_BYTES,
};
use keiko_core::outcome::Outcome;

use crate::guest::{Guest, INSECURE, LOG, MONOTONIC_CLOCK, RANDOM, STDERR, guest};
use crate::host::Run;

const PAGE: u64 = 65_536;

/// Does `code` `times` over, counting in `$i`.
pub fn repeat(times: u64, code: &str) -> String {
    format!(
        "(loop $again {code}
            (br_if $again (i32.ne (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {times}))))"
    )
}

fn limit(code: Code, name: &str, limit: u64) -> (Code, String, u64) {
    (code, name.to_owned(), limit)
}

#[test]
fn fuel_has_an_exact_edge() {
    let spins = guest(&format!("{} (call $done)", repeat(100, "nop")));
    let used = Run::of(spins.clone()).report().meter.fuel_used;
    assert!(used > 500 && used < 2_000, "{used}");
    for _ in 0..100 {
        let report = Run::of(spins.clone()).fuel(used).report();
        assert!(matches!(report.outcome, Outcome::Completed(_)));
        assert_eq!(report.meter.fuel_used, used);
    }
    // Where the guest ends without another look at its fuel, and where the look itself ends it.
    for fuel in [used - 1, used - 30, used / 2, 1] {
        assert_eq!(Run::of(spins.clone()).fuel(fuel).limit(), limit(Code::FuelExhausted, "fuel", fuel));
    }
}

#[test]
fn fuel_of_host_calls_counts_to_the_unit() {
    let logs = guest(
        "(call $log (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 0) (i32.const 0)) (call $done)",
    )
    .with(LOG);
    let report = Run::of(logs.clone()).report();
    let used = report.meter.fuel_used;
    assert!(used > HOSTCALL_FUEL_BASE + 16 && used < HOSTCALL_FUEL_BASE + 16 + 1_000, "{used}");
    assert!(matches!(Run::of(logs.clone()).fuel(used).report().outcome, Outcome::Completed(_)));
    assert_eq!(Run::of(logs).fuel(used - 1).limit(), limit(Code::FuelExhausted, "fuel", used - 1));
}

#[test]
fn a_limit_of_the_budget_names_who_set_it() {
    let failure = Run::of(guest("(loop $for-ever br $for-ever) unreachable")).fuel(1_000).failure();
    assert_eq!(failure.limit.map(|limit| limit.set_by), Some(SetBy::Tenant));
    assert!(failure.message.contains("the tenant's policy"), "{}", failure.message);
}

/// A guest with three memories besides its own, of a page each.
fn four_memories() -> Guest {
    guest("(call $done)").component(
        "(core module $Memory (memory 1))
         (core instance (instantiate $Memory)) (core instance (instantiate $Memory))
         (core instance (instantiate $Memory))",
    )
}

#[test]
fn memories_are_summed() {
    let report = Run::of(four_memories()).memory(4 * PAGE).report();
    assert_eq!(report.meter.memory_bytes_peak, 4 * PAGE);
    assert!(matches!(report.outcome, Outcome::Completed(_)));
    let over = Run::of(four_memories()).memory(4 * PAGE - 1);
    assert_eq!(over.limit(), limit(Code::MemoryExceeded, "memory_bytes", 4 * PAGE - 1));
}

#[test]
fn a_growth_beyond_the_budget_ends_the_attempt() {
    let grows = |pages: u64| {
        let code = format!(
            "(if (i32.eq (memory.grow (i32.const {})) (i32.const -1)) (then unreachable)) (call $done)",
            pages - 1
        );
        Run::of(guest(&code)).memory(16 * PAGE)
    };
    let report = grows(16).report();
    assert!(matches!(report.outcome, Outcome::Completed(_)));
    assert_eq!(report.meter.memory_bytes_peak, 16 * PAGE);
    let run = grows(17);
    assert_eq!(run.limit(), limit(Code::MemoryExceeded, "memory_bytes", 16 * PAGE));
    let failure = run.failure();
    assert_eq!(failure.limit.and_then(|limit| limit.asked), Some(17 * PAGE));
    assert_eq!(failure.backtrace[0].function, "run");
}

#[test]
fn a_growth_to_four_gigabytes_ends_the_attempt() {
    let grows = guest("(drop (memory.grow (i32.const 65535))) (call $done)");
    assert_eq!(Run::of(grows).failure().code, Code::MemoryExceeded);
}

#[test]
fn a_memory_that_refuses_by_its_own_maximum_is_the_guests_business() {
    let grows = guest("(call $digit (i32.eq (memory.grow (i32.const 2)) (i32.const -1)))").pages("1 2");
    assert_eq!(Run::of(grows).result(), "1");
}

#[test]
fn a_minimum_beyond_the_budget_does_not_start() {
    let large = || Run::of(guest("(call $done)").pages("3"));
    assert!(matches!(large().memory(3 * PAGE).report().outcome, Outcome::Completed(_)));
    let over = large().memory(3 * PAGE - 1);
    assert_eq!(over.limit(), limit(Code::MemoryExceeded, "memory_bytes", 3 * PAGE - 1));
}

#[test]
fn tables_are_summed() {
    let grows = |elements: usize| {
        let code = format!(
            "(if (i32.eq (table.grow (ref.null func) (i32.const {})) (i32.const -1)) (then unreachable))
             (call $done)",
            elements - 100
        );
        Run::of(
            guest(&code)
                .module("(table 50 funcref)")
                .component("(core module $Table (table 50 funcref)) (core instance (instantiate $Table))"),
        )
    };
    assert_eq!(grows(TABLE_ELEMENTS_MAX).result(), "null");
    let expected = limit(Code::MemoryExceeded, "table_elements", TABLE_ELEMENTS_MAX as u64);
    assert_eq!(grows(TABLE_ELEMENTS_MAX + 1).limit(), expected);
}

#[test]
fn deep_recursion_ends_at_the_stack() {
    let dives = guest("(call $down) (call $done)").module("(func $down (call $down) (call $down))");
    let run = Run::of(dives);
    assert_eq!(run.limit(), limit(Code::StackExhausted, "wasm_stack_bytes", WASM_STACK_BYTES as u64));
    assert_eq!(run.failure().backtrace[0].function, "down");
}

#[test]
fn recursion_that_calls_the_host_at_depth_ends_at_the_stack() {
    let dives = guest("(call $down) (call $done)").with(LOG).with(RANDOM).module(
        "(func $down (call $log (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 0))
            (call $random-bytes (i64.const 8) (i32.const 2048))
            (call $down) (drop (call $random)))",
    );
    assert_eq!(Run::of(dives).failure().code, Code::StackExhausted);
}

#[test]
fn one_host_call_carries_so_many_bytes() {
    let logs = |bytes: usize| {
        Run::of(
            guest(&format!(
                "(call $log (i32.const 0) (i32.const 0) (i32.const {bytes}) (i32.const 0) (i32.const 0)) (call $done)"
            ))
            .with(LOG)
            .pages("70"),
        )
    };
    let report = logs(HOSTCALL_BYTES_MAX).report();
    assert!(matches!(report.outcome, Outcome::Completed(_)), "{:?}", report.outcome);
    assert_eq!(report.log.lines()[0].message.len(), keiko_core::limit::LOG_MESSAGE_BYTES_MAX);
    let expected = limit(Code::HostcallTooLarge, "hostcall_bytes", HOSTCALL_BYTES_MAX as u64);
    assert_eq!(logs(HOSTCALL_BYTES_MAX + 1).limit(), expected);
}

#[test]
fn a_list_that_would_be_huge_is_refused_before_it_is_allocated() {
    // 100 million fields of 16 bytes each: the list alone is beyond the guest's memory and the limit.
    let lies = guest(
        "(call $log (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 100000000)) (call $done)",
    );
    let code = Run::of(lies.with(LOG)).failure().code;
    assert!(matches!(code, Code::HostcallTooLarge | Code::Trap), "{code}");
}

#[test]
fn host_calls_stop_at_their_number() {
    let calls = |calls: u64| {
        let log = "(call $log (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))";
        Run::of(guest(&format!("{} (call $done)", repeat(calls, log))).with(LOG)).host_calls(50)
    };
    let report = calls(50).report();
    assert!(matches!(report.outcome, Outcome::Completed(_)));
    assert_eq!(report.meter.host_calls, 50);
    assert_eq!(calls(51).limit(), limit(Code::HostcallBudget, "host_calls", 50));
}

#[test]
fn calls_of_wasi_count_too() {
    let calls = |calls: u64| {
        let insecure = "(call $insecure-bytes (i64.const 0) (i32.const 2048))";
        let stderr = "(drop (call $get-stderr))";
        let code = format!("{} {stderr} (call $done)", repeat(calls - 1, insecure));
        Run::of(guest(&code).with(INSECURE).with(STDERR)).host_calls(20)
    };
    assert_eq!(calls(20).report().meter.host_calls, 20);
    assert_eq!(calls(21).limit(), limit(Code::HostcallBudget, "host_calls", 20));
    // The last call is one that the gate cannot refuse: the run is judged when it ends.
    assert!(matches!(calls(20).report().outcome, Outcome::Completed(_)));
}

#[test]
fn a_flood_of_cheap_calls_ends_by_fuel() {
    let log = "(call $log (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))";
    let floods = guest(&format!("(loop $for-ever {log} br $for-ever) unreachable")).with(LOG);
    let run = Run::of(floods).fuel(1_000_000);
    let report = run.report();
    assert!(report.meter.host_calls <= 1_000_000 / HOSTCALL_FUEL_BASE + 1, "{:?}", report.meter);
    assert_eq!(run.failure().code, Code::FuelExhausted);
}

#[test]
fn host_resources_stop_at_their_number() {
    // A pollable of a clock is two entries: itself and what it waits for.
    let subscribes = |times: usize| {
        let code = repeat(times as u64, "(drop (call $subscribe (i64.const 0)))");
        Run::of(guest(&format!("{code} (call $done)")).with(MONOTONIC_CLOCK))
    };
    assert_eq!(subscribes(RESOURCES_MAX / 2).result(), "null");
    let expected = limit(Code::HandlesExceeded, "host_resources", RESOURCES_MAX as u64);
    assert_eq!(subscribes(RESOURCES_MAX / 2 + 1).limit(), expected);
}

#[test]
fn handles_of_the_host_stop_at_their_number() {
    let opens = |times: usize| {
        let code = repeat(times as u64, "(drop (call $get-stderr))");
        Run::of(guest(&format!("{code} (call $done)")).with(STDERR))
    };
    assert_eq!(opens(HANDLES_MAX).result(), "null");
    let expected = limit(Code::HandlesExceeded, "component_handles", HANDLES_MAX as u64);
    assert_eq!(opens(HANDLES_MAX + 1).limit(), expected);
}

#[test]
fn handles_of_the_guests_own_stop_at_their_number() {
    let makes = |times: usize| {
        let code = repeat(times as u64, "(drop (call $new (i32.const 1)))");
        Run::of(
            guest(&format!("{code} (call $done)"))
                .component(
                    "(type $own (resource (rep i32))) (core func $new (canon resource.new $own))
                     (core instance $resource (export \"new\" (func $new)))",
                )
                .argument("(with \"resource\" (instance $resource))")
                .import("(import \"resource\" \"new\" (func $new (param i32) (result i32)))"),
        )
    };
    assert_eq!(makes(HANDLES_MAX).result(), "null");
    let expected = limit(Code::HandlesExceeded, "component_handles", HANDLES_MAX as u64);
    assert_eq!(makes(HANDLES_MAX + 1).limit(), expected);
}

#[test]
fn random_bytes_stop_at_their_number() {
    for (import, call) in [(RANDOM, "$random-bytes"), (INSECURE, "$insecure-bytes")] {
        let asks = |bytes: u64| {
            let code = format!("(call {call} (i64.const {bytes}) (i32.const 2048)) (call $done)");
            Run::of(guest(&code).with(import))
        };
        assert_eq!(asks(RANDOM_BYTES_MAX).result(), "null");
        let expected = limit(Code::HostcallTooLarge, "random_bytes", RANDOM_BYTES_MAX);
        assert_eq!(asks(RANDOM_BYTES_MAX + 1).limit(), expected);
        assert_eq!(asks(1 << 62).limit(), expected);
    }
}

#[test]
fn a_flood_of_lines_is_cut_and_counted() {
    let log = "(call $log (i32.const 2) (i32.const 4096) (i32.const 1024) (i32.const 0) (i32.const 0))";
    let report = Run::of(guest(&format!("{} (call $done)", repeat(1_000, log))).with(LOG)).report();
    assert!(matches!(report.outcome, Outcome::Completed(_)));
    let kept = report.log.lines().len();
    assert!(kept > 0 && kept <= LOG_BYTES_PER_SECOND / 1024, "{kept}");
    assert_eq!(report.log.dropped(), 1_000 - kept as u64);
}

#[test]
fn a_flood_of_output_is_cut_counted_and_charged() {
    let print = "(call $print (local.get $j) (i32.const 8192) (i32.const 4096) (i32.const 2048))";
    let code = format!(
        "(memory.fill (i32.const 8192) (i32.const 10) (i32.const 4096)) (local.set $j (call $get-stderr)) {}
         (call $done)",
        repeat(100, print)
    );
    let report = Run::of(guest(&code).with(STDERR)).report();
    assert!(matches!(report.outcome, Outcome::Completed(_)));
    assert!(report.log.dropped() > 400_000, "{}", report.log.dropped());
    assert!(report.meter.fuel_used > 100 * 4096, "{:?}", report.meter);
}

#[test]
fn zeroes_beyond_what_a_stream_takes_are_refused() {
    let zeroes = guest(
        "(call $zeroes (call $get-stderr) (i64.const 0x7fffffffffffffff) (i32.const 2048)) (call $done)",
    );
    assert_eq!(Run::of(zeroes.with(STDERR)).failure().code, Code::Trap);
}
