//! `keiko pause` and `keiko resume`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::client::{Answer, Call, HostArguments};
use super::exit::Failure;
use super::print;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Pause {
    /// Begin no task of a kind until it is resumed; what runs goes on, and submits are taken
    Kind(Kind),
    /// Begin no task of the tenant
    Tenant {
        #[command(flatten)]
        host: HostArguments,
    },
    /// Let this host begin nothing; needs a token with `operator`. A host that starts anew is not paused
    Host {
        #[command(flatten)]
        host: HostArguments,
    },
    /// Show what is paused
    Show {
        #[command(flatten)]
        host: HostArguments,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Resume {
    /// Let tasks of a kind begin again
    Kind(Kind),
    /// Let tasks of the tenant begin again; kinds that are paused themselves stay so
    Tenant {
        #[command(flatten)]
        host: HostArguments,
    },
    /// Let this host begin tasks again; needs a token with `operator`
    Host {
        #[command(flatten)]
        host: HostArguments,
    },
}

/// A kind, by its plugin, its name, or both.
#[derive(Debug, clap::Args)]
pub(super) struct Kind {
    /// The plugin
    #[arg(long, required_unless_present = "kind")]
    plugin: Option<String>,
    /// The kind; not needed when the plugin has one
    #[arg(long)]
    kind: Option<String>,
    #[command(flatten)]
    host: HostArguments,
}

#[derive(Default, Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tenant: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    host: bool,
}

#[derive(Deserialize)]
struct Paused {
    host: bool,
    tenant_paused_at: Option<String>,
    kinds: Vec<PausedKind>,
}

#[derive(Deserialize)]
struct PausedKind {
    plugin: String,
    kind: String,
    paused_at: String,
}

pub(super) fn pause(command: Pause) -> Result<ExitCode, Failure> {
    match &command {
        Pause::Kind(kind) => send("/v1/pause", &of_kind(kind), &kind.host),
        Pause::Tenant { host } => send("/v1/pause", &Body { tenant: true, ..Body::default() }, host),
        Pause::Host { host } => send("/v1/pause", &Body { host: true, ..Body::default() }, host),
        Pause::Show { host } => show(&host.client()?.send(Call::get("/v1/pause"))?, host),
    }
}

pub(super) fn resume(command: Resume) -> Result<ExitCode, Failure> {
    match &command {
        Resume::Kind(kind) => send("/v1/resume", &of_kind(kind), &kind.host),
        Resume::Tenant { host } => send("/v1/resume", &Body { tenant: true, ..Body::default() }, host),
        Resume::Host { host } => send("/v1/resume", &Body { host: true, ..Body::default() }, host),
    }
}

fn of_kind(kind: &Kind) -> Body<'_> {
    Body { plugin: kind.plugin.as_deref(), kind: kind.kind.as_deref(), ..Body::default() }
}

fn send(path: &str, body: &Body<'_>, host: &HostArguments) -> Result<ExitCode, Failure> {
    let body = serde_json::to_vec(body).map_err(|error| Failure::Usage(error.to_string()))?;
    show(&host.client()?.send(Call::post(path).body("application/json", &body))?, host)
}

fn show(answer: &Answer, host: &HostArguments) -> Result<ExitCode, Failure> {
    if host.json {
        answer.print();
        return Ok(ExitCode::SUCCESS);
    }
    let Paused { host, tenant_paused_at, kinds } = answer.read()?;
    let mut rows: Vec<Vec<String>> = Vec::new();
    if host {
        rows.push(vec!["this host".to_owned(), String::new()]);
    }
    rows.extend(tenant_paused_at.map(|at| vec!["the tenant".to_owned(), at]));
    rows.extend(kinds.into_iter().map(|kind| vec![format!("{} {}", kind.plugin, kind.kind), kind.paused_at]));
    if rows.is_empty() {
        print::out("nothing is paused");
    } else {
        print::table(&["paused", "since"], rows);
    }
    Ok(ExitCode::SUCCESS)
}
