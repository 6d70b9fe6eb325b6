//! What a tenant's uploads may take of the compiler: so many seconds in an hour, which come back evenly.

/// Over which the seconds come back.
const HOUR_MS: u64 = 3_600_000;

/// What a tenant's uploads have taken, as far as it has not come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compiling {
    taken_ms: u64,
    at_ms: i64,
}

impl Compiling {
    /// Whether another upload may be compiled at `now_ms`, of which an hour has `seconds`; else how many milliseconds later one may.
    /// What is under way is not counted: it takes a minute at most.
    pub fn admit(&mut self, seconds: u64, now_ms: i64) -> Result<(), u64> {
        let passed_ms = u64::try_from(now_ms.saturating_sub(self.at_ms)).unwrap_or(0).min(HOUR_MS);
        self.taken_ms = self.taken_ms.saturating_sub(passed_ms.saturating_mul(seconds) / (HOUR_MS / 1_000));
        self.at_ms = now_ms.max(self.at_ms);
        let most_ms = seconds.saturating_mul(1_000);
        if self.taken_ms < most_ms {
            return Ok(());
        }
        let over_ms = self.taken_ms - most_ms + 1;
        Err(over_ms.saturating_mul(HOUR_MS / 1_000).div_ceil(seconds.max(1)))
    }

    /// Adds what the compiler took.
    pub fn add(&mut self, ms: u64) {
        self.taken_ms = self.taken_ms.saturating_add(ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_has_so_many_seconds_to_the_last_one() {
        let mut compiling = Compiling::default();
        assert_eq!(compiling.admit(60, 1_000), Ok(()));
        compiling.add(59_999);
        assert_eq!(compiling.admit(60, 1_000), Ok(()));
        compiling.add(1);
        // A millisecond comes back in a minute's thousandth.
        assert_eq!(compiling.admit(60, 1_000), Err(60));
        assert_eq!(compiling.admit(60, 1_059), Err(60), "what came back is below a millisecond");
        assert_eq!(compiling.admit(60, 1_000 + 3_600_000), Ok(()));
    }

    #[test]
    fn what_was_taken_comes_back_evenly_whatever_the_clock_does() {
        let check = |taken_ms: u64, passed_ms: i64, expected: Result<(), u64>| {
            let mut compiling = Compiling { taken_ms, at_ms: 1_000_000 };
            assert_eq!(compiling.admit(3_600, 1_000_000 + passed_ms), expected, "{taken_ms} {passed_ms}");
        };
        check(3_600_000, 0, Err(1));
        check(3_600_000, 1, Ok(()));
        check(3_700_000, 100_000, Err(1));
        check(3_700_000, 100_001, Ok(()));
        check(3_600_000, -50_000, Err(1));
        check(7_200_000, i64::MAX - 1_000_000, Err(1));
    }
}
