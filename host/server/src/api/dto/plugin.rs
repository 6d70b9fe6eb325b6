//! The shapes of plugins and their history.

use std::collections::HashMap;

use keiko_core::Digest;
use keiko_core::canary::{State, Tally};
use keiko_core::catalog::{Generation, Plugin, PluginVersion, Tried};
use keiko_core::policy::TenantPolicy;
use keiko_core::profile::Profile;
use serde::Serialize;

use super::{time, to_vec};
use crate::limits::{TaskLimits, asked};
use crate::watch::Watched;

/// The engine profiles of components, as far as they are known.
pub(crate) type Profiles = HashMap<Digest, Profile>;

fn profile(profiles: &Profiles, version: &PluginVersion) -> Option<&'static str> {
    profiles.get(&version.digest).copied().map(Profile::as_str)
}

#[derive(Serialize)]
struct PluginJson<'a> {
    name: &'a str,
    version: &'a str,
    digest: String,
    component_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    profile_denied: bool,
    installed_at: String,
    generation: u64,
    #[serde(skip_serializing_if = "is_false")]
    draining: bool,
    description: &'a str,
    kinds: Vec<KindJson<'a>>,
    wants: &'a [String],
    denied: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<CanaryJson<'a>>,
}

#[derive(Serialize)]
struct CanaryJson<'a> {
    version: &'a str,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'static str>,
    percent: u8,
    state: &'static str,
}

#[derive(Serialize)]
struct KindJson<'a> {
    name: &'a str,
    description: &'a str,
    #[serde(flatten)]
    limits: TaskLimits,
}

fn plugin_json<'a>(plugin: &'a Plugin, policy: &TenantPolicy, profiles: &Profiles) -> PluginJson<'a> {
    let manifest = &plugin.current.manifest;
    let kind = |kind: &'a keiko_core::manifest::KindSection| KindJson {
        name: kind.name.as_str(),
        description: &kind.description,
        limits: TaskLimits {
            fuel: kind.fuel,
            memory_mib: kind.memory_mib,
            timeout_s: kind.timeout_s,
            attempts: kind.attempts,
            queued_timeout_s: kind.queued_timeout_s,
            total_timeout_s: kind.total_timeout_s,
            heartbeat_timeout_s: kind.heartbeat_timeout_s,
            retry: asked(kind.retry),
        },
    };
    let needed = profiles.get(&plugin.current.digest).copied();
    let denied = manifest.wants().into_iter().filter(|capability| !policy.grants.allow(*capability));
    PluginJson {
        name: plugin.name.as_str(),
        version: plugin.current.name.as_str(),
        digest: plugin.current.digest.to_string(),
        component_bytes: plugin.current.component_bytes,
        profile: profile(profiles, &plugin.current),
        profile_denied: needed.is_some_and(|needed| !policy.profiles.permit(needed)),
        installed_at: time(plugin.current.installed_ms),
        generation: plugin.generation,
        draining: plugin.draining,
        description: &manifest.plugin.description,
        kinds: manifest.kinds.iter().map(kind).collect(),
        wants: &manifest.plugin.wants,
        denied: denied.map(|capability| capability.as_str()).collect(),
        canary: plugin.canary.as_ref().map(|canary| CanaryJson {
            version: canary.version.name.as_str(),
            digest: canary.version.digest.to_string(),
            profile: profile(profiles, &canary.version),
            percent: canary.percent,
            state: if canary.is_trying { State::Trying } else { State::Passed }.as_str(),
        }),
    }
}

#[derive(Serialize)]
struct TallyJson {
    attempts: u64,
    batches: u64,
    plugin_failed: u64,
    broke: u64,
}

impl From<Tally> for TallyJson {
    fn from(tally: Tally) -> TallyJson {
        let Tally { tasks, batches, declared, broke } = tally;
        TallyJson { attempts: tasks, batches, plugin_failed: declared, broke }
    }
}

/// The JSON of how a canary stands or ended.
pub(crate) fn tried(tried: &Tried) -> Vec<u8> {
    #[derive(Serialize)]
    struct TriedJson<'a> {
        version: &'a str,
        percent: u8,
        state: &'static str,
        since: String,
        tasks: u32,
        canary: TallyJson,
        current: TallyJson,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_failure: Option<&'a str>,
    }
    let standing = &tried.standing;
    let seen = standing.trial.seen();
    // A swap has the last word, but for a verdict.
    let is_ended = tried.is_over && standing.state.is_open();
    to_vec(&TriedJson {
        version: tried.version.as_str(),
        percent: tried.percent,
        state: if is_ended { "ended" } else { standing.state.as_str() },
        since: time(standing.since_ms),
        tasks: standing.touched,
        canary: seen.canary.into(),
        current: seen.current.into(),
        last_failure: standing.failure.as_deref(),
    })
}

/// The JSON of a plugin.
pub(crate) fn plugin(plugin: &Plugin, policy: &TenantPolicy, profiles: &Profiles) -> Vec<u8> {
    to_vec(&plugin_json(plugin, policy, profiles))
}

/// The JSON of a tenant's plugins.
pub(crate) fn plugins(plugins: &[Plugin], policy: &TenantPolicy, profiles: &Profiles) -> Vec<u8> {
    #[derive(Serialize)]
    struct Plugins<'a> {
        plugins: Vec<PluginJson<'a>>,
    }
    let plugins = plugins.iter().map(|plugin| plugin_json(plugin, policy, profiles)).collect();
    to_vec(&Plugins { plugins })
}

/// The JSON of what became of files of the watched folder.
pub(crate) fn watched<'a>(files: impl Iterator<Item = (&'a String, &'a Watched)>) -> Vec<u8> {
    #[derive(Serialize)]
    struct FileJson<'a> {
        file: &'a str,
        state: &'static str,
        at: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        plugin: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Files<'a> {
        files: Vec<FileJson<'a>>,
    }
    let file = |(name, file): (&'a String, &'a Watched)| {
        let installed = file.outcome.as_ref().ok();
        let refused = file.outcome.as_ref().err();
        FileJson {
            file: name,
            state: if installed.is_some() { "installed" } else { "refused" },
            at: time(file.at_ms),
            plugin: installed.map(|(plugin, _)| plugin.as_str()),
            version: installed.map(|(_, version)| version.as_str()),
            code: refused.map(|(code, _)| code.as_str()),
            message: refused.map(|(_, message)| message.as_str()),
        }
    };
    to_vec(&Files { files: files.map(file).collect() })
}

#[derive(Serialize)]
struct GenerationJson<'a> {
    generation: u64,
    version: &'a str,
    digest: String,
    component_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'static str>,
    installed_at: String,
    cause: &'static str,
    at: String,
}

/// The JSON of a page of at most `limit` swaps. One more than that says that there is another page.
pub(crate) fn generations(swaps: &[Generation], limit: u32, profiles: &Profiles) -> Vec<u8> {
    #[derive(Serialize)]
    struct Generations<'a> {
        generations: Vec<GenerationJson<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<u64>,
    }
    let shown = &swaps[..swaps.len().min(limit as usize)];
    let next = if swaps.len() > shown.len() { shown.last().map(|last| last.number) } else { None };
    let generation = |swap| generation_json(swap, profiles);
    to_vec(&Generations { generations: shown.iter().map(generation).collect(), next })
}

fn generation_json<'a>(swap: &'a Generation, profiles: &Profiles) -> GenerationJson<'a> {
    GenerationJson {
        generation: swap.number,
        version: swap.version.name.as_str(),
        digest: swap.version.digest.to_string(),
        component_bytes: swap.version.component_bytes,
        profile: profile(profiles, &swap.version),
        installed_at: time(swap.version.installed_ms),
        cause: swap.cause.as_str(),
        at: time(swap.at_ms),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}
