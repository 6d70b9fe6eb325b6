//! Lines of backtraces: read once, apart from the guests, within limits, and never at the price of an end.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::limit::{BACKTRACE_FRAMES_MAX, COMPONENT_BYTES_MAX};
use keiko_core::outcome::{AttemptReport, Failure};
use keiko_core::port::{Components, Runner, StoreError};
use keiko_core::profile::Profiles;
use keiko_core::stop::StopReason;
use keiko_core::{Code, Digest};
use keiko_engine::Engine;
use tokio::sync::{Notify, Semaphore};
use wasmparser::{Parser, Payload};

use crate::guest::{Guest, guest};
use crate::host::{Kept, Run, block_on, engine, failed, key};

/// Traps two functions deep, at one of two places by the length of its input.
fn traps() -> Guest {
    guest("(call $outer (local.get $length)) (call $done)").module(
        "(func $inner (param i32) (if (local.get 0) (then unreachable)) unreachable)
         (func $outer (param i32) (call $inner (i32.eq (local.get 0) (i32.const 4))))",
    )
}

/// Bytes as a text of the text format has them.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

fn section(name: &str, bytes: &[u8]) -> String {
    format!("(@custom \"{name}\" \"{}\")", text(bytes))
}

/// Where the functions of the last core module are, from the beginning of its code section.
fn functions(component: &[u8]) -> Vec<(u32, u32)> {
    let (mut begin, mut functions) = (0, Vec::new());
    for payload in Parser::new(0).parse_all(component) {
        match payload.unwrap() {
            Payload::CodeSectionStart { range, .. } => {
                functions.clear();
                begin = range.start;
            }
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                functions.push(((range.start - begin) as u32, (range.end - begin) as u32));
            }
            _ => {}
        }
    }
    functions
}

/// The guest with debug information for its main module: the function of number `n` is `source_n`, all of it line
/// `100 + n` of `/src/guest.wat`. With the sections in `more` it has others beside or instead of these.
fn described(guest: &Guest, more: &str) -> Guest {
    let table = [
        &[1, 0x11, 1, 0x11, 1, 0x12, 6, 0x10, 0x17, 0x1b, 8, 0, 0][..],
        &[2, 0x2e, 0, 3, 8, 0x11, 1, 0x12, 6, 0, 0, 0],
    ];
    let functions = functions(&guest.bytes());
    let mut entries = [&[4, 0, 0, 0, 0, 0, 4, 1, 1, 0, 0, 0][..], &u32::MAX.to_le_bytes()].concat();
    entries.extend([&[0; 4][..], b"/src\0"].concat());
    let header = [&[1, 1, 1, 0, 1, 4, 0, 1, 1, 0][..], b"guest.wat\0", &[0, 0, 0, 0]].concat();
    let mut lines = [&[4, 0][..], &(header.len() as u32).to_le_bytes(), &header].concat();
    for (number, (begin, end)) in functions.iter().enumerate() {
        entries.extend(format!("\u{2}source_{number}\0").bytes());
        entries.extend([begin.to_le_bytes(), (end - begin).to_le_bytes()].concat());
        // The address, 99 lines and the number on, a row, and the sequence ends behind the function.
        lines.extend([&[0, 5, 2][..], &begin.to_le_bytes()].concat());
        lines.extend([3, (99 + number as u8) | 0x80, 0, 1]);
        lines.extend([&[0, 5, 2][..], &end.to_le_bytes(), &[0, 1, 1]].concat());
    }
    let sized = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let sections = [
        section(".debug_abbrev", &table.concat()),
        section(".debug_info", &sized(&entries)),
        section(".debug_line", &sized(&lines)),
    ];
    guest.clone().module(&sections.concat()).module(more)
}

struct World {
    engine: Engine,
    digest: Digest,
    run: Run,
    _dir: tempfile::TempDir,
}

/// An engine with the guest installed and kept by `components`.
fn world(guest: Guest, components: Arc<dyn Components>) -> World {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), key('a'), components.clone(), &[]);
    let run = Run::of(guest);
    let bytes = Bytes::from(run.guest.bytes());
    let digest = block_on(async {
        let digest =
            engine.compile(bytes.clone(), COMPONENT_BYTES_MAX, Profiles::STRICT).await.unwrap().digest;
        components.put(digest, bytes, 0).await.unwrap();
        digest
    });
    World { engine, digest, run, _dir: dir }
}

impl World {
    async fn report(&self) -> AttemptReport {
        self.engine.run(self.run.attempt(self.digest), self.run.port.clone(), self.run.stop.clone()).await
    }

    #[track_caller]
    fn failure(&self) -> Failure {
        failed(block_on(self.report()))
    }

    fn readings(&self) -> u64 {
        self.engine.counts().symbol_readings
    }
}

/// Function, file and line of each frame.
fn frames(failure: &Failure) -> Vec<String> {
    assert_eq!(failure.code, Code::Trap);
    let frames = failure.backtrace.iter().map(|frame| {
        let place = frame.file.as_ref().zip(frame.line).map(|(file, line)| format!(" {file}:{line}"));
        format!("{}{}", frame.function, place.unwrap_or_default())
    });
    frames.collect()
}

/// The functions of [`traps`] that a trap goes through, by their numbers in the debug information.
const DESCRIBED: [&str; 3] =
    ["source_5 /src/guest.wat:105", "source_6 /src/guest.wat:106", "source_4 /src/guest.wat:104"];
const NAMED: [&str; 3] = ["inner", "outer", "run"];

#[test]
fn equal_traps_are_looked_up_once() {
    let world = world(described(&traps(), ""), Arc::<Kept>::default());
    assert_eq!(world.readings(), 0);
    for _ in 0..5 {
        assert_eq!(frames(&world.failure()), DESCRIBED);
        assert_eq!(world.readings(), 1);
    }
    // Another place in a function that is known costs one more.
    let other = Run { input: Bytes::from_static(b"other"), ..Run::of(traps()) };
    let world = World { run: other, ..world };
    for _ in 0..5 {
        assert_eq!(frames(&world.failure()), DESCRIBED);
        assert_eq!(world.readings(), 2);
    }
}

#[test]
fn traps_that_come_together_are_looked_up_together() {
    let world = world(described(&traps(), ""), Arc::<Kept>::default());
    let reports = block_on(futures::future::join_all((0..10).map(|_| world.report())));
    for report in reports {
        assert_eq!(frames(&failed(report)), DESCRIBED);
    }
    assert_eq!(world.readings(), 1);
}

#[test]
fn looking_up_is_not_the_guests_time_nor_its_fuel() {
    let plain = world(traps(), Arc::<Kept>::default());
    let described = world(described(&traps(), ""), Arc::<Kept>::default());
    let fuel = |world: &World| block_on(world.report()).meter.fuel_used;
    let expected = fuel(&plain);
    assert_eq!([fuel(&described), fuel(&described)], [expected; 2]);
    assert_eq!((plain.readings(), described.readings()), (1, 1));
}

#[test]
fn debug_information_that_is_no_good_leaves_the_names() {
    let damaged = section(".debug_info", &[0xff; 100]);
    let foreign = section(".debug_abbrev", &[1, 0x11, 0, 0x11, 0x7f, 0, 0, 0]);
    let endless = section(".debug_info", &[0xf0, 0xff, 0xff, 0xff, 4, 0]);
    let oversized = format!("(@custom \".debug_str\" \"{}\")", "x".repeat(16 << 20));
    for (what, more) in
        [("damaged", damaged), ("foreign", foreign), ("endless", endless), ("oversized", oversized)]
    {
        let world = world(described(&traps(), &more), Arc::<Kept>::default());
        for _ in 0..3 {
            assert_eq!(frames(&world.failure()), NAMED, "{what}");
        }
        assert_eq!(world.readings(), 1, "{what}");
    }
}

#[test]
fn debug_information_that_is_nested_without_end_leaves_the_names() {
    // One unit, one function for all code, and a million functions inlined into each other: a reader that calls itself
    // for each would end the process.
    let table = [
        &[1, 0x11, 1, 0x11, 1, 0x12, 6, 0, 0, 2, 0x2e, 1, 0x11, 1, 0x12, 6, 0, 0][..],
        &[3, 0x1d, 1, 0x11, 1, 0x34, 0x19, 0, 0, 0],
    ];
    let all = [1, 0, 0, 0, 0xff, 0xff, 0, 0];
    let mut entries = [&[4, 0, 0, 0, 0, 0, 4, 1][..], &all, &[2], &all].concat();
    entries.extend([3, 1, 0, 0, 0].repeat(1_000_000));
    let info = [&(entries.len() as u32).to_le_bytes()[..], &entries].concat();
    let more = section(".debug_abbrev", &table.concat()) + &section(".debug_info", &info);
    let world = world(traps().module(&more), Arc::<Kept>::default());
    for _ in 0..3 {
        assert_eq!(frames(&world.failure()), NAMED);
    }
}

#[test]
fn a_component_that_is_not_kept_fails_with_names() {
    let kept = Arc::<Kept>::default();
    let world = world(described(&traps(), ""), kept.clone());
    kept.forget(world.digest);
    for _ in 0..3 {
        assert_eq!(frames(&world.failure()), NAMED);
    }
    assert_eq!(world.readings(), 1);
}

#[test]
fn names_and_lines_stop_at_the_frames_limit_together() {
    let deep = guest("(call $down (i32.const 50)) (call $done)").module(
        "(func $down (param i32) (if (i32.eqz (local.get 0)) (then unreachable))
            (call $down (i32.sub (local.get 0) (i32.const 1))))",
    );
    let world = world(described(&deep, ""), Arc::<Kept>::default());
    let frames = frames(&world.failure());
    assert_eq!(frames, ["source_5 /src/guest.wat:105"; BACKTRACE_FRAMES_MAX]);
}

/// Components that are handed out when there is a permit, which a reader waits for.
struct Slow {
    kept: Kept,
    asked: Notify,
    permits: Semaphore,
}

#[async_trait]
impl Components for Slow {
    async fn put(&self, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError> {
        self.kept.put(digest, bytes, now_ms).await
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.asked.notify_one();
        self.permits.acquire().await.unwrap().forget();
        self.kept.get(digest).await
    }
}

fn slow() -> Arc<Slow> {
    Arc::new(Slow { kept: Kept::default(), asked: Notify::new(), permits: Semaphore::new(0) })
}

#[test]
fn an_attempt_does_not_wait_for_ever_and_a_later_one_has_the_lines() {
    let slow = slow();
    let world = world(described(&traps(), ""), slow.clone());
    block_on(async {
        let report = world.report().await;
        assert!(report.meter.elapsed_us < 1_000_000, "waiting is not the guest's time: {:?}", report.meter);
        assert_eq!(frames(&failed(report)), NAMED);
        // The reading that nobody waits for goes on, and no second one begins beside it.
        slow.permits.add_permits(1);
        assert_eq!(frames(&failed(world.report().await)), DESCRIBED);
    });
    assert_eq!(world.readings(), 1);
}

#[test]
fn whoever_stops_an_attempt_does_not_wait_for_its_lines() {
    let slow = slow();
    let world = world(described(&traps(), ""), slow.clone());
    block_on(async {
        let stop = async {
            slow.asked.notified().await;
            world.run.stop.set(StopReason::Drained);
        };
        let (report, ()) = tokio::join!(world.report(), stop);
        // It had failed before anybody wanted it to stop.
        assert_eq!(frames(&failed(report)), NAMED);
        slow.permits.add_permits(1);
    });
}

/// Components that cannot be had without a panic.
struct Panicking(Kept);

#[async_trait]
impl Components for Panicking {
    async fn put(&self, digest: Digest, bytes: Bytes, now_ms: i64) -> Result<(), StoreError> {
        self.0.put(digest, bytes, now_ms).await
    }

    async fn get(&self, _: Digest) -> Result<Option<Bytes>, StoreError> {
        panic!("a store that panics");
    }
}

#[test]
fn a_reading_that_panics_costs_no_attempt_its_end() {
    let world = world(described(&traps(), ""), Arc::new(Panicking(Kept::default())));
    for _ in 0..20 {
        assert_eq!(frames(&world.failure()), NAMED);
    }
    // Each took its share of what readings may cost and gave nothing back.
    assert_eq!(world.readings(), 8);
}
