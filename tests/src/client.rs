//! A small client of the HTTP API, for programs that want to see status, headers and bytes as they are.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{HeaderMap, Response};

/// Longer than the API's longest wait.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Longest wait that the API takes, in seconds.
const WAIT_S: u64 = 60;
/// A page of 1,000 tasks with everything in it stays under this.
const BODY_BYTES_MAX: u64 = 64 << 20;

/// Talks to one host as one tenant. Clones follow the host when it comes back under another port.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    /// Written by the harness when the host listens, read by every request.
    address: Arc<RwLock<String>>,
    token: Option<String>,
}

/// What came back, whatever the status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Client {
    /// A client of the host that listens at `address`, as the only tenant there is.
    pub fn new(address: impl Into<String>) -> Client {
        Client { agent: agent(TIMEOUT), address: Arc::new(RwLock::new(address.into())), token: None }
    }

    /// The same host, for requests that may take longer than others.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client { agent: agent(timeout), ..self.clone() }
    }

    /// The same host, as the tenant of this token.
    #[must_use]
    pub fn with_token(&self, token: impl Into<String>) -> Client {
        Client { token: Some(token.into()), ..self.clone() }
    }

    /// Where the host listens.
    pub fn address(&self) -> String {
        self.address.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The host listens there now.
    pub fn moved_to(&self, address: &str) {
        address.clone_into(&mut self.address.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Answer> {
        let request = self.authorized(self.agent.get(self.url(path)));
        Answer::read(request.call().with_context(|| format!("GET {path}"))?)
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        let request = self.authorized(self.agent.delete(self.url(path)));
        Answer::read(request.call().with_context(|| format!("DELETE {path}"))?)
    }

    /// `POST path` with these headers and bytes.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let mut request = self.authorized(self.agent.post(self.url(path)));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::read(request.send(body).with_context(|| format!("POST {path}"))?)
    }

    /// `POST path` with a JSON body and, maybe, an idempotency key.
    pub fn post_json(&self, path: &str, body: &Value, key: Option<&str>) -> Result<Answer> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        self.post(path, &headers, body.to_string().as_bytes())
    }

    /// Uploads a component that carries its manifest.
    pub fn upload(&self, component: &[u8]) -> Result<Answer> {
        self.post("/v1/plugins", &[("content-type", "application/wasm")], component)
    }

    /// Installs a component; the answer is the plugin.
    pub fn install(&self, component: &[u8]) -> Result<Value> {
        self.upload(component)?.expect(&[200, 201])
    }

    /// Submits one task, with whatever else `more` says of it, and answers its id.
    pub fn submit(&self, plugin: &str, kind: &str, input: Value, more: Value) -> Result<String> {
        let task =
            self.post_json("/v1/tasks", &task_body(plugin, kind, input, more), None)?.expect(&[201])?;
        text(&task, "id")
    }

    /// Submits one task and answers it as it ended.
    pub fn run(&self, plugin: &str, kind: &str, input: Value, more: Value) -> Result<Value> {
        let id = self.submit(plugin, kind, input, more)?;
        self.ended(&id)
    }

    /// The task as it stands.
    pub fn task(&self, id: &str) -> Result<Value> {
        self.get(&format!("/v1/tasks/{id}"))?.expect(&[200])
    }

    /// The task as it ended; fails when it has not ended within the API's longest wait.
    pub fn ended(&self, id: &str) -> Result<Value> {
        let task = self.get(&format!("/v1/tasks/{id}?wait={WAIT_S}"))?.expect(&[200])?;
        match task["state"].as_str() {
            Some("pending" | "running") => bail!("{id} did not end within {WAIT_S} s: {task}"),
            _ => Ok(task),
        }
    }

    /// How many tasks are in a state.
    pub fn count(&self, state: &str) -> Result<u64> {
        let counts = self.get("/v1/tasks/counts")?.expect(&[200])?;
        counts[state].as_u64().with_context(|| format!("no count of {state} in {counts}"))
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> Result<u64> {
        let counts = self.get("/v1/tasks/counts")?.expect(&[200])?;
        let number = |state: &str| counts[state].as_u64().with_context(|| format!("no {state} in {counts}"));
        Ok(number("pending")? + number("running")?)
    }

    /// All tasks that `filter` names (`&state=failed`), newest first, page by page.
    pub fn list(&self, filter: &str, page: u32) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        self.each_listed(filter, page, |task| {
            all.push(task);
            Ok(())
        })?;
        Ok(all)
    }

    /// The same for histories that are better not held in memory.
    pub fn each_listed(
        &self,
        filter: &str,
        page: u32,
        mut see: impl FnMut(Value) -> Result<()>,
    ) -> Result<()> {
        let mut before = String::new();
        loop {
            let mut answer = self.get(&format!("/v1/tasks?limit={page}{filter}{before}"))?.expect(&[200])?;
            if let Value::Array(tasks) = answer["tasks"].take() {
                tasks.into_iter().try_for_each(&mut see)?;
            }
            match answer["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => return Ok(()),
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }
}

fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .proxy(None)
        .max_idle_connections_per_host(8)
        .build()
        .new_agent()
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.bytes).map_err(|error| anyhow!("{error} in {self:.300}"))
    }

    /// The body as JSON, when the status is one of these.
    pub fn expect(&self, statuses: &[u16]) -> Result<Value> {
        if !statuses.contains(&self.status) {
            bail!("expected one of {statuses:?}, not {self:.600}");
        }
        self.json()
    }

    /// The code of a problem; empty when this is none.
    pub fn code(&self) -> String {
        let problem = self.json().unwrap_or_default();
        problem["code"].as_str().unwrap_or_default().to_owned()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn read(mut response: Response<ureq::Body>) -> Result<Answer> {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.body_mut().with_config().limit(BODY_BYTES_MAX);
        Ok(Answer { status, headers, bytes: body.read_to_vec().context("read the answer")? })
    }
}

/// The status and the first so many characters of the body.
impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes);
        let shown: String = text.chars().take(f.precision().unwrap_or(usize::MAX)).collect();
        write!(f, "{} {shown}", self.status)
    }
}

/// The body of a submit: `more` holds further fields, or is null.
pub(crate) fn task_body(plugin: &str, kind: &str, input: Value, more: Value) -> Value {
    let mut body = json!({ "plugin": plugin, "kind": kind, "input": input });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

/// A field that must be a text.
pub(crate) fn text(value: &Value, field: &str) -> Result<String> {
    value[field].as_str().map(str::to_owned).with_context(|| format!("no text `{field}` in {value}"))
}
