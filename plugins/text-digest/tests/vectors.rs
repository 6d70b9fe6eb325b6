//! `vectors.json`, which plugins in other languages are held to as well, and the bounds of the input.

#![allow(clippy::unwrap_used, reason = "a test")]

use keiko_sdk::{Failure, Payload, TaskPlugin};
use serde::Deserialize;
use serde_json::{Value, json};
use text_digest::Plugin;

const TEXT_BYTES_MAX: usize = 256 * 1024;

#[derive(Deserialize)]
struct Vector {
    name: String,
    input: Value,
    result: Value,
}

fn run(input: Payload) -> Result<Value, Failure> {
    Plugin::run("digest", input)?.parse()
}

fn run_json(input: Value) -> Result<Value, Failure> {
    run(Payload::json(&input)?)
}

fn check_refused(input: Payload, message: &str) {
    assert_eq!(run(input), Err(Failure::invalid_input(message)));
}

#[test]
fn every_vector_gives_its_answer() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("../vectors.json")).unwrap();
    assert!(vectors.len() > 30);
    for vector in vectors {
        assert_eq!(run_json(vector.input), Ok(vector.result), "{}", vector.name);
    }
}

#[test]
fn plain_text_and_json_give_the_same() {
    let from_json = run_json(json!({"text": "Käse. Brot!"}));
    for content_type in ["text/plain", "Text/Plain; charset=UTF-8", "text/plain;charset=\"utf-8\""] {
        assert_eq!(run(Payload::new(content_type, "Käse. Brot!")), from_json, "{content_type}");
    }
    assert_eq!(run_json(json!({"text": "Käse. Brot!", "sentences": null})), from_json);
}

#[test]
fn members_come_in_the_order_of_the_readme() {
    let output = Plugin::run("digest", Payload::text("One.")).unwrap();
    let output = String::from_utf8(output.bytes).unwrap();
    let readme = include_str!("../README.md");
    let table = readme.split("| member | what it is |").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = table.lines().skip(2).flat_map(|row| row.split('|').nth(1).unwrap().split(", "));
    let places: Vec<_> =
        names.map(|name| output.find(&format!("\"{}\":", name.trim().trim_matches('`')))).collect();
    assert_eq!(places.len(), 16);
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{places:?}");
}

#[test]
fn a_text_of_the_longest_length_is_digested_and_a_longer_one_is_refused() {
    let digest = run(Payload::text("a ".repeat(TEXT_BYTES_MAX / 2))).unwrap();
    assert_eq!(digest["words"], TEXT_BYTES_MAX / 2);
    check_refused(
        Payload::text("a".repeat(TEXT_BYTES_MAX + 1)),
        "text of 262145 bytes exceeds the limit of 262144",
    );
}

#[test]
fn a_summary_has_up_to_twenty_sentences() {
    let text: String = (0..30).map(|number| format!("Sentence number{number} stands here. ")).collect();
    for wanted in [0, 1, 20] {
        let digest = run_json(json!({"text": text, "sentences": wanted})).unwrap();
        assert_eq!(digest["summary"].as_array().unwrap().len(), wanted);
    }
    assert_eq!(run(Payload::text(text.clone())).unwrap()["summary"].as_array().unwrap().len(), 3);
    let input = Payload::json(&json!({"text": text, "sentences": 21})).unwrap();
    check_refused(input, "21 sentences exceed the limit of 20");
}

#[test]
fn what_is_no_text_is_invalid_input() {
    let json = |text: &str| Payload::new(Payload::JSON, text);
    for input in [
        json("{}"),
        json("{\"text\": 7}"),
        json("{\"text\": \"a\", \"sentences\": -1}"),
        json("{\"text\": \"a\", \"sentence\": 1}"),
        json("{\"text\": \"\\ud800\"}"),
        json("\"a\""),
        Payload::new("image/png", "a"),
        Payload::new("text/plain", vec![b'a', 0xff]),
        Payload::new("text/plain; charset=latin1", "a"),
    ] {
        assert!(matches!(run(input.clone()), Err(Failure::InvalidInput(_))), "{input:?}");
    }
}
