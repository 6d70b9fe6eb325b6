//! JSON bodies: bounded in depth, strict in their fields, and errors that say where.

use std::fmt::Display;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::limit::JSON_DEPTH_MAX;
use super::problem::Problem;

/// Reads a body. `path` goes before the error, for a part of a larger body.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    check_depth(body)?;
    serde_json::from_slice(body)
        .map_err(|error| Problem::invalid(format!("the body does not parse: {error}")))
}

/// Reads a part of a body that was taken out of it unread; the error says where in the whole body it is, and begins with
/// `path`, which is written for an error only.
pub(super) fn parse_part<'a, T: Deserialize<'a>>(
    body: &[u8],
    part: &'a RawValue,
    path: impl Display,
) -> Result<T, Problem> {
    serde_json::from_str(part.get()).map_err(|error| {
        let start = (part.get().as_ptr() as usize).saturating_sub(body.as_ptr() as usize);
        let before = body.get(..start).unwrap_or_default();
        let (line, column) = place(before, error.line(), error.column());
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        Problem::invalid(format!("{path}: {text} at line {line} column {column}"))
    })
}

/// The place in a whole of a place in a part of it that follows `before`.
fn place(before: &[u8], line: usize, column: usize) -> (usize, usize) {
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    let last = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let indent = if line <= 1 { before.len() - last } else { 0 };
    (lines + line, indent + column)
}

/// Refuses a text with more than [`JSON_DEPTH_MAX`] objects and lists within each other, before a parser sees it.
fn check_depth(text: &[u8]) -> Result<(), Problem> {
    let depth = depth(text);
    if depth > JSON_DEPTH_MAX {
        let fact =
            keiko_core::limit::LimitFact::of_host("json_depth", JSON_DEPTH_MAX as u64, Some(depth as u64));
        return Err(Problem::at_limit(keiko_core::Code::InvalidInput, fact));
    }
    Ok(())
}

/// The most objects and lists within each other. Of a text that is not JSON it is some number.
pub(super) fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            bytes.next();
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use keiko_core::Code;

    #[test]
    fn depth_is_counted_outside_of_texts() {
        let check = |text: &str, expected| assert_eq!(depth(text.as_bytes()), expected, "{text}");
        check("1", 0);
        check("[]", 1);
        check(r#"{"a":[1,{"b":2}],"c":[]}"#, 3);
        check(r#"{"[[[[":"\"[[["}"#, 1);
        check(r#"["\\",[]]"#, 2);
        check("]]]][", 1);
        check("\"\\", 0);
    }

    #[test]
    fn depth_stops_at_its_limit() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse::<&RawValue>(nested(JSON_DEPTH_MAX).as_bytes()).is_ok());
        let problem = parse::<&RawValue>(nested(JSON_DEPTH_MAX + 1).as_bytes()).unwrap_err();
        assert_eq!((problem.code, problem.limit.unwrap().asked), (Code::InvalidInput, Some(65)));
        assert!(parse::<&RawValue>("[".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn an_error_in_a_part_names_its_place_in_the_whole() {
        let check = |body: &str, expected: &str| {
            let parts: Vec<&RawValue> = serde_json::from_str(body).unwrap();
            let problem = parse_part::<bool>(body.as_bytes(), parts[1], "parts[1]").unwrap_err();
            assert!(problem.message.ends_with(expected), "{}", problem.message);
        };
        check("[true, 17]", "at line 1 column 9");
        check("[true,\n  17]", "at line 2 column 4");
    }
}
