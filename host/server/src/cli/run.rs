//! `keiko run`: one attempt in this process, with no host, no data folder and no lock; or one on the host of `--server`,
//! under its tenant's policy, which keeps nothing of it but what it spent.
//!
//! Compiled components are kept in the user's cache folder, so that only the first run of a component waits for
//! the compiler. Children that the run asks for are shown and not submitted.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keiko_core::admission::admit;
use keiko_core::effect::ChildWish;
use keiko_core::limit::{COMPONENT_BYTES_CEILING, INPUT_BYTES_MAX, MIB, RUN_WALL_MS_MAX};
use keiko_core::manifest::Manifest;
use keiko_core::metric::{self, Measured, MetricRefused, MetricSection};
use keiko_core::policy::{Budget, BudgetRequest, Grants, TenantPolicy};
use keiko_core::port::{
    Attempt, AttemptFacts, Clock, Compiled, Components, HostPort, ReserveError, Reserved, Runner, StoreError,
};
use keiko_core::profile::Profiles;
use keiko_core::stop::{Stop, StopReason};
use keiko_core::task::{Lineage, Payload};
use keiko_core::{Digest, KindId, KindName, TaskId};
use keiko_engine::{ClusterKey, Engine, EngineOptions};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::value::RawValue;

use super::client::{self, Call, Client, segment};
use super::exit::{self, Failure};
use super::plugin::Plugin;
use super::{input, print, report};
use crate::api::Report;
use crate::wiring::{SystemClock, own_compiler};

/// What `--help` says.
pub(super) const ABOUT: &str = "\
Run one attempt of a plugin in this process, or, with --server, on a host under its policy and limits. No host is \
needed for a file; without --server, a plugin's NAME is fetched from the host on this machine. The result goes to stdout; the log, what was spent, and children that the run asked for, which are only \
shown, go to stderr.

Exit status: 0 completed, 1 the plugin failed or trapped, 2 the command line is wrong, 3 the component or the input \
was refused, 4 the host is at fault, 5 a limit stopped it.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A component (a file), or the name of an installed plugin
    #[arg(value_name = "COMPONENT|NAME")]
    component: String,
    /// The kind; may be left out when there is only one
    #[arg(long)]
    kind: Option<String>,
    /// JSON, the name of a file, or - for stdin [default: null]
    #[arg(long, value_name = "FILE|-|JSON", allow_hyphen_values = true)]
    input: Option<String>,
    /// Media type of the input, which is then taken as bytes
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The plugin's manifest, when the component carries none itself
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Fuel it may use
    #[arg(long, value_name = "N")]
    fuel: Option<u64>,
    /// Memory it may use, in MiB
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Time it may take, in seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// A setting it may read; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    setting: Vec<String>,
    /// Run an installed plugin on the host at this address, which keeps nothing but what it spends
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Find the host by the address it wrote into its data folder, instead of --server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Fetch the plugin from the host and run it in this process all the same
    #[arg(long)]
    here: bool,
    /// Token of the tenant to speak for; better in the environment, where others do not see it
    #[arg(long, env = "KEIKO_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Print the report as JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn is_name(&self) -> bool {
        self.component.parse::<keiko_core::PluginName>().is_ok() && !Path::new(&self.component).is_file()
    }

    fn client(&self) -> Result<Client, Failure> {
        let server = self.server.clone().or_else(|| std::env::var("KEIKO_SERVER").ok());
        client::HostArguments::of(server, self.data_dir.clone(), self.token.clone()).client()
    }
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    if !arguments.here && (arguments.server.is_some() || arguments.data_dir.is_some()) {
        return there(&arguments);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Host(format!("no threads: {error}")))?;
    // Fetching blocks, so it happens before the runtime does anything.
    let source = source(&arguments)?;
    let payload = input::read(arguments.input.as_deref(), arguments.content_type.as_deref())?;
    if payload.bytes.len() as u64 > INPUT_BYTES_MAX {
        let text =
            format!("an input of {} bytes exceeds the limit of {INPUT_BYTES_MAX}", payload.bytes.len());
        return Err(Failure::Refused(text));
    }
    let settings = settings(&arguments.setting)?;
    runtime.block_on(attempt(&arguments, source, payload, settings))
}

/// A run as the host takes it.
#[derive(Serialize)]
struct RunBody<'a> {
    plugin: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fuel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
}

/// Runs it on the host.
fn there(arguments: &Arguments) -> Result<ExitCode, Failure> {
    if !arguments.is_name() {
        let text = "a host runs plugins that it has: install the file first, and give the plugin's name";
        return Err(Failure::Usage(text.to_owned()));
    }
    if arguments.manifest.is_some() || !arguments.setting.is_empty() {
        let text = "--manifest and --setting are of runs in this process; a host has its own";
        return Err(Failure::Usage(text.to_owned()));
    }
    let client = arguments.client()?;
    let payload = input::read(arguments.input.as_deref(), arguments.content_type.as_deref())?;
    let raw: Option<&RawValue> = match &arguments.content_type {
        None => serde_json::from_slice(&payload.bytes).ok(),
        Some(_) => None,
    };
    let body = RunBody {
        plugin: &arguments.component,
        kind: arguments.kind.as_deref(),
        input: raw,
        input_base64: raw.is_none().then(|| STANDARD.encode(&payload.bytes)),
        content_type: raw.is_none().then_some(payload.content_type.as_str()),
        fuel: arguments.fuel,
        memory_mib: arguments.memory,
        timeout_s: arguments.timeout,
    };
    let body = serde_json::to_vec(&body).map_err(|error| Failure::Usage(error.to_string()))?;
    let call = Call::post("/v1/run?report=true").body("application/json", &body);
    let answer = client.send(call.and_wait(RUN_WALL_MS_MAX / 1_000))?;
    let report: Report = answer.read()?;
    if arguments.json {
        answer.print();
    } else {
        report::show(&report);
    }
    report::status(&report).map(ExitCode::from)
}

/// What is to be run.
struct Source {
    component: Bytes,
    /// From beside the component; one inside it is found when it is compiled.
    manifest: Option<Manifest>,
    /// Kinds, and what they ask for, of a plugin that a host has.
    plugin: Option<Plugin>,
}

fn source(arguments: &Arguments) -> Result<Source, Failure> {
    let path = Path::new(&arguments.component);
    let unreadable = |path: &Path, error: std::io::Error| {
        Failure::Usage(format!("{} cannot be read: {error}", path.display()))
    };
    let manifest = match &arguments.manifest {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| unreadable(path, error))?;
            let manifest = Manifest::parse(&bytes);
            Some(manifest.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?)
        }
        None => None,
    };
    if !arguments.is_name() {
        let component = std::fs::read(path).map_err(|error| unreadable(path, error))?;
        return Ok(Source { component: component.into(), manifest, plugin: None });
    }
    let client = arguments.client()?;
    let path = format!("/v1/plugins/{}", segment(&arguments.component));
    let plugin: Plugin = client.send(Call::get(&path))?.read()?;
    let component = client.send(Call::get(&format!("{path}/component")).upload())?.body;
    let text = format!("{} {} {}", plugin.name, plugin.version, plugin.digest);
    print::note(&print::clean(&text));
    Ok(Source { component: component.into(), manifest, plugin: Some(plugin) })
}

fn settings(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::Usage(format!("--setting is `{text}`; expected NAME=VALUE"))),
    };
    given.iter().map(pair).collect()
}

async fn attempt(
    arguments: &Arguments,
    source: Source,
    input: Payload,
    settings: BTreeMap<String, String>,
) -> Result<ExitCode, Failure> {
    let cache = Cache::open()?;
    let components = Arc::new(Memory::default());
    let engine = cache.engine(components.clone())?;
    let compiled =
        match engine.compile(source.component.clone(), COMPONENT_BYTES_CEILING, Profiles::ALL).await {
            Ok(compiled) => compiled,
            Err(error) => {
                let text = format!("{} ({})", print::clean_lines(&error.message), error.code);
                print::note(&format!("keiko: {text}"));
                return Ok(ExitCode::from(exit::of_run(error.code)));
            }
        };
    let (kind, wish) = kind(arguments, &compiled, source.manifest.as_ref(), source.plugin.as_ref())?;
    let budget = budget(arguments, &wish)?;
    let manifest = source.manifest.as_ref().or(compiled.manifest.as_ref());
    let command = manifest.and_then(|manifest| manifest.command(&kind));
    let random = manifest.map(|manifest| manifest.random(&kind)).unwrap_or_default();
    let metrics = manifest.map(|manifest| manifest.metrics.clone()).unwrap_or_default();
    // Lines of a backtrace are read from the component.
    components.0.lock().insert(compiled.digest, source.component);
    let id = TaskId::floor(SystemClock.now_ms());
    let attempt = Attempt {
        facts: AttemptFacts {
            tenant: "default".parse().map_err(|_| Failure::Host("`default` is no name".to_owned()))?,
            task: id,
            lineage: Lineage::root(id),
            number: 1,
            attempts_max: 1,
            trace: None,
        },
        digest: compiled.digest,
        kind,
        input,
        budget,
        grants: Arc::new(Grants::default()),
        settings: Arc::new(settings),
        command,
        keep: None,
        random,
    };
    let stop = Stop::default();
    let port = Arc::new(Port { next_child: AtomicI64::new(id.0 + 1), metrics });
    let report = {
        let run = engine.run(attempt, port, stop.clone());
        let mut run = std::pin::pin!(run);
        tokio::select! {
            report = run.as_mut() => report,
            // Interrupted, the attempt still ends by itself, with its log and what it spent.
            _ = tokio::signal::ctrl_c() => {
                stop.set(StopReason::Cancelled);
                run.await
            }
        }
    };
    let report = Report::from(&report);
    if arguments.json {
        print::out(&serde_json::to_string(&report).map_err(|error| Failure::Host(error.to_string()))?);
    } else {
        report::show(&report);
    }
    report::status(&report).map(ExitCode::from)
}

/// The kind to run and what its manifest asks for.
fn kind(
    arguments: &Arguments,
    compiled: &Compiled,
    manifest: Option<&Manifest>,
    plugin: Option<&Plugin>,
) -> Result<(KindName, BudgetRequest), Failure> {
    let mut kinds: Vec<(String, BudgetRequest)> = Vec::new();
    if let Some(manifest) = manifest.or(compiled.manifest.as_ref()) {
        kinds.extend(manifest.kinds.iter().map(|kind| (kind.name.to_string(), kind.budget())));
    } else if let Some(plugin) = plugin {
        let wish = |kind: &super::plugin::Kind| BudgetRequest {
            fuel: kind.fuel,
            memory_bytes: kind.memory_mib.map(|mib| mib.saturating_mul(MIB)),
            wall_ms: kind.timeout_s.map(|seconds| seconds.saturating_mul(1_000)),
            ..BudgetRequest::default()
        };
        kinds.extend(plugin.kinds.iter().map(|kind| (kind.name.clone(), wish(kind))));
    }
    let names = || kinds.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let (name, wish) = match (&arguments.kind, kinds.as_slice()) {
        (Some(name), []) => (name, BudgetRequest::default()),
        (Some(name), _) => match kinds.iter().find(|(known, _)| known == name) {
            Some((known, wish)) => (known, *wish),
            None => return Err(Failure::Usage(format!("there is no kind `{name}`; there are: {}", names()))),
        },
        (None, [(name, wish)]) => (name, *wish),
        (None, []) => {
            let text = "the component carries no manifest; name the kind with --kind, or give --manifest";
            return Err(Failure::Usage(text.to_owned()));
        }
        (None, _) => return Err(Failure::Usage(format!("which kind? --kind is one of: {}", names()))),
    };
    let name = name.parse().map_err(|error| Failure::Usage(format!("--kind: {error}")))?;
    Ok((name, wish))
}

fn budget(arguments: &Arguments, manifest: &BudgetRequest) -> Result<Budget, Failure> {
    let asked = BudgetRequest {
        fuel: arguments.fuel,
        memory_bytes: arguments.memory.map(|mib| mib.saturating_mul(MIB)),
        wall_ms: arguments.timeout.map(|seconds| seconds.saturating_mul(1_000)),
        ..BudgetRequest::default()
    };
    admit(&TenantPolicy::default(), manifest, &asked).map_err(|denied| Failure::Usage(denied.to_string()))
}

/// Where compiled components are kept between runs.
struct Cache {
    folder: PathBuf,
    /// Without a home there is no place to keep anything: the folder goes with the run.
    is_temporary: bool,
}

impl Cache {
    fn open() -> Result<Cache, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let kept = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
        let make = |folder: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        if let Some(folder) = kept.map(|folder| folder.join("keiko"))
            && make(&folder).is_ok()
        {
            return Ok(Cache { folder, is_temporary: false });
        }
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|error| Failure::Host(format!("no random bytes: {error}")))?;
        let folder = std::env::temp_dir().join(format!("keiko-run-{:016x}", u64::from_le_bytes(name)));
        make(&folder).map_err(|error| Failure::Host(format!("{}: {error}", folder.display())))?;
        Ok(Cache { folder, is_temporary: true })
    }

    fn engine(&self, components: Arc<Memory>) -> Result<Engine, Failure> {
        let compiler = own_compiler().map_err(|error| Failure::Host(error.to_string()))?;
        let key = ClusterKey::load_or_create(&self.folder.join("cluster.key"));
        let cluster_key =
            key.map_err(|error| Failure::Host(format!("{}: {error}", self.folder.display())))?;
        let artifacts_dir = self.folder.join("artifacts");
        let options = EngineOptions { artifacts_dir, cluster_key, compiler, running_max: 1 };
        let engine = Engine::new(options, components);
        engine.map_err(|error| Failure::Host(error.to_string()))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if self.is_temporary {
            // What stays behind lies in the system's own folder for such things.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Components of this run.
#[derive(Default)]
struct Memory(Mutex<HashMap<Digest, Bytes>>);

#[async_trait]
impl Components for Memory {
    async fn put(&self, digest: Digest, bytes: Bytes, _: i64) -> Result<(), StoreError> {
        self.0.lock().insert(digest, bytes);
        Ok(())
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().get(&digest).cloned())
    }
}

/// The host of one run: it shows progress and what is given out, holds what is measured to the manifest, and promises children that nobody will
/// run.
struct Port {
    next_child: AtomicI64,
    metrics: Vec<MetricSection>,
}

#[async_trait]
impl HostPort for Port {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms()
    }

    fn progress(&self, fraction: f64, message: String) {
        print::note(&print::clean(&format!("{:3.0} % {message}", fraction * 100.0)));
    }

    fn emit(&self, piece: Bytes) {
        print::piece(std::str::from_utf8(&piece).map_err(|_| piece.len()));
    }

    fn measure(
        &self,
        name: &str,
        labels: &[(String, String)],
        measured: Measured,
    ) -> Result<(), MetricRefused> {
        metric::meant(&self.metrics, name, labels, measured).map(drop)
    }

    async fn reserve(&self, wishes: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError> {
        let first = self.next_child.fetch_add(wishes.len() as i64, Ordering::Relaxed);
        Ok((first..)
            .map(|id| Reserved { id: TaskId(id), kind: KindId(0), budget: BudgetRequest::default() })
            .take(wishes.len())
            .collect())
    }
}
