//! The concurrent profile: who may have it, what is kept for it, and that every limit holds there too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use keiko_core::limit::{
    COMPONENT_BYTES_MAX, KEPT_PER_HOST_MAX, RESOURCES_MAX, WAITABLES_MAX, WASM_STACK_BYTES,
};
use keiko_core::manifest::Reuse;
use keiko_core::outcome::Outcome;
use keiko_core::policy::BUDGET_CEILING;
use keiko_core::port::{Components, InstallError, Keep, Runner, Stage};
use keiko_core::profile::{Profile, Profiles};
use keiko_core::stop::{Stop, StopReason};
use keiko_core::{Code, Digest, VersionId};
use keiko_engine::{Engine, EngineOptions};

use crate::composed::beside;
use crate::guest::{Guest, LOG, MONOTONIC_CLOCK, TASKS, guest};
use crate::host::{
    Kept, Port, Run, block_on, compiler, completed, engine, failed, install_with, key, shared,
};
use crate::limits::repeat;

/// What a task takes of the waitables: itself, its thread, and what the thread waits with.
const OF_A_TASK: usize = 3;
/// What a callback says to be called again at once.
const AGAIN: &str = "(i32.const 1)";
/// What a callback that is not expected says.
const NEVER: &str = "unreachable";

/// What a guest of the concurrent profile has: name, canonical function, core type.
const WAITABLES: &[(&str, &str, &str)] = &[
    (
        "task-return",
        r#"task.return (result (result $payload (error $failure))) (memory (core memory $libc "memory"))"#,
        "(param i32 i32 i32 i32 i32 i64)",
    ),
    ("set-new", "waitable-set.new", "(result i32)"),
    (
        "set-wait",
        r#"waitable-set.wait (memory (core memory $libc "memory"))"#,
        "(param i32 i32) (result i32)",
    ),
    ("set-drop", "waitable-set.drop", "(param i32)"),
    ("stream-new", "stream.new $bytes", "(result i64)"),
    ("future-new", "future.new $byte", "(result i64)"),
];

/// Imports what the component model has for tasks.
fn with_waitables(mut guest: Guest) -> Guest {
    guest = guest.component("(type $bytes (stream u8)) (type $byte (future u8))");
    let mut exports = String::new();
    for (name, canon, signature) in WAITABLES {
        guest = guest
            .component(&format!("(core func ${name} (canon {canon}))"))
            .import(&format!(r#"(import "waitables" "{name}" (func ${name} {signature}))"#));
        exports.push_str(&format!(r#"(export "{name}" (func ${name}))"#));
    }
    guest
        .component(&format!("(core instance $waitables {exports})"))
        .argument(r#"(with "waitables" (instance $waitables))"#)
}

/// Lifts `run` async, as an async function, with the body of a callback: parameters are `$event`, `$first`, `$second`; both
/// leave what is to happen next, 0 for nothing. The answer is given with `$return`.
fn lifted_async(guest: Guest, callback: &str) -> Guest {
    let lift = r#"(canon lift (core func $main "run")"#;
    let with_callback =
        r#"(canon lift (core func $main "run") async (callback (core func $main "callback"))"#;
    let asynchronous = |export: String| {
        let lifted = export.replace(lift, with_callback);
        let named = lifted.replace(r#"$run (param "kind""#, r#"$run async (param "kind""#);
        named.replace(r#"(func (param "kind""#, r#"(func async (param "kind""#)
    };
    let callback = format!(
        r#"(func (export "callback") (param $event i32) (param $first i32) (param $second i32) (result i32)
            (local $i i32) (local $j i32) {callback})
        (func $return (param $at i32) (call $task-return (i32.load8_u (local.get $at))
            (i32.load offset=8 (local.get $at)) (i32.load offset=12 (local.get $at))
            (i32.load offset=16 (local.get $at)) (i32.load offset=20 (local.get $at)) (i64.const 0)))"#
    );
    with_waitables(guest.with_export(asynchronous).module(&callback))
}

/// A guest of the concurrent profile that answers, and then does nothing more.
fn answers(code: &str) -> Guest {
    lifted_async(guest(&format!("{code} (call $return (call $done)) (i32.const 0)")), NEVER)
}

/// One that goes on with its callback, which leaves what is to happen next.
fn goes_on(then: &str, callback: &str) -> Guest {
    lifted_async(guest(then), callback)
}

fn run(guest: Guest) -> Run {
    Run::of(guest).profiles(Profiles::ALL)
}

/// A folder for artifacts, and what is kept of components.
struct Folder {
    dir: tempfile::TempDir,
    components: Arc<Kept>,
}

impl Folder {
    fn new() -> Folder {
        Folder { dir: tempfile::tempdir().unwrap(), components: Arc::default() }
    }

    fn engine(&self) -> Engine {
        engine(self.dir.path(), key('c'), self.components.clone(), &[])
    }

    fn compile(&self, engine: &Engine, guest: &Guest, profiles: Profiles) -> Result<Digest, InstallError> {
        let bytes = Bytes::from(guest.bytes());
        block_on(async {
            let compiled = engine.compile(bytes.clone(), COMPONENT_BYTES_MAX, profiles).await?;
            self.components.put(compiled.digest, bytes, 0).await.unwrap();
            Ok(compiled.digest)
        })
    }

    fn artifacts(&self) -> Vec<PathBuf> {
        files(self.dir.path())
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[track_caller]
fn is_denied(refused: &Result<(), InstallError>) {
    let error = refused.as_ref().unwrap_err();
    assert_eq!(error.code, Code::Denied, "{error}");
    assert!(error.message.contains("needs the engine profile `concurrent`"), "{error}");
}

#[test]
fn what_needs_concurrency_runs_where_the_policy_permits_it_and_is_refused_elsewhere() {
    let folder = Folder::new();
    let engine = folder.engine();
    let guest = answers("");
    let error = folder.compile(&engine, &guest, Profiles::STRICT).unwrap_err();
    assert_eq!((error.code, error.stage), (Code::Denied, Some(Stage::Scan)), "{error}");
    assert_eq!(
        error.message,
        "the component needs the engine profile `concurrent` (it has tasks of its own), which the tenant's policy does not \
         permit"
    );
    // What need not be is not made: neither an artifact nor an engine.
    let strict = crate::guest::guest("(call $done)");
    folder.compile(&engine, &strict, Profiles::ALL).unwrap();
    assert_eq!((engine.counts().concurrent, folder.artifacts().len()), (false, 1));

    let digest = folder.compile(&engine, &guest, Profiles::ALL).unwrap();
    assert!(engine.counts().concurrent);
    let run = run(guest);
    let report = block_on(engine.run(run.attempt(digest), run.port.clone(), run.stop));
    assert_eq!(completed(&report), "null");
    assert!(report.meter.fuel_used > 0 && report.meter.memory_bytes_peak > 0 && report.taint.is_none());
}

#[test]
fn the_profile_is_told_of_what_was_compiled() {
    let profile = |guest: &Guest| block_on(install_with(guest, Profiles::ALL)).unwrap().profile;
    assert_eq!(profile(&answers("")), Profile::Concurrent);
    assert_eq!(profile(&guest("(call $done)")), Profile::Strict);
}

#[test]
fn a_policy_that_was_narrowed_counts_for_what_is_loaded_kept_and_compiled_before() {
    let folder = Folder::new();
    let engine = folder.engine();
    let digest = folder.compile(&engine, &answers(""), Profiles::ALL).unwrap();
    is_denied(&block_on(engine.load(digest, Profiles::STRICT)));
    assert_eq!(block_on(engine.load(digest, Profiles::ALL)), Ok(()));

    let of_artifact = folder.engine();
    is_denied(&block_on(of_artifact.load(digest, Profiles::STRICT)));
    assert_eq!((of_artifact.counts().concurrent, of_artifact.counts().loaded), (false, 0));

    for file in folder.artifacts() {
        fs::remove_file(file).unwrap();
    }
    let of_bytes = folder.engine();
    is_denied(&block_on(of_bytes.load(digest, Profiles::STRICT)));
    assert_eq!((of_bytes.counts().concurrent, folder.artifacts().len()), (false, 0));
    assert_eq!(block_on(of_bytes.load(digest, Profiles::ALL)), Ok(()));
}

#[test]
fn an_artifact_of_one_profile_is_never_loaded_by_the_other() {
    let folder = Folder::new();
    let first = folder.engine();
    let (strict, concurrent) = (guest("(call $done)"), answers(""));
    let of_strict = folder.compile(&first, &strict, Profiles::ALL).unwrap();
    let of_concurrent = folder.compile(&first, &concurrent, Profiles::ALL).unwrap();
    let named = |digest: Digest| {
        let found =
            folder.artifacts().into_iter().find(|file| file.to_string_lossy().contains(&digest.hex()));
        found.unwrap()
    };
    // The name is the digest and the settings: each under the other's settings.
    let settings =
        |file: &Path| file.file_name().unwrap().to_string_lossy().split_once('-').unwrap().1.to_owned();
    let (strict_file, concurrent_file) = (named(of_strict), named(of_concurrent));
    let (as_strict, as_concurrent) = (settings(&strict_file), settings(&concurrent_file));
    assert_ne!(as_strict, as_concurrent);
    let planted =
        |digest: Digest, settings: &str| folder.dir.path().join(format!("{}-{settings}", digest.hex()));
    fs::rename(&strict_file, planted(of_strict, &as_concurrent)).unwrap();
    fs::rename(&concurrent_file, planted(of_concurrent, &as_strict)).unwrap();

    let engine = folder.engine();
    for (digest, guest) in [(of_strict, strict), (of_concurrent, concurrent)] {
        let before = engine.counts().artifacts_refused;
        block_on(engine.load(digest, Profiles::ALL)).unwrap();
        assert_eq!(engine.counts().artifacts_refused, before + 1);
        let run = run(guest);
        let report = block_on(engine.run(run.attempt(digest), run.port.clone(), run.stop.clone()));
        assert_eq!(completed(&report), "null");
    }
    // They were made again where they belong.
    let mut expected = [strict_file, concurrent_file];
    expected.sort();
    assert_eq!(folder.artifacts(), expected);
}

#[test]
fn a_file_that_stands_for_nothing_takes_no_component_away() {
    let folder = Folder::new();
    let (strict, concurrent) = (guest("(call $done)"), answers(""));
    let of_concurrent = folder.compile(&folder.engine(), &concurrent, Profiles::ALL).unwrap();
    let name = folder.artifacts().remove(0);
    let of_strict = folder.compile(&folder.engine(), &strict, Profiles::STRICT).unwrap();
    for file in folder.artifacts() {
        fs::remove_file(file).unwrap();
    }
    let name = name.to_string_lossy().replace(&of_concurrent.hex(), &of_strict.hex());
    fs::write(&name, b"garbage").unwrap();
    let engine = folder.engine();
    assert_eq!(block_on(engine.load(of_strict, Profiles::STRICT)), Ok(()), "as if there were no such file");
    assert_eq!(block_on(folder.engine().load(of_strict, Profiles::ALL)), Ok(()));
}

#[test]
fn a_start_compiles_no_component_of_the_profile_again() {
    let folder = Folder::new();
    let digest = folder.compile(&folder.engine(), &answers(""), Profiles::ALL).unwrap();
    let written = |folder: &Folder| fs::metadata(&folder.artifacts()[0]).unwrap().modified().unwrap();
    let before = written(&folder);
    // Neither is it read again, as its artifact is there.
    folder.components.forget(digest);
    let engine = folder.engine();
    block_on(engine.load(digest, Profiles::ALL)).unwrap();
    assert_eq!((written(&folder), engine.counts().artifacts_refused), (before, 0));
}

#[test]
fn swaps_between_the_profiles_leave_nothing_in_memory() {
    let folder = Folder::new();
    let engine = folder.engine();
    let strict = folder.compile(&engine, &guest("(call $done)"), Profiles::ALL).unwrap();
    let concurrent = folder.compile(&engine, &answers(""), Profiles::ALL).unwrap();
    block_on(async {
        for _ in 0..100 {
            for digest in [strict, concurrent] {
                engine.load(digest, Profiles::ALL).await.unwrap();
                engine.retain(&[digest], &[]);
                assert_eq!((engine.counts().loaded, engine.counts().held), (1, 1));
                let run = Run::of(guest(""));
                let report = engine.run(run.attempt(digest), run.port.clone(), run.stop.clone()).await;
                assert_eq!(completed(&report), "null");
            }
        }
    });
}

#[test]
fn a_callback_goes_on_where_the_task_left_off() {
    let counts = goes_on(
        AGAIN,
        "(i32.store (i32.const 2048) (i32.add (i32.load (i32.const 2048)) (i32.const 1)))
         (if (i32.eq (i32.load (i32.const 2048)) (i32.const 7))
            (then (call $return (call $digit (i32.const 7))) (return (i32.const 0))))
         (i32.const 1)",
    );
    assert_eq!(run(counts).result(), "7");
}

#[test]
fn host_calls_are_counted_and_charged_as_on_the_strict_profile() {
    let log = "(call $log (i32.const 0) (i32.const 0) (i32.const 16) (i32.const 0) (i32.const 0))";
    let concurrent = run(answers(log).with(LOG)).report();
    let strict = Run::of(guest(&format!("{log} (call $done)")).with(LOG)).report();
    assert_eq!(completed(&concurrent), "null");
    assert_eq!(concurrent.log.lines().len(), 1);
    assert_eq!(concurrent.meter.host_calls, strict.meter.host_calls);
    let more = concurrent.meter.fuel_used - strict.meter.fuel_used;
    assert!(more < 100, "the same call, and a few instructions more: {more}");
    let run = run(answers(&log.repeat(3)).with(LOG)).host_calls(2);
    assert_eq!(run.limit(), (Code::HostcallBudget, "host_calls".to_owned(), 2));
}

#[test]
fn a_wait_for_what_can_never_come_ends_at_once() {
    let set = "(i32.or (i32.const 2) (i32.shl (call $set-new) (i32.const 4)))";
    let by_callback = goes_on(set, NEVER);
    let inside = answers("(drop (call $set-wait (call $set-new) (i32.const 2048)))");
    for guest in [by_callback, inside] {
        let began = Instant::now();
        let failure = run(guest).failure();
        assert_eq!(failure.code, Code::Trap, "{failure:?}");
        assert!(failure.message.contains("deadlock"), "{failure:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "long before its deadline");
    }
}

#[test]
fn a_function_that_is_not_async_must_not_wait() {
    let waits =
        with_waitables(guest("(drop (call $set-wait (call $set-new) (i32.const 2048))) (call $done)"));
    let failure = run(waits).failure();
    assert_eq!(failure.code, Code::Trap);
    assert!(failure.message.contains("cannot block"), "{failure:?}");
    assert_eq!(run(with_waitables(guest("(drop (call $set-new)) (call $done)"))).result(), "null");
}

#[test]
fn an_answer_that_is_never_given_or_twice_is_the_guests_fault() {
    let twice = goes_on("(call $return (call $done)) (call $return (call $done)) (i32.const 0)", NEVER);
    assert_eq!(run(twice).failure().code, Code::Trap);
    let unknown = goes_on("(i32.const 9)", NEVER);
    assert_eq!(run(unknown).failure().code, Code::Trap);
    // Also in builds with debug assertions, where wasmtime 48 panics here.
    let silent = run(goes_on("(i32.const 0)", NEVER)).failure();
    assert_eq!(silent.code, Code::Trap, "{silent:?}");
    assert!(silent.message.contains("failed to produce a result"), "{silent:?}");
}

#[test]
fn what_goes_on_behind_an_answer_ends_with_the_attempt() {
    let lingers = goes_on("(call $return (call $done)) (i32.const 1)", AGAIN);
    let began = Instant::now();
    assert_eq!(run(lingers).result(), "null");
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// Asks for a child, which the runtime of some tests never gives.
fn submits() -> Guest {
    let zeros = "(i32.const 0) ".repeat(15);
    answers(&format!("(call $submit {zeros} (i64.const 0) (i32.const 2048))")).with(TASKS)
}

#[track_caller]
fn ends_at_its_deadline(run: Run) {
    block_on(install_with(&run.guest, Profiles::ALL)).unwrap();
    let began = Instant::now();
    let report = run.wall_ms(50).report();
    assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let failure = failed(report);
    assert_eq!(failure.code, Code::DeadlineExceeded, "{failure:?}");
    let limit = failure.limit.unwrap();
    assert_eq!((limit.name.as_str(), limit.limit), ("wall_ms", 50));
}

#[test]
fn whatever_never_ends_ends_at_its_deadline() {
    let never = || Port { never_answers: true, ..Port::default() };
    let fuel = BUDGET_CEILING.fuel;
    ends_at_its_deadline(run(goes_on(AGAIN, AGAIN)).fuel(fuel));
    ends_at_its_deadline(run(goes_on("(loop $for-ever br $for-ever) unreachable", NEVER)).fuel(fuel));
    ends_at_its_deadline(run(goes_on(AGAIN, "(loop $for-ever br $for-ever) unreachable")).fuel(fuel));
    ends_at_its_deadline(run(submits()).port(never()));
    let clock = "(call $block (call $subscribe (i64.const 0x7fffffffffffffff)))";
    ends_at_its_deadline(run(answers(clock).with(MONOTONIC_CLOCK)));
    // After its answer was given, inside the same call.
    let late = format!("(call $return (call $done)) {clock} (i32.const 0)");
    let began = Instant::now();
    let report = run(goes_on(&late, NEVER).with(MONOTONIC_CLOCK)).wall_ms(50).report();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", report.outcome);
}

#[test]
fn a_callback_that_is_called_without_end_uses_up_its_fuel() {
    let run = run(goes_on(AGAIN, AGAIN)).fuel(10_000);
    assert_eq!(run.limit(), (Code::FuelExhausted, "fuel".to_owned(), 10_000));
}

#[test]
fn a_guest_that_goes_on_and_on_is_stopped_and_lets_its_neighbour_run() {
    for guest in [goes_on(AGAIN, AGAIN), submits()] {
        let port = Port { never_answers: true, ..Port::default() };
        let spinner = run(guest).fuel(BUDGET_CEILING.fuel).port(port);
        let neighbour = run(answers(""));
        let report = block_on(async {
            install_with(&spinner.guest, Profiles::ALL).await.unwrap();
            install_with(&neighbour.guest, Profiles::ALL).await.unwrap();
            let other = async {
                assert_eq!(completed(&neighbour.report_async().await), "null");
                spinner.stop.set(StopReason::Cancelled);
            };
            tokio::join!(spinner.report_async(), other).0
        });
        assert_eq!(report.outcome, Outcome::Stopped(StopReason::Cancelled));
    }
}

#[test]
fn waitables_are_counted_to_the_last_one() {
    let sets = |count: usize| run(answers(&repeat(count as u64, "(drop (call $set-new))")));
    assert_eq!(sets(WAITABLES_MAX - OF_A_TASK).result(), "null");
    let limit = (Code::HandlesExceeded, "waitables".to_owned(), WAITABLES_MAX as u64);
    assert_eq!(sets(WAITABLES_MAX - OF_A_TASK + 1).limit(), limit);
    // Three of each: what both ends share, and the ends.
    let pairs = (WAITABLES_MAX - OF_A_TASK) / 3;
    for new in ["(drop (call $stream-new))", "(drop (call $future-new))"] {
        assert_eq!(run(answers(&repeat(pairs as u64, new))).result(), "null");
        assert_eq!(run(answers(&repeat(pairs as u64 + 1, new))).limit(), limit);
    }
    // One after the other they are as many as one likes.
    let churns = answers(&repeat(10_000, "(call $set-drop (call $set-new))"));
    assert_eq!(run(churns).result(), "null");
}

#[test]
fn the_limits_of_an_attempt_are_those_of_the_strict_profile() {
    let grows = run(answers("(drop (memory.grow (i32.const 16)))")).memory(16 << 16);
    assert_eq!(grows.limit(), (Code::MemoryExceeded, "memory_bytes".to_owned(), 16 << 16));
    let recurses = answers("(call $down)").module("(func $down (call $down) (call $down))");
    let limit = (Code::StackExhausted, "wasm_stack_bytes".to_owned(), WASM_STACK_BYTES as u64);
    assert_eq!(run(recurses).limit(), limit);
    let later = goes_on(AGAIN, "(call $down) (i32.const 0)").module("(func $down (call $down) (call $down))");
    assert_eq!(run(later).limit(), limit);
    let handles = answers(&repeat(RESOURCES_MAX as u64 + 1, "(drop (call $subscribe (i64.const 1)))"));
    let limit = (Code::HandlesExceeded, "host_resources".to_owned(), RESOURCES_MAX as u64);
    assert_eq!(run(handles.with(MONOTONIC_CLOCK)).limit(), limit);
    let trap = run(goes_on(AGAIN, "(call $inner) (i32.const 0)").module("(func $inner unreachable)"));
    let failure = trap.failure();
    assert_eq!((failure.code, failure.backtrace[0].function.as_str()), (Code::Trap, "inner"));
}

/// A component beside the guest's whose function waits for ever on a stack of its own; the guest calls it with `$wait`, which
/// does not wait for it.
fn with_waiters(guest: Guest) -> Vec<u8> {
    let guest = guest
        .component(
            r#"(core func $wait (canon lower (func $imported) async))
            (core instance $waiting (export "wait" (func $wait)))"#,
        )
        .argument(r#"(with "waiting" (instance $waiting))"#)
        .import(r#"(import "waiting" "wait" (func $wait (result i32)))"#);
    let waiter = r#"(component $Part
        (core module $Memory (memory (export "memory") 1))
        (core instance $memory (instantiate $Memory))
        (core func $new (canon waitable-set.new))
        (core func $wait (canon waitable-set.wait (memory (core memory $memory "memory"))))
        (core module $M
            (import "w" "new" (func $new (result i32)))
            (import "w" "wait" (func $wait (param i32 i32) (result i32)))
            (func (export "wait") (drop (call $wait (call $new) (i32.const 0)))))
        (core instance $m (instantiate $M (with "w" (instance
            (export "new" (func $new)) (export "wait" (func $wait))))))
        (func (export "wait") async (canon lift (core func $m "wait"))))"#;
    wat::parse_str(beside(&guest, waiter, "wait", "async")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn tasks_that_wait_on_stacks_of_their_own_are_bounded_and_give_them_back() {
    let run = |code: &str| {
        let run = Run::of(guest(""));
        block_on(async {
            let bytes = with_waiters(answers(code)).into();
            let digest = shared().compile(bytes, COMPONENT_BYTES_MAX, Profiles::ALL).await.unwrap().digest;
            shared().run(run.attempt(digest), run.port.clone(), run.stop.clone()).await
        })
    };
    assert_eq!(
        completed(&run("(drop (call $wait))")),
        "null",
        "what waits for ever does not keep the answer"
    );
    let flood = repeat(10_000, "(drop (call $wait))");
    // More of them than there are stacks in the pool of this engine.
    for _ in 0..500 {
        let failure = failed(run(&flood));
        assert_eq!(failure.code, Code::HandlesExceeded, "{failure:?}");
        assert_eq!(failure.limit.unwrap().name, "waitables");
    }
    assert_eq!(crate::concurrency::run(answers("")).result(), "null");
}

#[test]
fn more_attempts_than_the_pool_has_room_for_are_refused_and_there_is_room_again_afterwards() {
    // One that runs, those that are being dropped, and those that are kept.
    const PLACES: usize = 1 + 8 + KEPT_PER_HOST_MAX;
    let zeros = "(i32.const 0) ".repeat(15);
    let asks = format!("(call $submit {zeros} (i64.const 0) (i32.const 2048)) (call $done)");
    for waits in [guest(&asks).with(TASKS), submits()] {
        let dir = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            artifacts_dir: dir.path().to_owned(),
            cluster_key: key('c'),
            compiler: compiler(&[]),
            running_max: 1,
        };
        let engine = Engine::new(options, Arc::<Kept>::default()).unwrap();
        let waits = run(waits).port(Port { never_answers: true, ..Port::default() });
        let again = run(waits.guest.clone());
        let go = async |run: &Run, digest| {
            engine.run(run.attempt(digest), run.port.clone(), Stop::default()).await
        };
        block_on(async {
            let bytes = waits.guest.bytes().into();
            let digest = engine.compile(bytes, COMPONENT_BYTES_MAX, Profiles::ALL).await.unwrap().digest;
            let mut running: FuturesUnordered<_> = (0..=PLACES).map(|_| go(&waits, digest)).collect();
            let failure = failed(running.next().await.unwrap());
            assert_eq!(failure.code, Code::Internal, "{failure:?}");
            let full =
                format!("the host had no room to run the attempt: maximum concurrent limit of {PLACES} for ");
            assert!(failure.message.starts_with(&full), "{failure:?}");
            // The others wait for what does not come.
            drop(running);
            assert_eq!(completed(&go(&again, digest).await), "null");
        });
    }
}

#[test]
fn an_instance_is_kept_when_it_left_nothing_behind() {
    for (guest, reused) in [
        (answers(""), 1),
        (answers("(drop (call $set-new))"), 0),
        (goes_on("(call $return (call $done)) (i32.const 1)", AGAIN), 0),
    ] {
        let folder = Folder::new();
        let engine = folder.engine();
        let digest = folder.compile(&engine, &guest, Profiles::ALL).unwrap();
        for _ in 0..2 {
            let run = Run::of(guest.clone());
            let mut attempt = run.attempt(digest);
            attempt.keep = Some(Keep { version: VersionId(1), reuse: Reuse::default() });
            let report = block_on(engine.run(attempt, run.port.clone(), run.stop.clone()));
            assert_eq!(completed(&report), "null");
        }
        assert_eq!((engine.counts().reused, engine.counts().kept), (reused, reused as usize));
    }
}
