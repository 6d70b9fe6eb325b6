//! Tenants, plugins, versions, components.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::catalog::{
    Activated, Cause, Generation, Installed, NewVersion, Plugin, RemoveWhen, Removed, Target,
};
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
    assert_eq!(back, Plugin { generation: 3, ..world.ada.plugin.clone() }, "the very row it was");
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
    let remove = || world.catalog.remove(world.ada.tenant, &name, RemoveWhen::Idle);
    assert_eq!(remove().await.unwrap(), Removed::Busy { live: 2 });
    world.settle(holder, complete(&task)).await;
    assert_eq!(remove().await.unwrap(), Removed::Busy { live: 1 });
    for task in world.lease(holder, 5).await {
        world.settle(holder, complete(&task)).await;
    }
    assert_eq!(remove().await.unwrap(), Removed::Removed);
    assert_eq!(remove().await.unwrap(), Removed::NotFound);
    let other =
        world.catalog.remove(world.ada.tenant, &"q".parse().unwrap(), RemoveWhen::Idle).await.unwrap();
    assert_eq!(other, Removed::NotFound);
    assert_eq!(world.catalog.plugins().await.unwrap(), std::slice::from_ref(&world.bob.plugin));
}

pub async fn a_removed_plugin_comes_back_with_its_history(world: &World) {
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let mut done = complete(&task);
    done.attempt = record(&task, Some(world.ada.plugin.current.id));
    world.settle(holder, done).await;
    world.catalog.remove(world.ada.tenant, &p(), RemoveWhen::Idle).await.unwrap();
    let view = world.view(&world.ada, task.id).await;
    assert_eq!((view.summary.plugin, view.summary.state), (p(), TaskState::Completed));
    assert_eq!(view.attempts[0].version.as_ref().map(|name| name.as_str()), Some("1"));
    let back = current(install(world, version(world.ada.tenant, "1", 1)).await);
    assert_eq!(back, Plugin { generation: 2, ..world.ada.plugin.clone() });
    assert!(matches!(back.current.id, VersionId(id) if id > 0));
}

pub async fn components_come_back_by_digest(world: &World) {
    let (first, second) = (Digest([1; 32]), Digest([2; 32]));
    assert_eq!(world.components.get(first).await.unwrap(), None);
    let large = Bytes::from(vec![3; 5_000_000]);
    world.components.put(first, large.clone(), 0).await.unwrap();
    world.components.put(first, large.clone(), 0).await.unwrap();
    world.components.put(second, Bytes::from_static(b""), 0).await.unwrap();
    assert!(world.components.get(first).await.unwrap() == Some(large));
    assert_eq!(world.components.get(second).await.unwrap(), Some(Bytes::new()));
}

pub async fn components_that_nothing_names_are_forgotten(world: &World) {
    let digests: [Digest; 4] = [11, 12, 13, 14].map(|byte| Digest([byte; 32]));
    let [named, again, old, young] = digests;
    for (digest, now_ms) in digests.into_iter().zip([100, 100, 100, 200]) {
        world.components.put(digest, Bytes::from_static(b"bytes"), now_ms).await.unwrap();
    }
    world.components.put(again, Bytes::from_static(b"bytes"), 200).await.unwrap();
    // Keeping it again does not make it older.
    world.components.put(young, Bytes::from_static(b"bytes"), 150).await.unwrap();
    current(install(world, version(world.ada.tenant, "2", 11)).await);
    // A version that is not the current one is gone back to.
    current(install(world, version(world.ada.tenant, "3", 1)).await);
    let forget = async |before_ms, now_ms| {
        let forgotten = world.components.forget(before_ms, now_ms).await.unwrap().expect("the store forgets");
        let kept = digests.into_iter().filter(|digest| forgotten.kept.contains(digest)).collect::<Vec<_>>();
        for digest in digests {
            let there = world.components.get(digest).await.unwrap().is_some();
            assert_eq!(there, kept.contains(&digest), "{digest}");
        }
        (forgotten.count, kept)
    };
    assert_eq!(forget(100, 100).await, (0, digests.to_vec()));
    assert_eq!(forget(101, 101).await, (1, vec![named, again, young]));
    assert_eq!(world.components.get(old).await.unwrap(), None);
    // What is named is as old as the last look behind half of the time.
    assert_eq!(forget(201, 400).await, (2, vec![named]));
    assert_eq!(forget(300, 500).await, (0, vec![named]));
    world.catalog.remove(world.ada.tenant, &p(), RemoveWhen::Idle).await.unwrap();
    assert_eq!(forget(400, 600).await, (0, vec![named]));
    assert_eq!(forget(401, 601).await, (1, vec![]));
    // What was forgotten can be put again.
    world.components.put(old, Bytes::from_static(b"bytes"), 300).await.unwrap();
    assert!(world.components.get(old).await.unwrap().is_some());
}

fn named(name: &str) -> Target {
    Target::Version(name.parse().unwrap())
}

/// Makes a version of Ada's plugin current, and gives what runs then.
async fn activated(world: &World, target: Target, at_ms: i64) -> String {
    match world.catalog.activate(world.ada.tenant, &p(), target, at_ms).await.unwrap() {
        Activated::Current(plugin) => plugin.current.name.to_string(),
        other => panic!("{other:?}"),
    }
}

pub async fn rollbacks_walk_back_to_the_first_version(world: &World) {
    for number in [2, 3] {
        install(world, version(world.ada.tenant, &number.to_string(), number)).await;
    }
    assert_eq!(activated(world, named("1"), NOW + 5).await, "1");
    // What a rollback left behind is not come back to.
    assert_eq!(activated(world, Target::Before, NOW + 6).await, "3");
    assert_eq!(activated(world, Target::Before, NOW + 7).await, "2");
    let next = world.catalog.version(world.ada.tenant, &p(), &Target::Before).await.unwrap();
    assert_eq!(next.map(|version| version.id), Some(world.ada.plugin.current.id));
    assert_eq!(activated(world, Target::Before, NOW + 8).await, "1");
    let nothing = world.catalog.activate(world.ada.tenant, &p(), Target::Before, NOW + 9).await.unwrap();
    assert_eq!(nothing, Activated::NoVersion);
    assert_eq!(world.catalog.version(world.ada.tenant, &p(), &Target::Before).await.unwrap(), None);
    // A swap after a rollback goes on from there.
    assert_eq!(activated(world, named("3"), NOW + 10).await, "3");
    assert_eq!(activated(world, Target::Before, NOW + 11).await, "1");
}

pub async fn an_activation_of_what_is_not_there_changes_nothing(world: &World) {
    let (ada, bob) = (world.ada.tenant, world.bob.tenant);
    install(world, version(ada, "2", 2)).await;
    let activate = |tenant, name: &str, target| {
        let name = name.parse().unwrap();
        async move { world.catalog.activate(tenant, &name, target, NOW + 5).await.unwrap() }
    };
    let before = world.catalog.plugins().await.unwrap();
    assert_eq!(activate(ada, "p", named("2")).await, Activated::Unchanged(before[0].clone()));
    assert_eq!(activate(ada, "p", named("9")).await, Activated::NoVersion);
    assert_eq!(activate(bob, "p", named("2")).await, Activated::NoVersion, "another tenant's version");
    assert_eq!(activate(bob, "p", Target::Before).await, Activated::NoVersion);
    assert_eq!(activate(ada, "q", named("1")).await, Activated::NoPlugin);
    assert_eq!(world.catalog.version(bob, &p(), &named("2")).await.unwrap(), None);
    assert_eq!(world.catalog.version(ada, &p(), &named("2")).await.unwrap(), Some(before[0].current.clone()));
    assert_eq!(world.catalog.plugins().await.unwrap(), before);
    world.catalog.remove(ada, &p(), RemoveWhen::Idle).await.unwrap();
    assert_eq!(activate(ada, "p", named("1")).await, Activated::NoPlugin);
    assert_eq!(world.catalog.generations(ada, &p(), None, 9).await.unwrap(), None);
}

pub async fn the_history_has_every_swap_newest_first(world: &World) {
    let ada = world.ada.tenant;
    let second = current(install(world, version(ada, "2", 2)).await);
    assert_eq!(second.generation, 2);
    activated(world, named("1"), NOW + 5).await;
    activated(world, Target::Before, NOW + 6).await;
    install(world, version(ada, "2", 2)).await;
    let all = world.catalog.generations(ada, &p(), None, 9).await.unwrap().unwrap();
    let told = |all: &[Generation]| -> Vec<(u64, String, Cause, i64)> {
        all.iter().map(|one| (one.number, one.version.name.to_string(), one.cause, one.at_ms)).collect()
    };
    let expected = [
        (4, "2", Cause::Rollback, NOW + 6),
        (3, "1", Cause::Activate, NOW + 5),
        (2, "2", Cause::Install, NOW + 1),
        (1, "1", Cause::Install, NOW),
    ];
    assert_eq!(told(&all), expected.map(|(number, name, cause, at)| (number, name.to_owned(), cause, at)));
    assert_eq!((&all[0].version, &all[3].version), (&second.current, &world.ada.plugin.current));
    assert_eq!(world.catalog.plugins().await.unwrap()[0].generation, 4);
    let first = world.catalog.generations(ada, &p(), None, 3).await.unwrap().unwrap();
    let rest = world.catalog.generations(ada, &p(), Some(2), 3).await.unwrap().unwrap();
    assert_eq!([first, rest].concat(), all);
    assert_eq!(world.catalog.generations(ada, &p(), Some(1), 3).await.unwrap(), Some(Vec::new()));
    assert_eq!(world.catalog.generations(world.bob.tenant, &p(), None, 9).await.unwrap().unwrap().len(), 1);
    assert_eq!(world.catalog.generations(ada, &"q".parse().unwrap(), None, 9).await.unwrap(), None);
}

pub async fn a_plugin_goes_when_its_tasks_have_ended(world: &World) {
    let (ada, name) = (world.ada.tenant, p());
    let holder = world.holder().await;
    let task = world.running(&world.ada, holder).await;
    let remove = || world.catalog.remove(ada, &name, RemoveWhen::Drained);
    assert_eq!(remove().await.unwrap(), Removed::Draining { live: 1 });
    let waiting = Plugin { draining: true, ..world.ada.plugin.clone() };
    assert_eq!(world.catalog.plugins().await.unwrap(), [waiting, world.bob.plugin.clone()]);
    // Whoever installs it again wants it to stay.
    assert_eq!(current(install(world, version(ada, "1", 1)).await), world.ada.plugin);
    assert_eq!(remove().await.unwrap(), Removed::Draining { live: 1 });
    world.settle(holder, complete(&task)).await;
    assert_eq!(remove().await.unwrap(), Removed::Removed);
    assert_eq!(remove().await.unwrap(), Removed::NotFound);
    // It comes back as new: a rollback does not go behind the removal.
    let back = current(install(world, version(ada, "2", 2)).await);
    assert_eq!((back.draining, back.generation), (false, 2));
    let nothing = world.catalog.activate(ada, &name, Target::Before, NOW + 9).await.unwrap();
    assert_eq!(nothing, Activated::NoVersion);
}
