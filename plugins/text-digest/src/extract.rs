//! Section 7: the sentences that say most.
//!
//! H. P. Luhn, "The Automatic Creation of Literature Abstracts", IBM Journal of Research and Development 2 (1958): a
//! sentence is worth what its best cluster of significant words is worth.

use std::collections::{BTreeMap, BTreeSet};

use crate::characters::Text;
use crate::sentences::Sentence;

/// This many other words may stand between two significant ones of a cluster.
const GAP_MAX: usize = 4;
/// Scores are whole numbers of thousandths.
const SCALE: u64 = 1_000;

/// The best `wanted` different sentences, in the order of the text.
pub(crate) fn extract(text: &Text, sentences: &[Sentence], marks: &[bool], wanted: usize) -> Vec<String> {
    let mut ranked: Vec<(u64, usize)> = sentences
        .iter()
        .enumerate()
        .map(|(place, sentence)| (u64::MAX - score(&marks[sentence.words.clone()]), place))
        .collect();
    ranked.sort_unstable();
    let mut seen = BTreeSet::new();
    let mut chosen = BTreeMap::new();
    for (_, place) in ranked {
        if chosen.len() == wanted {
            break;
        }
        let shown = show(text, &sentences[place]);
        if seen.insert(shown.clone()) {
            chosen.insert(place, shown);
        }
    }
    chosen.into_values().collect()
}

/// The worth of the best cluster: significant words squared, by all words of the cluster.
fn score(marks: &[bool]) -> u64 {
    let mut best = 0;
    let mut cluster: Option<Cluster> = None;
    for (place, _) in marks.iter().enumerate().filter(|(_, is_significant)| **is_significant) {
        let grown = match cluster {
            Some(cluster) if place - cluster.last <= GAP_MAX + 1 => {
                Cluster { last: place, significant: cluster.significant + 1, ..cluster }
            }
            _ => Cluster { first: place, last: place, significant: 1 },
        };
        best = best.max(grown.score());
        cluster = Some(grown);
    }
    best
}

#[derive(Clone, Copy)]
struct Cluster {
    first: usize,
    last: usize,
    significant: u64,
}

impl Cluster {
    fn score(self) -> u64 {
        let words = (self.last - self.first + 1) as u64;
        SCALE * self.significant * self.significant / words
    }
}

/// The sentence on one line.
fn show(text: &Text, sentence: &Sentence) -> String {
    let mut shown = String::new();
    for index in sentence.span.clone() {
        if !text.classes[index].is_blank() {
            shown.push(text.characters[index]);
        } else if !shown.ends_with(' ') {
            shown.push(' ');
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_worth_its_best_cluster() {
        for (marks, expected) in [
            ("", 0),
            ("....", 0),
            ("x", 1_000),
            ("x.x.x", 1_800),
            ("x....x", 1_000),
            ("xx.....xxx", 3_000),
            ("xxx.....xx", 3_000),
            ("x.....x", 1_000),
            ("xx..x", 2_000),
        ] {
            let words: Vec<bool> = marks.chars().map(|c| c == 'x').collect();
            assert_eq!(score(&words), expected, "{marks}");
        }
    }
}
