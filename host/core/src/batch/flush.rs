//! When what waits is handed over, and how much of it.
//!
//! Each group has a clock of its own, started by its oldest item. The first item of a batch is exempt from the limit in
//! bytes, or it could never leave; an item that fills a batch by itself therefore goes at once.

use super::settings::Settings;

/// What a group has waiting, as far as a rule looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gathered {
    /// Items; at least one.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was added.
    pub oldest_ms: i64,
    /// Somebody asked for a flush.
    pub requested: bool,
}

/// Why a group is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There are as many items or bytes as a batch has at most.
    Full,
    /// Its oldest item has waited for as long as it may.
    Age,
    /// Somebody asked.
    Requested,
}

/// Whether a group is due, `size` being how many items a batch has now.
pub fn due(gathered: &Gathered, settings: &Settings, size: u64, now_ms: i64) -> Option<Why> {
    // The clock first: a group that is both has waited, and says so.
    if now_ms >= deadline_ms(gathered.oldest_ms, settings) {
        Some(Why::Age)
    } else if gathered.requested {
        // Before what is full: of what is asked for, everything goes, also what is left behind full batches.
        Some(Why::Requested)
    } else if gathered.items >= size || gathered.bytes >= settings.bytes_max {
        Some(Why::Full)
    } else {
        None
    }
}

/// When a group with this oldest item is due at the latest.
pub fn deadline_ms(oldest_ms: i64, settings: &Settings) -> i64 {
    oldest_ms.saturating_add_unsigned(settings.age_ms)
}

/// How many of these items, given by their bytes in order, go into one batch.
pub fn take(sizes: &[u64], size: u64, bytes_max: u64) -> usize {
    let mut sum = 0u64;
    let fits = sizes.iter().enumerate().take_while(|&(at, bytes)| {
        sum = sum.saturating_add(*bytes);
        at == 0 || (at as u64) < size && sum <= bytes_max
    });
    fits.count()
}

#[cfg(test)]
mod tests {
    use super::super::settings::{BatchPolicy, Wish};
    use super::*;

    fn settings() -> Settings {
        let wish = Wish { items: Some(10), kib: Some(1), age_ms: Some(100), ..Wish::default() };
        Settings::of(&BatchPolicy::default(), &wish)
    }

    /// A group whose oldest item was added at 1,000.
    fn check(items: u64, bytes: u64, requested: bool, now_ms: i64, expected: Option<Why>) {
        let gathered = Gathered { items, bytes, oldest_ms: 1_000, requested };
        assert_eq!(due(&gathered, &settings(), 10, now_ms), expected, "{gathered:?} at {now_ms}");
    }

    #[test]
    fn a_group_is_due_by_count_bytes_age_or_on_request() {
        check(1, 1, false, 1_000, None);
        check(9, 1_023, false, 1_099, None);
        check(10, 10, false, 1_000, Some(Why::Full));
        check(11, 11, false, 1_000, Some(Why::Full));
        check(1, 1_024, false, 1_000, Some(Why::Full));
        check(1, 1, true, 1_000, Some(Why::Requested));
        check(1, 1, false, 1_100, Some(Why::Age));
        check(1, 1, false, i64::MAX, Some(Why::Age));
        check(10, 10, false, 1_100, Some(Why::Age));
        check(10, 10, true, 1_000, Some(Why::Requested));
        // A clock that was set back makes nothing due.
        check(1, 1, false, 0, None);
    }

    #[test]
    fn a_lone_item_is_flushed_when_its_time_is_over() {
        check(1, 1, false, 1_099, None);
        check(1, 1, false, 1_100, Some(Why::Age));
    }

    #[test]
    fn an_oversized_item_goes_at_once_and_alone() {
        check(1, 5_000, false, 1_000, Some(Why::Full));
        assert_eq!(take(&[5_000, 1], 10, 1_024), 1);
        assert_eq!(take(&[1, 5_000], 10, 1_024), 1);
    }

    #[test]
    fn a_batch_keeps_to_its_items_and_bytes_except_for_its_first() {
        let check = |sizes: &[u64], expected| assert_eq!(take(sizes, 3, 10), expected, "{sizes:?}");
        check(&[], 0);
        check(&[1, 1, 1], 3);
        check(&[1, 1, 1, 1], 3);
        check(&[5, 5, 1], 2);
        check(&[5, 6], 1);
        check(&[11], 1);
        check(&[u64::MAX, u64::MAX], 1);
        assert_eq!(take(&[1, 1], 0, 0), 1, "the first item is exempt from every limit");
    }
}
