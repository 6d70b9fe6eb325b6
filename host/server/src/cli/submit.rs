//! `keiko task submit`.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keiko_core::limit::BULK_TASKS_MAX;
use keiko_core::task::Payload;
use serde::Serialize;
use serde_json::value::RawValue;

use super::client::{self, Call, Client};
use super::exit::Failure;
use super::task::{Task, of_state, outcome, wait_one};
use super::{input, print, stream};
use crate::limits::{Limits, TaskLimits};

/// Bytes of one request with many tasks; the host takes a little more.
const REQUEST_BYTES_MAX: usize = 60 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keiko task submit --plugin movie-facts --kind normalise --input film.json --wait 30
  keiko task submit --file tasks.ndjson                a task on each line, as the API takes it
  keiko task submit --kind normalise --file films.ndjson              an input on each line
  tail -f tasks.ndjson | keiko task submit --stream -                 each as it comes")]
pub(super) struct Submit {
    /// The plugin; may be left out when only one has the kind
    #[arg(long)]
    plugin: Option<String>,
    /// The kind; may be left out when the plugin has only one
    #[arg(long)]
    kind: Option<String>,
    /// JSON, the name of a file, or - for stdin [default: null]
    #[arg(long, value_name = "FILE|-|JSON", allow_hyphen_values = true)]
    input: Option<String>,
    /// Media type of the input, which is then taken as bytes
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Idempotency key: a second submit with it finds the first one's task
    #[arg(long)]
    key: Option<String>,
    /// Wait up to this many seconds for the end, and print the result
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Many tasks: a file with one on each line, or - for stdin
    #[arg(long, value_name = "NDJSON", conflicts_with_all = ["input", "content_type", "wait"])]
    file: Option<PathBuf>,
    /// Any number of tasks, each accepted or refused for itself as it comes: a file with one on each line, as the API takes
    /// it with an `idempotency_key` of its own, or - for stdin
    #[arg(long, value_name = "NDJSON", conflicts_with_all = [
        "plugin", "kind", "input", "content_type", "key", "wait", "file", "fuel", "memory_mib", "timeout_s",
        "attempts", "queued_timeout_s", "total_timeout_s", "heartbeat_timeout_s", "tree_fuel",
        "tree_host_calls", "tree_timeout_s", "retry", "agent", "user", "delay", "run_at", "unique", "debounce",
        "throttle", "concurrency_key", "priority",
    ])]
    stream: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    /// The agent that works on it
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// The user it is for
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Start no earlier than in this many milliseconds
    #[arg(long, value_name = "MS")]
    delay: Option<u64>,
    /// Start no earlier than at this time, as RFC 3339 (2026-01-31T00:00:00Z)
    #[arg(long, value_name = "TIME", conflicts_with = "delay")]
    run_at: Option<String>,
    /// Be the only one of the kind under this key: while one is live, the submit finds it
    #[arg(long, value_name = "KEY", conflicts_with_all = ["debounce", "throttle", "file"])]
    unique: Option<String>,
    /// With --unique: be refused while one is live
    #[arg(long, requires = "unique")]
    refuse: bool,
    /// Be the newest one of the kind under this key, which waits for --every milliseconds without another
    #[arg(long, value_name = "KEY", requires = "every", conflicts_with_all = ["throttle", "file", "delay", "run_at"])]
    debounce: Option<String>,
    /// Start no sooner than --every milliseconds after the one before of the kind and this key
    #[arg(long, value_name = "KEY", requires = "every", conflicts_with = "file")]
    throttle: Option<String>,
    /// How long for --debounce and --throttle
    #[arg(long, value_name = "MS")]
    every: Option<u64>,
    /// With --debounce: wait no longer than so many milliseconds after the first, whatever comes
    #[arg(long, value_name = "MS", requires = "debounce")]
    within: Option<u64>,
    /// Run at the same time as few others of the kind that name this key: one, unless the kind says how many
    #[arg(long, value_name = "KEY")]
    concurrency_key: Option<String>,
    /// How urgent it is, from 0 to 9; each level counts as a minute of waiting [default: 0]
    #[arg(long, value_name = "0-9")]
    priority: Option<u64>,
    #[command(flatten)]
    host: client::HostArguments,
}

/// What a retry by hand changes of tasks that are named by their ids; what is left out stays.
#[derive(Debug, clap::Args)]
#[command(mut_group("limits", |limits| limits.requires("ids")))]
pub(super) struct Change {
    /// Another input: JSON, the name of a file, or - for stdin
    #[arg(long, value_name = "FILE|-|JSON", allow_hyphen_values = true, requires = "ids")]
    input: Option<String>,
    /// Media type of the input, which is then taken as bytes
    #[arg(long, value_name = "TYPE", requires = "input")]
    content_type: Option<String>,
    #[command(flatten)]
    limits: TaskLimits,
}

impl Change {
    /// What the host is sent; `None` when nothing changes.
    pub(super) fn body(&self) -> Result<Option<Vec<u8>>, Failure> {
        if self.input.is_none() && self.limits == TaskLimits::default() {
            return Ok(None);
        }
        let limits = Limits { task: self.limits, ..Limits::default() };
        let body = TaskBody { limits, ..TaskBody::default() };
        let body = match &self.input {
            None => serde_json::to_vec(&body),
            Some(input) => {
                let payload = input::read(Some(input), self.content_type.as_deref())?;
                serde_json::to_vec(&body.with_input(&payload, self.content_type.is_some()))
            }
        };
        body.map(Some).map_err(|error| Failure::Usage(error.to_string()))
    }
}

#[derive(Serialize)]
struct Unique<'a> {
    key: &'a str,
    refuse: bool,
}

#[derive(Serialize)]
struct Debounce<'a> {
    key: &'a str,
    wait_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ms: Option<u64>,
}

#[derive(Serialize)]
struct Throttle<'a> {
    key: &'a str,
    interval_ms: u64,
}

/// A task as the host takes it.
#[derive(Default, Serialize)]
struct TaskBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(flatten)]
    limits: Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<Unique<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    debounce: Option<Debounce<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    throttle: Option<Throttle<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
}

pub(super) fn submit(arguments: &Submit) -> Result<ExitCode, Failure> {
    if let Some(file) = &arguments.stream {
        return stream::submit(file, &arguments.host);
    }
    let client = arguments.host.client()?;
    match &arguments.file {
        Some(file) => many(arguments, &client, file),
        None => one(arguments, &client),
    }
}

impl<'a> TaskBody<'a> {
    /// The same with this input: as JSON when it is, unless it is said to be bytes.
    fn with_input(self, payload: &'a Payload, is_bytes: bool) -> TaskBody<'a> {
        let raw: Option<&RawValue> =
            if is_bytes { None } else { serde_json::from_slice(&payload.bytes).ok() };
        let is_bytes = raw.is_none();
        TaskBody {
            input: raw,
            input_base64: is_bytes.then(|| STANDARD.encode(&payload.bytes)),
            content_type: is_bytes.then_some(payload.content_type.as_str()),
            ..self
        }
    }
}

impl Submit {
    fn body(&self) -> TaskBody<'_> {
        TaskBody {
            plugin: self.plugin.as_deref(),
            kind: self.kind.as_deref(),
            input: None,
            input_base64: None,
            content_type: None,
            limits: self.limits,
            delay_ms: self.delay,
            run_at: self.run_at.as_deref(),
            priority: self.priority,
            concurrency_key: self.concurrency_key.as_deref(),
            unique: self.unique.as_deref().map(|key| Unique { key, refuse: self.refuse }),
            debounce: self.debounce.as_deref().zip(self.every).map(|(key, wait_ms)| Debounce {
                key,
                wait_ms,
                max_ms: self.within,
            }),
            throttle: self
                .throttle
                .as_deref()
                .zip(self.every)
                .map(|(key, interval_ms)| Throttle { key, interval_ms }),
            agent: self.agent.as_deref(),
            user: self.user.as_deref(),
        }
    }

    /// Whether a line of a file is only an input, and everything else is said here.
    fn describes_tasks(&self) -> bool {
        let names = [&self.plugin, &self.kind, &self.agent, &self.user, &self.run_at, &self.concurrency_key];
        names.iter().any(|name| name.is_some())
            || [self.delay, self.priority].iter().any(Option::is_some)
            || self.limits != Limits::default()
    }
}

fn one(arguments: &Submit, client: &Client) -> Result<ExitCode, Failure> {
    let payload = input::read(arguments.input.as_deref(), arguments.content_type.as_deref())?;
    let body = arguments.body().with_input(&payload, arguments.content_type.is_some());
    let body = serde_json::to_vec(&body).map_err(|error| Failure::Usage(error.to_string()))?;
    let until = arguments.wait.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first_wait = arguments.wait.map(|seconds| seconds.min(60));
    let path = first_wait.map_or_else(|| "/v1/tasks".to_owned(), |wait| format!("/v1/tasks?wait={wait}"));
    let mut call = Call::post(&path).body("application/json", &body).and_wait(first_wait.unwrap_or(0));
    if let Some(key) = &arguments.key {
        call = call.header("idempotency-key", key);
    }
    let mut answer = client.send(call)?;
    let mut task: Task = answer.read()?;
    if arguments.wait.is_some() && of_state(&task.state) == super::exit::TIME {
        (answer, _) = wait_one(client, &task.id, until)?;
        task = answer.read()?;
    }
    if arguments.host.json {
        answer.print();
    } else if arguments.wait.is_some() {
        outcome(&task)?;
    } else {
        print::out(&print::clean(&task.id));
    }
    Ok(ExitCode::from(if arguments.wait.is_some() { of_state(&task.state) } else { 0 }))
}

/// Sends the lines in as few requests as the limits allow. What was sent before a refusal stays submitted.
fn many(arguments: &Submit, client: &Client, file: &Path) -> Result<ExitCode, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", file.display()));
    let reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::io::BufReader::new(std::fs::File::open(file).map_err(unreadable)?))
    };
    let mut batches = Batches { arguments, client, body: Vec::new(), tasks: 0, sent: 0 };
    for (at, line) in reader.lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let task = if arguments.describes_tasks() {
            let raw: &RawValue = serde_json::from_str(&line)
                .map_err(|error| Failure::Usage(format!("line {}: not JSON: {error}", at + 1)))?;
            let body = TaskBody { input: Some(raw), ..arguments.body() };
            serde_json::to_string(&body).map_err(|error| Failure::Usage(error.to_string()))?
        } else {
            line
        };
        batches.push(&task)?;
    }
    batches.send()?;
    Ok(ExitCode::SUCCESS)
}

struct Batches<'a> {
    arguments: &'a Submit,
    client: &'a Client,
    body: Vec<u8>,
    tasks: usize,
    sent: usize,
}

impl Batches<'_> {
    fn push(&mut self, task: &str) -> Result<(), Failure> {
        if self.tasks == BULK_TASKS_MAX || self.body.len() + task.len() + 1 > REQUEST_BYTES_MAX {
            self.send()?;
        }
        self.body.extend_from_slice(task.as_bytes());
        self.body.push(b'\n');
        self.tasks += 1;
        Ok(())
    }

    fn send(&mut self) -> Result<(), Failure> {
        if self.tasks == 0 {
            return Ok(());
        }
        self.sent += 1;
        // Each request needs a key of its own; the same file makes the same requests.
        let key = self.arguments.key.as_ref().map(|key| match self.sent {
            1 => key.clone(),
            number => format!("{key}.{number}"),
        });
        let mut call = Call::post("/v1/tasks").body("application/x-ndjson", &self.body).upload();
        if let Some(key) = &key {
            call = call.header("idempotency-key", key);
        }
        let answer = self.client.send(call)?;
        if self.arguments.host.json {
            answer.print();
        } else {
            #[derive(serde::Deserialize)]
            struct Ids {
                tasks: Vec<String>,
            }
            let Ids { tasks } = answer.read()?;
            tasks.iter().for_each(|id| print::out(&print::clean(id)));
        }
        self.body.clear();
        self.tasks = 0;
        Ok(())
    }
}
