//! The example `text-digest` in all languages: equal bytes, and equal bytes when they are kept.
//!
//! Its results are kept under the manifest of each language: that of Python, whose runtime asks for secure random numbers when
//! it starts, has them seeded, and without that nothing is kept.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::rows::Under;
use super::{Language, Plan, guest, install};
use crate::check::Report;
use crate::{Client, Random, tree, wait};

/// What a digest gets: an interpreter needs more than the compiled code of Rust and C.
const GETS: &str = "[[kind]]\nname = \"digest\"\nfuel = 50000000000\nmemory-mib = 256\ntimeout-s = 60\n";
/// Texts whose results are kept.
const KEPT: usize = 50;
/// The language whose runtime asks for random numbers when it starts.
const ASKS: &str = "python";
/// What is no text, and what is too much.
const REFUSED: &[(&str, &str)] = &[
    ("application/json", "{}"),
    ("application/json", r#"{"text": 7}"#),
    ("application/json", r#"{"text": "a", "sentences": -1}"#),
    ("application/json", r#"{"text": "a", "sentences": 21}"#),
    ("application/json", r#"{"text": "a", "sentence": 1}"#),
    ("application/json", r#"{"text": "\ud800"}"#),
    ("application/json", "[]"),
    ("image/png", "a"),
    ("text/plain; charset=latin1", "a"),
    ("text/plain", "\u{fffd}"),
];

/// Digests the vectors and random texts in every language.
pub(super) fn run(plan: &Plan, languages: &[Language], report: &mut Report) -> Result<()> {
    let vectors: Vec<Value> =
        serde_json::from_slice(&std::fs::read(tree::root().join("plugins/text-digest/vectors.json"))?)?;
    for language in languages {
        let client = language.client(Under::All)?;
        let component = guest("text-digest", language.name)?;
        let plain = |name: &str, more| format!("[plugin]\nname = \"{name}\"\nversion = \"1\"\n{GETS}{more}");
        install(client, &component, &plain("text-digest", ""))?;
        install(client, &component, &plain("unseeded-digest", "memoize = {}\n"))?;
        let own = tree::root().join("plugins/text-digest").join(language.name).join("plugin.toml");
        let kept = match std::fs::read_to_string(own) {
            Ok(manifest) => manifest.replacen("\"text-digest\"", "\"kept-digest\"", 1),
            Err(_) => plain("kept-digest", "memoize = {}\n"),
        };
        install(client, &component, &kept)?;
        for vector in &vectors {
            let (_, found) = digest(client, "text-digest", &vector["input"])?;
            let found: Value = serde_json::from_slice(&found)?;
            report.require(found == vector["result"], "digest", || {
                format!("{}: {}", language.name, vector["name"])
            });
        }
        for (content_type, input) in REFUSED {
            refuses(language, client, content_type, input, report)?;
        }
    }
    let mut random = Random::new(plan.seed);
    for number in 0..plan.texts {
        let input = json!({"text": text(&mut random), "sentences": random.below(6)});
        let mut first: Option<Vec<u8>> = None;
        for language in languages {
            let client = language.client(Under::All)?;
            let (task, found) = digest(client, "text-digest", &input)?;
            let expected = first.get_or_insert_with(|| found.clone());
            report.require(*expected == found, "digest", || {
                format!("{} of {input}: {}", language.name, String::from_utf8_lossy(&found))
            });
            if number < KEPT {
                kept(language, client, &input, &task, &found, report)?;
            }
        }
    }
    report.tried("vectors", vectors.len());
    report.tried("texts", plan.texts);
    Ok(())
}

/// What is kept is what is computed again. It is kept because the run was pure, and of one that was not nothing is.
fn kept(
    language: &Language,
    client: &Client,
    input: &Value,
    computed: &Value,
    expected: &[u8],
    report: &mut Report,
) -> Result<()> {
    let asks = language.name == ASKS;
    let mut require = |holds: bool, told: &Value| {
        report.require(holds, "memoized", || format!("{} of {input}: {told}", language.name));
    };
    let taints = if asks { json!(["random"]) } else { json!([]) };
    require(computed["attempts"][0]["tainted_by"] == taints, computed);
    if asks {
        for _ in 0..2 {
            let (task, _) = digest(client, "unseeded-digest", input)?;
            require(task.get("memoized_from").is_none(), &task);
        }
    }
    let (first, found) = digest(client, "kept-digest", input)?;
    let attempt = &first["attempts"][0];
    // Of two texts that are the same the second is answered with what the first one left.
    let is_hit = first.get("memoized_from").is_some();
    require(is_hit || attempt["pure"] == true && (attempt["random_seeded"] == true) == asks, &first);
    let (again, kept) = wait::until("a kept result", super::SOON, || {
        let (task, kept) = digest(client, "kept-digest", input)?;
        Ok(task.get("memoized_from").is_some().then_some((task, kept)))
    })?;
    require(found == expected && kept == expected, &again);
    Ok(())
}

/// A task of this input, and its result byte for byte.
fn digest(client: &Client, plugin: &str, input: &Value) -> Result<(Value, Vec<u8>)> {
    let task = client.run(plugin, "digest", input.clone(), json!({"attempts": 1}))?;
    let id = task["id"].as_str().context("an id")?;
    let answer = client.get(&format!("/v1/tasks/{id}/result"))?;
    anyhow::ensure!(answer.status == 200, "{plugin} of {input}: {task}");
    Ok((task, answer.bytes))
}

fn refuses(
    language: &Language,
    client: &Client,
    content_type: &str,
    input: &str,
    report: &mut Report,
) -> Result<()> {
    // What is not UTF-8 cannot stand in a constant.
    let bytes = if input == "\u{fffd}" { &[b'a', 0xff][..] } else { input.as_bytes() };
    let body = json!({"plugin": "text-digest", "kind": "digest", "content_type": content_type,
        "input_base64": base64(bytes)});
    let answer = client.post_json("/v1/tasks?wait=30", &body, None)?;
    let refused = answer.code() == "invalid_input" || answer.json()?["error"]["code"] == "invalid_input";
    report.require(refused, "digest", || format!("{}: {content_type} {input}: {answer:.300}", language.name));
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    let letters = super::base64_url(bytes).replace('-', "+").replace('_', "/");
    let padding = (4 - letters.len() % 4) % 4;
    format!("{letters}{}", "=".repeat(padding))
}

/// Pieces of texts that mean something to the rules.
const PIECES: &[&str] = &[
    "a",
    "B",
    "word ",
    "Sentences ",
    " ",
    " ",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    ". ",
    "! ",
    "?",
    "…",
    "。",
    "！",
    ",",
    "'",
    "’",
    "\"",
    "(",
    ")",
    "[",
    "]",
    "@",
    "@b.co ",
    "c.d",
    "http://",
    "www.",
    "https://a.b/",
    "/c?d=e#f",
    "Dr. ",
    "J. ",
    "12. ",
    "3.14",
    "1,000",
    "é",
    "e\u{301}",
    "ß",
    "İ",
    "ẞ",
    "Ж",
    "ж",
    "Σ",
    "ς",
    "漢",
    "字",
    "カ",
    "タ",
    "ひ",
    "한",
    "국어",
    "ไทย",
    "हिन्दी",
    "ا",
    "٣",
    "😀",
    "\u{200d}",
    "\u{ad}",
    "\u{feff}",
    "\u{0}",
    "\u{3000}",
    "\u{2028}",
    "「",
    "」",
    "\u{10ffff}",
];

/// A text of such pieces.
fn text(random: &mut Random) -> String {
    (0..random.below(300)).map(|_| PIECES[random.below(PIECES.len() as u64) as usize]).collect()
}
