//! What a running task says of itself, as it is told to who watches it: here, later, and on another host.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use keiko_core::code::Code;
use keiko_core::outcome::{Failure, RetryWish};
use keiko_core::port::{Attempt, HostPort};
use keiko_core::task::TaskState;
use keiko_core::{TaskId, TenantId};
use keiko_runtime::{Handle, Options, TaskEvent, TaskPlace, TaskWatch};
use keiko_store::memory::MemoryStore;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Report;
use crate::support::{Bench, MANIFEST, SOON, echo, fails, start_on, start_playing, submit};

/// An event, as far as the tests look.
#[derive(Debug, PartialEq)]
enum Told {
    State(TaskState),
    Progress(f64),
    /// Attempt, number, and the piece.
    Output(u32, u64, Bytes),
}

fn output(attempt: u32, number: u64, piece: &'static str) -> Told {
    Told::Output(attempt, number, Bytes::from_static(piece.as_bytes()))
}

fn told(event: TaskEvent) -> Told {
    match event {
        TaskEvent::State(detail) => Told::State(detail.view.summary.state),
        TaskEvent::Progress(progress) => Told::Progress(progress.fraction),
        TaskEvent::Output { attempt, number, piece, .. } => Told::Output(attempt, number, piece),
    }
}

async fn next(watch: &mut TaskWatch) -> Option<TaskEvent> {
    timeout(SOON, watch.next()).await.expect("something is told").expect("the store answers")
}

/// What is told until the end, without how the task stands in between.
async fn until_the_end(watch: &mut TaskWatch) -> Vec<Told> {
    let mut all = Vec::new();
    while let Some(event) = next(watch).await {
        all.push(told(event));
    }
    all.retain(|event| !matches!(event, Told::State(state) if !state.is_terminal()));
    all
}

/// The first piece that is told, and where a watch goes on behind it.
async fn first_piece(watch: &mut TaskWatch) -> (Told, TaskPlace) {
    loop {
        let event = next(watch).await.expect("the task has not ended");
        if let TaskEvent::Output { place, .. } = event {
            return (told(event), place);
        }
    }
}

/// A guest that gives out `first`, waits to be let go, gives out `rest`, says that it is half way, and ends with its input.
fn speaks(
    go: Arc<Semaphore>,
    first: &'static str,
    rest: &'static [&'static str],
) -> impl Fn(Attempt, Arc<dyn HostPort>) -> Report + Send + Sync + 'static {
    move |attempt, port| {
        let go = Arc::clone(&go);
        async move {
            port.emit(Bytes::from_static(first.as_bytes()));
            go.acquire().await.expect("open").forget();
            port.progress(0.5, String::new());
            rest.iter().for_each(|piece| port.emit(Bytes::from_static(piece.as_bytes())));
            echo(&attempt)
        }
        .boxed()
    }
}

async fn result(handle: &Handle, tenant: TenantId, id: TaskId) -> Bytes {
    handle.task(tenant, id).await.expect("the task").view.result.expect("it completed").bytes
}

#[tokio::test]
async fn what_a_task_gives_out_is_told_before_its_end_and_is_no_part_of_its_result() {
    let bench = Bench::new().await;
    let go = Arc::new(Semaphore::new(0));
    let guest = speaks(Arc::clone(&go), "a", &["b", "", "c"]);
    let (runtime, handle, tenant) = bench.start(move |attempt, port, _| guest(attempt, port)).await;
    let id = submit(&handle, tenant, "1").await;
    let mut watch = handle.watch(tenant, id, None);
    let (piece, place) = first_piece(&mut watch).await;
    assert_eq!((piece, place.next), (output(1, 0, "a"), 1));
    let (mut late, mut again) = (handle.watch(tenant, id, None), handle.watch(tenant, id, Some(place)));
    assert_eq!(first_piece(&mut late).await.0, output(1, 0, "a"), "it is kept while the attempt runs");
    go.add_permits(1);
    for watch in [&mut watch, &mut late, &mut again] {
        let mut all = until_the_end(watch).await;
        all.retain(|event| !matches!(event, Told::Progress(_)));
        let end = Told::State(TaskState::Completed);
        assert_eq!(all, [output(1, 1, "b"), output(1, 2, ""), output(1, 3, "c"), end]);
    }
    assert_eq!(result(&handle, tenant, id).await, "1");
    let all = until_the_end(&mut handle.watch(tenant, id, None)).await;
    assert_eq!(all, [Told::State(TaskState::Completed)], "who comes after the end is told the end alone");
    runtime.drain().await;
}

#[tokio::test]
async fn each_attempt_begins_anew_and_says_which_it_is() {
    let bench = Bench::new().await;
    let go = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&go);
    let play = move |attempt: Attempt, port: Arc<dyn HostPort>, _| {
        let go = Arc::clone(&held);
        async move {
            let is_first = attempt.facts.number == 1;
            port.emit(Bytes::from_static(if is_first { b"no" } else { b"yes" }));
            go.acquire().await.expect("open").forget();
            if is_first {
                port.emit(Bytes::from_static(b"last"));
                let mut failure = Failure::new(Code::PluginFailed, "not yet");
                failure.retry = RetryWish::After(Some(0));
                return fails(failure);
            }
            echo(&attempt)
        }
        .boxed()
    };
    let (runtime, handle, tenant) = bench.start(play).await;
    let id = submit(&handle, tenant, "1").await;
    let mut watch = handle.watch(tenant, id, None);
    let (first, place) = first_piece(&mut watch).await;
    assert_eq!(first, output(1, 0, "no"));
    go.add_permits(1);
    assert_eq!(first_piece(&mut watch).await.0, output(1, 1, "last"));
    assert_eq!(first_piece(&mut watch).await.0, output(2, 0, "yes"));
    // Who had heard the first attempt only begins with the second.
    let mut again = handle.watch(tenant, id, Some(place));
    assert_eq!(first_piece(&mut again).await.0, output(2, 0, "yes"));
    go.add_permits(1);
    assert_eq!(until_the_end(&mut watch).await, [Told::State(TaskState::Completed)]);
    runtime.drain().await;
}

#[tokio::test]
async fn a_task_on_another_host_is_heard_to_its_last_word() {
    let store = MemoryStore::new();
    let go = Arc::new(Semaphore::new(0));
    let guest = speaks(Arc::clone(&go), "a", &["b", "c", "d"]);
    let play = Arc::new(move |attempt, port, _| guest(attempt, port));
    let options = Options { workers: 1, ..Options::default() };
    let (runs, other) = start_playing(store.clone(), options, play).await;
    // The host that is asked runs nothing.
    let (asked, handle) = start_on(store.another_host(), 0).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let id = submit(&handle, tenant, "1").await;
    let mut watch = handle.watch(tenant, id, None);
    assert_eq!(first_piece(&mut watch).await.0, output(1, 0, "a"));
    go.add_permits(1);
    let all = until_the_end(&mut watch).await;
    let pieces: Vec<&Told> = all.iter().filter(|event| matches!(event, Told::Output(..))).collect();
    assert_eq!(pieces, [&output(1, 1, "b"), &output(1, 2, "c"), &output(1, 3, "d")]);
    assert!(all.contains(&Told::Progress(0.5)), "{all:?}");
    assert_eq!(all.last(), Some(&Told::State(TaskState::Completed)));
    assert_eq!((handle.figures().settled, other.figures().settled), (0, 1));
    runs.drain().await;
    asked.drain().await;
}

#[tokio::test]
async fn all_that_a_fast_attempt_gives_out_is_heard_on_another_host() {
    // More than goes in four rounds, and no more than is kept of an attempt.
    const PIECES: usize = 60;
    let store = MemoryStore::new();
    let go = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&go);
    let play = move |attempt: Attempt, port: Arc<dyn HostPort>, _| {
        let go = Arc::clone(&held);
        async move {
            port.emit(Bytes::from_static(b"a"));
            go.acquire().await.expect("open").forget();
            (0..PIECES).for_each(|at| port.emit(Bytes::from(vec![at as u8; 1_024])));
            echo(&attempt)
        }
        .boxed()
    };
    let options = Options { workers: 1, ..Options::default() };
    let (runs, _) = start_playing(store.clone(), options, Arc::new(play)).await;
    let (asked, handle) = start_on(store.another_host(), 0).await;
    let tenant = handle.tenant(&"default".parse().unwrap()).unwrap();
    handle.install(tenant, MANIFEST.into(), None).await.expect("the script installs");
    let id = submit(&handle, tenant, "1").await;
    let mut watch = handle.watch(tenant, id, None);
    assert_eq!(first_piece(&mut watch).await.0, output(1, 0, "a"));
    go.add_permits(1);
    let told = until_the_end(&mut watch).await;
    let piece = |at: usize| Told::Output(1, at as u64 + 1, Bytes::from(vec![at as u8; 1_024]));
    let whole: Vec<Told> = (0..PIECES).map(piece).chain([Told::State(TaskState::Completed)]).collect();
    assert!(told == whole, "{} events", told.len());
    runs.drain().await;
    asked.drain().await;
}

#[tokio::test]
async fn who_names_a_place_in_another_tenants_task_is_told_nothing() {
    let bench = Bench::new().await;
    let go = Arc::new(Semaphore::new(0));
    let guest = speaks(Arc::clone(&go), "a", &["b"]);
    let play = move |attempt: Attempt, port: Arc<dyn HostPort>, _| guest(attempt, port);
    let (runtime, handle, [ada, bob]) = bench.start_for(["ada", "bob"], play).await;
    let id = submit(&handle, ada, "1").await;
    let (_, place) = first_piece(&mut handle.watch(ada, id, None)).await;
    let place = TaskPlace { next: 0, ..place };
    let refused = handle.watch(bob, id, Some(place)).next().await.expect_err("it is not theirs");
    assert_eq!(refused.code, Code::NotFound);
    let mut own = handle.watch(ada, id, Some(place));
    assert_eq!(first_piece(&mut own).await.0, output(1, 0, "a"), "whose it is goes on from there");
    go.add_permits(1);
    runtime.drain().await;
}
