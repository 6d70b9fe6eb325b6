//! Requests of the command line to a running host: plain HTTP, for a host on this machine or behind a proxy that
//! ends TLS.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::{Method, Request, Response};

use super::exit::Failure;
use super::print;
use crate::wiring::ADDRESS_FILE;

/// A host answers within 30 seconds, or says that it cannot.
const ANSWER_TIME: Duration = Duration::from_secs(40);
/// An install takes as long as its compilation.
const UPLOAD_TIME: Duration = Duration::from_secs(330);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Largest answer: a page of tasks, or a component.
const ANSWER_BYTES_MAX: u64 = 80 << 20;

/// How to reach a host.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct HostArguments {
    /// Address of the host
    #[arg(long, env = "KEIKO_SERVER", default_value = SERVER, value_name = "URL")]
    server: String,
    /// Find the host by the address it wrote into its data folder, instead of --server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Token of the tenant to speak for; better in the environment, where others do not see it
    #[arg(long, env = "KEIKO_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Print the host's JSON as it is, for programs
    #[arg(long)]
    pub(super) json: bool,
}

/// Which part of a list to show.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PageArguments {
    /// Only those older than this one: how the next page is asked for
    #[arg(long, value_name = "ID")]
    before: Option<String>,
    /// At most this many
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
}

/// What stands behind the `?` of a path.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<String>);

impl Query {
    /// Adds a value, if there is one.
    pub(super) fn add(&mut self, name: &str, value: Option<&str>) {
        self.0.extend(value.map(|value| format!("{name}={}", segment(value))));
    }

    /// Adds which part of a list is asked for.
    pub(super) fn page(&mut self, page: &PageArguments) {
        self.add("before", page.before.as_deref());
        self.add("limit", page.limit.map(|limit| limit.to_string()).as_deref());
    }

    /// The path with everything that was added.
    pub(super) fn of(&self, path: &str) -> String {
        if self.0.is_empty() { path.to_owned() } else { format!("{path}?{}", self.0.join("&")) }
    }
}

/// Talks to one host.
pub(super) struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// What a host answered to a request it did not refuse.
pub(super) struct Answer {
    /// The body.
    pub(super) body: Vec<u8>,
}

/// A request before it is sent.
pub(super) struct Call<'a> {
    method: Method,
    path: &'a str,
    headers: Vec<(&'static str, &'a str)>,
    body: &'a [u8],
    /// Until when the answer is whole; `None` is any time.
    time: Option<Duration>,
}

impl<'a> Call<'a> {
    pub(super) fn get(path: &'a str) -> Call<'a> {
        Call::new(Method::GET, path)
    }

    pub(super) fn post(path: &'a str) -> Call<'a> {
        Call::new(Method::POST, path)
    }

    pub(super) fn patch(path: &'a str) -> Call<'a> {
        Call::new(Method::PATCH, path)
    }

    pub(super) fn delete(path: &'a str) -> Call<'a> {
        Call::new(Method::DELETE, path)
    }

    fn new(method: Method, path: &'a str) -> Call<'a> {
        Call { method, path, headers: Vec::new(), body: &[], time: Some(ANSWER_TIME) }
    }

    pub(super) fn body(mut self, content_type: &'a str, body: &'a [u8]) -> Call<'a> {
        self.headers.push(("content-type", content_type));
        self.body = body;
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &'a str) -> Call<'a> {
        self.headers.push((name, value));
        self
    }

    /// Waits for the answer as long as an upload takes.
    pub(super) fn upload(mut self) -> Call<'a> {
        self.time = Some(UPLOAD_TIME);
        self
    }

    /// Waits for the end of the answer so long, or as long as it takes.
    pub(super) fn for_as_long_as(mut self, time: Option<Duration>) -> Call<'a> {
        self.time = time;
        self
    }

    /// Waits for the answer this much longer.
    pub(super) fn and_wait(mut self, seconds: u64) -> Call<'a> {
        self.time = self.time.map(|time| time + Duration::from_secs(seconds));
        self
    }
}

/// Where a host on this machine listens unless it is told otherwise.
const SERVER: &str = "http://127.0.0.1:7700";

impl HostArguments {
    /// What a command says that has options of its own for this.
    pub(super) fn of(
        server: Option<String>,
        data_dir: Option<PathBuf>,
        token: Option<String>,
    ) -> HostArguments {
        HostArguments { server: server.unwrap_or_else(|| SERVER.to_owned()), data_dir, token, json: false }
    }

    /// A client of this host.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let server = match &self.data_dir {
            Some(folder) => format!("http://{}", read_address(folder)?),
            None => self.server.trim_end_matches('/').to_owned(),
        };
        if !server.starts_with("http://") {
            let text =
                format!("--server is `{server}`; the command line speaks plain HTTP: http://HOST:PORT");
            return Err(Failure::Usage(text));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIME))
            .user_agent(concat!("keiko/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Client { agent: agent.new_agent(), base: server, token: self.token.clone() })
    }
}

fn read_address(folder: &Path) -> Result<String, Failure> {
    let path = folder.join(ADDRESS_FILE);
    let text = std::fs::read_to_string(&path);
    let text =
        text.map_err(|error| Failure::Host(format!("no host runs in {}: {error}", folder.display())))?;
    Ok(text.trim().to_owned())
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    message: String,
    request_id: String,
    stage: Option<String>,
}

impl Client {
    /// Sends a request. What the host refuses is a failure with the host's words.
    pub(super) fn send(&self, call: Call<'_>) -> Result<Answer, Failure> {
        let mut answer = self.answered(call)?;
        Ok(Answer { body: self.whole(&mut answer)? })
    }

    /// Sends a request whose answer is read as it comes.
    pub(super) fn open(&self, call: Call<'_>) -> Result<impl Read + use<>, Failure> {
        Ok(self.answered(call)?.into_body().into_reader())
    }

    fn whole(&self, answer: &mut Response<ureq::Body>) -> Result<Vec<u8>, Failure> {
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        body.map_err(|error| Failure::Host(format!("{}: the answer broke off: {error}", self.base)))
    }

    fn answered(&self, call: Call<'_>) -> Result<Response<ureq::Body>, Failure> {
        let mut request = Request::builder().method(call.method).uri(format!("{}{}", self.base, call.path));
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(call.body).map_err(|error| Failure::Usage(error.to_string()))?;
        let request = self.agent.configure_request(request).timeout_global(call.time).build();
        let answer = self.agent.run(request);
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = self.whole(&mut answer)?;
        let text = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => {
                let (code, id) = (print::clean(&problem.code), print::clean(&problem.request_id));
                let stage = problem.stage.map(|stage| format!("at the stage {}, ", print::clean(&stage)));
                format!(
                    "{} ({code}, {}request {id})",
                    print::clean(&problem.message),
                    stage.unwrap_or_default()
                )
            }
            Err(_) => format!("{}: HTTP {status}, and not from a Keiko host", self.base),
        };
        Err(if status.is_client_error() { Failure::Refused(text) } else { Failure::Host(text) })
    }
}

impl Client {
    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let refused =
            matches!(error, ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused);
        let hint = if refused { "; is `keiko serve` running?" } else { "" };
        Failure::Host(format!("no host answers at {}: {error}{hint}", self.base))
    }
}

impl Answer {
    /// The answer as one of the documented shapes.
    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        let parsed = serde_json::from_slice(&self.body);
        parsed.map_err(|error| Failure::Host(format!("the host's answer is not understood: {error}")))
    }

    /// Prints it as it is.
    pub(super) fn print(&self) {
        print::bytes(&self.body);
        print::bytes(b"\n");
    }
}

/// A name as a part of a path: everything but the plainest letters is escaped.
pub(super) fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_what_was_added() {
        let mut query = Query::default();
        query.add("kind", None);
        assert_eq!(query.of("/v1/agents"), "/v1/agents");
        query.add("kind", Some("a&b"));
        query.page(&PageArguments { before: Some("agent_1".to_owned()), limit: Some(5) });
        assert_eq!(query.of("/v1/agents"), "/v1/agents?kind=a%26b&before=agent_1&limit=5");
    }

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("movie-facts_2"), "movie-facts_2");
        assert_eq!(segment("../x?y"), "%2E%2E%2Fx%3Fy");
    }
}
