//! What the stores of batches have in common: which items go into a batch, which adds are taken, what ends change. Each
//! store loads what these rules look at and writes what they decided.

use std::collections::{BTreeMap, HashMap, HashSet};

use keiko_core::batch::flush::{Why, take};
use keiko_core::batch::machine::{Form, Left};
use keiko_core::batch::{Add, Added, BatchSettlement, Group, Item, ItemEnd, NewItem, Waiting};
use keiko_core::id::{ItemId, TaskId, TenantId};
use keiko_core::outcome::Failure;
use keiko_core::task::{Settled, Settlement, Transition};

use crate::admit::{Keys, Stood};

/// How many times the bytes of a batch its candidates may bring along.
const LIGHT_TIMES: i64 = 4;
/// Every so many walks through a group begin at its first item, wherever the last one ended.
const WALKS_WHOLE: u32 = 64;
/// Groups of which it is known where the last walk ended.
const WALKS_MAX: usize = 1_024;

/// An item that waits, as far as a batch looks at it before it loads the payload. Times are the caller's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: i64,
    /// Its place among the items of its group.
    pub(crate) place: i64,
    pub(crate) created_ms: i64,
    pub(crate) due_ms: i64,
    pub(crate) attempts: u32,
    pub(crate) size: u64,
    /// Whether it is in a segment, instead of being a row of its own.
    pub(crate) in_segment: bool,
}

impl Candidate {
    /// When it makes its group due: at its age, or when it is tried again.
    fn at_ms(&self, form: &Form) -> i64 {
        let age_ms = self.created_ms.saturating_add_unsigned(form.age_ms);
        if self.attempts > 0 { self.due_ms } else { age_ms.max(self.due_ms) }
    }
}

/// Where walks through groups without order end: the next one begins behind what the last one took, instead of passing over
/// all that is in flight by then, or whose rows are gone and not cleaned up yet. What comes to stand before that, as a dead
/// letter does that is tried again, is found by every [`WALKS_WHOLE`]th walk, and by each that finds less than a batch takes.
#[derive(Default)]
pub(crate) struct Walks(HashMap<Group, Walk>);

#[derive(Clone, Copy)]
struct Walk {
    /// The last place that was taken.
    place: i64,
    /// Walks since the last whole one.
    count: u32,
}

impl Walks {
    /// The place behind which a walk may begin; `None` for the first item.
    pub(crate) fn begin(&mut self, form: &Form) -> Option<i64> {
        let walk = self.0.get_mut(&form.group).filter(|_| !form.ordered)?;
        walk.count += 1;
        (walk.count < WALKS_WHOLE).then_some(walk.place)
    }

    /// Notes how far a walk has come that began there, and whether it found more than a batch takes; `last` is the last place
    /// that was taken.
    pub(crate) fn end(&mut self, form: &Form, began: Option<i64>, is_full: bool, last: Option<i64>) {
        if form.ordered {
            return;
        }
        let Some(last) = last.filter(|_| is_full) else {
            self.0.remove(&form.group);
            return;
        };
        let before = self.0.get(&form.group).copied();
        if before.is_none() && self.0.len() >= WALKS_MAX {
            self.0.clear();
        }
        // A whole walk may have taken what stands before everything else.
        let place = before.map_or(last, |before| before.place.max(last));
        let count = before.filter(|_| began.is_some()).map_or(0, |before| before.count);
        self.0.insert(form.group.clone(), Walk { place, count });
    }
}

/// What the rule decided.
pub(crate) struct Gathered {
    /// The items of the batch, in order; none when none is due.
    pub(crate) ids: Vec<i64>,
    /// The last place that one of them has; `None` when there are none.
    pub(crate) last_place: Option<i64>,
    /// What the group has left, as far as the candidates tell; `None` when those must be asked that are not due.
    pub(crate) left: Option<Left>,
    /// When the first of those that were not taken makes the group due.
    pub(crate) at_ms: Option<i64>,
}

/// How many candidates a rule needs to see: one more than a batch takes.
pub(crate) fn wanted(form: &Form) -> i64 {
    i64::try_from(form.items_max).unwrap_or(i64::MAX).saturating_add(1)
}

/// How many bytes a candidate may count to be loaded with its payload before it is known whether the batch takes it: so that
/// all of them together are no more than [`LIGHT_TIMES`] batches.
pub(crate) fn light_bytes(form: &Form) -> i64 {
    let bytes = i64::try_from(form.bytes_max).unwrap_or(i64::MAX);
    bytes.saturating_mul(LIGHT_TIMES) / wanted(form).max(1)
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
    let taken = &candidates[..count];
    let ids = taken.iter().map(|candidate| candidate.id).collect();
    let last_place = taken.iter().map(|candidate| candidate.place).max();
    Gathered { ids, last_place, left, at_ms }
}

/// What a group has left of which nothing more is due: `next_ms` is when the first of the others makes it so.
pub(crate) fn left(at_ms: Option<i64>, next_ms: Option<i64>) -> Left {
    at_ms.into_iter().chain(next_ms).min().map_or(Left::Nothing, Left::Due)
}

/// An item with its place among those of its group.
pub(crate) type Placed = (i64, Item);

/// The items of a batch with their places, in the order of their ids there; those whose rows are missing are left out.
pub(crate) fn in_order(ids: &[i64], mut items: BTreeMap<i64, Placed>) -> Vec<Placed> {
    ids.iter().filter_map(|id| items.remove(id)).collect()
}

/// The first and the last number of each row of numbers without a gap. Items of a batch mostly follow each other, and one walk
/// along a table is less than a search for each of its rows.
pub(crate) fn ranges(ids: &[i64]) -> Vec<(i64, i64)> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for id in sorted {
        match ranges.last_mut() {
            Some((_, last)) if id <= last.saturating_add(1) => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    ranges
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
        let mut open = Open { items, rest: None };
        for (id, end) in one.ends.iter().filter(|(id, _)| open.close(id.0)) {
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

/// The items of a batch that have no end yet. Ends mostly come in the order of the items, and then none is looked for.
struct Open<'a> {
    /// Those behind the ends that came in order.
    items: &'a [i64],
    /// Those, once an end came out of order.
    rest: Option<HashSet<i64>>,
}

impl Open<'_> {
    /// Whether this is an item that had no end; it has one now.
    fn close(&mut self, id: i64) -> bool {
        match (&mut self.rest, self.items) {
            (None, [first, items @ ..]) if *first == id => {
                self.items = items;
                true
            }
            (None, []) => false,
            (rest, items) => rest.get_or_insert_with(|| items.iter().copied().collect()).remove(&id),
        }
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
            place: id,
            created_ms: NOW - age_ms,
            due_ms: again.map_or(NOW - age_ms, |wait_ms| NOW + wait_ms),
            attempts: u32::from(again.is_some()),
            size: 10,
            in_segment: false,
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
    fn a_walk_begins_behind_the_last_one_and_now_and_then_at_the_first_item() {
        let (form, mut walks) = (form(false, Why::Full), Walks::default());
        let full = true;
        assert_eq!(walks.begin(&form), None);
        walks.end(&form, None, full, Some(10));
        let whole = i64::from(WALKS_WHOLE);
        for walk in 1..whole {
            assert_eq!(walks.begin(&form), Some(10 * walk));
            walks.end(&form, Some(10 * walk), full, Some(10 * walk + 10));
        }
        assert_eq!(walks.begin(&form), None, "it is time for a whole one");
        walks.end(&form, None, full, Some(5));
        assert_eq!(
            walks.begin(&form),
            Some(10 * whole),
            "what came to stand before is no reason to walk on from there"
        );
        walks.end(&form, None, !full, Some(90));
        assert_eq!(walks.begin(&form), None, "there is no more");
        walks.end(&form, None, full, None);
        assert_eq!(walks.begin(&form), None, "nothing was taken");
        let other = Form { group: Group { key: "k".to_owned(), ..form.group.clone() }, ..form.clone() };
        walks.end(&form, None, full, Some(10));
        assert_eq!((walks.begin(&other), walks.begin(&form)), (None, Some(10)), "each group has its own");
    }

    #[test]
    fn an_ordered_group_is_walked_from_its_first_item() {
        let (form, mut walks) = (form(true, Why::Full), Walks::default());
        walks.end(&form, None, true, Some(10));
        assert_eq!(walks.begin(&form), None);
    }

    #[test]
    fn so_many_walks_are_known_and_no_more() {
        let mut walks = Walks::default();
        let form = |key: usize| {
            let form = form(false, Why::Full);
            Form { group: Group { key: key.to_string(), ..form.group.clone() }, ..form }
        };
        (0..WALKS_MAX).for_each(|key| walks.end(&form(key), None, true, Some(10)));
        assert_eq!((walks.0.len(), walks.begin(&form(0))), (WALKS_MAX, Some(10)));
        walks.end(&form(0), Some(10), true, Some(10));
        assert_eq!(walks.0.len(), WALKS_MAX, "one that is known takes no room");
        walks.end(&form(WALKS_MAX), None, true, Some(10));
        assert_eq!(
            (walks.0.len(), walks.begin(&form(0))),
            (1, None),
            "what is forgotten is walked as a whole"
        );
    }

    #[test]
    fn an_item_has_one_end_whatever_the_order() {
        let check = |ends: &[i64], expected: &[i64]| {
            let mut open = Open { items: &[1, 2, 3, 4], rest: None };
            let closed: Vec<i64> = ends.iter().copied().filter(|id| open.close(*id)).collect();
            assert_eq!(closed, expected, "{ends:?}");
        };
        check(&[], &[]);
        check(&[1, 2, 3, 4], &[1, 2, 3, 4]);
        check(&[1, 2, 3, 4, 4, 5], &[1, 2, 3, 4]);
        check(&[1, 1, 2], &[1, 2]);
        check(&[2, 4, 2, 1, 9, 3, 1], &[2, 4, 1, 3]);
    }

    #[test]
    fn ranges_have_every_number_and_no_other() {
        let check = |ids: &[i64], expected: &[(i64, i64)]| assert_eq!(ranges(ids), expected, "{ids:?}");
        check(&[], &[]);
        check(&[5], &[(5, 5)]);
        check(&[3, 1, 2], &[(1, 3)]);
        check(&[1, 2, 4, 5, 9], &[(1, 2), (4, 5), (9, 9)]);
        check(&[2, 2, 1], &[(1, 2)]);
        check(&[i64::MAX, i64::MAX, i64::MIN], &[(i64::MIN, i64::MIN), (i64::MAX, i64::MAX)]);
    }

    #[test]
    fn candidates_bring_along_no_more_than_four_batches() {
        let check = |items_max, bytes_max, expected: i64| {
            let form = Form { items_max, bytes_max, ..form(false, Why::Full) };
            assert_eq!(light_bytes(&form), expected, "{items_max} items, {bytes_max} bytes");
            assert!(expected.saturating_mul(wanted(&form)) <= 4 * bytes_max as i64);
        };
        check(99, 1_000, 40);
        check(1, 1 << 20, 2 << 20);
        check(10_000, 1, 0);
        let form = Form { items_max: u64::MAX, bytes_max: u64::MAX, ..form(false, Why::Full) };
        assert_eq!(light_bytes(&form), 1);
    }

    #[test]
    fn what_is_left_is_due_with_its_first() {
        let gathered = gather(&candidates(&[(1, None), (300, None)]), &form(false, Why::Full), NOW);
        assert_eq!(left(gathered.at_ms, Some(NOW + 900)), Left::Due(NOW + 700));
        assert_eq!(left(gathered.at_ms, Some(NOW + 1)), Left::Due(NOW + 1));
        assert_eq!(left(None, None), Left::Nothing);
    }
}
