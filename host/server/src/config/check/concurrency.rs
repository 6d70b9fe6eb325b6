//! How many tasks of a plugin's kinds run at once, as a tenant's configuration allows it.

use std::collections::BTreeMap;

use keiko_core::slot::{Concurrency, SLOTS_MAX};
use keiko_core::{KindName, PluginName};

use super::super::written::{NumbersWritten, TenantWritten};
use super::Checker;

impl Checker {
    /// What is written for plugins and their kinds; the name of a plugin is checked with its settings.
    pub(super) fn concurrency(
        &mut self,
        path: &str,
        tenant: &TenantWritten,
    ) -> BTreeMap<(PluginName, Option<KindName>), Concurrency> {
        let mut checked = BTreeMap::new();
        for ((plugin, kind), numbers) in &tenant.concurrency {
            let of_kind = kind.iter().map(|kind| format!(".kinds.{kind}"));
            let path = format!("{path}.plugins.{plugin}{}.concurrency", of_kind.collect::<String>());
            let declared = Concurrency {
                max: self.slots(&path, "max", numbers),
                per_key: self.slots(&path, "per_key", numbers),
            };
            let name = match kind.as_ref().map(|kind| kind.parse::<KindName>()).transpose() {
                Ok(name) => name,
                Err(error) => {
                    let first = numbers.values().next().map(|set| set.origin.clone());
                    let origin = first.unwrap_or(super::Origin::Default);
                    self.mistake(path, origin, error.to_string());
                    continue;
                }
            };
            if let Ok(plugin) = plugin.parse::<PluginName>() {
                checked.insert((plugin, name), declared);
            }
        }
        checked
    }

    fn slots(&mut self, path: &str, name: &'static str, numbers: &NumbersWritten) -> Option<u32> {
        let set = numbers.get(name)?;
        let number = self.within(&format!("{path}.{name}"), Some(set), 1, 1, u64::from(SLOTS_MAX));
        u32::try_from(number).ok()
    }
}
