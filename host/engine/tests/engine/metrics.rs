//! What guests measure: it comes to the runtime as it was said, each refusal has its case, and only a refusal is an answer of
//! the outside.

use keiko_core::metric::MetricRefused;
use keiko_core::outcome::Taint;
use keiko_core::policy::Grants;

use crate::calls::error_of;
use crate::guest::{Guest, METRICS, guest};
use crate::host::{Port, Run, completed};

/// Constants of a guest: the name `n` at 512; from 520 on a list of one label, `n` with the value `v`.
const TEXTS: &str = r#"
    (data (i32.const 512) "nv")
    (data (i32.const 520) "\00\02\00\00\01\00\00\00\01\02\00\00\01\00\00\00")
"#;
const ADD: &str = "(call $count (i32.const 512) (i32.const 1) (i32.const 520) (i32.const 1) (i64.const 5)
    (i32.const 2048))";
const OBSERVE: &str =
    "(call $observe (i32.const 512) (i32.const 1) (i32.const 0) (i32.const 0) (f64.const 0.5)
    (i32.const 2048))";

fn asks(call: &str) -> Guest {
    error_of(call, 4).module(TEXTS).with(METRICS)
}

#[test]
fn what_is_measured_comes_to_the_runtime_and_leaves_a_run_pure() {
    let run = Run::of(guest(&format!("{ADD} {OBSERVE} (call $done)")).module(TEXTS).with(METRICS));
    let report = run.report();
    assert_eq!(completed(&report), "null");
    assert_eq!(*run.port.asked.lock().unwrap(), [r#"n [("n", "v")] More(5)"#, "n [] Value(0.5)"]);
    assert_eq!((report.taint, report.meter.host_calls), (Taint::NONE, 2));
}

#[test]
fn each_refusal_has_its_own_case_and_is_an_answer_of_the_outside() {
    for (refused, case) in [
        (MetricRefused::NotFound("counter"), '0'),
        (MetricRefused::Labels("none".to_owned()), '1'),
        (MetricRefused::Value, '2'),
        (MetricRefused::Unavailable, '4'),
    ] {
        for call in [ADD, OBSERVE] {
            let port = Port { unmeasured: Some(refused.clone()), ..Port::default() };
            let report = Run::of(asks(call)).port(port).report();
            assert_eq!(completed(&report), format!("1{case}"), "{call} {refused}");
            assert_eq!(report.taint, Taint::METRICS, "{call} {refused}");
        }
    }
}

#[test]
fn a_denied_call_reaches_nobody_and_still_counts() {
    for call in [ADD, OBSERVE] {
        let run = Run::of(asks(call)).grants(Grants::new([]));
        let report = run.report();
        assert_eq!(completed(&report), "13", "{call}");
        assert_eq!(report.meter.host_calls, 1, "{call}");
        assert!(run.port.asked.lock().unwrap().is_empty(), "{call}");
    }
}
