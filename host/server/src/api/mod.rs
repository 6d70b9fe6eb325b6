//! The HTTP side: `docs/http-api.md` says what it promises, this module keeps it.
//!
//! A request passes, in this order: connection limits ([`serve`]), the guard ([`guard`]: sizes, token, classes,
//! time), a route, a handler. Handlers convert and call the runtime's handle; nothing else is decided here.

mod agent;
mod batch;
mod body;
mod cache;
mod caller;
mod dto;
mod events;
mod gate;
mod group;
mod guard;
mod input;
mod json;
pub mod limit;
mod metrics;
mod pause;
mod plugin;
pub mod problem;
mod query;
mod report;
mod run;
mod schedule;
mod serve;
mod stall;
mod statistics;
mod stream;
mod task;
mod trace;
mod usage;
mod user;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use keiko_core::port::{Clock, Components};
use keiko_core::{Code, TenantId, TenantName};
use keiko_engine::Engine;
use keiko_runtime::Handle;

use crate::auth::Auth;
use crate::config::ApiLimits;
use crate::signature::Signers;
use crate::source::Sources;
use crate::watch::WatchedFiles;
use keiko_store::postgres::PoolFigures;
use problem::Problem;

pub(crate) use dto::time;
pub(crate) use metrics::Metrics;
pub(crate) use report::Report;
pub(crate) use serve::{Listening, serve};

/// Looks at the pool of database connections; `None` with the embedded database, which has none.
pub(crate) type PoolLook = Box<dyn Fn() -> Option<PoolFigures> + Send + Sync>;

/// What handlers share.
pub(crate) struct Api {
    /// The running host.
    pub(crate) handle: Handle,
    /// Plugins' bytes, for those who want them back.
    pub(crate) components: Arc<dyn Components>,
    /// Who may speak for whom.
    pub(crate) auth: Auth,
    /// Names of the tenants.
    pub(crate) tenants: HashMap<TenantId, TenantName>,
    /// For tokens that expire.
    pub(crate) clock: Arc<dyn Clock>,
    /// What an operator set.
    pub(crate) limits: ApiLimits,
    /// What the host counts.
    pub(crate) metrics: Metrics,
    /// What runs the guests, for what it counts.
    pub(crate) engine: Engine,
    /// What the pool of database connections has done.
    pub(crate) pool: PoolLook,
    /// Whose plugins each tenant takes.
    pub(crate) signers: Arc<Signers>,
    /// Who may be asked for components.
    pub(crate) sources: Sources,
    /// What became of the files of the watched folder.
    pub(crate) watched: WatchedFiles,
}

/// The routes. Every one of them but those about the host's own health passes the guard's token check.
fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/host", get(plugin::host))
        .route("/v1/pause", post(pause::pause).get(pause::get))
        .route("/v1/resume", post(pause::resume))
        .route("/v1/tasks", post(task::submit).get(task::list).delete(task::drop_many))
        .route("/v1/tasks/counts", get(task::counts))
        .route("/v1/tasks/cancel", post(task::cancel_many))
        .route("/v1/tasks/retry", post(task::retry_many))
        .route("/v1/tasks/{id}", get(task::get).delete(task::drop_task))
        .route("/v1/tasks/{id}/input", get(task::input))
        .route("/v1/tasks/{id}/result", get(task::result))
        .route("/v1/tasks/{id}/logs", get(task::logs))
        .route("/v1/tasks/{id}/events", get(events::of_task))
        .route("/v1/tasks/{id}/cancel", post(task::cancel))
        .route("/v1/tasks/{id}/retry", post(task::retry))
        .route("/v1/groups", post(group::submit))
        .route("/v1/groups/{id}", get(group::get))
        .route("/v1/groups/{id}/outcomes", get(group::outcomes))
        .route("/v1/groups/{id}/events", get(events::of_group))
        .route("/v1/groups/{id}/cancel", post(group::cancel))
        .route("/v1/schedules", post(schedule::create).get(schedule::list))
        .route("/v1/schedules/{name}", get(schedule::get).delete(schedule::remove))
        .route("/v1/schedules/{name}/pause", post(schedule::pause))
        .route("/v1/schedules/{name}/resume", post(schedule::resume))
        .route("/v1/agents", post(agent::create).get(agent::list))
        .route("/v1/agents/load", post(agent::load))
        .route("/v1/agents/statuses", post(agent::statuses))
        .route("/v1/agents/{id}", get(agent::get).patch(agent::update))
        .route("/v1/users", post(user::create).get(user::list))
        .route("/v1/users/{id}", get(user::get))
        .route("/v1/users/{id}/tasks", get(user::tasks))
        .route("/v1/run", post(run::run))
        .route("/v1/statistics", get(statistics::get))
        .route("/v1/batches", get(batch::list))
        .route("/v1/batches/{processor}", get(batch::get))
        .route("/v1/batches/{processor}/items", post(batch::add).get(batch::items))
        .route("/v1/batches/{processor}/rows", get(batch::rows))
        .route("/v1/batches/{processor}/flush", post(batch::flush))
        .route("/v1/batches/{processor}/resume", post(batch::resume))
        .route("/v1/batches/{processor}/dead", get(batch::dead).delete(batch::drop_all_dead))
        .route("/v1/batches/{processor}/dead/retry", post(batch::retry_all_dead))
        .route("/v1/batches/{processor}/dead/{item}", get(batch::one_dead).delete(batch::drop_dead))
        .route("/v1/batches/{processor}/dead/{item}/retry", post(batch::retry_dead))
        .route("/v1/usage", get(usage::get))
        .route("/v1/cache", get(cache::usage).delete(cache::clear))
        .route("/v1/cache/entry", get(cache::explain).delete(cache::remove))
        .route("/v1/cache/tag", delete(cache::remove_tag))
        .route("/v1/watched", get(plugin::watched))
        .route("/v1/plugins", post(plugin::install).get(plugin::list))
        .route("/v1/plugins/{name}", get(plugin::get).delete(plugin::remove))
        .route("/v1/plugins/{name}/component", get(plugin::component))
        .route("/v1/plugins/{name}/history", get(plugin::history))
        .route("/v1/plugins/{name}/activate", post(plugin::activate))
        .route("/v1/plugins/{name}/rollback", post(plugin::rollback))
        .route("/v1/plugins/{name}/canary", get(plugin::canary).delete(plugin::withdraw))
        .fallback(async |uri: Uri| {
            Problem::new(Code::NotFound, format!("there is no route `{}`", uri.path()))
        })
        .method_not_allowed_fallback(async || {
            Problem::invalid("the route does not take this method")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(api)
}

async fn livez() -> &'static str {
    "ok"
}

async fn readyz(State(api): State<Arc<Api>>) -> Result<&'static str, Problem> {
    let ready = api.handle.ready().await;
    ready.map(|()| "ok").map_err(|error| Problem::from(error).with_status(StatusCode::SERVICE_UNAVAILABLE))
}

fn json_answer(status: StatusCode, text: Vec<u8>) -> Response {
    let mut response = Body::from(text).into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
