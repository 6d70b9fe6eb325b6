//! How a processor gathers: what it asks for, narrowed by the tenant's policy.

use crate::limit::{
    BATCH_AGE_MS, BATCH_AGE_MS_MAX, BATCH_ATTEMPTS, BATCH_ATTEMPTS_MAX, BATCH_BYTES, BATCH_BYTES_MAX,
    BATCH_IN_FLIGHT, BATCH_IN_FLIGHT_MAX, BATCH_ITEMS, BATCH_ITEMS_MAX, KIB, MIB,
};

/// What a manifest or the configuration asks for; what is `None` is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Items of a batch at most.
    pub items: Option<u64>,
    /// KiB of a batch at most; the first item always fits.
    pub kib: Option<u64>,
    /// Milliseconds that the oldest item waits at most.
    pub age_ms: Option<u64>,
    /// Times an item is handed over before it becomes a dead letter.
    pub attempts: Option<u64>,
    /// Batches that one host works at once.
    pub in_flight: Option<u64>,
    /// Whether there is one batch at a time of each key, on all hosts together.
    pub ordered: bool,
    /// Whether items are in memory only: bounded, and lost with the host.
    pub volatile: bool,
    /// Milliseconds that a run should take: batches grow and shrink between `items-min` and `items` to meet it.
    pub latency_ms: Option<u64>,
    /// Least items of a batch whose size follows `latency-ms`.
    pub items_min: Option<u64>,
}

impl Wish {
    /// Whether it makes sense, whatever the policy: sizes of 0 would gather nothing for ever.
    pub fn check(&self) -> Result<(), String> {
        let numbers = [
            ("items", self.items),
            ("kib", self.kib),
            ("age-ms", self.age_ms),
            ("attempts", self.attempts),
            ("in-flight", self.in_flight),
            ("latency-ms", self.latency_ms),
            ("items-min", self.items_min),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, number)| *number == Some(0)) {
            return Err(format!("`{name}` is 0"));
        }
        if self.items_min.is_some() && self.latency_ms.is_none() {
            return Err("`items-min` needs `latency-ms`".to_owned());
        }
        if self.items_min > Some(self.items.unwrap_or(BATCH_ITEMS)) {
            return Err("`items-min` exceeds `items`".to_owned());
        }
        Ok(())
    }
}

/// What a tenant's policy allows its processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Items of a batch.
    pub items_max: u64,
    /// Bytes of a batch.
    pub bytes_max: u64,
    /// Milliseconds that an item waits for others.
    pub age_ms_max: u64,
    /// Batches of one processor that one host works at once.
    pub in_flight_max: u64,
    /// Items that wait, of all processors together.
    pub waiting_items_max: u64,
    /// Bytes of the items that wait, of all processors together.
    pub waiting_bytes_max: u64,
    /// Bytes of items that one host has in memory for the tenant.
    pub memory_bytes_max: u64,
    /// Whether sizes may follow a latency.
    pub adaptive: bool,
}

impl Default for BatchPolicy {
    fn default() -> BatchPolicy {
        BatchPolicy {
            items_max: BATCH_ITEMS_MAX,
            bytes_max: BATCH_BYTES_MAX,
            age_ms_max: BATCH_AGE_MS_MAX,
            in_flight_max: BATCH_IN_FLIGHT_MAX,
            waiting_items_max: 1_000_000,
            waiting_bytes_max: 1024 * MIB,
            memory_bytes_max: 64 * MIB,
            adaptive: true,
        }
    }
}

/// How a processor gathers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Items of a batch at most; at least 1.
    pub items_max: u64,
    /// Bytes of a batch at most; the first item always fits.
    pub bytes_max: u64,
    /// Milliseconds that the oldest item waits at most.
    pub age_ms: u64,
    /// Times an item is handed over before it becomes a dead letter.
    pub attempts_max: u32,
    /// Batches that one host works at once.
    pub in_flight_max: u64,
    /// Whether there is one batch at a time of each key.
    pub ordered: bool,
    /// Whether items are in memory only.
    pub volatile: bool,
    /// The size follows this latency.
    pub adapt: Option<Adapt>,
}

/// How the size of batches follows their latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adapt {
    /// Milliseconds that a run should take.
    pub latency_ms: u64,
    /// Least items of a batch.
    pub items_min: u64,
}

impl Settings {
    /// What a wish becomes under a policy, which narrows it: its author does not know the tenant.
    pub fn of(policy: &BatchPolicy, wish: &Wish) -> Settings {
        let items_max = wish.items.unwrap_or(BATCH_ITEMS).min(policy.items_max).max(1);
        let adapt = wish
            .latency_ms
            .filter(|_| policy.adaptive)
            .map(|latency_ms| Adapt { latency_ms, items_min: wish.items_min.unwrap_or(1).min(items_max) });
        let attempts = wish.attempts.unwrap_or(BATCH_ATTEMPTS).clamp(1, BATCH_ATTEMPTS_MAX);
        Settings {
            items_max,
            bytes_max: wish
                .kib
                .map_or(BATCH_BYTES, |kib| kib.saturating_mul(KIB))
                .min(policy.bytes_max)
                .max(1),
            age_ms: wish.age_ms.unwrap_or(BATCH_AGE_MS).min(policy.age_ms_max),
            attempts_max: u32::try_from(attempts).unwrap_or(u32::MAX),
            in_flight_max: wish.in_flight.unwrap_or(BATCH_IN_FLIGHT).min(policy.in_flight_max).max(1),
            ordered: wish.ordered,
            volatile: wish.volatile,
            adapt,
        }
    }

    /// The size that the first batch has.
    pub fn first_size(&self) -> u64 {
        self.adapt.map_or(self.items_max, |adapt| adapt.items_min)
    }

    /// The size after a run of `items` that took `elapsed_ms`: a step more when a batch of the whole size was quick
    /// enough, half when it was not (additive increase, multiplicative decrease).
    pub fn next_size(&self, size: u64, items: u64, elapsed_ms: u64) -> u64 {
        let Some(adapt) = self.adapt else { return self.items_max };
        let next = if elapsed_ms > adapt.latency_ms {
            size / 2
        } else if items >= size {
            size + (self.items_max / 20).max(1)
        } else {
            size
        };
        next.clamp(adapt.items_min, self.items_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_a_hundred_items_and_five_seconds() {
        let settings = Settings::of(&BatchPolicy::default(), &Wish::default());
        assert_eq!((settings.items_max, settings.age_ms), (100, 5_000));
        assert!(!settings.ordered && !settings.volatile && settings.adapt.is_none());
        assert_eq!(settings.first_size(), 100);
    }

    #[test]
    fn a_policy_narrows_and_never_widens() {
        let wish = Wish {
            items: Some(u64::MAX),
            kib: Some(u64::MAX),
            age_ms: Some(u64::MAX),
            attempts: Some(u64::MAX),
            in_flight: Some(u64::MAX),
            latency_ms: Some(10),
            ..Wish::default()
        };
        let policy = BatchPolicy {
            items_max: 7,
            bytes_max: 8,
            age_ms_max: 9,
            in_flight_max: 2,
            ..BatchPolicy::default()
        };
        let settings = Settings::of(&policy, &wish);
        assert_eq!((settings.items_max, settings.bytes_max, settings.age_ms), (7, 8, 9));
        assert_eq!((settings.in_flight_max, u64::from(settings.attempts_max)), (2, BATCH_ATTEMPTS_MAX));
        assert!(settings.adapt.is_some());
        let policy = BatchPolicy { adaptive: false, ..policy };
        assert_eq!(Settings::of(&policy, &wish).adapt, None);
        let least = BatchPolicy { items_max: 0, bytes_max: 0, in_flight_max: 0, ..policy };
        let settings = Settings::of(&least, &Wish::default());
        assert_eq!((settings.items_max, settings.bytes_max, settings.in_flight_max), (1, 1, 1));
    }

    #[test]
    fn sizes_of_nothing_are_refused() {
        let check = |wish: Wish, expected: Option<&str>| {
            assert_eq!(wish.check().err().as_deref(), expected, "{wish:?}");
        };
        check(Wish::default(), None);
        check(Wish { items: Some(0), ..Wish::default() }, Some("`items` is 0"));
        check(Wish { age_ms: Some(0), ..Wish::default() }, Some("`age-ms` is 0"));
        check(Wish { items_min: Some(1), ..Wish::default() }, Some("`items-min` needs `latency-ms`"));
        let adaptive = Wish { latency_ms: Some(1), items_min: Some(100), ..Wish::default() };
        check(adaptive.clone(), None);
        check(Wish { items_min: Some(101), ..adaptive }, Some("`items-min` exceeds `items`"));
    }

    #[test]
    fn sizes_follow_the_latency_between_their_bounds() {
        let wish = Wish { items: Some(200), latency_ms: Some(50), items_min: Some(10), ..Wish::default() };
        let settings = Settings::of(&BatchPolicy::default(), &wish);
        assert_eq!(settings.first_size(), 10);
        assert_eq!(settings.next_size(10, 10, 50), 20);
        assert_eq!(settings.next_size(10, 9, 50), 10, "a part of a batch says nothing of the whole");
        assert_eq!(settings.next_size(40, 40, 51), 20);
        assert_eq!(settings.next_size(12, 12, 51), 10);
        assert_eq!(settings.next_size(195, 200, 0), 200);
        let fixed = Settings::of(&BatchPolicy::default(), &Wish::default());
        assert_eq!(fixed.next_size(3, 3, 9_999), 100);
    }
}
