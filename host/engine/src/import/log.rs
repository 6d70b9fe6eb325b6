//! `keiko:log`.

use keiko_core::log::{Level, Line, Source};
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;

use crate::bindings::keiko::log::log;
use crate::gate::{Call, Verdict};
use crate::state::State;

const WRITE: Call =
    Call { name: "keiko:log/log.write", capability: Some(Capability::Log), taint: Taint::NONE };

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String, fields: Vec<log::Field>) -> wasmtime::Result<()> {
        let bytes = fields.iter().map(|field| field.name.len() + field.value.len()).sum::<usize>();
        if self.gate.pass(&WRITE, message.len() + bytes)? == Verdict::Granted {
            let at_ms = self.port.now_ms();
            let fields = fields.into_iter().map(|field| (field.name, field.value)).collect();
            let line = Line { at_ms, level: level.into(), source: Source::Log, message, fields };
            self.console.lock().write(line);
        }
        Ok(())
    }
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Level {
        match level {
            log::Level::Trace => Level::Trace,
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        }
    }
}
