//! Section 4: words.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::characters::{Class, Script, Text, fold};

/// One word of the text. Positions fit, because the text has a limit.
#[derive(Clone, Copy)]
pub(crate) struct Word {
    start: u32,
    end: u32,
    /// Which of the different words it is, numbered by first appearance.
    pub(crate) id: u32,
    /// The script of a word that is one character of a script without spaces.
    pub(crate) unspaced: Option<Script>,
}

impl Word {
    pub(crate) fn start(&self) -> usize {
        self.start as usize
    }

    pub(crate) fn end(&self) -> usize {
        self.end as usize
    }
}

/// One of the different words. It is small, because a large text has half a million of them.
pub(crate) struct Entry {
    pub(crate) count: u32,
    /// Where it first appears.
    first: u32,
    end: u32,
    /// Letters and digits in it.
    pub(crate) length: u32,
    /// Letters and digits, Hangul counted twice; 0 when it has no letter.
    pub(crate) weight_length: u32,
}

impl Entry {
    pub(crate) fn first(&self) -> usize {
        self.first as usize
    }

    /// The word in small letters.
    pub(crate) fn text(&self, text: &Text) -> String {
        folded(&text.characters[self.first as usize..self.end as usize]).collect()
    }
}

/// All words, and the different ones among them.
pub(crate) struct Words {
    pub(crate) all: Vec<Word>,
    pub(crate) entries: Vec<Entry>,
    /// In order and not hashed: no text can make it slow, and it needs no seed from outside.
    ids: BTreeMap<String, u32>,
}

impl Words {
    /// The words of a text outside of its addresses.
    pub(crate) fn of(text: &Text, addresses: &[Range<usize>]) -> Self {
        let mut words = Self { all: Vec::new(), entries: Vec::new(), ids: BTreeMap::new() };
        let mut start = 0;
        let end = text.len();
        for address in addresses.iter().chain([&(end..end)]) {
            words.read(text, start..address.start);
            start = address.end;
        }
        words
    }

    fn read(&mut self, text: &Text, range: Range<usize>) {
        let mut index = range.start;
        let mut key = String::new();
        while index < range.end {
            if !text.classes[index].is_letter_or_digit() {
                index += 1;
                continue;
            }
            let end = word_end(text, index, range.end);
            key.clear();
            key.extend(folded(&text.characters[index..end]));
            let unspaced = match text.classes[index] {
                Class::Letter(script) if text.classes[index].is_unspaced() => Some(script),
                _ => None,
            };
            let id = self.enter(text, index..end, &key);
            self.all.push(Word { start: index as u32, end: end as u32, id, unspaced });
            index = end;
        }
    }

    fn enter(&mut self, text: &Text, span: Range<usize>, key: &str) -> u32 {
        if let Some(&id) = self.ids.get(key) {
            self.entries[id as usize].count += 1;
            return id;
        }
        let classes = &text.classes[span.clone()];
        let count = |wanted: fn(&&Class) -> bool| classes.iter().filter(wanted).count() as u32;
        let length = count(|class| class.is_letter_or_digit());
        let hangul = count(|class| matches!(class, Class::Letter(Script::Hangul)));
        let has_letter = classes.iter().any(|class| class.is_letter());
        let weight_length = if has_letter { length + hangul } else { 0 };
        let id = self.entries.len() as u32;
        let (first, end) = (span.start as u32, span.end as u32);
        self.entries.push(Entry { count: 1, first, end, length, weight_length });
        self.ids.insert(key.to_owned(), id);
        id
    }
}

/// Small letters without soft hyphens.
fn folded(word: &[char]) -> impl Iterator<Item = char> {
    word.iter().filter(|&&c| c != '\u{ad}').map(|&c| fold(c))
}

/// Where the word that starts at `start` ends; it does not reach beyond `limit`.
fn word_end(text: &Text, start: usize, limit: usize) -> usize {
    let class = |index: usize| if index < limit { text.class(index) } else { None };
    let is_mark = |index: usize| class(index) == Some(Class::Mark);
    let goes_on = |index: usize| class(index).is_some_and(Class::is_spaced_word);
    let mut end = start + 1;
    if text.classes[start].is_unspaced() {
        while is_mark(end) {
            end += 1;
        }
        return end;
    }
    loop {
        if goes_on(end) || is_mark(end) {
            end += 1;
        } else if end + 1 < limit && joins(text, end) && goes_on(end + 1) {
            end += 2;
        } else {
            return end;
        }
    }
}

/// An apostrophe between letters, or a point or comma between digits, is inside a word.
fn joins(text: &Text, index: usize) -> bool {
    let (before, after) = (text.classes[index - 1], text.classes[index + 1]);
    match text.characters[index] {
        '\'' | '\u{2019}' => (before.is_letter() || before == Class::Mark) && after.is_letter(),
        '.' | ',' => before == Class::Digit && after == Class::Digit,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let text = Text::new(text);
        let words = Words::of(&text, &[]);
        let found: Vec<String> =
            words.all.iter().map(|word| words.entries[word.id as usize].text(&text)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        check("Hello, World! well-known snake_case", &["hello", "world", "well", "known", "snake", "case"]);
        check("B2B 4x4 2.0", &["b2b", "4x4", "2.0"]);
        check("", &[]);
        check("... — 😀 \u{301}", &[]);
    }

    #[test]
    fn apostrophes_join_letters_and_points_join_digits() {
        check(
            "don't Don’t l’eau 'quoted' rock 'n' roll",
            &["don't", "don't", "l'eau", "quoted", "rock", "n", "roll"],
        );
        check(
            "3.14 1,000.5 1. ,5 3.x U.S.A. 5'6",
            &["3.14", "1,000.5", "1", "5", "3", "x", "u", "s", "a", "5", "6"],
        );
    }

    #[test]
    fn marks_belong_to_the_letter_before() {
        check("cafe\u{301}s so\u{ad}lid", &["cafe\u{301}s", "solid"]);
        check("हिन्दी भाषा", &["हिन्दी", "भाषा"]);
        check("می\u{200c}خواهم", &["می\u{200c}خواهم"]);
    }

    #[test]
    fn scripts_without_spaces_give_one_word_a_character() {
        check("中文abc字か\u{3099}カ", &["中", "文", "abc", "字", "か\u{3099}", "カ"]);
        check("한국어 문장", &["한국어", "문장"]);
    }

    #[test]
    fn equal_words_share_one_entry_with_its_first_place() {
        let text = Text::new("an Apple, AN apple");
        let words = Words::of(&text, &[]);
        let entries: Vec<_> = words.entries.iter().map(|it| (it.text(&text), it.count, it.first())).collect();
        assert_eq!(entries, [("an".into(), 2, 0), ("apple".into(), 2, 3)]);
    }

    #[test]
    fn a_word_does_not_reach_into_an_address() {
        let text = Text::new("l'ann@example.com d");
        let words = Words::of(&text, std::slice::from_ref(&(2..17)));
        let found: Vec<_> = words.all.iter().map(|word| word.start()..word.end()).collect();
        assert_eq!(found, [0..1, 18..19]);
    }
}
