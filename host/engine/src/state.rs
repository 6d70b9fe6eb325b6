//! What lives for one attempt inside its store: what it may do, what it spent, what it asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keiko_core::effect::Effects;
use keiko_core::id::Digest;
use keiko_core::limit::RESOURCES_MAX;
use keiko_core::log::Source;
use keiko_core::manifest::Command;
use keiko_core::name::KindName;
use keiko_core::port::{Attempt, AttemptFacts, HostPort};
use keiko_core::stop::Stop;
use parking_lot::Mutex;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder};

use crate::console::{Console, Printer};
use crate::exceeded::Exceeded;
use crate::gate::Gate;
use crate::limiter::Limiter;

/// The data of an attempt's store.
pub(crate) struct State {
    pub(crate) gate: Gate,
    pub(crate) limiter: Limiter,
    pub(crate) table: ResourceTable,
    pub(crate) console: Arc<Mutex<Console>>,
    pub(crate) effects: Effects,
    pub(crate) port: Arc<dyn HostPort>,
    pub(crate) facts: AttemptFacts,
    pub(crate) settings: Arc<BTreeMap<String, String>>,
    /// Whether the guest has the right to compute a cached value.
    pub(crate) holds_fill: bool,
    pub(crate) stop: Stop,
    pub(crate) deadline: Instant,
    started: Instant,
    digest: Digest,
    kind: KindName,
    input: Bytes,
    command: Option<Box<Command>>,
    /// Made at the first call that needs it: most attempts make none.
    wasi: Option<Box<WasiCtx>>,
    /// The stream of insecure random bytes, made at the first call that needs it.
    insecure: Option<Box<blake3::OutputReader>>,
}

impl State {
    pub(crate) fn new(attempt: Attempt, port: Arc<dyn HostPort>, stop: Stop) -> State {
        let started = Instant::now();
        let deadline = started + Duration::from_millis(attempt.budget.wall_ms.value);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        State {
            gate: Gate::new(attempt.grants, attempt.budget),
            limiter: Limiter::new(attempt.budget.memory_bytes.value),
            table,
            console: Arc::default(),
            effects: Effects::default(),
            port,
            facts: attempt.facts,
            settings: attempt.settings,
            holds_fill: false,
            stop,
            deadline,
            started,
            digest: attempt.digest,
            kind: attempt.kind,
            input: attempt.input.bytes,
            command: attempt.command,
            wasi: None,
            insecure: None,
        }
    }

    /// Makes the attempt that of a program: its input is on stdin, what it prints is its result.
    pub(crate) fn be_program(&mut self) {
        self.console.lock().capture();
        self.command.get_or_insert_with(|| Box::new(Command::named(self.kind.as_str())));
    }

    /// The media type of what a program prints, when it ends with a status that completes its task.
    pub(crate) fn completes(&self, status: i32) -> Option<String> {
        let command = self.command.as_ref()?;
        let completes = status == 0 || command.completes_with.iter().any(|known| i32::from(*known) == status);
        completes.then(|| command.content_type.clone())
    }

    /// When the attempt began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Whether the attempt may go on, its guest having used `guest_fuel`.
    pub(crate) fn check(&self, guest_fuel: u64) -> Result<(), Exceeded> {
        if let Some(reason) = self.stop.reason() {
            return Err(Exceeded::Stopped(reason));
        }
        if Instant::now() >= self.deadline {
            return Err(Exceeded::Deadline);
        }
        self.gate.check(guest_fuel.saturating_add(self.console.lock().printed_bytes() as u64))
    }

    /// The WASI context of the attempt, with the table that goes with it.
    pub(crate) fn wasi(&mut self) -> (&mut WasiCtx, &mut ResourceTable) {
        let wasi = self.wasi.get_or_insert_with(|| {
            let print = |source| Printer { console: self.console.clone(), port: self.port.clone(), source };
            let mut builder =
                context(print(Source::Stdout), print(Source::Stderr), self.port.clone(), self.started);
            if let Some(command) = self.command.as_ref().filter(|_| self.console.lock().captures()) {
                let environment: Vec<(&String, &String)> = command.environment.iter().collect();
                builder
                    .args(&command.arguments)
                    .envs(&environment)
                    .stdin(MemoryInputPipe::new(self.input.clone()));
            }
            Box::new(builder.build())
        });
        (wasi, &mut self.table)
    }

    /// Bytes that are equal for equal component, kind and input: what a language seeds its hash maps with must not
    /// make equal runs differ.
    pub(crate) fn insecure(&mut self) -> &mut blake3::OutputReader {
        self.insecure.get_or_insert_with(|| {
            let mut hasher = blake3::Hasher::new_derive_key("keiko 2026 insecure random bytes of an attempt");
            hasher.update(&self.digest.0);
            let kind = self.kind.as_str().as_bytes();
            hasher.update(&(kind.len() as u64).to_le_bytes());
            hasher.update(kind);
            hasher.update(&self.input);
            Box::new(hasher.finalize_xof())
        })
    }
}

/// No arguments, no environment, no folder, no network, an empty standard input.
fn context(stdout: Printer, stderr: Printer, port: Arc<dyn HostPort>, started: Instant) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder
        .stdout(stdout)
        .stderr(stderr)
        .wall_clock(WallClock(port))
        .monotonic_clock(MonotonicClock(started))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    builder
}

/// The runtime's clock, so that tests can move it.
struct WallClock(Arc<dyn HostPort>);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.now_ms()).unwrap_or(0))
    }
}

/// Time since the attempt began, so that it says nothing of the host's own uptime.
struct MonotonicClock(Instant);

impl HostMonotonicClock for MonotonicClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
