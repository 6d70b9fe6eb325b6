//! What the stores of batches have in common: which items go into a batch, which adds are taken, what ends change. Each
//! store loads what these rules look at and writes what they decided.

use std::collections::{BTreeMap, HashMap, HashSet};

use keiko_core::batch::flush::{Why, take};
use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{Add, Added, BatchSettlement, Item, ItemEnd, NewItem, Waiting};
use keiko_core::id::{ItemId, TaskId, TenantId};
use keiko_core::outcome::Failure;
use keiko_core::task::{Settled, Settlement, Transition};

use crate::admit::{Keys, Stood};

/// An item that waits, as far as a batch looks at it before it loads the payload. Times are the caller's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: i64,
    pub(crate) created_ms: i64,
    pub(crate) due_ms: i64,
    pub(crate) attempts: u32,
    pub(crate) size: u64,
}

impl Candidate {
    /// When it makes its group due: at its age, or when it is tried again.
    fn at_ms(&self, form: &Form) -> i64 {
        let age_ms = self.created_ms.saturating_add_unsigned(form.age_ms);
        if self.attempts > 0 { self.due_ms } else { age_ms.max(self.due_ms) }
    }
}

/// What the rule decided.
pub(crate) struct Gathered {
    /// The items of the batch, in order; none when none is due.
    pub(crate) ids: Vec<i64>,
    /// What the group has left, as far as the candidates tell; `None` when those must be asked that are not due.
    pub(crate) left: Option<Left>,
    /// When the first of those that were not taken makes the group due.
    pub(crate) at_ms: Option<i64>,
}

/// How many candidates a rule needs to see: one more than a batch takes.
pub(crate) fn wanted(form: &Form) -> i64 {
    i64::try_from(form.items_max).unwrap_or(i64::MAX).saturating_add(1)
}

/// Decides what a batch takes of `candidates`: the first items of the group by place, [`wanted`] of them; of a group
/// without order only those that are due.
pub(crate) fn gather(candidates: &[Candidate], form: &Form, now_ms: i64) -> Gathered {
    let is_due = |candidate: &&Candidate| candidate.due_ms <= now_ms;
    let ready: Vec<&Candidate> = candidates.iter().take_while(is_due).collect();
    let sizes: Vec<u64> = ready.iter().map(|candidate| candidate.size).collect();
    let count = take(&sizes, form.items_max, form.bytes_max);
    let is_full = count < ready.len()
        || count as u64 >= form.items_max
        || sizes.iter().fold(0u64, |sum, size| sum.saturating_add(*size)) >= form.bytes_max;
    let is_aged = ready.iter().any(|candidate| candidate.at_ms(form) <= now_ms);
    let goes = count > 0 && (is_full || is_aged || form.why == Why::Requested);
    let count = if goes { count } else { 0 };
    let rest = &candidates[count..];
    let at_ms = match form.ordered {
        true => rest.first().map(|candidate| candidate.at_ms(form)),
        false => rest.iter().map(|candidate| candidate.at_ms(form)).min(),
    };
    let left = match (form.ordered, rest.first()) {
        // Of an ordered group everything is seen in order.
        (true, None) if (candidates.len() as i64) < wanted(form) => Some(Left::Nothing),
        (true, Some(next)) if !goes || next.due_ms > now_ms => Some(Left::Due(next.at_ms(form))),
        (_, Some(_)) if goes => Some(Left::Unknown),
        _ => None,
    };
    Gathered { ids: candidates[..count].iter().map(|candidate| candidate.id).collect(), left, at_ms }
}

/// What a group has left of which nothing more is due: `next_ms` is when the first of the others makes it so.
pub(crate) fn left(at_ms: Option<i64>, next_ms: Option<i64>) -> Left {
    at_ms.into_iter().chain(next_ms).min().map_or(Left::Nothing, Left::Due)
}

/// The items of a batch in the order of their ids there; those whose rows are missing are left out.
pub(crate) fn in_order(ids: &[i64], mut items: BTreeMap<i64, Item>) -> Vec<Item> {
    ids.iter().filter_map(|id| items.remove(id)).collect()
}

/// The place of an item that is tried again: behind those that are added until then, except in an ordered group.
pub(crate) fn place_again(due_ms: i64) -> i64 {
    TaskId::floor(due_ms).0
}

/// The answer to an add. What it takes is taken from `keys` and `waiting` at once, for the adds behind it.
pub(crate) fn decide(add: &Add, now_ms: i64, keys: &mut Keys, waiting: &mut Waiting) -> Added {
    let count = u32::try_from(add.items.len()).unwrap_or(u32::MAX);
    let known = add.key.as_ref().and_then(|key| keys.find(add.tenant, &key.text, now_ms));
    if let (Some(key), Some(known)) = (&add.key, known) {
        return if known.body == key.body {
            let Stood { first, count, .. } = known.tasks.clone();
            Added::Accepted { first: ItemId(first.0), count, duplicate: true }
        } else {
            Added::Conflict
        };
    }
    let Some(first) = add.items.first().map(|item| item.id) else {
        return Added::Accepted { first: ItemId(0), count: 0, duplicate: false };
    };
    let more = sum(&add.items);
    let (items, bytes) = (waiting.items + more.items, waiting.bytes.saturating_add(more.bytes));
    if items > add.items_max || bytes > add.bytes_max {
        return Added::QueueFull(*waiting);
    }
    *waiting = Waiting { items, bytes };
    if let Some(key) = &add.key {
        let items = Stood { first: TaskId(first.0), count, ids: None };
        keys.remember(add.tenant, key, items, now_ms);
    }
    Added::Accepted { first, count, duplicate: false }
}

/// Whether adds that were taken keep to their limits, when `waiting` is what waits with all of them.
pub(crate) fn still_fit(taken: &[&Add], mut waiting: HashMap<TenantId, Waiting>) -> bool {
    taken.iter().rev().all(|add| {
        let Some(with) = waiting.get_mut(&add.tenant) else { return true };
        let fits = with.items <= add.items_max && with.bytes <= add.bytes_max;
        let own = sum(&add.items);
        with.items = with.items.saturating_sub(own.items);
        with.bytes = with.bytes.saturating_sub(own.bytes);
        fits
    })
}

/// How much items are together.
pub(crate) fn sum(items: &[NewItem]) -> Waiting {
    let bytes = items.iter().fold(0u64, |sum, item| sum.saturating_add(item.size()));
    Waiting { items: items.len() as u64, bytes }
}

/// Changes of what tenants have waiting: items and bytes, in the order of the tenants.
#[derive(Default)]
pub(crate) struct WaitingChanges(BTreeMap<i64, (i64, i64)>);

impl WaitingChanges {
    pub(crate) fn add(&mut self, tenant: TenantId, items: i64, bytes: i64) {
        let sum = self.0.entry(tenant.0).or_default();
        sum.0 += items;
        sum.1 += bytes;
    }

    pub(crate) fn add_items(&mut self, items: &[(TenantId, &NewItem)]) {
        for (tenant, item) in items {
            self.add(*tenant, 1, item.size() as i64);
        }
    }

    /// Tenant, items, bytes.
    pub(crate) fn rows(&self) -> Vec<(i64, i64, i64)> {
        self.0.iter().map(|(tenant, (items, bytes))| (*tenant, *items, *bytes)).collect()
    }
}

/// What the settlements of a call change, of those whose lease holds.
#[derive(Default)]
pub(crate) struct Ends<'a> {
    /// Items that leave.
    pub(crate) gone: Vec<i64>,
    /// Those of them that are kept as rows.
    pub(crate) kept: Vec<i64>,
    /// Items that wait again: id, place, due.
    pub(crate) again: Vec<(i64, Option<i64>, i64)>,
    /// Items that become dead letters.
    pub(crate) dead: Vec<(i64, &'a Failure)>,
    /// Items that processors asked for.
    pub(crate) items: Vec<(TenantId, &'a NewItem)>,
}

impl<'a> Ends<'a> {
    /// Adds a settlement of a batch of these items; ends of other items are none.
    pub(crate) fn add(&mut self, one: &'a BatchSettlement, items: &[i64], ordered: bool) {
        let items: HashSet<i64> = items.iter().copied().collect();
        let mut seen = HashSet::new();
        for (id, end) in one.ends.iter().filter(|(id, _)| items.contains(&id.0)) {
            if !seen.insert(*id) {
                continue;
            }
            match end {
                ItemEnd::Done => {
                    self.gone.push(id.0);
                    if one.keep_rows {
                        self.kept.push(id.0);
                    }
                }
                ItemEnd::Retry { due_ms } => {
                    self.again.push((id.0, (!ordered).then(|| place_again(*due_ms)), *due_ms));
                }
                ItemEnd::Dead(failure) => {
                    self.gone.push(id.0);
                    self.dead.push((id.0, failure));
                }
            }
        }
        self.items.extend(one.effects.items.iter().map(|item| (one.tenant, item)));
    }
}

/// The items that tasks asked for which a call completed.
pub(crate) fn of_tasks<'a>(
    settlements: &'a [Settlement],
    answers: &[Settled],
) -> Vec<(TenantId, &'a NewItem)> {
    let completed = |(one, answer): &(&Settlement, &Settled)| {
        **answer == Settled::Stored && matches!(one.transition, Transition::Complete(_))
    };
    let stored = settlements.iter().zip(answers).filter(completed);
    stored.flat_map(|(one, _)| one.effects.items.iter().map(|item| (one.tenant, item))).collect()
}

/// What an add carries, roughly.
pub(crate) fn add_bytes(add: &Add) -> usize {
    sum(&add.items).bytes as usize
}

#[cfg(test)]
mod tests {
    use keiko_core::batch::Group;
    use keiko_core::id::ProcessorId;

    use super::*;

    const NOW: i64 = 10_000;

    fn form(ordered: bool, why: Why) -> Form {
        let group = Group { tenant: TenantId(1), processor: ProcessorId(1), key: String::new() };
        Form { group, why, items_max: 3, bytes_max: 100, age_ms: 1_000, ordered }
    }

    /// Items by age and wait until they are due again.
    fn candidates(items: &[(i64, Option<i64>)]) -> Vec<Candidate> {
        let candidate = |(id, (age_ms, again)): (i64, &(i64, Option<i64>))| Candidate {
            id,
            created_ms: NOW - age_ms,
            due_ms: again.map_or(NOW - age_ms, |wait_ms| NOW + wait_ms),
            attempts: u32::from(again.is_some()),
            size: 10,
        };
        (1..).zip(items).map(candidate).collect()
    }

    fn check(ordered: bool, why: Why, items: &[(i64, Option<i64>)], ids: &[i64], left: Option<Left>) {
        let gathered = gather(&candidates(items), &form(ordered, why), NOW);
        assert_eq!((gathered.ids.as_slice(), gathered.left), (ids, left), "{items:?}");
    }

    #[test]
    fn a_group_goes_when_it_is_full_or_has_waited_or_is_asked_for() {
        let young = (1, None);
        check(false, Why::Full, &[young, young], &[], None);
        check(false, Why::Requested, &[young, young], &[1, 2], None);
        check(false, Why::Age, &[young, (1_000, None)], &[1, 2], None);
        check(false, Why::Age, &[young, (999, None)], &[], None);
        check(false, Why::Full, &[young, young, young], &[1, 2, 3], None);
        check(false, Why::Full, &[young, young, young, young], &[1, 2, 3], Some(Left::Unknown));
        check(false, Why::Full, &[(0, Some(0))], &[1], None);
        check(false, Why::Full, &[], &[], None);
    }

    #[test]
    fn an_ordered_group_stops_at_the_first_that_must_wait() {
        let (old, later) = ((2_000, None), (2_000, Some(50)));
        check(true, Why::Age, &[old, later, old], &[1], Some(Left::Due(NOW + 50)));
        check(true, Why::Requested, &[later, old], &[], Some(Left::Due(NOW + 50)));
        check(true, Why::Age, &[old, old], &[1, 2], Some(Left::Nothing));
        check(true, Why::Full, &[(1, None), (1, None)], &[], Some(Left::Due(NOW + 999)));
        check(true, Why::Full, &[old, old, old, old], &[1, 2, 3], Some(Left::Unknown));
    }

    #[test]
    fn adds_fit_as_long_as_each_keeps_to_its_own_limit() {
        let add = |tenant, items_max, bytes_max| Add {
            tenant: TenantId(tenant),
            items: vec![new_item(), new_item()],
            key: None,
            items_max,
            bytes_max,
        };
        let each = new_item().size();
        let check = |adds: &[Add], items, bytes, expected| {
            let waiting = HashMap::from([(TenantId(1), Waiting { items, bytes })]);
            let taken: Vec<&Add> = adds.iter().collect();
            assert_eq!(still_fit(&taken, waiting), expected, "{items} items, {bytes} bytes of {adds:?}");
        };
        check(&[], 9, 0, true);
        check(&[add(1, 5, 1 << 20)], 5, 2 * each, true);
        check(&[add(1, 5, 1 << 20)], 6, 2 * each, false);
        check(&[add(1, 5, 4 * each)], 5, 4 * each, true);
        check(&[add(1, 5, 4 * each)], 5, 4 * each + 1, false);
        // What came behind an add is none of its business.
        check(&[add(1, 5, 1 << 20), add(1, 7, 1 << 20)], 7, 4 * each, true);
        check(&[add(1, 7, 1 << 20), add(1, 5, 1 << 20)], 7, 4 * each, false);
        check(&[add(1, 5, 1 << 20), add(2, 0, 0)], 5, 2 * each, true);
    }

    fn new_item() -> NewItem {
        NewItem {
            id: ItemId(1),
            processor: ProcessorId(1),
            key: String::new(),
            payload: keiko_core::batch::payload_of(1),
            created_ms: NOW,
        }
    }

    #[test]
    fn what_is_left_is_due_with_its_first() {
        let gathered = gather(&candidates(&[(1, None), (300, None)]), &form(false, Why::Full), NOW);
        assert_eq!(left(gathered.at_ms, Some(NOW + 900)), Left::Due(NOW + 700));
        assert_eq!(left(gathered.at_ms, Some(NOW + 1)), Left::Due(NOW + 1));
        assert_eq!(left(None, None), Left::Nothing);
    }
}
