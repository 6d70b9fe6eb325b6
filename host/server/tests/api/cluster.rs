//! A Redis cluster of three nodes as the cache's second level: keys at every node, changes told between hosts, and a node that
//! goes and comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keiko_core::TenantId;
use keiko_core::cache::{CacheKey, Installation, Namespace, Stamp};
use keiko_core::catalog::Tenant;
use keiko_core::port::{Backplane, CacheLevel, Change, ChangeKind, Heard, Kept, StoreError};
use keiko_store::redis::RedisLevel;
use keiko_tests::redis::Cluster;

use crate::world::World;

const NOW: i64 = 1_800_000_000_000;
const SOON: Duration = Duration::from_secs(60);
/// So many keys that each of three nodes has some.
const KEYS: usize = 60;

fn installation() -> Installation {
    "cluster".parse().unwrap()
}

fn tenant(id: i64, name: &str) -> Tenant {
    Tenant { id: TenantId(id), name: name.parse().unwrap() }
}

fn keys(tenant: &Tenant) -> Vec<CacheKey> {
    let part = Namespace::shared(&"films".parse().unwrap());
    (0..KEYS).map(|number| CacheKey::new(tenant, &part, &format!("key-{number}")).unwrap()).collect()
}

/// An envelope as far as a level looks at it.
fn kept(key: &CacheKey, stamp: u64) -> Kept {
    let bytes = [&[1], &stamp.to_be_bytes()[..], key.text().as_bytes()].concat();
    Kept { key: key.clone(), stamp: Stamp(stamp), until_ms: NOW + 3_600_000, bytes: bytes.into() }
}

async fn texts(level: &RedisLevel, keys: &[CacheKey]) -> Result<Vec<Option<String>>, StoreError> {
    let text = |bytes: Bytes| String::from_utf8(bytes[9..].to_vec()).unwrap();
    Ok(level.get(keys, NOW).await?.into_iter().map(|found| found.map(text)).collect())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Asks again until the level answers as it should: a node comes back when the others have noticed.
async fn until(mut is: impl AsyncFnMut() -> bool) {
    let all = async {
        while !is().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, all).await.expect("it comes to this soon");
}

#[test]
fn every_node_of_a_cluster_keeps_its_keys_and_all_of_them_are_walked_over() {
    let cluster = Cluster::start().unwrap();
    runtime().block_on(async {
        let level = RedisLevel::open(&cluster.url(), installation()).unwrap();
        let (ada, bob) = (tenant(1, "ada"), tenant(2, "bob"));
        let (hers, his) = (keys(&ada), keys(&bob));
        for key in hers.iter().chain(&his) {
            assert!(level.put(kept(key, 5), NOW).await.unwrap());
        }
        let sizes: Vec<String> = cluster.nodes.iter().map(|node| node.ask("DBSIZE").unwrap()).collect();
        assert!(sizes.iter().all(|size| size != ":0"), "each node has some of the keys: {sizes:?}");
        let expected: Vec<_> = hers.iter().map(|key| Some(key.text().to_owned())).collect();
        assert_eq!(texts(&level, &hers).await.unwrap(), expected);
        assert_eq!(texts(&level, &hers[3..4]).await.unwrap(), expected[3..4]);
        // The newer of two counts at whichever node.
        for key in &hers {
            assert!(!level.put(kept(key, 4), NOW).await.unwrap());
            assert!(level.put(kept(key, 6), NOW).await.unwrap());
        }
        let usage = level.usage(&ada, NOW).await.unwrap();
        assert_eq!(usage.entries, KEYS as u64);
        assert_eq!(level.clear(&ada).await.unwrap(), KEYS as u64);
        assert_eq!(level.usage(&ada, NOW).await.unwrap().entries, 0);
        assert_eq!(level.usage(&bob, NOW).await.unwrap().entries, KEYS as u64);
        level.discard(&his[0]).await.unwrap();
        assert_eq!(texts(&level, &his[..1]).await.unwrap(), [None]);
        for key in &hers {
            assert!(level.take_lease(key, 1, 60_000, NOW).await.unwrap());
            assert!(!level.take_lease(key, 2, 60_000, NOW).await.unwrap());
            assert!(level.free_lease(key, 1, NOW).await.unwrap());
            assert!(level.take_lease(key, 2, 60_000, NOW).await.unwrap());
        }
    });
}

#[test]
fn a_lost_node_takes_its_keys_away_and_no_others_and_comes_back() {
    let mut cluster = Cluster::start().unwrap();
    let runtime = runtime();
    let (level, hers) = runtime.block_on(async {
        let level = RedisLevel::open(&cluster.url(), installation()).unwrap();
        let hers = keys(&tenant(1, "ada"));
        for key in &hers {
            assert!(level.put(kept(key, 5), NOW).await.unwrap());
        }
        (level, hers)
    });
    cluster.nodes[0].kill().unwrap();
    let away = runtime.block_on(async {
        let mut away = Vec::new();
        for key in &hers {
            match texts(&level, std::slice::from_ref(key)).await {
                Ok(found) => assert_eq!(found, [Some(key.text().to_owned())]),
                Err(_) => away.push(key.clone()),
            }
        }
        away
    });
    assert!(!away.is_empty() && away.len() < KEYS, "{} of {KEYS} are away", away.len());
    cluster.nodes[0].run().unwrap();
    cluster.wait().unwrap();
    runtime.block_on(async {
        for key in &away {
            until(async || level.put(kept(key, 7), NOW).await.is_ok_and(|kept| kept)).await;
            assert_eq!(
                texts(&level, std::slice::from_ref(key)).await.unwrap(),
                [Some(key.text().to_owned())]
            );
        }
    });
}

#[test]
fn hosts_hear_each_other_through_a_cluster_also_when_the_node_that_they_heard_is_gone() {
    let mut cluster = Cluster::start().unwrap();
    let runtime = runtime();
    let (one, other) = runtime.block_on(async {
        let open = || Arc::new(RedisLevel::open(&cluster.url(), installation()).unwrap());
        (open(), open())
    });
    let hers = keys(&tenant(1, "ada"));
    let change = |key: &CacheKey| Change {
        tenant: key.tenant().id,
        namespace: key.namespace().as_str().to_owned(),
        key: key.text().to_owned(),
        kind: ChangeKind::Set,
        stamp: Stamp(9),
    };
    let heard = |number: usize| {
        let (one, other, told) = (Arc::clone(&one), Arc::clone(&other), change(&hers[number]));
        async move {
            let hears = async {
                loop {
                    if matches!(other.next().await, Heard::Changes(changes) if changes == [told.clone()]) {
                        return;
                    }
                }
            };
            let tells = async {
                loop {
                    // Whoever is not there yet does not hear: it is told again.
                    let _ = one.tell(std::slice::from_ref(&told)).await;
                    tokio::task::yield_now().await;
                }
            };
            let both = async {
                tokio::select! { () = hears => {}, () = tells => {} }
            };
            tokio::time::timeout(SOON, both).await.expect("it is heard soon");
        }
    };
    runtime.block_on(heard(0));
    cluster.nodes[0].kill().unwrap();
    runtime.block_on(heard(1));
}

#[test]
fn a_host_uses_a_cluster_as_its_second_level() {
    let cluster = Cluster::start().unwrap();
    let world = World::with(&format!("[cache]\nredis_url = \"{}\"\n", cluster.url()));
    let client = world.client(None);
    client.install("guest");
    let levels = client.get("/v1/cache").expect(200).json();
    let redis = levels["levels"].as_array().unwrap().iter().find(|level| level["level"] == "redis");
    assert_eq!(redis.unwrap()["resting"], false, "{levels}");
    let agent = client.post_json("/v1/agents", r#"{"name":"Ada","kind":"writer"}"#).expect(201).json();
    // What is asked of one agent is kept on every level.
    client.get(&format!("/v1/agents/{}", agent["id"].as_str().unwrap())).expect(200);
    let kept = keiko_tests::wait::until("an entry in Redis", SOON, || {
        let levels = client.get("/v1/cache").expect(200).json();
        let redis =
            levels["levels"].as_array().unwrap().iter().find(|level| level["level"] == "redis").cloned();
        Ok(redis.filter(|redis| redis["entries"].as_u64().unwrap_or(0) > 0))
    });
    assert!(kept.is_ok(), "{kept:?}");
}
