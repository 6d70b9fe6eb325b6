//! Section 3: links and e-mail addresses.
//!
//! One pass from left to right, in which every character is looked at a bounded number of times.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::characters::{Class, Script, Text};

/// How many links, and how many e-mail addresses, the digest names.
const NAMED_MAX: usize = 100;
const LINK_CHARACTERS_MAX: usize = 2_048;
const LOCAL_CHARACTERS_MAX: usize = 64;
const DOMAIN_CHARACTERS_MAX: usize = 253;
const LABEL_CHARACTERS_MAX: usize = 63;

const LINK_STARTS: [&str; 3] = ["http://", "https://", "www."];

/// What was found, and where.
#[derive(Default)]
pub(crate) struct Addresses {
    /// In the order of the text, apart from each other.
    pub(crate) spans: Vec<Range<usize>>,
    pub(crate) links: Found,
    pub(crate) emails: Found,
}

/// Different addresses in the order in which each first appears.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) named: Vec<String>,
    /// How many more there are than the digest names.
    pub(crate) left_out: usize,
    seen: BTreeSet<String>,
}

impl Addresses {
    pub(crate) fn of(text: &Text) -> Self {
        let mut found = Self::default();
        let mut index = 0;
        while index < text.len() {
            let from = found.spans.last().map_or(0, |span| span.end);
            index = match text.characters[index] {
                'h' | 'H' | 'w' | 'W' => found.link(text, index),
                '@' => found.email(text, from, index),
                _ => index + 1,
            };
        }
        found
    }

    /// Takes the link that starts at `start`, if one does, and returns where to look on.
    fn link(&mut self, text: &Text, start: usize) -> usize {
        let Some(end) = link_end(text, start) else { return start + 1 };
        if end - start <= LINK_CHARACTERS_MAX {
            self.links.add(text.characters[start..end].iter().collect());
        }
        self.spans.push(start..end);
        end
    }

    /// Takes the address around the `@` at `at`, if there is one, and returns where to look on.
    fn email(&mut self, text: &Text, from: usize, at: usize) -> usize {
        let Some(span) = email_span(text, from, at) else { return at + 1 };
        let local = text.characters[span.start..at].iter();
        let domain = text.characters[at..span.end].iter().map(char::to_ascii_lowercase);
        self.emails.add(local.copied().chain(domain).collect());
        let end = span.end;
        self.spans.push(span);
        end
    }
}

impl Found {
    fn add(&mut self, address: String) {
        if self.seen.contains(&address) {
            return;
        }
        if self.named.len() < NAMED_MAX {
            self.named.push(address.clone());
        } else {
            self.left_out += 1;
        }
        self.seen.insert(address);
    }
}

fn link_end(text: &Text, start: usize) -> Option<usize> {
    let follows_word = start > 0 && text.classes[start - 1].is_spaced_word();
    let prefix = LINK_STARTS.iter().find(|prefix| starts_with(&text.characters[start..], prefix))?;
    if follows_word {
        return None;
    }
    let run = (start..text.len()).take_while(|&index| is_link_character(text, index)).count();
    let end = trimmed(&text.characters, start, start + run);
    let rest = (start + prefix.len()).min(end);
    is_host(text, rest, end, *prefix == "www.").then_some(end)
}

fn starts_with(characters: &[char], prefix: &str) -> bool {
    let matches = |(found, expected): (&char, char)| found.eq_ignore_ascii_case(&expected);
    characters.len() >= prefix.len() && characters.iter().zip(prefix.chars()).all(matches)
}

/// RFC 3986, and letters of scripts that put spaces between words.
fn is_link_character(text: &Text, index: usize) -> bool {
    let c = text.characters[index];
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c);
    }
    match text.classes[index] {
        Class::Letter(Script::Hangul) => false,
        class => class.is_spaced_word() || class == Class::Mark,
    }
}

/// The end without punctuation that belongs to the sentence; a bracket stays when its partner is inside.
fn trimmed(characters: &[char], start: usize, mut end: usize) -> usize {
    let count = |wanted: char| characters[start..end].iter().filter(|&&c| c == wanted).count();
    let mut round = count(')').saturating_sub(count('('));
    let mut square = count(']').saturating_sub(count('['));
    while end > start {
        let surplus = match characters[end - 1] {
            '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '*' | '_' | '~' => {
                end -= 1;
                continue;
            }
            ')' => &mut round,
            ']' => &mut square,
            _ => return end,
        };
        if *surplus == 0 {
            return end;
        }
        *surplus -= 1;
        end -= 1;
    }
    end
}

/// Something that can be a host follows the prefix; after `www.` it has a dot of its own.
fn is_host(text: &Text, start: usize, end: usize, needs_dot: bool) -> bool {
    let is_named = |index: usize| index < end && text.class(index).is_some_and(Class::is_letter_or_digit);
    if !needs_dot {
        return is_named(start) || (start < end && text.characters[start] == '[');
    }
    let is_inside = |&index: &usize| !"/?#:".contains(text.characters[index]);
    let has_dot =
        (start..end).take_while(is_inside).any(|index| text.characters[index] == '.' && is_named(index + 1));
    is_named(start) && has_dot
}

fn email_span(text: &Text, from: usize, at: usize) -> Option<Range<usize>> {
    let characters = &text.characters;
    let is_local =
        |index: usize| characters[index].is_ascii_alphanumeric() || "._%+-".contains(characters[index]);
    let run = (from..at).rev().take(LOCAL_CHARACTERS_MAX + 1).take_while(|&index| is_local(index)).count();
    let mut start = at - run;
    let follows_word = start > from && text.classes[start - 1].is_spaced_word();
    while start < at && matches!(characters[start], '.' | '-') {
        start += 1;
    }
    let local = &characters[start..at];
    let is_dotted_wrong = local.ends_with(&['.']) || local.windows(2).any(|pair| pair == ['.', '.']);
    if run > LOCAL_CHARACTERS_MAX || follows_word || local.is_empty() || is_dotted_wrong {
        return None;
    }
    domain_end(text, at + 1).map(|end| start..end)
}

fn domain_end(text: &Text, start: usize) -> Option<usize> {
    let characters = &text.characters;
    let is_domain =
        |index: usize| characters[index].is_ascii_alphanumeric() || "-.".contains(characters[index]);
    let run =
        (start..text.len()).take(DOMAIN_CHARACTERS_MAX + 1).take_while(|&index| is_domain(index)).count();
    let goes_on = |index: usize| characters[index] == '@' || text.classes[index].is_spaced_word();
    let mut end = start + run;
    if run > DOMAIN_CHARACTERS_MAX || (end < text.len() && goes_on(end)) {
        return None;
    }
    while end > start && matches!(characters[end - 1], '.' | '-') {
        end -= 1;
    }
    let labels: Vec<&[char]> = characters[start..end].split(|&c| c == '.').collect();
    let is_label = |label: &&[char]| {
        (1..=LABEL_CHARACTERS_MAX).contains(&label.len())
            && !label.starts_with(&['-'])
            && !label.ends_with(&['-'])
    };
    let last = labels.last()?;
    let is_top = last.len() >= 2 && last.iter().all(char::is_ascii_alphabetic);
    (labels.len() >= 2 && is_top && labels.iter().all(is_label)).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_links(text: &str, expected: &[&str]) {
        assert_eq!(Addresses::of(&Text::new(text)).links.named, expected, "{text}");
    }

    fn check_emails(text: &str, expected: &[&str]) {
        assert_eq!(Addresses::of(&Text::new(text)).emails.named, expected, "{text}");
    }

    #[test]
    fn links_end_where_the_sentence_goes_on() {
        check_links("See https://example.com/a?b=c#d. Then", &["https://example.com/a?b=c#d"]);
        check_links("(http://example.com/a)", &["http://example.com/a"]);
        check_links("http://en.wikipedia.org/wiki/A_(b), and", &["http://en.wikipedia.org/wiki/A_(b)"]);
        check_links("http://example.com/a_(b)).", &["http://example.com/a_(b)"]);
        check_links(
            "<https://example.com>, \"https://b.example\"!",
            &["https://example.com", "https://b.example"],
        );
        check_links("**https://example.com/a**", &["https://example.com/a"]);
        check_links("HTTPS://Example.com www.example.com: yes", &["HTTPS://Example.com", "www.example.com"]);
        check_links("http://[::1]:80/", &["http://[::1]:80/"]);
        check_links("看https://example.com/路径。", &["https://example.com/"]);
        check_links("看 https://example.com/a。再见", &["https://example.com/a"]);
        check_links("https://de.wikipedia.org/wiki/Käse?", &["https://de.wikipedia.org/wiki/Käse"]);
    }

    #[test]
    fn what_is_no_link_is_left_alone() {
        for text in [
            "http://",
            "https:// a",
            "xhttp://a.b",
            "www.",
            "www.a",
            "www..a.b",
            "ftp://a.b",
            "http://)",
            "h",
        ] {
            check_links(text, &[]);
        }
    }

    #[test]
    fn a_link_is_named_once_and_a_hundred_at_most() {
        check_links("http://a.b http://c.d http://a.b", &["http://a.b", "http://c.d"]);
        let many: String = (0..102).map(|number| format!("http://a.b/{number} ")).collect();
        let found = Addresses::of(&Text::new(&many)).links;
        assert_eq!((found.named.len(), found.left_out), (100, 2));
    }

    #[test]
    fn a_link_of_the_longest_length_is_named_and_a_longer_one_is_not() {
        let link = |length: usize| format!("http://a.b/{}", "c".repeat(length - 11));
        check_links(&link(2_048), &[&link(2_048)]);
        check_links(&link(2_049), &[]);
        assert_eq!(Addresses::of(&Text::new(&link(2_049))).spans.first(), Some(&(0..2_049)));
    }

    #[test]
    fn emails_are_found_in_running_text() {
        check_emails("Write to ann@example.com.", &["ann@example.com"]);
        check_emails("<mailto:Ann.B+c@Mail.Example.COM>", &["Ann.B+c@mail.example.com"]);
        check_emails("a@b.co, a@B.CO; c@d.org-", &["a@b.co", "c@d.org"]);
        check_emails("...ann@example.com", &["ann@example.com"]);
        check_emails("写信给ann@example.com吧", &["ann@example.com"]);
        check_emails("https://user@example.com/ ann@example.com", &["ann@example.com"]);
    }

    #[test]
    fn what_is_no_email_is_left_alone() {
        for text in [
            "@",
            "a@",
            "@b.com",
            "a@b",
            "a@b.c",
            "a@b.c1",
            "a..b@c.com",
            "a.@c.com",
            "a@-b.com",
            "a@b-.com",
            "a@b..com",
            "éa@b.com",
            "a@b.comé",
            "a@b.com@c.de@",
        ] {
            check_emails(text, &[]);
        }
        let long = |length: usize| format!("{}@example.com", "a".repeat(length));
        check_emails(&long(64), &[&long(64)]);
        check_emails(&long(65), &[]);
    }
}
