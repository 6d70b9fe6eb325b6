//! `keiko agent`.

use std::process::ExitCode;

use keiko_core::agent::AgentStatus;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{self, Answer, Call, Query, segment};
use super::exit::Failure;
use super::print;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make agents of one kind, all or none
    Create {
        /// What people call them; each name makes one agent
        #[arg(required = true)]
        names: Vec<String>,
        /// What they are for
        #[arg(long)]
        kind: String,
        /// What they do now [default: idle]
        #[arg(long, value_parser = status)]
        status: Option<AgentStatus>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// List agents with what became of their tasks, newest first
    List {
        /// Only those of this kind
        #[arg(long)]
        kind: Option<String>,
        /// Only those with this status
        #[arg(long, value_parser = status)]
        status: Option<AgentStatus>,
        #[command(flatten)]
        page: client::PageArguments,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show an agent with what became of its tasks
    Show {
        /// Its id
        id: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Change an agent
    Update {
        /// Its id
        id: String,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Give agents a status, all or none
    Status {
        /// What they do now: idle, active, paused, failed or retired
        #[arg(value_parser = status)]
        status: AgentStatus,
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
        #[command(flatten)]
        host: client::HostArguments,
    },
}

/// What changes about an agent.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct Change {
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// What it is for
    #[arg(long)]
    kind: Option<String>,
    /// What it does now
    #[arg(long, value_parser = status)]
    status: Option<AgentStatus>,
}

/// An agent, as the host tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct Agent {
    id: String,
    pub(super) name: String,
    kind: String,
    status: String,
    created_at: String,
    updated_at: String,
    tasks: Option<Tasks>,
}

/// What became of its tasks.
#[derive(Debug, Deserialize)]
struct Tasks {
    total: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
    average_us: u64,
    success_rate: f64,
}

#[derive(Deserialize)]
struct Page {
    agents: Vec<Agent>,
    next: Option<String>,
}

fn status(text: &str) -> Result<AgentStatus, String> {
    text.parse().map_err(|error: keiko_core::agent::UnknownStatus| error.to_string())
}

pub(super) fn agent(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Create { names, kind, status, host } => {
            let body =
                json!({"agents": names.iter().map(|name| new(name, &kind, status)).collect::<Vec<_>>()});
            let answer = send(&host, Call::post("/v1/agents"), &body)?;
            finish(&answer, &host, |Page { agents, .. }| {
                agents.iter().for_each(|agent| print::out(&print::clean(&agent.id)));
            })
        }
        Command::List { kind, status, page, host } => {
            let mut query = Query::default();
            query.add("kind", kind.as_deref());
            query.add("status", status.map(AgentStatus::as_str));
            query.page(&page);
            let answer = host.client()?.send(Call::get(&query.of("/v1/agents")))?;
            finish(&answer, &host, list)
        }
        Command::Show { id, host } => {
            let answer = host.client()?.send(Call::get(&path(&id)))?;
            finish(&answer, &host, |agent: Agent| show(&agent))
        }
        Command::Update { id, change, host } => {
            let answer = send(&host, Call::patch(&path(&id)), &change.body())?;
            finish(&answer, &host, |agent: Agent| show(&agent))
        }
        Command::Status { status, ids, host } => {
            let change = |id: &String| json!({"agent": id, "status": status.as_str()});
            let body = json!({"statuses": ids.iter().map(change).collect::<Vec<_>>()});
            let answer = send(&host, Call::post("/v1/agents/statuses"), &body)?;
            finish(&answer, &host, |_: Value| ())
        }
    }
}

fn path(id: &str) -> String {
    format!("/v1/agents/{}", segment(id))
}

fn new(name: &str, kind: &str, status: Option<AgentStatus>) -> Value {
    let mut agent = json!({"name": name, "kind": kind});
    if let Some(status) = status {
        agent["status"] = status.as_str().into();
    }
    agent
}

impl Change {
    fn body(&self) -> Value {
        let status = self.status.map(AgentStatus::as_str);
        let given = [("name", self.name.as_deref()), ("kind", self.kind.as_deref()), ("status", status)];
        let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

fn send(host: &client::HostArguments, call: Call<'_>, body: &Value) -> Result<Answer, Failure> {
    host.client()?.send(call.body("application/json", body.to_string().as_bytes()))
}

/// Prints an answer: as it is for programs, otherwise by `show`.
fn finish<T: for<'a> Deserialize<'a>>(
    answer: &Answer,
    host: &client::HostArguments,
    show: impl FnOnce(T),
) -> Result<ExitCode, Failure> {
    if host.json {
        answer.print();
    } else {
        show(answer.read()?);
    }
    Ok(ExitCode::SUCCESS)
}

fn list(Page { agents, next }: Page) {
    let row = |agent: Agent| {
        let mut row = vec![agent.id, agent.name, agent.kind, agent.status];
        row.extend(agent.tasks.iter().flat_map(|tasks| {
            let counts = [tasks.total, tasks.completed, tasks.failed, tasks.cancelled].map(print::thousands);
            counts.into_iter().chain([print::span(tasks.average_us), rate(tasks)])
        }));
        row
    };
    let head =
        ["id", "name", "kind", "status", "tasks", "completed", "failed", "cancelled", "average", "success"];
    print::table(&head, agents.into_iter().map(row).collect());
    print::next(next.as_deref());
}

fn show(agent: &Agent) {
    let line = |name: &str, value: &str| print::out(&format!("{name:<10} {}", print::clean(value)));
    line("id", &agent.id);
    line("name", &agent.name);
    line("kind", &agent.kind);
    line("status", &agent.status);
    line("created", &agent.created_at);
    line("updated", &agent.updated_at);
    if let Some(tasks) = &agent.tasks {
        let counts = [("tasks", tasks.total), ("completed", tasks.completed), ("failed", tasks.failed)];
        counts.into_iter().for_each(|(name, count)| line(name, &print::thousands(count)));
        line("cancelled", &print::thousands(tasks.cancelled));
        line("average", &print::span(tasks.average_us));
        line("success", &rate(tasks));
    }
}

fn rate(tasks: &Tasks) -> String {
    format!("{:.1} %", tasks.success_rate * 100.0)
}
