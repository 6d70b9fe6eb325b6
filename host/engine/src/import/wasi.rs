//! WASI 0.2, bounded.
//!
//! Each interface is linked by itself with a getter of its own, because generated code calls that getter exactly once
//! for every host call, drops of resources included: the getter is where such a call passes the gate. It cannot
//! refuse, so a call over the budget ends the run at the next epoch tick or when the run ends.
//!
//! Random bytes are ours: insecure ones derive from component, kind and input, and so do those that stand for secure
//! ones when a kind's manifest says `random = "seeded"`; the length of one answer is bounded with an error that names
//! the limit. Everything else is wasmtime's, over a context without arguments, environment, folders and network.

use keiko_core::limit::RANDOM_BYTES_MAX;
use keiko_core::manifest::Random;
use keiko_core::outcome::Taint;
use wasmtime::component::{HasData, HasSelf, Linker, ResourceTable};
use wasmtime::{StoreContextMut, format_err};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::cli::{WasiCli, WasiCliCtxView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksCtxView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random, sockets};
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtxView};
use wasmtime_wasi_io::bindings::wasi::io;

use crate::adapt;
use crate::exceeded::Exceeded;
use crate::gate::Call;
use crate::state::State;

/// The version of WASI that is linked; guests of any 0.2 find it.
pub(crate) const VERSION: &str = "0.2.12";

/// Calls of WASI interfaces that tell nothing of the outside.
const IO: Call = Call { name: "wasi:io", capability: None, taint: Taint::NONE };
const CLI: Call = Call { name: "wasi:cli", ..IO };
const EXIT: Call = Call { name: adapt::EXIT, ..IO };
const FILESYSTEM: Call = Call { name: "wasi:filesystem", ..IO };
const SOCKETS: Call = Call { name: "wasi:sockets", ..IO };
const INSECURE: Call = Call { name: "wasi:random/insecure", ..IO };
/// Calls that do.
const WALL_CLOCK: Call = Call { name: "wasi:clocks/wall-clock", taint: Taint::WALL_CLOCK, ..IO };
const MONOTONIC_CLOCK: Call =
    Call { name: "wasi:clocks/monotonic-clock", taint: Taint::MONOTONIC_CLOCK, ..IO };
const RANDOM: Call = Call { name: "wasi:random/random", taint: Taint::RANDOM, ..IO };
/// The same of a kind that wants them seeded.
const SEEDED: Call = Call { name: "wasi:random/random", taint: Taint::SEEDED, ..IO };

/// Links all of it.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    add_io(linker)?;
    add_clocks(linker)?;
    add_random(linker)?;
    add_cli(linker)?;
    add_filesystem(linker)?;
    add_sockets(linker)
}

/// Links what ends a program with any status, as [`adapt`] needs it.
pub(crate) fn add_exit(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut exit = linker.instance(&format!("{}@{}", adapt::EXIT, adapt::EXIT_VERSION))?;
    exit.func_wrap(adapt::EXIT_WITH, |mut store: StoreContextMut<'_, State>, (status,): (u32,)| {
        store.data_mut().gate.note(&EXIT);
        Err::<(), _>(format_err!(I32Exit(status as i32)))
    })
}

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

fn add_io(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn table(state: &mut State) -> &mut ResourceTable {
        state.gate.note(&IO);
        &mut state.table
    }
    io::error::add_to_linker::<_, Table>(linker, table)?;
    io::poll::add_to_linker::<_, Table>(linker, table)?;
    io::streams::add_to_linker::<_, Table>(linker, table)
}

fn add_clocks(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn view<'a>(state: &'a mut State, call: &Call) -> WasiClocksCtxView<'a> {
        state.gate.note(call);
        let (wasi, table) = state.wasi();
        WasiClocksCtxView { ctx: wasi.clocks(), table }
    }
    clocks::wall_clock::add_to_linker::<_, WasiClocks>(linker, |state| view(state, &WALL_CLOCK))?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, |state| view(state, &MONOTONIC_CLOCK))
}

fn add_random(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    random::random::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    random::insecure::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    random::insecure_seed::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

fn add_cli(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn view(state: &mut State) -> WasiCliCtxView<'_> {
        state.gate.note(&CLI);
        let (wasi, table) = state.wasi();
        WasiCliCtxView { ctx: wasi.cli(), table }
    }
    cli::environment::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stdout::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stderr::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, view)
}

fn add_filesystem(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn view(state: &mut State) -> WasiFilesystemCtxView<'_> {
        state.gate.note(&FILESYSTEM);
        let (wasi, table) = state.wasi();
        WasiFilesystemCtxView { ctx: wasi.filesystem(), table }
    }
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, view)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, view)
}

fn add_sockets(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    fn view(state: &mut State) -> WasiSocketsCtxView<'_> {
        state.gate.note(&SOCKETS);
        let (wasi, table) = state.wasi();
        WasiSocketsCtxView { ctx: wasi.sockets(), table }
    }
    let stable = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<_, WasiSockets>(linker, &stable, view)?;
    sockets::instance_network::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::ip_name_lookup::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::tcp::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::tcp_create_socket::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::udp::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::udp_create_socket::add_to_linker::<_, WasiSockets>(linker, view)
}

/// A buffer for an answer of `len` random bytes, once the call has passed the gate.
fn buffer(state: &mut State, call: &Call, len: u64) -> wasmtime::Result<Vec<u8>> {
    if len > RANDOM_BYTES_MAX {
        state.gate.pass(call, 0)?;
        return Err(Exceeded::RandomBytes { asked: len }.into());
    }
    state.gate.pass(call, len as usize)?;
    Ok(vec![0; len as usize])
}

/// What a call for secure random bytes is to the gate.
fn random_call(state: &State) -> &'static Call {
    match state.random {
        Random::Secure => &RANDOM,
        Random::Seeded => &SEEDED,
    }
}

/// Secure bytes, or what stands for them.
fn secure(state: &mut State, bytes: &mut [u8]) -> wasmtime::Result<()> {
    match state.random {
        Random::Secure => {
            getrandom::fill(bytes).map_err(|error| format_err!("the system has no random bytes: {error}"))
        }
        Random::Seeded => {
            state.insecure().fill(bytes);
            Ok(())
        }
    }
}

impl random::random::Host for State {
    fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        let call = random_call(self);
        let mut bytes = buffer(self, call, len)?;
        secure(self, &mut bytes)?;
        Ok(bytes)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        let call = random_call(self);
        self.gate.pass(call, 8)?;
        let mut bytes = [0; 8];
        secure(self, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl random::insecure::Host for State {
    fn get_insecure_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        let mut bytes = buffer(self, &INSECURE, len)?;
        self.insecure().fill(&mut bytes);
        Ok(bytes)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.gate.pass(&INSECURE, 8)?;
        Ok(next_u64(self))
    }
}

impl random::insecure_seed::Host for State {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        self.gate.pass(&INSECURE, 16)?;
        Ok((next_u64(self), next_u64(self)))
    }
}

fn next_u64(state: &mut State) -> u64 {
    let mut bytes = [0; 8];
    state.insecure().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
