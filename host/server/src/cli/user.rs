//! `keiko user`.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::json;

use super::agent::Agent;
use super::client::{self, Call, Query, segment};
use super::exit::Failure;
use super::print;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make users, all or none
    Create {
        /// What people call them; each name makes one user
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// List users, newest first
    List {
        #[command(flatten)]
        page: client::PageArguments,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show a user
    Show {
        /// Their id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// List a user's tasks with agents and results, newest first
    Tasks {
        /// Their id
        id: String,
        #[command(flatten)]
        page: client::PageArguments,
        #[command(flatten)]
        host: client::HostArguments,
    },
}

/// A user, as the host tells of them.
#[derive(Debug, Deserialize)]
struct User {
    id: String,
    name: String,
    created_at: String,
}

#[derive(Deserialize)]
struct Page {
    users: Vec<User>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct TaskPage {
    tasks: Vec<UserTask>,
    next: Option<String>,
}

/// A task with what stands around it.
#[derive(Deserialize)]
struct UserTask {
    agent: Option<Agent>,
    task: Head,
    error: Option<Error>,
    content_type: Option<String>,
    result: Option<Box<serde_json::value::RawValue>>,
}

#[derive(Deserialize)]
struct Head {
    id: String,
    plugin: String,
    kind: String,
    state: String,
    created_at: String,
}

#[derive(Deserialize)]
struct Error {
    code: String,
}

pub(super) fn user(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Create { names, host } => create(&names, &host)?,
        Command::List { page, host } => list(&page, &host)?,
        Command::Show { id, host } => {
            let answer = host.client()?.send(Call::get(&path(&id)))?;
            if host.json { answer.print() } else { show(&answer.read()?) }
        }
        Command::Tasks { id, page, host } => tasks(&id, &page, &host)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(id: &str) -> String {
    format!("/v1/users/{}", segment(id))
}

fn create(names: &[String], host: &client::HostArguments) -> Result<(), Failure> {
    let users: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
    let body = json!({ "users": users }).to_string();
    let answer = host.client()?.send(Call::post("/v1/users").body("application/json", body.as_bytes()))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let Page { users, .. } = answer.read()?;
    users.iter().for_each(|user| print::out(&print::clean(&user.id)));
    Ok(())
}

fn list(page: &client::PageArguments, host: &client::HostArguments) -> Result<(), Failure> {
    let mut query = Query::default();
    query.page(page);
    let answer = host.client()?.send(Call::get(&query.of("/v1/users")))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let Page { users, next } = answer.read()?;
    let rows = users.into_iter().map(|user| vec![user.id, user.name, user.created_at]).collect();
    print::table(&["id", "name", "created"], rows);
    print::next(next.as_deref());
    Ok(())
}

fn show(user: &User) {
    let line = |name: &str, value: &str| print::out(&format!("{name:<10} {}", print::clean(value)));
    line("id", &user.id);
    line("name", &user.name);
    line("created", &user.created_at);
}

fn tasks(id: &str, page: &client::PageArguments, host: &client::HostArguments) -> Result<(), Failure> {
    let mut query = Query::default();
    query.page(page);
    let answer = host.client()?.send(Call::get(&query.of(&format!("{}/tasks", path(id)))))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let TaskPage { tasks, next } = answer.read()?;
    let row = |one: UserTask| {
        let outcome = outcome(&one);
        let agent = one.agent.map(|agent| agent.name).unwrap_or_default();
        let Head { id, plugin, kind, state, created_at } = one.task;
        vec![id, plugin, kind, state, agent, created_at, outcome]
    };
    let head = ["id", "plugin", "kind", "state", "agent", "created", "result"];
    print::table(&head, tasks.into_iter().map(row).collect());
    print::next(next.as_deref());
    Ok(())
}

/// What came of a task, short enough for a table.
fn outcome(one: &UserTask) -> String {
    const LETTERS_MAX: usize = 60;
    match (&one.error, &one.result, &one.content_type) {
        (Some(error), _, _) => error.code.clone(),
        (None, Some(raw), _) if raw.get().chars().count() > LETTERS_MAX => {
            raw.get().chars().take(LETTERS_MAX).chain(['…']).collect()
        }
        (None, Some(raw), _) => raw.get().to_owned(),
        (None, None, Some(content_type)) => format!("({content_type})"),
        (None, None, None) => String::new(),
    }
}
