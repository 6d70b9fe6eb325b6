//! What lives for one attempt inside its store: what it may do, what it spent, what it asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keiko_core::effect::Effects;
use keiko_core::id::Digest;
use keiko_core::limit::RESOURCES_MAX;
use keiko_core::log::Source;
use keiko_core::manifest::{Command, Random};
use keiko_core::name::KindName;
use keiko_core::outcome::Taint;
use keiko_core::output::Given;
use keiko_core::port::{Attempt, AttemptFacts, HostPort};
use keiko_core::stop::Stop;
use parking_lot::Mutex;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder};

use crate::console::{Clock, Console, Printer};
use crate::exceeded::Exceeded;
use crate::gate::Gate;
use crate::install::Nobody;
use crate::limiter::Limiter;

/// The data of an attempt's store.
pub(crate) struct State {
    pub(crate) gate: Gate,
    pub(crate) limiter: Limiter,
    pub(crate) table: ResourceTable,
    pub(crate) console: Arc<Mutex<Console>>,
    pub(crate) effects: Effects,
    /// What the guest has given out.
    pub(crate) given: Given,
    pub(crate) port: Arc<dyn HostPort>,
    pub(crate) facts: AttemptFacts,
    pub(crate) settings: Arc<BTreeMap<String, String>>,
    /// Whether the guest has the right to compute a cached value.
    pub(crate) holds_fill: bool,
    pub(crate) stop: Stop,
    pub(crate) deadline: Instant,
    /// What the guest is given for secure random numbers.
    pub(crate) random: Random,
    started: Instant,
    digest: Digest,
    kind: KindName,
    input: Bytes,
    command: Option<Box<Command>>,
    /// Made at the first call that needs it: most attempts make none.
    wasi: Option<Box<WasiCtx>>,
    /// What the context's streams and clocks ask for the time, once there is one.
    clock: Option<Arc<Clock>>,
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
            given: Given::default(),
            port,
            facts: attempt.facts,
            settings: attempt.settings,
            holds_fill: false,
            stop,
            deadline,
            random: attempt.random,
            started,
            digest: attempt.digest,
            kind: attempt.kind,
            input: attempt.input.bytes,
            command: attempt.command,
            wasi: None,
            clock: None,
            insecure: None,
        }
    }

    /// Lets go of an attempt that has ended: its port, and whatever it left behind.
    pub(crate) fn rest(&mut self) {
        let nobody: Arc<dyn HostPort> = Arc::new(Nobody);
        if let Some(clock) = &self.clock {
            clock.set(nobody.clone());
        }
        self.port = nobody;
        self.effects = Effects::default();
        self.settings = Arc::default();
        self.input = Bytes::new();
        self.insecure = None;
    }

    /// Host resources that the guest holds.
    pub(crate) fn resources(&mut self) -> usize {
        self.table.iter_mut().count()
    }

    /// Takes the next attempt in. What the guest holds stays: memories, and handles of streams.
    pub(crate) fn renew(&mut self, attempt: Attempt, port: Arc<dyn HostPort>, stop: Stop) {
        self.started = Instant::now();
        self.deadline = self.started + Duration::from_millis(attempt.budget.wall_ms.value);
        self.limiter.renew(attempt.budget.memory_bytes.value);
        self.gate = Gate::new(attempt.grants, attempt.budget);
        self.gate.taint_by(Taint::REUSED);
        self.given = Given::default();
        self.console.lock().renew();
        // As much room as a fresh one has, beside what was left.
        let held = self.resources();
        self.table.set_max_capacity(RESOURCES_MAX + held);
        if let Some(clock) = &self.clock {
            clock.set(port.clone());
        }
        (self.port, self.stop) = (port, stop);
        (self.facts, self.settings, self.kind) = (attempt.facts, attempt.settings, attempt.kind);
        (self.digest, self.input, self.random) = (attempt.digest, attempt.input.bytes, attempt.random);
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
            let clock = self.clock.insert(Arc::new(Clock::new(self.port.clone())));
            let print = |source| Printer { console: self.console.clone(), clock: clock.clone(), source };
            let mut builder =
                context(print(Source::Stdout), print(Source::Stderr), clock.clone(), self.started);
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
    /// make equal runs differ. Anyone can compute them.
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
fn context(stdout: Printer, stderr: Printer, clock: Arc<Clock>, started: Instant) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder
        .stdout(stdout)
        .stderr(stderr)
        .wall_clock(WallClock(clock))
        .monotonic_clock(MonotonicClock(started))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    builder
}

/// The runtime's clock, so that tests can move it.
struct WallClock(Arc<Clock>);

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
