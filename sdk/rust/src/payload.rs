//! A task's input or result: bytes with the name of their format.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;
use crate::json_path;

/// Bytes with the name of their format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Media type, for example `application/json`; at most 128 bytes of printable ASCII.
    pub content_type: String,
    /// The bytes; at most 2 MiB as a task's input or result.
    pub bytes: Vec<u8>,
}

impl Payload {
    /// The media type of JSON.
    pub const JSON: &str = "application/json";

    /// Bytes of the given format.
    pub fn new(content_type: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { content_type: content_type.into(), bytes: bytes.into() }
    }

    /// Plain text in UTF-8.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", text.into())
    }

    /// `value` as JSON. What cannot be written (a map whose keys are no strings) is a permanent failure: it is the
    /// plugin's mistake, not the input's.
    pub fn json(value: &impl Serialize) -> Result<Self, Failure> {
        match serde_json::to_vec(value) {
            Ok(bytes) => Ok(Self::new(Self::JSON, bytes)),
            Err(error) => Err(Failure::permanent(format!("the result cannot be written as JSON: {error}"))),
        }
    }

    /// Read the bytes as JSON. A failure is invalid input and names the field and the line.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        if !self.is_json() {
            return Err(Failure::invalid_input(format!("input of type {} is not JSON", self.content_type)));
        }
        serde_json::from_slice(&self.bytes).map_err(|error| Failure::invalid_input(self.explain(&error)))
    }

    /// The media type without its parameters, as written: `text/plain` of `text/plain; charset=utf-8`.
    pub fn media_type(&self) -> &str {
        self.content_type.split(';').next().unwrap_or_default().trim()
    }

    /// A parameter of the media type, by its name in any case: `utf-8` of `text/plain; charset=utf-8`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.content_type.split(';').skip(1).filter_map(|part| part.split_once('='));
        let (_, value) = parameters.find(|(found, _)| found.trim().eq_ignore_ascii_case(name))?;
        Some(value.trim().trim_matches('"'))
    }

    fn is_json(&self) -> bool {
        let media_type = self.media_type().to_ascii_lowercase();
        media_type == Self::JSON || media_type.ends_with("+json")
    }

    fn explain(&self, error: &serde_json::Error) -> String {
        match json_path::at(&self.bytes, error.line(), error.column()) {
            Some(path) => format!("input at {path}: {error}"),
            None => format!("input: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[allow(dead_code, reason = "only parsed")]
        lines: Vec<Line>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        #[allow(dead_code, reason = "only parsed")]
        count: u32,
    }

    fn check(content_type: &str, bytes: &str, expected: &str) {
        let failure = Payload::new(content_type, bytes).parse::<Order>().unwrap_err();
        assert_eq!(failure, Failure::invalid_input(expected), "{bytes}");
    }

    #[test]
    fn a_refused_input_names_the_field_and_the_line() {
        let json = "application/json";
        check(
            json,
            "{\"lines\": [{\"count\": 1},\n{\"count\": \"2\"}]}",
            "input at lines[1].count: invalid type: string \"2\", expected u32 at line 2 column 13",
        );
        check(json, "{\"lines\": [{}]}", "input at lines[0]: missing field `count` at line 1 column 13");
        check(
            json,
            "{\"lines\": [{\"number\": 1}]}",
            "input at lines[0].number: unknown field `number`, expected `count` at line 1 column 20",
        );
        check(json, "{}", "input: missing field `lines` at line 1 column 2");
        check(json, "", "input: EOF while parsing a value at line 1 column 0");
        check(json, "{\"lines\": [", "input at lines[0]: EOF while parsing a list at line 1 column 11");
    }

    #[test]
    fn only_json_is_read_as_json() {
        check("text/plain", "{}", "input of type text/plain is not JSON");
        check("", "{}", "input of type  is not JSON");
        for content_type in
            ["application/json; charset=utf-8", "Application/JSON", "application/problem+json"]
        {
            assert!(Payload::new(content_type, "7").parse::<u32>().is_ok(), "{content_type}");
        }
    }

    #[test]
    fn parameters_are_found_by_name() {
        let charset =
            |content_type: &str| Payload::new(content_type, "").parameter("charset").map(str::to_owned);
        assert_eq!(charset("text/plain; charset=utf-8").as_deref(), Some("utf-8"));
        assert_eq!(charset("text/plain;format=flowed; Charset=\"UTF-8\"").as_deref(), Some("UTF-8"));
        assert_eq!(charset("text/plain"), None);
        assert_eq!(charset("charset=utf-8"), None);
    }

    #[test]
    fn what_json_cannot_say_is_a_permanent_failure() {
        let keys_are_lists = std::collections::BTreeMap::from([(vec![1], 1)]);
        assert!(matches!(Payload::json(&keys_are_lists), Err(Failure::Permanent(_))));
    }

    #[test]
    fn json_comes_back_as_it_went() {
        let value: Value = serde_json::json!({"a": [1, "two", null]});
        assert_eq!(Payload::json(&value).unwrap().parse::<Value>().unwrap(), value);
    }
}
