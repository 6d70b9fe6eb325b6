//! Batches in guests: what a processor is handed and answers, how its runs end, and items that guests add.

use bytes::Bytes;
use keiko_core::batch::{Item, ItemOutcome};
use keiko_core::limit::{EFFECT_BYTES_MAX, EFFECTS_MAX, ITEM_BYTES_MAX};
use keiko_core::outcome::Taint;
use keiko_core::policy::Grants;
use keiko_core::port::{BatchOutcome, BatchReport, BatchRun, ItemsError, Runner};
use keiko_core::stop::StopReason;
use keiko_core::task::Payload;
use keiko_core::{Code, ItemId};

use crate::calls::error_of;
use crate::guest::{BATCH, Guest, guest};
use crate::host::{Port, Run, block_on, completed, install, shared};
use crate::worker::processor;

/// A batch of items with these payloads, of which each was handed over as often as its place says.
fn batch(key: &str, payloads: &[&str]) -> BatchRun {
    let item = |(at, text): (usize, &&str)| Item {
        id: ItemId(at as i64 + 1),
        payload: Payload { content_type: "text/plain".to_owned(), bytes: Bytes::from((*text).to_owned()) },
        created_ms: 0,
        attempts: at as u32,
    };
    BatchRun {
        id: "batch_7-l".to_owned(),
        processor: "films".parse().unwrap(),
        key: key.to_owned(),
        items: payloads.iter().enumerate().map(item).collect(),
    }
}

fn process(run: &Run, batch: BatchRun) -> BatchReport {
    block_on(async {
        let digest = install(&run.guest).await.unwrap().digest;
        shared().process(run.attempt(digest), batch, run.port.clone(), run.stop.clone()).await
    })
}

#[track_caller]
fn answered(report: &BatchReport) -> &[ItemOutcome] {
    match &report.outcome {
        BatchOutcome::Answered(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn code(report: BatchReport) -> Code {
    match report.outcome {
        BatchOutcome::Failed(failure) => failure.code,
        other => panic!("{other:?}"),
    }
}

fn reject(reason: &str) -> ItemOutcome {
    ItemOutcome::Reject(reason.to_owned())
}

#[test]
fn items_come_as_they_were_added_and_outcomes_go_back_in_their_order() {
    let done = Run::of(processor(""));
    assert_eq!(answered(&process(&done, batch("", &["a", "b"]))), [ItemOutcome::Done, ItemOutcome::Done]);
    assert_eq!(answered(&process(&done, batch("", &[]))), []);
    let bytes = Run::of(processor(
        "(call $reject (local.get $at) (i32.load offset=16 (local.get $item)) (i32.load offset=20 (local.get $item)))",
    ));
    assert_eq!(
        answered(&process(&bytes, batch("", &["a", "", "bc"]))),
        [reject("a"), reject(""), reject("bc")]
    );
    let types = Run::of(processor(
        "(call $reject (local.get $at) (i32.load offset=8 (local.get $item)) (i32.load offset=12 (local.get $item)))",
    ));
    assert_eq!(answered(&process(&types, batch("", &["a"]))), [reject("text/plain")]);
    // Later, for the reason of its id, after as many milliseconds as it was handed over before.
    let later = Run::of(processor(
        "(i32.store8 (local.get $at) (i32.const 1))
         (i32.store offset=8 (local.get $at) (i32.load (local.get $item)))
         (i32.store offset=12 (local.get $at) (i32.load offset=4 (local.get $item)))
         (i32.store8 offset=16 (local.get $at) (i32.load offset=24 (local.get $item)))
         (i64.store offset=24 (local.get $at) (i64.extend_i32_u (i32.load offset=24 (local.get $item))))",
    ));
    let retry = |id, after_ms| ItemOutcome::Retry { after_ms, reason: ItemId(id).to_string() };
    assert_eq!(answered(&process(&later, batch("", &["a", "b"]))), [retry(1, None), retry(2, Some(1))]);
}

#[test]
fn a_processor_is_told_which_batch_it_works() {
    let tells = |what: &str| Run::of(processor(&format!("(call $reject (local.get $at) {what})")));
    let id = tells("(local.get $id) (local.get $id-length)");
    assert_eq!(answered(&process(&id, batch("", &["a"]))), [reject("batch_7-l")]);
    let name = tells("(local.get $processor) (local.get $processor-length)");
    assert_eq!(answered(&process(&name, batch("", &["a"]))), [reject("films")]);
    // What is in the key, or nothing of all the memory when there is none.
    let key = tells("(local.get $key) (select (local.get $key-length) (i32.const 0) (local.get $some-key))");
    assert_eq!(answered(&process(&key, batch("1979", &["a"]))), [reject("1979")]);
    assert_eq!(answered(&process(&key, batch("", &["a"]))), [reject("")]);
}

#[test]
fn a_run_ends_at_its_limits_and_by_its_traps_as_an_attempt_does() {
    let endless = Run::of(processor("(loop $again (br $again))"));
    let fuel = process(&Run::of(processor("(loop $again (br $again))")).fuel(10_000), batch("", &["a"]));
    assert_eq!((fuel.meter.fuel_used > 9_000, code(fuel)), (true, Code::FuelExhausted));
    assert_eq!(
        code(process(&endless.fuel(100_000_000_000).wall_ms(30), batch("", &["a"]))),
        Code::DeadlineExceeded
    );
    let trap = process(&Run::of(processor("unreachable")), batch("", &["a"]));
    let BatchOutcome::Failed(failure) = &trap.outcome else { panic!("{trap:?}") };
    assert_eq!((failure.code, failure.backtrace.len()), (Code::Trap, 1));
    let grow = processor("(if (i32.eq (memory.grow (i32.const 100)) (i32.const -1)) (then unreachable))");
    assert_eq!(code(process(&Run::of(grow).memory(2 << 20), batch("", &["a"]))), Code::MemoryExceeded);
    // A wrong number of outcomes is an answer, which the runtime judges.
    let fewer = processor("(local.set $count (i32.const 1))");
    assert_eq!(answered(&process(&Run::of(fewer), batch("", &["a", "b"]))).len(), 1);
}

#[test]
fn a_run_that_is_stopped_says_so() {
    let mut run = Run::of(processor("(loop $again (br $again))"));
    run.budget.fuel.value = 100_000_000_000;
    run.stop.set(StopReason::Cancelled);
    let report = process(&run, batch("", &["a"]));
    assert_eq!(report.outcome, BatchOutcome::Stopped(StopReason::Cancelled));
}

#[test]
fn a_component_is_known_by_what_it_exports_and_works_nothing_else() {
    let (worker, tasks) = (processor(""), guest("(call $done)"));
    let (of_worker, of_tasks) = block_on(async { (install(&worker).await, install(&tasks).await) });
    let (of_worker, of_tasks) = (of_worker.unwrap(), of_tasks.unwrap());
    assert_eq!((of_worker.runs_tasks, of_worker.works_batches), (false, true));
    assert_eq!((of_tasks.runs_tasks, of_tasks.works_batches), (true, false));
    assert_eq!(code(process(&Run::of(tasks), batch("", &["a"]))), Code::Internal);
    assert_eq!(Run::of(worker).failure().code, Code::Internal);
}

/// One item, `null`, without a key and a content type; at 2,048 stands the answer.
const ADD: &str =
    "(call $add-items (i32.const 12) (i32.const 4) (i32.const 600) (i32.const 1) (i32.const 2048))";
/// The item at 600.
const ITEM: &str = r#"(data (i32.const 624) "\10\00\00\00\04\00\00\00")"#;

#[test]
fn what_a_processor_asks_for_goes_with_its_answer_and_is_gone_with_its_failure() {
    let adds = |more: &str| processor(&format!("{ADD} {more}")).module(ITEM).with(BATCH).pages("2");
    let report = process(&Run::of(adds("")), batch("", &["a", "b"]));
    assert_eq!((answered(&report).len(), report.effects.items.len()), (2, 2));
    assert_eq!(report.effects.items[0].payload, Payload::json("null"));
    let report = process(&Run::of(adds("unreachable")), batch("", &["a"]));
    assert!(report.effects.is_empty());
    assert_eq!(code(report), Code::Trap);
}

fn asks(call: &str) -> Guest {
    error_of(call, 8).module(ITEM).with(BATCH).pages("2")
}

#[test]
fn items_are_asked_for_denied_and_refused_by_name() {
    let run = Run::of(asks(ADD));
    let report = run.report();
    assert!(completed(&report).starts_with('0'));
    assert_eq!(*run.port.asked.lock().unwrap(), ["json 1"]);
    assert_eq!((report.taint, report.effects.items.len()), (Taint::BATCH, 1));
    let denied = Run::of(asks(ADD)).grants(Grants::new([]));
    let report = denied.report();
    assert_eq!((completed(&report).as_str(), report.taint), ("16", Taint::BATCH));
    assert!(denied.port.asked.lock().unwrap().is_empty() && report.effects.is_empty());
    for (refused, case) in [
        (ItemsError::NotFound("json".to_owned()), '0'),
        (ItemsError::QueueFull(5), '5'),
        (ItemsError::Unavailable, '7'),
    ] {
        let run = Run::of(asks(ADD)).port(Port { unadded: Some(refused.clone()), ..Port::default() });
        let report = run.report();
        assert_eq!(completed(&report), format!("1{case}"), "{refused}");
        assert!(report.effects.is_empty());
    }
}

/// Adds `count` items of `bytes` each, so often; whether the last call is answered with an error, and with which.
fn added(count: usize, bytes: u64, times: usize) -> String {
    let list = count * 32;
    // Every item of the list has the same bytes.
    let code = format!(
        "(local.set $k (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.const {list})))
         (local.set $j (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (i32.const {bytes})))
         (local.set $i (local.get $k))
         (loop $next
            (i32.store offset=24 (local.get $i) (local.get $j))
            (i32.store offset=28 (local.get $i) (i32.const {bytes}))
            (local.set $i (i32.add (local.get $i) (i32.const 32)))
            (br_if $next (i32.lt_u (local.get $i) (i32.add (local.get $k) (i32.const {list})))))
         {}",
        "(call $add-items (i32.const 12) (i32.const 4) (local.get $k) (i32.const COUNT) (i32.const 2048))"
            .replace("COUNT", &count.to_string())
            .repeat(times)
    );
    Run::of(asks(&code)).result()
}

#[test]
fn items_stop_at_their_size_their_number_and_their_bytes_together() {
    assert!(added(1, ITEM_BYTES_MAX, 1).starts_with('0'));
    assert_eq!(added(1, ITEM_BYTES_MAX + 1, 1), "12");
    assert!(added(EFFECTS_MAX, 4, 1).starts_with('0'));
    assert_eq!(added(EFFECTS_MAX + 1, 4, 1), "13");
    let half = EFFECT_BYTES_MAX as u64 / 8 - 1_000;
    assert!(added(2, half, 4).starts_with('0'));
    assert_eq!(added(2, half, 5), "14");
}
