//! What all stores do alike with groups of tasks.

use keiko_core::task::Submit;

/// The row of a submit's group, when it has one: id, tenant, count, window, whether it fails fast, tasks that are not held,
/// time of creation.
#[allow(clippy::type_complexity, reason = "a row of a table")]
pub(crate) fn row(submit: &Submit, now_ms: i64) -> Option<(i64, i64, u32, Option<u32>, bool, u32, i64)> {
    let (group, first) = (submit.group?, submit.tasks.first()?.id);
    let count = u32::try_from(submit.tasks.len()).unwrap_or(u32::MAX);
    let released = group.live_max.map_or(count, |live_max| live_max.min(count));
    Some((first.0, submit.tenant.0, count, group.live_max, group.fail_fast, released, now_ms))
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
