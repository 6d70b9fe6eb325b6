//! A submit of any number of tasks, one a line, each answered by a line of its own while the next ones still come.
//!
//! - What is in memory is bounded: [`LINES_MAX`] lines and [`BYTES_MAX`] bytes at a time, of which none is read before the
//!   ones before it are answered. A line of a task is at most [`JSON_BYTES_MAX`] bytes.
//! - Each line is accepted or refused for itself; what was accepted is durable when its line is answered.
//! - Answers are in the order of the lines, and the last one says how many there were. A client that sends without reading
//!   is not read from once its answers have nowhere to go.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use futures::stream;
use http_body_util::BodyExt;
use keiko_core::limit::LimitFact;
use keiko_core::{Code, TaskId, TenantId};
use serde::Serialize;
use tokio::time::timeout;

use super::caller::Caller;
use super::gate::Streams;
use super::limit::JSON_BYTES_MAX;
use super::problem::Problem;
use super::task::{LINES, idempotency_key, too_large_input};
use super::{Api, dto, trace};

/// Lines that are submitted at once.
const LINES_MAX: usize = 500;
/// Bytes of lines that are submitted at once; the first line always fits.
const BYTES_MAX: usize = 4 << 20;

/// The answer to a line.
#[derive(Serialize)]
struct Answer<'a> {
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(flatten)]
    problem: Option<ProblemJson<'a>>,
}

/// The answer after all lines.
#[derive(Serialize)]
struct End<'a> {
    lines: u64,
    accepted: u64,
    refused: u64,
    #[serde(flatten)]
    problem: Option<ProblemJson<'a>>,
}

#[derive(Serialize)]
struct ProblemJson<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a LimitFact>,
}

impl<'a> From<&'a Problem> for ProblemJson<'a> {
    fn from(problem: &'a Problem) -> ProblemJson<'a> {
        ProblemJson { code: problem.code.as_str(), message: &problem.message, limit: problem.limit.as_ref() }
    }
}

/// Whether a submit asks for answers line by line.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepts.split(',').any(|part| {
        let kind = part.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case(LINES)
    })
}

/// Answers a stream of tasks.
pub(super) fn submit(
    api: Arc<Api>,
    caller: Caller,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if idempotency_key(headers)?.is_some() {
        let text =
            "`Idempotency-Key` covers a whole request; a line of a stream has its own `idempotency_key`";
        return Err(Problem::invalid(text));
    }
    let trace = trace::parent(headers).map(str::to_owned);
    let lines = Lines::new(body, api.limits.request);
    let submitting = Submitting { api, caller, trace, lines, counted: (0, 0), done: false };
    let answers = stream::unfold(submitting, |mut submitting| async move {
        let answers = submitting.next().await?;
        Some((Ok::<_, Infallible>(answers), submitting))
    });
    let mut response = Body::from_stream(answers).into_response();
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
    response.extensions_mut().insert(Streams);
    Ok(response)
}

struct Submitting {
    api: Arc<Api>,
    caller: Caller,
    trace: Option<String>,
    lines: Lines,
    /// Lines that were accepted, and that were refused.
    counted: (u64, u64),
    done: bool,
}

impl Submitting {
    /// Answers to the next lines.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut text = Vec::new();
        let (lines, end) = self.lines.next().await;
        let (api, tenant, trace) = (&*self.api, self.caller.tenant, self.trace.as_deref());
        let submits = lines.into_iter().map(|(number, line)| submit_line(api, tenant, trace, number, line));
        let answers = join_all(submits).await;
        for (line, answer) in &answers {
            let (id, duplicate) = answer.as_ref().map_or((None, false), |(id, twice)| (Some(id), *twice));
            let problem = answer.as_ref().err().map(ProblemJson::from);
            write(&mut text, &Answer { line: *line, id: id.map(TaskId::to_string), duplicate, problem });
            match answer {
                Ok(_) => self.counted.0 += 1,
                Err(_) => self.counted.1 += 1,
            }
        }
        if let Some(end) = end {
            let ((accepted, refused), lines) = (self.counted, self.lines.number);
            let problem = end.as_ref().err().map(ProblemJson::from);
            write(&mut text, &End { lines, accepted, refused, problem });
            self.done = true;
        }
        Some(Bytes::from(text))
    }
}

/// Submits the task of a line: its id, and whether its key had stood for it before.
async fn submit_line(
    api: &Api,
    tenant: TenantId,
    trace: Option<&str>,
    number: u64,
    line: Result<Bytes, Problem>,
) -> (u64, Result<(TaskId, bool), Problem>) {
    let submitted = async {
        let (task, key) = dto::stream_line(&line?, trace)?;
        let accepted = api.handle.submit(tenant, vec![task], key).await.map_err(too_large_input)?;
        Ok((accepted.first, accepted.duplicate))
    };
    (number, submitted.await)
}

fn write(text: &mut Vec<u8>, answer: &impl Serialize) {
    // Numbers and texts always encode.
    let _ = serde_json::to_writer(&mut *text, answer);
    text.push(b'\n');
}

/// A body, line by line.
struct Lines {
    body: Body,
    /// Longest wait for more of the body.
    idle: Duration,
    have: BytesMut,
    /// How much of it has no line's end.
    searched: usize,
    /// Lines so far, with the empty ones.
    number: u64,
    /// Whether the rest of a line that is too long is thrown away.
    skips: bool,
    ended: bool,
}

/// Lines with their numbers, and how the body ended if it did.
type Come = (Vec<(u64, Result<Bytes, Problem>)>, Option<Result<(), Problem>>);

impl Lines {
    fn new(body: Body, idle: Duration) -> Lines {
        Lines { body, idle, have: BytesMut::new(), searched: 0, number: 0, skips: false, ended: false }
    }

    /// The next lines that are not empty: those that have come, as soon as there are any.
    async fn next(&mut self) -> Come {
        loop {
            let lines = self.take();
            if !lines.is_empty() {
                return (lines, None);
            }
            if self.ended {
                return (self.last().into_iter().collect(), Some(Ok(())));
            }
            let problem = match timeout(self.idle, self.body.frame()).await {
                Ok(None) => {
                    self.ended = true;
                    continue;
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.have.extend_from_slice(&data);
                    }
                    continue;
                }
                Ok(Some(Err(error))) => Problem::invalid(format!("the body broke off: {error}")),
                Err(_) => Problem::new(Code::DeadlineExceeded, "nothing more of the body arrived in time"),
            };
            // What was begun is no line.
            return (Vec::new(), Some(Err(problem)));
        }
    }

    /// Whole lines of what has come.
    fn take(&mut self) -> Vec<(u64, Result<Bytes, Problem>)> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < LINES_MAX && bytes < BYTES_MAX {
            let end = self.have[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|at| self.searched + at) else {
                self.searched = self.have.len();
                break;
            };
            let line = self.have.split_to(end + 1).freeze();
            self.searched = 0;
            bytes += line.len();
            lines.extend(self.line(line.slice(..end)));
        }
        if self.searched as u64 > JSON_BYTES_MAX + 1 && !self.skips {
            self.number += 1;
            lines.push((self.number, Err(too_long())));
            self.skips = true;
        }
        if self.skips && self.searched > 0 && self.searched == self.have.len() {
            self.have.clear();
            self.searched = 0;
        }
        lines
    }

    /// A line whose end was found; of one that was too long its end alone.
    fn line(&mut self, line: Bytes) -> Option<(u64, Result<Bytes, Problem>)> {
        if std::mem::take(&mut self.skips) {
            return None;
        }
        self.number += 1;
        // Some end their lines with two characters.
        let line = line.strip_suffix(b"\r").map_or(line.clone(), |short| line.slice_ref(short));
        if line.trim_ascii().is_empty() {
            return None;
        }
        let fits = line.len() as u64 <= JSON_BYTES_MAX;
        Some((self.number, if fits { Ok(line) } else { Err(too_long()) }))
    }

    /// What stands behind the last line's end.
    fn last(&mut self) -> Option<(u64, Result<Bytes, Problem>)> {
        if self.have.is_empty() {
            return None;
        }
        let rest = self.have.split().freeze();
        self.line(rest)
    }
}

fn too_long() -> Problem {
    Problem::too_large("line_bytes", JSON_BYTES_MAX, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a body that comes in these pieces: their numbers, and their lengths or that they are too long.
    async fn lines(pieces: Vec<Vec<u8>>) -> (Vec<(u64, Option<usize>)>, bool) {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let mut lines = Lines::new(Body::from_stream(stream::iter(pieces)), Duration::from_secs(60));
        let mut found = Vec::new();
        loop {
            let (some, end) = lines.next().await;
            assert!(some.len() <= LINES_MAX);
            let have = lines.have.len() as u64;
            assert!(have <= JSON_BYTES_MAX + 2 + (1 << 20), "{have} bytes are kept");
            found.extend(some.into_iter().map(|(number, line)| (number, line.ok().map(|line| line.len()))));
            if let Some(end) = end {
                return (found, end.is_ok());
            }
        }
    }

    #[tokio::test]
    async fn lines_are_found_wherever_the_body_is_cut() {
        let text = b"one\n\n  \r\ntwo\r\nthree";
        let expected = (vec![(1, Some(3)), (4, Some(3)), (5, Some(5))], true);
        assert_eq!(lines(vec![text.to_vec()]).await, expected);
        assert_eq!(lines(text.iter().map(|byte| vec![*byte]).collect()).await, expected);
        assert_eq!(lines(Vec::new()).await, (Vec::new(), true));
        assert_eq!(lines(vec![b"\n".to_vec()]).await, (Vec::new(), true));
    }

    #[tokio::test]
    async fn a_line_has_an_exact_edge_and_a_longer_one_spoils_no_other() {
        let line = |bytes: u64| vec![b'x'; bytes as usize];
        for size in [1 << 16, 1 << 20] {
            for (bytes, expected) in
                [(JSON_BYTES_MAX, Some(JSON_BYTES_MAX as usize)), (JSON_BYTES_MAX + 1, None), (9 << 20, None)]
            {
                let text = [line(bytes), b"\nafter\n".to_vec()].concat();
                let pieces = text.chunks(size).map(<[u8]>::to_vec).collect();
                let found = lines(pieces).await;
                assert_eq!(found, (vec![(1, expected), (2, Some(5))], true), "{bytes} bytes");
            }
        }
        // At the end of the body, too.
        let found = lines(vec![line(JSON_BYTES_MAX + 1)]).await;
        assert_eq!(found, (vec![(1, None)], true));
    }

    #[tokio::test]
    async fn many_lines_come_in_parts() {
        let text = b"x\n".repeat(3 * LINES_MAX + 1);
        let (found, _) = lines(vec![text]).await;
        assert_eq!(
            (found.len(), found.last()),
            (3 * LINES_MAX + 1, Some(&(3 * LINES_MAX as u64 + 1, Some(1))))
        );
    }

    #[tokio::test]
    async fn a_body_that_stands_still_or_breaks_off_ends_with_its_reason() {
        let still = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let (some, end) = Lines::new(still, Duration::from_millis(1)).next().await;
        assert!(some.is_empty());
        assert_eq!(end.unwrap().unwrap_err().code, Code::DeadlineExceeded);
        let broken = stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))]);
        let (some, end) = Lines::new(Body::from_stream(broken), Duration::from_secs(5)).next().await;
        assert!(some.is_empty(), "half a line is none");
        assert!(end.unwrap().unwrap_err().message.contains("broke off"));
    }
}
