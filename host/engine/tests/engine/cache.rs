//! The cache as guests reach it: each call and each refusal, what it costs, and what becomes of a fill when its holder ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keiko_core::cache::{CacheKey, InvalidKey, KEYS_MAX, Namespace, Tag};
use keiko_core::catalog::Tenant;
use keiko_core::limit::{HOSTCALL_BYTES_MAX, HOSTCALL_FUEL_PER_BYTE};
use keiko_core::outcome::{Outcome, Taint};
use keiko_core::policy::{BUDGET_CEILING, Grants};
use keiko_core::port::{CacheRefused, Keeping};
use keiko_core::stop::StopReason;
use keiko_core::{Code, TenantId};

use crate::calls::error_of;
use crate::guest::{CACHE, Guest, guest};
use crate::host::{Port, Run, block_on, completed, install};

/// Constants of a guest: the key `k` at 512, the tag `t` at 513; at 520 a list of the one tag; from 544 on twice the key,
/// as a list of keys.
const TEXTS: &str = r#"
    (data (i32.const 512) "kt")
    (data (i32.const 520) "\01\02\00\00\01\00\00\00")
    (data (i32.const 544) "\00\02\00\00\01\00\00\00\00\02\00\00\01\00\00\00")
"#;

const GET: &str = "(call $get (i32.const 512) (i32.const 1) (i32.const 2048))";
const GET_MANY: &str = "(call $get-many (i32.const 544) (i32.const 2) (i32.const 2048))";
/// Keeps `null` for 7 milliseconds under one tag.
const SET: &str =
    "(call $set (i32.const 512) (i32.const 1) (i32.const 16) (i32.const 4) (i32.const 1) (i64.const 7)
    (i32.const 520) (i32.const 1) (i32.const 2048))";
const REMOVE: &str = "(call $remove (i32.const 512) (i32.const 1) (i32.const 2048))";
const REMOVE_TAG: &str = "(call $remove-tag (i32.const 513) (i32.const 1) (i32.const 2048))";
const FILL: &str = "(call $get-or-fill (i32.const 512) (i32.const 1) (i32.const 2048))";
/// Completes the fill that `FILL` has left, with `null` and as it pleases the host.
const COMPLETE: &str =
    "(call $complete (i32.load (i32.const 2060)) (i32.const 16) (i32.const 4) (i32.const 0)
    (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 2080))";

const EVERY_CALL: [&str; 6] = [GET, GET_MANY, SET, REMOVE, REMOVE_TAG, FILL];

/// Whether `call` is answered with an error, and with which, as two digits.
fn asks(call: &str) -> Guest {
    error_of(call, 8).module(TEXTS).with(CACHE).pages("2")
}

fn port(cached: Option<&[u8]>) -> Port {
    Port { cached: cached.map(Bytes::copy_from_slice), ..Port::default() }
}

#[test]
fn what_is_asked_comes_to_the_runtime_as_it_was_said() {
    let expected = [
        r#"get ["k"]"#,
        r#"get ["k", "k"]"#,
        r#"set k b"null" Some(7) ["t"]"#,
        "remove k",
        "remove-tag t",
        "fill k",
    ];
    let run = Run::of(guest(&format!("{} (call $done)", EVERY_CALL.concat())).module(TEXTS).with(CACHE));
    let report = run.report();
    assert_eq!(completed(&report), "null");
    assert_eq!(*run.port.asked.lock().unwrap(), expected);
    assert_eq!((report.taint, report.meter.host_calls), (Taint::CACHE, 6));
    assert!(report.effects.is_empty(), "a change of the cache waits for no settle");
}

#[test]
fn a_denied_question_gets_its_own_answer_and_still_counts() {
    for call in EVERY_CALL {
        let run = Run::of(asks(call)).grants(Grants::new([]));
        let report = run.report();
        assert_eq!(completed(&report), "19", "{call}");
        assert_eq!((report.taint, report.meter.host_calls), (Taint::CACHE, 1), "{call}");
        assert!(run.port.asked.lock().unwrap().is_empty(), "{call}");
    }
}

#[test]
fn each_refusal_has_its_own_case() {
    let tenant = Tenant { id: TenantId(1), name: "acme".parse().unwrap() };
    let part = Namespace::shared(&"films".parse().unwrap());
    let (key, tag): (InvalidKey, InvalidKey) =
        (CacheKey::new(&tenant, &part, "").unwrap_err(), Tag::given("").unwrap_err());
    for (refused, case) in [
        (CacheRefused::Key(key), '0'),
        (CacheRefused::Tag(tag), '1'),
        (CacheRefused::TooManyTags(1), '2'),
        (CacheRefused::TooManyKeys(1), '3'),
        (CacheRefused::TooLarge(1), '4'),
        (CacheRefused::AnswerTooLarge(1), '5'),
        (CacheRefused::Lifetime(1), '6'),
        (CacheRefused::Lost, '8'),
        // 48 + 10.
        (CacheRefused::Unavailable, ':'),
    ] {
        for call in EVERY_CALL {
            let port = Port { uncached: Some(refused.clone()), ..Port::default() };
            assert_eq!(Run::of(asks(call)).port(port).result(), format!("1{case}"), "{call} {refused}");
        }
    }
}

#[test]
fn values_come_back_and_cost_by_the_byte() {
    // The length of what was found, or 9 for nothing.
    let length = "(if (i32.load8_u (i32.const 2056)) (then (local.set $i (i32.load (i32.const 2064))))
        (else (local.set $i (i32.const 9)))) (call $digit (local.get $i))";
    let run = |cached: Option<&[u8]>| {
        Run::of(guest(&format!("{GET} {length}")).module(TEXTS).with(CACHE)).port(port(cached)).report()
    };
    let (none, empty, some) = (run(None), run(Some(b"")), run(Some(b"value")));
    assert_eq!([completed(&none), completed(&empty), completed(&some)], ["9", "0", "5"]);
    // The allocator that takes the value costs the guest the same whatever its length.
    let more = some.meter.fuel_used - empty.meter.fuel_used;
    assert_eq!(more, 5 * HOSTCALL_FUEL_PER_BYTE);
}

#[test]
fn an_answer_of_several_values_is_whole_or_refused() {
    let half = HOSTCALL_BYTES_MAX / 2;
    let asked = |bytes: usize| Run::of(asks(GET_MANY)).port(port(Some(&vec![b'v'; bytes]))).result();
    assert!(asked(half).starts_with('0'));
    assert_eq!(asked(half + 1), "15");
}

#[test]
fn more_keys_than_a_call_may_name_are_refused_before_they_are_asked_for() {
    // The keys stand from 8192 on, each as `k` at 512.
    let many = |count: usize| {
        let code = format!(
            "(loop $next
                (i32.store (i32.add (i32.const 8192) (i32.mul (local.get $i) (i32.const 8))) (i32.const 512))
                (i32.store (i32.add (i32.const 8196) (i32.mul (local.get $i) (i32.const 8))) (i32.const 1))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $next (i32.lt_u (local.get $i) (i32.const {count}))))
            (call $get-many (i32.const 8192) (i32.const {count}) (i32.const 2048))"
        );
        let run = Run::of(asks(&code));
        let answer = run.result();
        (answer, run.port.asked.lock().unwrap().len())
    };
    assert_eq!(many(KEYS_MAX).1, 1);
    assert_eq!(many(KEYS_MAX + 1), ("13".to_owned(), 0));
}

#[test]
fn what_is_larger_than_a_call_may_be_never_reaches_the_host() {
    let set = |bytes: usize| {
        format!(
            "(call $set (i32.const 512) (i32.const 1) (i32.const 0) (i32.const {bytes}) (i32.const 0) (i64.const 0)
                (i32.const 0) (i32.const 0) (i32.const 2048)) (call $done)"
        )
    };
    let run = |bytes: usize| {
        let run = Run::of(guest(&set(bytes)).module(TEXTS).with(CACHE).pages("80"));
        (run.report().outcome, run.port.asked.lock().unwrap().len())
    };
    assert!(matches!(run(HOSTCALL_BYTES_MAX - 1), (Outcome::Completed(_), 1)));
    let (outcome, asked) = run(HOSTCALL_BYTES_MAX);
    assert!(
        matches!(&outcome, Outcome::Failed(failure) if failure.code == Code::HostcallTooLarge),
        "{outcome:?}"
    );
    assert_eq!(asked, 0);
}

#[test]
fn a_fill_is_completed_once_and_one_is_held_at_a_time() {
    let error = "(i32.load8_u (i32.const 2056))";
    let code = |calls: &str| guest(&format!("{calls} (call $digit {error})")).module(TEXTS).dropping_fills();
    let drop = "(call $drop-fill (i32.load (i32.const 2060)))";
    for (calls, digit, completed, given_up) in [
        // What `FILL` answers: 1 is a fill, 7 is `fill-held`.
        (FILL.to_owned(), "1", 0, 1),
        ([FILL, FILL].concat(), "7", 0, 1),
        ([FILL, COMPLETE, FILL].concat(), "1", 1, 1),
        ([FILL, drop, FILL].concat(), "1", 0, 2),
        ([FILL, COMPLETE, drop].concat(), "1", 1, 0),
    ] {
        let run = Run::of(code(&calls));
        assert_eq!(run.result(), digit, "{calls}");
        let fills = &run.port.fills;
        assert_eq!(fills.completed.lock().unwrap().len(), completed, "{calls}");
        assert_eq!(fills.given_up.load(Ordering::Relaxed), given_up, "{calls}");
    }
    // Completed again it is lost; the value that counts is the first.
    let again = format!("{FILL} {COMPLETE} {COMPLETE} (call $digit (i32.load8_u (i32.const 2088)))");
    let run = Run::of(guest(&again).module(TEXTS).dropping_fills());
    assert_eq!(run.result(), "8");
    assert_eq!(*run.port.fills.completed.lock().unwrap(), [(Bytes::from("null"), Keeping::default())]);
}

/// Whatever ends its holder, nobody waits for it any longer.
#[test]
fn a_fill_is_given_up_when_its_holder_traps_ends_is_late_or_is_stopped() {
    let holds = |then: &str| Run::of(guest(&format!("{FILL} {then}")).module(TEXTS).with(CACHE));
    let spins = "(loop $for-ever br $for-ever) unreachable";
    let stopped = holds(spins).fuel(BUDGET_CEILING.fuel);
    for run in [
        holds("unreachable"),
        holds("(call $done)"),
        holds("(call $fail (i32.const 1) (i32.const 16) (i32.const 4))"),
        holds(spins).fuel(100_000),
        holds(spins).fuel(BUDGET_CEILING.fuel).wall_ms(50),
    ] {
        run.report();
        assert_eq!(run.port.fills.given_up.load(Ordering::Relaxed), 1);
    }
    let (stop, fills) = (stopped.stop.clone(), Arc::clone(&stopped.port.fills));
    let report = block_on(async {
        install(&stopped.guest).await.unwrap();
        tokio::join!(stopped.report_async(), async { stop.set(StopReason::Cancelled) }).0
    });
    assert_eq!(report.outcome, Outcome::Stopped(StopReason::Cancelled));
    assert_eq!(fills.given_up.load(Ordering::Relaxed), 1);
}
