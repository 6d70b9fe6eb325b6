//! Trees of a life: clients that submit tasks with several levels below them, and cancel from somewhere in the middle.

use std::time::Duration;

use keiko_core::port::Records;
use keiko_core::task::TaskFilter;
use keiko_core::{TaskId, TenantId};
use keiko_runtime::Handle;
use tokio::time::{Instant, sleep};

use super::client::{Clients, task};
use super::guest::{End, Script};
use crate::random::Random;

/// Levels below a root: enough for a grandchild of somebody who is no root.
const LEVELS: u64 = 3;
/// Tasks among which one is looked for.
const LOOKED_AT: u32 = 200;

impl Clients {
    /// Does what a client does that has trees until then.
    pub async fn work_with_trees(&self, mut random: Random, end: Instant) {
        while Instant::now() < end {
            sleep(Duration::from_millis(random.among(500, 6_000))).await;
            if random.percent(50) {
                self.plant(&mut random).await;
            } else {
                self.cut_branch(&mut random).await;
            }
        }
    }

    async fn plant(&self, random: &mut Random) {
        let Some(handle) = self.hosts.handle(random) else { return };
        let (tenant, mark) = (self.tenant(random), self.mark());
        let work_ms = random.among(0, 500);
        let script = Script { end: End::Completes, work_ms, children: 1, levels: LEVELS, items: 0 };
        if let Ok(accepted) = handle.submit(tenant, vec![task(script.input(&mark))], None).await {
            self.note(tenant, accepted.first, &[script]);
        }
    }

    /// Cancels a task that is no root and all below it.
    async fn cut_branch(&self, random: &mut Random) {
        let Some(handle) = self.hosts.handle(random) else { return };
        let (tenant, store) = (self.tenant(random), &self.hosts.store);
        let tasks = store.list(tenant, &TaskFilter::default(), LOOKED_AT).await.unwrap_or_default();
        let middle = |id: &TaskId| !store.open_below(*id).is_empty();
        let below = tasks.iter().filter(|one| one.lineage.depth > 0).map(|one| one.id);
        let middles: Vec<TaskId> = below.filter(middle).collect();
        if !middles.is_empty() {
            self.cut(&handle, tenant, middles[random.place(middles.len())]).await;
        }
    }

    /// Nothing lives below a task when its tree has been cancelled, and nothing ever will.
    pub async fn cut(&self, handle: &Handle, tenant: TenantId, id: TaskId) {
        self.asks_to_end([id]);
        let Ok((detail, below)) = handle.cancel_tree(tenant, id).await else { return };
        self.told(id, detail.view.summary.state);
        let left = self.hosts.store.open_below(id);
        self.hosts.story.tell(format_args!("{below} tasks below {id} were cancelled"));
        if !left.is_empty() {
            self.violates(format!("I-9: the tree of {id} was cancelled, and {left:?} live"));
        }
    }
}
