//! Slots: how many tasks of a tenant, of a kind, and of a kind under one key, are leased at once on all hosts together.
//!
//! A task takes its slots when it is leased and has them as long as the lease lasts, however that ends: nothing is given
//! back, a slot is free when the lease that took it is over. A task for which there is none waits, as behind a pause; when
//! one is free it is kept for whoever waits for it first, in the order of their places.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::id::{KindId, TenantId};

/// Most slots of a kind or a key.
pub const SLOTS_MAX: u32 = 10_000;
/// Slots of a key where nobody says how many.
pub const SLOTS_PER_KEY: u32 = 1;

/// How many tasks of a kind run at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Concurrency {
    /// In all; `None` is any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Of those that name the same key; `None` is [`SLOTS_PER_KEY`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_key: Option<u32>,
}

/// Stands for every kind of a tenant, where a slot is the tenant's.
pub const EVERY_KIND: KindId = KindId(0);

/// What every kind declares that declares something, and what every tenant may that may not have any number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concurrencies {
    /// By kind.
    pub kinds: HashMap<KindId, Concurrency>,
    /// Tasks of a tenant.
    pub tenants: HashMap<TenantId, u32>,
}

impl Concurrencies {
    /// Whether any number of tasks without keys may run.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.tenants.is_empty()
    }
}

impl Concurrency {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Concurrency::default()
    }

    /// Whether every number is one that can be asked for.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |number: &u32| !(1..=SLOTS_MAX).contains(number);
        match [self.max, self.per_key].iter().flatten().find(|number| wrong(number)) {
            Some(number) => Err(format!("{number} is not a number from 1 to {SLOTS_MAX}")),
            None => Ok(()),
        }
    }

    /// What a kind asks for, within what its tenant allows: a policy narrows, or says what the kind does not.
    #[must_use]
    pub fn within(self, policy: Concurrency) -> Concurrency {
        let smaller = |own: Option<u32>, other: Option<u32>| match (own, other) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        Concurrency { max: smaller(self.max, policy.max), per_key: smaller(self.per_key, policy.per_key) }
    }
}

/// What a slot is of: a tenant, a kind, or a key of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Whose.
    pub tenant: TenantId,
    /// The kind; [`EVERY_KIND`] for the whole tenant.
    pub kind: KindId,
    /// The key; empty for the whole kind or tenant, as no key is.
    pub key: String,
}

impl Slot {
    /// How many there are of it; `None` is any number.
    pub fn limit(&self, declared: &Concurrencies) -> Option<u32> {
        if self.kind == EVERY_KIND {
            return declared.tenants.get(&self.tenant).copied();
        }
        let declared = declared.kinds.get(&self.kind).copied().unwrap_or_default();
        if self.key.is_empty() { declared.max } else { Some(declared.per_key.unwrap_or(SLOTS_PER_KEY)) }
    }
}

/// The slots that a task needs, in the order in which it takes them: it keeps that of its key while it waits for one of its
/// kind, and both while it waits for one of its tenant, and never the other way round, so that no two wait for each other.
pub fn needed(tenant: TenantId, kind: KindId, key: Option<&str>, declared: &Concurrencies) -> Vec<Slot> {
    let whole = declared.kinds.get(&kind).is_some_and(|declared| declared.max.is_some());
    let of_tenant = declared.tenants.contains_key(&tenant).then_some((EVERY_KIND, ""));
    let names = key.map(|key| (kind, key)).into_iter().chain(whole.then_some((kind, ""))).chain(of_tenant);
    names.map(|(kind, key)| Slot { tenant, kind, key: key.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(max: Option<u32>, per_key: Option<u32>) -> Concurrency {
        Concurrency { max, per_key }
    }

    #[test]
    fn a_policy_narrows_and_says_what_a_kind_does_not() {
        let check = |own, policy, expected| {
            assert_eq!(of(own, own).within(of(policy, policy)), of(expected, expected));
        };
        check(None, None, None);
        check(Some(3), None, Some(3));
        check(None, Some(2), Some(2));
        check(Some(3), Some(2), Some(2));
        check(Some(2), Some(3), Some(2));
    }

    #[test]
    fn numbers_have_limits() {
        let fits = |number| of(Some(number), None).check().is_ok() && of(None, Some(number)).check().is_ok();
        assert!(fits(1) && fits(SLOTS_MAX));
        let both_refuse =
            |number| of(Some(number), None).check().is_err() && of(None, Some(number)).check().is_err();
        assert!(both_refuse(0) && both_refuse(SLOTS_MAX + 1));
    }

    #[test]
    fn a_task_needs_the_slots_of_its_kind_and_of_its_key() {
        let (tenant, limited, free) = (TenantId(1), KindId(2), KindId(3));
        let kinds = [(limited, of(Some(4), None)), (KindId(4), of(None, Some(5)))].into();
        let mut declared = Concurrencies { kinds, ..Concurrencies::default() };
        let check_by = |declared: &Concurrencies, kind, key, expected: &[(&str, Option<u32>)]| {
            let slots = needed(tenant, kind, key, declared);
            let found: Vec<_> = slots.iter().map(|slot| (slot.key.as_str(), slot.limit(declared))).collect();
            assert_eq!(found, expected);
        };
        let check = |kind, key, expected: &[_]| check_by(&declared, kind, key, expected);
        check(free, None, &[]);
        check(free, Some("k"), &[("k", Some(1))]);
        check(limited, None, &[("", Some(4))]);
        check(limited, Some("k"), &[("k", Some(1)), ("", Some(4))]);
        check(KindId(4), None, &[]);
        check(KindId(4), Some("k"), &[("k", Some(5))]);
        declared.tenants.insert(TenantId(9), 1);
        check_by(&declared, free, None, &[]);
        declared.tenants.insert(tenant, 7);
        check_by(&declared, free, None, &[("", Some(7))]);
        check_by(&declared, limited, Some("k"), &[("k", Some(1)), ("", Some(4)), ("", Some(7))]);
    }
}
