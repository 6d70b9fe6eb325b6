//! What a tenant may do: its limits, its grants, and the budget handed to one attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::batch::settings::BatchPolicy;
use crate::limit::{self, MIB, SetBy};
use crate::name::{KindName, PluginName};
use crate::profile::Profiles;
use crate::retry::RetryRequest;
use crate::slot::Concurrency;

/// Something a plugin may ask of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// Write log lines. Always granted.
    Log,
    /// Facts of the attempt.
    Attempt,
    /// Settings the tenant granted.
    Config,
    /// Report progress.
    Progress,
    /// Submit children.
    Tasks,
    /// Look agents up and give them statuses.
    Agents,
    /// Look at what became of many tasks.
    History,
    /// Add items to processors.
    Batch,
    /// Keep values that can be had again.
    Cache,
    /// Count what happens.
    Metrics,
}

impl Capability {
    /// Every capability of this version.
    pub const ALL: &'static [Capability] = &[
        Capability::Log,
        Capability::Attempt,
        Capability::Config,
        Capability::Progress,
        Capability::Tasks,
        Capability::Agents,
        Capability::History,
        Capability::Batch,
        Capability::Cache,
        Capability::Metrics,
    ];

    /// The name used in manifests, policies and denials.
    pub const fn as_str(self) -> &'static str {
        match self {
            Capability::Log => "log",
            Capability::Attempt => "attempt",
            Capability::Config => "config",
            Capability::Progress => "progress",
            Capability::Tasks => "tasks",
            Capability::Agents => "agents",
            Capability::History => "history",
            Capability::Batch => "batch",
            Capability::Cache => "cache",
            Capability::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a capability; there are: log, attempt, config, progress, tasks, agents, history, batch, cache, metrics"
)]
pub struct UnknownCapability(pub String);

impl FromStr for Capability {
    type Err = UnknownCapability;

    fn from_str(text: &str) -> Result<Self, UnknownCapability> {
        Capability::ALL
            .iter()
            .copied()
            .find(|capability| capability.as_str() == text)
            .ok_or_else(|| UnknownCapability(text.to_owned()))
    }
}

/// The capabilities a tenant's plugins may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    capabilities: BTreeSet<Capability>,
    /// Whether what is asked to be written can be: a run that is no task has no end to write it with.
    effects: bool,
}

impl Grants {
    /// Grants of exactly these, and the log.
    pub fn new(capabilities: impl IntoIterator<Item = Capability>) -> Grants {
        let mut set: BTreeSet<_> = capabilities.into_iter().collect();
        set.insert(Capability::Log);
        Grants { capabilities: set, effects: true }
    }

    /// The same without anything that would be written with a task's end.
    #[must_use]
    pub fn without_effects(mut self) -> Grants {
        self.effects = false;
        self
    }

    /// Whether effects are taken.
    pub fn allow_effects(&self) -> bool {
        self.effects
    }

    /// Whether `capability` is granted.
    pub fn allow(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// The granted capabilities in order.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.capabilities.iter().copied()
    }
}

/// What stays inside the tenant is granted until a policy says otherwise; what reaches outside never is.
impl Default for Grants {
    fn default() -> Grants {
        Grants::new(Capability::ALL.iter().copied())
    }
}

/// A number and who set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The number, in the unit of the field it stands in.
    pub value: u64,
    /// Who set it.
    pub set_by: SetBy,
}

/// What one attempt may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Units of fuel.
    pub fuel: Limit,
    /// Bytes of all linear memories together.
    pub memory_bytes: Limit,
    /// Milliseconds of wall clock.
    pub wall_ms: Limit,
    /// Host calls.
    pub host_calls: Limit,
    /// Attempts of the task in all.
    pub attempts: Limit,
    /// Milliseconds without a sign of life from a host call; `None` when only the wall clock bounds it.
    pub heartbeat_ms: Option<Limit>,
}

/// What a submit or a manifest asks for; `None` leaves it to whoever comes before: manifest, tenant, host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetRequest {
    /// Units of fuel.
    pub fuel: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Milliseconds of wall clock.
    pub wall_ms: Option<u64>,
    /// Attempts in all.
    pub attempts: Option<u64>,
    /// Milliseconds until its first attempt begins: see [`crate::time_out`].
    pub queued_ms: Option<u64>,
    /// Milliseconds until it ends.
    pub total_ms: Option<u64>,
    /// Milliseconds without a sign of life from a host call.
    pub heartbeat_ms: Option<u64>,
    /// When it is tried again.
    pub retry: RetryRequest,
    /// Units of fuel of all tasks of its tree together, when it is a root.
    pub tree_fuel: Option<u64>,
    /// Host calls of all tasks of its tree together, when it is a root.
    pub tree_host_calls: Option<u64>,
    /// Milliseconds until its whole tree ends; of a child, what its root asked for.
    pub tree_ms: Option<u64>,
}

impl BudgetRequest {
    /// What a child takes of its parent's: the limits of an attempt, and the time of the tree. Other time-outs and retries are a
    /// task's own, and what a tree spends is its root's.
    #[must_use]
    pub fn inherited(&self) -> BudgetRequest {
        let BudgetRequest { fuel, memory_bytes, wall_ms, attempts, tree_ms, .. } = *self;
        BudgetRequest { fuel, memory_bytes, wall_ms, attempts, tree_ms, ..BudgetRequest::default() }
    }

    /// These wishes with the whole task's time-outs of the manifest where there is none.
    #[must_use]
    pub fn with_time_outs_of(mut self, manifest: &BudgetRequest) -> BudgetRequest {
        self.queued_ms = self.queued_ms.or(manifest.queued_ms);
        self.total_ms = self.total_ms.or(manifest.total_ms);
        self
    }

    /// These wishes where `change` names none; its own otherwise, its retries as a whole.
    #[must_use]
    pub fn changed_by(&self, change: &BudgetRequest) -> BudgetRequest {
        let kept = change.retry == RetryRequest::default();
        BudgetRequest {
            fuel: change.fuel.or(self.fuel),
            memory_bytes: change.memory_bytes.or(self.memory_bytes),
            wall_ms: change.wall_ms.or(self.wall_ms),
            attempts: change.attempts.or(self.attempts),
            queued_ms: change.queued_ms.or(self.queued_ms),
            total_ms: change.total_ms.or(self.total_ms),
            heartbeat_ms: change.heartbeat_ms.or(self.heartbeat_ms),
            tree_fuel: change.tree_fuel.or(self.tree_fuel),
            tree_host_calls: change.tree_host_calls.or(self.tree_host_calls),
            tree_ms: change.tree_ms.or(self.tree_ms),
            retry: if kept { self.retry } else { change.retry },
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == BudgetRequest::default()
    }
}

/// The numbers of a budget, as a default or as a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetNumbers {
    /// Units of fuel.
    pub fuel: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Milliseconds of wall clock.
    pub wall_ms: u64,
    /// Host calls.
    pub host_calls: u64,
    /// Attempts in all.
    pub attempts: u64,
    /// Units of fuel of a tree.
    pub tree_fuel: u64,
    /// Host calls of a tree.
    pub tree_host_calls: u64,
}

/// What an attempt gets when nobody asks for anything.
pub const BUDGET_DEFAULT: BudgetNumbers = BudgetNumbers {
    fuel: 1_000_000_000,
    memory_bytes: 64 * MIB,
    wall_ms: 30_000,
    host_calls: 1_000_000,
    attempts: 5,
    tree_fuel: 100_000_000_000,
    tree_host_calls: 100_000_000,
};

/// What no policy can exceed.
pub const BUDGET_CEILING: BudgetNumbers = BudgetNumbers {
    fuel: 100_000_000_000,
    memory_bytes: 1024 * MIB,
    wall_ms: 3_600_000,
    host_calls: 100_000_000,
    attempts: 100,
    tree_fuel: 100_000_000_000_000,
    tree_host_calls: 100_000_000_000,
};

/// Everything a tenant may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantPolicy {
    /// What an attempt gets when neither the manifest nor the submit asks.
    pub default: BudgetNumbers,
    /// The most that a manifest or a submit may ask.
    pub max: BudgetNumbers,
    /// Tasks that are pending or running.
    pub queue_max: u64,
    /// Schedules that it may have.
    pub schedules_max: u64,
    /// Attempts of this tenant that run at once on one host.
    pub running_max: usize,
    /// Tasks of this tenant that are leased at once on all hosts together; `None` is any number.
    pub running_max_total: Option<u32>,
    /// Levels below a root.
    pub depth_max: u32,
    /// Children of one task.
    pub fan_out_max: usize,
    /// Largest component, in bytes.
    pub component_bytes_max: u64,
    /// Seconds that uploads may take of the compiler in an hour, on each host.
    pub compile_seconds_max: u64,
    /// Capabilities of the tenant's plugins.
    pub grants: Grants,
    /// Engine profiles that its components may have.
    pub profiles: Profiles,
    /// What its processors may gather.
    pub batches: BatchPolicy,
    /// How many tasks of kinds run at once; without a kind, of each kind of the plugin.
    pub concurrency: BTreeMap<(PluginName, Option<KindName>), Concurrency>,
}

impl TenantPolicy {
    /// How many tasks of a kind run at once, of which its manifest says so much.
    pub fn concurrency_of(&self, plugin: &PluginName, kind: &KindName, own: Concurrency) -> Concurrency {
        let declared = |kind| self.concurrency.get(&(plugin.clone(), kind)).copied().unwrap_or_default();
        own.within(declared(None)).within(declared(Some(kind.clone())))
    }
}

impl Default for TenantPolicy {
    fn default() -> TenantPolicy {
        TenantPolicy {
            default: BUDGET_DEFAULT,
            max: BUDGET_CEILING,
            queue_max: 100_000,
            schedules_max: 1_000,
            running_max: limit::RUNNING_PER_HOST_MAX,
            running_max_total: None,
            depth_max: 8,
            fan_out_max: 1_000,
            component_bytes_max: limit::COMPONENT_BYTES_MAX,
            compile_seconds_max: limit::COMPILE_SECONDS_HOUR_MAX,
            grants: Grants::default(),
            profiles: Profiles::STRICT,
            batches: BatchPolicy::default(),
            concurrency: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_reads_back_from_its_name() {
        for &capability in Capability::ALL {
            assert_eq!(capability.as_str().parse(), Ok(capability));
        }
        assert!("cash".parse::<Capability>().is_err());
    }

    #[test]
    fn a_change_of_a_budget_keeps_what_it_does_not_name() {
        let retry = RetryRequest { first_ms: Some(7), ..RetryRequest::default() };
        let before = BudgetRequest { fuel: Some(1), total_ms: Some(2), retry, ..BudgetRequest::default() };
        assert_eq!(before.changed_by(&BudgetRequest::default()), before);
        let change = BudgetRequest { total_ms: Some(3), attempts: Some(4), ..BudgetRequest::default() };
        let after = before.changed_by(&change);
        assert_eq!(after, BudgetRequest { total_ms: Some(3), attempts: Some(4), ..before });
        let retry = RetryRequest { factor: Some(3), ..RetryRequest::default() };
        let other = before.changed_by(&BudgetRequest { retry, ..BudgetRequest::default() });
        assert_eq!(other.retry, retry, "when it is tried again is said as a whole");
    }

    #[test]
    fn the_log_cannot_be_taken_away() {
        let none = Grants::new([]);
        assert!(none.allow(Capability::Log));
        assert!(!none.allow(Capability::Tasks));
        assert!(none.allow_effects() && !none.without_effects().allow_effects());
    }
}
