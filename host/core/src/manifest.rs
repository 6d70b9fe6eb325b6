//! What a plugin says of itself: `plugin.toml`, embedded in the component or given beside it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::batch::Wish;
use crate::cache::LIFETIME_MS_MAX;
use crate::effect::check_content_type;
use crate::limit::{
    KEPT_CALLS_MAX, KEPT_IDLE_S_MAX, KEPT_INSTANCES_MAX, MIB, PROCESSORS_MAX, TIME_OUT_MS_MAX,
};
use crate::metric::{self, MetricSection};
use crate::name::{KindName, PluginName, ProcessorName, VersionName};
use crate::policy::{BUDGET_CEILING, BUDGET_DEFAULT, BudgetRequest, Capability};
use crate::retry::RetryRequest;
use crate::slot::Concurrency;

/// Name of the custom section that carries a manifest in a component.
pub const SECTION: &str = "keiko:manifest";
/// Largest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Kinds of one plugin.
pub const KINDS_MAX: usize = 100;
/// Longest description, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 1_000;

/// Why a text is not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is larger than [`MANIFEST_BYTES_MAX`].
    #[error("a manifest of {0} bytes exceeds the limit of {MANIFEST_BYTES_MAX}")]
    TooLarge(usize),
    /// It is not UTF-8.
    #[error("the manifest is not UTF-8")]
    NotText,
    /// It is not TOML of the right shape.
    #[error("the manifest does not parse: {0}")]
    Parse(String),
    /// It parses and makes no sense.
    #[error("the manifest is not valid: {0}")]
    Invalid(String),
}

/// A manifest that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plugin itself.
    pub plugin: PluginSection,
    /// Its kinds: what it does with tasks.
    #[serde(rename = "kind", default)]
    pub kinds: Vec<KindSection>,
    /// Its processors: what it does with batches. It has one of either at least.
    #[serde(rename = "processor", default, skip_serializing_if = "Vec::is_empty")]
    pub processors: Vec<ProcessorSection>,
    /// What it counts.
    #[serde(rename = "metric", default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricSection>,
}

/// The `[plugin]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginSection {
    /// Unique in the tenant.
    pub name: PluginName,
    /// Unique in the plugin; stands for the same bytes for ever.
    pub version: VersionName,
    /// One sentence.
    #[serde(default)]
    pub description: String,
    /// Capabilities the plugin would use, by name.
    #[serde(default)]
    pub wants: Vec<String>,
    /// A part of the tenant's cache that it has together with every other plugin that names it; without one it has a part
    /// of its own.
    #[serde(default, rename = "shared-cache", skip_serializing_if = "Option::is_none")]
    pub shared_cache: Option<PluginName>,
    /// That instances are kept for the next attempt of the same tenant; every attempt has a fresh one without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
}

/// The `[plugin.reuse]` table: how instances are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Reuse {
    /// How many.
    pub instances: u32,
    /// Attempts that one of them runs.
    pub calls: u32,
    /// Seconds for which one of them may be idle.
    pub idle_s: u64,
}

impl Default for Reuse {
    fn default() -> Reuse {
        Reuse { instances: KEPT_INSTANCES_MAX, calls: 1_000, idle_s: 60 }
    }
}

impl Reuse {
    fn check(&self) -> Result<(), String> {
        let number = |name: &str, value: u64, max: u64| {
            let inside = (1..=max).contains(&value);
            inside.then_some(()).ok_or_else(|| format!("`reuse.{name}` is 1 to {max}, not {value}"))
        };
        number("instances", self.instances.into(), KEPT_INSTANCES_MAX.into())?;
        number("calls", self.calls.into(), KEPT_CALLS_MAX.into())?;
        number("idle-s", self.idle_s, KEPT_IDLE_S_MAX)
    }
}

/// One `[[kind]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KindSection {
    /// Unique in the plugin.
    pub name: KindName,
    /// One sentence.
    #[serde(default)]
    pub description: String,
    /// Units of fuel for an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// MiB of memory for an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Seconds of wall clock for an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Attempts of a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u64>,
    /// Seconds until a task's first attempt begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_timeout_s: Option<u64>,
    /// Seconds until a task ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_timeout_s: Option<u64>,
    /// Seconds without a sign of life from a host call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout_s: Option<u64>,
    /// Units of fuel of a task and all below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_fuel: Option<u64>,
    /// Host calls of a task and all below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_host_calls: Option<u64>,
    /// Seconds until a task and all below it end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_timeout_s: Option<u64>,
    /// When a task is tried again.
    #[serde(default, skip_serializing_if = "RetryRequest::is_empty")]
    pub retry: RetryRequest,
    /// How many tasks run at once.
    #[serde(default, skip_serializing_if = "Concurrency::is_empty")]
    pub concurrency: Concurrency,
    /// That results of its pure attempts are kept for later tasks with the same input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memoize: Option<MemoizeSection>,
    /// What its attempts are given for secure random numbers.
    #[serde(default, skip_serializing_if = "Random::is_secure")]
    pub random: Random,
    /// How the program is run, when the component is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandSection>,
}

/// What is behind `wasi:random/random`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Random {
    /// The system: nobody can tell them before, and a run that asks for them is not pure.
    #[default]
    Secure,
    /// The same seed as of insecure ones, made of component, kind and input: attempts of one input have the same numbers,
    /// which are no secret, and stay pure. For kinds that make no secrets, where a language's runtime asks when it starts.
    Seeded,
}

impl Random {
    fn is_secure(&self) -> bool {
        *self == Random::Secure
    }
}

/// The `memoize` table of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemoizeSection {
    /// Seconds for which a result is good.
    #[serde(default = "memoize_ttl_s")]
    pub ttl_s: u64,
    /// What the keys of the results begin with, and the tag that they have; the kind's name when none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// Whether a result that is `null` is kept, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache_none: bool,
}

/// Longest `key-prefix`, in bytes.
pub const KEY_PREFIX_BYTES_MAX: usize = 63;

fn memoize_ttl_s() -> u64 {
    3_600
}

impl MemoizeSection {
    fn check(&self) -> Result<(), String> {
        let ttl_s_max = LIFETIME_MS_MAX / 1_000;
        if !(1..=ttl_s_max).contains(&self.ttl_s) {
            return Err(format!("`ttl-s` is 1 to {ttl_s_max}, not {}", self.ttl_s));
        }
        let fits = |prefix: &String| {
            (1..=KEY_PREFIX_BYTES_MAX).contains(&prefix.len()) && !prefix.chars().any(char::is_control)
        };
        if !self.key_prefix.as_ref().is_none_or(fits) {
            return Err(format!(
                "`key-prefix` is 1 to {KEY_PREFIX_BYTES_MAX} bytes without control characters"
            ));
        }
        Ok(())
    }
}

/// The `[kind.command]` table, of a component that is a WASI program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CommandSection {
    /// What follows the program's name, which is the plugin's.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Its environment; there is no other.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The media type of what it prints.
    #[serde(default = "bytes_type")]
    pub content_type: String,
    /// Exit statuses that complete the task beside 0: some programs give their answer with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub completes_with: Vec<u8>,
}

/// The media type of bytes of which nothing is known.
pub const BYTES: &str = "application/octet-stream";

fn bytes_type() -> String {
    BYTES.to_owned()
}

impl CommandSection {
    fn check(&self) -> Result<(), String> {
        let names = self.environment.keys();
        if names.clone().any(|name| name.is_empty() || name.contains('=')) {
            return Err("a name in an environment is empty or has a `=`".to_owned());
        }
        let texts = self.arguments.iter().chain(names).chain(self.environment.values());
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err("an argument or an environment has a zero byte".to_owned());
        }
        check_content_type(&self.content_type)
    }
}

/// How a program is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program's name, and what follows it.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// The media type of what it prints.
    pub content_type: String,
    /// Exit statuses that complete the task beside 0.
    pub completes_with: Vec<u8>,
}

impl Command {
    /// A program of which nothing but the name is said.
    pub fn named(name: &str) -> Command {
        Command {
            arguments: vec![name.to_owned()],
            environment: BTreeMap::new(),
            content_type: BYTES.to_owned(),
            completes_with: Vec::new(),
        }
    }
}

impl KindSection {
    /// What the kind asks of the tenant's policy.
    pub fn budget(&self) -> BudgetRequest {
        let ms = |seconds: u64| seconds.saturating_mul(1_000);
        BudgetRequest {
            fuel: self.fuel,
            memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(MIB)),
            wall_ms: self.timeout_s.map(ms),
            attempts: self.attempts,
            queued_ms: self.queued_timeout_s.map(ms),
            total_ms: self.total_timeout_s.map(ms),
            heartbeat_ms: self.heartbeat_timeout_s.map(ms),
            retry: self.retry,
            tree_fuel: self.tree_fuel,
            tree_host_calls: self.tree_host_calls,
            tree_ms: self.tree_timeout_s.map(ms),
        }
    }
}

/// One `[[processor]]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProcessorSection {
    /// Unique in the tenant.
    pub name: ProcessorName,
    /// One sentence.
    #[serde(default)]
    pub description: String,
    /// Items of a batch at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<u64>,
    /// KiB of a batch at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kib: Option<u64>,
    /// Milliseconds that an item waits for others at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Times an item is handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u64>,
    /// Batches that one host works at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Whether there is one batch at a time of each key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// Whether items are in memory only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub volatile: bool,
    /// Milliseconds that a run should take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Least items of a batch whose size follows `latency-ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items_min: Option<u64>,
    /// Units of fuel for a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// MiB of memory for a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Seconds of wall clock for a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

impl ProcessorSection {
    /// How it would gather.
    pub fn wish(&self) -> Wish {
        Wish {
            items: self.items,
            kib: self.kib,
            age_ms: self.age_ms,
            attempts: self.attempts,
            in_flight: self.in_flight,
            ordered: self.ordered,
            volatile: self.volatile,
            latency_ms: self.latency_ms,
            items_min: self.items_min,
        }
    }

    /// What a run asks of the tenant's policy.
    pub fn budget(&self) -> BudgetRequest {
        BudgetRequest {
            fuel: self.fuel,
            memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(MIB)),
            wall_ms: self.timeout_s.map(|seconds| seconds.saturating_mul(1000)),
            ..BudgetRequest::default()
        }
    }
}

impl Manifest {
    /// Reads and checks the TOML form.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, Error> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(Error::TooLarge(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Error::NotText)?;
        let manifest: Manifest =
            toml::from_str(text).map_err(|error| Error::Parse(error.to_string().trim().to_owned()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The entry of a kind.
    pub fn kind(&self, name: &KindName) -> Option<&KindSection> {
        self.kinds.iter().find(|kind| kind.name == *name)
    }

    /// How a kind's program is run, when the manifest says so.
    pub fn command(&self, name: &KindName) -> Option<Box<Command>> {
        let section = self.kind(name)?.command.as_ref()?;
        let program = self.plugin.name.as_str().to_owned();
        Some(Box::new(Command {
            arguments: std::iter::once(program).chain(section.arguments.iter().cloned()).collect(),
            environment: section.environment.clone(),
            content_type: section.content_type.clone(),
            completes_with: section.completes_with.clone(),
        }))
    }

    /// What attempts of a kind are given for secure random numbers.
    pub fn random(&self, name: &KindName) -> Random {
        self.kind(name).map(|kind| kind.random).unwrap_or_default()
    }

    /// The entry of a processor.
    pub fn processor(&self, name: &ProcessorName) -> Option<&ProcessorSection> {
        self.processors.iter().find(|processor| processor.name == *name)
    }

    /// The most memory that a kind or a processor asks for, in bytes.
    pub fn memory_bytes_max(&self) -> Option<u64> {
        let kinds = self.kinds.iter().map(KindSection::budget);
        let processors = self.processors.iter().map(ProcessorSection::budget);
        kinds.chain(processors).filter_map(|budget| budget.memory_bytes).max()
    }

    /// The memory under which a component with this manifest, or with none in it, has to start, in bytes: what an attempt has
    /// without asking, or the most that is asked for, within what any attempt can have.
    pub fn trial_memory_bytes(manifest: Option<&Manifest>) -> u64 {
        let asked = manifest.and_then(Manifest::memory_bytes_max).unwrap_or(0);
        asked.clamp(BUDGET_DEFAULT.memory_bytes, BUDGET_CEILING.memory_bytes)
    }

    /// Whether a component that is a program or none, and exports this, has what the manifest names; if not, why.
    pub fn check_component(
        &self,
        is_program: bool,
        runs_tasks: bool,
        works_batches: bool,
    ) -> Result<(), &'static str> {
        if !is_program && self.kinds.iter().any(|kind| kind.command.is_some()) {
            return Err("the manifest says how a program is run, and the component is none");
        }
        if !self.kinds.is_empty() && !runs_tasks {
            return Err(
                "the manifest names kinds, and the component does not export `keiko:plugin/task@0.1.0`",
            );
        }
        if !self.processors.is_empty() && !works_batches {
            let reason =
                "the manifest names processors, and the component does not export `keiko:plugin/batch@0.1.0`";
            return Err(reason);
        }
        Ok(())
    }

    /// The capabilities the plugin would use.
    pub fn wants(&self) -> Vec<Capability> {
        self.plugin.wants.iter().filter_map(|name| name.parse().ok()).collect()
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::Invalid(text));
        let none = self.kinds.is_empty() && self.processors.is_empty();
        if none || self.kinds.len() > KINDS_MAX {
            return invalid(format!("a plugin has 1 to {KINDS_MAX} kinds, not {}", self.kinds.len()));
        }
        let mut seen = BTreeSet::new();
        for kind in &self.kinds {
            if !seen.insert(&kind.name) {
                return invalid(format!("the kind `{}` stands twice", kind.name));
            }
            let times =
                [kind.queued_timeout_s, kind.total_timeout_s, kind.heartbeat_timeout_s, kind.tree_timeout_s];
            let numbers = [kind.fuel, kind.memory_mib, kind.timeout_s, kind.attempts];
            let trees = [kind.tree_fuel, kind.tree_host_calls];
            if numbers.iter().chain(&trees).chain(&times).any(|number| *number == Some(0)) {
                return invalid(format!("a limit of the kind `{}` is 0", kind.name));
            }
            if times.iter().flatten().any(|seconds| seconds.saturating_mul(1_000) > TIME_OUT_MS_MAX) {
                return invalid(format!("a time-out of the kind `{}` is longer than 366 days", kind.name));
            }
            if let Err(fact) = kind.retry.check() {
                return invalid(format!("the kind `{}`: {fact}", kind.name));
            }
            if let Err(problem) = kind.concurrency.check() {
                return invalid(format!("`concurrency` of the kind `{}`: {problem}", kind.name));
            }
            if let Some(Err(problem)) = kind.memoize.as_ref().map(MemoizeSection::check) {
                return invalid(format!("`memoize` of the kind `{}`: {problem}", kind.name));
            }
            // An instance that started from a seed would go on to run kinds that want secrets.
            if kind.random == Random::Seeded && self.plugin.reuse.is_some() {
                let name = &kind.name;
                return invalid(format!(
                    "the kind `{name}` has `random = \"seeded\"`, which a plugin with `reuse` cannot have"
                ));
            }
            if let Some(Err(problem)) = kind.command.as_ref().map(CommandSection::check) {
                return invalid(format!("the command of the kind `{}`: {problem}", kind.name));
            }
        }
        self.check_processors()?;
        if let Some(Err(problem)) = self.plugin.reuse.as_ref().map(Reuse::check) {
            return invalid(problem);
        }
        metric::check(&self.metrics).or_else(invalid)?;
        for name in &self.plugin.wants {
            name.parse::<Capability>()
                .or_else(|error| invalid(error.to_string()).map(|()| Capability::Log))?;
        }
        let descriptions = self.kinds.iter().map(|kind| &kind.description);
        let processors = self.processors.iter().map(|processor| &processor.description);
        for text in descriptions.chain(processors).chain([&self.plugin.description]) {
            if text.len() > DESCRIPTION_BYTES_MAX || text.chars().any(char::is_control) {
                return invalid(format!(
                    "a description is at most {DESCRIPTION_BYTES_MAX} bytes without control characters"
                ));
            }
        }
        Ok(())
    }

    fn check_processors(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::Invalid(text));
        if self.processors.len() > PROCESSORS_MAX {
            let count = self.processors.len();
            return invalid(format!("a plugin has at most {PROCESSORS_MAX} processors, not {count}"));
        }
        let mut seen = BTreeSet::new();
        for processor in &self.processors {
            let name = &processor.name;
            if !seen.insert(name) {
                return invalid(format!("the processor `{name}` stands twice"));
            }
            if [processor.fuel, processor.memory_mib, processor.timeout_s].contains(&Some(0)) {
                return invalid(format!("a limit of the processor `{name}` is 0"));
            }
            processor.wish().check().or_else(|text| invalid(format!("the processor `{name}`: {text}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;

    const GOOD: &str = r#"
[plugin]
name = "movie-facts"
version = "0.1.0"
description = "Facts of films."
wants = ["log", "tasks"]
shared-cache = "films"

[[kind]]
name = "normalise"
fuel = 5
memory-mib = 2
timeout-s = 3
attempts = 4
queued-timeout-s = 5
total-timeout-s = 6
heartbeat-timeout-s = 7
retry = { first-ms = 8, factor = 3, codes = ["trap"] }
memoize = { key-prefix = "facts" }

[[processor]]
name = "by-decade"
items = 50
age-ms = 200
ordered = true
memory-mib = 3

[[metric]]
name = "films_total"
type = "counter"
labels = { outcome = ["read", "skipped"] }
"#;

    #[test]
    fn a_manifest_reads_back() {
        let manifest = Manifest::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(manifest.wants(), [Capability::Log, Capability::Tasks]);
        assert_eq!(manifest.plugin.shared_cache.as_ref().map(PluginName::as_str), Some("films"));
        let budget = manifest.kinds[0].budget();
        assert_eq!(budget.memory_bytes, Some(2 * MIB));
        assert_eq!(budget.wall_ms, Some(3_000));
        let times = (budget.queued_ms, budget.total_ms, budget.heartbeat_ms);
        assert_eq!(times, (Some(5_000), Some(6_000), Some(7_000)));
        assert_eq!((budget.retry.first_ms, budget.retry.factor), (Some(8), Some(3)));
        assert!(budget.retry.codes.unwrap().contains(Code::Trap));
        let memoize = manifest.kinds[0].memoize.as_ref().unwrap();
        assert_eq!((memoize.ttl_s, memoize.cache_none), (3_600, false));
        let processor = manifest.processor(&"by-decade".parse().unwrap()).unwrap();
        assert_eq!((processor.wish().items, processor.wish().ordered), (Some(50), true));
        assert_eq!(manifest.memory_bytes_max(), Some(3 * MIB));
        assert_eq!(manifest.metrics[0].series(), 2);
        let stored = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&stored).unwrap(), manifest);
    }

    #[test]
    fn reuse_keeps_to_its_limits() {
        let reuse = |table: &str| {
            let text = GOOD.replace("[[kind]]", &format!("[plugin.reuse]\n{table}\n[[kind]]"));
            Manifest::parse(text.as_bytes()).map(|manifest| manifest.plugin.reuse)
        };
        assert_eq!(Manifest::parse(GOOD.as_bytes()).unwrap().plugin.reuse, None);
        assert_eq!(reuse("").unwrap(), Some(Reuse { instances: 50, calls: 1_000, idle_s: 60 }));
        let most = Reuse { instances: KEPT_INSTANCES_MAX, calls: KEPT_CALLS_MAX, idle_s: KEPT_IDLE_S_MAX };
        assert_eq!(reuse("instances = 50\ncalls = 1000000\nidle-s = 3600").unwrap(), Some(most));
        for bad in
            ["instances = 0", "instances = 51", "calls = 0", "calls = 1000001", "idle-s = 0", "idle-s = 3601"]
        {
            let name = bad.split(' ').next().unwrap();
            let error = reuse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("`reuse.{name}`")), "{error}");
        }
        assert!(reuse("instance = 1").is_err());
    }

    #[test]
    fn random_numbers_are_secure_unless_a_kind_says_otherwise() {
        let random = |line: &str, plugin: &str| {
            let text = GOOD.replace("fuel = 5", &format!("fuel = 5\n{line}"));
            let text = text.replace("[[kind]]", &format!("{plugin}\n[[kind]]\nname = \"other\"\n[[kind]]"));
            Manifest::parse(text.as_bytes())
        };
        let of = |manifest: &Manifest, kind: &str| manifest.random(&kind.parse().unwrap());
        for line in ["", "random = \"secure\""] {
            let manifest = random(line, "[plugin.reuse]").unwrap();
            assert_eq!(of(&manifest, "normalise"), Random::Secure);
            let stored = serde_json::to_string(&manifest).unwrap();
            assert!(!stored.contains("random"), "an older host can read it: {stored}");
        }
        let seeded = random("random = \"seeded\"", "").unwrap();
        let kinds = ["normalise", "other", "unknown"].map(|kind| of(&seeded, kind));
        assert_eq!(kinds, [Random::Seeded, Random::Secure, Random::Secure]);
        let stored = serde_json::to_string(&seeded).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&stored).unwrap(), seeded);
        for (line, plugin, expected) in [
            ("random = \"weak\"", "", "unknown variant `weak`"),
            ("random = \"seeded\"", "[plugin.reuse]", "the kind `normalise` has `random = \"seeded\"`"),
        ] {
            let error = random(line, plugin).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_program_is_run_as_its_manifest_says() {
        let text =
            format!("{GOOD}[kind.command]\narguments = [\"-c\", \"\"]\nenvironment = {{ TZ = \"UTC\" }}\n");
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        let command = manifest.command(&manifest.kinds[0].name).unwrap();
        assert_eq!(command.arguments, ["movie-facts", "-c", ""]);
        assert_eq!(command.environment, BTreeMap::from([("TZ".to_owned(), "UTC".to_owned())]));
        assert_eq!(command.content_type, BYTES);
        let stored = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&stored).unwrap(), manifest);
        assert_eq!(Manifest::parse(GOOD.as_bytes()).unwrap().command(&manifest.kinds[0].name), None);
        for (bad, expected) in [
            ("arguments = [\"a\\u0000\"]", "zero byte"),
            ("environment = { \"A=B\" = \"\" }", "`=`"),
            ("content-type = \"\"", "content type"),
            ("argument = []", "argument"),
        ] {
            let text = format!("{GOOD}[kind.command]\n{bad}\n");
            let error = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |from: &str, to: &str, expected: &str| {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from} is not in the sample");
            let error = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("\"tasks\"", "\"cash\"", "`cash` is not a capability");
        check("fuel = 5", "fule = 5", "fule");
        check("fuel = 5", "fuel = 0", "a limit of the kind `normalise` is 0");
        check("total-timeout-s = 6", "total-timeout-s = 0", "a limit of the kind `normalise` is 0");
        check("total-timeout-s = 6", "total-timeout-s = 31622401", "longer than 366 days");
        check("factor = 3", "factor = 11", "11 exceeds the limit `retry.factor` of 10");
        check("\"trap\"", "\"tarp\"", "`tarp` is not a code");
        check("movie-facts", "../etc", "plugin name");
        check("shared-cache = \"films\"", "shared-cache = \"a b\"", "plugin name");
        check("key-prefix = \"facts\"", "ttl-s = 0", "`ttl-s` is 1 to 2592000, not 0");
        check("key-prefix = \"facts\"", "ttl-s = 2592001", "`memoize` of the kind `normalise`");
        check("\"facts\"", "\"\"", "`key-prefix` is 1 to 63 bytes");
        check("\"facts\"", &format!("\"{}\"", "f".repeat(KEY_PREFIX_BYTES_MAX + 1)), "`key-prefix`");
        check("key-prefix = \"facts\"", "ttl = 5", "unknown field `ttl`");
        check("Facts of films.", "a\\nb", "control characters");
        check("attempts = 4", "[[kind]]\nname = \"normalise\"", "stands twice");
        check("items = 50", "items = 0", "the processor `by-decade`: `items` is 0");
        check("memory-mib = 3", "memory-mib = 0", "a limit of the processor `by-decade` is 0");
        check("films_total", "films", "the metric `films`: counters");
        check("type = \"counter\"", "type = \"gauge\"", "unknown variant `gauge`");
        check(
            "age-ms = 200",
            "[[processor]]\nname = \"by-decade\"",
            "the processor `by-decade` stands twice",
        );
        let (none, processors) = GOOD.split_once("[[kind]]").unwrap();
        assert!(Manifest::parse(none.as_bytes()).is_err());
        let (_, processors) = processors.split_once("[[processor]]").unwrap();
        let only = format!("{none}[[processor]]{processors}");
        assert!(Manifest::parse(only.as_bytes()).unwrap().kinds.is_empty(), "processors are enough");
        let many = |count: usize| {
            let tables: String = (0..count).map(|n| format!("[[processor]]\nname = \"p{n}\"\n")).collect();
            Manifest::parse(format!("{none}{tables}").as_bytes())
        };
        assert!(many(PROCESSORS_MAX).is_ok());
        assert!(many(PROCESSORS_MAX + 1).is_err());
        assert!(Manifest::parse(&vec![b'#'; MANIFEST_BYTES_MAX + 1]).is_err());
        assert!(Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX]).is_err());
        assert!(Manifest::parse(&[0xff]).is_err());
    }
}
