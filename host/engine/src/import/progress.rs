//! `keiko:progress`.

use keiko_core::limit::PROGRESS_MESSAGE_BYTES_MAX;
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;

use crate::bindings::keiko::progress::progress::{Error, Host};
use crate::gate::{Call, Verdict};
use crate::state::State;

/// Answers nothing of the outside, so it marks nothing.
const REPORT: Call = Call {
    name: "keiko:progress/progress.report",
    capability: Some(Capability::Progress),
    taint: Taint::NONE,
};

impl Host for State {
    fn report(&mut self, fraction: f64, message: String) -> wasmtime::Result<Result<(), Error>> {
        if self.gate.pass(&REPORT, message.len())? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        if !(0.0..=1.0).contains(&fraction) {
            return Ok(Err(Error::FractionOutOfRange));
        }
        if message.len() > PROGRESS_MESSAGE_BYTES_MAX {
            return Ok(Err(Error::MessageTooLong(PROGRESS_MESSAGE_BYTES_MAX as u64)));
        }
        self.port.progress(fraction, message);
        Ok(Ok(()))
    }
}
