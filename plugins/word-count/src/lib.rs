//! Counts the words of a text: the first plugin of `docs/plugin-authors.md`.

use std::collections::BTreeMap;

use keiko_sdk::{Failure, log};
use serde::{Deserialize, Serialize};

keiko_sdk::plugin! {
    manifest: "plugin.toml",
    kinds: { "count" => count },
}

/// What a task brings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    text: String,
}

/// What it gets back.
#[derive(Serialize)]
pub struct Count {
    words: usize,
    times: BTreeMap<String, usize>,
}

/// Counts words, and how often each occurs.
pub fn count(input: Text) -> Result<Count, Failure> {
    let mut times = BTreeMap::new();
    for word in input.text.split_whitespace() {
        *times.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    let words = times.values().sum();
    if words == 0 {
        return Err(Failure::invalid_input("the text has no words"));
    }
    log::info("text counted", &[("words", &words), ("different", &times.len())]);
    Ok(Count { words, times })
}

#[cfg(test)]
mod tests {
    use keiko_sdk::{Payload, TaskPlugin};
    use serde_json::{Value, json};

    use super::*;

    fn run(input: Value) -> Result<Value, Failure> {
        Plugin::run("count", Payload::json(&input)?)?.parse()
    }

    #[test]
    fn words_are_counted_in_any_case() {
        let counted = run(json!({"text": "To be or not to be"})).unwrap();
        assert_eq!(counted, json!({"words": 6, "times": {"be": 2, "not": 1, "or": 1, "to": 2}}));
    }

    #[test]
    fn a_text_without_words_is_invalid_input() {
        assert_eq!(run(json!({"text": " "})), Err(Failure::invalid_input("the text has no words")));
    }
}
