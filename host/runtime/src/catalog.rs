//! The plugins of every tenant as this host knows them, and how a task finds its handler.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use keiko_core::catalog::{
    Activated, Canary, Generation, Installed, NewVersion, Plugin, RemoveWhen, Removed, Target,
};
use keiko_core::code::Code;
use keiko_core::manifest::Manifest;
use keiko_core::outcome::Failure;
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{CatalogStore, Clock, Compiled, Components, InstallError, Runner, Stage, StoreError};
use keiko_core::profile::Profiles;
use keiko_core::slot::{Concurrencies, Concurrency};
use keiko_core::{Digest, KindId, KindName, PluginName, TenantId, VersionId, VersionName};
use tokio::time::Instant;

use crate::long::Pace;
use crate::request::Error;

/// Time between two reads for submits and tasks of what this host does not know.
const READ_EVERY: Duration = Duration::from_millis(50);

/// Plugins that are loaded beside each other: a start with many takes as long as its processors need, and each artifact is in
/// memory twice while it is loaded.
const LOADS_AT_ONCE: usize = 4;

/// The plugins, replaced as a whole whenever one changes.
pub(crate) struct Catalog {
    store: Arc<dyn CatalogStore>,
    components: Arc<dyn Components>,
    runner: Arc<dyn Runner>,
    clock: Arc<dyn Clock>,
    /// Engine profiles that the tenants' components may have; the strict one for whoever is not of this host.
    profiles: HashMap<TenantId, Profiles>,
    now: ArcSwap<Snapshot>,
    /// One refresh at a time, so that an older one never replaces a newer; when the last one began.
    refreshing: tokio::sync::Mutex<Option<Instant>>,
}

/// The plugins at a time.
#[derive(Default)]
pub(crate) struct Snapshot {
    plugins: BTreeMap<(TenantId, PluginName), Arc<Loaded>>,
    kinds: HashMap<KindId, (Arc<Loaded>, KindName)>,
    /// Whether any of them waits for its last task.
    draining: bool,
    /// How many tasks of kinds run at once, from when somebody first asks.
    concurrencies: OnceLock<Arc<Concurrencies>>,
}

/// A plugin's current version, and whether it can run here.
pub(crate) struct Loaded {
    pub(crate) plugin: Plugin,
    problem: Option<InstallError>,
    /// Whether another component has taken over from this one, as far as this host knows.
    retired: AtomicBool,
    /// Of its kinds and processors.
    paces: BTreeMap<KindName, Pace>,
    /// Of what the manifest does not name.
    other_pace: Pace,
    /// The version that a part of its tasks and batches runs, when it can run here.
    canary: Option<Arc<Loaded>>,
}

impl Loaded {
    fn new(plugin: Plugin, problem: Option<InstallError>, canary: Option<Loaded>) -> Loaded {
        let manifest = &plugin.current.manifest;
        let processors =
            manifest.processors.iter().filter_map(|processor| processor.name.as_str().parse().ok());
        let names = manifest.kinds.iter().map(|kind| kind.name.clone()).chain(processors);
        let paces = names.map(|name| (name, Pace::default())).collect();
        let (retired, other_pace, canary) = (AtomicBool::new(false), Pace::default(), canary.map(Arc::new));
        Loaded { plugin, problem, retired, paces, other_pace, canary }
    }

    /// How long the attempts of a kind, or the runs of a processor, are.
    pub(crate) fn pace(&self, name: &KindName) -> &Pace {
        self.paces.get(name).unwrap_or(&self.other_pace)
    }

    /// Its canary, when that can run here.
    pub(crate) fn trying(&self) -> Option<Trying> {
        let (wish, canary) = (self.plugin.canary.as_ref()?, self.canary.as_ref()?);
        Some(Trying { loaded: Arc::clone(canary), percent: wish.percent, is_counted: wish.is_trying })
    }

    /// This and its canary.
    fn all(self: &Arc<Loaded>) -> impl Iterator<Item = &Arc<Loaded>> {
        std::iter::once(self).chain(&self.canary)
    }

    fn digest(&self) -> Digest {
        self.plugin.current.digest
    }

    /// Whether another component has taken over from this one: attempts that pinned it still run.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

/// A canary as the tasks and batches of its plugin meet it.
pub(crate) struct Trying {
    /// What runs there.
    pub(crate) loaded: Arc<Loaded>,
    /// The part of the tasks and batches.
    pub(crate) percent: u8,
    /// Whether they are counted.
    pub(crate) is_counted: bool,
}

/// The handler of a kind.
pub(crate) struct Handler {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) kind: KindName,
}

impl Handler {
    /// What the kind's manifest entry asks of the policy.
    pub(crate) fn budget(&self) -> BudgetRequest {
        let entry = self.loaded.plugin.current.manifest.kind(&self.kind);
        entry.map(|kind| kind.budget()).unwrap_or_default()
    }
}

impl Catalog {
    pub(crate) fn new(
        store: Arc<dyn CatalogStore>,
        components: Arc<dyn Components>,
        runner: Arc<dyn Runner>,
        clock: Arc<dyn Clock>,
        profiles: HashMap<TenantId, Profiles>,
    ) -> Catalog {
        Catalog {
            store,
            components,
            runner,
            clock,
            profiles,
            now: ArcSwap::default(),
            refreshing: tokio::sync::Mutex::new(None),
        }
    }

    /// Reads the plugins again and loads those that are new here. A plugin that does not load is kept with its
    /// problem: its tasks fail with that, the others run.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let mut began = self.refreshing.lock().await;
        *began = Some(Instant::now());
        self.read().await
    }

    /// Reads the plugins again when this kind is not among them: another host may have installed it just now.
    pub(crate) async fn meet(&self, kind: KindId) -> Result<(), Error> {
        if self.now.load().kinds.contains_key(&kind) {
            return Ok(());
        }
        self.read_again().await
    }

    /// Reads the plugins for a submit or a task that names what this host does not know: another host may have installed
    /// it just now.
    pub(crate) async fn read_again(&self) -> Result<(), Error> {
        let asked = Instant::now();
        let mut began = self.refreshing.lock().await;
        // Whoever waited while others read has what they read; and nobody reads without a pause.
        if began.is_some_and(|began| began >= asked) {
            return Ok(());
        }
        if let Some(began) = *began {
            tokio::time::sleep_until(began + READ_EVERY).await;
        }
        *began = Some(Instant::now());
        self.read().await
    }

    async fn read(&self) -> Result<(), Error> {
        let before = self.now.load_full();
        let loading = self.store.plugins().await?.into_iter().map(|plugin| {
            let known = before.plugins.get(&(plugin.tenant, plugin.name.clone()));
            let known = known.filter(|known| known.plugin == plugin && known.problem.is_none()).cloned();
            async {
                match known {
                    Some(loaded) => loaded,
                    None => Arc::new(self.load(plugin).await),
                }
            }
        });
        let mut loading = stream::iter(loading).buffered(LOADS_AT_ONCE);
        let mut next = Snapshot::default();
        while let Some(loaded) = loading.next().await {
            next.add(loaded);
        }
        let (components, versions) = next.live();
        next.replaced(&before).for_each(|old| old.retired.store(true, Ordering::Release));
        self.now.store(Arc::new(next));
        self.runner.retain(&components, &versions);
        Ok(())
    }

    async fn load(&self, plugin: Plugin) -> Loaded {
        let problem = self.load_component(plugin.tenant, plugin.current.digest).await.err();
        if let Some(error) = &problem {
            tracing::error!(plugin = %plugin.name, error = %error, "a plugin does not load");
        }
        let canary = match &plugin.canary {
            Some(canary) => self.load_canary(&plugin, canary).await,
            None => None,
        };
        Loaded::new(plugin, problem, canary)
    }

    /// Loads a component as its tenant may have it.
    async fn load_component(&self, tenant: TenantId, digest: Digest) -> Result<(), InstallError> {
        self.runner.load(digest, self.profiles.get(&tenant).copied().unwrap_or_default()).await
    }

    /// A plugin's canary; everything runs on the current version when it does not load.
    async fn load_canary(&self, plugin: &Plugin, canary: &Canary) -> Option<Loaded> {
        if let Err(error) = self.load_component(plugin.tenant, canary.version.digest).await {
            tracing::error!(plugin = %plugin.name, error = %error, "a canary does not load");
            return None;
        }
        let plugin = Plugin { current: canary.version.clone(), canary: None, ..plugin.clone() };
        Some(Loaded::new(plugin, None, None))
    }

    /// Checks a component that was compiled and keeps it: what its version will be.
    pub(crate) async fn prepare(
        &self,
        tenant: TenantId,
        compiled: Compiled,
        bytes: Bytes,
        manifest: Option<Manifest>,
        refuse: impl FnOnce(&Manifest) -> Option<String>,
    ) -> Result<NewVersion, Error> {
        let manifest = manifest.or(compiled.manifest).ok_or_else(|| {
            let message =
                "the component carries no manifest (custom section `keiko:manifest`), and none was given beside it";
            InstallError::new(Code::ComponentInvalid, message).at(Stage::Scan)
        })?;
        let Compiled { is_program, runs_tasks, works_batches, .. } = compiled;
        manifest
            .check_component(is_program, runs_tasks, works_batches)
            .map_err(|reason| InstallError::new(Code::ComponentInvalid, reason).at(Stage::Instantiate))?;
        if let Some(reason) = refuse(&manifest) {
            return Err(Error::new(Code::Conflict, reason));
        }
        self.components.put(compiled.digest, bytes, self.clock.now_ms()).await?;
        self.runner.share(compiled.digest).await;
        Ok(NewVersion {
            tenant,
            digest: compiled.digest,
            component_bytes: compiled.component_bytes,
            manifest: Arc::new(manifest),
        })
    }

    /// Lets go of components that were checked and did not become a version.
    pub(crate) fn discard(&self) {
        let (components, versions) = self.now.load().live();
        self.runner.retain(&components, &versions);
    }

    /// Forgets components from before a time that nothing names any more, and this host's machine code of what is not kept.
    pub(crate) async fn forget(&self, before_ms: i64, now_ms: i64) -> Result<(), StoreError> {
        let Some(forgotten) = self.components.forget(before_ms, now_ms).await? else { return Ok(()) };
        if forgotten.count > 0 {
            tracing::info!(items = forgotten.count, "components that no plugin names were forgotten");
        }
        self.runner.forget(&forgotten.kept, before_ms).await;
        Ok(())
    }

    /// Stores a version, and makes it its plugin's current one.
    pub(crate) async fn install(&self, version: NewVersion) -> Result<(Plugin, bool), Error> {
        let name = version.manifest.plugin.version.clone();
        let answer = match self.store.install(version, self.clock.now_ms()).await? {
            Installed::Current(plugin) => (plugin, true),
            Installed::Unchanged(plugin) => (plugin, false),
            Installed::VersionTaken { digest } => return Err(taken(&name, digest)),
        };
        self.refresh().await?;
        tracing::info!(
            plugin = %answer.0.name, plugin_version = %answer.0.current.name, changed = answer.1, "a plugin was installed"
        );
        Ok(answer)
    }

    /// Makes a version that was installed before the current one, once it is loaded here; says whether anything changed.
    pub(crate) async fn activate(
        &self,
        tenant: TenantId,
        name: &str,
        target: Target,
    ) -> Result<(Plugin, bool), Error> {
        let name: PluginName = name.parse().map_err(|_| no_plugin(name))?;
        // What does not load must not take over from what runs.
        if let Some(version) = self.store.version(tenant, &name, &target).await? {
            self.load_component(tenant, version.digest).await.map_err(|error| error.at(Stage::Activate))?;
        }
        let answer = match self.store.activate(tenant, &name, target.clone(), self.clock.now_ms()).await? {
            Activated::Current(plugin) => (plugin, true),
            Activated::Unchanged(plugin) => (plugin, false),
            Activated::NoPlugin => return Err(no_plugin(name.as_str())),
            Activated::NoVersion => {
                let message = match target {
                    Target::Version(version) => format!("plugin {name} has no version {version}"),
                    Target::Before => format!("plugin {name} has no version before this one to go back to"),
                };
                return Err(Error::new(Code::NotFound, message));
            }
        };
        self.refresh().await?;
        tracing::info!(
            plugin = %answer.0.name, plugin_version = %answer.0.current.name, generation = answer.0.generation,
            changed = answer.1, "a version was activated"
        );
        Ok(answer)
    }

    /// Loads a version that was installed before, if the plugin has it.
    pub(crate) async fn load_version(
        &self,
        tenant: TenantId,
        name: &PluginName,
        version: &VersionName,
    ) -> Result<(), Error> {
        if let Some(found) = self.store.version(tenant, name, &Target::Version(version.clone())).await? {
            self.load_component(tenant, found.digest).await.map_err(|error| error.at(Stage::Activate))?;
        }
        Ok(())
    }

    /// Up to `limit` swaps of a plugin, newest first.
    pub(crate) async fn generations(
        &self,
        tenant: TenantId,
        name: &str,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Generation>, Error> {
        let name: PluginName = name.parse().map_err(|_| no_plugin(name))?;
        let found = self.store.generations(tenant, &name, before, limit).await?;
        found.ok_or_else(|| no_plugin(name.as_str()))
    }

    /// Takes a plugin away; `Some` is how many live tasks it waits for.
    pub(crate) async fn remove(
        &self,
        tenant: TenantId,
        name: &str,
        when: RemoveWhen,
    ) -> Result<Option<u64>, Error> {
        let name: PluginName = name.parse().map_err(|_| no_plugin(name))?;
        match self.store.remove(tenant, &name, when).await? {
            Removed::Removed => self.refresh().await.map(|()| None),
            Removed::Draining { live } => self.refresh().await.map(|()| Some(live)),
            Removed::NotFound => Err(no_plugin(name.as_str())),
            Removed::Busy { live } => Err(Error::new(
                Code::Conflict,
                format!(
                    "plugin {name} has {live} tasks that have not ended; cancel them, let them end first, or have it \
                     removed when they have"
                ),
            )),
        }
    }

    /// Whether some plugin waits for its last task.
    pub(crate) fn is_draining(&self) -> bool {
        self.now.load().draining
    }

    /// Takes away the plugins that wait for their last task and have none; whether any went.
    pub(crate) async fn sweep(&self) -> Result<bool, Error> {
        let now = self.now.load_full();
        let mut went = false;
        for (tenant, name) in now
            .plugins
            .values()
            .filter(|loaded| loaded.plugin.draining)
            .map(|loaded| (loaded.plugin.tenant, loaded.plugin.name.as_str()))
        {
            match self.remove(tenant, name, RemoveWhen::Drained).await {
                Ok(left) => went |= left.is_none(),
                // Another host was first.
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(went)
    }

    /// The plugins now, to be compared with those of later.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.now.load_full()
    }

    /// Plugins as they were, whose component no longer runs.
    pub(crate) fn gone_since(&self, before: &Snapshot) -> Vec<Plugin> {
        self.now.load().replaced(before).map(|old| old.plugin.clone()).collect()
    }

    /// Every plugin as it is loaded, by tenant and name.
    pub(crate) fn all(&self) -> Vec<Arc<Loaded>> {
        self.now.load().plugins.values().cloned().collect()
    }

    /// The names behind the number of a kind.
    pub(crate) fn names(&self, kind: KindId) -> Option<(PluginName, KindName)> {
        let now = self.now.load();
        now.kinds.get(&kind).map(|(loaded, kind)| (loaded.plugin.name.clone(), kind.clone()))
    }

    /// How many tasks of kinds and tenants run at once; what a tenant makes of a manifest's wish never changes, nor its own.
    pub(crate) fn concurrencies(
        &self,
        of_tenant: impl Fn(TenantId, &PluginName, &KindName, Concurrency) -> Concurrency,
        tenants: impl Fn() -> HashMap<TenantId, u32>,
    ) -> Arc<Concurrencies> {
        let now = self.now.load();
        let declared = || {
            let of_kind = |(id, (loaded, kind)): (&KindId, &(Arc<Loaded>, KindName))| {
                let Plugin { tenant, name, current, .. } = &loaded.plugin;
                let own = current.manifest.kind(kind).map(|kind| kind.concurrency).unwrap_or_default();
                Some((*id, of_tenant(*tenant, name, kind, own))).filter(|(_, declared)| !declared.is_empty())
            };
            let kinds = now.kinds.iter().filter_map(of_kind).collect();
            Arc::new(Concurrencies { kinds, tenants: tenants() })
        };
        Arc::clone(now.concurrencies.get_or_init(declared))
    }

    /// A tenant's plugins by name.
    pub(crate) fn plugins(&self, tenant: TenantId) -> Vec<Plugin> {
        let now = self.now.load();
        let of_tenant = now.plugins.iter().filter(|((owner, _), _)| *owner == tenant);
        of_tenant.map(|(_, loaded)| loaded.plugin.clone()).collect()
    }

    /// A tenant's plugin as it is loaded, if it can run; pinned until the caller drops it.
    pub(crate) fn loaded(&self, tenant: TenantId, name: &PluginName) -> Option<Arc<Loaded>> {
        let loaded = self.now.load().plugins.get(&(tenant, name.clone())).cloned();
        loaded.filter(|loaded| loaded.problem.is_none())
    }

    /// A tenant's plugin.
    pub(crate) fn plugin(&self, tenant: TenantId, name: &str) -> Option<Plugin> {
        let name: PluginName = name.parse().ok()?;
        self.now.load().plugins.get(&(tenant, name)).map(|loaded| loaded.plugin.clone())
    }

    /// The handler that a submit means.
    pub(crate) fn resolve(
        &self,
        tenant: TenantId,
        plugin: Option<&str>,
        kind: Option<&str>,
    ) -> Result<(KindId, Handler), Error> {
        let now = self.now.load();
        let loaded = match (plugin, kind) {
            (Some(name), _) => find(&now, tenant, name)?,
            (None, Some(kind)) => only_with_kind(&now, tenant, kind)?,
            (None, None) => {
                return Err(Error::new(Code::InvalidInput, "a task names a plugin, a kind, or both"));
            }
        };
        let kinds = &loaded.plugin.current.manifest.kinds;
        let wanted = match kind {
            Some(kind) => kinds.iter().find(|entry| entry.name.as_str() == kind),
            None if kinds.len() == 1 => kinds.first(),
            None => {
                return Err(Error::new(
                    Code::InvalidInput,
                    format!(
                        "plugin {} has several kinds; name one of: {}",
                        loaded.plugin.name,
                        names(&loaded)
                    ),
                ));
            }
        };
        let row = wanted.and_then(|entry| loaded.plugin.kinds.get(&entry.name).map(|id| (*id, &entry.name)));
        let Some((id, name)) = row else {
            return Err(Error::new(
                Code::NotFound,
                format!("plugin {} has no such kind; it has: {}", loaded.plugin.name, names(&loaded)),
            ));
        };
        let handler = Handler { loaded: Arc::clone(&loaded), kind: name.clone() };
        Ok((id, handler))
    }

    /// The handler that a leased task runs on now, pinned until the caller drops it.
    pub(crate) fn handler(&self, kind: KindId) -> Result<Handler, Failure> {
        let now = self.now.load();
        let gone = || Failure::new(Code::NotFound, "the plugin that handled this kind was removed");
        let (loaded, kind) = now.kinds.get(&kind).ok_or_else(gone)?;
        if let Some(problem) = &loaded.problem {
            return Err(Failure::new(problem.code, format!("the plugin does not load: {problem}")));
        }
        if loaded.plugin.current.manifest.kind(kind).is_none() {
            let version = &loaded.plugin.current.name;
            let message = format!("version {version} of plugin {} has no kind {kind}", loaded.plugin.name);
            return Err(Failure::new(Code::NotFound, message));
        }
        Ok(Handler { loaded: Arc::clone(loaded), kind: kind.clone() })
    }
}

impl Catalog {
    /// The canary of a kind's plugin and what runs the kind there, if it has it.
    pub(crate) fn trying(&self, kind: KindId) -> Option<(Trying, Handler)> {
        let now = self.now.load();
        let (loaded, kind) = now.kinds.get(&kind)?;
        let trying = loaded.trying()?;
        trying.loaded.plugin.current.manifest.kind(kind)?;
        let handler = Handler { loaded: Arc::clone(&trying.loaded), kind: kind.clone() };
        Some((trying, handler))
    }
}

impl Snapshot {
    /// Every component that runs, and every version.
    fn live(&self) -> (Vec<Digest>, Vec<VersionId>) {
        let all = self.plugins.values().flat_map(Loaded::all);
        all.map(|loaded| (loaded.digest(), loaded.plugin.current.id)).unzip()
    }

    fn add(&mut self, loaded: Arc<Loaded>) {
        self.draining |= loaded.plugin.draining;
        for (name, id) in &loaded.plugin.kinds {
            self.kinds.insert(*id, (Arc::clone(&loaded), name.clone()));
        }
        self.plugins.insert((loaded.plugin.tenant, loaded.plugin.name.clone()), loaded);
    }

    /// What of `before` runs another component now, or none.
    fn replaced<'a>(&'a self, before: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Loaded>> {
        let all = before.plugins.iter().flat_map(|(name, old)| old.all().map(move |old| (name, old)));
        all.filter_map(move |(name, old)| {
            let runs = |now: &Arc<Loaded>| now.all().any(|now| now.digest() == old.digest());
            (!self.plugins.get(name).is_some_and(runs)).then_some(old)
        })
    }
}

/// The refusal of a version whose name is not free.
pub(crate) fn taken(name: &VersionName, digest: Digest) -> Error {
    let message =
        format!("version {name} stands for another component or manifest ({digest}); raise the version");
    InstallError::new(Code::Conflict, message).at(Stage::Activate).into()
}

fn find(now: &Snapshot, tenant: TenantId, name: &str) -> Result<Arc<Loaded>, Error> {
    let parsed: PluginName = name.parse().map_err(|_| no_plugin(name))?;
    now.plugins.get(&(tenant, parsed)).cloned().ok_or_else(|| no_plugin(name))
}

fn only_with_kind(now: &Snapshot, tenant: TenantId, kind: &str) -> Result<Arc<Loaded>, Error> {
    let has = |loaded: &&Arc<Loaded>| {
        let plugin = &loaded.plugin;
        plugin.tenant == tenant
            && plugin.current.manifest.kinds.iter().any(|entry| entry.name.as_str() == kind)
    };
    let mut found: Vec<&Arc<Loaded>> = now.plugins.values().filter(has).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(Arc::clone(only)),
        (Some(_), false) => {
            Err(Error::new(Code::InvalidInput, "several plugins have this kind; name the plugin"))
        }
        (None, _) => Err(Error::new(Code::NotFound, "no plugin has this kind")),
    }
}

fn names(loaded: &Loaded) -> String {
    let names: Vec<&str> =
        loaded.plugin.current.manifest.kinds.iter().map(|kind| kind.name.as_str()).collect();
    names.join(", ")
}

pub(crate) fn no_plugin(name: &str) -> Error {
    let shown: String = name.chars().filter(|letter| !letter.is_control()).take(80).collect();
    Error::new(Code::NotFound, format!("there is no plugin `{shown}`"))
}
