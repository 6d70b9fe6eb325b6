//! `[sources."HOST"]`, as it was written.

use super::super::origin::Origin;
use super::{Set, Table};

/// A host that components may be fetched from.
#[derive(Clone, Debug)]
pub(in crate::config) struct SourceWritten {
    pub(in crate::config) origin: Origin,
    pub(in crate::config) tenants: Option<Set<Vec<Set<String>>>>,
    pub(in crate::config) addresses: Option<Set<Vec<Set<String>>>>,
    pub(in crate::config) http: Option<Set<bool>>,
    pub(in crate::config) ca_file: Option<Set<String>>,
    pub(in crate::config) user: Option<Set<String>>,
    pub(in crate::config) password: Option<Set<String>>,
}

/// Reads a host's table, which may be empty: `place` is where it stands then.
pub(super) fn source(table: &Table<'_>, place: Origin) -> SourceWritten {
    let origin = if table.entries.is_empty() { place } else { table.origin_of_first() };
    let written = SourceWritten {
        origin,
        tenants: table.list_of_texts("tenants"),
        addresses: table.list_of_texts("addresses"),
        http: table.boolean("http"),
        ca_file: table.text("ca_file"),
        user: table.text("user"),
        password: table.text("password"),
    };
    table.finish();
    written
}
