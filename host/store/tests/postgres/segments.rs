//! Tasks that are stored together: they are told, leased and ended as if each had a row, whatever happens to some of them.

use std::collections::BTreeSet;

use keiko_core::code::Code;
use keiko_core::id::Holder;
use keiko_core::port::Rescued;
use keiko_core::task::TaskState;
use keiko_store::postgres::admin;

use super::world::{World, complete, fail, hand_back, retry, world};
use super::*;

/// A store that keeps segments, its database, and how to look beside it.
async fn together() -> (World, Arc<Database>) {
    let database = Arc::new(Database::new().await);
    let world = world(Arc::new(database.open().await), Box::new(Arc::clone(&database))).await;
    for customer in [&world.ada, &world.bob] {
        world.components.put(customer.plugin.current.digest, Bytes::new(), NOW).await.unwrap();
    }
    (world, database)
}

/// Segments, their tasks, and rows.
async fn kept(database: &Database) -> (i64, i64, i64) {
    (
        database.number("SELECT count(*) FROM task_segment").await,
        database.number("SELECT coalesce(sum(live), 0)::bigint FROM task_segment").await,
        database.number("SELECT count(*) FROM task").await,
    )
}

#[track_caller]
fn sound(findings: &[keiko_store::admin::Finding]) {
    let broken: Vec<_> = findings.iter().filter(|finding| finding.broken > 0).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

async fn counts(world: &World) -> [u64; 5] {
    let counts = world.records.counts(world.ada.tenant).await.unwrap();
    [counts.pending, counts.running, counts.completed, counts.failed, counts.cancelled]
}

async fn states(world: &World, ids: &[TaskId]) -> Vec<TaskState> {
    let mut states = Vec::new();
    for id in ids {
        states.push(world.state(&world.ada, *id).await);
    }
    states
}

/// Leases and completes whatever there is; how many.
async fn drain(world: &World, holder: Holder) -> usize {
    let mut count = 0;
    loop {
        let tasks = world.lease(holder, 64).await;
        if tasks.is_empty() {
            return count;
        }
        count += tasks.len();
        let ends = tasks.iter().map(complete).collect();
        let settled = world.tasks.settle(holder, ends, NOW).await.unwrap();
        assert!(settled.iter().all(|settled| *settled == Settled::Stored));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_are_rows_and_many_are_not() {
    let (world, database) = together().await;
    world.submit_plain(&world.ada, 15).await;
    assert_eq!(kept(&database).await, (0, 0, 15));
    world.submit_plain(&world.ada, 16).await;
    world.submit_plain(&world.bob, 250).await;
    assert_eq!(kept(&database).await, (4, 266, 15));
    assert_eq!(drain(&world, world.holder().await).await, 281);
    assert_eq!(kept(&database).await, (0, 0, 0));
    sound(&admin::check(&database.options()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_stored_together_go_their_own_ways() {
    use TaskState::{Cancelled, Completed, Failed, Pending, Running};
    let (world, database) = together().await;
    let ids = world.submit_plain(&world.ada, 40).await;
    let holder = world.holder().await;
    let tasks = world.lease(holder, 15).await;
    assert_eq!(tasks.iter().map(|task| task.id).collect::<Vec<_>>(), ids[..15], "the oldest first");
    assert_eq!((kept(&database).await, counts(&world).await), ((2, 40, 0), [25, 15, 0, 0, 0]));
    let ends = vec![
        complete(&tasks[3]),
        fail(&tasks[1], Code::Trap),
        complete(&tasks[0]),
        retry(&tasks[7], Code::PluginFailed, NOW + 60_000),
        hand_back(&tasks[8]),
        complete(&tasks[14]),
    ];
    let settled = world.tasks.settle(holder, ends.clone(), NOW + 1).await.unwrap();
    assert_eq!(settled, [Settled::Stored; 6]);
    let again = world.tasks.settle(holder, ends, NOW + 1).await.unwrap();
    assert_eq!(again, [Settled::Stale; 6], "each has ended, or is nobody's");
    for at in [9, 30] {
        let cancelled = world.tasks.cancel(world.ada.tenant, ids[at], NOW + 2).await.unwrap();
        assert_eq!(cancelled, CancelAnswer::Cancelled);
    }
    assert_eq!(world.settle(holder, complete(&tasks[9])).await, Settled::Stale);
    let cancel = world.tasks.cancel(world.ada.tenant, ids[3], NOW + 2).await.unwrap();
    assert_eq!(cancel, CancelAnswer::AlreadyTerminal(Completed));
    let other = world.tasks.cancel(world.bob.tenant, ids[4], NOW + 2).await.unwrap();
    assert_eq!(other, CancelAnswer::NotFound);

    let mut expected = vec![Running; 15];
    expected.extend([Pending; 25]);
    for (at, state) in
        [(0, Completed), (1, Failed), (3, Completed), (7, Pending), (8, Pending), (9, Cancelled)]
    {
        expected[at] = state;
    }
    (expected[14], expected[30]) = (Completed, Cancelled);
    assert_eq!(states(&world, &ids).await, expected);
    assert_eq!(counts(&world).await, [26, 8, 3, 1, 2]);
    assert_eq!(kept(&database).await, (2, 32, 2));
    let listed = world.list(&world.ada, &TaskFilter::default()).await;
    let listed: Vec<_> = listed.iter().rev().map(|task| (task.id, task.state)).collect();
    assert_eq!(listed, ids.iter().copied().zip(expected).collect::<Vec<_>>());
    sound(&admin::check(&database.options()).await.unwrap());

    let rest = tasks.iter().filter(|task| ![0, 1, 3, 7, 8, 9, 14].contains(&(task.id.0 - ids[0].0)));
    let rest = rest.map(complete).collect();
    let settled = world.tasks.settle(holder, rest, NOW + 3).await.unwrap();
    assert!(settled.iter().all(|settled| *settled == Settled::Stored), "{settled:?}");
    assert_eq!(drain(&world, holder).await, 25);
    assert_eq!((kept(&database).await, counts(&world).await), ((0, 0, 1), [1, 0, 36, 1, 2]));
    sound(&admin::check(&database.options()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_host_had_is_leased_again_and_it_changes_nothing_more() {
    let (world, database) = together().await;
    let ids = world.submit_plain(&world.ada, 60).await;
    let (dead, alive) = (world.holder().await, world.holder().await);
    let tasks = world.lease(dead, 50).await;
    let ends = tasks[..20].iter().map(complete).collect();
    world.tasks.settle(dead, ends, NOW).await.unwrap();
    let started: Vec<_> = tasks[20..23].iter().map(|task| (task.id, task.token)).collect();
    let rescued = world.tasks.rescue(Dead::AllBut(alive), started, NOW).await.unwrap();
    assert_eq!(rescued, Rescued { returned: 30, crashed: 3, ..Rescued::default() });
    assert_eq!(world.settle(dead, complete(&tasks[30])).await, Settled::Stale);
    assert_eq!(kept(&database).await, (1, 10, 30), "what anybody has run or will run again is a row");
    sound(&admin::check(&database.options()).await.unwrap());
    let again = world.lease(alive, 100).await;
    let tokens: BTreeSet<_> = again.iter().map(|task| (task.id, task.token.0, task.crashes)).collect();
    let expected = ids[20..].iter().enumerate().map(|(at, id)| match at {
        0..3 => (*id, 2, 1),
        3..30 => (*id, 2, 0),
        _ => (*id, 1, 0),
    });
    assert_eq!(tokens, expected.collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_closes_gives_back_what_it_has_not_ended() {
    let (world, database) = together().await;
    let ids = world.submit_plain(&world.ada, 30).await;
    let (holder, other) = (world.holder().await, world.holder().await);
    let tasks = world.lease(holder, 30).await;
    world.tasks.settle(holder, tasks[..10].iter().map(complete).collect(), NOW).await.unwrap();
    assert_eq!(world.tasks.close_holder(holder, NOW).await.unwrap(), 20);
    assert_eq!(world.settle(holder, complete(&tasks[10])).await, Settled::Stale);
    assert_eq!((kept(&database).await, counts(&world).await), ((1, 20, 0), [20, 0, 10, 0, 0]));
    let again = world.lease(other, 30).await;
    assert_eq!(again.iter().map(|task| task.id).collect::<Vec<_>>(), ids[10..]);
    assert!(again.iter().all(|task| task.token.0 == 2 && task.attempts == 0 && task.crashes == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_ends_and_stops_nobody() {
    let (world, database) = together().await;
    let broken = world.submit_plain(&world.ada, 20).await;
    let sound_ones = world.submit_plain(&world.ada, 20).await;
    let first = broken[0].0;
    database.execute(&format!("UPDATE task_segment SET tasks = '\\x02' WHERE first = {first}")).await;
    let holder = world.holder().await;
    // A share may end in it: it is not cut, because its parts would look sound.
    let first = world.lease_at(holder, 10, NOW).await;
    assert_eq!((first.tasks, first.next_run_at_ms), (Vec::new(), Some(NOW)), "more is due at once");
    assert!(states(&world, &broken).await.iter().all(|state| *state == TaskState::Failed));
    let leased = world.lease(holder, 40).await;
    assert_eq!(leased.iter().map(|task| task.id).collect::<Vec<_>>(), sound_ones);
    sound(&admin::check(&database.options()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_lease_at_once_take_nothing_twice_and_leave_nothing() {
    let (world, database) = together().await;
    world.submit_plain(&world.ada, 700).await;
    world.submit_plain(&world.bob, 300).await;
    let host = async |room: usize| {
        let holder = world.holder().await;
        let (mut ids, mut idle) = (Vec::new(), 0);
        // Whoever is there at the same moment may have all of it in hand.
        while idle < 20 {
            let tasks = world.lease(holder, room).await;
            idle = if tasks.is_empty() { idle + 1 } else { 0 };
            let settled =
                world.tasks.settle(holder, tasks.iter().map(complete).collect(), NOW).await.unwrap();
            assert!(settled.iter().all(|settled| *settled == Settled::Stored));
            ids.extend(tasks.iter().map(|task| task.id));
        }
        ids
    };
    let (one, two, three) = futures::join!(host(7), host(40), host(130));
    let all: Vec<_> = [one, two, three].concat();
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (1_000, 1_000));
    assert_eq!(kept(&database).await, (0, 0, 0));
    sound(&admin::check(&database.options()).await.unwrap());
}

/// Another host cuts the segment in which its share ends, and tells nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_finds_all_of_it_in_other_hands_looks_again_soon() {
    let (world, database) = together().await;
    world.submit_plain(&world.ada, 40).await;
    let holder = world.holder().await;
    let mut other = database.beside().await;
    let hold = "BEGIN; SELECT 1 FROM task_segment FOR UPDATE";
    sqlx::raw_sql(hold).execute(&mut other).await.unwrap();
    let nothing = world.lease_at(holder, 40, NOW).await;
    let again = nothing.next_run_at_ms.unwrap();
    assert!(nothing.tasks.is_empty() && (NOW..NOW + 100).contains(&again), "{nothing:?}");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    let all = world.lease_at(holder, 100, again).await;
    assert_eq!((all.tasks.len(), all.next_run_at_ms), (40, None));
}

/// As where a database starts again on another machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_not_forgotten_when_the_clock_of_the_database_is_set_back() {
    let (world, _database) = together().await;
    world.submit_plain(&world.ada, 40).await;
    let holder = world.holder().await;
    let early = world.lease_at(holder, 40, NOW - 60_000).await;
    let again = early.next_run_at_ms.unwrap();
    assert!(early.tasks.is_empty() && again < NOW - 59_000, "{early:?}");
    assert_eq!(world.lease_at(holder, 40, NOW).await.tasks.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_beside_an_end_leaves_the_one_that_was_told() {
    let (world, database) = together().await;
    // Connections of its own: the two meet in the database.
    let other = database.open().await;
    for _ in 0..10 {
        let ids = world.submit_plain(&world.ada, 50).await;
        let holder = world.holder().await;
        let tasks = world.lease(holder, 50).await;
        let cancel = async {
            let mut answers = Vec::new();
            for id in ids.iter().rev() {
                answers.push(other.cancel(world.ada.tenant, *id, NOW).await.unwrap());
            }
            answers.reverse();
            answers
        };
        let end = async {
            let mut settled = Vec::new();
            for part in tasks.chunks(10) {
                settled.extend(
                    world.tasks.settle(holder, part.iter().map(complete).collect(), NOW).await.unwrap(),
                );
            }
            settled
        };
        let (cancelled, settled) = futures::join!(cancel, end);
        for ((id, cancelled), settled) in ids.iter().zip(cancelled).zip(settled) {
            let expected = match settled {
                Settled::Stored => CancelAnswer::AlreadyTerminal(TaskState::Completed),
                _ => CancelAnswer::Cancelled,
            };
            assert_eq!(cancelled, expected, "{id}");
        }
    }
    assert_eq!(kept(&database).await, (0, 0, 0));
    sound(&admin::check(&database.options()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_through_segments_and_rows_in_one_order() {
    let (world, database) = together().await;
    let mut ids = Vec::new();
    for count in [150, 3, 40] {
        ids.extend(world.submit_plain(&world.ada, count).await);
    }
    let holder = world.holder().await;
    let tasks = world.lease(holder, 120).await;
    let every_third = tasks.iter().step_by(3).map(complete).collect();
    world.tasks.settle(holder, every_third, NOW).await.unwrap();
    let pages = async |filter: TaskFilter| {
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let filter = TaskFilter { before, ..filter.clone() };
            let page = world.records.list(world.ada.tenant, &filter, 7).await.unwrap();
            before = page.last().map(|task| task.id);
            if page.is_empty() {
                return found;
            }
            found.extend(page.into_iter().map(|task| task.id));
        }
    };
    // By the place in the lease, if it was leased.
    let whose = |fits: &dyn Fn(Option<usize>) -> bool| -> Vec<TaskId> {
        let place = |id: &TaskId| tasks.iter().position(|task| task.id == *id);
        ids.iter().rev().filter(|id| fits(place(id))).copied().collect()
    };
    assert_eq!(pages(TaskFilter::default()).await, whose(&|_| true));
    let of = |state| TaskFilter { state: Some(state), ..TaskFilter::default() };
    assert_eq!(pages(of(TaskState::Pending)).await, whose(&|at| at.is_none()));
    assert_eq!(pages(of(TaskState::Running)).await, whose(&|at| at.is_some_and(|at| at % 3 != 0)));
    assert_eq!(pages(of(TaskState::Completed)).await, whose(&|at| at.is_some_and(|at| at % 3 == 0)));
    let kind = TaskFilter { kind: Some("run".parse().unwrap()), ..TaskFilter::default() };
    assert_eq!(pages(kind).await, whose(&|_| true));
    let none = TaskFilter { kind: Some("walk".parse().unwrap()), ..TaskFilter::default() };
    assert_eq!(pages(none).await, Vec::<TaskId>::new());
    drop(database);
}

/// Whoever asks for a lease and goes away has leased nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_nobody_hears_of_is_given_back() {
    let (world, database) = together().await;
    let ids: BTreeSet<TaskId> = world.submit_plain(&world.ada, 30).await.into_iter().collect();
    let holder = world.holder().await;
    for _ in 0..20 {
        assert!(world.tasks.lease(request(holder, 12)).now_or_never().is_none());
    }
    // What is given back comes behind what was asked before.
    let mut leased = BTreeSet::new();
    while leased != ids {
        leased.extend(world.lease(holder, 100).await.iter().map(|task| task.id));
    }
    sound(&admin::check(&database.options()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn which_of_many_leases_are_over_is_one_statement() {
    let database = Database::new().await;
    let store = database.open().await;
    let ada = customer(&store, "ada").await;
    let holder = store.open_holder(NOW, LEASE_MS).await.unwrap();
    // Segments and a row.
    submit_plain(&store, &ada, 600).await;
    submit_plain(&store, &ada, 1).await;
    let mut leases = Vec::new();
    while leases.len() < 601 {
        let tasks = store.lease(request(holder, 601)).await.unwrap().tasks;
        leases.extend(tasks.iter().map(|task| (task.id, task.token)));
    }
    let stale = async || {
        let before = store.writer_counts();
        let stale = store.stale(leases.clone()).await.unwrap();
        let after = store.writer_counts();
        assert_eq!((after.transactions - before.transactions, after.statements - before.statements), (1, 1));
        stale.into_iter().collect::<HashSet<_>>()
    };
    assert_eq!(stale().await, HashSet::new());
    let cancelled = [leases[3], leases[599], leases[600]];
    for (id, _) in cancelled {
        assert_eq!(store.cancel(ada.tenant, id, NOW).await.unwrap(), CancelAnswer::Cancelled);
    }
    assert_eq!(stale().await, HashSet::from(cancelled));
    store.close().await.unwrap();
}
