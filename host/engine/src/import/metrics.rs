//! `keiko:metrics`.

use keiko_core::metric::{Measured, MetricRefused};
use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;

use crate::bindings::keiko::metrics::metrics::{Error, Host, Label};
use crate::gate::{Call, Verdict};
use crate::state::State;

/// What is taken answers nothing of the outside, so it marks nothing; a refusal does.
const ADD: Call =
    Call { name: "keiko:metrics/metrics.add", capability: Some(Capability::Metrics), taint: Taint::NONE };
const OBSERVE: Call = Call { name: "keiko:metrics/metrics.observe", ..ADD };

impl Host for State {
    fn add(&mut self, name: String, labels: Vec<Label>, more: u64) -> wasmtime::Result<Result<(), Error>> {
        self.measure(&ADD, &name, labels, Measured::More(more))
    }

    fn observe(
        &mut self,
        name: String,
        labels: Vec<Label>,
        value: f64,
    ) -> wasmtime::Result<Result<(), Error>> {
        self.measure(&OBSERVE, &name, labels, Measured::Value(value))
    }
}

impl State {
    fn measure(
        &mut self,
        call: &Call,
        name: &str,
        labels: Vec<Label>,
        measured: Measured,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bytes = labels.iter().map(|label| label.name.len() + label.value.len()).sum::<usize>();
        if self.gate.pass(call, name.len() + bytes)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let labels: Vec<(String, String)> =
            labels.into_iter().map(|label| (label.name, label.value)).collect();
        Ok(self.port.measure(name, &labels, measured).map_err(|refused| {
            self.gate.taint_by(Taint::METRICS);
            refused.into()
        }))
    }
}

impl From<MetricRefused> for Error {
    fn from(refused: MetricRefused) -> Error {
        match refused {
            MetricRefused::NotFound(_) => Error::NotFound(refused.to_string()),
            MetricRefused::Labels(text) => Error::InvalidLabels(text),
            MetricRefused::Value => Error::InvalidValue,
            MetricRefused::Unavailable => Error::Unavailable,
        }
    }
}
