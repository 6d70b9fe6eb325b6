//! What the program writes: results on stdout, everything about them on stderr.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};

/// Writes a line to stdout. A reader who has left ends the program as it would end others: quietly.
pub(super) fn out(text: &str) {
    bytes(text.as_bytes());
    bytes(b"\n");
}

/// Writes bytes to stdout as they are.
pub(super) fn bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Whether the last piece has left a line of stderr without its end: what comes next begins one of its own.
static LINE_IS_OPEN: AtomicBool = AtomicBool::new(false);

/// Writes a line to stderr.
pub(super) fn note(text: &str) {
    let mut stderr = std::io::stderr().lock();
    end_line(&mut stderr);
    // There is nowhere left to say that this failed.
    let _ = writeln!(stderr, "{text}");
}

/// Ends the line that a piece has left.
fn end_line(stderr: &mut impl Write) {
    if LINE_IS_OPEN.swap(false, Ordering::Relaxed) {
        let _ = stderr.write_all(b"\n");
    }
}

/// Writes a piece of what a task gives out before it ends to stderr: text as it comes, of anything else how many bytes it is.
pub(super) fn piece(piece: Result<&str, usize>) {
    let text = match piece {
        Ok(text) => clean_lines(text),
        Err(bytes) => format!("({bytes} bytes that are not text)\n"),
    };
    let mut stderr = std::io::stderr().lock();
    if piece.is_err() {
        end_line(&mut stderr);
    }
    // There is nowhere left to say that this failed.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    if let Some(last) = text.chars().next_back() {
        LINE_IS_OPEN.store(last != '\n', Ordering::Relaxed);
    }
}

/// Writes a result: to a terminal as text that cannot command it, to anything else as it is.
pub(super) fn result(payload: &[u8]) {
    if !std::io::stdout().is_terminal() {
        return bytes(payload);
    }
    end_line(&mut std::io::stderr().lock());
    match std::str::from_utf8(payload) {
        Ok(text) => out(&clean_lines(text)),
        Err(_) => note(&format!("({} bytes that are not text; send them to a file)", payload.len())),
    }
}

/// A table of columns without lines.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.to_string().lines() {
        out(line.trim_end());
    }
}

/// Says how the next page of a list is asked for, when there is one.
pub(super) fn next(next: Option<&str>) {
    if let Some(next) = next {
        note(&format!("there are more: --before {}", clean(next)));
    }
}

/// A text that somebody else wrote, on one line and without anything that would command a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut cleaned, letter| {
        match letter {
            letter if commands(letter) => cleaned.extend(letter.escape_default()),
            letter => cleaned.push(letter),
        }
        cleaned
    })
}

/// The same over several lines.
pub(super) fn clean_lines(text: &str) -> String {
    text.split('\n').map(clean).collect::<Vec<_>>().join("\n")
}

/// Control characters, and those that reorder what stands around them.
fn commands(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A number with its thousands apart.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A time span for people.
pub(super) fn span(microseconds: u64) -> String {
    match microseconds {
        0..1_000 => format!("{microseconds} µs"),
        1_000..1_000_000 => format!("{:.1} ms", microseconds as f64 / 1e3),
        _ => format!("{:.2} s", microseconds as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_command_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{202e}é"), "a\\u{1b}[2Jb\\nc\\u{202e}é");
        assert_eq!(clean_lines("a\nb\r"), "a\nb\\r");
    }

    #[test]
    fn numbers_are_written_for_people() {
        let check = |number, expected: &str| assert_eq!(thousands(number), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(12_345_678, "12,345,678");
        assert_eq!(
            (size(1_023), size(1_536), size(3 << 20)),
            ("1023 B".into(), "1.5 KiB".into(), "3.0 MiB".into())
        );
        assert_eq!(
            (span(812), span(1_500), span(2_500_000)),
            ("812 µs".into(), "1.5 ms".into(), "2.50 s".into())
        );
    }
}
