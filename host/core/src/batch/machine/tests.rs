//! The machine against a store of plain lists and a simple model, in virtual time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::settings::{BatchPolicy, Wish};
use super::*;
use crate::id::TenantId;

const P: ProcessorId = ProcessorId(1);
const Q: ProcessorId = ProcessorId(2);

fn group(processor: ProcessorId, key: &str) -> Group {
    Group { tenant: TenantId(1), processor, key: key.to_owned() }
}

fn settings(wish: Wish) -> Settings {
    Settings::of(&BatchPolicy::default(), &wish)
}

/// Ten items, a hundred milliseconds, one KiB.
fn small() -> Wish {
    Wish { items: Some(10), kib: Some(1), age_ms: Some(100), in_flight: Some(4), ..Wish::default() }
}

/// One item of the store: when it was added, when it is due, its bytes.
#[derive(Clone, Copy, Debug)]
struct Row {
    id: u64,
    created_ms: i64,
    due_ms: i64,
    bytes: u64,
    /// Whether it was handed over before.
    again: bool,
}

/// What a store knows: items that wait, by group, and how many batches of each are in flight.
#[derive(Default)]
struct Store {
    waiting: BTreeMap<Group, Vec<Row>>,
    in_flight: BTreeMap<Group, u64>,
}

impl Store {
    fn add(&mut self, group: &Group, row: Row) {
        let rows = self.waiting.entry(group.clone()).or_default();
        rows.push(row);
        rows.sort_by_key(|row| row.id);
    }

    /// Forms a batch as the stores do.
    fn form(&mut self, form: &Form, now_ms: i64) -> (Vec<Row>, Left) {
        if form.ordered && self.in_flight.get(&form.group).is_some_and(|count| *count > 0) {
            return (Vec::new(), Left::Blocked);
        }
        let rows = self.waiting.entry(form.group.clone()).or_default();
        let ready: Vec<Row> = if form.ordered {
            rows.iter().copied().take_while(|row| row.due_ms <= now_ms).collect()
        } else {
            rows.iter().copied().filter(|row| row.due_ms <= now_ms).collect()
        };
        let sizes: Vec<u64> = ready.iter().map(|row| row.bytes).collect();
        let count = flush::take(&sizes, form.items_max, form.bytes_max);
        let full = count as u64 == form.items_max || sizes.iter().sum::<u64>() >= form.bytes_max;
        let age_ms = form.age_ms as i64;
        let at_ms = |row: &Row| if row.again { row.due_ms } else { row.created_ms + age_ms };
        let aged = ready.iter().any(|row| at_ms(row) <= now_ms);
        let (taken, left) = if full || aged || form.why == Why::Requested {
            (ready[..count].to_vec(), count < ready.len())
        } else {
            (Vec::new(), false)
        };
        rows.retain(|row| !taken.iter().any(|one| one.id == row.id));
        if !taken.is_empty() {
            *self.in_flight.entry(form.group.clone()).or_default() += 1;
        }
        let next_ms = if form.ordered { rows.first().map(at_ms) } else { rows.iter().map(at_ms).min() };
        let left = if left { Left::Unknown } else { next_ms.map_or(Left::Nothing, Left::Due) };
        (taken, left)
    }
}

/// A machine with its store.
#[derive(Default)]
struct World {
    machine: Machine,
    store: Store,
    now_ms: i64,
    last_id: u64,
    working: Vec<(Group, Vec<Row>)>,
    delivered: BTreeMap<u64, u32>,
    /// Batches that came from another host, over or not.
    taken_over: u64,
}

impl World {
    fn new(processors: &[(ProcessorId, Wish)]) -> World {
        let mut world = World::default();
        for (id, wish) in processors {
            world.machine.set(*id, settings(wish.clone()), false);
        }
        world
    }

    fn add(&mut self, group: &Group, bytes: u64) -> u64 {
        self.last_id += 1;
        let row = Row { id: self.last_id, created_ms: self.now_ms, due_ms: i64::MIN, bytes, again: false };
        self.store.add(group, row);
        self.machine.added(group.clone(), 1, bytes, self.now_ms);
        self.last_id
    }

    /// Forms everything that is due; the sizes of the batches.
    fn poll(&mut self) -> Vec<(String, Vec<u64>)> {
        let mut formed = Vec::new();
        while let Some(form) = self.machine.next_form(self.now_ms) {
            let (rows, left) = self.store.form(&form, self.now_ms);
            let bytes = rows.iter().map(|row| row.bytes).sum();
            self.machine.formed(&form.group, rows.len() as u64, bytes, left, self.now_ms);
            if !rows.is_empty() {
                assert!(rows.len() as u64 <= form.items_max);
                assert!(rows.len() == 1 || bytes <= form.bytes_max);
                formed.push((form.group.key.clone(), rows.iter().map(|row| row.id).collect()));
                self.working.push((form.group, rows));
            }
        }
        formed
    }

    /// Ends the batch that was formed at this place; `again` of its items wait for so long.
    fn end(&mut self, at: usize, again: usize, wait_ms: i64) {
        let (group, rows) = self.working.remove(at);
        *self.store.in_flight.entry(group.clone()).or_default() -= 1;
        let later = rows.len().min(again);
        for row in &rows[later..] {
            *self.delivered.entry(row.id).or_default() += 1;
        }
        let due_ms = self.now_ms + wait_ms;
        for row in &rows[..later] {
            self.store.add(&group, Row { due_ms, again: true, ..*row });
        }
        let again_ms = (later > 0).then_some(due_ms);
        self.machine.ended(&group, again_ms, Some((rows.len() as u64, 1)), self.now_ms);
    }

    /// A batch of new items comes that another host had formed; of an ordered group only where there is none.
    fn take_over(&mut self, group: &Group, items: usize, ordered: bool) {
        let in_flight = self.store.in_flight.entry(group.clone()).or_default();
        let waits = self.store.waiting.get(group).is_some_and(|rows| !rows.is_empty());
        // It was formed before anything that waits now came.
        if ordered && (*in_flight > 0 || waits) {
            return;
        }
        *in_flight += 1;
        let (created_ms, due_ms) = (self.now_ms, i64::MIN);
        let ids = self.last_id + 1..=self.last_id + items as u64;
        let rows = ids.map(|id| Row { id, created_ms, due_ms, bytes: 1, again: false }).collect();
        self.last_id += items as u64;
        self.machine.taken_over(group.clone(), self.now_ms);
        self.taken_over += 1;
        self.working.push((group.clone(), rows));
    }

    fn end_all(&mut self) {
        while !self.working.is_empty() {
            self.end(0, 0, 0);
        }
    }
}

#[test]
fn a_lone_item_leaves_when_its_time_is_over_and_no_later() {
    let mut world = World::new(&[(P, small())]);
    world.add(&group(P, ""), 1);
    assert!(world.poll().is_empty());
    assert_eq!(world.machine.next_due_ms(), Some(100));
    world.now_ms = 99;
    assert!(world.poll().is_empty());
    world.now_ms = 100;
    assert_eq!(world.poll(), [(String::new(), vec![1])]);
    world.end_all();
    assert_eq!((world.machine.groups(), world.machine.next_due_ms()), (0, None));
}

#[test]
fn a_stream_slower_than_the_age_is_flushed_on_time_for_every_item() {
    let mut world = World::new(&[(P, small())]);
    let mut waits = Vec::new();
    for step in 0..1_000 {
        world.now_ms = step;
        if step % 70 == 0 {
            world.add(&group(P, ""), 1);
        }
        assert!(world.machine.next_due_ms().is_none_or(|due_ms| due_ms >= step), "nothing is overdue");
        world.poll();
        for (_, rows) in std::mem::take(&mut world.working) {
            waits.extend(rows.iter().map(|row| step - row.created_ms));
            world.machine.ended(&group(P, ""), None, None, step);
        }
    }
    assert!(waits.len() >= 13);
    assert_eq!(waits.iter().max(), Some(&100), "{waits:?}");
}

#[test]
fn every_group_and_every_processor_has_its_own_clock() {
    let slow = Wish { age_ms: Some(1_000), ..small() };
    let mut world = World::new(&[(P, small()), (Q, slow)]);
    world.add(&group(P, "a"), 1);
    world.now_ms = 60;
    world.add(&group(P, "b"), 1);
    world.add(&group(Q, "c"), 1);
    let mut flushed = BTreeMap::new();
    for now_ms in 60..2_000 {
        world.now_ms = now_ms;
        flushed.extend(world.poll().into_iter().map(|(key, _)| (key, now_ms)));
    }
    let expected = [("a", 100), ("b", 160), ("c", 1_060)];
    assert_eq!(flushed, expected.map(|(key, at)| (key.to_owned(), at)).into());
}

#[test]
fn constant_input_never_delays_an_expired_batch_of_another_key() {
    let mut world = World::new(&[(P, Wish { in_flight: Some(1), ..small() })]);
    world.add(&group(P, "quiet"), 1);
    let mut flushed_ms = None;
    for now_ms in 0..200 {
        world.now_ms = now_ms;
        for _ in 0..30 {
            world.add(&group(P, "loud"), 1);
        }
        // One batch at a time, and always a full one that waits.
        for _ in 0..2 {
            if world.poll().iter().any(|(key, _)| key == "quiet") {
                flushed_ms = flushed_ms.or(Some(now_ms));
            }
            world.end_all();
        }
    }
    assert_eq!(flushed_ms, Some(100));
}

#[test]
fn what_is_full_goes_at_once_and_the_rest_waits_for_its_time() {
    let mut world = World::new(&[(P, small())]);
    for _ in 0..25 {
        world.add(&group(P, ""), 1);
    }
    let sizes: Vec<usize> = world.poll().iter().map(|(_, ids)| ids.len()).collect();
    assert_eq!(sizes, [10, 10]);
    assert_eq!(world.machine.next_due_ms(), Some(100));
    world.add(&group(P, ""), 5_000);
    let batches = world.poll();
    assert_eq!(batches, [(String::new(), (21..26).collect()), (String::new(), vec![26])]);
}

#[test]
fn an_item_that_is_added_while_a_batch_is_formed_is_not_forgotten() {
    let mut world = World::new(&[(P, small())]);
    world.add(&group(P, ""), 1);
    world.now_ms = 100;
    let form = world.machine.next_form(100).unwrap();
    let (rows, left) = world.store.form(&form, 100);
    assert_eq!((rows.len(), left), (1, Left::Nothing));
    let late = world.add(&group(P, ""), 1);
    world.machine.formed(&form.group, 1, 1, left, 100);
    assert_eq!(world.machine.next_due_ms(), Some(200));
    world.now_ms = 200;
    assert_eq!(world.poll(), [(String::new(), vec![late])]);
}

#[test]
fn a_request_flushes_everything_that_waits() {
    let mut world = World::new(&[(P, small())]);
    for at in 0..9 {
        world.add(&group(P, if at % 2 == 0 { "even" } else { "odd" }), 1);
    }
    assert!(world.poll().is_empty());
    assert_eq!(world.machine.flush(P, 0), 2);
    let sizes: Vec<usize> = world.poll().iter().map(|(_, ids)| ids.len()).collect();
    assert_eq!(sizes, [5, 4]);
    assert_eq!(world.machine.flush(Q, 0), 0, "nobody knows it");
}

#[test]
fn an_ordered_key_has_one_batch_in_flight() {
    let mut world = World::new(&[(P, Wish { ordered: true, ..small() })]);
    for _ in 0..20 {
        world.add(&group(P, "a"), 1);
    }
    for _ in 0..10 {
        world.add(&group(P, "b"), 1);
    }
    let keys: Vec<String> = world.poll().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["a", "b"]);
    // The first item waits for another time, and so does everything behind it.
    world.end(0, 1, 50);
    assert!(world.poll().is_empty());
    assert_eq!(world.machine.next_due_ms(), Some(50));
    world.now_ms = 50;
    assert_eq!(world.poll(), [("a".to_owned(), [vec![1], (11..20).collect()].concat())]);
}

#[test]
fn a_batch_that_could_not_be_formed_is_tried_again_as_it_was() {
    let mut world = World::new(&[(P, small())]);
    let id = world.add(&group(P, ""), 1);
    world.machine.flush(P, 0);
    let form = world.machine.next_form(0).unwrap();
    world.machine.not_formed(&form.group, 30, 0);
    assert_eq!((world.machine.next_due_ms(), world.machine.in_flight()), (Some(30), 0));
    world.now_ms = 30;
    assert_eq!(world.poll(), [(String::new(), vec![id])], "it was asked for, and still is");
}

#[test]
fn a_processor_works_no_more_batches_than_it_may() {
    let mut world = World::new(&[(P, Wish { in_flight: Some(2), ..small() })]);
    for _ in 0..40 {
        world.add(&group(P, ""), 1);
    }
    assert_eq!(world.poll().len(), 2);
    assert_eq!(world.machine.next_due_ms(), None, "nothing to wake for until one ends");
    world.end(0, 0, 0);
    assert_eq!(world.poll().len(), 1);
}

#[test]
fn a_stopped_processor_keeps_its_items_until_it_is_started() {
    let mut world = World::new(&[(P, small())]);
    world.add(&group(P, ""), 1);
    world.machine.set(P, settings(small()), true);
    world.now_ms = 1_000;
    assert!(world.poll().is_empty());
    assert_eq!(world.machine.next_due_ms(), None);
    world.machine.set(P, settings(small()), false);
    assert_eq!(world.poll().len(), 1);
}

#[test]
fn a_stop_flushes_in_order_and_leaves_what_must_wait() {
    let mut world = World::new(&[(P, small()), (Q, small())]);
    world.add(&group(Q, "c"), 1);
    world.now_ms = 1;
    world.add(&group(P, "b"), 1);
    world.now_ms = 2;
    world.add(&group(P, "a"), 1);
    world.machine.close(2);
    let keys: Vec<String> = world.poll().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["c", "b", "a"], "oldest first, whichever processor's");
    world.end(0, 1, 500);
    assert!(world.poll().is_empty(), "what is tried again later stays");
    world.end_all();
    assert_eq!(world.machine.in_flight(), 0);
}

#[test]
fn more_groups_than_can_be_known_are_looked_for_later() {
    let mut machine = Machine::default();
    machine.set(P, settings(small()), false);
    for at in 0..GROUPS_MAX {
        machine.added(group(P, &at.to_string()), 1, 1, 0);
    }
    assert_eq!((machine.groups(), machine.must_look()), (GROUPS_MAX, false));
    machine.added(group(P, "one more"), 1, 1, 0);
    assert_eq!((machine.groups(), machine.must_look()), (GROUPS_MAX, false), "not while it is full");
    machine.set(P, settings(Wish { in_flight: Some(u64::MAX), ..small() }), false);
    while machine.groups() > GROUPS_MAX / 2 {
        let Some(form) = machine.next_form(100) else { break };
        machine.formed(&form.group, 1, 1, Left::Nothing, 100);
        machine.ended(&form.group, None, None, 100);
    }
    assert!(machine.must_look());
    assert!(!machine.must_look());
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        key: u8,
        bytes: u64,
    },
    Wait(i64),
    Flush,
    End {
        at: usize,
        again: usize,
        wait_ms: i64,
    },
    /// The processor is stopped, or started again.
    Stop(bool),
    /// A batch of this key comes from a host that died.
    TakeOver {
        key: u8,
        items: usize,
    },
    /// The host stops.
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..3, prop_oneof![9 => 1u64..200, 1 => 1_000u64..3_000])
            .prop_map(|(key, bytes)| Step::Add { key, bytes }),
        3 => (1i64..80).prop_map(Step::Wait),
        1 => Just(Step::Flush),
        4 => (0usize..4, 0usize..3, 0i64..150)
            .prop_map(|(at, again, wait_ms)| Step::End { at, again, wait_ms }),
        1 => any::<bool>().prop_map(Step::Stop),
        1 => (0u8..3, 1usize..5).prop_map(|(key, items)| Step::TakeOver { key, items }),
        1 => Just(Step::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens: limits hold, nothing that may go waits beyond its time, nor at all once the host stops, an
    /// ordered key has one batch and goes in order, a stopped processor gets nothing, and in the end every item was
    /// delivered once.
    #[test]
    fn random_lives_agree_with_the_model(
        ordered in any::<bool>(),
        in_flight in 1u64..4,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let wish = Wish { ordered, in_flight: Some(in_flight), ..small() };
        let mut world = World::new(&[(P, wish.clone())]);
        let (mut stopped, mut closed) = (false, false);
        for step in steps {
            match step {
                Step::Add { key, bytes } => {
                    world.add(&group(P, &key.to_string()), bytes);
                }
                Step::Wait(ms) => world.now_ms += ms,
                Step::Flush => {
                    world.machine.flush(P, world.now_ms);
                }
                Step::End { at, again, wait_ms } if at < world.working.len() => world.end(at, again, wait_ms),
                Step::End { .. } => {}
                Step::Stop(is_stopped) => {
                    stopped = is_stopped;
                    world.machine.set(P, settings(wish.clone()), stopped);
                }
                Step::TakeOver { key, items } => world.take_over(&group(P, &key.to_string()), items, ordered),
                Step::Close => {
                    closed = true;
                    world.machine.close(world.now_ms);
                }
            }
            let (before, has_room) = (world.working.len(), (world.working.len() as u64) < in_flight);
            world.poll();
            let formed = world.working.len() - before;
            prop_assert!(formed == 0 || !stopped && has_room, "{} are formed", formed);
            check(&world, ordered, in_flight, stopped, closed)?;
        }
        world.machine.set(P, settings(wish), false);
        // Everything comes to its end when nothing fails any more.
        for _ in 0..1_000 {
            world.end_all();
            world.now_ms += 100;
            world.poll();
        }
        world.end_all();
        prop_assert_eq!(world.delivered.len() as u64, world.last_id);
        prop_assert!(world.delivered.values().all(|times| *times == 1));
        prop_assert_eq!((world.machine.groups(), world.machine.in_flight()), (0, 0));
    }
}

fn check(
    world: &World,
    ordered: bool,
    in_flight: u64,
    stopped: bool,
    closed: bool,
) -> Result<(), TestCaseError> {
    prop_assert!(world.working.len() as u64 <= in_flight + world.taken_over);
    prop_assert_eq!(world.machine.in_flight(), world.working.len() as u64);
    let mut seen = BTreeSet::new();
    for (group, rows) in &world.working {
        prop_assert!(rows.is_sorted_by_key(|row| row.id));
        prop_assert!(rows.iter().all(|row| seen.insert(row.id)), "an item is in two batches");
        let of_group = world.working.iter().filter(|(other, _)| other == group).count();
        prop_assert!(!ordered || of_group == 1, "an ordered key has two batches");
    }
    if !stopped && (world.working.len() as u64) < in_flight {
        for (group, rows) in &world.store.waiting {
            let busy = ordered && world.working.iter().any(|(other, _)| other == group);
            let blocked = busy || ordered && rows.first().is_some_and(|row| row.due_ms > world.now_ms);
            let at_ms = |row: &Row| if row.again { row.due_ms } else { row.created_ms + 100 };
            let overdue = |row: &Row| at_ms(row) <= world.now_ms;
            let may_go = |row: &Row| overdue(row) || closed && row.due_ms <= world.now_ms;
            prop_assert!(blocked || !rows.iter().any(may_go), "{:?} wait beyond {}", rows, world.now_ms);
        }
    }
    Ok(())
}
