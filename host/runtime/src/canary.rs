//! Tasks that try a canary: who does, what is told of them, and the current version that runs them when it fails. Batches do the same
//! in `batch::runs`.
//!
//! A task tries a canary in its first attempt only. When the canary fails it, the current version runs it in the same attempt, so
//! that the task is charged nothing for having tried: of the failed run nothing is kept but its code, neither effects nor log nor
//! what it spent, and nobody has seen what it gave out. By the database one trial is the same on all hosts: each task and batch asks before it tries, and tells afterwards.
//!
//! A run that ended well and has effects has not succeeded before they are stored: two of them may contradict each other, or what is
//! there. So what it says of the canary is told by the settler ([`Unsettled`]); when the database refuses its end, the task goes back to this host's
//! queue under the same lease ([`Refused`]), for the current version to run it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use keiko_core::canary::{
    Entry, FailedRun, News, Seen, State, Tally, Unit, compared, is_chosen, patience_ms, seen,
};
use keiko_core::catalog::{Begun, Candidate, Plugin, PluginVersion, Tried};
use keiko_core::limit::{CANARY_FAILURE_BYTES_MAX, CANARY_PERCENT_MAX};
use keiko_core::manifest::Manifest;
use keiko_core::outcome::{Failure, Outcome};
use keiko_core::port::CanaryStore;
use keiko_core::{Code, PluginId, PluginName, TaskId, TenantId, VersionId, VersionName};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::attempt::{Ran, on, wanted};
use crate::catalog::{Handler, Snapshot, Trying, no_plugin, taken};
use crate::handle::Handle;
use crate::request::Error;
use crate::running;
use crate::shared::{Counters, Leased, Shared};

/// What this host knows of canaries.
pub(crate) struct Canaries {
    pub(crate) store: Arc<dyn CanaryStore>,
    /// What first attempts and batches on the current version came to while a canary is tried, until it is told.
    seen: Mutex<HashMap<VersionId, Tally>>,
}

impl Canaries {
    pub(crate) fn new(store: Arc<dyn CanaryStore>) -> Canaries {
        Canaries { store, seen: Mutex::default() }
    }

    fn note(&self, canary: VersionId, unit: Unit, seen: Seen) {
        let mut all = self.seen.lock();
        let tally = all.entry(canary).or_default();
        *tally = tally.with(unit, seen);
    }

    /// What is to be told, and forgotten with that.
    fn take(&self, canary: VersionId) -> Tally {
        self.seen.lock().remove(&canary).unwrap_or_default()
    }
}

impl Handle {
    /// Installs a component for a part of its plugin's tasks and batches to try, beside the current version.
    pub async fn install_canary(
        &self,
        tenant: TenantId,
        component: Bytes,
        manifest: Option<Manifest>,
        percent: u64,
    ) -> Result<Plugin, Error> {
        let percent = checked(percent)?;
        let version = self.prepare(tenant, component, manifest).await?;
        let begun = self.begin_canary(tenant, Candidate::New(version), percent).await;
        begun.inspect_err(|_| self.shared.catalog.discard())
    }

    /// Lets a part of a plugin's tasks and batches try a version that was installed before.
    pub async fn try_version(
        &self,
        tenant: TenantId,
        name: &str,
        version: VersionName,
        percent: u64,
    ) -> Result<Plugin, Error> {
        let percent = checked(percent)?;
        let name: PluginName = name.parse().map_err(|_| no_plugin(name))?;
        self.shared.catalog.load_version(tenant, &name, &version).await?;
        self.begin_canary(tenant, Candidate::Named(name, version), percent).await
    }

    async fn begin_canary(
        &self,
        tenant: TenantId,
        candidate: Candidate,
        percent: u8,
    ) -> Result<Plugin, Error> {
        let shared = &self.shared;
        let (plugin, version) = match &candidate {
            Candidate::Named(plugin, version) => (plugin.clone(), version.clone()),
            Candidate::New(new) => {
                let section = &new.manifest.plugin;
                (section.name.clone(), section.version.clone())
            }
        };
        let before = shared.catalog.snapshot();
        let now_ms = shared.clock.now_ms();
        let begun = shared.canaries.store.begin_canary(tenant, candidate, percent, now_ms).await?;
        let begun = match begun {
            Begun::Canary(begun) => begun,
            Begun::IsCurrent(_) => {
                let message =
                    format!("version {version} is the current one of plugin {plugin}; everything runs it");
                return Err(Error::new(Code::Conflict, message));
            }
            Begun::NoPlugin => return Err(no_plugin(plugin.as_str())),
            Begun::NoVersion => {
                return Err(Error::new(Code::NotFound, format!("plugin {plugin} has no version {version}")));
            }
            Begun::VersionTaken { digest } => return Err(taken(&version, digest)),
        };
        self.follow(&before).await?;
        tracing::info!(plugin = %plugin, plugin_version = %version, "a canary is tried");
        Ok(begun)
    }

    /// Takes a plugin's canary back.
    pub async fn withdraw_canary(&self, tenant: TenantId, name: &str) -> Result<(), Error> {
        let name: PluginName = name.parse().map_err(|_| no_plugin(name))?;
        let before = self.shared.catalog.snapshot();
        let now_ms = self.shared.clock.now_ms();
        if !self.shared.canaries.store.withdraw_canary(tenant, &name, now_ms).await? {
            return Err(no_canary(&name));
        }
        self.follow(&before).await
    }

    /// The last canary of a plugin.
    pub async fn canary(&self, tenant: TenantId, name: &str) -> Result<Tried, Error> {
        let name: PluginName = name.parse().map_err(|_| no_plugin(name))?;
        let found = self.shared.canaries.store.canary(tenant, &name).await?;
        found.ok_or_else(|| no_canary(&name))
    }

    async fn follow(&self, before: &Snapshot) -> Result<(), Error> {
        self.shared.catalog.refresh().await?;
        self.shared.swapped(before).await;
        Ok(())
    }
}

fn checked(percent: u64) -> Result<u8, Error> {
    let fits = u8::try_from(percent).ok().filter(|percent| (1..=CANARY_PERCENT_MAX).contains(percent));
    fits.ok_or_else(|| {
        let message =
            format!("a canary has 1 to {CANARY_PERCENT_MAX} percent of the tasks and batches, not {percent}");
        Error::new(Code::InvalidInput, message)
    })
}

fn no_canary(name: &PluginName) -> Error {
    Error::new(Code::NotFound, format!("plugin {name} has no canary"))
}

/// What came of a task's turn.
pub(crate) struct Turned {
    pub(crate) ran: Ran,
    /// The run on the canary that failed before.
    pub(crate) failed: Option<FailedRun>,
    /// What it says of a canary once its end is stored.
    pub(crate) unsettled: Option<Unsettled>,
}

impl From<Ran> for Turned {
    fn from(ran: Ran) -> Turned {
        Turned { ran, failed: None, unsettled: None }
    }
}

/// Runs an attempt of a task: on the plugin's canary if it is the task's turn to try it, on the current version if it is not, or
/// if the canary failed.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    job: &Leased,
    entry: &Arc<running::Entry>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Turned {
    if let Some(refused) = job.refused.as_deref() {
        return again(shared, job, refused, entry, slot).await;
    }
    let is_first = job.task.attempts == 0 && job.task.crashes == 0;
    let Some((trying, handler)) = shared.catalog.trying(job.task.kind).filter(|_| is_first) else {
        return current(shared, job, entry, slot).await.into();
    };
    let version = trying.loaded.plugin.current.clone();
    let trial = Trial::of(&trying, Unit::Task);
    let is_counted = match trial.turn(shared, job.task.id).await {
        Turn::Canary { is_counted } => is_counted,
        Turn::Current => {
            let ran = current(shared, job, entry, slot).await;
            trial.note(shared, own(&ran).and_then(seen));
            return ran.into();
        }
        Turn::Closed => return current(shared, job, entry, slot).await.into(),
    };
    entry.try_out();
    let tried = on_canary(shared, job, handler, entry, slot).await;
    let Some(Outcome::Failed(failure)) = tried.outcome() else {
        let told = is_counted.then_some((trial, own(&tried).and_then(seen)));
        return ended_well(shared, tried, version, told, entry).await;
    };
    entry.tried(false);
    Counters::add(&shared.counters.canary_failures, 1);
    let (failure, is_own) = (failure.clone(), own(&tried).is_some());
    let failed = Some(failed_run(&version, &failure));
    let ran = current(shared, job, entry, slot).await;
    if is_counted {
        let seen = ran.outcome().filter(|_| is_own).and_then(|outcome| compared(&failure, outcome));
        trial.tell(shared, seen, Some(&failure)).await;
    }
    Turned { ran, failed, unsettled: None }
}

fn failed_run(version: &PluginVersion, failure: &Failure) -> FailedRun {
    FailedRun { version: version.name.clone(), digest: version.digest, code: failure.code }
}

/// What becomes of a run on the canary that did not fail: one without effects counts, one with them when they are stored.
async fn ended_well(
    shared: &Arc<Shared>,
    tried: Ran,
    version: PluginVersion,
    told: Option<(Trial, Option<Seen>)>,
    entry: &Arc<running::Entry>,
) -> Turned {
    if tried.has_effects() {
        let on_canary = OnCanary { told, version, entry: Arc::clone(entry) };
        return Turned {
            ran: tried,
            failed: None,
            unsettled: Some(Unsettled::OnCanary(Box::new(on_canary))),
        };
    }
    entry.tried(true);
    if let Some((trial, seen)) = told {
        trial.tell(shared, seen, None).await;
    }
    tried.into()
}

/// Runs a task on the current version whose end on the canary the database refused.
async fn again(
    shared: &Arc<Shared>,
    job: &Leased,
    refused: &Refused,
    entry: &Arc<running::Entry>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Turned {
    let ran = current(shared, job, entry, slot).await;
    let unsettled = refused.trial.map(|trial| {
        let seen = ran.outcome().and_then(|outcome| compared(&refused.failure, outcome));
        Unsettled::Again { trial, failure: refused.failure.clone(), seen }
    });
    Turned { ran, failed: Some(refused.run.clone()), unsettled }
}

/// What an attempt says of a canary when its end is stored.
pub(crate) enum Unsettled {
    /// The run on the canary itself ended well.
    OnCanary(Box<OnCanary>),
    /// The current version has run the task, whose end on the canary was refused.
    Again {
        /// The trial.
        trial: Trial,
        /// Why it was refused.
        failure: Failure,
        /// What that says of the canary beside the other run.
        seen: Option<Seen>,
    },
}

/// A run on a canary that ended well.
pub(crate) struct OnCanary {
    /// The trial, if it counts, and what it is told.
    told: Option<(Trial, Option<Seen>)>,
    version: PluginVersion,
    /// Holds what it gave out.
    entry: Arc<running::Entry>,
}

/// That the end of a task's run on a canary was refused: the current version runs it now.
#[derive(Debug)]
pub(crate) struct Refused {
    run: FailedRun,
    /// The trial, if it counts.
    trial: Option<Trial>,
    /// Why.
    failure: Failure,
}

/// What a trial is told: what was seen, and why the canary failed if it did.
pub(crate) struct Verdict {
    trial: Trial,
    seen: Option<Seen>,
    failure: Option<Failure>,
}

impl Verdict {
    pub(crate) async fn tell(self, shared: &Shared) {
        self.trial.tell(shared, self.seen, self.failure.as_ref()).await;
    }
}

impl Unsettled {
    /// The end of this task is stored, or a stale lease made it void. What the canary gave out is told now, and the end after it.
    pub(crate) fn settled(self, shared: &Shared, task: TaskId, is_stored: bool) -> Option<Verdict> {
        match self {
            Unsettled::OnCanary(on_canary) => {
                on_canary.entry.tried(is_stored);
                shared.last_words(task);
                on_canary.told.map(|(trial, seen)| Verdict { trial, seen, failure: None })
            }
            Unsettled::Again { trial, failure, seen } => {
                Some(Verdict { trial, seen, failure: Some(failure) })
            }
        }
    }

    /// The database refuses its end for this reason: the task is to run again if it ran on the canary; otherwise both
    /// versions had their turn.
    pub(crate) fn refused(self, why: Failure) -> Result<Box<Refused>, Verdict> {
        match self {
            Unsettled::OnCanary(on_canary) => {
                let OnCanary { told, version, entry } = *on_canary;
                entry.tried(false);
                let run = failed_run(&version, &why);
                Ok(Box::new(Refused { run, trial: told.map(|(trial, _)| trial), failure: why }))
            }
            Unsettled::Again { trial, failure, .. } => {
                let seen = compared(&failure, &Outcome::Failed(why));
                Err(Verdict { trial, seen, failure: Some(failure) })
            }
        }
    }
}

/// Runs an attempt on the canary.
async fn on_canary(
    shared: &Arc<Shared>,
    job: &Leased,
    handler: Handler,
    entry: &Arc<running::Entry>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Ran {
    let mut wanted = wanted(job);
    if let Some(end_by_ms) = &mut wanted.ends.end_by_ms {
        // A canary that hangs leaves half of the task's time.
        *end_by_ms -= end_by_ms.saturating_sub(shared.clock.now_ms()).max(0) / 2;
    }
    on(shared, job, &wanted, Ok(handler), entry, slot).await
}

/// Runs an attempt on the current version.
async fn current(
    shared: &Arc<Shared>,
    job: &Leased,
    entry: &Arc<running::Entry>,
    slot: &mut Option<OwnedSemaphorePermit>,
) -> Ran {
    on(shared, job, &wanted(job), shared.catalog.handler(job.task.kind), entry, slot).await
}

/// The outcome of a run that a guest made, and not the cache or the host.
fn own(ran: &Ran) -> Option<&Outcome> {
    ran.outcome().filter(|_| ran.has_run())
}

/// Which version a task or a batch begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The current one: what it comes to there is noted.
    Current,
    /// The current one, because the canary takes no more.
    Closed,
    /// The canary.
    Canary {
        /// Whether what becomes of it is to be told.
        is_counted: bool,
    },
}

/// A canary that a task or a batch may try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    unit: Unit,
    tenant: TenantId,
    plugin: PluginId,
    version: VersionId,
    percent: u8,
    is_counted: bool,
}

impl Trial {
    pub(crate) fn of(trying: &Trying, unit: Unit) -> Trial {
        let Trying { loaded, percent, is_counted } = trying;
        let plugin = &loaded.plugin;
        Trial {
            unit,
            tenant: plugin.tenant,
            plugin: plugin.id,
            version: plugin.current.id,
            percent: *percent,
            is_counted: *is_counted,
        }
    }

    /// Whose turn it is: of a task, or of a batch by its number.
    pub(crate) async fn turn(&self, shared: &Shared, id: TaskId) -> Turn {
        if !is_chosen(id, self.version, self.percent) {
            return Turn::Current;
        }
        let entry = if self.is_counted { self.enter(shared).await } else { Entry::Free };
        if entry == Entry::Closed {
            return Turn::Closed;
        }
        Counters::add(&shared.counters.canary_attempts, 1);
        Turn::Canary { is_counted: entry == Entry::Counted }
    }

    async fn enter(&self, shared: &Shared) -> Entry {
        let Some(tenant) = shared.tenant(self.tenant) else { return Entry::Closed };
        let (patience_ms, now_ms) = (patience_ms(&tenant.policy), shared.clock.now_ms());
        let store = &shared.canaries.store;
        let entry = store.enter_canary(self.tenant, self.plugin, self.version, patience_ms, now_ms).await;
        entry.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "a canary cannot be tried");
            Entry::Closed
        })
    }

    /// Notes what the current version came to, for when somebody tells of the canary.
    pub(crate) fn note(&self, shared: &Shared, seen: Option<Seen>) {
        if let Some(seen) = seen.filter(|_| self.is_counted) {
            shared.canaries.note(self.version, self.unit, seen);
        }
    }

    /// Tells what became of whoever tried it, and follows the verdict if that was it.
    pub(crate) async fn tell(&self, shared: &Shared, seen: Option<Seen>, failure: Option<&Failure>) {
        let failure = failure.filter(|_| matches!(seen, Some(Seen::Broke | Seen::Declared)));
        let news = News {
            current: shared.canaries.take(self.version),
            canary: seen.map(|seen| (self.unit, seen)),
            failure: failure.map(|failure| text(&format!("{}: {}", failure.code, failure.message))),
        };
        let now_ms = shared.clock.now_ms();
        let store = &shared.canaries.store;
        match store.tell_canary(self.tenant, self.plugin, self.version, news, now_ms).await {
            Ok(None) => {}
            Ok(Some(verdict)) => self.follow(shared, verdict).await,
            Err(error) => tracing::warn!(error = %error, "what became of a run on a canary cannot be told"),
        }
    }

    async fn follow(&self, shared: &Shared, verdict: State) {
        if verdict == State::Worse {
            Counters::add(&shared.counters.canaries_worse, 1);
            tracing::warn!(plugin_version = %self.version, "a canary is worse than the current version and was taken back");
        } else {
            tracing::info!(plugin_version = %self.version, "a canary is no worse than the current version");
        }
        let before = shared.catalog.snapshot();
        if let Err(error) = shared.catalog.refresh().await {
            tracing::warn!(error = %error, "the plugins could not be read again");
        }
        shared.swapped(&before).await;
    }
}

/// A text of no more bytes than are kept.
fn text(whole: &str) -> String {
    let end = (0..=CANARY_FAILURE_BYTES_MAX.min(whole.len())).rev().find(|end| whole.is_char_boundary(*end));
    whole[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_tasks_is_one_to_fifty_percent() {
        assert_eq!([1, 50].map(|percent| checked(percent).ok()), [Some(1), Some(50)]);
        for percent in [0, 51, 256, u64::MAX] {
            assert_eq!(checked(percent).unwrap_err().code, Code::InvalidInput);
        }
    }

    #[test]
    fn a_failure_is_kept_up_to_its_limit_and_no_letter_is_cut() {
        let whole = "x".repeat(CANARY_FAILURE_BYTES_MAX);
        assert_eq!(text(&whole), whole);
        assert_eq!(text(&format!("{whole}y")), whole);
        let wide = format!("{}é", &whole[1..]);
        assert_eq!(text(&wide), whole[1..]);
    }
}
