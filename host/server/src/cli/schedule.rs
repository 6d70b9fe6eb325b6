//! `keiko schedule`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::client::{Answer, Call, HostArguments, Query, segment};
use super::exit::Failure;
use super::{input, print};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Submit a task again and again, by a calendar
    Create(Create),
    /// List schedules by name
    List {
        /// Only those behind this name
        #[arg(long, value_name = "NAME")]
        after: Option<String>,
        /// Schedules at most
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        #[command(flatten)]
        host: HostArguments,
    },
    /// Show a schedule: when it occurs next, and what became of the last time
    Get(Named),
    /// Keep a schedule from occurring until it is resumed
    Pause(Named),
    /// Let a schedule occur again, from now on
    Resume(Named),
    /// Forget a schedule; the tasks that it has submitted stay
    Remove(Named),
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    host: HostArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keiko schedule create nightly --cron '0 2 * * *' --zone Europe/Berlin --kind normalise --input film.json
  keiko schedule create tick --cron '*/10 * * * * *' --overlap skip --task '{\"kind\":\"poll\",\"priority\":3}'")]
pub(super) struct Create {
    /// Its name
    name: String,
    /// Minute, hour, day of the month, month, day of the week; with seconds in front if there are six
    #[arg(long, value_name = "EXPRESSION", allow_hyphen_values = true)]
    cron: String,
    /// The time zone of the expression, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// What becomes of a time at which no host was there for a minute: skip, or run_once when one is [default: skip]
    #[arg(long, value_name = "RULE")]
    missed: Option<String>,
    /// What happens while the task of the time before has not ended: allow another, or skip [default: allow]
    #[arg(long, value_name = "RULE")]
    overlap: Option<String>,
    /// Begin paused
    #[arg(long)]
    paused: bool,
    /// The plugin; may be left out when only one has the kind
    #[arg(long, conflicts_with = "task")]
    plugin: Option<String>,
    /// The kind; may be left out when the plugin has only one
    #[arg(long, conflicts_with = "task")]
    kind: Option<String>,
    /// JSON, the name of a file, or - for stdin [default: null]
    #[arg(long, value_name = "FILE|-|JSON", allow_hyphen_values = true, conflicts_with = "task")]
    input: Option<String>,
    /// The whole task as the API takes it, with all that may be said of one
    #[arg(long, value_name = "FILE|-|JSON", allow_hyphen_values = true)]
    task: Option<String>,
    #[command(flatten)]
    host: HostArguments,
}

#[derive(Serialize)]
struct Body<'a> {
    name: &'a str,
    cron: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    paused: bool,
    task: &'a RawValue,
}

#[derive(Serialize)]
struct TaskBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    input: &'a RawValue,
}

#[derive(Deserialize)]
struct Schedule {
    name: String,
    cron: String,
    zone: String,
    paused_at: Option<String>,
    next_at: Option<String>,
    last: Option<Last>,
}

#[derive(Deserialize)]
struct Last {
    at: String,
    task: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    schedules: Vec<Schedule>,
    next: Option<String>,
}

pub(super) fn schedule(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Create(arguments) => create(&arguments),
        Command::List { after, limit, host } => list(after.as_deref(), limit, &host),
        Command::Get(Named { name, host }) => show(&host.client()?.send(Call::get(&path(&name, "")))?, &host),
        Command::Pause(Named { name, host }) => {
            show(&host.client()?.send(Call::post(&path(&name, "/pause")))?, &host)
        }
        Command::Resume(Named { name, host }) => {
            show(&host.client()?.send(Call::post(&path(&name, "/resume")))?, &host)
        }
        Command::Remove(Named { name, host }) => {
            host.client()?.send(Call::delete(&path(&name, "")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn path(name: &str, rest: &str) -> String {
    format!("/v1/schedules/{}{rest}", segment(name))
}

fn create(arguments: &Create) -> Result<ExitCode, Failure> {
    let raw = |text: Option<&str>, what: &str| {
        let bytes = input::read(text, None)?.bytes;
        let text =
            String::from_utf8(bytes.to_vec()).map_err(|_| Failure::Usage(format!("{what} is not text")))?;
        RawValue::from_string(text).map_err(|error| Failure::Usage(format!("{what} is not JSON: {error}")))
    };
    let task = match &arguments.task {
        Some(task) => raw(Some(task), "--task")?,
        None => {
            let input = raw(arguments.input.as_deref(), "--input")?;
            let (plugin, kind) = (arguments.plugin.as_deref(), arguments.kind.as_deref());
            let task = serde_json::value::to_raw_value(&TaskBody { plugin, kind, input: &input });
            task.map_err(|error| Failure::Usage(error.to_string()))?
        }
    };
    let body = Body {
        name: &arguments.name,
        cron: &arguments.cron,
        zone: arguments.zone.as_deref(),
        missed: arguments.missed.as_deref(),
        overlap: arguments.overlap.as_deref(),
        paused: arguments.paused,
        task: &task,
    };
    let body = serde_json::to_vec(&body).map_err(|error| Failure::Usage(error.to_string()))?;
    let call = Call::post("/v1/schedules").body("application/json", &body);
    show(&arguments.host.client()?.send(call)?, &arguments.host)
}

fn list(after: Option<&str>, limit: Option<u32>, host: &HostArguments) -> Result<ExitCode, Failure> {
    let mut query = Query::default();
    query.add("after", after);
    query.add("limit", limit.map(|limit| limit.to_string()).as_deref());
    let answer = host.client()?.send(Call::get(&query.of("/v1/schedules")))?;
    if host.json {
        answer.print();
        return Ok(ExitCode::SUCCESS);
    }
    let page: Page = answer.read()?;
    table(page.schedules);
    if let Some(next) = page.next {
        print::note(&format!("more with --after {next}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(answer: &Answer, host: &HostArguments) -> Result<ExitCode, Failure> {
    if host.json {
        answer.print();
    } else {
        table(vec![answer.read()?]);
    }
    Ok(ExitCode::SUCCESS)
}

fn table(schedules: Vec<Schedule>) {
    let row = |one: Schedule| {
        let next = match (one.paused_at, one.next_at) {
            (Some(_), _) => "paused".to_owned(),
            (None, Some(next)) => next,
            (None, None) => "never".to_owned(),
        };
        let (last, became) = match one.last {
            Some(last) => (last.at, last.code.or(last.task).unwrap_or_default()),
            None => Default::default(),
        };
        vec![one.name, one.cron, one.zone, next, last, became]
    };
    print::table(
        &["name", "cron", "zone", "next", "last", "became"],
        schedules.into_iter().map(row).collect(),
    );
}
