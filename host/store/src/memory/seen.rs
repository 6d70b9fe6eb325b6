//! What a store in memory sees of itself, whatever the code that keeps its promises says: for simulations.

use keiko_core::group::Group;
use keiko_core::id::{TaskId, Token};
use keiko_core::pause::{PARKED_MS, Paused};
use keiko_core::slot::Slot;
use keiko_core::task::{LeasedTask, TaskState};

use super::state::{Row, State};

impl State {
    /// Looks at what was leased: nothing that is paused, and of no group more than its window lets live.
    pub(super) fn look_at_leased(&mut self, tasks: &[LeasedTask]) {
        let mut broken = Vec::new();
        for task in tasks {
            let is_paused = |kind| self.pauses.get(&Paused { tenant: task.tenant, kind });
            if [None, Some(task.kind)].into_iter().filter_map(is_paused).any(|(_, ending)| !ending) {
                broken.push(format!("{} is leased while it is paused", task.id));
            }
            let Some(row) = task.group.and_then(|group| self.groups.get(&group)) else { continue };
            let Group { id, count, asked, .. } = row.group;
            let running = self.running.range(TaskId(id.0)..row.group.task(count)).count() as u64;
            if asked.live_max.is_some_and(|live_max| running > u64::from(live_max)) {
                broken.push(format!("{running} tasks of group {id} are leased"));
            }
        }
        self.seen_broken.extend(broken);
    }

    /// Forgets the promises of slots that nobody waits for any more.
    pub(super) fn look_at_promised(&mut self, now_ms: i64) {
        let tasks = &self.tasks;
        let waits = |row: &Row, token: Token| {
            let due = row.place_ms == PARKED_MS || row.place_ms <= now_ms;
            row.state == TaskState::Pending && row.token == token && due
        };
        self.slot_promised.retain(|(_, id), token| tasks.get(id).is_some_and(|row| waits(row, *token)));
    }

    /// How many tasks were woken for a slot and have not been leased.
    pub(super) fn promised(&self, slot: &Slot) -> u64 {
        let (first, last) = ((slot.clone(), TaskId(i64::MIN)), (slot.clone(), TaskId(i64::MAX)));
        self.slot_promised.range(first..=last).count() as u64
    }

    /// Tasks that are leased under a holder that is gone.
    pub(super) fn orphans(&self) -> Vec<TaskId> {
        let has_holder = |row: &Row| row.holder.is_some_and(|holder| self.holders.contains_key(&holder));
        let gone = |id: &&TaskId| self.tasks.get(id).is_some_and(|row| !has_holder(row));
        self.running.iter().filter(gone).copied().collect()
    }

    /// Everything that is live below a task.
    pub(super) fn open_below(&self, task: TaskId) -> Vec<TaskId> {
        let parent = |id: TaskId| self.tasks.get(&id).and_then(|row| row.lineage.parent);
        let below =
            |id: TaskId| std::iter::successors(parent(id), |above| parent(*above)).any(|above| above == task);
        let live = self.tasks.iter().filter(|(_, row)| !row.state.is_terminal());
        live.map(|(id, _)| *id).filter(|id| below(*id)).collect()
    }
}
