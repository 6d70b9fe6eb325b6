//! What a task is given that joins others: their outcomes, read when its attempt begins.

use keiko_core::join::Gathered;
use keiko_core::port::StoreError;
use keiko_core::task::Payload;
use keiko_core::{GroupId, TaskId, TenantId};

use crate::shared::Shared;

/// Outcomes that are read at once.
const PAGE: u32 = 1_000;

/// The input of the task that joins a group, whose number is the one behind the group's last.
pub(crate) async fn input(
    shared: &Shared,
    tenant: TenantId,
    group: GroupId,
    join: TaskId,
    stored: &Payload,
) -> Result<Payload, StoreError> {
    let mut gathered = Gathered::new(stored, (group.0..join.0).map(TaskId).collect());
    let mut from = TaskId(group.0);
    // A page is shorter where results are large, so that one and the input are all that is in memory; an empty one is the
    // last.
    loop {
        let page = shared.records.outcomes(tenant, (from, join), PAGE).await?;
        let Some(last) = page.last() else { break };
        from = TaskId(last.task.0 + 1);
        page.into_iter().for_each(|outcome| gathered.push(outcome));
    }
    Ok(gathered.into_input())
}
