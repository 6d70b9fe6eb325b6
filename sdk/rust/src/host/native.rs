//! The stand-in where there is no host: enough for `cargo test` to run a plugin's logic.
//!
//! Lines go to standard error. Progress and output are held to the host's rules and forgotten, what is measured is forgotten. Nothing is invented: what only
//! a host can know is `Unavailable`.

use std::fmt::Display;

use crate::log::Level;
use crate::{agents, attempt, batch, cache, config, history, metrics, output, progress, tasks};

/// The host's limit on a progress message.
const PROGRESS_MESSAGE_BYTES_MAX: usize = 1024;
/// The host's limit on a piece of output.
const OUTPUT_PIECE_BYTES_MAX: usize = 4096;

#[expect(clippy::print_stderr, reason = "where else would a test look for its lines")]
pub(crate) fn log(level: Level, message: &str, fields: &[(&str, &dyn Display)]) {
    eprintln!("{}", line(level, message, fields));
}

pub(crate) fn report(fraction: f64, message: &str) -> Result<(), progress::Error> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(progress::Error::FractionOutOfRange);
    }
    if message.len() > PROGRESS_MESSAGE_BYTES_MAX {
        return Err(progress::Error::MessageTooLong(PROGRESS_MESSAGE_BYTES_MAX as u64));
    }
    Ok(())
}

/// How many pieces an attempt has given out only the host knows.
pub(crate) fn emit(piece: &[u8]) -> Result<(), output::Error> {
    if piece.len() > OUTPUT_PIECE_BYTES_MAX {
        return Err(output::Error::PieceTooLarge(OUTPUT_PIECE_BYTES_MAX as u64));
    }
    Ok(())
}

/// Only the host knows the manifest; that a value is finite is all there is to see here.
pub(crate) fn add_metric(_name: &str, _labels: &[(&str, &str)], _more: u64) -> Result<(), metrics::Error> {
    Ok(())
}

pub(crate) fn observe_metric(
    _name: &str,
    _labels: &[(&str, &str)],
    value: f64,
) -> Result<(), metrics::Error> {
    if value.is_finite() { Ok(()) } else { Err(metrics::Error::InvalidValue) }
}

pub(crate) fn facts() -> Result<attempt::Facts, attempt::Error> {
    Err(attempt::Error::Unavailable)
}

pub(crate) fn remaining_ms() -> Result<u64, attempt::Error> {
    Err(attempt::Error::Unavailable)
}

pub(crate) fn config(_key: &str) -> Result<Option<String>, config::Error> {
    Err(config::Error::Unavailable)
}

pub(crate) fn config_all() -> Result<Vec<(String, String)>, config::Error> {
    Err(config::Error::Unavailable)
}

pub(crate) fn submit(_child: tasks::Child) -> Result<String, tasks::Error> {
    Err(tasks::Error::Unavailable)
}

pub(crate) fn submit_many(_children: Vec<tasks::Child>) -> Result<Vec<String>, tasks::Error> {
    Err(tasks::Error::Unavailable)
}

pub(crate) fn submit_with(_children: Vec<tasks::Child>) -> Result<Vec<String>, tasks::Error> {
    Err(tasks::Error::Unavailable)
}

pub(crate) fn submit_joined_with(
    _children: Vec<tasks::Child>,
    _grouping: tasks::Grouping,
    _then: tasks::Child,
) -> Result<Vec<String>, tasks::Error> {
    Err(tasks::Error::Unavailable)
}

pub(crate) fn submit_joined(
    _children: Vec<tasks::Child>,
    _grouping: tasks::Grouping,
    _then: tasks::Child,
) -> Result<Vec<String>, tasks::Error> {
    Err(tasks::Error::Unavailable)
}

pub(crate) fn add_items(_processor: &str, _items: Vec<batch::NewItem>) -> Result<Vec<String>, batch::Error> {
    Err(batch::Error::Unavailable)
}

pub(crate) fn load_agents(_ids: &[&str]) -> Result<Vec<Option<agents::Agent>>, agents::Error> {
    Err(agents::Error::Unavailable)
}

pub(crate) fn list_agents(_filter: &agents::Filter) -> Result<agents::Page, agents::Error> {
    Err(agents::Error::Unavailable)
}

pub(crate) fn set_statuses(_changes: &[agents::Change]) -> Result<(), agents::Error> {
    Err(agents::Error::Unavailable)
}

pub(crate) fn user_tasks(
    _user: &str,
    _before: Option<&str>,
    _limit: Option<u32>,
) -> Result<history::Page, history::Error> {
    Err(history::Error::Unavailable)
}

pub(crate) fn summarize(_from_ms: u64, _to_ms: u64) -> Result<Vec<history::Statistics>, history::Error> {
    Err(history::Error::Unavailable)
}

/// Nobody has the right to compute where there is no cache.
#[derive(Debug)]
pub(crate) enum Fill {}

pub(crate) fn cache_get(_key: &str) -> Result<Option<Vec<u8>>, cache::Error> {
    Err(cache::Error::Unavailable)
}

pub(crate) fn cache_get_many(_keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, cache::Error> {
    Err(cache::Error::Unavailable)
}

pub(crate) fn cache_set(_key: &str, _value: &[u8], _keeping: &cache::Keeping) -> Result<(), cache::Error> {
    Err(cache::Error::Unavailable)
}

pub(crate) fn cache_remove(_key: &str) -> Result<(), cache::Error> {
    Err(cache::Error::Unavailable)
}

pub(crate) fn cache_remove_tag(_tag: &str) -> Result<(), cache::Error> {
    Err(cache::Error::Unavailable)
}

pub(crate) fn cache_get_or_fill(_key: &str) -> Result<cache::Filling, cache::Error> {
    Err(cache::Error::Unavailable)
}

pub(crate) fn cache_complete(
    fill: &Fill,
    _value: &[u8],
    _keeping: &cache::Keeping,
) -> Result<(), cache::Error> {
    match *fill {}
}

fn line(level: Level, message: &str, fields: &[(&str, &dyn Display)]) -> String {
    let mut line = format!("{level} {message}");
    for (name, value) in fields {
        line.push_str(&format!(" {name}={value}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_level_message_and_fields() {
        let fields: &[(&str, &dyn Display)] = &[("films", &2), ("title", &"Léon")];
        assert_eq!(line(Level::Warn, "slow", fields), "warn slow films=2 title=Léon");
    }

    #[test]
    fn progress_and_output_are_held_to_the_hosts_rules() {
        assert_eq!(report(0.0, ""), Ok(()));
        assert_eq!(report(1.0, &"a".repeat(1024)), Ok(()));
        for fraction in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(report(fraction, ""), Err(progress::Error::FractionOutOfRange), "{fraction}");
        }
        assert_eq!(report(0.5, &"a".repeat(1025)), Err(progress::Error::MessageTooLong(1024)));
        assert_eq!(emit(&[0; 4096]), Ok(()));
        assert_eq!(emit(&[0; 4097]), Err(output::Error::PieceTooLarge(4096)));
    }
}
