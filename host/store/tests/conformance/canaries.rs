//! Canaries: who may try them, what is counted over all hosts, and what ends them.

use futures::future::join_all;
use keiko_core::canary::{Entry, News, Seen, State, Tally, Unit};
use keiko_core::catalog::{Begun, Candidate, Plugin, RemoveWhen, Target, Tried};
use keiko_core::id::{Digest, TenantId, VersionId};
use keiko_core::limit::CANARY_TASKS_MAX;
use keiko_core::name::PluginName;
use keiko_core::port::Beat;

use crate::world::{LEASE_MS, NOW, World, version};

/// How long a trial waits for who does not tell: as the policy of the host that asks says.
const PATIENCE_MS: i64 = 7_000;

fn p() -> PluginName {
    "p".parse().unwrap()
}

/// Version 2 as the canary of Ada's plugin.
async fn begin(world: &World) -> (Plugin, VersionId) {
    let candidate = Candidate::New(version(world.ada.tenant, "2", 2));
    let begun = world.canaries.begin_canary(world.ada.tenant, candidate, 10, NOW + 1).await.unwrap();
    let Begun::Canary(plugin) = begun else { panic!("{begun:?}") };
    let canary = plugin.canary.as_ref().unwrap().version.id;
    (plugin, canary)
}

async fn named(world: &World, tenant: TenantId, name: &str, version: &str) -> Begun {
    let candidate = Candidate::Named(name.parse().unwrap(), version.parse().unwrap());
    world.canaries.begin_canary(tenant, candidate, 50, NOW + 2).await.unwrap()
}

async fn enter(world: &World, canary: VersionId) -> Entry {
    let (tenant, plugin) = (world.ada.tenant, world.ada.plugin.id);
    world.canaries.enter_canary(tenant, plugin, canary, PATIENCE_MS, NOW + 3).await.unwrap()
}

async fn tell(world: &World, canary: VersionId, current: u64, seen: Option<Seen>) -> Option<State> {
    let failure = (seen == Some(Seen::Broke)).then(|| "trap: no\0w".to_owned());
    let seen = seen.map(|seen| (Unit::Task, seen));
    let news = News { current: Tally { tasks: current, ..Tally::default() }, canary: seen, failure };
    let (tenant, plugin) = (world.ada.tenant, world.ada.plugin.id);
    world.canaries.tell_canary(tenant, plugin, canary, news, NOW + 4).await.unwrap()
}

async fn last(world: &World) -> Tried {
    world.canaries.canary(world.ada.tenant, &p()).await.unwrap().unwrap()
}

async fn ada(world: &World) -> Plugin {
    world.catalog.plugins().await.unwrap().remove(0)
}

/// The number that tells hosts to read the catalog again.
async fn number(world: &World) -> i64 {
    let holder = world.holder().await;
    match world.tasks.beat(holder, NOW, LEASE_MS).await.unwrap() {
        Beat::Alive { catalog, .. } => catalog,
        other => panic!("{other:?}"),
    }
}

pub async fn a_canary_stands_beside_the_current_version(world: &World) {
    let before = number(world).await;
    let (plugin, canary) = begin(world).await;
    assert!(number(world).await > before);
    assert_eq!((&plugin.current, plugin.generation), (&world.ada.plugin.current, 1), "nothing is swapped");
    let trying = plugin.canary.clone().unwrap();
    assert_eq!((trying.percent, trying.is_trying, trying.version.digest), (10, true, Digest([2; 32])));
    assert_eq!(world.catalog.plugins().await.unwrap(), [plugin.clone(), world.bob.plugin.clone()]);
    let told = last(world).await;
    assert_eq!((told.version.as_str(), told.percent, told.is_over), ("2", 10, false));
    assert_eq!(
        (told.standing.state, told.standing.touched, told.standing.since_ms),
        (State::Trying, 0, NOW + 1)
    );
    assert_eq!(world.canaries.canary(world.bob.tenant, &p()).await.unwrap(), None);
    // Named, it begins anew, and it can be made current as any other.
    let Begun::Canary(again) = named(world, world.ada.tenant, "p", "2").await else { panic!("not begun") };
    assert_eq!(again.canary.map(|canary| (canary.version.id, canary.percent)), Some((canary, 50)));
}

pub async fn what_cannot_be_a_canary_changes_nothing(world: &World) {
    let (ada_, bob) = (world.ada.tenant, world.bob.tenant);
    assert!(
        matches!(named(world, ada_, "p", "1").await, Begun::IsCurrent(plugin) if plugin == world.ada.plugin)
    );
    assert_eq!(named(world, ada_, "p", "9").await, Begun::NoVersion);
    assert_eq!(named(world, ada_, "q", "1").await, Begun::NoPlugin);
    begin(world).await;
    assert_eq!(named(world, bob, "p", "2").await, Begun::NoVersion, "another tenant's version");
    let taken = Candidate::New(version(ada_, "2", 9));
    let digest = Digest([2; 32]);
    let begun = world.canaries.begin_canary(ada_, taken, 10, NOW + 2).await.unwrap();
    assert_eq!(begun, Begun::VersionTaken { digest });
    world.catalog.remove(ada_, &p(), RemoveWhen::Idle).await.unwrap();
    assert_eq!(named(world, ada_, "p", "2").await, Begun::NoPlugin);
    assert_eq!(world.canaries.canary(ada_, &p()).await.unwrap(), None);
}

pub async fn no_more_tasks_try_a_canary_than_the_bound_however_many_come_at_once(world: &World) {
    let (_, canary) = begin(world).await;
    let entries = join_all((0..CANARY_TASKS_MAX + 40).map(|_| enter(world, canary))).await;
    let counted = entries.iter().filter(|entry| **entry == Entry::Counted).count();
    assert_eq!(counted, CANARY_TASKS_MAX as usize);
    assert!(entries.iter().all(|entry| *entry != Entry::Free));
    assert_eq!(last(world).await.standing.touched, CANARY_TASKS_MAX);
    // One that came to nothing makes room for another.
    assert_eq!(tell(world, canary, 0, None).await, None);
    assert_eq!((enter(world, canary).await, enter(world, canary).await), (Entry::Counted, Entry::Closed));
    // Nobody waits for ever for tasks whose host is gone.
    let (tenant, plugin) = (world.ada.tenant, world.ada.plugin.id);
    for (late, expected) in [(PATIENCE_MS - 1, Entry::Closed), (PATIENCE_MS, Entry::Free)] {
        let entry = world.canaries.enter_canary(tenant, plugin, canary, PATIENCE_MS, NOW + 3 + late).await;
        assert_eq!(entry.unwrap(), expected);
    }
    assert!(!ada(world).await.canary.unwrap().is_trying);
}

pub async fn a_canary_that_is_worse_is_tried_no_more(world: &World) {
    let (_, canary) = begin(world).await;
    let before = number(world).await;
    let mut told = 0;
    let verdict = loop {
        assert_eq!(enter(world, canary).await, Entry::Counted);
        told += 1;
        if let Some(verdict) = tell(world, canary, 9, Some(Seen::Broke)).await {
            break verdict;
        }
    };
    assert!(verdict == State::Worse && told < 10, "{verdict:?} after {told}");
    assert!(number(world).await > before, "other hosts hear of it");
    assert_eq!(ada(world).await, world.ada.plugin, "what was current is, and there is no canary");
    assert_eq!(enter(world, canary).await, Entry::Closed);
    assert_eq!(tell(world, canary, 9, Some(Seen::Broke)).await, None);
    let last = last(world).await;
    assert_eq!((last.standing.state, last.standing.since_ms, last.is_over), (State::Worse, NOW + 4, false));
    let seen = last.standing.trial.seen();
    assert_eq!((seen.canary.broke, seen.current.tasks), (told, 9 * told));
    assert!(last.standing.failure.unwrap().starts_with("trap: no"));
}

pub async fn batches_try_a_canary_beside_tasks_and_are_told_apart(world: &World) {
    let (_, canary) = begin(world).await;
    let (tenant, plugin) = (world.ada.tenant, world.ada.plugin.id);
    for told in 1..=CANARY_TASKS_MAX {
        assert_eq!(enter(world, canary).await, Entry::Counted);
        if told % 2 == 0 {
            tell(world, canary, 1, Some(Seen::Well)).await;
            continue;
        }
        assert_eq!(last(world).await.standing.state, State::Trying, "{told}");
        let current = Tally::default().with(Unit::Batch, Seen::Declared);
        let news = News { current, canary: Some((Unit::Batch, Seen::Well)), failure: None };
        world.canaries.tell_canary(tenant, plugin, canary, news, NOW + 4).await.unwrap();
    }
    let standing = last(world).await.standing;
    assert_eq!((standing.state, standing.touched), (State::Passed, CANARY_TASKS_MAX), "of both together");
    let (seen, half) = (standing.trial.seen(), u64::from(CANARY_TASKS_MAX / 2));
    assert_eq!((seen.canary.tasks, seen.canary.batches), (2 * half, half));
    assert_eq!((seen.current.batches, seen.current.declared), (half, half));
}

pub async fn a_canary_that_is_no_worse_keeps_its_part(world: &World) {
    let (_, canary) = begin(world).await;
    for told in 1..=CANARY_TASKS_MAX {
        assert_eq!(enter(world, canary).await, Entry::Counted);
        let expected = (told == CANARY_TASKS_MAX).then_some(State::Passed);
        assert_eq!(tell(world, canary, 1, Some(Seen::Well)).await, expected);
    }
    assert!(!ada(world).await.canary.unwrap().is_trying);
    assert_eq!(enter(world, canary).await, Entry::Free);
    assert!(world.canaries.withdraw_canary(world.ada.tenant, &p(), NOW + 5).await.unwrap());
    assert_eq!((ada(world).await.canary, enter(world, canary).await), (None, Entry::Closed));
}

pub async fn a_swap_ends_a_canary(world: &World) {
    let (_, canary) = begin(world).await;
    enter(world, canary).await;
    tell(world, canary, 3, Some(Seen::Well)).await;
    let name = p();
    let activate = |target| world.catalog.activate(world.ada.tenant, &name, target, NOW + 5);
    activate(Target::Version("2".parse().unwrap())).await.unwrap();
    assert_eq!((ada(world).await.canary, enter(world, canary).await), (None, Entry::Closed));
    activate(Target::Before).await.unwrap();
    assert_eq!(ada(world).await.canary, None, "nor does it come back with what was there before");
    assert_eq!(
        (enter(world, canary).await, tell(world, canary, 1, Some(Seen::Well)).await),
        (Entry::Closed, None)
    );
    assert!(last(world).await.is_over);
    assert!(!world.canaries.withdraw_canary(world.ada.tenant, &p(), NOW + 6).await.unwrap());
    begin(world).await;
    let anew = last(world).await;
    assert_eq!((anew.is_over, anew.standing.touched, anew.standing.trial.seen().canary.tasks), (false, 0, 0));
}

pub async fn a_canary_is_its_tenants(world: &World) {
    let (plugin, canary) = begin(world).await;
    let bob = world.bob.tenant;
    assert_eq!(
        world.canaries.enter_canary(bob, plugin.id, canary, PATIENCE_MS, NOW).await.unwrap(),
        Entry::Closed
    );
    let news = News { canary: Some((Unit::Task, Seen::Well)), ..News::default() };
    assert_eq!(world.canaries.tell_canary(bob, plugin.id, canary, news, NOW).await.unwrap(), None);
    assert!(!world.canaries.withdraw_canary(bob, &p(), NOW).await.unwrap());
    let other = VersionId(canary.0 + 1_000);
    assert_eq!(enter(world, other).await, Entry::Closed, "nor is another version");
    let standing = last(world).await.standing;
    assert_eq!((standing.touched, standing.state), (0, State::Trying));
}
