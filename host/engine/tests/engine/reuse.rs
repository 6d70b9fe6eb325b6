//! Instances that are kept for the next attempt: whose they are, how long, and what they leave behind.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keiko_core::limit::{
    COMPONENT_BYTES_MAX, KEPT_BYTES_MAX, KEPT_PER_HOST_MAX, KEPT_RESOURCES_MAX, RESOURCES_MAX,
};
use keiko_core::manifest::Reuse;
use keiko_core::outcome::{AttemptReport, Outcome};
use keiko_core::port::{Keep, Runner};
use keiko_core::profile::Profiles;
use keiko_core::stop::StopReason;
use keiko_core::{Code, Digest, TenantName, VersionId};
use keiko_engine::Engine;

use crate::guest::{CACHE, Guest, LOG, MONOTONIC_CLOCK, guest};
use crate::host::{Kept, Run, block_on, completed, engine, failed, key};

const PAGE: u64 = 65_536;

/// Says how often its instance was called, from 1; its input may be one letter: `t` traps, `l` never ends, `f` fails by its
/// own word, `r` makes the next reset trap, `g` grows the memory by a page.
const COUNTING: &str = r#"
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (if (local.get $length) (then
        (local.set $i (i32.load8_u (local.get $input)))
        (if (i32.eq (local.get $i) (i32.const 116)) (then unreachable))
        (if (i32.eq (local.get $i) (i32.const 108)) (then (loop $again (br $again))))
        (if (i32.eq (local.get $i) (i32.const 114)) (then (global.set $bad (i32.const 1))))
        (if (i32.eq (local.get $i) (i32.const 103)) (then (drop (memory.grow (i32.const 1)))))
        (if (i32.eq (local.get $i) (i32.const 102))
            (then (return (call $fail (i32.const 1) (i32.const 16) (i32.const 4)))))))
    (call $digit (global.get $count))"#;
const GLOBALS: &str = "(global $count (mut i32) (i32.const 0)) (global $bad (mut i32) (i32.const 0))";
/// Starts counting anew.
const RESET: &str = r#"(func (export "reset")
    (if (global.get $bad) (then unreachable)) (global.set $count (i32.const 0)))"#;

/// An engine of the test's own, and a component in it.
struct Bench {
    engine: Engine,
    digest: Digest,
    reuse: Reuse,
    _dir: tempfile::TempDir,
}

fn counting() -> Guest {
    guest(COUNTING).module(GLOBALS)
}

/// A guest with `reset`, of a core function of that name.
fn resetting(guest: &Guest, function: &str, lifted: &str) -> String {
    let text = guest.clone().module(function).text();
    let task = r#"(export "keiko:plugin/task@0.1.0" (instance $task))"#;
    assert!(text.contains(task));
    text.replace(task, &format!("{lifted} {task}"))
}

const LIFTED: &str = r#"(func $reset (canon lift (core func $main "reset"))) (export "reset" (func $reset))"#;

impl Bench {
    fn new(text: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let engine = new_engine(dir.path());
        let bytes = wat::parse_str(text).unwrap();
        let digest =
            block_on(engine.compile(bytes.into(), COMPONENT_BYTES_MAX, Profiles::STRICT)).unwrap().digest;
        Bench { engine, digest, reuse: Reuse::default(), _dir: dir }
    }

    fn counting() -> Bench {
        Bench::new(&counting().text())
    }

    fn run(&self, tenant: &str, input: &str) -> AttemptReport {
        self.run_with(input_of(input), tenant, 1)
    }

    fn run_with(&self, run: Run, tenant: &str, version: i64) -> AttemptReport {
        let mut attempt = run.attempt(self.digest);
        attempt.facts.tenant = tenant.parse::<TenantName>().unwrap();
        attempt.keep = Some(Keep { version: VersionId(version), reuse: self.reuse });
        block_on(self.engine.run(attempt, run.port.clone(), run.stop))
    }

    /// How often the instance was called that this ran on.
    #[track_caller]
    fn count(&self) -> String {
        completed(&self.run("acme", ""))
    }

    fn kept(&self) -> usize {
        self.engine.counts().kept
    }
}

fn input_of(input: &str) -> Run {
    Run::of(guest("")).input(input.to_owned())
}

fn new_engine(dir: &Path) -> Engine {
    engine(dir, key('7'), Arc::<Kept>::default(), &[])
}

#[test]
fn an_instance_is_fresh_unless_the_manifest_asks() {
    let bench = Bench::counting();
    let run = Run::of(guest(""));
    for _ in 0..2 {
        let attempt = run.attempt(bench.digest);
        let report = block_on(bench.engine.run(attempt, run.port.clone(), run.stop.clone()));
        assert_eq!((completed(&report).as_str(), report.taint.is_none()), ("1", true));
    }
    assert_eq!(bench.kept(), 0);
}

#[test]
fn a_kept_instance_is_its_tenants_and_versions_and_taints_the_run() {
    let bench = Bench::counting();
    let first = bench.run("acme", "");
    assert_eq!(
        (completed(&first).as_str(), first.taint.is_none()),
        ("1", true),
        "nothing was there before it"
    );
    let second = bench.run("acme", "");
    assert_eq!((completed(&second).as_str(), second.taint.names()), ("2", vec!["reused"]));
    assert!(second.meter.fuel_used > 0 && second.meter.memory_bytes_peak > 0);
    assert_eq!(completed(&bench.run_with(input_of(""), "acme", 2)), "1", "another version has its own");
    assert_eq!((bench.count().as_str(), bench.kept()), ("3", 2));
    // No two tenants have one version; if they had, neither would see what the other left.
    assert_eq!(completed(&bench.run("other", "")), "1");
    let counts = bench.engine.counts();
    assert_eq!((counts.reused, counts.fresh), (2, 3));
}

#[test]
fn what_went_wrong_is_not_used_again() {
    let bench = Bench::counting();
    assert_eq!(bench.count(), "1");
    assert_eq!(failed(bench.run("acme", "t")).code, Code::Trap);
    assert_eq!((bench.kept(), bench.count().as_str()), (0, "1"));
    let timed = input_of("l").fuel(u64::MAX / 2).wall_ms(50);
    assert_eq!(failed(bench.run_with(timed, "acme", 1)).code, Code::DeadlineExceeded);
    assert_eq!((bench.kept(), bench.count().as_str()), (0, "1"));
    let stopped = input_of("l").fuel(u64::MAX / 2);
    stopped.stop.set(StopReason::Cancelled);
    assert!(matches!(bench.run_with(stopped, "acme", 1).outcome, Outcome::Stopped(_)));
    assert_eq!((bench.kept(), bench.count().as_str()), (0, "1"));
    // A failure by the plugin's own word is an ordinary answer.
    assert_eq!(failed(bench.run("acme", "f")).code, Code::PluginFailed);
    assert_eq!(bench.count(), "3");
}

#[test]
fn a_kept_instance_has_the_fuel_and_the_log_of_its_attempt_and_no_more() {
    let says = "(call $log (i32.const 2) (i32.const 16) (i32.const 4) (i32.const 0) (i32.const 0))";
    let bench = Bench::new(&guest(&format!("{says} (call $done)")).with(LOG).text());
    let run = |fuel: u64| bench.run_with(input_of("").fuel(fuel), "acme", 1);
    let used: Vec<u64> = (0..3)
        .map(|_| {
            let report = run(1_000_000);
            assert_eq!((report.log.lines().len(), report.meter.host_calls), (1, 1));
            report.meter.fuel_used
        })
        .collect();
    assert_eq!(used[1], used[2], "what others spent is not charged again");
    assert_eq!(run(used[1]).meter.fuel_used, used[1]);
    assert_eq!(bench.engine.counts().reused, 3);
    assert_eq!(failed(run(used[1] - 1)).code, Code::FuelExhausted);
    assert_eq!(bench.kept(), 0);
}

#[test]
fn instances_go_after_so_many_calls_and_when_they_were_idle() {
    let mut bench = Bench::counting();
    bench.reuse.calls = 2;
    let counts: Vec<String> = (0..5).map(|_| bench.count()).collect();
    assert_eq!(counts, ["1", "2", "1", "2", "1"]);
    bench.reuse = Reuse { idle_s: 0, ..bench.reuse };
    assert_eq!(bench.count(), "1", "what was kept is too old at once");
    bench.reuse = Reuse { idle_s: 1, calls: 9, ..bench.reuse };
    drop(bench.count());
    assert_eq!(bench.kept(), 1);
    // Nobody comes: the engine looks by itself.
    let idle = async {
        while bench.kept() > 0 {
            tokio::task::yield_now().await;
        }
    };
    block_on(async { tokio::time::timeout(Duration::from_secs(20), idle).await }).unwrap();
}

/// A guest that waits for a moment, so that several of it run at once.
fn waiting() -> Guest {
    guest("(call $block (call $subscribe (i64.const 5000000))) (call $done)").with(MONOTONIC_CLOCK)
}

/// Attempts of one version that run at once, so that each has an instance.
async fn at_once(bench: &Bench, runs: usize) {
    let run = input_of("");
    let attempts = (0..runs).map(|_| {
        let mut attempt = run.attempt(bench.digest);
        attempt.keep = Some(Keep { version: VersionId(1), reuse: bench.reuse });
        bench.engine.run(attempt, run.port.clone(), run.stop.clone())
    });
    futures::future::join_all(attempts).await.iter().for_each(|report| drop(completed(report)));
}

#[test]
fn no_more_are_kept_than_the_manifest_says_and_none_after_a_swap() {
    let mut bench = Bench::new(&waiting().text());
    bench.reuse.instances = 2;
    block_on(at_once(&bench, 3));
    assert_eq!(bench.kept(), 2);
    bench.reuse.instances = 3;
    block_on(at_once(&bench, 4));
    assert_eq!(bench.kept(), 3);
    bench.engine.retain(&[], &[]);
    assert_eq!(bench.kept(), 0, "they go with their generation");
    // An attempt that began before the swap, or is loaded for it alone, leaves nothing either.
    assert_eq!(completed(&bench.run("acme", "")), "null");
    assert_eq!(bench.kept(), 0);
}

#[test]
fn what_was_kept_goes_with_its_version_though_another_has_the_same_component() {
    let bench = Bench::counting();
    let retain = |version: i64| bench.engine.retain(&[bench.digest], &[VersionId(version)]);
    let count = |version: i64| completed(&bench.run_with(input_of(""), "acme", version));
    retain(1);
    assert_eq!([count(1), count(1)], ["1", "2"]);
    retain(2);
    assert_eq!(bench.kept(), 0);
    assert_eq!((count(2).as_str(), bench.kept()), ("1", 1));
    // An attempt that ends on a version that was swapped out leaves nothing to the day on which it comes back.
    assert_eq!((count(1).as_str(), bench.kept()), ("1", 1));
    retain(1);
    assert_eq!([count(1), count(1)], ["1", "2"]);
}

#[test]
fn a_host_keeps_so_many_and_who_keeps_most_gives_up_first() {
    let bench = Bench::counting();
    let keep = |tenant: &str, version: i64| completed(&bench.run_with(input_of(""), tenant, version));
    assert_eq!(keep("small", 1), "1");
    for version in 2..=KEPT_PER_HOST_MAX as i64 {
        assert_eq!(keep("large", version), "1");
    }
    assert_eq!(bench.kept(), KEPT_PER_HOST_MAX);
    assert_eq!(keep("small", 1_000), "1");
    assert_eq!(bench.kept(), KEPT_PER_HOST_MAX);
    assert_eq!((keep("small", 1).as_str(), keep("small", 1_000).as_str()), ("2", "2"));
    assert_eq!(keep("large", 2), "1", "the oldest of the large one went");
    assert_eq!(keep("large", 4), "2");
    // What is kept stands in places of its own: as many attempts run as without.
    let bytes = waiting().bytes();
    let digest =
        block_on(bench.engine.compile(bytes.into(), COMPONENT_BYTES_MAX, Profiles::STRICT)).unwrap().digest;
    let run = input_of("");
    let reports = block_on(async {
        let runs = (0..16).map(|_| bench.engine.run(run.attempt(digest), run.port.clone(), run.stop.clone()));
        futures::future::join_all(runs).await
    });
    reports.iter().for_each(|report| assert_eq!(completed(report), "null"));
}

#[test]
fn a_host_keeps_so_many_bytes() {
    let bytes = 64 << 20;
    let bench = Bench::new(&counting().pages(&(bytes / PAGE).to_string()).text());
    let most = (KEPT_BYTES_MAX / bytes) as i64;
    for version in 1..=most + 1 {
        let run = input_of("").memory(2 * bytes);
        assert_eq!(completed(&bench.run_with(run, "acme", version)), "1");
        assert_eq!(bench.kept() as i64, version.min(most));
    }
}

#[test]
fn a_reset_comes_before_the_next_attempt_and_one_that_fails_costs_the_instance() {
    let bench = Bench::new(&resetting(&counting(), RESET, LIFTED));
    assert_eq!((bench.count().as_str(), bench.count().as_str()), ("1", "1"));
    assert_eq!((bench.kept(), bench.engine.counts().reused), (1, 1));
    completed(&bench.run("acme", "r"));
    assert_eq!(bench.count(), "1", "the task does not notice");
    let counts = bench.engine.counts();
    assert_eq!((counts.resets_failed, counts.reused, counts.fresh), (1, 2, 2));
}

#[test]
fn a_reset_without_end_costs_no_more_than_the_attempt_may_spend() {
    let endless = r#"(func (export "reset") (loop $again (br $again)))"#;
    let bench = Bench::new(&resetting(&counting(), endless, LIFTED));
    assert_eq!(bench.count(), "1");
    let report = bench.run_with(input_of("").fuel(1_000_000), "acme", 1);
    assert_eq!(completed(&report), "1");
    assert!(report.meter.fuel_used < 10_000, "it has all of its own: {:?}", report.meter);
    assert_eq!(bench.engine.counts().resets_failed, 1);
}

#[test]
fn a_reset_of_another_type_is_refused_at_install() {
    let dir = tempfile::tempdir().unwrap();
    let engine = new_engine(dir.path());
    let function = r#"(func (export "reset") (result i32) (i32.const 0))"#;
    let lifted =
        r#"(func $reset (result u32) (canon lift (core func $main "reset"))) (export "reset" (func $reset))"#;
    let bytes = wat::parse_str(resetting(&counting(), function, lifted)).unwrap();
    let error = block_on(engine.compile(bytes.into(), COMPONENT_BYTES_MAX, Profiles::STRICT)).unwrap_err();
    assert_eq!(error.code, Code::ComponentInvalid);
    assert!(error.message.contains("`reset`"), "{error}");
}

#[test]
fn an_instance_that_holds_more_than_half_of_an_attempts_memory_is_not_kept() {
    let bench = Bench::counting();
    let with =
        |memory: u64, input: &str| completed(&bench.run_with(input_of(input).memory(memory), "acme", 1));
    assert_eq!((with(2 * PAGE - 1, "").as_str(), bench.kept()), ("1", 0));
    assert_eq!((with(2 * PAGE, "").as_str(), bench.kept()), ("1", 1));
    assert_eq!(with(2 * PAGE - 1, ""), "1", "nor is it used by one that has less");
    // What leaks ends the instance long before it ends an attempt.
    let counts: Vec<String> = (0..6).map(|_| with(8 * PAGE, "g")).collect();
    assert_eq!(counts, ["1", "2", "3", "4", "1", "2"]);
}

#[test]
fn handles_that_are_left_take_nothing_from_the_next_attempt_and_few_are_kept() {
    let kept = |left: usize| {
        let code = "(loop $next (drop (call $subscribe (i64.const 0)))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $i) (i32.mul (local.get $length) (i32.const 4)))))
            (call $done)";
        let bench = Bench::new(&guest(code).with(MONOTONIC_CLOCK).text());
        // Four pollables for each byte of the input, and each is two resources.
        assert_eq!(left % 8, 0);
        assert_eq!(completed(&bench.run("acme", &"x".repeat(left / 8))), "null");
        let kept = bench.kept();
        let most = bench.run("acme", &"x".repeat(RESOURCES_MAX / 8));
        assert_eq!(completed(&most), "null");
        assert_eq!(bench.engine.counts().reused, kept as u64);
        kept
    };
    assert_eq!((kept(KEPT_RESOURCES_MAX), kept(KEPT_RESOURCES_MAX + 8)), (1, 0));
}

#[test]
fn who_ends_with_a_fill_gives_it_up_and_is_not_kept() {
    let fill = "(call $get-or-fill (i32.const 16) (i32.const 1) (i32.const 2048)) (call $done)";
    let bench = Bench::new(&guest(fill).with(CACHE).text());
    let run = input_of("");
    let fills = Arc::clone(&run.port.fills);
    assert_eq!(completed(&bench.run_with(run, "acme", 1)), "null");
    assert_eq!((bench.kept(), fills.given_up.load(Ordering::Relaxed)), (0, 1));
}
