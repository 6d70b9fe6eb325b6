//! The epoch's own thread: every [`EPOCH_TICK_MS`] each running guest looks at its deadline and lets its neighbours
//! on the same thread run. It holds no engine alive and ends with the last one.

use std::io;
use std::time::Duration;

use keiko_core::limit::EPOCH_TICK_MS;
use wasmtime::Engine;

/// Ticks between two sweeps: a second.
const SWEEP_TICKS: u64 = 1_000 / EPOCH_TICK_MS;

/// Starts the ticking of an engine, and sweeps its kept instances every second.
#[allow(
    clippy::disallowed_methods,
    reason = "the crate's named place for a thread that does nothing but sleep"
)]
pub(crate) fn start(engine: &Engine, sweep: impl Fn() + Send + 'static) -> io::Result<()> {
    let engine = engine.weak();
    let tick = move || {
        let mut ticks = 0_u64;
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            ticks += 1;
            if ticks.is_multiple_of(SWEEP_TICKS) {
                sweep();
            }
            std::thread::sleep(Duration::from_millis(EPOCH_TICK_MS));
        }
    };
    std::thread::Builder::new().name("keiko-epoch".to_owned()).spawn(tick).map(drop)
}
