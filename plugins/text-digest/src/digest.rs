//! The answer: what it holds, in the order in which it is written.

use serde::Serialize;

use crate::addresses::Addresses;
use crate::characters::{Class, Script, Text};
use crate::extract::extract;
use crate::sentences::Sentences;
use crate::terms::{self, Terms};
use crate::words::Words;

/// Words a minute, in scripts that put spaces between them: silent reading of prose (Brysbaert 2019).
const WORDS_PER_MINUTE: usize = 240;
/// Characters a minute, in scripts that do not.
const CHARACTERS_PER_MINUTE: usize = 500;

/// Facts of one text; README.md defines each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Digest {
    pub(crate) characters: usize,
    pub(crate) paragraphs: usize,
    pub(crate) sentences: usize,
    pub(crate) words: usize,
    pub(crate) distinct_words: usize,
    pub(crate) word_length_hundredths: u64,
    pub(crate) sentence_words_hundredths: u64,
    pub(crate) reading_minutes: usize,
    pub(crate) characters_by_class: Classes,
    pub(crate) letters_by_script_per_mille: Scripts,
    pub(crate) terms: Vec<Counted>,
    pub(crate) summary: Vec<String>,
    pub(crate) links: Vec<String>,
    pub(crate) links_left_out: usize,
    pub(crate) emails: Vec<String>,
    pub(crate) emails_left_out: usize,
}

/// How many characters are of each class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Classes {
    pub(crate) letter: usize,
    pub(crate) digit: usize,
    pub(crate) mark: usize,
    pub(crate) space: usize,
    pub(crate) symbol: usize,
    pub(crate) control: usize,
}

/// Each script's share of the letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Scripts {
    pub(crate) latin: u64,
    pub(crate) greek: u64,
    pub(crate) cyrillic: u64,
    pub(crate) hebrew: u64,
    pub(crate) arabic: u64,
    pub(crate) devanagari: u64,
    pub(crate) thai: u64,
    pub(crate) han: u64,
    pub(crate) hiragana: u64,
    pub(crate) katakana: u64,
    pub(crate) hangul: u64,
    pub(crate) other: u64,
}

/// A term and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Counted {
    pub(crate) term: String,
    pub(crate) count: u32,
}

impl Digest {
    /// The digest of a text, with at most that many sentences in the summary.
    pub(crate) fn of(raw: &str, summary_sentences: usize) -> Self {
        let text = Text::new(raw);
        let addresses = Addresses::of(&text);
        let words = Words::of(&text, &addresses.spans);
        let sentences = Sentences::of(&text, &addresses.spans, &words);
        let terms = Terms::of(&text, &words);
        let marks = terms.marks(&text, &words);
        let letters = words.entries.iter().map(|entry| (entry.length * entry.count) as usize).sum();
        let counted = terms.significant.iter().take(terms::NAMED_MAX);
        Self {
            characters: text.len(),
            paragraphs: sentences.paragraphs,
            sentences: sentences.all.len(),
            words: words.all.len(),
            distinct_words: words.entries.len(),
            word_length_hundredths: share(100, letters, words.all.len()),
            sentence_words_hundredths: share(100, words.all.len(), sentences.all.len()),
            reading_minutes: reading_minutes(&words),
            characters_by_class: Classes::of(&text),
            letters_by_script_per_mille: Scripts::of(&text),
            terms: counted
                .map(|term| Counted { term: term.text(&text, &words), count: term.count })
                .collect(),
            summary: extract(&text, &sentences.all, &marks, summary_sentences),
            links: addresses.links.named,
            links_left_out: addresses.links.left_out,
            emails: addresses.emails.named,
            emails_left_out: addresses.emails.left_out,
        }
    }
}

impl Classes {
    fn of(text: &Text) -> Self {
        let mut counts = Self::default();
        for class in &text.classes {
            let count = match class {
                Class::Letter(_) => &mut counts.letter,
                Class::Digit => &mut counts.digit,
                Class::Mark => &mut counts.mark,
                Class::Space => &mut counts.space,
                Class::Symbol => &mut counts.symbol,
                Class::Control => &mut counts.control,
            };
            *count += 1;
        }
        counts
    }
}

impl Scripts {
    fn of(text: &Text) -> Self {
        let mut counts = [0; Script::ALL.len()];
        for class in &text.classes {
            if let Class::Letter(script) = class {
                counts[*script as usize] += 1;
            }
        }
        let letters = counts.iter().sum();
        let [
            latin,
            greek,
            cyrillic,
            hebrew,
            arabic,
            devanagari,
            thai,
            han,
            hiragana,
            katakana,
            hangul,
            other,
        ] = Script::ALL.map(|script| share(1_000, counts[script as usize], letters));
        Self {
            latin,
            greek,
            cyrillic,
            hebrew,
            arabic,
            devanagari,
            thai,
            han,
            hiragana,
            katakana,
            hangul,
            other,
        }
    }
}

/// `part` of `whole` in parts of `scale`, halves rounded up; 0 of nothing.
fn share(scale: u64, part: usize, whole: usize) -> u64 {
    let (part, whole) = (part as u64, whole as u64);
    (scale * part + whole / 2).checked_div(whole).unwrap_or(0)
}

/// Minutes, a part of one counted as a whole.
fn reading_minutes(words: &Words) -> usize {
    let unspaced = words.all.iter().filter(|word| word.unspaced.is_some()).count();
    let spaced = words.all.len() - unspaced;
    let parts = spaced * CHARACTERS_PER_MINUTE + unspaced * WORDS_PER_MINUTE;
    parts.div_ceil(WORDS_PER_MINUTE * CHARACTERS_PER_MINUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_half_up() {
        for (part, whole, expected) in
            [(0, 0, 0), (1, 3, 333), (2, 3, 667), (1, 2_000, 1), (1, 2_001, 0), (5, 5, 1_000)]
        {
            assert_eq!(share(1_000, part, whole), expected, "{part} of {whole}");
        }
    }

    #[test]
    fn a_started_minute_counts_as_one() {
        let minutes = |raw: &str| Digest::of(raw, 0).reading_minutes;
        assert_eq!(minutes(""), 0);
        assert_eq!(minutes("word"), 1);
        assert_eq!(minutes(&"word ".repeat(240)), 1);
        assert_eq!(minutes(&"word ".repeat(241)), 2);
        assert_eq!(minutes(&"字".repeat(500)), 1);
        assert_eq!(minutes(&("字".repeat(500) + " word")), 2);
    }
}
