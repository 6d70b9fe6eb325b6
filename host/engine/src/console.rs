//! What a guest writes for people: lines through `keiko:log`, and what it prints, cut into lines.
//!
//! Nothing a guest prints reaches the host's own output. The last lines of its stderr are kept beside the log, and
//! whatever the log's limits dropped, because an uncaught panic or exception says its reason only there.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use keiko_core::limit::{LOG_MESSAGE_BYTES_MAX, RESULT_BYTES_MAX};
use keiko_core::log::{Level, Line, LogBuffer, Source};
use keiko_core::port::HostPort;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::exceeded::Exceeded;

/// Bytes of stderr that are kept for the message of a trap.
const LAST_WORDS_BYTES_MAX: usize = 2 << 10;
/// Lines of stderr that are kept for the message of a trap.
const LAST_WORDS_LINES_MAX: usize = 16;
/// Bytes a guest may print in one call.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// The console of one attempt, shared with the streams that the guest holds.
#[derive(Debug, Default)]
pub(crate) struct Console {
    log: LogBuffer,
    stdout: Unfinished,
    stderr: Unfinished,
    last_words: VecDeque<String>,
    printed_bytes: usize,
    /// What a program printed to stdout, which is its result and no log.
    output: Option<Vec<u8>>,
}

/// A line whose end was not printed yet; what is beyond a message's limit is left out.
#[derive(Debug, Default)]
struct Unfinished {
    bytes: Vec<u8>,
    begun: bool,
}

impl Unfinished {
    fn add(&mut self, bytes: &[u8]) {
        let room = LOG_MESSAGE_BYTES_MAX - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.begun = true;
    }

    fn take(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.begun) {
            return None;
        }
        let line = String::from_utf8_lossy(&self.bytes).trim_end_matches('\r').to_owned();
        self.bytes.clear();
        Some(line)
    }
}

impl Console {
    /// Takes a line, and shows it to whoever watches the host's own log.
    pub(crate) fn write(&mut self, line: Line) {
        let held = self.log.lines().len();
        self.log.push(line);
        if let Some(line) = self.log.lines().get(held) {
            // Written as Rust would write the string, so that a guest cannot forge lines of the host's log.
            tracing::debug!(target: "plugin", line = ?line.message, "a guest wrote");
        }
    }

    /// Starts over for another attempt; nothing of the one before is left to be told.
    pub(crate) fn renew(&mut self) {
        *self = Console::default();
    }

    /// Keeps from now on what is printed to stdout, instead of logging it.
    pub(crate) fn capture(&mut self) {
        self.output = Some(Vec::new());
    }

    /// Whether stdout is kept.
    pub(crate) fn captures(&self) -> bool {
        self.output.is_some()
    }

    /// What was kept.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        self.output.take().unwrap_or_default()
    }

    /// Takes what is printed: to the log, or, of a program, to its result.
    fn take(&mut self, source: Source, bytes: &[u8], at_ms: impl Fn() -> i64) -> Result<(), Exceeded> {
        let output = self.output.as_mut().filter(|_| source == Source::Stdout);
        let Some(output) = output else {
            self.print(source, bytes, at_ms());
            return Ok(());
        };
        self.printed_bytes = self.printed_bytes.saturating_add(bytes.len());
        let asked = (output.len() + bytes.len()) as u64;
        if asked > RESULT_BYTES_MAX {
            return Err(Exceeded::ResultBytes { asked });
        }
        output.extend_from_slice(bytes);
        Ok(())
    }

    fn print(&mut self, source: Source, bytes: &[u8], at_ms: i64) {
        self.printed_bytes = self.printed_bytes.saturating_add(bytes.len());
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.unfinished(source).add(&rest[..end]);
            self.end_line(source, at_ms);
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            self.unfinished(source).add(rest);
        }
    }

    fn unfinished(&mut self, source: Source) -> &mut Unfinished {
        if source == Source::Stderr { &mut self.stderr } else { &mut self.stdout }
    }

    fn end_line(&mut self, source: Source, at_ms: i64) {
        let Some(message) = self.unfinished(source).take() else { return };
        if source == Source::Stderr {
            self.last_words.push_back(message.clone());
            if self.last_words.len() > LAST_WORDS_LINES_MAX {
                self.last_words.pop_front();
            }
        }
        let level = if source == Source::Stderr { Level::Warn } else { Level::Info };
        self.write(Line { at_ms, level, source, message, fields: Vec::new() });
    }

    /// Bytes printed so far, for the attempt's charge.
    pub(crate) fn printed_bytes(&self) -> usize {
        self.printed_bytes
    }

    /// Ends what was begun, and gives up the log and the last lines of stderr.
    pub(crate) fn finish(&mut self, at_ms: impl Fn() -> i64) -> (LogBuffer, Option<String>) {
        for source in [Source::Stdout, Source::Stderr] {
            if self.unfinished(source).begun {
                self.end_line(source, at_ms());
            }
        }
        (std::mem::take(&mut self.log), self.last_words())
    }

    /// The last lines of stderr, the one that has not ended included.
    pub(crate) fn last_words(&self) -> Option<String> {
        let unfinished = self.stderr.begun.then(|| String::from_utf8_lossy(&self.stderr.bytes).into_owned());
        let mut bytes = 0;
        let mut words: Vec<String> = Vec::new();
        for line in unfinished.into_iter().chain(self.last_words.iter().rev().cloned()) {
            bytes += line.len() + 1;
            if bytes > LAST_WORDS_BYTES_MAX && !words.is_empty() {
                break;
            }
            words.push(line);
        }
        words.reverse();
        (!words.is_empty()).then(|| words.join("\n"))
    }
}

/// Standard output or error of a guest.
#[derive(Clone)]
pub(crate) struct Printer {
    pub(crate) console: Arc<Mutex<Console>>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) source: Source,
}

/// The runtime's clock of the attempt that runs now: streams and clocks of an instance outlive an attempt when the instance
/// is kept.
pub(crate) struct Clock(Mutex<Arc<dyn HostPort>>);

impl Clock {
    pub(crate) fn new(port: Arc<dyn HostPort>) -> Clock {
        Clock(Mutex::new(port))
    }

    /// From now on this attempt's.
    pub(crate) fn set(&self, port: Arc<dyn HostPort>) {
        *self.0.lock() = port;
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.0.lock().now_ms()
    }
}

impl IsTerminal for Printer {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printer {
    /// Only guests of WASI 0.3 would use it, and there are none.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Printer {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Printer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let taken = self.console.lock().take(self.source, &bytes, || self.clock.now_ms());
        taken.map_err(|exceeded| StreamError::Trap(exceeded.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(writes: &[&str]) -> (Vec<String>, Option<String>) {
        let mut console = Console::default();
        for text in writes {
            console.print(Source::Stderr, text.as_bytes(), 0);
        }
        let (log, last_words) = console.finish(|| 0);
        (log.lines().iter().map(|line| line.message.clone()).collect(), last_words)
    }

    #[test]
    fn output_is_cut_into_lines_wherever_it_was_split() {
        let expected = ["one", "", "two", "three"];
        for writes in [&["one\n\ntwo\r\nthree"][..], &["o", "ne\n", "\ntw", "o\r", "\n", "thre", "e"]] {
            let (lines, last_words) = printed(writes);
            assert_eq!(lines, expected);
            assert_eq!(last_words.as_deref(), Some("one\n\ntwo\nthree"));
        }
        assert_eq!(printed(&[]), (Vec::new(), None));
    }

    #[test]
    fn a_line_without_end_stops_at_the_limit_of_a_message() {
        let long = "x".repeat(LOG_MESSAGE_BYTES_MAX);
        let (lines, _) = printed(&[&long, &long, "y\nz"]);
        assert_eq!(lines, [long.as_str(), "z"]);
    }

    #[test]
    fn a_result_is_kept_up_to_its_limit_and_is_no_log() {
        let mut console = Console::default();
        console.capture();
        console.take(Source::Stdout, &vec![b'x'; RESULT_BYTES_MAX as usize - 1], || 0).unwrap();
        console.take(Source::Stderr, b"said", || 0).unwrap();
        assert_eq!(console.last_words().as_deref(), Some("said"));
        console.take(Source::Stdout, b"\n", || 0).unwrap();
        let asked = RESULT_BYTES_MAX + 1;
        assert_eq!(console.take(Source::Stdout, b"y", || 0), Err(Exceeded::ResultBytes { asked }));
        assert_eq!(console.printed_bytes(), asked as usize + 4);
        assert_eq!(console.take_output().len() as u64, RESULT_BYTES_MAX);
        assert_eq!(console.finish(|| 0).0.lines().len(), 1, "what it said, and not what it answered");
    }

    #[test]
    fn last_words_are_the_last_ones() {
        let many: String = (0..100).map(|n| format!("{n}\n")).collect();
        let (_, last_words) = printed(&[&many]);
        let last_words = last_words.unwrap();
        assert!(last_words.starts_with("84\n") && last_words.ends_with("\n99"), "{last_words}");
        let wide = format!("{0}\n{0}\nend", "x".repeat(LAST_WORDS_BYTES_MAX - 10));
        assert_eq!(printed(&[&wide]).1.map(|words| words.len()), Some(LAST_WORDS_BYTES_MAX - 6));
    }
}
