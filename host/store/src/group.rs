//! What all stores do alike with groups of tasks.

use std::collections::HashMap;

use keiko_core::group::NewGroup;
use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::task::{Settled, Settlement, Submit};

/// Failed groups that a rescue tells of: a host that dies leaves those whose tasks failed in its last settlement.
pub(crate) const FAILING_MAX: i64 = 10_000;

/// A row: id, tenant, count, window, whether it fails fast, tasks that are not held, time of creation, and whether the
/// task behind its last one joins it.
pub(crate) type Row = (i64, i64, u32, Option<u32>, bool, u32, i64, bool);

/// The row of a submit's group, when it has one.
pub(crate) fn row(submit: &Submit, now_ms: i64) -> Option<Row> {
    let (group, first) = (submit.group?, submit.tasks.first()?.id);
    let count = u32::try_from(submit.tasks.len()).unwrap_or(u32::MAX);
    Some(new(GroupId(first.0), submit.tenant, count, group, now_ms, false))
}

/// The rows of the groups of children of settlements that are not refused.
pub(crate) fn joined(asking: &[&Settlement], refused: &HashMap<TaskId, Settled>, now_ms: i64) -> Vec<Row> {
    let stored = asking.iter().filter(|one| !refused.contains_key(&one.id));
    let groups = stored.flat_map(|one| one.effects.joined.iter().map(|joined| (one.tenant, joined)));
    groups
        .map(|(tenant, joined)| new(joined.group, tenant, joined.count, joined.asked, now_ms, true))
        .collect()
}

fn new(id: GroupId, tenant: TenantId, count: u32, asked: NewGroup, now_ms: i64, joined: bool) -> Row {
    let released = asked.live_max.map_or(count, |live_max| live_max.min(count));
    (id.0, tenant.0, count, asked.live_max, asked.fail_fast, released, now_ms, joined)
}

/// How many tasks of a group are not held, when `ids` were let go of up to `room`: all when there were fewer.
pub(crate) fn released(first: i64, count: u32, room: i64, ids: &[i64]) -> u32 {
    let last = ids.iter().max().filter(|_| ids.len() as i64 == room);
    last.map_or(count, |last| u32::try_from(last - first + 1).unwrap_or(count).min(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_moves_the_edge() {
        assert_eq!(released(100, 10, 2, &[104, 103]), 5);
        assert_eq!(released(100, 10, 2, &[109]), 10, "there were no more");
        assert_eq!(released(100, 10, 2, &[]), 10);
    }
}
