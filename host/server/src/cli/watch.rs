//! `keiko task watch`, and what `keiko group watch` shares with it: what changes, as the host tells it, to the end.
//!
//! A stream that breaks off is asked for again where it was, until no host has answered for [`GIVE_UP`].

use std::io::{BufRead, BufReader, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{self, Call, Client, segment};
use super::exit::{self, Failure};
use super::print;
use super::task::{Progress, Task, of_state, outcome, pause};

/// How long a host may be away.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Longest line of a stream: a task with its result, as JSON.
const LINE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each state goes to stderr as it is taken, so do how far the task says it is and what it gives out before it ends; its
result goes to stdout.
With --json each event is a line on stdout: {\"event\":\"state\",\"data\":…}.")]
pub(super) struct Watch {
    /// Its id
    id: String,
    /// Give up after this many seconds, with exit status 6
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    #[command(flatten)]
    host: client::HostArguments,
}

/// An event of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    id: Option<String>,
    pub(super) data: String,
}

/// Follows a task; exits as waiting for it would.
pub(super) fn watch(arguments: &Watch) -> Result<ExitCode, Failure> {
    let path = format!("/v1/tasks/{}/events", segment(&arguments.id));
    follow(&arguments.host, arguments.timeout, &path, show)
}

/// Follows the events of a path until `show` says with which status to end, which it is told with whether they are written
/// as JSON already.
pub(super) fn follow(
    host: &client::HostArguments,
    timeout: Option<u64>,
    path: &str,
    show: impl Fn(&Event, bool) -> Result<Option<u8>, Failure>,
) -> Result<ExitCode, Failure> {
    let client = host.client()?;
    let until = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (mut place, mut heard) = (None::<String>, Instant::now());
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(ExitCode::from(exit::TIME));
        }
        match open(&client, path, place.as_deref(), left) {
            Ok(mut events) => {
                while let Some(event) = next(&mut events) {
                    heard = Instant::now();
                    check(&event, host.json)?;
                    if let Some(status) = show(&event, host.json)? {
                        return Ok(ExitCode::from(status));
                    }
                    place = event.id.or(place);
                }
            }
            Err(Failure::Host(_)) if heard.elapsed() < GIVE_UP => {}
            Err(failure) => return Err(failure),
        }
        pause();
    }
}

/// What an event says.
pub(super) fn read<'a, T: Deserialize<'a>>(event: &'a Event) -> Result<T, Failure> {
    let parsed = serde_json::from_str(&event.data);
    parsed.map_err(|error| Failure::Host(format!("the host's event is not understood: {error}")))
}

/// Fails with the host's trouble, and writes an event as JSON where that is wanted.
fn check(event: &Event, json: bool) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Trouble {
        code: String,
        message: String,
    }
    if event.name == "error" {
        let Trouble { code, message } = read(event)?;
        return Err(Failure::Host(format!("{} ({})", print::clean(&message), print::clean(&code))));
    }
    if json {
        let data: &RawValue = read(event)?;
        print::out(&serde_json::json!({"event": event.name, "data": data}).to_string());
    }
    Ok(())
}

fn open(
    client: &Client,
    path: &str,
    place: Option<&str>,
    left: Option<Duration>,
) -> Result<impl BufRead + use<>, Failure> {
    let mut call = Call::get(path).for_as_long_as(left);
    if let Some(place) = place {
        call = call.header("last-event-id", place);
    }
    Ok(BufReader::new(client.open(call)?))
}

/// The next event; `None` when the stream has ended, or broke off.
fn next(mut stream: &mut impl BufRead) -> Option<Event> {
    let (mut event, mut lines) = (Event::default(), 0);
    loop {
        let mut line = Vec::new();
        let read = Read::take(&mut stream, LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.is_err() || line.pop() != Some(b'\n') {
            return None;
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            if event != Event::default() {
                return Some(event);
            }
            continue;
        }
        // What begins with a colon is a remark.
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "id" => event.id = Some(value.to_owned()),
            "data" => {
                if lines > 0 {
                    event.data.push('\n');
                }
                event.data.push_str(value);
                lines += 1;
            }
            _ => {}
        }
    }
}

/// Shows an event of a task; the exit status when it is the last.
fn show(event: &Event, json: bool) -> Result<Option<u8>, Failure> {
    #[derive(Deserialize)]
    struct State {
        id: String,
        state: String,
    }
    #[derive(Deserialize)]
    struct Output {
        text: Option<String>,
        #[serde(default)]
        base64: String,
    }
    match event.name.as_str() {
        "end" => {
            let State { state, .. } = read(event)?;
            if !json {
                outcome(&read::<Task>(event)?)?;
            }
            return Ok(Some(of_state(&state)));
        }
        "state" if !json => {
            let State { id, state } = read(event)?;
            print::note(&format!("{} {}", print::clean(&id), print::clean(&state)));
        }
        "progress" if !json => {
            let Progress { fraction, message } = read(event)?;
            print::note(&format!("{:3.0} % {}", fraction * 100.0, print::clean(&message)));
        }
        "output" if !json => {
            let Output { text, base64 } = read(event)?;
            print::piece(text.as_deref().ok_or(base64.len() / 4 * 3));
        }
        _ => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_were_written_and_half_ones_are_none() {
        let text = ": alive\n\nevent: state\nid: 1-pending\ndata: {\"a\":\ndata: 1}\n\nevent: end\r\ndata: x\r\n\r\nevent: state\ndata: ha";
        let mut stream = text.as_bytes();
        let of = |name: &str, id: Option<&str>, data: &str| Event {
            name: name.to_owned(),
            id: id.map(str::to_owned),
            data: data.to_owned(),
        };
        assert_eq!(next(&mut stream), Some(of("state", Some("1-pending"), "{\"a\":\n1}")));
        assert_eq!(next(&mut stream), Some(of("end", None, "x")));
        assert_eq!(next(&mut stream), None);
    }
}
