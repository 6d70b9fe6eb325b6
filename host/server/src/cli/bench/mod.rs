//! `keiko bench`: a load on a host, and what came of it.
//!
//! The host is the one of `--server`, or one that the command starts in this process and a folder of its own, and ends.
//! What runs is a plugin that the host has, or the built-in guest, whose result is its input.

mod client;
mod histogram;
mod load;
mod own;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;

use self::client::{Connection, Target};
use self::load::Load;
use super::exit::{self, Failure};
use super::print;

/// What `--help` says.
pub(super) const ABOUT: &str = "\
Put a load on a host and say what came of it: how many a second, how long each took, and what it cost.

Tasks are submitted in bulk and worked off (--tasks), or submitted one by one at a steady rate, each with a wait for \
its end (--rate). Runs (--lane run) are sent as fast as the connections allow, or at a rate. Without --server the \
command starts a host of its own, on SQLite or in the empty database of --database, and ends it. Of a bulk what has \
ended is counted by tenant: with --server nothing else should run for the same tenants meanwhile.

Exit status: 0 everything ended as it should, 1 something failed, otherwise as with other commands.";

/// The built-in guest.
const NOOP: &[u8] = include_bytes!("noop.wasm");
const NOOP_NAME: &str = "keiko-bench";
const NOOP_MANIFEST: &str = "[plugin]\nname = \"keiko-bench\"\nversion = \"1\"\n[[kind]]\nname = \"noop\"\n";
/// The built-in guest's only kind.
const NOOP_KIND: &str = "noop";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Address of the host; without it, one is started here
    #[arg(long, value_name = "URL", conflicts_with_all = ["database", "workers", "tenants"])]
    server: Option<String>,
    /// Tokens of the tenants to speak for, with --server
    #[arg(long, env = "KEIKO_TOKEN", hide_env_values = true, value_name = "TOKEN", value_delimiter = ',')]
    token: Vec<String>,
    /// An empty PostgreSQL database for the host that is started
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Threads that run guests on the host that is started
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Tenants that share the load, on the host that is started
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    tenants: u16,
    /// Tasks that are stored, or runs that are not
    #[arg(long, value_enum, default_value_t = Lane::Durable)]
    lane: Lane,
    /// Tasks that are submitted in bulk
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    tasks: u64,
    /// Tasks of one submit
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Submit or run so many a second, one by one, instead of as many as possible
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: Option<u64>,
    /// How long runs, or anything at a rate, go on, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Connections, each with one request at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: Option<u16>,
    /// Bytes of each input
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u64).range(2..=2_097_152))]
    payload: u64,
    /// A plugin that the host has, instead of the built-in guest
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// A component to install and load, instead of the built-in guest
    #[arg(long, value_name = "FILE", conflicts_with = "plugin")]
    component: Option<std::path::PathBuf>,
    /// The plugin's kind
    #[arg(long)]
    kind: Option<String>,
    /// Print the figures as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Lane {
    Durable,
    Run,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    lane: &'static str,
    plugin: String,
    kind: Option<String>,
    payload_bytes: u64,
    connections: usize,
    tenants: usize,
    /// Tasks or runs that ended as they should, and others.
    completed: u64,
    failed: u64,
    seconds: f64,
    per_second: f64,
    /// Of a bulk: how fast tasks were accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    submits_per_second: Option<f64>,
    /// Processor time of this process for each, the host included when it is here.
    cpu_us: f64,
    /// Whether the host is in this process.
    own_host: bool,
    /// Of a bulk: of each submit of a batch. Otherwise of each task or run, from its submit to its end.
    latency_us: LatencyFigures,
    /// Upper bounds and how many were at most that, in microseconds.
    histogram: Vec<(u64, u64)>,
}

#[derive(Debug, Serialize)]
struct LatencyFigures {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    maximum: u64,
}

pub(super) fn bench(arguments: Arguments) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("keiko").build();
    let runtime = runtime.map_err(|error| Failure::Host(format!("no threads: {error}")))?;
    let figures = runtime.block_on(measure(&arguments))?;
    if arguments.json {
        let text = serde_json::to_string(&figures).map_err(|error| Failure::Host(error.to_string()))?;
        print::out(&text);
    } else {
        show(&figures);
    }
    Ok(ExitCode::from(if figures.failed == 0 { 0 } else { exit::FAILED }))
}

async fn measure(arguments: &Arguments) -> Result<Figures, Failure> {
    let own = match &arguments.server {
        Some(_) => None,
        None => Some(own::start(arguments.database.as_deref(), arguments.workers, arguments.tenants).await?),
    };
    let target = match (&own, &arguments.server) {
        (Some(own), _) => own.target(),
        (None, Some(server)) => Target::of(server, &arguments.token).await?,
        (None, None) => return Err(Failure::Usage("there is no host".to_owned())),
    };
    let figures = on(arguments, target, own.is_some()).await;
    if let Some(own) = own {
        own.end().await;
    }
    figures
}

async fn on(arguments: &Arguments, target: Target, own_host: bool) -> Result<Figures, Failure> {
    let (plugin, kind) = install(arguments, &target).await?;
    let connections = arguments.connections.map_or(default_connections(arguments), usize::from);
    let load = Arc::new(Load::new(target, &plugin, kind.as_deref(), arguments.payload, connections));
    let duration = Duration::from_secs(arguments.duration);
    let done = match (arguments.lane, arguments.rate) {
        (Lane::Durable, None) => load::bulk(&load, arguments.tasks, arguments.batch).await?,
        (Lane::Durable, Some(rate)) => load::at_rate(&load, "/v1/tasks?wait=30", rate, duration).await?,
        (Lane::Run, Some(rate)) => load::at_rate(&load, "/v1/run", rate, duration).await?,
        (Lane::Run, None) => load::as_fast_as_possible(&load, "/v1/run", duration).await?,
    };
    let seconds = done.elapsed.as_secs_f64();
    let latencies = &done.latencies;
    Ok(Figures {
        lane: match arguments.lane {
            Lane::Durable => "durable",
            Lane::Run => "run",
        },
        plugin,
        kind,
        payload_bytes: arguments.payload,
        connections,
        tenants: load.tenants(),
        completed: done.completed,
        failed: done.failed,
        seconds,
        per_second: done.completed as f64 / seconds,
        submits_per_second: done.submitted.map(|time| arguments.tasks as f64 / time.as_secs_f64()),
        cpu_us: done.cpu.as_secs_f64() * 1e6 / (done.completed + done.failed).max(1) as f64,
        own_host,
        latency_us: LatencyFigures {
            p50: latencies.at(50.0),
            p90: latencies.at(90.0),
            p99: latencies.at(99.0),
            p999: latencies.at(99.9),
            maximum: latencies.at(100.0),
        },
        histogram: latencies.buckets(),
    })
}

/// Enough to keep a host busy with what is asked.
fn default_connections(arguments: &Arguments) -> usize {
    match (arguments.lane, arguments.rate) {
        (Lane::Durable, None) => 4,
        (Lane::Run, None) => 1,
        (_, Some(rate)) => (rate as usize).clamp(1, 256),
    }
}

/// Sees to it that every tenant has the plugin; its name and kind.
async fn install(arguments: &Arguments, target: &Target) -> Result<(String, Option<String>), Failure> {
    if let Some(plugin) = &arguments.plugin {
        return Ok((plugin.clone(), arguments.kind.clone()));
    }
    let (component, path) = match &arguments.component {
        Some(file) => {
            let bytes = std::fs::read(file)
                .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", file.display())))?;
            (bytes, "/v1/plugins".to_owned())
        }
        None => {
            let manifest = URL_SAFE_NO_PAD.encode(NOOP_MANIFEST);
            (NOOP.to_vec(), format!("/v1/plugins?manifest={manifest}"))
        }
    };
    let mut name = NOOP_NAME.to_owned();
    for token in target.tokens() {
        let mut connection = Connection::open(target).await?;
        let answer = connection.post(&path, "application/wasm", token, component.clone().into()).await?;
        let body = answer.success()?;
        #[derive(serde::Deserialize)]
        struct Installed {
            name: String,
        }
        let installed: Installed = serde_json::from_slice(&body)
            .map_err(|error| Failure::Host(format!("the host's answer is not understood: {error}")))?;
        name = installed.name;
    }
    let builtin = arguments.component.is_none().then(|| NOOP_KIND.to_owned());
    Ok((name, arguments.kind.clone().or(builtin)))
}

fn show(figures: &Figures) {
    let line = |name: &str, value: String| print::out(&format!("{name:<22} {}", print::clean(&value)));
    line("lane", figures.lane.to_owned());
    line("plugin", figures.plugin.clone());
    line("completed, failed", format!("{}, {}", print::thousands(figures.completed), figures.failed));
    line("per second", print::thousands(figures.per_second as u64));
    if let Some(submits) = figures.submits_per_second {
        line("submitted per second", print::thousands(submits as u64));
    }
    let whose = if figures.own_host { "client and host" } else { "client alone" };
    line("CPU for each", format!("{:.1} µs ({whose})", figures.cpu_us));
    let of = if figures.submits_per_second.is_some() { "latency of a submit" } else { "latency" };
    let LatencyFigures { p50, p90, p99, p999, maximum } = figures.latency_us;
    for (name, value) in [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("maximum", maximum)] {
        line(&format!("{of} {name}"), print::span(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_guest_is_its_text() {
        let component = wat::parse_str(include_str!("noop.wat")).unwrap();
        assert!(
            component == NOOP,
            "src/cli/bench/noop.wasm is not noop.wat: write the component of the text there"
        );
    }

    #[test]
    fn the_built_in_manifest_is_one() {
        let manifest = keiko_core::manifest::Manifest::parse(NOOP_MANIFEST.as_bytes()).unwrap();
        assert_eq!((manifest.plugin.name.as_str(), manifest.kinds[0].name.as_str()), (NOOP_NAME, NOOP_KIND));
    }
}
