//! `/v1/tasks/{id}/events` and `/v1/groups/{id}/events`: changes as server-sent events.
//!
//! An event's id says how things stood, and behind what a task has given out. Who comes back with it in `Last-Event-ID` is told what is different; who comes back
//! with the id of the end is told to stay away. A stream counts among the streams of its tenant until its reader is gone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use keiko_core::Token;
use keiko_core::group::GroupState;
use keiko_core::task::TaskState;
use keiko_runtime::{Error, GroupWatch, TaskEvent, TaskPlace, TaskWatch};
use serde_json::json;
use tokio::time::timeout;

use super::caller::{Caller, Segment};
use super::gate::Streams;
use super::group::{group_id, group_json};
use super::problem::Problem;
use super::{Api, dto, query, task};

/// A stream says that it lives when nothing else was to be said for so long.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

pub(super) async fn of_task(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let id = task::task_id(&id)?;
    let told = last_event_id(&headers)?.map(|text| task_place(&text)).transpose()?;
    // One that is not there is answered as everywhere.
    let stands = api.handle.task(caller.tenant, id).await?.view;
    let is_told = told.is_some_and(|told| (told.token, told.state) == (stands.token, stands.summary.state));
    if is_told && stands.summary.state.is_terminal() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(answer(api.handle.watch(caller.tenant, id, told)))
}

pub(super) async fn of_group(
    State(api): State<Arc<Api>>,
    caller: Caller,
    id: Segment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query::read::<query::Nothing>(&uri)?;
    let id = group_id(&id)?;
    let told = last_event_id(&headers)?.map(|text| group_place(&text)).transpose()?;
    let group = api.handle.group(caller.tenant, id).await?;
    let stands = [group.completed, group.failed, group.cancelled];
    if told == Some(stands) && group.state() != GroupState::Open {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(answer(api.handle.watch_group(caller.tenant, id, told)))
}

/// What is watched.
trait Watch: Send + 'static {
    /// The next event as it is written; `None` when there is none any more.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;
}

impl Watch for TaskWatch {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let event = TaskWatch::next(self).await?;
        Ok(event.map(|event| match event {
            TaskEvent::State(detail) => {
                let (token, state) = (detail.view.token, detail.view.summary.state);
                let place = TaskPlace { token, state, next: 0 };
                let name = if state.is_terminal() { "end" } else { "state" };
                written(name, Some(&task_id(place)), &dto::task(&detail))
            }
            TaskEvent::Progress(progress) => {
                let data = json!({"fraction": progress.fraction, "message": progress.message});
                written("progress", None, data.to_string().as_bytes())
            }
            TaskEvent::Output { place, attempt, number, piece } => {
                let data = match std::str::from_utf8(&piece) {
                    Ok(text) => json!({"attempt": attempt, "number": number, "text": text}),
                    Err(_) => {
                        json!({"attempt": attempt, "number": number, "base64": STANDARD.encode(&piece)})
                    }
                };
                written("output", Some(&task_id(place)), data.to_string().as_bytes())
            }
        }))
    }
}

impl Watch for GroupWatch {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let group = GroupWatch::next(self).await?;
        Ok(group.map(|group| {
            let id = format!("{}-{}-{}", group.completed, group.failed, group.cancelled);
            let name = if group.state() == GroupState::Open { "state" } else { "end" };
            written(name, Some(&id), &group_json(&group))
        }))
    }
}

/// The stream of what a watch tells, to its end or to a trouble, which is the last event.
fn answer(watch: impl Watch) -> Response {
    let events = stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match timeout(ALIVE_EVERY, watch.next()).await {
            Err(_) => Some((Ok::<_, Infallible>(Bytes::from_static(b": alive\n\n")), Some(watch))),
            Ok(Ok(Some(event))) => Some((Ok(event), Some(watch))),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                let problem = Problem::from(error);
                let data = json!({"code": problem.code.as_str(), "message": problem.message});
                Some((Ok(written("error", None, data.to_string().as_bytes())), None))
            }
        }
    });
    let mut response = Body::from_stream(events).into_response();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.extensions_mut().insert(Streams);
    response
}

/// An event as it goes over the wire: text with line ends of any kind goes on as many lines.
fn written(name: &str, id: Option<&str>, data: &[u8]) -> Bytes {
    let mut text = format!("event: {name}\n").into_bytes();
    if let Some(id) = id {
        text.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.push(b'\n');
    Bytes::from(text)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let text = headers.get("last-event-id").map(|value| value.to_str().map(str::to_owned));
    text.transpose().map_err(|_| unknown("?"))
}

/// The id of an event that tells so much of a task.
fn task_id(place: TaskPlace) -> String {
    let TaskPlace { token, state, next } = place;
    let id = format!("{}-{}", token.0, state.as_str());
    if next == 0 { id } else { format!("{id}-{next}") }
}

fn task_place(text: &str) -> Result<TaskPlace, Problem> {
    let (token, state) = text.split_once('-').ok_or_else(|| unknown(text))?;
    let (state, next) = state.split_once('-').unwrap_or((state, "0"));
    let token = token.parse().map(Token).map_err(|_| unknown(text))?;
    let state = TaskState::named(state).ok_or_else(|| unknown(text))?;
    Ok(TaskPlace { token, state, next: next.parse().map_err(|_| unknown(text))? })
}

fn group_place(text: &str) -> Result<[u32; 3], Problem> {
    let numbers = text.split('-').map(|number| number.parse().map_err(|_| unknown(text)));
    let numbers: Vec<u32> = numbers.collect::<Result<_, _>>()?;
    numbers.try_into().map_err(|_| unknown(text))
}

fn unknown(text: &str) -> Problem {
    let shown: String = text.chars().take(80).collect();
    Problem::invalid(format!("`Last-Event-ID`: `{shown}` is not the id of an event of this stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_holds_text_of_any_number_of_lines() {
        let check = |data: &str, expected: &str| {
            assert_eq!(written("e", Some("7"), data.as_bytes()), format!("event: e\nid: 7\n{expected}\n"));
        };
        check("", "data: \n");
        check("{}", "data: {}\n");
        check("a\nb", "data: a\ndata: b\n");
        check("a\r\nevent: end", "data: a\ndata: \ndata: event: end\n");
    }

    #[test]
    fn places_read_back_from_their_ids() {
        for (next, id) in [(0, "12-running"), (5, "12-running-5")] {
            let place = TaskPlace { token: Token(12), state: TaskState::Running, next };
            assert_eq!((task_id(place).as_str(), task_place(id).unwrap()), (id, place));
        }
        assert_eq!(group_place("1-0-3").unwrap(), [1, 0, 3]);
        for bad in
            ["", "12", "x-running", "12-done", "-1-2-3", "12-running-", "12-running-x", "12-running-1-2"]
        {
            assert!(task_place(bad).is_err(), "{bad}");
        }
        for bad in ["", "1-2", "1-2-3-4", "1-2-x", "-1-2-3"] {
            assert!(group_place(bad).is_err(), "{bad}");
        }
    }
}
