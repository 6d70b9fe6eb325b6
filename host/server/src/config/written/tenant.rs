//! A tenant's table as it was written, with what it says of plugins and processors.

use std::collections::BTreeMap;

use super::{
    CONCURRENCY, LIMITS, NumbersWritten, PROCESSOR, ProcessorWritten, Table, TenantWritten, TokenWritten,
};

pub(super) fn tenant(table: &Table<'_>) -> TenantWritten {
    let (mut limits, mut batch_adaptive) = (BTreeMap::new(), None);
    if let Some(table) = table.table("limits") {
        for name in LIMITS {
            limits.extend(table.number(name).map(|set| (*name, set)));
        }
        batch_adaptive = table.boolean("batch_adaptive");
        table.finish();
    }
    let (mut settings, mut concurrency) = (BTreeMap::new(), BTreeMap::new());
    if let Some(plugins) = table.table("plugins") {
        for (name, plugin) in plugins.tables() {
            let values = plugin.table("settings").map(|settings| settings.texts()).unwrap_or_default();
            settings.insert(name.clone(), (plugin.origin_of_first(), values));
            concurrency.extend(declared(&plugin).map(|own| ((name.clone(), None), own)));
            if let Some(kinds) = plugin.table("kinds") {
                for (kind, table) in kinds.tables() {
                    concurrency.extend(declared(&table).map(|own| ((name.clone(), Some(kind)), own)));
                    table.finish();
                }
            }
            plugin.finish();
        }
    }
    let mut processors = BTreeMap::new();
    if let Some(tables) = table.table("processors") {
        for (name, table) in tables.tables() {
            processors.insert(name, processor(&table));
        }
    }
    let token = |token: Table<'_>| {
        let entry = TokenWritten {
            origin: token.origin_of_first(),
            id: token.text("id"),
            hash: token.text("hash"),
            name: token.text("name"),
            expires: token.text("expires"),
            operator: token.boolean("operator"),
        };
        token.finish();
        entry
    };
    let written = TenantWritten {
        origin: table.origin_of_first(),
        tokens: table.list_of_tables("tokens").into_iter().map(token).collect(),
        limits,
        batch_adaptive,
        grants: table.list_of_texts("grants"),
        profiles: table.list_of_texts("profiles"),
        signers: table.list_of_texts("signers"),
        settings,
        processors,
        concurrency,
    };
    table.finish();
    written
}

/// What a plugin's or a kind's table says of how many tasks run at once.
fn declared(table: &Table<'_>) -> Option<NumbersWritten> {
    let table = table.table("concurrency")?;
    let number = |name: &&'static str| Some((*name, table.number(name)?));
    let numbers = CONCURRENCY.iter().filter_map(number).collect();
    table.finish();
    Some(numbers)
}

fn processor(table: &Table<'_>) -> ProcessorWritten {
    let number = |name: &&'static str| Some((*name, table.number(name)?));
    let written = ProcessorWritten {
        origin: table.origin_of_first(),
        keep: table.text("keep"),
        numbers: PROCESSOR.iter().filter_map(number).collect(),
        ordered: table.boolean("ordered"),
    };
    table.finish();
    written
}
