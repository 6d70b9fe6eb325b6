//! How much memory this process holds: while its child meets a compile bomb, and after guests that took much. A
//! binary of its own, because it looks at its own process.

#![allow(clippy::unwrap_used, reason = "what cannot go on in a test fails it")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::effect::ChildWish;
use keiko_core::limit::{COMPONENT_BYTES_MAX, SetBy};
use keiko_core::manifest::Random;
use keiko_core::outcome::Outcome;
use keiko_core::policy::{BUDGET_CEILING, BUDGET_DEFAULT, Budget, Grants, Limit};
use keiko_core::port::{
    Attempt, AttemptFacts, Components, HostPort, InstallError, ReserveError, Reserved, Runner, StoreError,
};
use keiko_core::profile::Profiles;
use keiko_core::stop::Stop;
use keiko_core::task::{Lineage, Payload};
use keiko_core::{Code, Digest, TaskId};
use keiko_engine::{ClusterKey, Compiler, Engine, EngineOptions};

#[allow(dead_code, reason = "shared with the tests that use all of it")]
#[path = "engine/guest.rs"]
mod guest;

/// What this process may grow by while its child meets a bomb.
const BOMB_GROWTH_BYTES_MAX: u64 = 20 << 20;
/// What this process may hold more once greedy guests have ended.
const GUEST_GROWTH_BYTES_MAX: u64 = 32 << 20;
/// Greedy guests at once.
const GUESTS: usize = 16;

/// The tests of this binary, one at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Nothing;

#[async_trait]
impl Components for Nothing {
    async fn put(&self, _: Digest, _: Bytes, _: i64) -> Result<(), StoreError> {
        Ok(())
    }

    async fn get(&self, _: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }
}

#[async_trait]
impl HostPort for Nothing {
    fn now_ms(&self) -> i64 {
        0
    }

    fn progress(&self, _: f64, _: String) {}

    async fn reserve(&self, _: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError> {
        Err(ReserveError::Unavailable)
    }
}

fn attempt(digest: Digest) -> Attempt {
    let limit = |value| Limit { value, set_by: SetBy::Host };
    Attempt {
        facts: AttemptFacts {
            tenant: "t".parse().unwrap(),
            task: TaskId(1),
            lineage: Lineage::root(TaskId(1)),
            number: 1,
            attempts_max: 1,
            trace: None,
        },
        digest,
        kind: "k".parse().unwrap(),
        input: Payload::json("null"),
        budget: Budget {
            fuel: limit(BUDGET_CEILING.fuel),
            memory_bytes: limit(BUDGET_DEFAULT.memory_bytes),
            wall_ms: limit(BUDGET_DEFAULT.wall_ms),
            host_calls: limit(BUDGET_DEFAULT.host_calls),
            attempts: limit(1),
            heartbeat_ms: None,
        },
        grants: Arc::new(Grants::default()),
        settings: Arc::default(),
        command: None,
        keep: None,
        random: Random::default(),
    }
}

/// Nested loops over many locals: a value for every local at the head of every loop.
fn bomb(locals: usize, depth: usize) -> Bytes {
    let mut body = String::new();
    for level in 0..depth {
        let local = |step: usize| (level * step) % locals + 1;
        let (to, from) = (local(7), local(13));
        body.push_str(&format!("(loop (local.set {to} (i64.add (local.get {from}) (local.get {to})))"));
    }
    body.push_str(&"(br_if 0 (i64.eqz (local.get 0))))".repeat(depth));
    let declared = "i64 ".repeat(locals);
    let text = format!("(component (core module (func (param i64) (local {declared}) {body})))");
    wat::parse_str(text).unwrap().into()
}

fn engine(dir: &Path, arguments: &[u64]) -> Engine {
    let options = EngineOptions {
        artifacts_dir: dir.to_owned(),
        cluster_key: ClusterKey::from_hex(&"0".repeat(64)).unwrap(),
        compiler: Compiler {
            program: PathBuf::from(env!("CARGO_BIN_EXE_keiko-compile")),
            arguments: arguments.iter().map(|number| number.to_string().into()).collect(),
        },
        running_max: keiko_core::limit::RUNNING_PER_HOST_MAX,
    };
    Engine::new(options, Arc::new(Nothing)).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn compile(bomb: Bytes, address_space_bytes: u64, cpu_seconds: u64) -> InstallError {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), &[address_space_bytes, cpu_seconds]);
    let before = resident_bytes();
    let error = block_on(engine.compile(bomb, COMPONENT_BYTES_MAX, Profiles::STRICT)).unwrap_err();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown <= BOMB_GROWTH_BYTES_MAX, "grown by {grown} bytes");
    error
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_compile_bomb_is_refused_and_this_process_stays_small() {
    let _alone = ALONE.lock();
    // 27 KB: 50 seconds and more than 1.5 GiB where nobody limits it.
    let large = bomb(5_000, 1_500);
    assert!(large.len() < 30_000);
    let by_time = compile(large.clone(), 1536 << 20, 1);
    assert_eq!(by_time.code, Code::CompileLimit, "{by_time}");
    assert_eq!(by_time.limit.map(|limit| limit.name).as_deref(), Some("compile_cpu_seconds"));
    let by_memory = compile(large, 160 << 20, 60);
    assert_eq!(by_memory.code, Code::CompileLimit, "{by_memory}");
    assert_eq!(by_memory.limit.map(|limit| limit.name).as_deref(), Some("compile_memory_bytes"));
    // The same shape in small is only refused for what it is: no plugin.
    let small = compile(bomb(10, 10), 1536 << 20, 60);
    assert_eq!(small.code, Code::ComponentInvalid, "{small}");
}

#[test]
fn memory_of_greedy_guests_is_given_back() {
    let _alone = ALONE.lock();
    // Fills 60 MiB of memory and 90,000 elements of a table, then waits for its neighbours to have as much.
    let greedy = guest::guest(
        "(drop (memory.grow (i32.const 960)))
         (memory.fill (i32.const 65536) (i32.const 1) (i32.const 62000000))
         (drop (table.grow (ref.func $run) (i32.const 90000)))
         (call $block (call $subscribe (i64.const 300000000))) (call $done)",
    );
    let greedy = greedy.with(guest::MONOTONIC_CLOCK).module("(table 1 funcref) (elem declare func $run)");
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), &[]);
    let attempts = |digest| {
        let runs = (0..GUESTS).map(move |_| attempt(digest));
        let runs = runs.map(|attempt| engine.run(attempt, Arc::new(Nothing), Stop::default()));
        futures::future::join_all(runs)
    };
    block_on(async {
        let digest = engine
            .compile(greedy.bytes().into(), COMPONENT_BYTES_MAX, Profiles::STRICT)
            .await
            .unwrap()
            .digest;
        let before = resident_bytes();
        for report in attempts(digest).await {
            assert!(matches!(report.outcome, Outcome::Completed(_)), "{:?}", report.outcome);
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown <= GUEST_GROWTH_BYTES_MAX, "{grown} bytes are still held");
    });
}
