//! Section 6: which words a text is about.
//!
//! There is no list of stop words, because there is none for every language. Short words carry the grammar and long
//! words the matter (Zipf 1935, *The Psycho-Biology of Language*), so a term weighs its count times its length.

use std::collections::{BTreeMap, BTreeSet};

use crate::characters::{Script, Text};
use crate::words::{Word, Words};

/// Terms that the digest names.
pub(crate) const NAMED_MAX: usize = 10;

/// Shorter words are no terms.
const LENGTH_MIN: u32 = 4;
/// A longer word weighs no more...
const LENGTH_WEIGHED_MAX: u32 = 12;
/// ...and a longer one yet is no word that a reader wants to see.
const LENGTH_MAX: u32 = 64;
/// What a pair of Han characters or of Katakana weighs.
const PAIR_WEIGHT: u64 = 3;

/// At least this many terms are significant, when there are as many...
const SIGNIFICANT_MIN: usize = 8;
/// ...at most this many, and else every tenth.
const SIGNIFICANT_MAX: usize = 100;

/// A word, or a pair of neighbouring characters in scripts without spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) count: u32,
    weight: u64,
    first: usize,
    source: Source,
}

impl Term {
    pub(crate) fn text(&self, text: &Text, words: &Words) -> String {
        match self.source {
            Source::Word(id) => words.entries[id as usize].text(text),
            Source::Pair(first, second) => [first, second].iter().collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Word(u32),
    Pair(char, char),
}

/// The significant terms, the weightiest first.
pub(crate) struct Terms {
    pub(crate) significant: Vec<Term>,
}

impl Terms {
    pub(crate) fn of(text: &Text, words: &Words) -> Self {
        let mut terms = whole_words(words);
        terms.extend(pairs(text, words));
        let significant = terms.len().div_ceil(10).clamp(SIGNIFICANT_MIN, SIGNIFICANT_MAX);
        // First places differ, so no two terms are equal and the order is the same everywhere.
        terms.sort_unstable_by_key(|term| (u64::MAX - term.weight, u32::MAX - term.count, term.first));
        terms.truncate(significant);
        Self { significant: terms }
    }

    /// For each word of the text, whether it is part of a significant term.
    pub(crate) fn marks(&self, text: &Text, words: &Words) -> Vec<bool> {
        let mut is_entry = vec![false; words.entries.len()];
        let mut is_pair = BTreeSet::new();
        for term in &self.significant {
            match term.source {
                Source::Word(id) => is_entry[id as usize] = true,
                Source::Pair(first, second) => {
                    is_pair.insert((first, second));
                }
            }
        }
        let mut marks: Vec<bool> = words.all.iter().map(|word| is_entry[word.id as usize]).collect();
        for index in 1..words.all.len() {
            if pair(text, words, index).is_some_and(|pair| is_pair.contains(&pair)) {
                marks[index - 1] = true;
                marks[index] = true;
            }
        }
        marks
    }
}

fn whole_words(words: &Words) -> Vec<Term> {
    let mut terms = Vec::new();
    for (id, entry) in words.entries.iter().enumerate() {
        if (LENGTH_MIN..=LENGTH_MAX).contains(&entry.weight_length) {
            let factor = u64::from(entry.weight_length.min(LENGTH_WEIGHED_MAX) - LENGTH_MIN + 1);
            terms.push(Term {
                count: entry.count,
                weight: u64::from(entry.count) * factor,
                first: entry.first(),
                source: Source::Word(id as u32),
            });
        }
    }
    terms
}

fn pairs(text: &Text, words: &Words) -> Vec<Term> {
    let mut places = BTreeMap::new();
    let mut terms: Vec<Term> = Vec::new();
    for index in 1..words.all.len() {
        let Some((first, second)) = pair(text, words, index) else { continue };
        let place = *places.entry((first, second)).or_insert(terms.len());
        if place == terms.len() {
            terms.push(Term {
                count: 0,
                weight: 0,
                first: words.all[index - 1].start(),
                source: Source::Pair(first, second),
            });
        }
        terms[place].count += 1;
        terms[place].weight += PAIR_WEIGHT;
    }
    terms
}

/// The word at `index` and the one before it as a term: both Han or both Katakana, and nothing between them.
/// Hiragana carries the grammar, as short words do elsewhere.
fn pair(text: &Text, words: &Words, index: usize) -> Option<(char, char)> {
    let (before, word) = (words.all[index - 1], words.all[index]);
    let is_pair = matches!(
        (before.unspaced, word.unspaced),
        (Some(Script::Han), Some(Script::Han)) | (Some(Script::Katakana), Some(Script::Katakana))
    );
    let character = |word: Word| text.characters[word.start()];
    (is_pair && before.end() == word.start()).then(|| (character(before), character(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: &str, expected: &[(&str, u32)]) {
        let text = Text::new(raw);
        let words = Words::of(&text, &[]);
        let terms = Terms::of(&text, &words).significant;
        let found: Vec<_> = terms.iter().map(|term| (term.text(&text, &words), term.count)).collect();
        let expected: Vec<_> = expected.iter().map(|&(term, count)| (term.to_owned(), count)).collect();
        assert_eq!(found, expected, "{raw}");
    }

    #[test]
    fn terms_weigh_their_count_times_their_length() {
        check("the of and", &[]);
        check("film films Film", &[("film", 2), ("films", 1)]);
        check("aaaa aaaa bbbbb", &[("aaaa", 2), ("bbbbb", 1)]);
        check("zzzz yyyy", &[("zzzz", 1), ("yyyy", 1)]);
        check("internationalisation abcdefghijkl", &[("internationalisation", 1), ("abcdefghijkl", 1)]);
        check(&"a".repeat(64), &[(&"a".repeat(64), 1)]);
        check(&"a".repeat(65), &[]);
    }

    #[test]
    fn numbers_are_no_terms_and_short_korean_words_are() {
        check("123456 1,000,000 abc4", &[("abc4", 1)]);
        check("한국 한", &[("한국", 1)]);
    }

    #[test]
    fn scripts_without_spaces_give_pairs() {
        check("東京都 東京、京", &[("東京", 2), ("京都", 1)]);
        check("カメラのカメ", &[("カメ", 2), ("メラ", 1)]);
        check("ひらがな 漢カ", &[]);
    }

    #[test]
    fn every_tenth_term_is_significant_from_eight_to_a_hundred() {
        let significant = |different: usize| {
            let raw: String = (0..different).map(|number| format!("term{number} ")).collect();
            let text = Text::new(&raw);
            Terms::of(&text, &Words::of(&text, &[])).significant.len()
        };
        for (different, expected) in [(0, 0), (5, 5), (9, 8), (80, 8), (81, 9), (1_000, 100), (5_000, 100)] {
            assert_eq!(significant(different), expected, "{different}");
        }
    }
}
