//! `keiko task submit --stream`: any number of tasks, one a line, each accepted or refused for itself.
//!
//! Lines go to the host as they come, at most [`LINES_MAX`] and [`BYTES_MAX`] at a time; the next ones are read when those are
//! answered, so that neither side has to hold what the other one does not take.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{self, Call, Client};
use super::exit::{self, Failure};
use super::print;

/// Lines that are sent before their answers are read: these fit into what the system holds for a connection.
const LINES_MAX: u64 = 200;
/// Bytes that are sent at a time; one line always is.
const BYTES_MAX: usize = 4 << 20;
/// Longest line; the host's own limit is below.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// Bytes that are read ahead.
const BUFFER_BYTES: usize = 256 << 10;
const LINES: &str = "application/x-ndjson";

/// The answer to a line, or to all of a request.
#[derive(Deserialize)]
struct Answer<'a> {
    /// From 1 in its request.
    line: Option<u64>,
    #[serde(borrow)]
    id: Option<&'a str>,
    #[serde(default)]
    duplicate: bool,
    code: Option<String>,
    message: Option<String>,
    #[serde(borrow)]
    limit: Option<&'a RawValue>,
}

/// What came of the lines so far.
#[derive(Default)]
struct Sum {
    lines: u64,
    accepted: u64,
    refused: u64,
}

/// Submits the tasks of a file, `-` for stdin; 3 when one was refused.
pub(super) fn submit(file: &Path, host: &client::HostArguments) -> Result<ExitCode, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::Usage(format!("{} cannot be read: {error}", file.display()));
    let client = host.client()?;
    let mut sum = Sum::default();
    let input: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::fs::File::open(file).map_err(unreadable)?),
    };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    loop {
        let (lines, text) = some(&mut input, sum.lines).map_err(unreadable)?;
        if lines == 0 {
            break;
        }
        send(&client, &text, host.json, &mut sum).inspect_err(|_| told(&sum))?;
        sum.lines += lines;
    }
    told(&sum);
    Ok(ExitCode::from(if sum.refused > 0 { exit::REFUSED } else { 0 }))
}

fn told(sum: &Sum) {
    print::note(&format!("{} accepted, {} refused", sum.accepted, sum.refused));
}

/// The next lines: one as soon as there is one, and those that have come with it. How many, and their text.
fn some<R: Read>(input: &mut BufReader<R>, before: u64) -> std::io::Result<(u64, Vec<u8>)> {
    let (mut lines, mut text) = (0, Vec::new());
    loop {
        let start = text.len();
        input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
        if text.len() == start {
            return Ok((lines, text));
        }
        lines += 1;
        if text.last() != Some(&b'\n') {
            if (text.len() - start) as u64 == LINE_BYTES_MAX {
                let message = format!("line {} exceeds {LINE_BYTES_MAX} bytes", before + lines);
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
            }
            text.push(b'\n');
        }
        let comes = input.buffer().contains(&b'\n');
        if !comes || lines == LINES_MAX || text.len() >= BYTES_MAX {
            return Ok((lines, text));
        }
    }
}

/// Sends lines and shows what the host answers to each.
fn send(client: &Client, text: &[u8], json: bool, sum: &mut Sum) -> Result<(), Failure> {
    let call = Call::post("/v1/tasks").body(LINES, text).header("accept", LINES).upload();
    let answer = client.send(call)?;
    for line in answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let parsed = serde_json::from_slice::<Answer<'_>>(line);
        let Answer { line: number, id, duplicate, code, message, limit } =
            parsed.map_err(|error| Failure::Host(format!("the host's answer is not understood: {error}")))?;
        let trouble = code.zip(message);
        let Some(number) = number.map(|number| sum.lines + number) else {
            // The last one, which says how the body ended.
            return match trouble {
                None => Ok(()),
                Some((code, message)) => {
                    Err(Failure::Host(format!("{} ({})", print::clean(&message), print::clean(&code))))
                }
            };
        };
        match (id, &trouble) {
            (Some(_), _) => sum.accepted += 1,
            _ => sum.refused += 1,
        }
        match (json, id, trouble) {
            (true, Some(id), _) if duplicate => {
                print::out(&serde_json::json!({"line": number, "id": id, "duplicate": true}).to_string());
            }
            (true, Some(id), _) => print::out(&serde_json::json!({"line": number, "id": id}).to_string()),
            (false, Some(id), _) => print::out(&print::clean(id)),
            (true, None, trouble) => {
                let (code, message) = trouble.unwrap_or_default();
                let mut refused = serde_json::json!({"line": number, "code": code, "message": message});
                if let Some(limit) = limit {
                    refused["limit"] = serde_json::from_str(limit.get()).unwrap_or_default();
                }
                print::out(&refused.to_string());
            }
            (false, None, trouble) => {
                let (code, message) = trouble.unwrap_or_default();
                print::note(&format!("line {number}: {} ({})", print::clean(&message), print::clean(&code)));
            }
        }
    }
    Err(Failure::Host("the host's answer broke off".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_together_as_they_come_and_no_more_than_may_at_a_time() {
        let read = |text: &[u8]| {
            let (mut input, mut counts) = (BufReader::with_capacity(BUFFER_BYTES, text), Vec::new());
            loop {
                let (lines, text) = some(&mut input, 0).unwrap();
                assert_eq!(text.iter().filter(|byte| **byte == b'\n').count() as u64, lines);
                if lines == 0 {
                    return counts;
                }
                counts.push(lines);
            }
        };
        assert!(read(b"").is_empty());
        assert_eq!(read(b"{}"), [1], "without an end");
        assert_eq!(read(b"{}\n\n{}\n"), [3]);
        let most = LINES_MAX as usize;
        assert_eq!(read(&b"{}\n".repeat(most)), [LINES_MAX]);
        assert_eq!(read(&b"{}\n".repeat(most + 1)), [LINES_MAX, 1]);
        let long = |bytes: u64| [vec![b'x'; bytes as usize - 1], b"\n".to_vec()].concat();
        assert_eq!(read(&long(LINE_BYTES_MAX)), [1]);
        assert!(some(&mut BufReader::new(&long(LINE_BYTES_MAX + 1)[..]), 0).is_err());
    }
}
