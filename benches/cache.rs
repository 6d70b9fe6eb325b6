//! What a hit of the cache costs: in the host's memory, from inside a guest, and in Redis beside a bare pipelined `GET`.
//!
//! Values have 100 bytes. Prints one JSON object per line; each figure is the median of many rounds, and the sides that are
//! compared take turns within one run, so that a busy machine disturbs both alike.
//!
//! - `l1_hit_ns`: one `get` of a value that this host's memory has; of the side `quick_cache`, one of the same value in the map
//!   that is below, which knows no tenants, lifetimes, tags and counters.
//! - `guest_hit_ns`: one `keiko:cache` get of a Rust guest, of what is beyond the same run without gets. The guest is
//!   `KEIKO_BENCH_COMPONENT`, the fixture `contract`.
//! - `l2_hit_us`: one `get` of a value that Redis has and memory does not, of [`AT_ONCE`] at once; `redis_get_us`: one of as
//!   many bare `GET`s of the same envelopes at once, pipelined on a connection of the same kind, which checks, decodes and
//!   keeps nothing. The server is `KEIKO_TEST_REDIS`.

#![allow(clippy::print_stdout, reason = "figures are what a benchmark is for")]

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use futures::future::join_all;
use keiko::{COMPILE_CHILD, Handle, Host, SystemClock};
use keiko_core::cache::{CacheKey, Installation, Lifetime, Namespace, Wish};
use keiko_core::catalog::Tenant;
use keiko_core::outcome::Outcome;
use keiko_core::policy::BudgetRequest;
use keiko_core::task::Payload;
use keiko_core::{TenantId, TenantName};
use keiko_runtime::RunRequest;
use keiko_runtime::cache::{Cache, CacheOptions, CacheParts, Found};
use keiko_store::redis::RedisLevel;
use tikv_jemallocator::Jemalloc;

/// The host's.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Rounds of each side; the first is not counted.
const ROUNDS: usize = 101;
/// The same with Redis, where a round is short.
const REDIS_ROUNDS: usize = 1_001;
/// Keys in memory, and gets of a round.
const KEYS: usize = 1_000;
/// Gets of a guest's round.
const GUEST_GETS: u64 = 20_000;
/// Questions to Redis at once.
const AT_ONCE: usize = 64;
const VALUE_BYTES: usize = 100;
/// How values are kept: until it is over.
static LASTING: LazyLock<Wish> =
    LazyLock::new(|| Wish { lifetime: Lifetime::of_ms(3_600_000), ..Wish::default() });

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == COMPILE_CHILD) {
        return keiko::compile_child();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        memory().await;
        guest().await;
    });
    // Whoever asks Redis runs on a worker of the runtime, as all do who ask it for a host.
    let asks = runtime.handle().spawn(redis());
    runtime.block_on(asks).expect("it measures");
    ExitCode::SUCCESS
}

fn report(figure: &str, side: &str, value: f64, unit: &str) {
    println!(r#"{{"bench":"cache","side":"{side}","figure":"{figure}","value":{value:.3},"unit":"{unit}"}}"#);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.remove(0);
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cache(redis: Option<RedisLevel>) -> Cache {
    let parts = CacheParts {
        installation: installation(),
        redis: redis.map(|level| Arc::new(level) as _),
        database: None,
        backplanes: Vec::new(),
        shared: false,
        clock: Arc::new(SystemClock),
    };
    Cache::new(parts, CacheOptions::default())
}

fn installation() -> Installation {
    "bench".parse().expect("a name")
}

fn key(number: usize) -> CacheKey {
    let tenant = Tenant { id: TenantId(1), name: "bench".parse().expect("a name") };
    let part = Namespace::shared(&"bench".parse().expect("a name"));
    CacheKey::new(&tenant, &part, &format!("key-{number}")).expect("a key")
}

fn value() -> Bytes {
    vec![b'v'; VALUE_BYTES].into()
}

async fn memory() {
    let cache = cache(None);
    let keys: Vec<CacheKey> = (0..KEYS).map(key).collect();
    for key in &keys {
        cache.set(key, value(), &LASTING).await;
    }
    let map = quick_cache::sync::Cache::new(2 * KEYS);
    keys.iter().for_each(|key| map.insert(key.clone(), value()));
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for key in &keys {
            assert!(matches!(cache.get(key).await, Found::Value(_)));
        }
        ours.push(began.elapsed().as_nanos() as f64 / KEYS as f64);
        let began = Instant::now();
        for key in &keys {
            assert!(map.get(key).is_some());
        }
        bare.push(began.elapsed().as_nanos() as f64 / KEYS as f64);
    }
    report("l1_hit_ns", "keiko", median(ours), "ns");
    report("l1_hit_ns", "quick_cache", median(bare), "ns");
}

async fn guest() {
    let Some(path) = std::env::var_os("KEIKO_BENCH_COMPONENT") else {
        return println!(r#"{{"bench":"cache","figure":"guest_hit_ns","error":"no KEIKO_BENCH_COMPONENT"}}"#);
    };
    let component = std::fs::read(path).expect("the component can be read");
    let folder = tempfile::tempdir().expect("a folder");
    let built = Host::builder().data_dir(folder.path()).without_http().build().await;
    let host = built.expect("a host");
    let handle = host.handle();
    let tenant = handle.tenant(&"default".parse::<TenantName>().expect("a name")).expect("the tenant");
    handle.install(tenant, component.into(), None).await.expect("the guest installs");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(hits(&handle, tenant, 0).await);
        with.push(hits(&handle, tenant, GUEST_GETS).await);
    }
    let more_us = median(with) - median(without);
    report("guest_hit_ns", "keiko", more_us * 1_000.0 / GUEST_GETS as f64, "ns");
    host.drain().await;
}

/// Microseconds of a run that gets a value so many times.
async fn hits(handle: &Handle, tenant: TenantId, gets: u64) -> f64 {
    let input = format!(r#"{{"key":"bench","bytes":{VALUE_BYTES},"gets":{gets}}}"#);
    let request = RunRequest {
        plugin: Some("contract".to_owned()),
        kind: Some("cache-hits".to_owned()),
        input: Payload::json(input),
        budget: BudgetRequest::default(),
        trace: None,
    };
    let run = handle.run(tenant, request).await.expect("it runs");
    assert!(matches!(run.report.outcome, Outcome::Completed(_)), "{:?}", run.report.outcome);
    run.report.meter.elapsed_us as f64
}

async fn redis() {
    let Ok(url) = std::env::var("KEIKO_TEST_REDIS") else {
        return println!(r#"{{"bench":"cache","figure":"l2_hit_us","error":"no KEIKO_TEST_REDIS"}}"#);
    };
    let level = || RedisLevel::open(&url, installation()).expect("a URL of Redis");
    let (writer, reader) = (cache(Some(level())), cache(Some(level())));
    let bare = level();
    let keys = |round: usize| (0..AT_ONCE).map(move |at| key(round * AT_ONCE + at)).collect::<Vec<_>>();
    for round in 0..REDIS_ROUNDS {
        join_all(keys(round).iter().map(|key| writer.set(key, value(), &LASTING))).await;
    }
    let (mut of_keiko, mut of_redis) = (Vec::new(), Vec::new());
    for round in 0..REDIS_ROUNDS {
        let keys = keys(round);
        let began = Instant::now();
        let found = join_all(keys.iter().map(|key| reader.get(key))).await;
        of_keiko.push(began.elapsed().as_nanos() as f64 / 1_000.0 / AT_ONCE as f64);
        assert!(found.iter().all(|found| matches!(found, Found::Value(_))), "{found:?}");
        let names: Vec<String> = keys.iter().map(|key| key.external(&installation())).collect();
        let began = Instant::now();
        let bare = join_all(names.iter().map(|name| bare.bare_get(name))).await;
        of_redis.push(began.elapsed().as_nanos() as f64 / 1_000.0 / AT_ONCE as f64);
        assert!(bare.into_iter().all(|found| found));
    }
    let (keiko, redis) = (median(of_keiko), median(of_redis));
    report("l2_hit_us", "keiko", keiko, "us");
    report("redis_get_us", "redis", redis, "us");
    report("l2_hit_ratio", "ratio", keiko / redis, "ratio");
}
