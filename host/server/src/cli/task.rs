//! `keiko task`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{self, Answer, Call, Client, Query, segment};
use super::exit::{self, Failure};
use super::filter::Filter;
use super::submit::{self, Submit};
use super::{print, watch};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Submit one task, or many of a file
    Submit(Box<Submit>),
    /// Show a task
    Get {
        /// Its id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// List tasks, newest first
    List(List),
    /// Wait until tasks have ended; 1 when one of them failed or was cancelled
    Wait {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
        /// Give up after this many seconds, with exit status 6
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Follow a task as it changes, to its end; exits as `wait` does
    Watch(watch::Watch),
    /// Cancel tasks that have not ended, by their ids or all that a filter names
    Cancel(Cancel),
    /// Run failed or cancelled tasks again, by their ids or all that a filter names
    Retry(Box<Retry>),
    /// Forget ended tasks, with their results, attempts and logs, by their ids or all that a filter names
    Drop(Many),
    /// Print what a task is given, byte for byte, which is kept until it completes
    Input {
        /// Its id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show what a task's attempts logged
    Logs {
        /// Its id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    page: client::PageArguments,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keiko task cancel task_0123456789abc --tree
  keiko task cancel --kind normalise --state pending
  keiko task cancel --group group_0123456789abc")]
pub(super) struct Cancel {
    /// With everything below them, also where they have ended themselves
    #[arg(long, requires = "ids")]
    tree: bool,
    #[command(flatten)]
    many: Many,
}

#[derive(Debug, clap::Args)]
pub(super) struct Many {
    /// Their ids
    #[arg(required_unless_present = "filter")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    host: client::HostArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  keiko task retry task_0123456789abc --input fixed.json --memory 256
  keiko task retry --state failed --kind normalise --finished-from 2026-11-26T08:00:00Z")]
pub(super) struct Retry {
    #[command(flatten)]
    many: Many,
    #[command(flatten)]
    change: submit::Change,
}

/// A task, as the host tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct Task {
    pub(super) id: String,
    plugin: String,
    kind: String,
    pub(super) state: String,
    created_at: String,
    finished_at: Option<String>,
    parent: Option<String>,
    agent: Option<String>,
    user: Option<String>,
    group: Option<String>,
    concurrency_key: Option<String>,
    #[serde(default)]
    limits: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    priority: u8,
    run_at: String,
    progress: Option<Progress>,
    content_type: Option<String>,
    result: Option<Box<RawValue>>,
    result_base64: Option<String>,
    error: Option<Error>,
    tree: Option<Tree>,
    memoized_from: Option<String>,
    attempts: Vec<Attempt>,
}

#[derive(Debug, Deserialize)]
struct Tree {
    fuel_max: u64,
    fuel_used: u64,
    host_calls_max: u64,
    host_calls_used: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Progress {
    pub(super) fraction: f64,
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
struct Error {
    code: String,
    message: String,
    #[serde(default)]
    backtrace: Vec<keiko_core::outcome::Frame>,
}

#[derive(Debug, Deserialize)]
struct Attempt {
    number: u32,
    duration_us: u64,
    version: Option<String>,
    fuel_used: u64,
    memory_bytes_peak: u64,
    host_calls: u64,
    pure: bool,
    #[serde(default)]
    tainted_by: Vec<String>,
    #[serde(default)]
    random_seeded: bool,
    error: Option<Error>,
    canary: Option<FailedRun>,
}

/// The run on a canary that failed before, in the same attempt.
#[derive(Debug, Deserialize)]
struct FailedRun {
    version: String,
    code: String,
}

#[derive(Deserialize)]
struct Page {
    tasks: Vec<Summary>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Summary {
    id: String,
    plugin: String,
    kind: String,
    state: String,
    created_at: String,
    attempts: u32,
    code: Option<String>,
}

#[derive(Deserialize)]
struct Logs {
    attempts: Vec<AttemptLog>,
}

#[derive(Deserialize)]
struct AttemptLog {
    attempt: u32,
    dropped: u64,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    at: String,
    level: String,
    source: String,
    message: String,
    #[serde(default)]
    fields: BTreeMap<String, String>,
}

pub(super) fn task(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Submit(arguments) => submit::submit(&arguments),
        Command::Get { id, host } => {
            let answer = host.client()?.send(Call::get(&path(&id, "")))?;
            if host.json {
                answer.print();
            } else {
                show(&answer.read()?);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::List(arguments) => list(&arguments),
        Command::Wait { ids, timeout, host } => wait(&ids, timeout, &host),
        Command::Watch(arguments) => watch::watch(&arguments),
        Command::Cancel(Cancel { many, .. }) if many.ids.is_empty() => {
            by_filter(&many, &|path| Call::post(path), "/v1/tasks/cancel")
        }
        Command::Cancel(Cancel { tree, many }) => {
            each(&many.ids, if tree { "/cancel?tree=true" } else { "/cancel" }, None, &many.host)
        }
        Command::Retry(arguments) => retry(&arguments),
        Command::Drop(arguments) => drop_tasks(&arguments),
        Command::Input { id, host } => {
            let Answer { body } = host.client()?.send(Call::get(&path(&id, "/input")))?;
            if host.json {
                print::bytes(&body);
            } else {
                print::result(&body);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Logs { id, host } => logs(&id, &host),
    }
}

fn path(id: &str, rest: &str) -> String {
    format!("/v1/tasks/{}{rest}", segment(id))
}

fn list(arguments: &List) -> Result<ExitCode, Failure> {
    let mut query = Query::default();
    arguments.filter.add_to(&mut query);
    query.page(&arguments.page);
    let answer = arguments.host.client()?.send(Call::get(&query.of("/v1/tasks")))?;
    if arguments.host.json {
        answer.print();
        return Ok(ExitCode::SUCCESS);
    }
    let Page { tasks, next } = answer.read()?;
    let row = |task: Summary| {
        let code = task.code.unwrap_or_default();
        vec![task.id, task.plugin, task.kind, task.state, task.attempts.to_string(), task.created_at, code]
    };
    let rows = tasks.into_iter().map(row).collect();
    print::table(&["id", "plugin", "kind", "state", "attempts", "created", "code"], rows);
    print::next(next.as_deref());
    Ok(ExitCode::SUCCESS)
}

fn retry(arguments: &Retry) -> Result<ExitCode, Failure> {
    let Retry { many, change } = arguments;
    if many.ids.is_empty() {
        return by_filter(many, &|path| Call::post(path), "/v1/tasks/retry");
    }
    let body = change.body()?;
    each(&many.ids, "/retry", body.as_deref(), &many.host)
}

fn drop_tasks(arguments: &Many) -> Result<ExitCode, Failure> {
    if arguments.ids.is_empty() {
        return by_filter(arguments, &|path| Call::delete(path), "/v1/tasks");
    }
    let client = arguments.host.client()?;
    for id in &arguments.ids {
        client.send(Call::delete(&path(id, "")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for page after page of what a filter names.
fn by_filter(
    arguments: &Many,
    call: &dyn for<'a> Fn(&'a str) -> Call<'a>,
    path: &str,
) -> Result<ExitCode, Failure> {
    #[derive(Deserialize)]
    struct Bulk {
        changed: u64,
        next: Option<String>,
    }
    let client = arguments.host.client()?;
    let (mut changed, mut before) = (0, None::<String>);
    loop {
        let mut query = Query::default();
        arguments.filter.add_to(&mut query);
        query.add("before", before.as_deref());
        query.add("limit", Some("1000"));
        let answer = client.send(call(&query.of(path)))?;
        let page: Bulk = answer.read()?;
        changed += page.changed;
        if arguments.host.json {
            answer.print();
        }
        // A page that begins where it was asked for had no room for its first task.
        if page.next.is_none() || page.next == before {
            break;
        }
        before = page.next;
    }
    if !arguments.host.json {
        print::out(&format!("{changed} tasks"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for each task in turn; the first refusal ends it.
fn each(
    ids: &[String],
    rest: &str,
    body: Option<&[u8]>,
    host: &client::HostArguments,
) -> Result<ExitCode, Failure> {
    let client = host.client()?;
    for id in ids {
        let path = path(id, rest);
        let call = Call::post(&path);
        let answer = client.send(match body {
            Some(body) => call.body("application/json", body),
            None => call,
        })?;
        line(&answer, host)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(answer: &Answer, host: &client::HostArguments) -> Result<(), Failure> {
    if host.json {
        answer.print();
    } else {
        let task: Task = answer.read()?;
        let code = task.error.map(|error| error.code).unwrap_or_default();
        print::out(print::clean(&format!("{} {} {code}", task.id, task.state)).trim_end());
    }
    Ok(())
}

fn wait(ids: &[String], timeout: Option<u64>, host: &client::HostArguments) -> Result<ExitCode, Failure> {
    let client = host.client()?;
    let until = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut status = 0;
    for id in ids {
        let (answer, state) = wait_one(&client, id, until)?;
        line(&answer, host)?;
        status = worse(status, of_state(&state));
    }
    Ok(ExitCode::from(status))
}

/// A task as it is when it has ended, or when the time is up.
pub(super) fn wait_one(
    client: &Client,
    id: &str,
    until: Option<Instant>,
) -> Result<(Answer, String), Failure> {
    #[derive(Deserialize)]
    struct State {
        state: String,
    }
    loop {
        let left = until.map_or(60, |until| {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up, so that the last second is waited for and not asked away.
            left.as_millis().div_ceil(1_000).min(60) as u64
        });
        let began = Instant::now();
        let answer = client.send(Call::get(&path(id, &format!("?wait={left}"))).and_wait(left))?;
        let State { state } = answer.read()?;
        let ended = !matches!(state.as_str(), "pending" | "running");
        if ended || until.is_some_and(|until| Instant::now() >= until) {
            return Ok((answer, state));
        }
        // A host that stops answers early; asking again at once would only be in its way.
        if began.elapsed() < Duration::from_secs(left.min(1)) {
            pause();
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the command line has no runtime, and nothing else to wait for")]
pub(super) fn pause() {
    std::thread::sleep(Duration::from_millis(500));
}

/// The exit status of having waited for a task that is now in `state`.
pub(super) fn of_state(state: &str) -> u8 {
    match state {
        "completed" => 0,
        "failed" | "cancelled" => exit::FAILED,
        _ => exit::TIME,
    }
}

/// Of two exit statuses the one to end with: not having ended tells less than having failed.
fn worse(a: u8, b: u8) -> u8 {
    if a == exit::FAILED || b == exit::FAILED { exit::FAILED } else { a.max(b) }
}

/// Prints what a waited-for task came to: its result on stdout, the rest on stderr.
pub(super) fn outcome(task: &Task) -> Result<(), Failure> {
    let spent = task.attempts.last().map(meter).unwrap_or_default();
    match (&task.result, &task.result_base64) {
        (Some(raw), _) => {
            print::result(raw.get().as_bytes());
            print::bytes(b"\n");
        }
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text);
            let bytes = bytes
                .map_err(|error| Failure::Host(format!("the host's answer is not understood: {error}")))?;
            print::result(&bytes);
        }
        (None, None) => {}
    }
    print::note(&format!("{} {}{spent}", print::clean(&task.id), print::clean(&task.state)));
    if let Some(error) = &task.error {
        print::note(&format!("{}: {}", print::clean(&error.code), print::clean_lines(&error.message)));
        error.backtrace.iter().for_each(|frame| print::note(&frame_line(frame)));
    }
    Ok(())
}

fn meter(attempt: &Attempt) -> String {
    format!(
        ", attempt {}: {}, {} fuel, {} memory, {} host calls{}",
        attempt.number,
        print::span(attempt.duration_us),
        print::thousands(attempt.fuel_used),
        print::size(attempt.memory_bytes_peak),
        attempt.host_calls,
        if attempt.pure { ", pure" } else { "" }
    )
}

/// A frame of a guest's backtrace.
pub(super) fn frame_line(frame: &keiko_core::outcome::Frame) -> String {
    let place = frame.file.as_ref().map(|file| {
        let line = frame.line.map(|line| format!(":{line}")).unwrap_or_default();
        format!(" ({}{line})", print::clean(file))
    });
    format!("  at {}{}", print::clean(&frame.function), place.unwrap_or_default())
}

fn show(task: &Task) {
    let line = |name: &str, value: &str| print::out(&format!("{name:<10} {}", print::clean(value)));
    line("id", &task.id);
    line("plugin", &task.plugin);
    line("kind", &task.kind);
    line("state", &task.state);
    line("created", &task.created_at);
    if task.priority > 0 {
        line("priority", &task.priority.to_string());
    }
    if task.state == "pending" {
        line("run at", &task.run_at);
    }
    if let Some(finished) = &task.finished_at {
        line("finished", finished);
    }
    if let Some(parent) = &task.parent {
        line("parent", parent);
    }
    if let Some(agent) = &task.agent {
        line("agent", agent);
    }
    if let Some(user) = &task.user {
        line("user", user);
    }
    if let Some(group) = &task.group {
        line("group", group);
    }
    if let Some(key) = &task.concurrency_key {
        line("key", key);
    }
    if !task.limits.is_empty() {
        let limits: Vec<_> = task.limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
        line("limits", &limits.join(", "));
    }
    if let Some(Tree { fuel_max, fuel_used, host_calls_max, host_calls_used }) = task.tree {
        let of = |used, max| format!("{} of {}", print::thousands(used), print::thousands(max));
        line(
            "tree",
            &format!("{} fuel, {} host calls", of(fuel_used, fuel_max), of(host_calls_used, host_calls_max)),
        );
    }
    if let Some(Progress { fraction, message }) = &task.progress {
        line("progress", &format!("{:.0} % {message}", fraction * 100.0));
    }
    if let Some(error) = &task.error {
        line("error", &format!("{}: {}", error.code, error.message));
        error.backtrace.iter().for_each(|frame| print::out(&frame_line(frame)));
    }
    if let Some(from) = &task.memoized_from {
        line("memoized", &format!("from {from}"));
    }
    match (&task.result, &task.content_type) {
        (Some(raw), _) => line("result", raw.get()),
        (None, Some(content_type)) => {
            line("result", &format!("{content_type}; `keiko task get --json` has it"));
        }
        (None, None) => {}
    }
    show_attempts(&task.attempts);
}

fn show_attempts(attempts: &[Attempt]) {
    let row = |attempt: &Attempt| {
        vec![
            attempt.number.to_string(),
            attempt.version.clone().unwrap_or_default(),
            print::span(attempt.duration_us),
            print::thousands(attempt.fuel_used),
            print::size(attempt.memory_bytes_peak),
            attempt.host_calls.to_string(),
            purity(attempt),
            attempt.error.as_ref().map(|error| error.code.clone()).unwrap_or_default(),
        ]
    };
    if !attempts.is_empty() {
        print::out("");
        let head = ["attempt", "version", "time", "fuel", "memory", "host calls", "pure", "code"];
        print::table(&head, attempts.iter().map(row).collect());
    }
    for (attempt, run) in attempts.iter().filter_map(|one| Some((one.number, one.canary.as_ref()?))) {
        let FailedRun { version, code } = run;
        print::out(&print::clean(&format!(
            "attempt {attempt} failed on the canary {version} before: {code}"
        )));
    }
}

/// Whether an attempt was pure, or what tainted it, and whether its random numbers were no secret.
fn purity(attempt: &Attempt) -> String {
    let seeded = if attempt.random_seeded { ", random numbers seeded" } else { "" };
    match (attempt.pure, &attempt.tainted_by[..]) {
        (true, _) => format!("yes{seeded}"),
        (false, []) => format!("no{seeded}"),
        (false, taints) => format!("no: {}{seeded}", print::clean(&taints.join(", "))),
    }
}

fn logs(id: &str, host: &client::HostArguments) -> Result<ExitCode, Failure> {
    let answer = host.client()?.send(Call::get(&path(id, "/logs")))?;
    if host.json {
        answer.print();
        return Ok(ExitCode::SUCCESS);
    }
    let Logs { attempts } = answer.read()?;
    for AttemptLog { attempt, dropped, lines } in attempts {
        for line in lines {
            let Line { at, level, source, message, fields } = line;
            let fields: String = fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
            print::out(&print::clean(&format!("{at} #{attempt} {level:<5} {source} {message}{fields}")));
        }
        if dropped > 0 {
            print::note(&format!("attempt {attempt}: {dropped} more lines exceeded the log's limits"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_says_whether_it_was_pure_and_whether_its_random_numbers_were_secret() {
        let check = |pure: bool, more: &str, expected: &str| {
            let told = format!(
                r#"{{"number": 1, "duration_us": 1, "fuel_used": 1, "memory_bytes_peak": 1, "host_calls": 1,
                    "pure": {pure}{more}}}"#
            );
            assert_eq!(purity(&serde_json::from_str(&told).unwrap()), expected, "{told}");
        };
        check(true, "", "yes");
        check(false, "", "no");
        check(false, r#", "tainted_by": ["random", "cache"]"#, "no: random, cache");
        check(true, r#", "random_seeded": true"#, "yes, random numbers seeded");
        check(false, r#", "random_seeded": true"#, "no, random numbers seeded");
        let both = r#", "tainted_by": ["cache"], "random_seeded": true"#;
        check(false, both, "no: cache, random numbers seeded");
    }

    #[test]
    fn a_failure_outweighs_what_has_not_ended() {
        let check = |states: &[&str], expected| {
            let status = states.iter().fold(0, |status, state| worse(status, of_state(state)));
            assert_eq!(status, expected, "{states:?}");
        };
        check(&["completed", "completed"], 0);
        check(&["completed", "running"], exit::TIME);
        check(&["failed", "running"], exit::FAILED);
        check(&["pending", "cancelled"], exit::FAILED);
    }
}
