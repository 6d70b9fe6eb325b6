//! Makes clean, typed facts of one record of a film list, and tells what was wrong with it.
//!
//! The list is `movies.json` of vega-datasets, with films up to 2011: 3,201 records with missing values, numbers for
//! titles, zeros for what nobody knew, and dates in the wrong century. The kind `normalise` takes one record as it
//! stands there. It has no clock and asks nobody, so equal records give equal results, for ever.
//!
//! A field of the result is null exactly when `problems` says why. An input that cannot be a film (not an object, no
//! usable title) is **invalid input**, not a permanent failure of the plugin: whoever submitted it can mend it.
//! README.md has the fields, the problems, and what the whole list gives.

mod date;
mod film;
mod reader;
mod text;

use keiko_sdk::{Failure, log};
use serde_json::Value;

pub use crate::film::{Film, Problem, ProblemCode};

keiko_sdk::plugin! {
    manifest: "plugin.toml",
    kinds: { "normalise" => normalise },
}

/// The facts of one film record.
pub fn normalise(record: Value) -> Result<Film, Failure> {
    let film = Film::from_record(&record)?;
    log::debug("film normalised", &[("title", &film.title), ("problems", &film.problems.len())]);
    Ok(film)
}
