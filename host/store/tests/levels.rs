//! Do all levels of the cache keep the same promises? One body per promise, over the seam alone, run once per level.
//!
//! Redis is the server that `KEIKO_TEST_REDIS` names. Each test is an installation of its own there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use keiko_core::cache::{CacheKey, Installation, Namespace, Stamp, Tag};
use keiko_core::catalog::Tenant;
use keiko_core::id::{Digest, TenantId};
use keiko_core::port::{Backplane, CacheLevel, Change, ChangeKind, Heard, Kept, LevelUsage};
use keiko_store::memory::{LevelFault, MemoryLevel};
use keiko_store::redis::RedisLevel;
use keiko_store::sqlite::{SqliteOptions, SqliteStore};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[allow(dead_code, reason = "shared with the conformance suite, which uses more of it")]
#[path = "conformance/database.rs"]
mod database;

/// When every test begins.
const NOW: i64 = 1_800_000_000_000;
/// Later than any entry of a test ends by itself.
const LATER: i64 = NOW + 3_600_000;
/// Longest wait for a time that passes by itself.
const SOON: Duration = Duration::from_secs(20);

struct World {
    level: Arc<dyn CacheLevel>,
    ada: Tenant,
    bob: Tenant,
    _kept: Box<dyn Any + Send + Sync>,
}

fn world<L: CacheLevel>(level: L, kept: impl Any + Send + Sync) -> World {
    let tenant = |id, name: &str| Tenant { id: TenantId(id), name: name.parse().unwrap() };
    World { level: Arc::new(level), ada: tenant(1, "ada"), bob: tenant(2, "bob"), _kept: Box::new(kept) }
}

async fn memory() -> World {
    world(MemoryLevel::new(installation()), ())
}

async fn sqlite() -> World {
    let folder = tempfile::tempdir().unwrap();
    world(open(folder.path()).await, folder)
}

async fn postgres() -> World {
    let database = database::Database::new().await;
    world(database.open().await, database)
}

async fn redis() -> World {
    world(redis_of(installation()), ())
}

async fn open(folder: &std::path::Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions { data_dir: folder.to_owned(), readers: 2, statement_log: false })
        .await
        .unwrap()
}

fn redis_of(installation: Installation) -> RedisLevel {
    RedisLevel::open(&redis_url(), installation).unwrap()
}

fn redis_url() -> String {
    std::env::var("KEIKO_TEST_REDIS").unwrap_or_else(|_| {
        panic!(
            "these tests need Redis: run them by `cargo xtask test`, which starts one, or set KEIKO_TEST_REDIS to a \
             server's URL, such as redis://127.0.0.1:6379"
        )
    })
}

fn installation() -> Installation {
    format!("{:016x}", RandomState::new().hash_one(std::process::id())).parse().unwrap()
}

fn key(tenant: &Tenant, text: &str) -> CacheKey {
    let part = Namespace::of_plugin(&"films".parse().unwrap(), &Digest([7; 32]));
    CacheKey::new(tenant, &part, text).unwrap()
}

fn kept(key: &CacheKey, stamp: u64, bytes: impl Into<Bytes>) -> Kept {
    Kept { key: key.clone(), stamp: Stamp(stamp), until_ms: LATER, bytes: envelope(stamp, &bytes.into()) }
}

/// A level may look at the first nine bytes of an envelope: its format and its stamp.
fn envelope(stamp: u64, bytes: &[u8]) -> Bytes {
    [&[1], &stamp.to_be_bytes()[..], bytes].concat().into()
}

impl World {
    async fn put(&self, key: &CacheKey, stamp: u64, bytes: &'static str) -> bool {
        self.level.put(kept(key, stamp, bytes), NOW).await.unwrap()
    }

    /// What is under a key, without its stamp.
    async fn look(&self, key: &CacheKey) -> Option<String> {
        let found = self.level.get(std::slice::from_ref(key), NOW).await.unwrap().remove(0)?;
        Some(String::from_utf8(found[9..].to_vec()).unwrap())
    }
}

/// Asks until the answer is yes, for what a server lets pass by its own clock.
async fn until<F: Future<Output = bool>>(mut asked: impl FnMut() -> F) {
    let began = Instant::now();
    while !asked().await {
        assert!(began.elapsed() < SOON, "it has not happened within {SOON:?}");
        tokio::task::yield_now().await;
    }
}

async fn what_is_kept_comes_back_in_the_order_of_the_keys(world: &World) {
    let keys: Vec<CacheKey> =
        ["a", "b", "none", "large", "a:b \u{e9}"].map(|text| key(&world.ada, text)).into();
    let large = vec![7_u8; 2 << 20];
    world.put(&keys[0], 1, "one").await;
    world.put(&keys[1], 1, "").await;
    world.level.put(kept(&keys[3], 1, large.clone()), NOW).await.unwrap();
    world.put(&keys[4], 1, "five").await;
    let found = world.level.get(&keys, NOW).await.unwrap();
    let expected = [
        Some(envelope(1, b"one")),
        Some(envelope(1, b"")),
        None,
        Some(envelope(1, &large)),
        Some(envelope(1, b"five")),
    ];
    assert_eq!(found, expected);
    let twice = world.level.get(&[keys[0].clone(), keys[0].clone()], NOW).await.unwrap();
    assert_eq!(twice, [expected[0].clone(), expected[0].clone()]);
    assert!(world.level.get(&[], NOW).await.unwrap().is_empty());
}

async fn the_newer_of_two_counts_whatever_comes_first(world: &World) {
    let key = key(&world.ada, "k");
    for (stamp, bytes, expected) in [
        (5, "five", "five"),
        (4, "four", "five"),
        (5, "again", "again"),
        (u64::MAX >> 1, "last", "last"),
        (6, "six", "last"),
    ] {
        assert_eq!(world.put(&key, stamp, bytes).await, bytes == expected, "{stamp}");
        assert_eq!(world.look(&key).await.as_deref(), Some(expected), "{stamp}");
    }
    let other = self::key(&world.ada, "at once");
    let stamps = (1..=40_u64).map(|number| number * 17 % 41);
    join_all(stamps.map(|stamp| world.level.put(kept(&other, stamp, stamp.to_string()), NOW)))
        .await
        .into_iter()
        .for_each(|put| assert!(put.is_ok()));
    assert_eq!(world.look(&other).await.as_deref(), Some("40"));
}

async fn nothing_comes_that_is_kept_no_longer(world: &World) {
    let key = key(&world.ada, "k");
    let short = Kept { until_ms: NOW + 50, ..kept(&key, 9, "short") };
    world.level.put(short, NOW).await.unwrap();
    until(|| async { world.level.get(std::slice::from_ref(&key), NOW + 50).await.unwrap()[0].is_none() })
        .await;
}

async fn what_has_ended_still_counts_as_newer_until_it_is_pruned(world: &World) {
    let key = key(&world.ada, "k");
    let short = Kept { until_ms: NOW + 50, ..kept(&key, 9, "short") };
    assert!(world.level.put(short, NOW).await.unwrap());
    assert!(!world.level.put(kept(&key, 3, "older"), NOW + 50).await.unwrap());
    assert_eq!(world.level.prune(&world.ada, 1_000, NOW + 50, 100).await.unwrap(), 1);
    assert!(world.level.put(kept(&key, 3, "older"), NOW + 50).await.unwrap());
}

async fn another_tenant_or_part_has_other_entries_under_one_key(world: &World) {
    let films = "films".parse().unwrap();
    let keys = [
        key(&world.ada, "k"),
        key(&world.bob, "k"),
        CacheKey::new(&world.ada, &Namespace::of_plugin(&films, &Digest([8; 32])), "k").unwrap(),
        CacheKey::new(&world.ada, &Namespace::shared(&films), "k").unwrap(),
        CacheKey::new(&world.ada, &Namespace::of_results(&films), "k").unwrap(),
    ];
    for (key, bytes) in keys.iter().zip(["ada", "bob", "other", "shared", "result"]) {
        assert_eq!(world.look(key).await, None);
        world.put(key, 1, bytes).await;
    }
    for (key, bytes) in keys.iter().zip(["ada", "bob", "other", "shared", "result"]) {
        assert_eq!(world.look(key).await.as_deref(), Some(bytes));
    }
    let usage = world.level.usage(&world.ada, NOW).await.unwrap();
    assert_eq!(usage, LevelUsage { entries: 4, bytes: 36 + 3 + 5 + 6 + 6 });
    assert_eq!(world.level.clear(&world.ada).await.unwrap(), 4);
    let left = [world.look(&keys[0]).await, world.look(&keys[1]).await];
    assert_eq!(left, [None, Some("bob".to_owned())]);
    assert_eq!(world.level.usage(&world.ada, NOW).await.unwrap(), LevelUsage::default());
}

async fn what_is_no_good_is_taken_away(world: &World) {
    let key = key(&world.ada, "k");
    world.put(&key, 9, "garbage").await;
    world.level.discard(&key).await.unwrap();
    assert_eq!(world.look(&key).await, None);
    world.put(&key, 1, "good").await;
    assert_eq!(world.look(&key).await.as_deref(), Some("good"));
}

async fn a_lease_is_one_owners_at_a_time(world: &World) {
    let (key, other) = (key(&world.ada, "k"), key(&world.bob, "k"));
    let take = |key: &CacheKey, owner: u64| {
        let (level, key) = (Arc::clone(&world.level), key.clone());
        async move { level.take_lease(&key, owner, 60_000, NOW).await.unwrap() }
    };
    assert!(take(&key, 1).await && !take(&key, 2).await && take(&key, 1).await);
    assert!(take(&other, 2).await, "another tenant's key is another one");
    assert!(!world.level.free_lease(&key, 2, NOW).await.unwrap());
    assert!(world.level.free_lease(&key, 1, NOW).await.unwrap());
    assert!(!world.level.free_lease(&key, 1, NOW).await.unwrap());
    assert!(take(&key, u64::MAX).await && !take(&key, 1).await);
    assert_eq!(world.look(&key).await, None, "a lease is no entry");
    let racing = self::key(&world.ada, "race");
    let won = join_all((1..=20).map(|owner| take(&racing, owner))).await;
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
}

async fn a_lease_ends_by_itself(world: &World) {
    let key = key(&world.ada, "k");
    assert!(world.level.take_lease(&key, 1, 50, NOW).await.unwrap());
    until(|| async { world.level.take_lease(&key, 2, 60_000, NOW + 50).await.unwrap() }).await;
    assert!(!world.level.free_lease(&key, 1, NOW + 50).await.unwrap());
    assert!(!world.level.take_lease(&key, 1, 50, NOW + 60).await.unwrap());
}

async fn pruning_takes_what_has_ended_and_then_the_oldest(world: &World) {
    let marker =
        CacheKey::marker_of(&world.ada, &Namespace::shared(&"s".parse().unwrap()), &Tag::given("t").unwrap());
    world.put(&marker, 1, "a note").await;
    world.put(&key(&world.bob, "k"), 1, "another tenant's").await;
    // Ten bytes each.
    for stamp in 1..=9_u64 {
        let until_ms = if stamp == 7 { NOW + 5 } else { LATER };
        let entry = Kept { until_ms, ..kept(&key(&world.ada, &format!("k{stamp}")), stamp, "x") };
        world.level.put(entry, NOW).await.unwrap();
    }
    let prune = |bytes_max: u64, count_max: u32| {
        let level = Arc::clone(&world.level);
        let ada = world.ada.clone();
        async move { level.prune(&ada, bytes_max, NOW + 5, count_max).await.unwrap() }
    };
    assert_eq!(prune(80, 100).await, 1);
    assert_eq!(prune(80, 100).await, 0);
    assert_eq!(prune(79, 100).await, 1);
    assert_eq!(prune(0, 2).await, 2);
    assert_eq!(prune(45, 100).await, 1);
    let mut left = BTreeMap::new();
    for stamp in 1..=9_u64 {
        left.insert(stamp, world.look(&key(&world.ada, &format!("k{stamp}"))).await.is_some());
    }
    let expected = [5, 6, 8, 9];
    assert!(left.iter().all(|(stamp, there)| *there == expected.contains(stamp)), "{left:?}");
    assert_eq!(prune(0, 100).await, 4);
    assert_eq!(world.look(&marker).await.as_deref(), Some("a note"));
    assert!(world.look(&key(&world.bob, "k")).await.is_some());
}

macro_rules! levels {
    ($($level:ident { $($name:ident)+ })+) => {$(
        mod $level {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$name(&crate::$level().await).await;
            }
        )+}
    )+};
}

macro_rules! every_level {
    ($($level:ident { $($more:ident)* })+) => {
        levels! { $($level {
            what_is_kept_comes_back_in_the_order_of_the_keys
            the_newer_of_two_counts_whatever_comes_first
            nothing_comes_that_is_kept_no_longer
            another_tenant_or_part_has_other_entries_under_one_key
            what_is_no_good_is_taken_away
            a_lease_is_one_owners_at_a_time
            a_lease_ends_by_itself
            $($more)*
        })+ }
    };
}

every_level! {
    memory {
        pruning_takes_what_has_ended_and_then_the_oldest
        what_has_ended_still_counts_as_newer_until_it_is_pruned
    }
    sqlite {
        pruning_takes_what_has_ended_and_then_the_oldest
        what_has_ended_still_counts_as_newer_until_it_is_pruned
    }
    postgres {
        pruning_takes_what_has_ended_and_then_the_oldest
        what_has_ended_still_counts_as_newer_until_it_is_pruned
    }
    redis {}
}

#[tokio::test]
async fn another_installation_on_the_same_redis_has_nothing() {
    let ada = memory().await.ada;
    let (ours, theirs) = (redis_of(installation()), redis_of(installation()));
    ours.put(kept(&key(&ada, "k"), 1, "ours"), NOW).await.unwrap();
    assert_eq!(theirs.get(&[key(&ada, "k")], NOW).await.unwrap(), [None]);
    assert_eq!(theirs.clear(&ada).await.unwrap(), 0);
    assert_eq!(ours.clear(&ada).await.unwrap(), 1);
}

#[tokio::test]
async fn whatever_else_stands_in_redis_is_nothing_and_is_overwritten() {
    let (ada, installation) = (memory().await.ada, installation());
    let level = redis_of(installation.clone());
    let client = ::redis::Client::open(redis_url()).unwrap();
    let mut beside = client.get_multiplexed_async_connection().await.unwrap();
    let key = key(&ada, "k");
    let external = key.external(&installation);
    ::redis::cmd("RPUSH").arg(&external).arg("a list").query_async::<u64>(&mut beside).await.unwrap();
    assert_eq!(level.get(std::slice::from_ref(&key), NOW).await.unwrap(), [None]);
    assert_eq!(level.get(&[key.clone(), key.clone()], NOW).await.unwrap(), [None, None]);
    level.put(kept(&key, 1, "good"), NOW).await.unwrap();
    assert_eq!(level.get(std::slice::from_ref(&key), NOW).await.unwrap(), [Some(envelope(1, b"good"))]);
    ::redis::cmd("SET").arg(&external).arg("garbage").query_async::<()>(&mut beside).await.unwrap();
    assert_eq!(
        level.get(std::slice::from_ref(&key), NOW).await.unwrap(),
        [Some(Bytes::from_static(b"garbage"))]
    );
    level.put(kept(&key, 1, "good"), NOW).await.unwrap();
    assert_eq!(level.get(&[key], NOW).await.unwrap(), [Some(envelope(1, b"good"))]);
}

#[tokio::test]
async fn hosts_of_an_installation_hear_of_changes_and_no_others_do() {
    let installation = installation();
    let (one, two, other) =
        (redis_of(installation.clone()), redis_of(installation), redis_of(self::installation()));
    for level in [&one, &two, &other] {
        assert_eq!(level.next().await, Heard::Found);
    }
    let change = Change {
        tenant: TenantId(1),
        namespace: "p.films".to_owned(),
        key: "k".to_owned(),
        kind: ChangeKind::Remove,
        stamp: Stamp(7),
    };
    one.tell(std::slice::from_ref(&change)).await.unwrap();
    assert_eq!(two.next().await, Heard::Changes(vec![change.clone()]));
    // Of its own it hears nothing: the first that comes is the other's.
    let answer = Change { stamp: Stamp(8), ..change };
    two.tell(std::slice::from_ref(&answer)).await.unwrap();
    assert_eq!(one.next().await, Heard::Changes(vec![answer]));
    assert!(futures::FutureExt::now_or_never(other.next()).is_none());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_down_and_said_to_be_lost() {
    // Nobody listens on a port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let level = RedisLevel::open(&format!("redis://127.0.0.1:{port}"), installation()).unwrap();
    let error = level.get(&[key(&memory().await.ada, "k")], NOW).await.unwrap_err();
    assert_eq!(error.kind(), keiko_core::port::StoreErrorKind::Down);
    assert_eq!(level.next().await, Heard::Lost);
}

/// What is lost with a connection.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The command does not arrive.
    Command,
    /// It is done, and nobody hears of it.
    Answer,
}

/// Commands that name this key are those that may be lost.
const LOST: &str = "a-key-under-which-connections-are-lost";

/// Passes bytes on to the server and back, until a command that is to be lost.
async fn pass(mut client: TcpStream, server: (String, u16), losses: Arc<Mutex<Vec<Loss>>>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = server.read(&mut answered) => {
                let read = read.unwrap_or(0);
                if read == 0 || client.write_all(&answered[..read]).await.is_err() {
                    return;
                }
            }
            read = client.read(&mut asked) => {
                let read = read.unwrap_or(0);
                let may_be_lost = asked[..read].windows(LOST.len()).any(|words| words == LOST.as_bytes());
                let loss = if may_be_lost { losses.lock().pop() } else { None };
                let is_gone = read == 0 || matches!(loss, Some(Loss::Command));
                if is_gone || server.write_all(&asked[..read]).await.is_err() {
                    return;
                }
                if loss.is_some() {
                    // The server has done it when it answers.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
        }
    }
}

/// Redis behind a way on which connections are lost as often as it is told.
#[allow(clippy::disallowed_methods, reason = "the way runs beside the test")]
async fn redis_by_a_way_with_losses() -> (RedisLevel, Arc<Mutex<Vec<Loss>>>) {
    let client = ::redis::Client::open(redis_url()).unwrap();
    let ::redis::ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr().clone() else {
        panic!("KEIKO_TEST_REDIS names a server without a port");
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let losses = Arc::<Mutex<Vec<Loss>>>::default();
    let told = Arc::clone(&losses);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, (host.clone(), port), Arc::clone(&told)));
        }
    });
    (RedisLevel::open(&url, installation()).unwrap(), losses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_lost_with_its_connection_is_sent_once_more_and_not_twice() {
    let (level, losses) = redis_by_a_way_with_losses().await;
    let ada = memory().await.ada;
    let keys = [key(&ada, LOST), key(&ada, "another")];
    let [one, another] = &keys;
    assert!(level.put(kept(another, 1, "another"), NOW).await.unwrap());
    let found = [Some(envelope(2, b"one")), Some(envelope(1, b"another"))];
    for loss in [Loss::Command, Loss::Answer] {
        let lose = |times| *losses.lock() = vec![loss; times];
        let were_met = || losses.lock().is_empty();
        lose(1);
        assert!(level.put(kept(one, 2, "one"), NOW).await.unwrap() && were_met(), "{loss:?}");
        lose(1);
        let alone = level.get(std::slice::from_ref(one), NOW).await.unwrap();
        assert!(alone == found[..1] && were_met(), "{loss:?}: {alone:?}");
        lose(1);
        let together = level.get(&keys, NOW).await.unwrap();
        assert!(together == found && were_met(), "{loss:?}: {together:?}");
        lose(1);
        assert!(level.take_lease(one, 7, 60_000, NOW).await.unwrap() && were_met(), "{loss:?}");
        // Where it is lost again, the server is as good as away, and nobody waits for a third time.
        for asked in [&keys[..1], &keys] {
            lose(2);
            let error = level.get(asked, NOW).await.unwrap_err();
            assert_eq!(error.kind(), keiko_core::port::StoreErrorKind::Down);
            assert!(were_met(), "{loss:?}: it was sent twice");
        }
        assert_eq!(level.get(&keys, NOW).await.unwrap(), found);
    }
}

#[tokio::test]
async fn a_cache_file_that_is_damaged_or_anothers_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let ada = memory().await.ada;
    let path = folder.path().join("cache.db");
    let put = |store: SqliteStore| {
        let key = key(&ada, "k");
        async move {
            assert_eq!(store.get(std::slice::from_ref(&key), NOW).await.unwrap(), [None]);
            store.put(kept(&key, 1, "v"), NOW).await.unwrap();
            store.close().await.unwrap();
        }
    };
    put(open(folder.path()).await).await;
    let store = open(folder.path()).await;
    assert!(store.get(&[key(&ada, "k")], NOW).await.unwrap()[0].is_some(), "a good one stays");
    store.close().await.unwrap();
    std::fs::write(&path, vec![b'x'; 20_000]).unwrap();
    put(open(folder.path()).await).await;
    std::fs::remove_file(folder.path().join("keiko.db")).unwrap();
    put(open(folder.path()).await).await;
}

#[tokio::test]
async fn faults_of_the_level_in_memory_are_one_hosts() {
    let ours = MemoryLevel::new(installation());
    let theirs = ours.another_host();
    let key = key(&memory().await.ada, "k");
    ours.set_fault(LevelFault::Down);
    assert!(ours.put(kept(&key, 1, "v"), NOW).await.is_err());
    assert_eq!(theirs.get(std::slice::from_ref(&key), NOW).await.unwrap(), [None]);
    ours.set_fault(LevelFault::Lost);
    assert!(ours.put(kept(&key, 1, "v"), NOW).await.is_err());
    assert!(theirs.get(std::slice::from_ref(&key), NOW).await.unwrap()[0].is_some());
}
