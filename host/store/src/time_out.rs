//! Tasks whose time is over, put together for as few statements as they have different time-outs.

use std::collections::{BTreeMap, BTreeSet};

use keiko_core::id::{GroupId, TaskId, TenantId};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{Expired, FailedByKind};
use keiko_core::time_out::{Ends, TimeOut};

use crate::ending::End;

/// A task that may be over.
pub(crate) struct Candidate {
    pub(crate) id: TaskId,
    pub(crate) tenant: TenantId,
    pub(crate) budget: BudgetRequest,
    pub(crate) ends: Ends,
    pub(crate) group: Option<GroupId>,
    /// Whether no attempt of it has begun.
    pub(crate) waits: bool,
}

/// Tasks that are over, and how they end.
#[derive(Default)]
pub(crate) struct Over {
    ends: BTreeMap<(TimeOut, u64), Vec<TaskId>>,
    ended: Vec<(TenantId, TaskId)>,
    groups: BTreeSet<(TenantId, GroupId)>,
}

impl Over {
    /// Those of the candidates that are over by now.
    pub(crate) fn of(candidates: Vec<Candidate>, now_ms: i64) -> Over {
        let mut over = Over::default();
        for Candidate { id, tenant, budget, ends, waits, group } in candidates {
            let Some(time_out) = ends.over(waits, now_ms) else { continue };
            over.ends.entry(time_out.told(&budget)).or_default().push(id);
            over.ended.push((tenant, id));
            over.groups.extend(group.map(|group| (tenant, group)));
        }
        over
    }

    /// The ends, each with its tasks.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (&[TaskId], End)> {
        self.ends
            .iter()
            .map(|(&(time_out, limit_ms), ids)| (ids.as_slice(), End::timed_out(&time_out.failure(limit_ms))))
    }

    /// What the caller is told; `more` is whether there may be others.
    pub(crate) fn expired(
        self,
        failed: FailedByKind,
        more: bool,
        next_ms: Option<i64>,
        now_ms: i64,
    ) -> Expired {
        let next_ms = if more { Some(now_ms) } else { next_ms };
        Expired { ended: self.ended, failed, groups: self.groups.into_iter().collect(), next_ms }
    }
}
