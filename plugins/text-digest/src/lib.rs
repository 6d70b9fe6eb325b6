//! Counts, terms, links and a short summary of a text in any language.
//!
//! The kind `digest` takes `{"text": "…", "sentences": 3}` or a text/plain payload. README.md states every rule to
//! the last rounding, because plugins in other languages have to give the same answer to the byte. This code follows
//! it section by section: `characters` (2), `addresses` (3), `words` (4), `sentences` (5), `terms` (6), `extract` (7).
//!
//! Work grows in proportion to the text, and no list in the answer is longer than its bound.

mod addresses;
mod characters;
mod digest;
mod extract;
mod sentences;
mod terms;
mod words;

use keiko_sdk::{Failure, Payload, log};
use serde::Deserialize;

use crate::digest::Digest;

/// A text up to here is digested within the host's default fuel and memory: 0.7 of the fuel for the most hostile
/// of sixteen texts tried, 0.2 for prose.
const TEXT_BYTES_MAX: usize = 256 * 1024;
/// Sentences in the summary when the input does not say.
const SENTENCES_DEFAULT: usize = 3;
const SENTENCES_MAX: usize = 20;

keiko_sdk::plugin! {
    manifest: "plugin.toml",
    kinds: { "digest" => digest },
}

/// The input as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    text: String,
    sentences: Option<usize>,
}

/// The digest of one text.
fn digest(payload: Payload) -> Result<Digest, Failure> {
    let input = read(payload)?;
    let bytes = input.text.len();
    if bytes > TEXT_BYTES_MAX {
        return Err(Failure::invalid_input(format!(
            "text of {bytes} bytes exceeds the limit of {TEXT_BYTES_MAX}"
        )));
    }
    let sentences = input.sentences.unwrap_or(SENTENCES_DEFAULT);
    if sentences > SENTENCES_MAX {
        return Err(Failure::invalid_input(format!(
            "{sentences} sentences exceed the limit of {SENTENCES_MAX}"
        )));
    }
    let digest = Digest::of(&input.text, sentences);
    log::debug("text digested", &[("characters", &digest.characters), ("words", &digest.words)]);
    Ok(digest)
}

fn read(payload: Payload) -> Result<Input, Failure> {
    if !payload.media_type().eq_ignore_ascii_case("text/plain") {
        return payload.parse();
    }
    let charset = payload.parameter("charset").unwrap_or("utf-8");
    if !["utf-8", "us-ascii"].iter().any(|name| name.eq_ignore_ascii_case(charset)) {
        return Err(Failure::invalid_input(format!("text in {charset} instead of utf-8")));
    }
    match String::from_utf8(payload.bytes) {
        Ok(text) => Ok(Input { text, sentences: None }),
        Err(error) => Err(Failure::invalid_input(format!("the text is not utf-8: {}", error.utf8_error()))),
    }
}
