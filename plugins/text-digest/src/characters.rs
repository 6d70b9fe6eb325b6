//! Section 2: what kind of character each one is, and its small form.
//!
//! The table is our own and not Unicode's, because the versions of Unicode in four languages differ. It is right
//! for the scripts it names and treats the rest as letters.

/// The class of one character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Control,
    Space,
    Mark,
    Digit,
    Symbol,
    Letter(Script),
}

/// What a letter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    Latin,
    Greek,
    Cyrillic,
    Hebrew,
    Arabic,
    Devanagari,
    Thai,
    Han,
    Hiragana,
    Katakana,
    Hangul,
    Other,
}

/// A text with the class of each of its characters.
pub(crate) struct Text {
    pub(crate) characters: Vec<char>,
    pub(crate) classes: Vec<Class>,
}

impl Text {
    /// Section 1: one byte order mark at the start goes, and every end of a line becomes a line feed.
    pub(crate) fn new(raw: &str) -> Self {
        let raw = raw.strip_prefix('\u{feff}').unwrap_or(raw);
        let mut characters = Vec::with_capacity(raw.len());
        let mut follows_return = false;
        for c in raw.chars() {
            if c == '\r' {
                characters.push('\n');
            } else if !(c == '\n' && follows_return) {
                characters.push(c);
            }
            follows_return = c == '\r';
        }
        let classes = characters.iter().map(|&c| class(c)).collect();
        Self { characters, classes }
    }

    pub(crate) fn len(&self) -> usize {
        self.characters.len()
    }

    /// `None` outside of the text.
    pub(crate) fn class(&self, index: usize) -> Option<Class> {
        self.classes.get(index).copied()
    }
}

impl Class {
    pub(crate) fn is_letter(self) -> bool {
        matches!(self, Self::Letter(_))
    }

    pub(crate) fn is_letter_or_digit(self) -> bool {
        matches!(self, Self::Letter(_) | Self::Digit)
    }

    /// White space and what is not seen at all.
    pub(crate) fn is_blank(self) -> bool {
        matches!(self, Self::Space | Self::Control)
    }

    /// A letter or digit that a reader would take together with a letter next to it.
    pub(crate) fn is_spaced_word(self) -> bool {
        self.is_letter_or_digit() && !self.is_unspaced()
    }

    /// Letters of scripts that put no space between words, one of which is a word here.
    pub(crate) fn is_unspaced(self) -> bool {
        matches!(self, Self::Letter(Script::Han | Script::Hiragana | Script::Katakana))
    }
}

impl Script {
    /// In the order in which the digest names them.
    pub(crate) const ALL: [Self; 12] = [
        Self::Latin,
        Self::Greek,
        Self::Cyrillic,
        Self::Hebrew,
        Self::Arabic,
        Self::Devanagari,
        Self::Thai,
        Self::Han,
        Self::Hiragana,
        Self::Katakana,
        Self::Hangul,
        Self::Other,
    ];
}

/// The class of a character; what no row of the table names is a letter of another script.
pub(crate) fn class(character: char) -> Class {
    if let Some(&class) = ASCII.get(character as usize) {
        return class;
    }
    let code = u32::from(character);
    let row = RANGES.partition_point(|&(_, last, _)| last < code);
    match RANGES.get(row) {
        Some(&(first, _, class)) if first <= code => class,
        _ => OTHER,
    }
}

/// The small form, one character for one; final sigma becomes sigma, and the apostrophe the straight one.
pub(crate) fn fold(character: char) -> char {
    let code = u32::from(character);
    let folded = match code {
        0x41..=0x5a => code + 32,
        0..=0x7f => code,
        0xc0..=0xde if code != 0xd7 => code + 32,
        0x130 => 0x69,
        0x100..=0x12f | 0x132..=0x137 | 0x14a..=0x177 => to_odd(code),
        0x178 => 0xff,
        0x139..=0x148 | 0x179..=0x17e => to_even(code),
        0x386 => 0x3ac,
        0x388..=0x38a => code + 37,
        0x38c => 0x3cc,
        0x38e..=0x38f => code + 63,
        0x391..=0x3ab if code != 0x3a2 => code + 32,
        0x3c2 => 0x3c3,
        0x400..=0x40f => code + 80,
        0x410..=0x42f => code + 32,
        0x4c0 => 0x4cf,
        0x4c1..=0x4ce => to_even(code),
        0x460..=0x481 | 0x48a..=0x4bf | 0x4d0..=0x52f => to_odd(code),
        0x1e9e => 0xdf,
        0x1e00..=0x1e95 | 0x1ea0..=0x1eff => to_odd(code),
        0x2019 => 0x27,
        0xff21..=0xff3a => code + 32,
        _ => code,
    };
    char::from_u32(folded).unwrap_or(character)
}

/// A letter that has a small form, and is not it.
pub(crate) fn is_capital(character: char) -> bool {
    class(character).is_letter() && character != 'ς' && fold(character) != character
}

/// A letter of a script that has capitals, and is none.
pub(crate) fn is_small(character: char) -> bool {
    let has_capitals =
        matches!(class(character), Class::Letter(Script::Latin | Script::Greek | Script::Cyrillic));
    has_capitals && !is_capital(character)
}

/// Capitals on even places have their small form behind them.
fn to_odd(code: u32) -> u32 {
    code | 1
}

/// Capitals on odd places have their small form behind them.
fn to_even(code: u32) -> u32 {
    code + (code & 1)
}

const CONTROL: Class = Class::Control;
const SPACE: Class = Class::Space;
const MARK: Class = Class::Mark;
const DIGIT: Class = Class::Digit;
const SYMBOL: Class = Class::Symbol;
const LATIN: Class = Class::Letter(Script::Latin);
const GREEK: Class = Class::Letter(Script::Greek);
const CYRILLIC: Class = Class::Letter(Script::Cyrillic);
const HEBREW: Class = Class::Letter(Script::Hebrew);
const ARABIC: Class = Class::Letter(Script::Arabic);
const DEVANAGARI: Class = Class::Letter(Script::Devanagari);
const THAI: Class = Class::Letter(Script::Thai);
const HAN: Class = Class::Letter(Script::Han);
const HIRAGANA: Class = Class::Letter(Script::Hiragana);
const KATAKANA: Class = Class::Letter(Script::Katakana);
const HANGUL: Class = Class::Letter(Script::Hangul);
const OTHER: Class = Class::Letter(Script::Other);

/// The part of the table that most texts use most.
const ASCII: [Class; 128] = ascii();

const fn ascii() -> [Class; 128] {
    let mut classes = [OTHER; 128];
    let mut row = 0;
    while RANGES[row].0 < 128 {
        let mut code = RANGES[row].0;
        while code <= RANGES[row].1 && code < 128 {
            classes[code as usize] = RANGES[row].2;
            code += 1;
        }
        row += 1;
    }
    classes
}

/// First and last character of each range, in order. A test compares it with the table in README.md.
#[rustfmt::skip]
const RANGES: &[(u32, u32, Class)] = &[
    (0x0, 0x8, CONTROL), (0x9, 0xd, SPACE), (0xe, 0x1f, CONTROL), (0x20, 0x20, SPACE), (0x21, 0x2f, SYMBOL),
    (0x30, 0x39, DIGIT), (0x3a, 0x40, SYMBOL), (0x41, 0x5a, LATIN), (0x5b, 0x60, SYMBOL), (0x61, 0x7a, LATIN),
    (0x7b, 0x7e, SYMBOL), (0x7f, 0x84, CONTROL), (0x85, 0x85, SPACE), (0x86, 0x9f, CONTROL), (0xa0, 0xa0, SPACE),
    (0xa1, 0xa9, SYMBOL), (0xaa, 0xaa, LATIN), (0xab, 0xac, SYMBOL), (0xad, 0xad, MARK), (0xae, 0xb4, SYMBOL),
    (0xb5, 0xb5, LATIN), (0xb6, 0xb9, SYMBOL), (0xba, 0xba, LATIN), (0xbb, 0xbf, SYMBOL), (0xc0, 0xd6, LATIN),
    (0xd7, 0xd7, SYMBOL), (0xd8, 0xf6, LATIN), (0xf7, 0xf7, SYMBOL), (0xf8, 0x2ff, LATIN), (0x300, 0x36f, MARK),
    (0x370, 0x37d, GREEK), (0x37e, 0x37e, SYMBOL), (0x37f, 0x386, GREEK), (0x387, 0x387, SYMBOL),
    (0x388, 0x3ff, GREEK), (0x400, 0x482, CYRILLIC), (0x483, 0x489, MARK), (0x48a, 0x52f, CYRILLIC),
    (0x589, 0x58a, SYMBOL), (0x591, 0x5bd, MARK), (0x5be, 0x5be, SYMBOL), (0x5bf, 0x5c7, MARK),
    (0x5d0, 0x5f2, HEBREW), (0x5f3, 0x5f4, SYMBOL), (0x600, 0x60f, SYMBOL), (0x610, 0x61a, MARK),
    (0x61b, 0x61f, SYMBOL), (0x620, 0x64a, ARABIC), (0x64b, 0x65f, MARK), (0x660, 0x669, DIGIT),
    (0x66a, 0x66d, SYMBOL), (0x66e, 0x66f, ARABIC), (0x670, 0x670, MARK), (0x671, 0x6d3, ARABIC),
    (0x6d4, 0x6d4, SYMBOL), (0x6d5, 0x6d5, ARABIC), (0x6d6, 0x6ed, MARK), (0x6ee, 0x6ef, ARABIC),
    (0x6f0, 0x6f9, DIGIT), (0x6fa, 0x6ff, ARABIC), (0x750, 0x77f, ARABIC), (0x8a0, 0x8ff, ARABIC),
    (0x900, 0x963, DEVANAGARI), (0x964, 0x965, SYMBOL), (0x966, 0x96f, DIGIT), (0x970, 0x97f, DEVANAGARI),
    (0xe01, 0xe3a, THAI), (0xe3f, 0xe3f, SYMBOL), (0xe40, 0xe4e, THAI), (0xe4f, 0xe4f, SYMBOL),
    (0xe50, 0xe59, DIGIT), (0xe5a, 0xe5b, SYMBOL), (0x1100, 0x11ff, HANGUL), (0x1680, 0x1680, SPACE),
    (0x1ab0, 0x1aff, MARK), (0x1c80, 0x1c8f, CYRILLIC), (0x1dc0, 0x1dff, MARK), (0x1e00, 0x1eff, LATIN),
    (0x1f00, 0x1fff, GREEK), (0x2000, 0x200a, SPACE), (0x200b, 0x200b, SYMBOL), (0x200c, 0x200d, MARK),
    (0x200e, 0x2027, SYMBOL), (0x2028, 0x2029, SPACE), (0x202a, 0x202e, SYMBOL), (0x202f, 0x202f, SPACE),
    (0x2030, 0x205e, SYMBOL), (0x205f, 0x205f, SPACE), (0x2060, 0x20cf, SYMBOL), (0x20d0, 0x20ff, MARK),
    (0x2100, 0x2bff, SYMBOL), (0x2c60, 0x2c7f, LATIN), (0x2de0, 0x2dff, MARK), (0x2e00, 0x2e7f, SYMBOL),
    (0x2e80, 0x2fdf, HAN), (0x2ff0, 0x2fff, SYMBOL), (0x3000, 0x3000, SPACE), (0x3001, 0x3004, SYMBOL),
    (0x3005, 0x3007, HAN), (0x3008, 0x3020, SYMBOL), (0x3021, 0x3029, HAN), (0x302a, 0x302f, MARK),
    (0x3030, 0x3037, SYMBOL), (0x3038, 0x303b, HAN), (0x303c, 0x303f, SYMBOL), (0x3041, 0x3096, HIRAGANA),
    (0x3099, 0x309a, MARK), (0x309b, 0x309c, SYMBOL), (0x309d, 0x309f, HIRAGANA), (0x30a0, 0x30a0, SYMBOL),
    (0x30a1, 0x30fa, KATAKANA), (0x30fb, 0x30fb, SYMBOL), (0x30fc, 0x30ff, KATAKANA), (0x3130, 0x318f, HANGUL),
    (0x31f0, 0x31ff, KATAKANA), (0x3200, 0x33ff, SYMBOL), (0x3400, 0x4dbf, HAN), (0x4dc0, 0x4dff, SYMBOL),
    (0x4e00, 0x9fff, HAN), (0xa640, 0xa69f, CYRILLIC), (0xa720, 0xa7ff, LATIN), (0xa960, 0xa97f, HANGUL),
    (0xac00, 0xd7ff, HANGUL), (0xe000, 0xf8ff, SYMBOL), (0xf900, 0xfaff, HAN), (0xfb00, 0xfb06, LATIN),
    (0xfb1d, 0xfb4f, HEBREW), (0xfb50, 0xfdfb, ARABIC), (0xfdfc, 0xfdff, SYMBOL), (0xfe00, 0xfe0f, MARK),
    (0xfe10, 0xfe1f, SYMBOL), (0xfe20, 0xfe2f, MARK), (0xfe30, 0xfe6f, SYMBOL), (0xfe70, 0xfefe, ARABIC),
    (0xfeff, 0xfeff, SYMBOL), (0xff01, 0xff0f, SYMBOL), (0xff10, 0xff19, DIGIT), (0xff1a, 0xff20, SYMBOL),
    (0xff21, 0xff3a, LATIN), (0xff3b, 0xff40, SYMBOL), (0xff41, 0xff5a, LATIN), (0xff5b, 0xff65, SYMBOL),
    (0xff66, 0xff9f, KATAKANA), (0xffa0, 0xffdc, HANGUL), (0xffe0, 0xffff, SYMBOL), (0x1b000, 0x1b16f, HIRAGANA),
    (0x1f000, 0x1faff, SYMBOL), (0x20000, 0x3ffff, HAN), (0xe0000, 0xe01ef, MARK), (0xf0000, 0x10ffff, SYMBOL),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as README.md writes it: `0041-005A latin`, several on a line.
    fn readme_ranges() -> Vec<(u32, u32, Class)> {
        let readme = include_str!("../README.md");
        let table = readme.split("```ranges\n").nth(1).unwrap().split("```").next().unwrap();
        let mut words = table.split_whitespace();
        let mut ranges = Vec::new();
        while let (Some(range), Some(name)) = (words.next(), words.next()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let code = |text| u32::from_str_radix(text, 16).unwrap();
            ranges.push((code(first), code(last), named(name)));
        }
        ranges
    }

    fn named(name: &str) -> Class {
        let names = [
            ("control", CONTROL),
            ("space", SPACE),
            ("mark", MARK),
            ("digit", DIGIT),
            ("symbol", SYMBOL),
            ("latin", LATIN),
            ("greek", GREEK),
            ("cyrillic", CYRILLIC),
            ("hebrew", HEBREW),
            ("arabic", ARABIC),
            ("devanagari", DEVANAGARI),
            ("thai", THAI),
            ("han", HAN),
            ("hiragana", HIRAGANA),
            ("katakana", KATAKANA),
            ("hangul", HANGUL),
        ];
        names.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no class {name}")).1
    }

    #[test]
    fn the_table_is_the_one_in_the_readme() {
        assert_eq!(readme_ranges(), RANGES);
    }

    #[test]
    fn the_ranges_are_in_order_and_apart() {
        for pair in RANGES.windows(2) {
            assert!(pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0, "{:x?}", pair);
        }
    }

    #[test]
    fn characters_have_the_class_a_reader_expects() {
        for (characters, expected) in [
            ("aZéßøİŁ", LATIN),
            ("λΩ", GREEK),
            ("жЯ", CYRILLIC),
            ("ש", HEBREW),
            ("ع", ARABIC),
            ("अ", DEVANAGARI),
            ("ไ", THAI),
            ("漢々", HAN),
            ("ひ", HIRAGANA),
            ("カー", KATAKANA),
            ("한", HANGUL),
            ("ა", OTHER),
            ("09٣９", DIGIT),
            (" \t\n\u{a0}\u{3000}", SPACE),
            (".!?…。、，「」—€😀→©", SYMBOL),
            ("\u{301}\u{200d}\u{fe0f}", MARK),
            ("\u{0}\u{7f}", CONTROL),
        ] {
            for c in characters.chars() {
                assert_eq!(class(c), expected, "{c:?}");
            }
        }
    }

    /// Where Unicode has one small letter for a capital of our three scripts, `fold` gives that one.
    #[test]
    fn capitals_fold_as_unicode_folds_them() {
        for code in 0..=0x52f_u32 {
            let Some(c) = char::from_u32(code) else { continue };
            let unicode: Vec<char> = c.to_lowercase().collect();
            let is_ours =
                !(0x180..=0x24f).contains(&code) && !(0x370..=0x385).contains(&code) && code < 0x3cf
                    || (0x400..=0x52f).contains(&code);
            if is_ours && unicode.len() == 1 && c != 'ς' {
                assert_eq!(fold(c), unicode[0], "{c:?} {code:x}");
            }
        }
        assert_eq!("ΣΊΣΥΦΟΣ ς İ ẞ Ａ ’".chars().map(fold).collect::<String>(), "σίσυφοσ σ i ß ａ '");
    }

    #[test]
    fn line_ends_of_all_kinds_are_one_line_feed() {
        let text = |raw: &str| Text::new(raw).characters.into_iter().collect::<String>();
        assert_eq!(text("a\r\nb\rc\nd\r\r\n\n"), "a\nb\nc\nd\n\n\n");
        assert_eq!(text("\u{feff}a\u{feff}"), "a\u{feff}");
    }
}
