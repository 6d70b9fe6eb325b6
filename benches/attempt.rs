//! A whole attempt of a guest that does nothing on one thread: instantiate, call, drop.
//!
//! Two sides take turns within one run, so that a busy machine disturbs both alike: `keiko` is [`Runner::run`]; `wasmtime`
//! is the least that anyone must do with the same engine settings and pool, a fresh store, a WASI context, fuel, an
//! epoch deadline, a limiter and a pre-linked instance. Prints one JSON object per line: p50 and p99 of each side in
//! microseconds, and their ratio.
//!
//! Then the processor time of a bare attempt where every processor runs them, as in a host that has much to do: two
//! processors that share a core take longer for the same.
//!
//! `KEIKO_BENCH_COMPONENT` names a component that exports `keiko:plugin/task` and answers the kind `noop`; without
//! it, a component from text is used.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::effect::ChildWish;
use keiko_core::limit::{COMPONENT_BYTES_MAX, SetBy};
use keiko_core::manifest::Random;
use keiko_core::outcome::Outcome;
use keiko_core::policy::{BUDGET_DEFAULT, Budget, Grants, Limit};
use keiko_core::port::{
    Attempt, AttemptFacts, Components, HostPort, ReserveError, Reserved, Runner, StoreError,
};
use keiko_core::profile::Profiles;
use keiko_core::stop::Stop;
use keiko_core::task::{Lineage, Payload};
use keiko_core::{Digest, TaskId};
use keiko_engine::{ClusterKey, Compiler, Engine, EngineOptions};
use rustix::time::{ClockId, clock_gettime};

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../host/engine/tests/engine/guest.rs"]
mod guest;

mod bare;
use bare::Bare;

/// Attempts of one side before the other has its turn.
const ROUND: usize = 200;
/// Turns of each side; the first is not counted.
const ROUNDS: usize = 101;
/// Places in each side's pool.
const RUNNING_MAX: usize = 16;
/// How long every processor runs attempts.
const BUSY: Duration = Duration::from_secs(1);
const KIND: &str = "noop";
const INPUT: &[u8] = b"null";

fn main() {
    let component: Bytes = match std::env::var_os("KEIKO_BENCH_COMPONENT") {
        Some(path) => std::fs::read(path).expect("the component can be read").into(),
        None => guest::guest("(call $done)").with(guest::LOG).bytes().into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let keiko = Keiko::new(component.clone()).await;
        let bare = Bare::new(&component, RUNNING_MAX);
        let (mut of_keiko, mut of_bare) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut keiko_round = Vec::with_capacity(ROUND);
            for _ in 0..ROUND {
                let began = Instant::now();
                keiko.attempt().await;
                keiko_round.push(began.elapsed().as_nanos() as u64);
            }
            let mut bare_round = Vec::with_capacity(ROUND);
            for _ in 0..ROUND {
                let began = Instant::now();
                bare.attempt(KIND, INPUT).await;
                bare_round.push(began.elapsed().as_nanos() as u64);
            }
            if round > 0 {
                of_keiko.append(&mut keiko_round);
                of_bare.append(&mut bare_round);
            }
        }
        report(of_keiko, of_bare);
        print("wasmtime", "cpu_us", cpu_us(&bare), "us");
    });
}

/// Processor time of a bare attempt while every processor runs them.
fn cpu_us(bare: &Bare) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(RUNNING_MAX);
    let before = spent();
    let attempts = bare.attempts(threads, BUSY, KIND, INPUT);
    (spent() - before).as_secs_f64() * 1e6 / attempts as f64
}

/// Processor time of this process so far.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(mut keiko: Vec<u64>, mut wasmtime: Vec<u64>) {
    keiko.sort_unstable();
    wasmtime.sort_unstable();
    for (figure, percent) in [("p50", 50), ("p99", 99)] {
        let at = |sorted: &[u64]| sorted[sorted.len() * percent / 100] as f64 / 1000.0;
        let (keiko, wasmtime) = (at(&keiko), at(&wasmtime));
        for (side, value, unit) in
            [("keiko", keiko, "us"), ("wasmtime", wasmtime, "us"), ("ratio", keiko / wasmtime, "ratio")]
        {
            print(side, figure, value, unit);
        }
    }
}

#[allow(clippy::print_stdout, reason = "figures are what a benchmark is for")]
fn print(side: &str, figure: &str, value: f64, unit: &str) {
    println!(
        r#"{{"bench":"attempt","side":"{side}","figure":"{figure}","value":{value:.3},"unit":"{unit}"}}"#
    );
}

/// Everything that a host does for an attempt.
struct Keiko {
    engine: Engine,
    attempt: Attempt,
    port: Arc<dyn HostPort>,
    _dir: tempfile::TempDir,
}

impl Keiko {
    async fn new(component: Bytes) -> Keiko {
        let dir = tempfile::tempdir().expect("a folder");
        let options = EngineOptions {
            artifacts_dir: dir.path().to_owned(),
            cluster_key: ClusterKey::from_hex(&"0".repeat(64)).expect("a key"),
            compiler: Compiler {
                program: PathBuf::from(env!("CARGO_BIN_EXE_keiko-compile")),
                arguments: Vec::new(),
            },
            running_max: RUNNING_MAX,
        };
        let engine = Engine::new(options, Arc::new(Nothing)).expect("an engine");
        let compiled =
            engine.compile(component, COMPONENT_BYTES_MAX, Profiles::STRICT).await.expect("a task plugin");
        Keiko { engine, attempt: attempt(compiled.digest), port: Arc::new(Nothing), _dir: dir }
    }

    async fn attempt(&self) {
        let report = self.engine.run(self.attempt.clone(), self.port.clone(), Stop::default()).await;
        assert!(matches!(report.outcome, Outcome::Completed(_)), "{:?}", report.outcome);
    }
}

fn attempt(digest: Digest) -> Attempt {
    let limit = |value| Limit { value, set_by: SetBy::Host };
    Attempt {
        facts: AttemptFacts {
            tenant: "bench".parse().expect("a name"),
            task: TaskId(1),
            lineage: Lineage::root(TaskId(1)),
            number: 1,
            attempts_max: 1,
            trace: None,
        },
        digest,
        kind: KIND.parse().expect("a name"),
        input: Payload::json(INPUT),
        budget: Budget {
            fuel: limit(BUDGET_DEFAULT.fuel),
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

/// A runtime and a store that are not asked.
struct Nothing;

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

#[async_trait]
impl Components for Nothing {
    async fn put(&self, _: Digest, _: Bytes, _: i64) -> Result<(), StoreError> {
        Ok(())
    }

    async fn get(&self, _: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }
}
