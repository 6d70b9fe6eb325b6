//! What is paused, as this host knows it.
//!
//! The store keeps what is paused from being leased. This host knows it, too, so that what it had leased before is handed
//! back instead of begun; and it gives the tasks of a kind that was resumed their places again. A pause of this host alone
//! is in its memory: it leases nothing and forms no batch until it is resumed or started anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use keiko_core::code::Code;
use keiko_core::pause::{Pause, Paused};
use keiko_core::port::{CatalogStore, Signal, StoreError};
use keiko_core::{KindId, KindName, PluginName, TenantId};

use crate::batch;
use crate::handle::Handle;
use crate::request::Error;
use crate::runtime::hand_back;
use crate::shared::{Counters, Shared};

/// Parked tasks that one transaction gives their places.
const UNPARK_COUNT: u32 = 1_000;

/// What is paused.
pub(crate) struct Pauses {
    store: Arc<dyn CatalogStore>,
    host: AtomicBool,
    /// Written by whoever reads the store, one at a time; read at every attempt.
    known: ArcSwap<Vec<Pause>>,
    refreshing: tokio::sync::Mutex<()>,
}

impl Pauses {
    pub(crate) fn new(store: Arc<dyn CatalogStore>) -> Pauses {
        Pauses {
            store,
            host: AtomicBool::new(false),
            known: ArcSwap::default(),
            refreshing: tokio::sync::Mutex::default(),
        }
    }

    /// Whether this host leases and begins nothing.
    pub(crate) fn of_host(&self) -> bool {
        self.host.load(Ordering::Acquire)
    }

    /// Whether a task of this tenant and kind is not to begin here.
    pub(crate) fn hold(&self, tenant: TenantId, kind: KindId) -> bool {
        self.of_host() || self.covers(tenant, kind)
    }

    /// Whether a tenant or a kind is paused, on every host.
    pub(crate) fn covers(&self, tenant: TenantId, kind: KindId) -> bool {
        self.known.load().iter().any(|pause| !pause.ending && pause.what.covers(tenant, kind))
    }

    /// Whether tasks wait for their places.
    pub(crate) fn are_ending(&self) -> bool {
        self.known.load().iter().any(|pause| pause.ending)
    }

    /// How many tenants and kinds are paused.
    pub(crate) fn count(&self) -> usize {
        self.known.load().iter().filter(|pause| !pause.ending).count()
    }
}

/// Reads what is paused, and gives tasks of kinds that were resumed their places. Returns whether that worked.
pub(crate) async fn refresh(shared: &Shared) -> bool {
    let read = try_refresh(shared).await;
    if let Err(error) = &read {
        tracing::warn!(error = %error, "what is paused could not be read again");
    }
    read.is_ok()
}

async fn try_refresh(shared: &Shared) -> Result<(), StoreError> {
    let pauses = &shared.pauses;
    let _alone = pauses.refreshing.lock().await;
    let known = pauses.store.pauses().await?;
    let ending: Vec<Paused> = known.iter().filter(|pause| pause.ending).map(|pause| pause.what).collect();
    pauses.known.store(Arc::new(known));
    if ending.is_empty() {
        return Ok(());
    }
    for what in ending {
        while pauses.store.unpark(what, UNPARK_COUNT).await? == u64::from(UNPARK_COUNT) {
            shared.ready();
        }
        shared.ready();
    }
    pauses.known.store(Arc::new(pauses.store.pauses().await?));
    Ok(())
}

/// What is to be paused or resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseTarget {
    /// Every task of the tenant.
    Tenant,
    /// One kind, named as a task names it.
    Kind {
        /// The plugin; `None` finds the one plugin that has the kind.
        plugin: Option<String>,
        /// The kind; `None` is the plugin's only one.
        kind: Option<String>,
    },
    /// What this host leases, of every tenant.
    Host,
}

/// What is paused for a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PauseView {
    /// Whether this host is.
    pub host: bool,
    /// Since when the whole tenant is, in milliseconds since 1970.
    pub tenant_since_ms: Option<i64>,
    /// Its kinds that are, of plugins that are installed.
    pub kinds: Vec<PausedKind>,
}

/// A kind that is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausedKind {
    /// Its plugin.
    pub plugin: PluginName,
    /// The kind.
    pub kind: KindName,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
}

impl Handle {
    /// Keeps tasks from beginning until they are resumed, on every host; what runs goes on, and submits are taken. Pausing
    /// what is paused changes nothing.
    ///
    /// Errors: `not_found`, `invalid_input`, `storage_*`.
    pub async fn pause_tasks(&self, tenant: TenantId, target: &PauseTarget) -> Result<PauseView, Error> {
        let shared = &self.shared;
        match self.what(tenant, target)? {
            Some(what) => {
                shared.pauses.store.pause(what, shared.clock.now_ms()).await?;
                self.changed().await;
            }
            None => {
                if !shared.pauses.host.swap(true, Ordering::AcqRel) {
                    tracing::info!("this host is paused: it leases nothing");
                }
                let given_back = hand_back(shared, shared.queue.clear());
                Counters::add(&shared.counters.handed_back, given_back);
            }
        }
        self.pauses(tenant).await
    }

    /// Lets paused tasks begin again. Resuming what is not paused changes nothing.
    ///
    /// Errors: `not_found`, `invalid_input`, `storage_*`.
    pub async fn resume_tasks(&self, tenant: TenantId, target: &PauseTarget) -> Result<PauseView, Error> {
        let shared = &self.shared;
        match self.what(tenant, target)? {
            Some(what) => {
                shared.pauses.store.resume(what).await?;
                self.changed().await;
            }
            None => {
                if shared.pauses.host.swap(false, Ordering::AcqRel) {
                    tracing::info!("this host is resumed");
                }
                shared.batches.tell(batch::Event::Look).await;
            }
        }
        shared.ready();
        self.pauses(tenant).await
    }

    /// What is paused for a tenant.
    ///
    /// Errors: `storage_*`.
    pub async fn pauses(&self, tenant: TenantId) -> Result<PauseView, Error> {
        let plugins = self.plugins(tenant);
        let named = |id: KindId| {
            plugins.iter().find_map(|plugin| {
                let (kind, _) = plugin.kinds.iter().find(|(_, own)| **own == id)?;
                Some((plugin.name.clone(), kind.clone()))
            })
        };
        let mut view = PauseView { host: self.shared.pauses.of_host(), ..PauseView::default() };
        let stored = self.shared.pauses.store.pauses().await?;
        for pause in stored.into_iter().filter(|pause| pause.what.tenant == tenant && !pause.ending) {
            let since_ms = pause.since_ms;
            match pause.what.kind {
                None => view.tenant_since_ms = Some(since_ms),
                Some(kind) => {
                    view.kinds.extend(named(kind).map(|(plugin, kind)| PausedKind {
                        plugin,
                        kind,
                        since_ms,
                    }));
                }
            }
        }
        Ok(view)
    }

    /// The rows that a target means; `None` is this host.
    fn what(&self, tenant: TenantId, target: &PauseTarget) -> Result<Option<Paused>, Error> {
        self.entry(tenant)?;
        let (plugin, kind) = match target {
            PauseTarget::Host => return Ok(None),
            PauseTarget::Tenant => return Ok(Some(Paused { tenant, kind: None })),
            PauseTarget::Kind { plugin, kind } => (plugin.as_deref(), kind.as_deref()),
        };
        // Also a kind that the current version has not: tasks of it may be there.
        let ever = plugin.zip(kind).and_then(|(plugin, kind)| {
            let plugin = self.plugin(tenant, plugin)?;
            plugin.kinds.iter().find(|(name, _)| name.as_str() == kind).map(|(_, id)| *id)
        });
        let kind = match ever {
            Some(kind) => kind,
            None if plugin.is_none() && kind.is_none() => {
                let text = "name a kind by its plugin, its name, or both";
                return Err(Error::new(Code::InvalidInput, text));
            }
            None => self.shared.catalog.resolve(tenant, plugin, kind)?.0,
        };
        Ok(Some(Paused { tenant, kind: Some(kind) }))
    }

    /// This host and the others read it again.
    async fn changed(&self) {
        self.shared.signals.tell(Signal { catalog: true, ready: true, ..Signal::default() });
        refresh(&self.shared).await;
    }
}
