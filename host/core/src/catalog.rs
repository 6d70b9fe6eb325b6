//! Plugins as a host knows them: names, versions, kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::canary::Standing;
use crate::id::{Digest, KindId, PluginId, TenantId, VersionId};
use crate::manifest::Manifest;
use crate::name::{KindName, PluginName, TenantName, VersionName};
use crate::port::Keep;

/// An immutable version of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginVersion {
    /// Its row.
    pub id: VersionId,
    /// Its name.
    pub name: VersionName,
    /// Its component.
    pub digest: Digest,
    /// Size of the component in bytes.
    pub component_bytes: u64,
    /// What it says of itself.
    pub manifest: Arc<Manifest>,
    /// When it was installed.
    pub installed_ms: i64,
}

impl PluginVersion {
    /// How its instances are kept for the next attempt, when it asks for that.
    pub fn keep(&self) -> Option<Keep> {
        self.manifest.plugin.reuse.map(|reuse| Keep { version: self.id, reuse })
    }
}

/// A plugin with its current version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Its row.
    pub id: PluginId,
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: PluginName,
    /// The version that new attempts run.
    pub current: PluginVersion,
    /// Its place in the plugin's history: grows by one with every swap.
    pub generation: u64,
    /// Whether it goes when its last live task has ended, and takes no new ones from outside until then.
    pub draining: bool,
    /// Every kind that the plugin ever had, with its row; the current manifest says which are live.
    pub kinds: BTreeMap<KindName, KindId>,
    /// The version that a part of its tasks runs.
    pub canary: Option<Canary>,
}

impl Plugin {
    /// The versions that its tasks run: the current one, and its canary.
    pub fn running(&self) -> impl Iterator<Item = &PluginVersion> {
        std::iter::once(&self.current).chain(self.canary.as_ref().map(|canary| &canary.version))
    }
}

/// A version that a part of a plugin's tasks runs beside the current one, until the next swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The version.
    pub version: PluginVersion,
    /// How large that part is.
    pub percent: u8,
    /// Whether those tasks are counted: until there is a verdict.
    pub is_trying: bool,
}

/// Which version becomes a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// One that was installed before, by its name.
    Named(PluginName, VersionName),
    /// One that is installed for that, its component already kept; it is not made current.
    New(NewVersion),
}

/// What the beginning of a canary did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The plugin's canary is this version now, instead of any other.
    Canary(Plugin),
    /// It is the plugin's current version.
    IsCurrent(Plugin),
    /// The tenant has no such plugin.
    NoPlugin,
    /// The plugin has no such version.
    NoVersion,
    /// The version's name stands for other bytes or another manifest.
    VersionTaken {
        /// The component that has the name.
        digest: Digest,
    },
}

/// The last canary of a plugin, as it stands or ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// Which version.
    pub version: VersionName,
    /// The part of the tasks.
    pub percent: u8,
    /// Whether a swap has ended it.
    pub is_over: bool,
    /// How it stands.
    pub standing: Standing,
}

/// A version to be stored, with its component already kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVersion {
    /// Whose.
    pub tenant: TenantId,
    /// The component.
    pub digest: Digest,
    /// Its size.
    pub component_bytes: u64,
    /// What it says of itself: names the plugin, the version and the kinds.
    pub manifest: Arc<Manifest>,
}

/// What an install did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It is the plugin's current version now.
    Current(Plugin),
    /// The same version with the same component and manifest was current already.
    Unchanged(Plugin),
    /// The version's name stands for other bytes or another manifest.
    VersionTaken {
        /// The component that has the name.
        digest: Digest,
    },
}

/// Why a version became the current one. Stored by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was installed, or installed again.
    Install,
    /// Somebody named it.
    Activate,
    /// Somebody wanted back what was there before.
    Rollback,
}

impl Cause {
    /// Every cause, by its number.
    pub const ALL: &'static [Cause] = &[Cause::Install, Cause::Activate, Cause::Rollback];

    /// The name that people and programs see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Install => "install",
            Cause::Activate => "activate",
            Cause::Rollback => "rollback",
        }
    }

    /// The cause of a stored number.
    pub fn numbered(number: i64) -> Option<Cause> {
        usize::try_from(number).ok().and_then(|place| Cause::ALL.get(place).copied())
    }
}

/// One swap of a plugin: from then on, and until the next, new attempts ran this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// From 1, without gaps.
    pub number: u64,
    /// What ran.
    pub version: PluginVersion,
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub at_ms: i64,
}

/// Which version is to become current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one of this name.
    Version(VersionName),
    /// The one that the current one took over from. Asked again and again, it walks back to the first, like an undo:
    /// what a rollback left behind is not come back to.
    Before,
}

/// What an activation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activated {
    /// It is the plugin's current version now.
    Current(Plugin),
    /// It was already.
    Unchanged(Plugin),
    /// The tenant has no such plugin.
    NoPlugin,
    /// The plugin has no such version, or nothing to go back to.
    NoVersion,
}

/// When a plugin is removed that has live tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveWhen {
    /// Not at all.
    Idle,
    /// When the last of them has ended; until then it takes no new ones from outside.
    Drained,
}

/// What a removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// No new task can name it.
    Removed,
    /// It goes when this many tasks have ended.
    Draining {
        /// Pending and running tasks.
        live: u64,
    },
    /// It has tasks that have not ended: this many.
    Busy {
        /// Pending and running tasks.
        live: u64,
    },
    /// The tenant has no such plugin.
    NotFound,
}

/// A tenant's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its row.
    pub id: TenantId,
    /// Its name.
    pub name: TenantName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_keep_their_numbers_and_names() {
        let names = ["install", "activate", "rollback"];
        for (number, name) in names.into_iter().enumerate() {
            assert_eq!(Cause::numbered(number as i64).map(Cause::as_str), Some(name));
            assert_eq!(Cause::ALL[number] as i64, number as i64);
        }
        assert_eq!(Cause::numbered(names.len() as i64), None);
        assert_eq!(Cause::numbered(-1), None);
    }
}
