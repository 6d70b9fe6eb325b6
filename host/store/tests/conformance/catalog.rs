//! Tenants, plugins, versions, components.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::catalog::{Installed, NewVersion, Plugin, Removed};
use keiko_core::id::{Digest, VersionId};
use keiko_core::manifest::Manifest;
use keiko_core::name::{PluginName, TenantName};
use keiko_core::task::TaskState;

use crate::world::{NOW, World, complete, record, version};

pub async fn tenants_are_made_once(world: &World) {
    let names: Vec<TenantName> = ["z", "ada", "y"].iter().map(|name| name.parse().unwrap()).collect();
    let tenants = world.catalog.ensure_tenants(&names).await.unwrap();
    assert_eq!(
        tenants.iter().map(|tenant| &tenant.name).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    assert_eq!(tenants[1].id, world.ada.tenant, "one that exists keeps its row");
    let again = join_all((0..8).map(|_| world.catalog.ensure_tenants(&names))).await;
    assert!(again.into_iter().all(|again| again.unwrap() == tenants));
    let twice = [names[0].clone(), names[0].clone()];
    assert_eq!(world.catalog.ensure_tenants(&twice).await.unwrap().len(), 2, "one row for each name given");
    assert!(world.catalog.ensure_tenants(&[]).await.unwrap().is_empty());
}

fn current(installed: Installed) -> Plugin {
    match installed {
        Installed::Current(plugin) => plugin,
        other => panic!("{other:?}"),
    }
}

async fn install(world: &World, version: NewVersion) -> Installed {
    world.catalog.install(version, NOW + 1).await.unwrap()
}

fn p() -> PluginName {
    "p".parse().unwrap()
}

pub async fn an_installed_version_is_current(world: &World) {
    let new = version(world.ada.tenant, "2", 2);
    let plugin = current(install(world, new.clone()).await);
    assert_eq!((plugin.id, plugin.tenant), (world.ada.plugin.id, world.ada.tenant));
    assert_eq!((plugin.current.digest, plugin.current.component_bytes), (new.digest, 7));
    assert_eq!((&plugin.current.manifest, plugin.current.installed_ms), (&new.manifest, NOW + 1));
    assert_ne!(plugin.current.id, world.ada.plugin.current.id);
    let all = world.catalog.plugins().await.unwrap();
    assert_eq!(all, [plugin, world.bob.plugin.clone()]);
}

pub async fn an_equal_version_changes_nothing(world: &World) {
    let again = install(world, version(world.ada.tenant, "1", 1)).await;
    assert_eq!(again, Installed::Unchanged(world.ada.plugin.clone()));
}

pub async fn a_versions_name_stands_for_one_component_and_manifest(world: &World) {
    let digest = Digest([1; 32]);
    let other_bytes = install(world, version(world.ada.tenant, "1", 9)).await;
    assert_eq!(other_bytes, Installed::VersionTaken { digest });
    let text = "[plugin]\nname = \"p\"\nversion = \"1\"\n[[kind]]\nname = \"run\"\n";
    let manifest = Arc::new(Manifest::parse(text.as_bytes()).unwrap());
    let other_manifest = NewVersion { manifest, ..version(world.ada.tenant, "1", 1) };
    assert_eq!(install(world, other_manifest).await, Installed::VersionTaken { digest });
    assert_eq!(world.catalog.plugins().await.unwrap()[0], world.ada.plugin);
}

pub async fn an_older_version_becomes_current_again(world: &World) {
    install(world, version(world.ada.tenant, "2", 2)).await;
    let back = current(install(world, version(world.ada.tenant, "1", 1)).await);
    assert_eq!(back, world.ada.plugin, "the very row it was");
}

pub async fn kinds_keep_their_rows_over_versions(world: &World) {
    let text =
        "[plugin]\nname = \"p\"\nversion = \"2\"\n[[kind]]\nname = \"walk\"\n[[kind]]\nname = \"swim\"\n";
    let manifest = Arc::new(Manifest::parse(text.as_bytes()).unwrap());
    let plugin = current(install(world, NewVersion { manifest, ..version(world.ada.tenant, "2", 2) }).await);
    let kinds: Vec<&str> = plugin.kinds.keys().map(|name| name.as_str()).collect();
    assert_eq!(kinds, ["run", "swim", "walk"], "every kind it ever had");
    assert_eq!(plugin.kinds[&"walk".parse().unwrap()], world.ada.other_kind);
    assert_ne!(world.ada.kind, world.bob.kind);
}

pub async fn a_plugin_with_live_tasks_stays(world: &World) {
    let holder = world.holder().await;
    world.submit_plain(&world.ada, 2).await;
    world.submit_plain(&world.bob, 1).await;
    let task = world.lease(holder, 1).await.remove(0);
    let name = p();
    let remove = || world.catalog.remove(world.ada.tenant, &name);
    assert_eq!(remove().await.unwrap(), Removed::Busy { live: 2 });
    world.settle(holder, complete(&task)).await;
    assert_eq!(remove().await.unwrap(), Removed::Busy { live: 1 });
    for task in world.lease(holder, 5).await {
        world.settle(holder, complete(&task)).await;
    }
    assert_eq!(remove().await.unwrap(), Removed::Removed);
    assert_eq!(remove().await.unwrap(), Removed::NotFound);
    let other = world.catalog.remove(world.ada.tenant, &"q".parse().unwrap()).await.unwrap();
    assert_eq!(other, Removed::NotFound);
    assert_eq!(world.catalog.plugins().await.unwrap(), std::slice::from_ref(&world.bob.plugin));
}

pub async fn a_removed_plugin_comes_back_with_its_history(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let mut done = complete(&task);
    done.attempt = record(&task, Some(world.ada.plugin.current.id));
    world.settle(holder, done).await;
    world.catalog.remove(world.ada.tenant, &p()).await.unwrap();
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.plugin, view.summary.state), (p(), TaskState::Completed));
    assert_eq!(view.attempts[0].version.as_ref().map(|name| name.as_str()), Some("1"));
    let back = current(install(world, version(world.ada.tenant, "1", 1)).await);
    assert_eq!(back, world.ada.plugin);
    assert!(matches!(back.current.id, VersionId(id) if id > 0));
}

pub async fn components_come_back_by_digest(world: &World) {
    let (first, second) = (Digest([1; 32]), Digest([2; 32]));
    assert_eq!(world.components.get(first).await.unwrap(), None);
    let large = Bytes::from(vec![3; 5_000_000]);
    world.components.put(first, large.clone()).await.unwrap();
    world.components.put(first, large.clone()).await.unwrap();
    world.components.put(second, Bytes::from_static(b"")).await.unwrap();
    assert!(world.components.get(first).await.unwrap() == Some(large));
    assert_eq!(world.components.get(second).await.unwrap(), Some(Bytes::new()));
}
