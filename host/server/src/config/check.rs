//! From what was written to what a host runs with: ranges, names, and what goes together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use keiko_core::limit::{
    BATCH_MEMORY_BYTES, BLOCKING_PER_HOST, BLOCKING_PER_WORKER, BULK_TASKS_MAX, COMPONENT_BYTES_CEILING,
    LEASE_MS, LOCAL_QUEUE_BYTES_MAX, MIB,
};
use keiko_core::policy::{BUDGET_CEILING, Capability, Grants, TenantPolicy};
use keiko_core::profile::{Profile, Profiles};
use keiko_core::slot::SLOTS_MAX;
use keiko_core::{PluginName, TenantName};
use keiko_runtime::{Cores, TenantOptions};
use serde_json::Value;

use super::origin::Origin;
use super::suggest::nearest;
use super::written::{LIMITS, SCALARS, Scalar, Set, TenantWritten, TokenWritten, Written};
use super::{ApiLimits, Config, ConfigError, Effective, LogFormat, Mistake, TenantConfig};
use crate::signature::Signer;
use crate::token::{self, TokenEntry};

/// The tenant of a host whose configuration declares none.
pub(crate) const DEFAULT_TENANT: &str = "default";
/// Tenants of one host.
const TENANTS_MAX: usize = 10_000;
/// Tokens of one tenant.
const TOKENS_MAX: usize = 1_000;
/// Signers of one tenant.
const SIGNERS_MAX: usize = 100;
/// Longest value of a plugin's setting, in bytes.
const SETTING_BYTES_MAX: usize = 64 << 10;
/// Most MiB of the host's memory for what waits there: batch items, or inputs of tasks.
const MEMORY_MIB_MAX: u64 = 65_536;

/// Checks everything, and says all that is wrong.
pub(super) fn check(written: Written) -> Result<Config, ConfigError> {
    let Written { scalars, tenants, sources, cluster_key, mistakes } = written;
    let mut checker = Checker { scalars, mistakes, effective: Vec::new() };
    let mut config = checker.host();
    config.cluster_key = checker.cluster_key(cluster_key);
    config.tenants = checker.tenants(tenants, config.batch_memory_bytes);
    config.sources = checker.sources(sources, &config.tenants);
    checker.reachable(&config);
    if !checker.mistakes.is_empty() {
        return Err(ConfigError { mistakes: checker.mistakes });
    }
    config.effective = checker.effective;
    // In the order of the documentation; what is not in the table, the tenants, follows as it came.
    let place =
        |entry: &Effective| SCALARS.iter().position(|(path, _)| *path == entry.path).unwrap_or(SCALARS.len());
    config.effective.sort_by_key(place);
    Ok(config)
}

struct Checker {
    scalars: BTreeMap<&'static str, Set<Scalar>>,
    mistakes: Vec<Mistake>,
    effective: Vec<Effective>,
}

impl Checker {
    fn host(&mut self) -> Config {
        let worker_cores = self.text("host.worker_cores", "", str::parse::<Cores>).unwrap_or_default();
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = worker_cores.count().unwrap_or_else(cores) as u64;
        let listen = self.text("host.listen", "127.0.0.1:7700", |text| {
            text.parse()
                .map_err(|_| format!("`{text}` is not an address with a port, such as 127.0.0.1:7700"))
        });
        let data_dir = self.text("host.data_dir", "data", |text| {
            if text.is_empty() { Err("the folder has no name".to_owned()) } else { Ok(PathBuf::from(text)) }
        });
        let plugins_dir =
            self.text("host.plugins_dir", "", |text| Ok((!text.is_empty()).then(|| PathBuf::from(text))));
        let log = self.text("host.log", "info", |text| {
            let parsed: Result<tracing_subscriber::EnvFilter, _> = text.parse();
            parsed.map(|_| text.to_owned()).map_err(|error| format!("`{text}` is not a filter: {error}"))
        });
        let log_format = self.text("host.log_format", "text", |text| {
            <LogFormat as clap::ValueEnum>::from_str(text, false)
                .map_err(|_| format!("`{text}` is not text or json"))
        });
        let mut seconds = |path, default, max| Duration::from_secs(self.number(path, default, 1, max));
        let (request, upload) = (seconds("api.request_s", 30, 3_600), seconds("api.upload_s", 300, 3_600));
        let header = seconds("api.header_s", 15, 3_600);
        let mut count = |path, default, max| self.number(path, default, 1, max) as usize;
        Config {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            data_dir: data_dir.unwrap_or_default(),
            plugins_dir: plugins_dir.flatten(),
            workers: count("host.workers", workers, 1_024),
            worker_cores,
            blocking_per_worker: count("host.blocking_per_worker", BLOCKING_PER_WORKER as u64, 1_024),
            blocking_max: count("host.blocking_max", BLOCKING_PER_HOST as u64, 4_096),
            running_max: count("host.running_max", 100, 1_000),
            readers: count("host.readers", 4, 64) as u32,
            api: ApiLimits {
                connections_max: count("api.connections_max", 1_024, 65_536),
                requests_max: count("api.requests_max", 256, 65_536),
                waits_max: count("api.waits_max", 512, 65_536),
                streams_max: count("api.streams_max", 256, 65_536),
                uploads_max: count("api.uploads_max", 4, 64),
                request,
                upload,
                header,
            },
            local_queue_bytes_max: self.memory("host.local_queue_mib", LOCAL_QUEUE_BYTES_MAX as u64) as usize,
            batch_memory_bytes: self.memory("host.batch_memory_mib", BATCH_MEMORY_BYTES),
            drain: Duration::from_secs(self.number("host.drain_s", 30, 0, 3_600)),
            lease: Duration::from_secs(self.number("host.lease_s", LEASE_MS as u64 / 1_000, 2, 600)),
            database: self.database(),
            cache: self.cache(),
            retention: self.retention(),
            cluster_key: None,
            log: log.unwrap_or_default(),
            log_format: log_format.unwrap_or(LogFormat::Text),
            tenants: Vec::new(),
            sources: Vec::new(),
            effective: Vec::new(),
        }
    }

    fn text<T>(
        &mut self,
        path: &'static str,
        default: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (text, origin) = match self.scalars.remove(path) {
            Some(Set { value: Scalar::Text(text), origin }) => (text, origin),
            _ => (default.to_owned(), Origin::Default),
        };
        match parse(&text) {
            Ok(value) => {
                self.effective(path, Value::from(text), origin);
                Some(value)
            }
            Err(text) => {
                self.mistake(path, origin, text);
                None
            }
        }
    }

    fn number(&mut self, path: &'static str, default: u64, min: u64, max: u64) -> u64 {
        let set = match self.scalars.remove(path) {
            Some(Set { value: Scalar::Number(value), origin }) => Some(Set { value, origin }),
            _ => None,
        };
        self.within(path, set.as_ref(), default, min, max)
    }

    /// Bytes of the host's memory, set in MiB.
    fn memory(&mut self, path: &'static str, default_bytes: u64) -> u64 {
        self.number(path, default_bytes / MIB, 1, MEMORY_MIB_MAX).saturating_mul(MIB)
    }

    /// The number that was set, or the default; a number out of its range is a mistake.
    fn within(&mut self, path: &str, set: Option<&Set<u64>>, default: u64, min: u64, max: u64) -> u64 {
        let Some(Set { value, origin }) = set else {
            self.effective(path, Value::from(default), Origin::Default);
            return default;
        };
        if (min..=max).contains(value) {
            self.effective(path, Value::from(*value), origin.clone());
        } else {
            self.mistake(path, origin.clone(), format!("{value} is not a number from {min} to {max}"));
        }
        *value
    }

    fn effective(&mut self, path: &str, value: Value, origin: Origin) {
        self.effective.push(Effective { path: path.to_owned(), value, origin });
    }

    fn mistake(&mut self, path: impl Into<String>, origin: Origin, text: impl Into<String>) {
        self.mistakes.push(Mistake { path: path.into(), origin, text: text.into() });
    }

    fn tenants(
        &mut self,
        mut tenants: BTreeMap<String, TenantWritten>,
        batch_memory_bytes: u64,
    ) -> Vec<TenantConfig> {
        if tenants.is_empty() {
            tenants.insert(DEFAULT_TENANT.to_owned(), TenantWritten::empty());
        }
        if tenants.len() > TENANTS_MAX {
            let text = format!("{} tenants exceed the limit of {TENANTS_MAX}", tenants.len());
            self.mistake("tenants", Origin::Default, text);
        }
        // The one tenant of a host without tokens may be described, and still needs none.
        let open = tenants.len() == 1 && tenants.contains_key(DEFAULT_TENANT);
        let mut seen = BTreeSet::new();
        let mut checked = Vec::with_capacity(tenants.len());
        for (name, tenant) in tenants {
            let path = format!("tenants.{name}");
            if tenant.tokens.is_empty() && !open {
                self.mistake(
                    format!("{path}.tokens"),
                    tenant.origin.clone(),
                    "the tenant has no token, so nobody could speak for it; `keiko token hash` makes one",
                );
            }
            let tokens = self.tokens(&path, &tenant.tokens, &mut seen);
            let policy = self.policy(&path, &tenant, batch_memory_bytes);
            let settings = self.settings(&path, &tenant);
            let processors = self.processors(&path, &tenant);
            let signers = self.signers(&path, &tenant);
            match name.parse::<TenantName>() {
                Ok(name) => {
                    let options = TenantOptions { name, policy, settings, processors };
                    checked.push(TenantConfig { options, tokens, signers });
                }
                Err(error) => self.mistake(path, tenant.origin, error.to_string()),
            }
        }
        checked
    }

    fn tokens(
        &mut self,
        path: &str,
        tokens: &[TokenWritten],
        seen: &mut BTreeSet<String>,
    ) -> Vec<TokenEntry> {
        if tokens.len() > TOKENS_MAX {
            let text = format!("{} tokens exceed the limit of {TOKENS_MAX}", tokens.len());
            self.mistake(format!("{path}.tokens"), tokens[0].origin.clone(), text);
        }
        let mut checked = Vec::with_capacity(tokens.len());
        for (at, token) in tokens.iter().enumerate() {
            let path = format!("{path}.tokens[{at}]");
            match check_token(token) {
                Ok(entry) if seen.insert(entry.id.clone()) => {
                    self.effective(&path, Value::from(entry.shown()), token.origin.clone());
                    checked.push(entry);
                }
                Ok(entry) => {
                    let text = format!("the token id `{}` stands twice", entry.id);
                    self.mistake(format!("{path}.id"), token.origin.clone(), text);
                }
                Err(mistakes) => {
                    for (key, origin, text) in mistakes {
                        self.mistake(format!("{path}.{key}"), origin, text);
                    }
                }
            }
        }
        checked
    }

    fn policy(&mut self, path: &str, tenant: &TenantWritten, batch_memory_bytes: u64) -> TenantPolicy {
        let mut policy = TenantPolicy::default();
        let limits = &tenant.limits;
        let defaults = policy.default;
        let mut pair = |name: &'static str, default: u64, ceiling: u64| {
            let max_name =
                LIMITS.iter().find(|limit| limit.strip_suffix("_max") == Some(name)).unwrap_or(&name);
            let (own, max) = (limits.get(name), limits.get(max_name));
            let max_value = self.within(&format!("{path}.limits.{max_name}"), max, ceiling, 1, ceiling);
            let value =
                self.within(&format!("{path}.limits.{name}"), own, default.min(max_value), 1, ceiling);
            if let Some(set) = own
                && value > max_value
                && max_value > 0
            {
                let text = format!("{value} exceeds `{max_name}`, which is {max_value}");
                self.mistake(format!("{path}.limits.{name}"), set.origin.clone(), text);
            }
            (value, max_value)
        };
        let fuel = pair("fuel", defaults.fuel, BUDGET_CEILING.fuel);
        let memory = pair("memory_mib", defaults.memory_bytes / MIB, BUDGET_CEILING.memory_bytes / MIB);
        let timeout = pair("timeout_s", defaults.wall_ms / 1_000, BUDGET_CEILING.wall_ms / 1_000);
        let attempts = pair("attempts", defaults.attempts, BUDGET_CEILING.attempts);
        let (tree_fuel, tree_calls) = (
            pair("tree_fuel", defaults.tree_fuel, BUDGET_CEILING.tree_fuel),
            pair("tree_host_calls", defaults.tree_host_calls, BUDGET_CEILING.tree_host_calls),
        );
        (policy.default.tree_fuel, policy.max.tree_fuel) = tree_fuel;
        (policy.default.tree_host_calls, policy.max.tree_host_calls) = tree_calls;
        (policy.default.fuel, policy.max.fuel) = fuel;
        (policy.default.memory_bytes, policy.max.memory_bytes) =
            (memory.0.saturating_mul(MIB), memory.1.saturating_mul(MIB));
        (policy.default.wall_ms, policy.max.wall_ms) =
            (timeout.0.saturating_mul(1_000), timeout.1.saturating_mul(1_000));
        (policy.default.attempts, policy.max.attempts) = attempts;
        let mut one = |name: &'static str, default: u64, max: u64| {
            self.within(&format!("{path}.limits.{name}"), limits.get(name), default, 1, max)
        };
        policy.queue_max = one("queue_max", policy.queue_max, 100_000_000);
        policy.schedules_max = one("schedules_max", policy.schedules_max, 1_000_000);
        policy.running_max = one("running_max", policy.running_max as u64, 1_000) as usize;
        policy.running_max_total = limits
            .contains_key("running_max_total")
            .then(|| one("running_max_total", 1, u64::from(SLOTS_MAX)) as u32);
        policy.depth_max = one("depth_max", u64::from(policy.depth_max), 1_000) as u32;
        policy.fan_out_max = one("fan_out_max", policy.fan_out_max as u64, BULK_TASKS_MAX as u64) as usize;
        let mib = one("component_mib_max", policy.component_bytes_max / MIB, COMPONENT_BYTES_CEILING / MIB);
        policy.component_bytes_max = mib.saturating_mul(MIB);
        policy.compile_seconds_max = one("compile_s_max", policy.compile_seconds_max, 1_000_000);
        policy.batches = self.batches(path, tenant, batch_memory_bytes);
        policy.concurrency = self.concurrency(path, tenant);
        policy.grants = self.grants(path, tenant);
        policy.profiles = self.profiles(path, tenant);
        policy
    }

    fn signers(&mut self, path: &str, tenant: &TenantWritten) -> Vec<Signer> {
        let Some(list) = &tenant.signers else { return Vec::new() };
        if list.value.len() > SIGNERS_MAX {
            let text = format!("{} signers exceed the limit of {SIGNERS_MAX}", list.value.len());
            self.mistake(format!("{path}.signers"), list.origin.clone(), text);
        }
        let mut signers = Vec::new();
        for (at, key) in list.value.iter().enumerate() {
            match key.value.parse::<Signer>() {
                Ok(signer) => signers.push(signer),
                Err(text) => self.mistake(format!("{path}.signers[{at}]"), key.origin.clone(), text),
            }
        }
        let shown: Vec<String> = signers.iter().map(Signer::to_string).collect();
        self.effective(&format!("{path}.signers"), Value::from(shown), list.origin.clone());
        signers
    }

    fn grants(&mut self, path: &str, tenant: &TenantWritten) -> Grants {
        let (grants, origin) = match &tenant.grants {
            None => (Grants::default(), Origin::Default),
            Some(list) => {
                let names: Vec<&str> = Capability::ALL.iter().map(|capability| capability.as_str()).collect();
                let granted = self.named::<Capability>(&format!("{path}.grants"), list, &names);
                (Grants::new(granted), list.origin.clone())
            }
        };
        let shown: Vec<&str> = grants.iter().map(Capability::as_str).collect();
        self.effective(&format!("{path}.grants"), Value::from(shown), origin);
        grants
    }

    fn profiles(&mut self, path: &str, tenant: &TenantWritten) -> Profiles {
        let path = format!("{path}.profiles");
        let (profiles, origin) = match &tenant.profiles {
            None => (Profiles::default(), Origin::Default),
            Some(list) => {
                let names: Vec<&str> = Profile::ALL.iter().map(|profile| profile.as_str()).collect();
                (Profiles::new(self.named::<Profile>(&path, list, &names)), list.origin.clone())
            }
        };
        let shown: Vec<&str> = profiles.iter().map(Profile::as_str).collect();
        self.effective(&path, Value::from(shown), origin);
        profiles
    }

    /// What the texts of a list name; those that name nothing are mistakes.
    fn named<T: FromStr<Err: Display>>(
        &mut self,
        path: &str,
        list: &Set<Vec<Set<String>>>,
        names: &[&str],
    ) -> Vec<T> {
        let mut found = Vec::new();
        for (at, name) in list.value.iter().enumerate() {
            match name.value.parse::<T>() {
                Ok(named) => found.push(named),
                Err(error) => {
                    let near = nearest(&name.value, names);
                    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                    self.mistake(format!("{path}[{at}]"), name.origin.clone(), format!("{error}{hint}"));
                }
            }
        }
        found
    }

    fn settings(
        &mut self,
        path: &str,
        tenant: &TenantWritten,
    ) -> BTreeMap<PluginName, BTreeMap<String, String>> {
        let mut checked = BTreeMap::new();
        for (plugin, (origin, values)) in &tenant.settings {
            let path = format!("{path}.plugins.{plugin}");
            let mut texts = BTreeMap::new();
            for (key, set) in values {
                let path = format!("{path}.settings.{key}");
                if set.value.len() > SETTING_BYTES_MAX {
                    let text = format!(
                        "a value of {} bytes exceeds the limit of {SETTING_BYTES_MAX}",
                        set.value.len()
                    );
                    self.mistake(&path, set.origin.clone(), text);
                }
                // A setting may be a secret: that it is set is shown, and not what it is.
                self.effective(&path, Value::Null, set.origin.clone());
                texts.insert(key.clone(), set.value.clone());
            }
            match plugin.parse() {
                Ok(name) => {
                    checked.insert(name, texts);
                }
                Err(error) => {
                    let error: keiko_core::name::InvalidName = error;
                    self.mistake(path, origin.clone(), error.to_string());
                }
            }
        }
        checked
    }

    /// Without tokens, whoever reaches the port may do everything: only this machine may reach it.
    fn reachable(&mut self, config: &Config) {
        if config.is_open() && !config.listen.ip().is_loopback() {
            let known = self.effective.iter().find(|entry| entry.path == "host.listen");
            let origin = known.map_or(Origin::Default, |entry| entry.origin.clone());
            let text = format!(
                "{} can be reached from other machines, and no tenant has a token; give the tenants tokens \
                 (`keiko token hash` makes one), or listen on a loopback address such as 127.0.0.1:7700",
                config.listen
            );
            self.mistake("host.listen", origin, text);
        }
    }
}

type TokenMistake = (&'static str, Origin, String);

fn check_token(written: &TokenWritten) -> Result<TokenEntry, Vec<TokenMistake>> {
    let mut mistakes = Vec::new();
    let mut required =
        |key: &'static str, set: &Option<Set<String>>, parsed: Option<Result<(), String>>| match parsed {
            None => mistakes.push((key, written.origin.clone(), "is missing".to_owned())),
            Some(Err(text)) => {
                let origin = set.as_ref().map_or_else(|| written.origin.clone(), |set| set.origin.clone());
                mistakes.push((key, origin, text));
            }
            Some(Ok(())) => {}
        };
    let id = written.id.as_ref().map(|set| token::check_id(&set.value));
    required("id", &written.id, id);
    let hash = written.hash.as_ref().map(|set| token::parse_hash(&set.value));
    required(
        "hash",
        &written.hash,
        hash.as_ref().map(|hash| hash.as_ref().map(|_| ()).map_err(Clone::clone)),
    );
    let expires = written.expires.as_ref().map(|set| {
        let parsed: Result<jiff::Timestamp, _> = set.value.parse();
        parsed.map_err(|_| format!("`{}` is not a time such as 2027-01-31T00:00:00Z", set.value))
    });
    if let Some(Err(text)) = &expires {
        required("expires", &written.expires, Some(Err(text.clone())));
    }
    match (&written.id, hash) {
        (Some(id), Some(Ok(hash))) if mistakes.is_empty() => Ok(TokenEntry {
            id: id.value.clone(),
            hash,
            name: written.name.as_ref().map(|set| set.value.clone()),
            expires_ms: expires.and_then(Result::ok).map(jiff::Timestamp::as_millisecond),
            operator: written.operator.as_ref().is_some_and(|set| set.value),
        }),
        _ => Err(mistakes),
    }
}

impl TenantWritten {
    fn empty() -> TenantWritten {
        TenantWritten {
            origin: Origin::Default,
            tokens: Vec::new(),
            limits: BTreeMap::new(),
            batch_adaptive: None,
            grants: None,
            profiles: None,
            signers: None,
            settings: BTreeMap::new(),
            processors: BTreeMap::new(),
            concurrency: BTreeMap::new(),
        }
    }
}

mod cache;
mod concurrency;
mod database;
mod processor;
mod source;
#[cfg(test)]
mod tests;
