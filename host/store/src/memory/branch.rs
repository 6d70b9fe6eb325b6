//! Branches: everything below roots, or below other tasks of a tree, is cancelled together.

use std::iter::successors;

use keiko_core::id::{TaskId, TenantId};
use keiko_core::tree::{Branch, Cut};

use super::mutation::Mutation;
use super::state::State;
use crate::ending::End;

impl State {
    pub(super) fn cancel_branch(
        &mut self,
        tenant: TenantId,
        branch: Branch,
        now_ms: i64,
        count_max: u32,
    ) -> Cut {
        let mut ended = self.live_below(tenant, branch);
        let left = ended.len() > count_max as usize && !self.breaks(Mutation::BranchHidesRest);
        ended.truncate(count_max as usize);
        let end = End { tenant: None, ..End::cancelled(tenant) };
        self.finish(&ended, &end, now_ms);
        Cut { ended, left }
    }

    fn live_below(&self, tenant: TenantId, branch: Branch) -> Vec<TaskId> {
        let is_below = |id: TaskId, root: TaskId, parent: TaskId| match branch {
            Branch::Roots(first, last) => (first..=last).contains(&root),
            Branch::Under { root: tree, first, last } => {
                let last = if self.breaks(Mutation::BranchOfFirst) { first } else { last };
                let branches = |id: TaskId| (first..=last).contains(&id);
                let parent_of = |id: &TaskId| self.tasks.get(id).and_then(|row| row.lineage.parent);
                let mut above = successors(parent_of(&id), parent_of);
                root == tree
                    && (self.breaks(Mutation::BranchIsTree)
                        || if self.breaks(Mutation::BranchOfChildren) {
                            branches(parent)
                        } else {
                            above.any(branches)
                        })
            }
        };
        let of_any = self.breaks(Mutation::BranchForOthers);
        let live = self.tasks.iter().filter(|(_, row)| !row.state.is_terminal());
        let live = live.filter(|(_, row)| of_any || row.tenant == tenant);
        live.filter_map(|(id, row)| {
            let lineage = &row.lineage;
            is_below(*id, lineage.root, lineage.parent?).then_some(*id)
        })
        .collect()
    }
}
