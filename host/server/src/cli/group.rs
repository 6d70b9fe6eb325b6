//! `keiko group`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{self, Answer, Call, Client, Query, segment};
use super::exit::{self, Failure};
use super::{print, watch};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Submit the tasks of a file, one on each line, as one group
    Submit(Submit),
    /// Show how a group stands
    Get {
        /// Its id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Wait until every task of a group has ended; 1 when not all completed
    Wait {
        /// Its id
        id: String,
        /// Give up after this many seconds, with exit status 6
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Follow a group as its tasks end, to its end; exits as `wait` does
    Watch {
        /// Its id
        id: String,
        /// Give up after this many seconds, with exit status 6
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show what became of each task, in the order of their submission
    Outcomes {
        /// Its id
        id: String,
        /// The place to begin at, from 0
        #[arg(long, value_name = "N")]
        from: Option<u32>,
        /// Outcomes at most
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Cancel every task of a group that has not ended
    Cancel {
        /// Its id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Submit {
    /// A task on each line, as the API takes it, or - for stdin
    #[arg(value_name = "NDJSON")]
    file: PathBuf,
    /// So many of them stand in the queue or run at once [default: all]
    #[arg(long, value_name = "N")]
    live_max: Option<u32>,
    /// Cancel the rest when one has failed
    #[arg(long)]
    fail_fast: bool,
    /// Idempotency key: a second submit with it finds the first one's group
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Deserialize)]
struct Group {
    id: String,
    state: String,
    count: u32,
    completed: u32,
    failed: u32,
    cancelled: u32,
}

#[derive(Deserialize)]
struct Page {
    outcomes: Vec<Outcome>,
    next: Option<u32>,
}

#[derive(Deserialize)]
struct Outcome {
    place: u32,
    task: String,
    state: String,
    error: Option<Error>,
    content_type: Option<String>,
    result: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Error {
    code: String,
    message: String,
}

pub(super) fn group(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Submit(arguments) => submit(&arguments),
        Command::Get { id, host } => {
            show(&host.client()?.send(Call::get(&path(&id, "")))?, &host)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Wait { id, timeout, host } => wait(&id, timeout, &host),
        Command::Watch { id, timeout, host } => watch::follow(&host, timeout, &path(&id, "/events"), tell),
        Command::Outcomes { id, from, limit, host } => outcomes(&id, from, limit, &host),
        Command::Cancel { id, host } => {
            show(&host.client()?.send(Call::post(&path(&id, "/cancel")))?, &host)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn path(id: &str, rest: &str) -> String {
    format!("/v1/groups/{}{rest}", segment(id))
}

fn submit(arguments: &Submit) -> Result<ExitCode, Failure> {
    let client = arguments.host.client()?;
    let lines = read(&arguments.file)?;
    let mut tasks = Vec::new();
    for (at, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let task: &RawValue = serde_json::from_str(line)
            .map_err(|error| Failure::Usage(format!("line {}: not JSON: {error}", at + 1)))?;
        tasks.push(task);
    }
    #[derive(serde::Serialize)]
    struct Body<'a> {
        tasks: Vec<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        live_max: Option<u32>,
        fail_fast: bool,
    }
    let body = Body { tasks, live_max: arguments.live_max, fail_fast: arguments.fail_fast };
    let body = serde_json::to_vec(&body).map_err(|error| Failure::Usage(error.to_string()))?;
    let mut call = Call::post("/v1/groups").body("application/json", &body).upload();
    if let Some(key) = &arguments.key {
        call = call.header("idempotency-key", key);
    }
    let answer = client.send(call)?;
    if arguments.host.json {
        answer.print();
    } else {
        print::out(&print::clean(&answer.read::<Group>()?.id));
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> Result<String, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", file.display()));
    if file != Path::new("-") {
        return std::fs::read_to_string(file).map_err(unreadable);
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn show(answer: &Answer, host: &client::HostArguments) -> Result<(), Failure> {
    if host.json {
        answer.print();
        return Ok(());
    }
    print::out(&shown(&answer.read()?));
    Ok(())
}

fn shown(group: &Group) -> String {
    let Group { id, state, count, completed, failed, cancelled } = group;
    print::clean(&format!(
        "{id} {state}: {completed} completed, {failed} failed, {cancelled} cancelled of {count}"
    ))
}

/// Shows an event of a group; the exit status when it is the last.
fn tell(event: &watch::Event, json: bool) -> Result<Option<u8>, Failure> {
    let ends = event.name == "end";
    if !ends && event.name != "state" {
        return Ok(None);
    }
    let group: Group = watch::read(event)?;
    match (json, ends) {
        (true, _) => {}
        (false, true) => print::out(&shown(&group)),
        (false, false) => print::note(&shown(&group)),
    }
    Ok(ends.then(|| of_state(&group.state)))
}

/// The exit status of having waited for a group that is now in `state`.
fn of_state(state: &str) -> u8 {
    match state {
        "completed" => 0,
        "failed" => exit::FAILED,
        _ => exit::TIME,
    }
}

fn wait(id: &str, timeout: Option<u64>, host: &client::HostArguments) -> Result<ExitCode, Failure> {
    let client = host.client()?;
    let until = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let answer = wait_one(&client, id, until)?;
    show(&answer, host)?;
    Ok(ExitCode::from(of_state(&answer.read::<Group>()?.state)))
}

fn wait_one(client: &Client, id: &str, until: Option<Instant>) -> Result<Answer, Failure> {
    loop {
        let left = until.map_or(60, |until| {
            until.saturating_duration_since(Instant::now()).as_millis().div_ceil(1_000).min(60) as u64
        });
        let began = Instant::now();
        let answer = client.send(Call::get(&path(id, &format!("?wait={left}"))).and_wait(left))?;
        let is_open = answer.read::<Group>()?.state == "open";
        if !is_open || until.is_some_and(|until| Instant::now() >= until) {
            return Ok(answer);
        }
        // A host that stops answers early; asking again at once would only be in its way.
        if began.elapsed() < Duration::from_secs(left.min(1)) {
            super::task::pause();
        }
    }
}

fn outcomes(
    id: &str,
    from: Option<u32>,
    limit: Option<u32>,
    host: &client::HostArguments,
) -> Result<ExitCode, Failure> {
    let mut query = Query::default();
    query.add("from", from.map(|from| from.to_string()).as_deref());
    query.add("limit", limit.map(|limit| limit.to_string()).as_deref());
    let answer = host.client()?.send(Call::get(&query.of(&path(id, "/outcomes"))))?;
    if host.json {
        answer.print();
        return Ok(ExitCode::SUCCESS);
    }
    let Page { outcomes, next } = answer.read()?;
    let row = |one: Outcome| {
        let what = match (one.error, one.result, one.content_type) {
            (Some(error), ..) => format!("{}: {}", error.code, error.message),
            (None, Some(raw), _) => raw.get().to_owned(),
            (None, None, content_type) => content_type.unwrap_or_default(),
        };
        vec![one.place.to_string(), one.task, one.state, what]
    };
    print::table(&["place", "task", "state", "outcome"], outcomes.into_iter().map(row).collect());
    if let Some(next) = next {
        print::note(&format!("more: --from {next}"));
    }
    Ok(ExitCode::SUCCESS)
}
