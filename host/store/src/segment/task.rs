//! Segments of tasks: tasks that were submitted together and are alike, as one row. To write, find, lease and take away a row for
//! every task takes several times as long as the rest of its life.
//!
//! - A segment has tasks of one tenant and kind that differ in number and input only: submitted at one time, under one trace, asking
//!   for one budget, due at once; with numbers that follow each other, at most [`TASKS_MAX`] of them and [`BYTES_MAX`] bytes. None
//!   has an agent, a user, a group, a parent, a priority, a time-out, a slot or a key.
//! - It is leased as one, under one token; the one in which a lease ends is cut in two.
//! - A task that completes leaves it: a bit says so. One to which anything else happens leaves it, too, and becomes a row of its
//!   own, under the lease of the segment.
//! - So each of its tasks is in its first attempt, or waits for that, and was never lost with a host.

use bytes::Bytes;
use keiko_core::id::{KindId, TaskId, TenantId, Token};
use keiko_core::priority::Priority;
use keiko_core::task::{LeasedTask, Lineage, NewTask, Payload};
use keiko_core::time_out::Ends;

use super::{pack, unpack};
use crate::admit::{asks_for_nothing, ends};
use crate::format::{Undecodable, decode_budget};

/// Tasks of one segment. The cost of a row is gone among so many of them, and few leases end inside of one.
const TASKS_MAX: usize = 100;
/// Input bytes of one segment. What is larger alone is a row, whose input a lease need not load with it.
const BYTES_MAX: usize = 64 << 10;
/// Numbers that a segment may reach over, each of which has a bit.
pub(crate) const SPAN: i64 = 128;
const _: () = assert!(TASKS_MAX as i64 <= SPAN);
/// The budget of a task whose segment could not be read: JSON, and no budget.
const DAMAGED: &str = "\"damaged\"";

/// A task that somebody submits, with its tenant.
pub(crate) type New<'a> = (TenantId, &'a NewTask);

/// Tasks that become rows of their own, and those that become segments, each of at least so many.
pub(crate) fn cut<'a, 'b>(tasks: &'a [New<'b>], count_min: usize) -> (Vec<New<'b>>, Vec<&'a [New<'b>]>) {
    let (mut rows, mut segments) = (Vec::new(), Vec::new());
    let mut rest = tasks;
    while !rest.is_empty() {
        let count = alike(rest);
        let (together, others) = rest.split_at(count.max(1));
        if count >= count_min.max(1) {
            segments.push(together);
        } else {
            rows.extend_from_slice(together);
        }
        rest = others;
    }
    (rows, segments)
}

/// How many tasks at the front make a segment.
fn alike(tasks: &[New<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |(at, (tenant, task)): &(usize, &New<'_>)| {
        let (of, first) = tasks[0];
        bytes += task.input.bytes.len();
        *at < TASKS_MAX
            && bytes <= BYTES_MAX
            && *tenant == of
            && first.id.0.checked_add(*at as i64) == Some(task.id.0)
            && (task.kind, task.created_ms, task.run_at_ms) == (first.kind, first.created_ms, first.run_at_ms)
            && (&task.budget, &task.trace) == (&first.budget, &first.trace)
            && is_plain(task)
    };
    tasks.iter().enumerate().take_while(fits).count()
}

fn is_plain(task: &NewTask) -> bool {
    asks_for_nothing(task) && task.run_at_ms <= task.created_ms && ends(task) == Ends::default()
}

/// The inputs of tasks as they are stored.
pub(crate) fn packed(tasks: &[New<'_>]) -> Vec<u8> {
    let first = tasks.first().map_or(0, |(_, task)| task.id.0);
    pack(first, tasks.iter().map(|(_, task)| (task.id.0, &task.input)))
}

/// What one of the tasks is given that [`packed`] wrote.
pub(crate) fn input_of(first: i64, tasks: &Bytes, id: TaskId) -> Result<Payload, Undecodable> {
    let found = unpack(first, tasks).and_then(|tasks| tasks.into_iter().find(|(task, _)| *task == id.0));
    found.map(|(_, input)| input).ok_or(Undecodable("tasks of a segment"))
}

/// Which of the numbers from `first` on are no task of the segment, or not any more: a letter for each.
pub(crate) fn gone(first: i64, ids: impl Iterator<Item = i64>) -> String {
    let here = ids.fold(0u128, |bits, id| bits | bit(first, id));
    format!("{:0128b}", !here)
}

/// The bit of a number; none for what is beyond the segment.
fn bit(first: i64, id: i64) -> u128 {
    id.checked_sub(first)
        .filter(|place| (0..SPAN).contains(place))
        .map_or(0, |place| (1 << (SPAN - 1)) >> place)
}

/// A segment that was read: what its tasks have in common, as it is stored, and those that have not left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) first: i64,
    pub(crate) tenant: TenantId,
    pub(crate) kind: KindId,
    pub(crate) token: Token,
    pub(crate) holder: Option<i64>,
    pub(crate) created_ms: i64,
    pub(crate) run_at_ms: i64,
    pub(crate) budget: Option<String>,
    pub(crate) trace: Option<String>,
    /// Numbers and inputs, in order.
    pub(crate) tasks: Vec<(i64, Payload)>,
    /// Whether it cannot be read. Its tasks have neither inputs nor a budget then, and must not run.
    pub(crate) is_damaged: bool,
}

impl Segment {
    /// Reads the tasks that have not left, which the letters of [`gone`] name.
    pub(crate) fn read_tasks(&mut self, gone: &str, bytes: &Bytes) {
        let bits = u128::from_str_radix(gone, 2).unwrap_or(0);
        let stays = |id: &i64| bits & bit(self.first, *id) == 0;
        let ids: Vec<i64> = (self.first..).take(SPAN as usize).filter(stays).collect();
        let tasks = unpack(self.first, bytes).unwrap_or_default();
        self.tasks = tasks.into_iter().filter(|(id, _)| stays(id)).collect();
        if !self.tasks.iter().map(|(id, _)| id).eq(&ids) || decode_budget(self.budget.as_deref()).is_err() {
            // No row that has this can be read.
            self.budget = Some(DAMAGED.to_owned());
            self.is_damaged = true;
            self.tasks = ids.into_iter().map(|id| (id, Payload::json(""))).collect();
        }
    }

    /// Keeps the first `count` tasks, which are leased; the others are a segment that waits as before that.
    pub(crate) fn split_off(&mut self, count: usize) -> Option<Segment> {
        let rest = self.tasks.split_off(count.min(self.tasks.len()));
        let first = rest.first()?.0;
        let (budget, trace) = (self.budget.clone(), self.trace.clone());
        let token = Token(self.token.0 - 1);
        Some(Segment { first, token, holder: None, budget, trace, tasks: rest, ..*self })
    }

    pub(crate) fn gone(&self) -> String {
        gone(self.first, self.tasks.iter().map(|(id, _)| *id))
    }

    pub(crate) fn pack(&self) -> Vec<u8> {
        pack(self.first, self.tasks.iter().map(|(id, input)| (*id, input)))
    }

    /// Its tasks as they run.
    pub(crate) fn into_leased(self) -> Result<impl Iterator<Item = LeasedTask>, Undecodable> {
        let budget = decode_budget(self.budget.as_deref())?;
        let Segment { first, tenant, kind, token, created_ms, run_at_ms, trace, tasks, .. } = self;
        Ok(tasks.into_iter().map(move |(id, input)| LeasedTask {
            id: TaskId(id),
            tenant,
            kind,
            token,
            attempts: 0,
            deadlines: 0,
            crashes: 0,
            created_ms,
            place_ms: run_at_ms,
            priority: Priority::default(),
            input,
            budget,
            lineage: Lineage { root: TaskId(id), parent: None, depth: 0 },
            agent: None,
            user: None,
            trace: trace.clone(),
            ends: Ends::default(),
            group: None,
            tree: None,
            slot_key: None,
            has_slot: false,
            segment: Some(TaskId(first)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{NOW, new_task};

    fn tasks(ids: &[i64]) -> Vec<NewTask> {
        ids.iter().map(|id| new_task(TaskId(*id), KindId(7))).collect()
    }

    /// What becomes of tasks of one tenant: those that are rows, and of each segment the first and the last.
    #[track_caller]
    fn check_cut(tasks: &[NewTask], count_min: usize, rows: &[i64], segments: &[(i64, i64)]) {
        let tasks: Vec<New<'_>> = tasks.iter().map(|task| (TenantId(1), task)).collect();
        let (left, together) = cut(&tasks, count_min);
        let left: Vec<i64> = left.iter().map(|(_, task)| task.id.0).collect();
        let ends = |segment: &&[New<'_>]| (segment[0].1.id.0, segment[segment.len() - 1].1.id.0);
        let together: Vec<_> = together.iter().map(ends).collect();
        assert_eq!((left.as_slice(), together.as_slice()), (rows, segments));
    }

    #[test]
    fn what_follows_each_other_and_is_alike_is_one_where_it_is_enough() {
        check_cut(&[], 2, &[], &[]);
        check_cut(&tasks(&[5]), 2, &[5], &[]);
        check_cut(&tasks(&[5, 6]), 2, &[], &[(5, 6)]);
        check_cut(&tasks(&[5, 6, 8, 10, 11]), 2, &[8], &[(5, 6), (10, 11)]);
        check_cut(&tasks(&[5, 6, 8]), 1, &[], &[(5, 6), (8, 8)]);
        check_cut(&tasks(&[5, 6, 7]), 4, &[5, 6, 7], &[]);
        let all: Vec<i64> = (0..250).collect();
        check_cut(&tasks(&all), 2, &[], &[(0, 99), (100, 199), (200, 249)]);
    }

    #[test]
    fn whatever_makes_a_task_another_parts_it_from_the_others() {
        let check = |change: &dyn Fn(&mut NewTask), is_plain: bool| {
            let mut tasks = tasks(&[1, 2, 3, 4, 5]);
            change(&mut tasks[2]);
            // One that is only unlike the others is a segment of its own where one is enough.
            let alone: (&[i64], &[(i64, i64)]) = match is_plain {
                true => (&[], &[(1, 2), (3, 3), (4, 5)]),
                false => (&[3], &[(1, 2), (4, 5)]),
            };
            check_cut(&tasks, 1, alone.0, alone.1);
            check_cut(&tasks, 2, &[3], &[(1, 2), (4, 5)]);
        };
        check(&|task| task.kind = KindId(8), true);
        check(&|task| (task.created_ms, task.run_at_ms) = (NOW + 1, NOW + 1), true);
        check(&|task| task.run_at_ms -= 1, true);
        check(&|task| task.budget.fuel = Some(1), true);
        check(&|task| task.trace = Some("00-1-2-01".to_owned()), true);
        check(&|task| task.run_at_ms += 1, false);
        check(&|task| task.priority = Priority::new(1).unwrap(), false);
        check(&|task| task.agent = Some(keiko_core::id::AgentId(1)), false);
        check(&|task| task.user = Some(keiko_core::id::UserId(1)), false);
        check(&|task| task.group = Some(keiko_core::id::GroupId(1)), false);
        check(&|task| task.held = true, false);
        check(&|task| task.slot_key = Some("key".to_owned()), false);
        check(&|task| task.lineage.parent = Some(TaskId(1)), false);
        check(&|task| task.budget.queued_ms = Some(1), false);
        check(&|task| task.tree_end_ms = Some(NOW + 1), false);
        check(&|task| task.input = Payload::json(vec![b' '; BYTES_MAX + 1]), false);
        let two = tasks(&[1, 2]);
        let of_two = [(TenantId(1), &two[0]), (TenantId(2), &two[1])];
        let (rows, segments) = cut(&of_two, 2);
        assert_eq!((rows.len(), segments.len()), (2, 0));
    }

    #[test]
    fn bytes_end_a_segment() {
        let of = |bytes: usize| -> Vec<NewTask> {
            let change = |task| NewTask { input: Payload::json(vec![b' '; bytes]), ..task };
            tasks(&[1, 2, 3, 4]).into_iter().map(change).collect()
        };
        check_cut(&of(BYTES_MAX / 4), 1, &[], &[(1, 4)]);
        check_cut(&of(BYTES_MAX / 4 + 1), 1, &[], &[(1, 3), (4, 4)]);
        check_cut(&of(BYTES_MAX), 1, &[], &[(1, 1), (2, 2), (3, 3), (4, 4)]);
    }

    /// A segment with tasks of these numbers, from 1,000 on, leased under the token 3.
    fn segment(places: &[i64]) -> Segment {
        let input = |place: &i64| (1_000 + place, Payload::json(format!("{{\"n\": {place}}}")));
        Segment {
            first: 1_000,
            tenant: TenantId(1),
            kind: KindId(7),
            token: Token(3),
            holder: Some(9),
            created_ms: NOW,
            run_at_ms: NOW,
            budget: None,
            trace: Some("a trace".to_owned()),
            tasks: places.iter().map(input).collect(),
            is_damaged: false,
        }
    }

    fn read_back(of: &Segment, gone: &str, bytes: Vec<u8>) -> Segment {
        let mut read = Segment { tasks: Vec::new(), ..of.clone() };
        read.read_tasks(gone, &bytes.into());
        read
    }

    #[test]
    fn a_segment_reads_back_without_those_that_have_left() {
        let all = segment(&[0, 1, 2, 99, 127]);
        assert_eq!(all.gone(), format!("000{}0{}0", "1".repeat(96), "1".repeat(27)));
        assert_eq!(read_back(&all, &all.gone(), all.pack()), all);
        let left = segment(&[1, 127]);
        assert_eq!(read_back(&all, &left.gone(), all.pack()), left);
        assert_eq!(read_back(&left, &left.gone(), left.pack()), left);
    }

    #[test]
    fn one_that_cannot_be_read_still_names_its_tasks() {
        let all = segment(&[0, 5, 127]);
        for bytes in [b"".to_vec(), b"\x02".to_vec(), all.pack()[..20].to_vec()] {
            let read = read_back(&all, &all.gone(), bytes);
            assert!(read.is_damaged);
            let named: Vec<_> = read.tasks.iter().map(|(id, input)| (*id, input.bytes.len())).collect();
            assert_eq!(named, [(1_000, 0), (1_005, 0), (1_127, 0)]);
        }
        let mut odd = Segment { budget: Some("{".to_owned()), ..all.clone() };
        odd.read_tasks(&all.gone(), &all.pack().into());
        assert!(odd.is_damaged && odd.into_leased().is_err());
    }

    #[test]
    fn each_of_its_tasks_has_an_input_of_its_own() {
        let packed = Bytes::from(segment(&[0, 5, 127]).pack());
        let input = |id: i64, packed: &Bytes| input_of(1_000, packed, TaskId(id));
        assert_eq!(input(1_005, &packed), Ok(Payload::json("{\"n\": 5}")));
        for (id, packed) in [(1_006, packed.clone()), (1_005, packed.slice(..8)), (1_000, Bytes::new())] {
            assert_eq!(input(id, &packed), Err(Undecodable("tasks of a segment")));
        }
    }

    #[test]
    fn the_part_that_is_not_leased_is_as_it_was_before() {
        let mut head = segment(&[0, 2, 3, 50]);
        let rest = head.split_off(2).unwrap();
        assert_eq!(head, segment(&[0, 2]));
        let expected = Segment { first: 1_003, token: Token(2), holder: None, ..segment(&[3, 50]) };
        assert_eq!(rest, expected);
        assert_eq!(rest.gone(), format!("0{}0{}", "1".repeat(46), "1".repeat(80)));
        assert!(segment(&[1]).split_off(1).is_none() && segment(&[1]).split_off(5).is_none());
    }

    #[test]
    fn tasks_run_as_their_rows_would() {
        let tasks: Vec<LeasedTask> = segment(&[1, 4]).into_leased().unwrap().collect();
        let second = &tasks[1];
        assert_eq!((second.id, second.token, second.segment), (TaskId(1_004), Token(3), Some(TaskId(1_000))));
        assert_eq!(second.lineage, Lineage::root(TaskId(1_004)));
        assert_eq!((second.trace.as_deref(), &second.input.bytes[..]), (Some("a trace"), &b"{\"n\": 4}"[..]));
    }
}
