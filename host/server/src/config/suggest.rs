//! "Did you mean": the known name nearest to one that is not known.

/// The nearest of `known` that is at most two letters away and closer than a guess.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|name| (distance(word, name), *name)).min_by_key(|(far, _)| *far)?;
    (near.0 <= 2 && near.0 < near.1.len() / 2 + 1).then_some(near.1)
}

/// Letters to insert, delete or change between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = change.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_a_stranger_finds_none() {
        let known = ["fuel", "fuel_max", "memory_mib", "queue_max"];
        let check = |word, expected| assert_eq!(nearest(word, &known), expected, "{word}");
        check("fule", Some("fuel"));
        check("memory-mib", Some("memory_mib"));
        check("queuemax", Some("queue_max"));
        check("color", None);
        check("", None);
    }
}
