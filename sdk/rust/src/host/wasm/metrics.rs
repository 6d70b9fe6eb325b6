//! Metrics in a component.

use crate::bindings::keiko::metrics::metrics;
use crate::metrics::Error;

pub(crate) fn add_metric(name: &str, labels: &[(&str, &str)], more: u64) -> Result<(), Error> {
    Ok(metrics::add(name, &given(labels), more)?)
}

pub(crate) fn observe_metric(name: &str, labels: &[(&str, &str)], value: f64) -> Result<(), Error> {
    Ok(metrics::observe(name, &given(labels), value)?)
}

fn given(labels: &[(&str, &str)]) -> Vec<metrics::Label> {
    let label =
        |(name, value): &(&str, &str)| metrics::Label { name: (*name).into(), value: (*value).into() };
    labels.iter().map(label).collect()
}

impl From<metrics::Error> for Error {
    fn from(error: metrics::Error) -> Self {
        match error {
            metrics::Error::NotFound(text) => Self::NotFound(text),
            metrics::Error::InvalidLabels(text) => Self::InvalidLabels(text),
            metrics::Error::InvalidValue => Self::InvalidValue,
            metrics::Error::Denied => Self::Denied,
            metrics::Error::Unavailable => Self::Unavailable,
            metrics::Error::Other(text) => Self::Other(text),
        }
    }
}
