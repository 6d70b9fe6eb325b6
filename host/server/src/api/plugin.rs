//! Routes of plugins, and what a host says of itself.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use keiko_core::catalog::{Plugin, PluginVersion, RemoveWhen, Target};
use keiko_core::limit::{LimitFact, SetBy};
use keiko_core::manifest::Manifest;
use keiko_core::policy::TenantPolicy;
use keiko_core::port::Stage;
use keiko_core::{Code, Digest, VersionName};

use super::caller::{Caller, Segment};
use super::problem::Problem;
use super::{Api, body, dto, json, json_answer, query};
use crate::source::{self, Source};
use crate::wiring::apart;

/// The media type of a component.
const WASM: &str = "application/wasm";
/// That of a document that names where one is.
const JSON: &str = "application/json";

pub(super) async fn install(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let query: query::Install = query::read(&uri)?;
    let (canary, signature) = (query.canary_percent, query.signature);
    let beside = query.manifest.as_deref().map(manifest_bytes).transpose()?;
    let manifest = beside.as_deref().map(Manifest::parse).transpose();
    let manifest = manifest.map_err(|error| Problem::invalid(format!("manifest: {error}")))?;
    body::expect_media_type(&headers, &[WASM, JSON])?;
    let bytes_max = policy(&api, caller)?.component_bytes_max;
    let component = if body::media_type(&headers) == JSON {
        fetch(&api, caller, &headers, body, bytes_max).await?
    } else {
        let too_large = |asked| too_large(bytes_max, asked);
        body::read(body, &headers, bytes_max, caller.until, too_large).await?
    };
    let (signers, signed, tenant) = (Arc::clone(&api.signers), component.clone(), caller.tenant);
    apart(move || signers.check(tenant, &signed, beside.as_deref(), signature.as_deref())).await?;
    if let Some(percent) = canary {
        let plugin = api.handle.install_canary(caller.tenant, component, manifest, percent).await?;
        return shown(&api, caller, StatusCode::CREATED, &plugin).await;
    }
    let (plugin, changed) = api.handle.install(caller.tenant, component, manifest).await?;
    shown(&api, caller, if changed { StatusCode::CREATED } else { StatusCode::OK }, &plugin).await
}

/// The component at the source that a body names.
async fn fetch(
    api: &Api,
    caller: Caller,
    headers: &HeaderMap,
    body: Body,
    bytes_max: u64,
) -> Result<Bytes, Problem> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        source: String,
        digest: Option<String>,
    }
    let body = body::read_json(body, headers, caller.until).await?;
    let Wanted { source, digest } = json::parse(&body)?;
    let digest = digest.map(|digest| digest.parse::<Digest>()).transpose();
    let digest = digest.map_err(|error| Problem::invalid(format!("digest: {error}")))?;
    let source: Source = source.parse().map_err(unfetched)?;
    let tenant = api.tenants.get(&caller.tenant);
    let tenant = tenant.ok_or_else(|| Problem::new(Code::Internal, "the tenant has no name"))?;
    let component = api.sources.fetch(tenant, &source, bytes_max, caller.until).await.map_err(unfetched)?;
    if let Some(digest) = digest {
        source::check("component", &component, digest).await.map_err(unfetched)?;
    }
    tracing::info!(%tenant, bytes = component.len(), source = %source.host(), "a component was fetched");
    Ok(component)
}

/// Why there is no component, for who named its source.
fn unfetched(error: source::Error) -> Problem {
    let problem = match error {
        source::Error::TooLarge { limit, asked } => too_large(limit, asked),
        source::Error::Digest { .. } => {
            Problem::new(error.kind(), error.to_string()).with_status(StatusCode::BAD_GATEWAY)
        }
        error => Problem::new(error.kind(), error.to_string()),
    };
    Problem { stage: Some(Stage::Receive), ..problem }
}

fn too_large(limit: u64, asked: Option<u64>) -> Problem {
    let fact = LimitFact { name: "component_bytes".to_owned(), limit, asked, set_by: SetBy::Tenant };
    Problem::at_limit(Code::QuotaExceeded, fact).with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

fn manifest_bytes(text: &str) -> Result<Vec<u8>, Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(text).or_else(|_| URL_SAFE.decode(text));
    decoded.map_err(|error| Problem::invalid(format!("manifest: not base64url: {error}")))
}

pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let plugins = api.handle.plugins(caller.tenant);
    let profiles = profiles(&api, plugins.iter().flat_map(Plugin::running)).await;
    Ok(json_answer(StatusCode::OK, dto::plugins(&plugins, &policy(&api, caller)?, &profiles)))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    shown(&api, caller, StatusCode::OK, &find(&api, caller, &name)?).await
}

pub(super) async fn component(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let version = find(&api, caller, &name)?.current;
    let bytes = api.components.get(version.digest).await.map_err(keiko_runtime::Error::from)?;
    let missing = || Problem::new(Code::Integrity, "the component's bytes are not there any more");
    let tag = HeaderValue::from_str(&format!("\"{}\"", version.digest));
    let mut answer = ([(header::CONTENT_TYPE, WASM)], bytes.ok_or_else(missing)?).into_response();
    if let Ok(tag) = tag {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    Ok(answer)
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let query: query::Remove = query::read(&uri)?;
    let when = if query.drain { RemoveWhen::Drained } else { RemoveWhen::Idle };
    match api.handle.remove_plugin(caller.tenant, &name.0, when).await? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(live) => {
            Ok(json_answer(StatusCode::ACCEPTED, dto::to_vec(&serde_json::json!({ "live": live }))))
        }
    }
}

pub(super) async fn history(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    let query: query::History = query::read(&uri)?;
    let limit = query.limit()?;
    let swaps = api.handle.generations(caller.tenant, &name.0, query.before, limit + 1).await?;
    let profiles = profiles(&api, swaps.iter().map(|swap| &swap.version)).await;
    Ok(json_answer(StatusCode::OK, dto::generations(&swaps, limit, &profiles)))
}

pub(super) async fn activate(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        version: VersionName,
        canary_percent: Option<u64>,
    }
    query::read::<query::Nothing>(&uri)?;
    let body = body::read_json(body, &headers, caller.until).await?;
    let wanted: Wanted = json::parse(&body)?;
    let Some(percent) = wanted.canary_percent else {
        return swap(&api, caller, &name, Target::Version(wanted.version)).await;
    };
    let plugin = api.handle.try_version(caller.tenant, &name.0, wanted.version, percent).await?;
    shown(&api, caller, StatusCode::OK, &plugin).await
}

pub(super) async fn canary(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let tried = api.handle.canary(caller.tenant, &name.0).await?;
    Ok(json_answer(StatusCode::OK, dto::tried(&tried)))
}

pub(super) async fn withdraw(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    api.handle.withdraw_canary(caller.tenant, &name.0).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn rollback(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: Segment,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    swap(&api, caller, &name, Target::Before).await
}

async fn swap(api: &Api, caller: Caller, name: &Segment, target: Target) -> Result<Response, Problem> {
    let (plugin, _) = api.handle.activate(caller.tenant, &name.0, target).await?;
    shown(api, caller, StatusCode::OK, &plugin).await
}

/// The files of the watched folder that are the tenant's, and what became of them.
pub(super) async fn watched(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let files = api.watched.lock().clone();
    Ok(json_answer(
        StatusCode::OK,
        dto::watched(files.iter().filter(|(_, file)| file.tenant == caller.tenant)),
    ))
}

pub(super) async fn host(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let text = dto::to_vec(&dto::HostJson {
        version: env!("CARGO_PKG_VERSION"),
        tenant: api.tenants.get(&caller.tenant).map(keiko_core::TenantName::as_str).unwrap_or_default(),
        workers: api.handle.options().workers,
        queue_max: policy(&api, caller)?.queue_max,
    });
    Ok(json_answer(StatusCode::OK, text))
}

fn find(api: &Api, caller: Caller, name: &Segment) -> Result<Plugin, Problem> {
    let plugin = api.handle.plugin(caller.tenant, &name.0);
    plugin.ok_or_else(|| Problem::new(Code::NotFound, "there is no such plugin"))
}

/// The answer with a plugin.
async fn shown(api: &Api, caller: Caller, status: StatusCode, plugin: &Plugin) -> Result<Response, Problem> {
    let profiles = profiles(api, plugin.running()).await;
    Ok(json_answer(status, dto::plugin(plugin, &policy(api, caller)?, &profiles)))
}

/// The engine profiles of versions.
async fn profiles<'a>(api: &Api, versions: impl Iterator<Item = &'a PluginVersion>) -> dto::Profiles {
    let digests: Vec<Digest> = versions.map(|version| version.digest).collect();
    api.handle.profiles(digests).await
}

fn policy(api: &Api, caller: Caller) -> Result<TenantPolicy, Problem> {
    let policy = api.handle.policy(caller.tenant);
    policy.ok_or_else(|| Problem::new(Code::NotFound, "there is no such tenant"))
}
