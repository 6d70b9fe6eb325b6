//! `keiko plugin`.

use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::client::{self, Call, segment};
use super::exit::Failure;
use super::print;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Install a component, or a new version of one
    Install {
        /// The component (.wasm)
        file: PathBuf,
        /// Its manifest, when the component carries none itself
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// List the installed plugins
    List {
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show one plugin with its kinds
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show which versions a plugin ran, newest first, and since when
    History {
        /// Its name
        name: String,
        #[command(flatten)]
        page: client::PageArguments,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Make a version that was installed before the current one; what runs finishes on what it began with
    Activate {
        /// Its name
        name: String,
        /// The version, as `keiko plugin history` shows it
        #[arg(value_name = "VERSION")]
        wanted: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Go back to the version that ran before the current one
    Rollback {
        /// Its name
        name: String,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Remove a plugin that has no open tasks
    Remove {
        /// Its name
        name: String,
        /// If it has open tasks, take no new ones and remove it when they have ended
        #[arg(long)]
        when_drained: bool,
        #[command(flatten)]
        host: client::HostArguments,
    },
}

/// A plugin, as the host tells of it.
#[derive(Debug, Deserialize)]
pub(super) struct Plugin {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) digest: String,
    component_bytes: u64,
    installed_at: String,
    generation: u64,
    #[serde(default)]
    draining: bool,
    description: String,
    pub(super) kinds: Vec<Kind>,
    wants: Vec<String>,
    denied: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Kind {
    pub(super) name: String,
    description: String,
    pub(super) fuel: Option<u64>,
    pub(super) memory_mib: Option<u64>,
    pub(super) timeout_s: Option<u64>,
}

#[derive(Deserialize)]
struct Plugins {
    plugins: Vec<Plugin>,
}

pub(super) fn plugin(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Install { file, manifest, host } => install(&file, manifest.as_deref(), &host)?,
        Command::List { host } => list(&host)?,
        Command::Show { name, host } => {
            let answer = host.client()?.send(Call::get(&format!("/v1/plugins/{}", segment(&name))))?;
            if host.json { answer.print() } else { show(&answer.read()?) }
        }
        Command::History { name, page, host } => history(&name, &page, &host)?,
        Command::Activate { name, wanted, host } => {
            let body = serde_json::json!({ "version": wanted }).to_string();
            let path = format!("/v1/plugins/{}/activate", segment(&name));
            swap(Call::post(&path).body("application/json", body.as_bytes()), &host)?;
        }
        Command::Rollback { name, host } => {
            swap(Call::post(&format!("/v1/plugins/{}/rollback", segment(&name))), &host)?;
        }
        Command::Remove { name, when_drained, host } => remove(&name, when_drained, &host)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn install(
    file: &std::path::Path,
    manifest: Option<&std::path::Path>,
    host: &client::HostArguments,
) -> Result<(), Failure> {
    let read = |path: &std::path::Path| {
        std::fs::read(path)
            .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))
    };
    let component = read(file)?;
    let path = match manifest {
        Some(manifest) => format!("/v1/plugins?manifest={}", URL_SAFE_NO_PAD.encode(read(manifest)?)),
        None => "/v1/plugins".to_owned(),
    };
    let call = Call::post(&path).body("application/wasm", &component).upload();
    let answer = host.client()?.send(call)?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let plugin: Plugin = answer.read()?;
    print::out(&print::clean(&format!("{} {} {}", plugin.name, plugin.version, plugin.digest)));
    if !plugin.denied.is_empty() {
        let text = format!("note: the tenant's policy does not grant it: {}", plugin.denied.join(", "));
        print::note(&print::clean(&text));
    }
    Ok(())
}

/// Sends what changes the current version, and says which one it is now.
fn swap(call: Call<'_>, host: &client::HostArguments) -> Result<(), Failure> {
    let answer = host.client()?.send(call.upload())?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let plugin: Plugin = answer.read()?;
    let text =
        format!("{} {} {} generation {}", plugin.name, plugin.version, plugin.digest, plugin.generation);
    print::out(&print::clean(&text));
    Ok(())
}

fn remove(name: &str, when_drained: bool, host: &client::HostArguments) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Left {
        live: u64,
    }
    let drain = if when_drained { "?drain=true" } else { "" };
    let answer = host.client()?.send(Call::delete(&format!("/v1/plugins/{}{drain}", segment(name))))?;
    if !answer.body.is_empty() {
        let Left { live } = answer.read()?;
        print::note(&format!("{} goes when {} tasks have ended", print::clean(name), print::thousands(live)));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Generations {
    generations: Vec<Generation>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct Generation {
    generation: u64,
    version: String,
    digest: String,
    component_bytes: u64,
    cause: String,
    at: String,
}

fn history(name: &str, page: &client::PageArguments, host: &client::HostArguments) -> Result<(), Failure> {
    let mut query = client::Query::default();
    query.page(page);
    let path = query.of(&format!("/v1/plugins/{}/history", segment(name)));
    let answer = host.client()?.send(Call::get(&path))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let Generations { generations, next } = answer.read()?;
    let row = |swap: Generation| {
        let digest = swap.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let size = print::size(swap.component_bytes);
        vec![swap.generation.to_string(), swap.version, digest, size, swap.cause, swap.at]
    };
    let head = ["generation", "version", "digest", "size", "cause", "since"];
    print::table(&head, generations.into_iter().map(row).collect());
    print::next(next.map(|next| next.to_string()).as_deref());
    Ok(())
}

fn list(host: &client::HostArguments) -> Result<(), Failure> {
    let answer = host.client()?.send(Call::get("/v1/plugins"))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let Plugins { plugins } = answer.read()?;
    let row = |plugin: Plugin| {
        let kinds: Vec<_> = plugin.kinds.iter().map(|kind| kind.name.as_str()).collect();
        let kinds = kinds.join(" ");
        vec![plugin.name, plugin.version, kinds, print::size(plugin.component_bytes), plugin.installed_at]
    };
    print::table(&["name", "version", "kinds", "size", "installed"], plugins.into_iter().map(row).collect());
    Ok(())
}

fn show(plugin: &Plugin) {
    let line = |name: &str, value: &str| print::out(&format!("{name:<12} {}", print::clean(value)));
    line("name", &plugin.name);
    line("version", &plugin.version);
    line("digest", &plugin.digest);
    line("size", &print::size(plugin.component_bytes));
    line("installed", &plugin.installed_at);
    line("generation", &plugin.generation.to_string());
    if plugin.draining {
        line("draining", "goes when its last task has ended");
    }
    line("description", &plugin.description);
    line("wants", &plugin.wants.join(", "));
    line("denied", &plugin.denied.join(", "));
    print::out("");
    let limit = |limit: Option<u64>| limit.map_or_else(|| "-".to_owned(), print::thousands);
    let row = |kind: &Kind| {
        vec![
            kind.name.clone(),
            limit(kind.fuel),
            limit(kind.memory_mib),
            limit(kind.timeout_s),
            kind.description.clone(),
        ]
    };
    let rows = plugin.kinds.iter().map(row).collect();
    print::table(&["kind", "fuel", "memory MiB", "timeout s", "description"], rows);
}
