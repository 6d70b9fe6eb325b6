//! The HTTP side: `docs/http-api.md` says what it promises, this module keeps it.
//!
//! A request passes, in this order: connection limits ([`serve`]), the guard ([`guard`]: sizes, token, classes,
//! time), a route, a handler. Handlers convert and call the runtime's handle; nothing else is decided here.

mod body;
mod caller;
mod dto;
mod gate;
mod guard;
mod json;
pub mod limit;
mod plugin;
pub mod problem;
mod query;
mod serve;
mod stall;
mod task;
mod trace;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use keiko_core::port::{Clock, Components};
use keiko_core::{Code, TenantId, TenantName};
use keiko_runtime::Handle;

use crate::auth::Auth;
use crate::config::ApiLimits;
use problem::Problem;

pub(crate) use dto::time;
pub(crate) use serve::{Listening, serve};

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
}

/// The routes. Every one of them but the two about health passes the guard's token check.
fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/v1/host", get(plugin::host))
        .route("/v1/tasks", post(task::submit).get(task::list))
        .route("/v1/tasks/counts", get(task::counts))
        .route("/v1/tasks/{id}", get(task::get))
        .route("/v1/tasks/{id}/result", get(task::result))
        .route("/v1/tasks/{id}/logs", get(task::logs))
        .route("/v1/tasks/{id}/cancel", post(task::cancel))
        .route("/v1/tasks/{id}/retry", post(task::retry))
        .route("/v1/plugins", post(plugin::install).get(plugin::list))
        .route("/v1/plugins/{name}", get(plugin::get).delete(plugin::remove))
        .route("/v1/plugins/{name}/component", get(plugin::component))
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
