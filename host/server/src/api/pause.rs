//! `/v1/pause` and `/v1/resume`: what is kept from beginning.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use keiko_core::Code;
use keiko_runtime::{PauseTarget, PauseView};
use serde::{Deserialize, Serialize};

use super::caller::Caller;
use super::dto::{time, to_vec};
use super::problem::Problem;
use super::{Api, body, json, json_answer, query};

/// What to pause or resume: a kind by its plugin, its name, or both; the tenant; or the host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "what to pause, which is an object")]
struct Asked {
    plugin: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    tenant: bool,
    #[serde(default)]
    host: bool,
}

impl Asked {
    fn target(self) -> Result<PauseTarget, Problem> {
        let names_kind = self.plugin.is_some() || self.kind.is_some();
        match (names_kind, self.tenant, self.host) {
            (true, false, false) => Ok(PauseTarget::Kind { plugin: self.plugin, kind: self.kind }),
            (false, true, false) => Ok(PauseTarget::Tenant),
            (false, false, true) => Ok(PauseTarget::Host),
            _ => Err(Problem::invalid("name one: a kind by `plugin`, `kind` or both, `tenant`, or `host`")),
        }
    }
}

#[derive(Serialize)]
struct KindJson<'a> {
    plugin: &'a str,
    kind: &'a str,
    paused_at: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    host: bool,
    tenant: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_paused_at: Option<String>,
    kinds: Vec<KindJson<'a>>,
}

fn answer(view: &PauseView) -> Response {
    let kinds = view.kinds.iter().map(|kind| KindJson {
        plugin: kind.plugin.as_str(),
        kind: kind.kind.as_str(),
        paused_at: time(kind.since_ms),
    });
    let answer = Answer {
        host: view.host,
        tenant: view.tenant_since_ms.is_some(),
        tenant_paused_at: view.tenant_since_ms.map(time),
        kinds: kinds.collect(),
    };
    json_answer(StatusCode::OK, to_vec(&answer))
}

pub(super) async fn get(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    Ok(answer(&api.handle.pauses(caller.tenant).await?))
}

pub(super) async fn pause(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = target(caller, &uri, &headers, body).await?;
    Ok(answer(&api.handle.pause_tasks(caller.tenant, &target).await?))
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = target(caller, &uri, &headers, body).await?;
    Ok(answer(&api.handle.resume_tasks(caller.tenant, &target).await?))
}

async fn target(caller: Caller, uri: &Uri, headers: &HeaderMap, body: Body) -> Result<PauseTarget, Problem> {
    query::read::<query::Nothing>(uri)?;
    let body = body::read_json(body, headers, caller.until).await?;
    let target = json::parse::<Asked>(&body)?.target()?;
    if target == PauseTarget::Host && !caller.operator {
        return Err(Problem::new(Code::Denied, "only a token with `operator` pauses and resumes the host"));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_thing_is_named() {
        let check = |text: &str, expected: Option<PauseTarget>| {
            let target = json::parse::<Asked>(text.as_bytes()).and_then(Asked::target);
            assert_eq!(target.ok(), expected, "{text}");
        };
        let name = |text: &str| Some(text.to_owned());
        check("{}", None);
        check(r#"{"tenant":false}"#, None);
        check(r#"{"tenant":true,"host":true}"#, None);
        check(r#"{"tenant":true,"kind":"k"}"#, None);
        check(r#"{"kinds":["k"]}"#, None);
        check(r#"{"tenant":true}"#, Some(PauseTarget::Tenant));
        check(r#"{"host":true}"#, Some(PauseTarget::Host));
        check(r#"{"kind":"k"}"#, Some(PauseTarget::Kind { plugin: None, kind: name("k") }));
        check(r#"{"plugin":"p"}"#, Some(PauseTarget::Kind { plugin: name("p"), kind: None }));
    }
}
