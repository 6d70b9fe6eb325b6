//! Does the suite notice a broken promise? Every body runs against stores in memory that break one promise each; each
//! must fail at least one of them, and the store that breaks none must pass all.
//!
//! A mutation that nobody notices is a promise that the suite does not keep: the answer is a better body.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use keiko_store::memory::Mutation;
use serde_json::{Value, json};

use crate::world::{self, World};

/// A body of the suite.
#[derive(Clone, Copy)]
pub struct Promise {
    /// The body's name.
    pub name: &'static str,
    /// Runs it, and panics when the store does not keep it.
    pub run: fn(World) -> LocalBoxFuture<'static, ()>,
}

/// What was tried and what was found.
pub struct Report {
    promises: usize,
    /// Bodies that the store fails which breaks nothing.
    unsound: Vec<&'static str>,
    /// Who noticed each mutation.
    noticed: BTreeMap<Mutation, Vec<&'static str>>,
}

impl Report {
    /// What is wrong: mutations that nobody noticed, and bodies that fail without one.
    pub fn violations(&self) -> Vec<String> {
        let unnoticed = self.noticed.iter().filter(|(_, by)| by.is_empty());
        let unnoticed = unnoticed.map(|(mutation, _)| format!("{mutation:?}"));
        unnoticed.chain(self.unsound.iter().map(|name| format!("unbroken, {name}"))).collect()
    }

    /// The one line.
    pub fn json(&self) -> Value {
        let violations: BTreeMap<String, u32> = self.violations().into_iter().map(|name| (name, 1)).collect();
        let note = |(mutation, by): (&Mutation, &Vec<&str>)| match &by[..] {
            [] => format!("{mutation:?}: nobody"),
            [first] => format!("{mutation:?}: {first}"),
            [first, rest @ ..] => format!("{mutation:?}: {first} and {} more", rest.len()),
        };
        json!({
            "check": "conformance-mutations",
            "tried": { "mutations": self.noticed.len(), "promises": self.promises },
            "violations": violations,
            "notes": self.noticed.iter().map(note).collect::<Vec<_>>(),
        })
    }
}

/// Runs the bodies on the store that breaks nothing, and then, the quickest first, on those that break one promise
/// until somebody notices; with `every`, all of them.
pub fn try_all(promises: &[Promise], every: bool) -> Report {
    let timed = at_once(promises, |promise| (promise.name, fails(promise, None)));
    let unsound: Vec<_> = timed.iter().filter(|(_, (failed, _))| *failed).map(|(name, _)| *name).collect();
    let elapsed: BTreeMap<_, _> = timed.into_iter().map(|(name, (_, elapsed))| (name, elapsed)).collect();
    // A body that fails anyway notices nothing.
    let mut quickest: Vec<_> = promises.iter().filter(|promise| !unsound.contains(&promise.name)).collect();
    // Roughly, so that mostly the same body comes first in every run.
    quickest.sort_by_key(|promise| elapsed.get(promise.name).and_then(|one| one.as_millis().checked_ilog(4)));
    let noticed = at_once(Mutation::ALL, |&mutation| {
        let noticing = quickest.iter().filter(|promise| fails(promise, Some(mutation)).0);
        (mutation, noticing.map(|promise| promise.name).take(if every { usize::MAX } else { 1 }).collect())
    });
    Report { promises: promises.len(), unsound, noticed: noticed.into_iter().collect() }
}

/// Does something with every item, on all processors.
fn at_once<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let mine = || {
        silence_this_thread();
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(work(item));
        }
        done
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(mine)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("panics of bodies are caught")).collect()
    })
}

/// Whether the body fails on a store that breaks this promise, and how long it takes to.
fn fails(promise: &Promise, mutation: Option<Mutation>) -> (bool, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let began = Instant::now();
    let body = async {
        let world = match mutation {
            Some(mutation) => world::broken(mutation).await,
            None => world::memory().await,
        };
        (promise.run)(world).await;
    };
    let ended = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(body)));
    (ended.is_err(), began.elapsed())
}

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Panics of this thread are expected and say nothing; those of others are told as before.
fn silence_this_thread() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                told(info);
            }
        }));
    });
    SILENT.set(true);
}

#[test]
fn every_broken_promise_is_noticed() {
    let promises = crate::promises();
    let report = try_all(&promises, false);
    assert!(report.violations().is_empty(), "{}", report.json());
    assert!(Mutation::ALL.len() >= 24 && promises.len() >= 24, "there is something to break and to notice");
}

#[test]
fn what_nobody_notices_and_what_fails_anyway_are_violations() {
    let lenient = Promise { name: "lenient", run: |_| Box::pin(async {}) };
    let report = try_all(&[lenient], true);
    assert_eq!(report.violations().len(), Mutation::ALL.len());
    assert_eq!(report.json()["violations"]["NoFence"], 1);

    let hopeless =
        Promise { name: "hopeless", run: |_| Box::pin(async { panic!("whatever the store does") }) };
    let report = try_all(&[lenient, hopeless], false);
    assert_eq!(
        report.violations().len(),
        Mutation::ALL.len() + 1,
        "a body that fails anyway notices nothing"
    );
    assert_eq!(report.json()["violations"]["unbroken, hopeless"], 1);

    let strict = Promise {
        name: "strict",
        run: |world| {
            Box::pin(async move {
                let holder = world.holder().await;
                assert!(world.holder().await > holder);
            })
        },
    };
    let noticed = &try_all(&[strict], false).noticed;
    assert_eq!(noticed[&Mutation::HoldersRepeat], ["strict"]);
    assert!(noticed[&Mutation::NoFence].is_empty());
}
