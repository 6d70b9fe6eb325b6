//! Schedules, and the tasks of their occurrences.

use std::collections::HashSet;

use futures::future::join_all;
use keiko_core::code::Code;
use keiko_core::id::AgentId;
use keiko_core::once::{Once, OnceRule};
use keiko_core::port::{Created, Fired, Firing};
use keiko_core::schedule::{Last, Schedule};
use keiko_core::task::{Submit, Submitted, TaskFilter};

use crate::world::{Customer, NOW, World, complete, schedule, submit};

async fn create(world: &World, customer: &Customer, name: &str, next_ms: Option<i64>) -> Schedule {
    let schedule = schedule(customer, name, next_ms);
    assert_eq!(world.schedules.create(schedule.clone(), 100).await.unwrap(), Created::Stored);
    schedule
}

fn firing(schedule: &Schedule, due_ms: i64, next_ms: Option<i64>, task: Option<Submit>) -> Firing {
    Firing {
        tenant: schedule.tenant,
        name: schedule.name.clone(),
        due_ms,
        next_ms,
        occurrence: task.map(|task| (due_ms, Ok(task))),
    }
}

async fn one(world: &World, customer: &Customer) -> Submit {
    submit(customer, world.new_tasks(customer, 1).await)
}

pub async fn a_schedule_comes_back_as_it_was_made(world: &World) {
    let schedule = create(world, &world.ada, "nightly", Some(NOW + 5)).await;
    let name = &schedule.name;
    let ada = world.ada.tenant;
    assert_eq!(world.schedules.schedule(ada, name).await.unwrap().as_ref(), Some(&schedule));
    let again = self::schedule(&world.ada, "nightly", None);
    assert_eq!(world.schedules.create(again, 100).await.unwrap(), Created::Taken);
    assert_eq!(world.schedules.schedule(ada, name).await.unwrap(), Some(schedule.clone()));
    let names = ["a", "b", "c"];
    for name in names {
        create(world, &world.ada, name, None).await;
    }
    let full = world.schedules.create(self::schedule(&world.ada, "d", None), 4).await.unwrap();
    assert_eq!(full, Created::Full { count: 4 });
    create(world, &world.bob, "a", None).await;
    let list = async |after: Option<&str>| {
        let after = after.map(|name| name.parse().unwrap());
        let page = world.schedules.schedules(ada, after.as_ref(), 2).await.unwrap();
        page.into_iter().map(|one| one.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list(None).await, ["a", "b"]);
    assert_eq!(list(Some("b")).await, ["c", "nightly"]);
    assert!(list(Some("nightly")).await.is_empty());
    assert!(world.schedules.remove_schedule(ada, name).await.unwrap());
    assert!(!world.schedules.remove_schedule(ada, name).await.unwrap());
    assert_eq!(world.schedules.schedule(ada, name).await.unwrap(), None);
    assert!(world.schedules.due_schedules(NOW + 5, &[], 10).await.unwrap().schedules.is_empty());
}

pub async fn schedules_are_due_in_order_and_say_when_the_next_is(world: &World) {
    for (name, next_ms) in [("c", 3), ("a", 1), ("b", 2), ("later", 50)] {
        create(world, &world.ada, name, Some(NOW + next_ms)).await;
    }
    create(world, &world.bob, "never", None).await;
    let due = world.schedules.due_schedules(NOW, &[], 10).await.unwrap();
    assert_eq!((due.schedules.len(), due.now_ms, due.next_ms), (0, NOW, Some(NOW + 1)));
    let due = world.schedules.due_schedules(NOW + 3, &[], 2).await.unwrap();
    let names: Vec<_> = due.schedules.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, due.next_ms), (vec!["a", "b"], Some(NOW + 50)));
}

pub async fn schedules_that_are_passed_over_hide_no_others(world: &World) {
    for (name, next_ms) in [("c", 3), ("a", 1), ("b", 2), ("later", 50)] {
        create(world, &world.ada, name, Some(NOW + next_ms)).await;
    }
    // Another tenant's of the same name is another one.
    let passed = [(world.ada.tenant, "a".to_owned()), (world.bob.tenant, "b".to_owned())];
    let due = world.schedules.due_schedules(NOW + 3, &passed, 2).await.unwrap();
    let names: Vec<_> = due.schedules.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, due.next_ms), (vec!["b", "c"], Some(NOW + 50)));
}

pub async fn an_occurrence_is_submitted_once(world: &World) {
    let schedule = create(world, &world.ada, "s", Some(NOW)).await;
    let submits = join_all((0..20).map(|_| one(world, &world.ada))).await;
    let fire = |task| world.schedules.fire(firing(&schedule, NOW, Some(NOW + 60), Some(task)), NOW);
    let fired: Vec<Fired> =
        join_all(submits.into_iter().map(fire)).await.into_iter().map(Result::unwrap).collect();
    let first = fired.iter().find_map(|fired| match fired {
        Fired::Submitted(Submitted::Accepted { first, duplicate: false, .. }) => Some(*first),
        _ => None,
    });
    assert_eq!(fired.iter().filter(|fired| **fired == Fired::NotDue).count(), 19, "{fired:?}");
    assert_eq!(world.list(&world.ada, &TaskFilter::default()).await.len(), 1);
    let known = world.schedules.schedule(world.ada.tenant, &schedule.name).await.unwrap().unwrap();
    assert_eq!(known.next_ms, Some(NOW + 60));
    assert_eq!(known.last, Some(Last { at_ms: NOW, task: first, problem: None }));
    // One that was missed moves on, and leaves what is known of the one before.
    let missed = world.schedules.fire(firing(&schedule, NOW + 60, Some(NOW + 120), None), NOW + 100).await;
    assert_eq!(missed.unwrap(), Fired::Noted);
    let after = world.schedules.schedule(world.ada.tenant, &schedule.name).await.unwrap().unwrap();
    assert_eq!((after.next_ms, after.last), (Some(NOW + 120), known.last));
    assert_eq!(world.list(&world.ada, &TaskFilter::default()).await.len(), 1);
    let ids: HashSet<_> =
        world.list(&world.ada, &TaskFilter::default()).await.iter().map(|one| one.id).collect();
    assert_eq!(ids.into_iter().next(), first);
}

pub async fn an_occurrence_without_a_task_says_why(world: &World) {
    let schedule = create(world, &world.ada, "s", Some(NOW)).await;
    let last = async || {
        let known = world.schedules.schedule(world.ada.tenant, &schedule.name).await.unwrap().unwrap();
        known.last.expect("it has occurred")
    };
    let unique = async || {
        let rule = OnceRule::Unique { refuse: false };
        let mut submit = one(world, &world.ada).await;
        submit.tasks[0].once = Some(Once { key: "\u{1}s".to_owned(), rule });
        submit
    };
    let fire = async |at: i64, task| {
        let firing = firing(&schedule, NOW + at, Some(NOW + at + 1), Some(task));
        world.schedules.fire(firing, NOW + at).await.unwrap()
    };
    fire(0, unique().await).await;
    let first = last().await;
    assert_eq!(first.problem, None);
    fire(1, unique().await).await;
    let second = last().await;
    assert_eq!((second.at_ms, second.task), (NOW + 1, first.task), "it overlaps");
    assert_eq!(second.problem.unwrap().0, "conflict");
    let holder = world.holder().await;
    let leased = world.lease(holder, 5).await.remove(0);
    world.settle(holder, complete(&leased)).await;
    fire(2, unique().await).await;
    let third = last().await;
    assert!(third.problem.is_none() && third.task != first.task, "{third:?}");
    fire(3, Submit { queue_max: 1, ..one(world, &world.ada).await }).await;
    let full = last().await;
    assert_eq!((full.task, full.problem.unwrap().0.as_str()), (None, "queue_full"));
    let mut nobodys = one(world, &world.ada).await;
    nobodys.tasks[0].agent = Some(AgentId(77));
    fire(4, nobodys).await;
    assert_eq!(last().await.problem.unwrap().0, "not_found");
    let gone = (NOW + 5, Err((Code::NotFound, "no plugin has this kind".to_owned())));
    let gone = Firing { occurrence: Some(gone), ..firing(&schedule, NOW + 5, None, None) };
    assert_eq!(world.schedules.fire(gone, NOW + 5).await.unwrap(), Fired::Noted);
    let known = world.schedules.schedule(world.ada.tenant, &schedule.name).await.unwrap().unwrap();
    let problem = ("not_found".to_owned(), "no plugin has this kind".to_owned());
    assert_eq!(known.last, Some(Last { at_ms: NOW + 5, task: None, problem: Some(problem) }));
    assert_eq!(known.next_ms, None);
}

pub async fn a_paused_schedule_does_not_occur(world: &World) {
    let schedule = create(world, &world.ada, "s", Some(NOW)).await;
    let (ada, name) = (world.ada.tenant, &schedule.name);
    let pause = |at| world.schedules.pause_schedule(ada, name, Some(at), None);
    assert_eq!(pause(NOW + 1).await.unwrap(), Some(true));
    assert_eq!(pause(NOW + 2).await.unwrap(), Some(false));
    let known = world.schedules.schedule(ada, name).await.unwrap().unwrap();
    assert_eq!((known.paused_ms, known.next_ms), (Some(NOW + 1), None));
    assert!(world.schedules.due_schedules(NOW + 9, &[], 10).await.unwrap().schedules.is_empty());
    let late = firing(&schedule, NOW, Some(NOW + 60), Some(one(world, &world.ada).await));
    assert_eq!(world.schedules.fire(late, NOW + 9).await.unwrap(), Fired::NotDue);
    let resume = || world.schedules.pause_schedule(ada, name, None, Some(NOW + 70));
    assert_eq!(resume().await.unwrap(), Some(true));
    assert_eq!(resume().await.unwrap(), Some(false));
    let known = world.schedules.schedule(ada, name).await.unwrap().unwrap();
    assert_eq!((known.paused_ms, known.next_ms), (None, Some(NOW + 70)));
    let nobody = "nobody".parse().unwrap();
    assert_eq!(world.schedules.pause_schedule(ada, &nobody, None, None).await.unwrap(), None);
}

pub async fn another_tenant_has_no_schedule(world: &World) {
    let schedule = create(world, &world.ada, "s", Some(NOW)).await;
    let (bob, name) = (world.bob.tenant, &schedule.name);
    assert_eq!(world.schedules.schedule(bob, name).await.unwrap(), None);
    assert_eq!(world.schedules.pause_schedule(bob, name, Some(NOW), None).await.unwrap(), None);
    assert!(!world.schedules.remove_schedule(bob, name).await.unwrap());
    assert!(world.schedules.schedules(bob, None, 10).await.unwrap().is_empty());
    let known = world.schedules.schedule(world.ada.tenant, name).await.unwrap();
    assert_eq!(known, Some(schedule));
}
