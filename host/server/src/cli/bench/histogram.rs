//! Latencies, counted in buckets of which none is wider than a 32nd of what it counts: memory does not grow with their
//! number, and percentiles are right to 3 %.

/// Buckets for each power of two.
const PARTS: u64 = 32;
const PARTS_BITS: u32 = PARTS.trailing_zeros();

/// Counted microseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    counts: Vec<u64>,
    total: u64,
    maximum: u64,
}

impl Latencies {
    /// Counts one.
    pub(super) fn add(&mut self, microseconds: u64) {
        let at = bucket(microseconds);
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.total += 1;
        self.maximum = self.maximum.max(microseconds);
    }

    /// Adds what another counted.
    pub(super) fn merge(&mut self, other: &Latencies) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
        self.total += other.total;
        self.maximum = self.maximum.max(other.maximum);
    }

    /// At most this long were so many in a hundred (nearest rank); 0 of none.
    pub(super) fn at(&self, percent: f64) -> u64 {
        let rank = ((self.total as f64 * percent / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(at).min(self.maximum);
            }
        }
        self.maximum
    }

    /// Upper bound and count of every bucket that has any.
    pub(super) fn buckets(&self) -> Vec<(u64, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(at, count)| (upper(at), *count)).collect()
    }
}

/// The bucket of a number: small ones have one each.
fn bucket(number: u64) -> usize {
    let power = (u64::BITS - number.leading_zeros()).saturating_sub(PARTS_BITS + 1);
    (u64::from(power) * PARTS + (number >> power)) as usize
}

/// The largest number of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let power = (bucket / PARTS).saturating_sub(1);
    let part = bucket - power * PARTS;
    ((part + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_a_32nd_wide_and_none_is_left_out() {
        let mut last = 0;
        for number in
            (0..10_000).chain((14..40).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]))
        {
            let at = bucket(number);
            assert!(upper(at) >= number && (at == 0 || upper(at - 1) < number), "{number}");
            assert!(upper(at) - number <= number / PARTS, "{number}");
            assert!(at >= last, "{number}");
            last = at;
        }
    }

    #[test]
    fn percentiles_are_nearest_ranks_of_everything_that_was_counted() {
        let mut odd = Latencies::default();
        let mut even = Latencies::default();
        assert_eq!(odd.at(50.0), 0);
        for number in 1..=20 {
            if number % 2 == 0 { even.add(number) } else { odd.add(number) }
        }
        odd.merge(&even);
        assert_eq!([50.0, 90.0, 99.0, 100.0].map(|percent| odd.at(percent)), [10, 18, 20, 20]);
        odd.add(1_000_000);
        assert_eq!(odd.at(100.0), 1_000_000);
        assert_eq!(odd.buckets().iter().map(|(_, count)| count).sum::<u64>(), 21);
    }
}
