//! `/v1/cache`: what a tenant has in the cache, why something is not there, and taking it away.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keiko_core::cache::{CacheKey, Content, Entry, Level, Namespace, Tag, Verdict};
use keiko_core::catalog::Tenant;
use keiko_core::{Code, PluginName};
use keiko_runtime::cache::{Step, StepKnown};
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::dto::{time, to_vec};
use super::problem::Problem;
use super::{Api, json_answer, query};

/// An entry: the part of the cache, such as `p.films` or `s.films`, and the key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    namespace: String,
    key: String,
}

/// A tag of a part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedTag {
    namespace: String,
    tag: String,
}

#[derive(Serialize)]
struct LevelJson {
    level: &'static str,
    /// Whether it is not asked just now, because it failed.
    resting: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

#[derive(Serialize)]
struct Usage {
    levels: Vec<LevelJson>,
}

#[derive(Serialize)]
struct Explained {
    /// What a plugin would be answered.
    found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    levels: Vec<StepJson>,
}

#[derive(Serialize)]
struct StepJson {
    level: &'static str,
    /// `fresh`, `eager`, `stale`, `nothing`, `expired`, `removed`, `tag_removed`, or `away`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fresh_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    /// The component that made it, as `PLUGIN.DIGEST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<String>,
}

/// `GET /v1/cache`.
pub(super) async fn usage(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let cache = api.handle.cache();
    let resting = cache.resting();
    let level = |(level, usage): (Level, Option<keiko_core::port::LevelUsage>)| LevelJson {
        level: level.as_str(),
        resting: resting.contains(&level),
        entries: usage.map(|usage| usage.entries),
        bytes: usage.map(|usage| usage.bytes),
    };
    let levels = cache.usage(&tenant(&api, caller)?).await.into_iter().map(level).collect();
    Ok(json_answer(StatusCode::OK, to_vec(&Usage { levels })))
}

/// `GET /v1/cache/entry?namespace=…&key=…`.
pub(super) async fn explain(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    let key = key(&api, caller, &uri)?;
    let steps = api.handle.cache().explain(&key).await;
    let served = steps.iter().find_map(served);
    let explained = Explained {
        found: served.is_some(),
        value_base64: served.map(|value| STANDARD.encode(value)),
        levels: steps.iter().map(StepJson::from).collect(),
    };
    Ok(json_answer(StatusCode::OK, to_vec(&explained)))
}

/// `DELETE /v1/cache/entry?namespace=…&key=…`.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    let key = key(&api, caller, &uri)?;
    api.handle.cache().remove(&key).await;
    Ok(json_answer(StatusCode::OK, b"{}".to_vec()))
}

/// `DELETE /v1/cache/tag?namespace=…&tag=…`.
pub(super) async fn remove_tag(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked: AskedTag = query::read(&uri)?;
    let tag = Tag::given(&asked.tag).map_err(|error| Problem::invalid(format!("tag: {error}")))?;
    let (tenant, namespace) = (tenant(&api, caller)?, namespace(&api, caller, &asked.namespace)?);
    api.handle.cache().remove_tag(&tenant, &namespace, &tag).await;
    Ok(json_answer(StatusCode::OK, b"{}".to_vec()))
}

/// `DELETE /v1/cache`.
pub(super) async fn clear(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    api.handle.cache().clear(&tenant(&api, caller)?).await;
    Ok(json_answer(StatusCode::OK, b"{}".to_vec()))
}

fn tenant(api: &Api, caller: Caller) -> Result<Tenant, Problem> {
    let name = api.tenants.get(&caller.tenant).cloned();
    let name = name.ok_or_else(|| Problem::new(Code::NotFound, "there is no such tenant"))?;
    Ok(Tenant { id: caller.tenant, name })
}

/// A part of the cache by its name; a plugin's name alone stands for the part of its current component.
fn namespace(api: &Api, caller: Caller, text: &str) -> Result<Namespace, Problem> {
    let own = text.strip_prefix("p.").filter(|name| !name.contains('@'));
    if let Some(plugin) = own.and_then(|name| api.handle.plugin(caller.tenant, name)) {
        return Ok(Namespace::of_plugin(&plugin.name, &plugin.current.digest));
    }
    if let Some(name) = own.filter(|name| name.parse::<PluginName>().is_ok()) {
        return Err(Problem::new(Code::NotFound, format!("there is no plugin `{name}`")));
    }
    text.parse().map_err(|_| {
        Problem::invalid("namespace: expected p.PLUGIN, s.SHARED or r.PLUGIN, such as p.movie-facts")
    })
}

fn key(api: &Api, caller: Caller, uri: &Uri) -> Result<CacheKey, Problem> {
    let asked: Asked = query::read(uri)?;
    let namespace = namespace(api, caller, &asked.namespace)?;
    CacheKey::new(&tenant(api, caller)?, &namespace, &asked.key)
        .map_err(|error| Problem::invalid(format!("key: {error}")))
}

/// The value that a level would serve.
fn served(step: &Step) -> Option<&[u8]> {
    match &step.known {
        Some(StepKnown::Entry(
            Entry { content: Content::Value(value), .. },
            Verdict::Fresh | Verdict::Eager,
        )) => Some(value),
        _ => None,
    }
}

impl From<&Step> for StepJson {
    fn from(step: &Step) -> StepJson {
        let plain = |state| StepJson {
            level: step.level.as_str(),
            state,
            bytes: None,
            fresh_until: None,
            kept_until: None,
            tags: Vec::new(),
            component: None,
        };
        match &step.known {
            None => plain("away"),
            Some(StepKnown::Nothing) => plain("nothing"),
            Some(StepKnown::Entry(entry, verdict)) => StepJson {
                bytes: match &entry.content {
                    Content::Value(value) => Some(value.len()),
                    Content::Absent | Content::Removed => None,
                },
                fresh_until: Some(time(entry.logical_ms)),
                kept_until: Some(time(entry.physical_ms)),
                tags: entry.tags.iter().filter_map(Tag::text).map(str::to_owned).collect(),
                component: entry.tags.iter().find_map(Tag::component).map(str::to_owned),
                ..plain(state(*verdict))
            },
        }
    }
}

fn state(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fresh => "fresh",
        Verdict::Eager => "eager",
        Verdict::Stale => "stale",
        Verdict::Gone(why) => why.as_str(),
    }
}
