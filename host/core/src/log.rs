//! The log of an attempt: lines a guest wrote, cut to size and rate, and the form in which they are kept.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limit::{
    LOG_BYTES_MAX, LOG_BYTES_PER_SECOND, LOG_FIELD_NAME_BYTES_MAX, LOG_FIELD_VALUE_BYTES_MAX, LOG_FIELDS_MAX,
    LOG_MESSAGE_BYTES_MAX,
};
use crate::outcome::cut;

/// Bytes that a line counts beside its texts.
const LINE_BYTES_BASE: usize = 32;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Finest.
    Trace,
    /// For the author.
    Debug,
    /// The normal course.
    Info,
    /// Unexpected, dealt with.
    Warn,
    /// The reason for a failure.
    Error,
}

/// How a line came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Through `keiko:log`.
    Log,
    /// Printed.
    Stdout,
    /// Printed as an error: where panics and uncaught exceptions say why.
    Stderr,
}

/// One line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// How much it matters.
    pub level: Level,
    /// How it came.
    pub source: Source,
    /// The text.
    pub message: String,
    /// Named values.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub fields: Vec<(String, String)>,
}

/// The lines of one attempt, bounded by [`LOG_BYTES_MAX`] in all and [`LOG_BYTES_PER_SECOND`] in any second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBuffer {
    lines: Vec<Line>,
    bytes: usize,
    dropped: u64,
    second: i64,
    second_bytes: usize,
}

impl LogBuffer {
    /// Takes a line, cut to its limits, or counts it as dropped.
    pub fn push(&mut self, mut line: Line) {
        cut(&mut line.message, LOG_MESSAGE_BYTES_MAX);
        line.fields.truncate(LOG_FIELDS_MAX);
        for (name, value) in &mut line.fields {
            cut(name, LOG_FIELD_NAME_BYTES_MAX);
            cut(value, LOG_FIELD_VALUE_BYTES_MAX);
        }
        let fields: usize = line.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = LINE_BYTES_BASE + line.message.len() + fields;
        let second = line.at_ms.div_euclid(1000);
        if second != self.second {
            self.second = second;
            self.second_bytes = 0;
        }
        if self.bytes + bytes > LOG_BYTES_MAX || self.second_bytes + bytes > LOG_BYTES_PER_SECOND {
            self.dropped += 1;
            return;
        }
        self.bytes += bytes;
        self.second_bytes += bytes;
        self.lines.push(line);
    }

    /// The lines taken so far.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Lines that were over a limit.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The form that is kept with the attempt; empty when nothing was written.
    pub fn encode(&self) -> Bytes {
        if self.lines.is_empty() && self.dropped == 0 {
            return Bytes::new();
        }
        let kept = KeptRef { format: FORMAT, dropped: self.dropped, lines: &self.lines };
        serde_json::to_vec(&kept).map(Bytes::from).unwrap_or_default()
    }
}

const FORMAT: u32 = 1;

#[derive(Serialize)]
struct KeptRef<'a> {
    format: u32,
    dropped: u64,
    lines: &'a [Line],
}

/// The log of an attempt as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Number of the stored format.
    pub format: u32,
    /// Lines that were over a limit.
    pub dropped: u64,
    /// The lines in order.
    pub lines: Vec<Line>,
}

impl Kept {
    /// Reads what [`LogBuffer::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Kept, serde_json::Error> {
        if bytes.is_empty() { Ok(Kept::default()) } else { serde_json::from_slice(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ms: i64, message: String) -> Line {
        Line { at_ms, level: Level::Info, source: Source::Log, message, fields: Vec::new() }
    }

    #[test]
    fn a_flood_within_a_second_is_cut_and_counted() {
        let mut log = LogBuffer::default();
        let fits = LOG_BYTES_PER_SECOND / (LINE_BYTES_BASE + 96);
        for _ in 0..=fits {
            log.push(line(5_000, "x".repeat(96)));
        }
        assert_eq!((log.lines().len(), log.dropped()), (fits, 1));
        log.push(line(6_000, "x".repeat(96)));
        assert_eq!((log.lines().len(), log.dropped()), (fits + 1, 1));
    }

    #[test]
    fn a_log_stops_at_its_size() {
        let mut log = LogBuffer::default();
        let size = LOG_BYTES_PER_SECOND / 8 - LINE_BYTES_BASE;
        let fits = LOG_BYTES_MAX / (LOG_BYTES_PER_SECOND / 8);
        for second in 0..=fits as i64 {
            log.push(line(second * 1000, "x".repeat(size)));
        }
        assert_eq!((log.lines().len(), log.dropped()), (fits, 1));
    }

    #[test]
    fn lines_are_cut_to_their_limits() {
        let mut log = LogBuffer::default();
        let mut long = line(0, "x".repeat(LOG_MESSAGE_BYTES_MAX + 1));
        long.fields = vec![("n".repeat(65), "v".repeat(1025)); LOG_FIELDS_MAX + 1];
        log.push(long);
        let kept = &log.lines()[0];
        assert_eq!(kept.message.len(), LOG_MESSAGE_BYTES_MAX);
        assert_eq!(kept.fields.len(), LOG_FIELDS_MAX);
        assert_eq!((kept.fields[0].0.len(), kept.fields[0].1.len()), (64, 1024));
    }

    #[test]
    fn the_first_stored_format_still_decodes() {
        let sample = br#"{"format":1,"dropped":2,"lines":[{"at_ms":7,"level":"warn","source":"stderr","message":"m","fields":[["a","b"]]}]}"#;
        let kept = Kept::decode(sample).unwrap();
        assert_eq!((kept.dropped, kept.lines[0].fields.len()), (2, 1));
        let mut log = LogBuffer::default();
        log.push(kept.lines[0].clone());
        assert_eq!(Kept::decode(&log.encode()).unwrap().lines, kept.lines);
        assert_eq!(Kept::decode(&LogBuffer::default().encode()).unwrap(), Kept::default());
    }
}
