//! `keiko plugin`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keiko_core::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::client::{self, Call, segment};
use super::exit::Failure;
use super::{print, sign};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Install a component, or a new version of one
    Install {
        /// The component (.wasm), or where the host fetches it from: https://… or oci://HOST/NAME:TAG
        #[arg(value_name = "FILE|SOURCE")]
        component: String,
        /// Its manifest, when the component carries none itself
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
        /// The signature of both, as `keiko plugin sign` writes it [default: beside the component, if it is there]
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
        /// What the component must be: sha256:… of its bytes
        #[arg(long)]
        digest: Option<String>,
        /// Let this part of the plugin's tasks and batches try it instead of making it current: 1% to 50%
        #[arg(long, value_name = "PERCENT", value_parser = percent)]
        canary: Option<u64>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Make a key to sign plugins with, and show who its signatures are of
    Key {
        /// Where the secret key is written; it must not be there yet
        file: PathBuf,
    },
    /// Sign a component, for tenants that take signed ones only
    Sign {
        /// The component (.wasm); the signature is written beside it (.sig)
        file: PathBuf,
        /// The secret key, as `keiko plugin key` made it
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The manifest that is given beside the component
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
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
        /// Let only this part of the tasks and batches try it; it is taken back when it is worse: 1% to 50%
        #[arg(long, value_name = "PERCENT", value_parser = percent)]
        canary: Option<u64>,
        #[command(flatten)]
        host: client::HostArguments,
    },
    /// Show how the canary of a plugin stands or ended
    Canary {
        /// Its name
        name: String,
        /// Take it back
        #[arg(long)]
        withdraw: bool,
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
    /// Show what became of the files of the watched folder
    Watched {
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
    profile: Option<String>,
    #[serde(default)]
    profile_denied: bool,
    installed_at: String,
    generation: u64,
    #[serde(default)]
    draining: bool,
    description: String,
    pub(super) kinds: Vec<Kind>,
    wants: Vec<String>,
    denied: Vec<String>,
    canary: Option<Canary>,
}

#[derive(Debug, Deserialize)]
struct Canary {
    version: String,
    digest: String,
    profile: Option<String>,
    percent: u64,
    state: String,
}

impl Canary {
    fn line(&self, plugin: &str) -> String {
        format!("{plugin} {} {} canary of {} % ({})", self.version, self.digest, self.percent, self.state)
    }
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
        Command::Install { component, manifest, signature, digest, canary, host } => {
            let canary = canary.map(|percent| percent.to_string());
            let wanted = Wanted { component, manifest, signature, digest };
            install(&wanted, canary.as_deref(), &host)?;
        }
        Command::Key { file } => sign::key(&file)?,
        Command::Sign { file, key, manifest } => sign::sign(&file, &key, manifest.as_deref())?,
        Command::List { host } => list(&host)?,
        Command::Show { name, host } => {
            let answer = host.client()?.send(Call::get(&format!("/v1/plugins/{}", segment(&name))))?;
            if host.json { answer.print() } else { show(&answer.read()?) }
        }
        Command::History { name, page, host } => history(&name, &page, &host)?,
        Command::Activate { name, wanted, canary, host } => {
            let mut body = serde_json::json!({ "version": wanted });
            if let Some(percent) = canary {
                body["canary_percent"] = percent.into();
            }
            let body = body.to_string();
            let path = format!("/v1/plugins/{}/activate", segment(&name));
            swap(Call::post(&path).body("application/json", body.as_bytes()), &host)?;
        }
        Command::Rollback { name, host } => {
            swap(Call::post(&format!("/v1/plugins/{}/rollback", segment(&name))), &host)?;
        }
        Command::Canary { name, withdraw, host } => canary(&name, withdraw, &host)?,
        Command::Watched { host } => watched(&host)?,
        Command::Remove { name, when_drained, host } => remove(&name, when_drained, &host)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be installed.
struct Wanted {
    component: String,
    manifest: Option<PathBuf>,
    signature: Option<PathBuf>,
    digest: Option<String>,
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))
}

/// Sends a component, or where it is, with what is given beside it.
fn install(wanted: &Wanted, canary: Option<&str>, host: &client::HostArguments) -> Result<(), Failure> {
    // Whatever else it is called, a file has no scheme.
    let is_source = wanted.component.contains("://");
    let manifest = wanted.manifest.as_deref().map(read).transpose()?;
    let signature = match &wanted.signature {
        Some(file) => Some(file.clone()),
        None => Some(sign::beside(Path::new(&wanted.component))).filter(|file| !is_source && file.is_file()),
    };
    let signature = signature.map(|file| read(&file)).transpose()?;
    let mut query = client::Query::default();
    query.add("manifest", manifest.map(|manifest| URL_SAFE_NO_PAD.encode(manifest)).as_deref());
    query.add("signature", signature.map(|text| String::from_utf8_lossy(&text).trim().to_owned()).as_deref());
    query.add("canary_percent", canary);
    let path = query.of("/v1/plugins");
    let (kind, body) = if is_source {
        let mut body = serde_json::json!({ "source": wanted.component });
        if let Some(digest) = &wanted.digest {
            body["digest"] = digest.as_str().into();
        }
        ("application/json", body.to_string().into_bytes())
    } else {
        let component = read(Path::new(&wanted.component))?;
        check_digest(&component, wanted.digest.as_deref())?;
        ("application/wasm", component)
    };
    let call = Call::post(&path).body(kind, &body).upload();
    let answer = host.client()?.send(call)?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let plugin: Plugin = answer.read()?;
    match &plugin.canary {
        Some(canary) => print::out(&print::clean(&canary.line(&plugin.name))),
        None => print::out(&print::clean(&format!("{} {} {}", plugin.name, plugin.version, plugin.digest))),
    }
    if !plugin.denied.is_empty() {
        let text = format!("note: the tenant's policy does not grant it: {}", plugin.denied.join(", "));
        print::note(&print::clean(&text));
    }
    Ok(())
}

/// Fails unless a file is what it must be.
fn check_digest(component: &[u8], wanted: Option<&str>) -> Result<(), Failure> {
    let Some(wanted) = wanted else { return Ok(()) };
    let found = Digest(Sha256::digest(component).into());
    match wanted.parse::<Digest>() {
        Ok(wanted) if wanted == found => Ok(()),
        Ok(wanted) => Err(Failure::Usage(format!("the component has the digest {found}, and not {wanted}"))),
        Err(error) => Err(Failure::Usage(format!("--digest: {error}"))),
    }
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
    if let Some(canary) = &plugin.canary {
        print::out(&print::clean(&canary.line(&plugin.name)));
    }
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

fn watched(host: &client::HostArguments) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct File {
        file: String,
        state: String,
        at: String,
        plugin: Option<String>,
        version: Option<String>,
        code: Option<String>,
        message: Option<String>,
    }
    #[derive(Deserialize)]
    struct Files {
        files: Vec<File>,
    }
    let answer = host.client()?.send(Call::get("/v1/watched"))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let Files { files } = answer.read()?;
    let row = |file: File| {
        let told = [file.plugin, file.version, file.code, file.message];
        vec![file.file, file.state, file.at, told.into_iter().flatten().collect::<Vec<_>>().join(" ")]
    };
    print::table(&["file", "state", "at", "what"], files.into_iter().map(row).collect());
    Ok(())
}

/// A part of tasks and batches in percent, with or without the sign.
fn percent(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    number.parse().map_err(|_| "a whole number of percent, such as 10%".to_owned())
}

fn canary(name: &str, withdraw: bool, host: &client::HostArguments) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Tally {
        attempts: u64,
        batches: u64,
        plugin_failed: u64,
        broke: u64,
    }
    #[derive(Deserialize)]
    struct Tried {
        version: String,
        percent: u64,
        state: String,
        since: String,
        canary: Tally,
        current: Tally,
        last_failure: Option<String>,
    }
    let path = format!("/v1/plugins/{}/canary", segment(name));
    if withdraw {
        return host.client()?.send(Call::delete(&path)).map(drop);
    }
    let answer = host.client()?.send(Call::get(&path))?;
    if host.json {
        answer.print();
        return Ok(());
    }
    let tried: Tried = answer.read()?;
    let line = |name: &str, value: &str| print::out(&format!("{name:<12} {}", print::clean(value)));
    line("version", &tried.version);
    line("percent", &tried.percent.to_string());
    line("state", &tried.state);
    line("since", &tried.since);
    if let Some(failure) = &tried.last_failure {
        line("last failure", failure);
    }
    print::out("");
    let row = |name: &str, tally: &Tally| {
        let Tally { attempts, batches, plugin_failed, broke } = *tally;
        let numbers = [attempts, batches, plugin_failed, broke].map(print::thousands);
        [name.to_owned()].into_iter().chain(numbers).collect()
    };
    let rows = vec![row("canary", &tried.canary), row("current", &tried.current)];
    print::table(&["", "attempts", "of batches", "plugin failed", "broke"], rows);
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
    profile: Option<String>,
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
        let profile = swap.profile.unwrap_or_default();
        vec![swap.generation.to_string(), swap.version, digest, size, profile, swap.cause, swap.at]
    };
    let head = ["generation", "version", "digest", "size", "profile", "cause", "since"];
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
    let denied = if plugin.profile_denied { ", which the tenant's policy does not permit" } else { "" };
    line("profile", &format!("{}{denied}", plugin.profile.as_deref().unwrap_or("unknown")));
    line("installed", &plugin.installed_at);
    line("generation", &plugin.generation.to_string());
    if plugin.draining {
        line("draining", "goes when its last task has ended");
    }
    if let Some(Canary { version, percent, state, profile, .. }) = &plugin.canary {
        let profile = profile.as_deref().unwrap_or("unknown");
        line("canary", &format!("{version}, {percent} % of tasks and batches ({state}), profile {profile}"));
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
