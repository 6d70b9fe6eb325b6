//! Submits that are refused now and may have been taken before: their answer got lost, and meanwhile the plugin is to go, or the
//! policy is another one. Their tasks are there all the same, and so is the key that finds them.
//!
//! A plugin that is gone, and a kind that its version does not have, are not found here: without them nobody can tell whether it
//! is the same submit.

use keiko_core::group::NewGroup;
use keiko_core::policy::BudgetRequest;
use keiko_core::task::{Key, Submit, Submitted};
use keiko_core::{KindId, TenantId};

use crate::handle::Handle;
use crate::request::{Accepted, Error, TaskRequest};

impl Handle {
    /// What the key of a refused submit stands for; the refusal when it has none, or that stands for nothing.
    pub(crate) async fn repeated(
        &self,
        tenant: TenantId,
        tasks: &[TaskRequest],
        key: Option<String>,
        group: Option<NewGroup>,
        refused: Error,
    ) -> Result<Accepted, Error> {
        let key = key.and_then(|text| self.key_of_refused(tenant, text, tasks, group));
        let Some(key) = key else { return Err(refused) };
        let entry = self.entry(tenant)?;
        let queue_max = entry.policy.queue_max;
        let asked = Submit { tenant, tasks: Vec::new(), key: Some(key), queue_max, group: None };
        match self.shared.tasks.enqueue(vec![asked], self.shared.clock.now_ms()).await?.pop() {
            Some(Submitted::Accepted { duplicate: false, .. }) => Err(refused),
            answer => self.submitted(tenant, entry, &[], answer),
        }
    }

    /// The key as it was when the submit was taken, if it can have been.
    fn key_of_refused(
        &self,
        tenant: TenantId,
        text: String,
        tasks: &[TaskRequest],
        group: Option<NewGroup>,
    ) -> Option<Key> {
        let kind = |task: &TaskRequest| {
            let (plugin, kind) = (task.plugin.as_deref(), task.kind.as_deref());
            let (kind, _) = self.shared.catalog.resolve(tenant, plugin, kind).ok()?;
            Some((kind, BudgetRequest::default()))
        };
        let kinds: Vec<(KindId, BudgetRequest)> = tasks.iter().map(kind).collect::<Option<_>>()?;
        self.key(text, tasks, &kinds, group).ok()
    }
}
