//! The order of a lease: tenants take turns.

use std::collections::HashMap;

use keiko_core::id::{TaskId, TenantId};

/// Puts tasks in the order to run them: every tenant's oldest first, then every tenant's second. `key` is the task's
/// tenant, `run_at` and id; tenants go in the order of `shares`.
pub(crate) fn take_turns<T>(
    tasks: &mut [T],
    shares: &[(TenantId, usize)],
    key: impl Fn(&T) -> (TenantId, i64, TaskId),
) {
    let place: HashMap<TenantId, usize> =
        shares.iter().enumerate().map(|(place, &(tenant, _))| (tenant, place)).collect();
    tasks.sort_unstable_by_key(|task| (key(task).1, key(task).2));
    let mut last: HashMap<TenantId, usize> = HashMap::new();
    let mut turns: HashMap<TaskId, usize> = HashMap::with_capacity(tasks.len());
    for task in tasks.iter() {
        let (tenant, _, id) = key(task);
        let turn = last.entry(tenant).or_default();
        *turn += 1;
        turns.insert(id, *turn);
    }
    tasks.sort_by_key(|task| {
        let (tenant, _, id) = key(task);
        (turns.get(&id).copied(), place.get(&tenant).copied())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenants_first_comes_before_any_tenants_second() {
        let task = |tenant, run_at_ms, id| (TenantId(tenant), run_at_ms, TaskId(id));
        let mut tasks = [task(1, 5, 1), task(1, 4, 2), task(2, 9, 3), task(1, 5, 4), task(2, 9, 5)];
        take_turns(&mut tasks, &[(TenantId(2), 2), (TenantId(1), 3)], |task| *task);
        assert_eq!(tasks.map(|(_, _, id)| id.0), [3, 2, 5, 1, 4]);
    }
}
