//! `keiko cache`.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::client::{self, Answer, Call, Query};
use super::exit::Failure;
use super::print;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show what the tenant has on each level
    Stats {
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show what each level has under a key, and why it is not served
    Get {
        #[command(flatten)]
        entry: EntryArguments,
        /// Write the value to standard output instead, or fail when there is none
        #[arg(long, conflicts_with = "json")]
        value: bool,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Remove what is under a key
    Remove {
        #[command(flatten)]
        entry: EntryArguments,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Remove everything of a part that has a tag
    RemoveTag {
        /// The part of the cache: see `keiko cache get --help`
        namespace: String,
        /// The tag
        tag: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Remove everything of the tenant
    Clear {
        #[command(flatten)]
        host: client::HostArguments,
    },
}

/// Where an entry is.
#[derive(Debug, clap::Args)]
pub(super) struct EntryArguments {
    /// The part of the cache: p.PLUGIN of a plugin alone, s.SHARED of several, r.PLUGIN for results of tasks
    namespace: String,
    /// The key
    key: String,
}

#[derive(Deserialize)]
struct Usage {
    levels: Vec<Level>,
}

#[derive(Deserialize)]
struct Level {
    level: String,
    resting: bool,
    entries: Option<u64>,
    bytes: Option<u64>,
}

#[derive(Deserialize)]
struct Explained {
    found: bool,
    value_base64: Option<String>,
    levels: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    level: String,
    state: String,
    bytes: Option<u64>,
    fresh_until: Option<String>,
    kept_until: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    component: Option<String>,
}

pub(super) fn cache(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Stats { host } => {
            let answer = host.client()?.send(Call::get("/v1/cache"))?;
            shown(&host, &answer, stats)?;
        }
        Command::Get { entry, value, host } => {
            let answer = host.client()?.send(Call::get(&entry.path()))?;
            if value {
                return write_value(answer.read()?);
            }
            shown(&host, &answer, explain)?;
        }
        Command::Remove { entry, host } => drop(host.client()?.send(Call::delete(&entry.path()))?),
        Command::RemoveTag { namespace, tag, host } => {
            let mut query = Query::default();
            query.add("namespace", Some(&namespace));
            query.add("tag", Some(&tag));
            drop(host.client()?.send(Call::delete(&query.of("/v1/cache/tag")))?);
        }
        Command::Clear { host } => drop(host.client()?.send(Call::delete("/v1/cache"))?),
    }
    Ok(ExitCode::SUCCESS)
}

impl EntryArguments {
    fn path(&self) -> String {
        let mut query = Query::default();
        query.add("namespace", Some(&self.namespace));
        query.add("key", Some(&self.key));
        query.of("/v1/cache/entry")
    }
}

fn shown<'a, T: Deserialize<'a>>(
    host: &client::HostArguments,
    answer: &'a Answer,
    show: fn(T),
) -> Result<(), Failure> {
    if host.json {
        answer.print();
    } else {
        show(answer.read()?);
    }
    Ok(())
}

/// The value as it is.
fn write_value(explained: Explained) -> Result<ExitCode, Failure> {
    let Some(value) = explained.value_base64 else {
        return Err(Failure::Refused("there is no value; without --value, each level tells why".to_owned()));
    };
    let bytes = STANDARD.decode(value);
    let bytes = bytes.map_err(|error| Failure::Host(format!("the host's answer is no base64: {error}")))?;
    print::result(&bytes);
    Ok(ExitCode::SUCCESS)
}

fn stats(usage: Usage) {
    let or_none = |shown: Option<String>| shown.unwrap_or_else(|| "-".to_owned());
    let row = |level: Level| {
        let state = if level.resting { "rests" } else { "works" };
        let (entries, bytes) = (level.entries.map(print::thousands), level.bytes.map(print::size));
        vec![level.level, state.to_owned(), or_none(entries), or_none(bytes)]
    };
    print::table(&["level", "state", "entries", "size"], usage.levels.into_iter().map(row).collect());
}

fn explain(explained: Explained) {
    let or_none = |shown: Option<String>| shown.unwrap_or_else(|| "-".to_owned());
    let row = |step: Step| {
        let bytes = step.bytes.map(print::size);
        let times = [step.fresh_until, step.kept_until].map(or_none);
        let mut cells = vec![step.level, step.state, or_none(bytes)];
        cells.extend(times);
        cells.push(step.tags.join(" "));
        cells.push(or_none(step.component));
        cells
    };
    let head = ["level", "state", "size", "fresh until", "kept until", "tags", "component"];
    print::table(&head, explained.levels.into_iter().map(row).collect());
    print::note(if explained.found {
        "a plugin that asks gets it"
    } else {
        "a plugin that asks gets nothing"
    });
}
