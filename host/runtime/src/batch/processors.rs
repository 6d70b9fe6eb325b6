//! The processors of every tenant as this host knows them: those of the configuration, and those of current plugins.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keiko_core::batch::settings::BatchPolicy;
use keiko_core::batch::{Processor, Settings, Wish};
use keiko_core::manifest::Manifest;
use keiko_core::port::StoreError;
use keiko_core::{PluginName, ProcessorId, ProcessorName, TenantId, VersionId};

use crate::shared::Shared;

/// A processor with everything a batch of it needs.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) row: Processor,
    pub(crate) settings: Settings,
    pub(crate) made_by: MadeBy,
}

/// Who works the batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MadeBy {
    /// The host, which keeps the items as rows.
    Host,
    /// A plugin.
    Plugin { name: PluginName, version: VersionId },
}

/// The processors, replaced as a whole whenever one changes.
#[derive(Default)]
pub(crate) struct Processors {
    now: ArcSwap<Known>,
    /// One reading at a time, so that an older one never replaces a newer.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    by_name: BTreeMap<(TenantId, ProcessorName), Arc<Entry>>,
    by_id: HashMap<ProcessorId, Arc<Entry>>,
}

impl Processors {
    /// A tenant's processor of this name.
    pub(crate) fn named(&self, tenant: TenantId, name: &str) -> Option<Arc<Entry>> {
        let name: ProcessorName = name.parse().ok()?;
        self.now.load().by_name.get(&(tenant, name)).cloned()
    }

    /// The processor of this row.
    pub(crate) fn of(&self, id: ProcessorId) -> Option<Arc<Entry>> {
        self.now.load().by_id.get(&id).cloned()
    }

    /// Every processor.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.now.load().by_name.values().cloned().collect()
    }
}

type Wanted = BTreeMap<ProcessorName, (Wish, MadeBy)>;

/// The processors of a tenant: its configuration's come first, then those of plugins in the order of their names.
fn wanted(shared: &Shared, tenant: TenantId, configured: &BTreeMap<ProcessorName, Wish>) -> Wanted {
    let host = configured.iter().map(|(name, wish)| (name.clone(), (wish.clone(), MadeBy::Host)));
    let mut wanted: Wanted = host.collect();
    for plugin in shared.catalog.plugins(tenant) {
        for section in &plugin.current.manifest.processors {
            let made_by = MadeBy::Plugin { name: plugin.name.clone(), version: plugin.current.id };
            wanted.entry(section.name.clone()).or_insert((section.wish(), made_by));
        }
    }
    wanted
}

/// Says which processor of a manifest is another's already.
pub(crate) fn taken(shared: &Shared, tenant: TenantId, manifest: &Manifest) -> Option<String> {
    let configured = &shared.tenant(tenant)?.processors;
    let known = wanted(shared, tenant, configured);
    manifest.processors.iter().find_map(|section| match known.get(&section.name)? {
        (_, MadeBy::Host) => Some(format!("the processor `{}` is the host's", section.name)),
        (_, MadeBy::Plugin { name, .. }) if *name != manifest.plugin.name => {
            Some(format!("the processor `{}` is plugin {name}'s", section.name))
        }
        _ => None,
    })
}

/// Reads the processors again. One that was stopped by a version that is not current any more is started.
pub(super) async fn refresh(shared: &Shared) -> Result<(), StoreError> {
    let _reading = shared.batches.processors.reading.lock().await;
    let mut next = Known::default();
    for (tenant, entry) in &shared.tenants {
        let wanted = wanted(shared, *tenant, &entry.processors);
        if wanted.is_empty() {
            continue;
        }
        let names: Vec<ProcessorName> = wanted.keys().cloned().collect();
        let rows = shared.batches.store.ensure_processors(*tenant, &names).await?;
        for (row, (wish, made_by)) in rows.into_iter().zip(wanted.into_values()) {
            next.add(start_again(shared, row, &entry.policy.batches, &wish, made_by).await?);
        }
    }
    shared.batches.processors.now.store(Arc::new(next));
    Ok(())
}

async fn start_again(
    shared: &Shared,
    mut row: Processor,
    policy: &BatchPolicy,
    wish: &Wish,
    made_by: MadeBy,
) -> Result<Entry, StoreError> {
    let version = match &made_by {
        MadeBy::Host => None,
        MadeBy::Plugin { version, .. } => Some(*version),
    };
    if row.stopped.as_ref().is_some_and(|stopped| stopped.version != version) {
        shared.batches.store.stop_processor(row.tenant, row.id, None).await?;
        tracing::info!(processor = %row.name, "a processor is started again with another version");
        row.stopped = None;
    }
    Ok(Entry { row, settings: Settings::of(policy, wish), made_by })
}

impl Known {
    fn add(&mut self, entry: Entry) {
        let entry = Arc::new(entry);
        self.by_id.insert(entry.row.id, Arc::clone(&entry));
        self.by_name.insert((entry.row.tenant, entry.row.name.clone()), entry);
    }
}
