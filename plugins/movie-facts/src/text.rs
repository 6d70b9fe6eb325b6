//! Mends texts whose damage has one plain cause.
//!
//! **Another character set.** Some titles were written in Windows-1252 and read as Mac Roman: `LÈon` for `Léon`. Both
//! sets name the same bytes, so the way back is exact, and it is taken when the text shows that it is right: a capital
//! letter outside ASCII inside a word of small letters (`AimÈe`), or a sign that only stands inside words here (`‡ ‰ ˘`
//! after a letter, `Ω` after a digit). `Ö` alone between blanks shows nothing and stays.

use crate::film::ProblemCode;

/// A mend gives the better text, or `None` when there is nothing to mend.
type Mend = fn(&str) -> Option<String>;

/// In the order in which they apply.
pub(crate) const MENDS: [(Mend, ProblemCode); 3] = [
    (single_quotes, ProblemCode::DoubledQuotes),
    (ungarbled, ProblemCode::GarbledText),
    (spaced, ProblemCode::Spacing),
];

/// What Mac Roman makes of the bytes from 0x80.
const MAC_ROMAN: &str = "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø\
                         ¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";
/// What Windows-1252 makes of the bytes 0x80 to 0x9f; from there on it is Unicode.
const WINDOWS_1252: &str = "€\u{fffd}‚ƒ„…†‡ˆ‰Š‹Œ\u{fffd}Ž\u{fffd}\u{fffd}‘’“”•–—˜™š›œ\u{fffd}žŸ";

/// `The Barbarians` of `Barbarians, The`.
pub(crate) fn upright(title: &str) -> Option<String> {
    let (rest, article) = title.rsplit_once(", ")?;
    let is_article = ["The", "A", "An"].contains(&article);
    (is_article && !rest.is_empty()).then(|| format!("{article} {rest}"))
}

/// A number in text: digits, perhaps with a minus or a dollar sign, thousands commas, and a fraction.
pub(crate) fn number(written: &str) -> Option<f64> {
    let written = written.trim();
    let unsigned = written.strip_prefix('-').unwrap_or(written);
    let unsigned = unsigned.strip_prefix('$').unwrap_or(unsigned);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut groups = whole.split(',');
    let first = groups.next().unwrap_or_default();
    let is_grouped = whole.contains(',');
    let well_grouped =
        (!is_grouped || first.len() <= 3) && groups.all(|group| group.len() == 3 && is_digits(group));
    if !is_digits(first) || !well_grouped || !is_digits(fraction) {
        return None;
    }
    let number: f64 = format!("{}.{fraction}", whole.replace(',', "")).parse().ok()?;
    Some(if written.starts_with('-') { -number } else { number })
}

fn single_quotes(text: &str) -> Option<String> {
    text.contains("\"\"").then(|| text.replace("\"\"", "\""))
}

/// One blank between words and none at the ends.
fn spaced(text: &str) -> Option<String> {
    let is_space = |c: char| c.is_whitespace() || c.is_control();
    let words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    let spaced = words.join(" ");
    (spaced != text).then_some(spaced)
}

fn ungarbled(text: &str) -> Option<String> {
    let characters: Vec<char> = text.chars().collect();
    let is_garbled = (1..characters.len()).any(|index| {
        let after = characters.get(index + 1).copied();
        shows_mac_roman(characters[index - 1], characters[index], after)
    });
    if !is_garbled {
        return None;
    }
    characters.into_iter().map(|c| if c.is_ascii() { Some(c) } else { other_set(c) }).collect()
}

fn shows_mac_roman(before: char, character: char, after: Option<char>) -> bool {
    let in_word = before.is_ascii_lowercase()
        || (before.is_ascii_alphabetic() && after.is_some_and(|after| after.is_ascii_lowercase()));
    match character {
        '‡' | '‰' | '˘' => before.is_ascii_alphabetic(),
        'Ω' => before.is_ascii_digit(),
        _ => !character.is_ascii() && character.is_uppercase() && in_word,
    }
}

/// The Windows-1252 character of the byte that Mac Roman shows as `character`.
fn other_set(character: char) -> Option<char> {
    let index = MAC_ROMAN.chars().position(|c| c == character)?;
    let control = WINDOWS_1252.chars().nth(index);
    let right = control.or_else(|| u8::try_from(0x80 + index).ok().map(char::from))?;
    (right != char::REPLACEMENT_CHARACTER).then_some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mend: Mend, text: &str, expected: Option<&str>) {
        assert_eq!(mend(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn a_title_in_the_wrong_character_set_is_put_right() {
        let cases = [
            ("LÈon", "Léon"),
            ("DÈj‡ Vu", "Déjà Vu"),
            ("CachÈ", "Caché"),
            ("La MÙme", "La Môme"),
            ("Die F‰lscher", "Die Fälscher"),
            ("Joyeux NoÎl", "Joyeux Noël"),
            ("Per qualche dollaro in pi˘", "Per qualche dollaro in più"),
            ("The Naked Gun 2Ω: The Smell of Fear", "The Naked Gun 2½: The Smell of Fear"),
            ("Obsluhoval jsem anglickÈho kr·le", "Obsluhoval jsem anglického krále"),
        ];
        for (garbled, right) in cases {
            check(ungarbled, garbled, Some(right));
        }
    }

    #[test]
    fn a_title_that_may_be_right_is_left_alone() {
        let right = [
            "Léon",
            "NOËL",
            "École",
            "I Love You Ö Don't Touch Me!",
            "Alien³",
            "Ri¢hie Ri¢h",
            "100 ‰",
            "Ω",
            "",
        ];
        for title in right {
            check(ungarbled, title, None);
        }
        // Ω is no letter of the other set here, and 漢 of neither: what cannot go back whole stays whole.
        check(ungarbled, "LÈon 漢", None);
    }

    #[test]
    fn the_character_sets_have_a_place_for_every_byte() {
        assert_eq!(MAC_ROMAN.chars().count(), 128);
        assert_eq!(WINDOWS_1252.chars().count(), 32);
    }

    #[test]
    fn blanks_quotes_and_articles_are_put_in_order() {
        check(spaced, "  The Helix...  Loaded\t", Some("The Helix... Loaded"));
        check(spaced, "The Helix", None);
        check(spaced, " \u{0}\n ", Some(""));
        check(single_quotes, "Jeff \"\"King Jeff\"\" Hollins", Some("Jeff \"King Jeff\" Hollins"));
        check(single_quotes, "\"Q\"", None);
        check(upright, "Story of Bonnie and Clyde, The", Some("The Story of Bonnie and Clyde"));
        check(upright, "Me, Myself & Irene", None);
        check(upright, ", The", None);
    }

    #[test]
    fn numbers_are_read_out_of_text() {
        let cases = [
            ("12", Some(12.0)),
            (" $1,234,567 ", Some(1_234_567.0)),
            ("6.1", Some(6.1)),
            ("-5", Some(-5.0)),
            ("-$5", Some(-5.0)),
            ("", None),
            ("$", None),
            ("1,23", None),
            ("1234,567", None),
            ("1,", None),
            (".5", None),
            ("5.", None),
            ("1e9", None),
            ("inf", None),
            ("12 million", None),
        ];
        for (written, expected) in cases {
            assert_eq!(number(written), expected, "{written}");
        }
    }
}
