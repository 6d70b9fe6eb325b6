//! Section 5: paragraphs and sentences.

use std::ops::Range;

use crate::characters::{Class, Text, class, is_small};
use crate::words::{Word, Words};

/// A longer sentence is cut; nothing in the digest grows with the text.
pub(crate) const SENTENCE_CHARACTERS_MAX: usize = 1_000;

/// One sentence: where it stands, and which words are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sentence {
    pub(crate) span: Range<usize>,
    pub(crate) words: Range<usize>,
}

pub(crate) struct Sentences {
    pub(crate) all: Vec<Sentence>,
    pub(crate) paragraphs: usize,
}

impl Sentences {
    pub(crate) fn of(text: &Text, addresses: &[Range<usize>], words: &Words) -> Self {
        let mut reader = Reader {
            text,
            addresses,
            words: &words.all,
            next_address: 0,
            next_word: 0,
            taken: 0,
            all: Vec::new(),
        };
        let paragraphs = paragraphs(text);
        for paragraph in &paragraphs {
            reader.paragraph(paragraph.clone());
        }
        Self { all: reader.all, paragraphs: paragraphs.len() }
    }
}

/// Runs of lines with something in them.
fn paragraphs(text: &Text) -> Vec<Range<usize>> {
    let mut paragraphs: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    let mut follows_blank = true;
    for line in text.characters.split_inclusive(|&c| c == '\n') {
        let span = start..start + line.len();
        start = span.end;
        let is_blank = text.classes[span.clone()].iter().all(|class| class.is_blank());
        match paragraphs.last_mut() {
            Some(paragraph) if !is_blank && !follows_blank => paragraph.end = span.end,
            _ if !is_blank => paragraphs.push(span),
            _ => {}
        }
        follows_blank = is_blank;
    }
    paragraphs
}

/// Goes through the text once; addresses and words come in the same order.
struct Reader<'a> {
    text: &'a Text,
    addresses: &'a [Range<usize>],
    words: &'a [Word],
    next_address: usize,
    next_word: usize,
    /// Words before this one are in a sentence.
    taken: usize,
    all: Vec<Sentence>,
}

impl Reader<'_> {
    fn paragraph(&mut self, paragraph: Range<usize>) {
        let mut start = paragraph.start;
        let mut index = start;
        let mut last_word = None;
        while index < paragraph.end {
            if let Some(end) = self.address_at(index) {
                index = end;
                last_word = None;
            } else if let Some(word) = self.word_at(index) {
                index = word.end();
                last_word = Some(word);
            } else if is_stop(self.text.characters[index]) {
                let stop = Stop::at(self.text, index, paragraph.end);
                if stop.ends_sentence(self.text, paragraph.end, last_word) {
                    self.stretch(start..stop.end);
                    start = stop.end;
                }
                index = stop.end;
            } else {
                index += 1;
            }
        }
        self.stretch(start..paragraph.end);
    }

    fn address_at(&mut self, index: usize) -> Option<usize> {
        let address = self.addresses.get(self.next_address).filter(|address| address.start == index)?;
        self.next_address += 1;
        Some(address.end)
    }

    fn word_at(&mut self, index: usize) -> Option<Word> {
        let word = self.words.get(self.next_word).filter(|word| word.start() == index)?;
        self.next_word += 1;
        Some(*word)
    }

    /// Takes a stretch as one sentence, or as several when it is too long.
    fn stretch(&mut self, mut stretch: Range<usize>) {
        stretch = without_blanks(self.text, stretch);
        while !stretch.is_empty() {
            let cut = cut(self.text, &stretch);
            self.sentence(without_blanks(self.text, stretch.start..cut));
            stretch = without_blanks(self.text, cut..stretch.end);
        }
    }

    /// What has no word is no sentence.
    fn sentence(&mut self, span: Range<usize>) {
        let first = self.taken;
        while self.words.get(self.taken).is_some_and(|word| word.start() < span.end) {
            self.taken += 1;
        }
        if first < self.taken {
            self.all.push(Sentence { span, words: first..self.taken });
        }
    }
}

fn without_blanks(text: &Text, mut span: Range<usize>) -> Range<usize> {
    while !span.is_empty() && text.classes[span.start].is_blank() {
        span.start += 1;
    }
    while !span.is_empty() && text.classes[span.end - 1].is_blank() {
        span.end -= 1;
    }
    span
}

/// Where the first piece of a stretch ends: at its end, or at the last blank that keeps the piece short enough.
fn cut(text: &Text, stretch: &Range<usize>) -> usize {
    if stretch.len() <= SENTENCE_CHARACTERS_MAX {
        return stretch.end;
    }
    let limit = stretch.start + SENTENCE_CHARACTERS_MAX;
    (stretch.start + 1..=limit).rev().find(|&index| text.classes[index].is_blank()).unwrap_or(limit)
}

/// A run of characters that may end a sentence, with the closers behind it.
struct Stop {
    start: usize,
    closers: usize,
    end: usize,
    is_strong: bool,
}

impl Stop {
    fn at(text: &Text, start: usize, limit: usize) -> Self {
        let run = |from: usize, wanted: fn(char) -> bool| {
            text.characters[from..limit].iter().take_while(|&&c| wanted(c)).count()
        };
        let closers = start + run(start, is_stop);
        let end = closers + run(closers, is_closer);
        let is_strong = text.characters[start..closers].iter().any(|&c| is_strong(c));
        Self { start, closers, end, is_strong }
    }

    fn ends_sentence(&self, text: &Text, limit: usize, last_word: Option<Word>) -> bool {
        let is_blank = |i: &usize| text.classes[*i].is_blank();
        let Some(next) = (self.end..limit).find(|i| !is_blank(i)) else { return true };
        if self.is_strong {
            return true;
        }
        if next == self.end {
            return false;
        }
        let begin = (next..limit).find(|i| !is_blank(i) && !is_opener(text.characters[*i]));
        if begin.is_some_and(|i| is_small(text.characters[i])) {
            return false;
        }
        let is_lone_point = self.closers == self.start + 1 && text.characters[self.start] == '.';
        let before = last_word.filter(|word| word.end() == self.start);
        !(is_lone_point && before.is_some_and(|word| takes_point(&text.characters[word.start()..word.end()])))
    }
}

/// A point belongs to such a word: a single letter (`J.`, `z. B.`), a number of one or two digits (`3. Mai`), or a
/// short word without a vowel that begins with a capital (`Dr.`, `Mrs.`).
fn takes_point(word: &[char]) -> bool {
    let is_title = |first: char, rest: &[char]| {
        let is_consonant = |c: char| c.is_ascii_lowercase() && !"aeiouy".contains(c);
        first.is_ascii_uppercase()
            && is_consonant(first.to_ascii_lowercase())
            && rest.iter().all(|&c| is_consonant(c))
    };
    match *word {
        [letter] => class(letter).is_spaced_word(),
        [first, second] if class(first) == Class::Digit => class(second) == Class::Digit,
        [first, ref rest @ ..] => rest.len() <= 2 && is_title(first, rest),
        [] => false,
    }
}

/// Ends a sentence wherever it stands.
fn is_strong(c: char) -> bool {
    matches!(c, '\u{589}' | '\u{61f}' | '\u{6d4}' | '\u{964}' | '\u{965}' | '。' | '！' | '？' | '｡')
}

/// Ends a sentence wherever it stands, or else only before a space, and not always.
fn is_stop(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '‼' | '⁇' | '⁈' | '⁉') || is_strong(c)
}

/// Belongs to the sentence that it closes.
fn is_closer(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | ')'
            | ']'
            | '}'
            | '»'
            | '›'
            | '”'
            | '’'
            | '」'
            | '』'
            | '）'
            | '］'
            | '】'
            | '》'
            | '〉'
            | '〕'
            | '｣'
    )
}

/// May stand before the first word of a sentence.
fn is_opener(c: char) -> bool {
    matches!(
        c,
        '"' | '\''
            | '('
            | '['
            | '{'
            | '«'
            | '‹'
            | '„'
            | '‚'
            | '“'
            | '‘'
            | '¿'
            | '¡'
            | '「'
            | '『'
            | '（'
            | '［'
            | '【'
            | '《'
            | '〈'
            | '〔'
            | '｢'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Addresses;

    fn sentences(raw: &str) -> (Vec<String>, usize) {
        let text = Text::new(raw);
        let addresses = Addresses::of(&text).spans;
        let words = Words::of(&text, &addresses);
        let found = Sentences::of(&text, &addresses, &words);
        let shown = found.all.into_iter().map(|it| text.characters[it.span].iter().collect()).collect();
        (shown, found.paragraphs)
    }

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(sentences(text).0, expected);
    }

    #[test]
    fn sentences_end_with_their_closers() {
        check("One. Two! Three?", &["One.", "Two!", "Three?"]);
        check(
            "He said: \"Go!\" Then (so be it.) He went",
            &["He said: \"Go!\"", "Then (so be it.)", "He went"],
        );
        check("Really?! Yes... No", &["Really?!", "Yes...", "No"]);
        check("今日は。明日は？『はい。』そう", &["今日は。", "明日は？", "『はい。』", "そう"]);
        check("क ख। ग घ॥", &["क ख।", "ग घ॥"]);
    }

    #[test]
    fn a_point_inside_a_sentence_does_not_end_it() {
        check(
            "Version 3.14 is at a.b or http://a.b/c.d now.",
            &["Version 3.14 is at a.b or http://a.b/c.d now."],
        );
        check("Dr. Smith and J. R. Doe met Mrs. Poe.", &["Dr. Smith and J. R. Doe met Mrs. Poe."]);
        check("It was e.g. green, z. B. Rot. Yes.", &["It was e.g. green, z. B. Rot.", "Yes."]);
        check("今日はA. B日. 日.", &["今日はA. B日.", "日."]);
        check("\"Why?\" she asked. \"Because… well.\"", &["\"Why?\" she asked.", "\"Because… well.\""]);
        check("See http://a.b. Then go.", &["See http://a.b.", "Then go."]);
        check(
            "We see TV. They see it in May. In 1912. Go.",
            &["We see TV.", "They see it in May.", "In 1912.", "Go."],
        );
        check("1. Am 3. Mai. 12. Go. 12a. Go.", &["1. Am 3. Mai.", "12. Go.", "12a.", "Go."]);
    }

    #[test]
    fn paragraphs_are_parted_by_blank_lines() {
        assert_eq!(sentences("One\ntwo\n \t\n\nThree\r\n\r\nFour").1, 3);
        check("One\ntwo\n\nThree", &["One\ntwo", "Three"]);
        assert_eq!(sentences("").1, 0);
        assert_eq!(sentences(" \n \u{3000}\n").1, 0);
        assert_eq!(sentences("\n\n***\n\n"), (vec![], 1));
    }

    #[test]
    fn what_has_no_word_is_no_sentence() {
        check("... One. — ! Two. 😀. http://a.b.", &["One.", "Two."]);
    }

    #[test]
    fn a_giant_sentence_is_cut_at_blanks_or_anywhere() {
        let words = "word ".repeat(400);
        let found = sentences(&words).0;
        assert_eq!(found.iter().map(|it| it.chars().count()).collect::<Vec<_>>(), [999, 999]);
        let letters = "a".repeat(2_500);
        // The word belongs to the piece in which it starts, so the rest has none.
        assert_eq!(sentences(&letters).0, ["a".repeat(1_000)]);
        let chinese = "中".repeat(2_500);
        assert_eq!(sentences(&chinese).0.len(), 3);
        assert_eq!(sentences(&"b ".repeat(500)).0.len(), 1);
    }
}
