//! Plugins as a host knows them: names, versions, kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::{Digest, KindId, PluginId, TenantId, VersionId};
use crate::manifest::Manifest;
use crate::name::{KindName, PluginName, TenantName, VersionName};

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
    /// Every kind that the plugin ever had, with its row; the current manifest says which are live.
    pub kinds: BTreeMap<KindName, KindId>,
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

/// What a removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// No new task can name it.
    Removed,
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
