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
    /// Remove a plugin that has no open tasks
    Remove {
        /// Its name
        name: String,
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
        Command::Remove { name, host } => {
            host.client()?.send(Call::delete(&format!("/v1/plugins/{}", segment(&name))))?;
        }
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
