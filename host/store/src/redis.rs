//! The cache's second level: a Redis server that hosts share, and the way on which they tell each other of changes.
//!
//! - One multiplexed connection to a server or to each node of a cluster ([`connection`]), made when it is first used and
//!   made again when it was lost. Whoever asks has a limit of its own to how long it waits.
//! - Envelopes end with their keys (`PX`). The newer of two counts, by a script that compares the stamps.
//! - What else stands under a key, whatever its type, is nothing, and is overwritten.
//! - Each key is named by itself in every command, so that a cluster can hold them. Leases have keys of their own.

mod connection;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ErrorKind, RedisError, RedisResult, Script};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use keiko_core::cache::{CacheKey, Installation, Stamp};
use keiko_core::catalog::Tenant;
use keiko_core::id::TenantId;
use keiko_core::port::{
    Backplane, CacheLevel, Change, ChangeKind, Heard, Kept, LevelUsage, StoreError, StoreErrorKind,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::timeout;

use self::connection::{ANSWER, CONNECT, Connection, Nodes};
use crate::transaction::spawn;

/// Wait before the next try to listen.
const AGAIN: Duration = Duration::from_millis(500);
/// A listener that hears nothing for so long asks whether the server is still there.
const QUIET: Duration = Duration::from_secs(5);
/// Messages that wait to be heard; with more, some are lost, and it is said.
const HEARD_MAX: usize = 10_000;
/// Keys that one step of a walk over the server looks at.
const SCAN_COUNT: usize = 1_000;
/// Steps of a walk at most, so that it ends though keys are added all the time.
const SCAN_STEPS_MAX: usize = 100_000;
/// Changes of one message.
const CHANGES_MAX: usize = 100;

/// Keeps an envelope unless a newer one is there: format and stamp are the first nine bytes.
const PUT: &str = "local old = redis.pcall('GETRANGE', KEYS[1], 0, 8)
if type(old) == 'string' and #old == 9 and string.byte(old) == 1 and string.sub(old, 2) > ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1";
const TAKE_LEASE: &str = "local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'string' and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";
const FREE_LEASE: &str = "if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return 1";

/// Why a server cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none.
    #[error(
        "the URL of Redis cannot be read: it is redis://user:password@host:port/database, or \
         redis+cluster://user:password@host:port,host:port"
    )]
    Url,
    /// The client cannot be made.
    #[error("the client of Redis cannot be made")]
    Client(#[source] RedisError),
}

/// A server's part that belongs to one installation. Clones share the connection.
#[derive(Clone)]
pub struct RedisLevel(Arc<Inner>);

struct Inner {
    installation: Installation,
    connection: Connection,
    put: Script,
    take_lease: Script,
    free_lease: Script,
    heard: Mutex<mpsc::Receiver<Heard>>,
    me: u64,
    /// Ends the listener when this is gone.
    _listening: watch::Sender<()>,
}

/// A message between hosts.
#[derive(Serialize, Deserialize)]
struct Message {
    /// Who sends it.
    from: u64,
    changes: Vec<Told>,
}

/// A change as it is told: tenant, namespace, key, kind, stamp.
#[derive(Serialize, Deserialize)]
struct Told(i64, String, String, u8, u64);

impl RedisLevel {
    /// The server at this URL. It need not be there yet. Needs a Tokio runtime that stays.
    pub fn open(url: &str, installation: Installation) -> Result<RedisLevel, OpenError> {
        let nodes = Nodes::parse(url)?;
        let connection = Connection::open(&nodes)?;
        let me = fresh_number();
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let (listening, closed) = watch::channel(());
        // Messages come on a connection of their own: its end is how a loss is noticed.
        let listeners = nodes.clients()?;
        spawn(listen(listeners, CacheKey::channel(&installation), me, sender, closed));
        Ok(RedisLevel(Arc::new(Inner {
            installation,
            connection,
            put: Script::new(PUT),
            take_lease: Script::new(TAKE_LEASE),
            free_lease: Script::new(FREE_LEASE),
            heard: Mutex::new(heard),
            me,
            _listening: listening,
        })))
    }

    /// One `GET` as a benchmark measures it: nothing is checked, decoded or kept. Says whether there was something.
    #[doc(hidden)]
    pub async fn bare_get(&self, name: &str) -> bool {
        let mut get = ::redis::cmd("GET");
        get.arg(name)
            .query_async::<Option<Vec<u8>>>(&mut self.0.connection.clone())
            .await
            .is_ok_and(|found| found.is_some())
    }

    fn external(&self, key: &CacheKey) -> String {
        key.external(&self.0.installation)
    }

    /// Sends a command for every key of a tenant that is wanted, some at a time; how many answered, and their sum.
    async fn walk(
        &self,
        tenant: &Tenant,
        command: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> RedisResult<LevelUsage> {
        let mut connection = self.0.connection.clone();
        let pattern = format!("{}*", CacheKey::external_of_tenant(&self.0.installation, tenant));
        let mut sum = LevelUsage::default();
        for master in connection.masters().await? {
            let mut cursor = 0_u64;
            for _ in 0..SCAN_STEPS_MAX {
                let mut scan = ::redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
                let (next, mut keys): (u64, Vec<String>) = connection.ask(&master, scan).await?;
                keys.retain(|key| is_wanted(key));
                let answers = connection.each::<u64>(command, &keys).await?;
                for number in answers.into_iter().flatten() {
                    sum.entries += 1;
                    sum.bytes += number;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(sum)
    }

    async fn lease(&self, script: &Script, key: &CacheKey, owner: u64, arg: u64) -> Result<bool, StoreError> {
        let mut connection = self.0.connection.clone();
        let mut call = script.prepare_invoke();
        call.key(format!("lease:{}", self.external(key))).arg(format!("{owner:016x}")).arg(arg);
        call.invoke_async::<i64>(&mut connection).await.map(|answer| answer == 1).map_err(store_error)
    }
}

#[async_trait]
impl CacheLevel for RedisLevel {
    async fn get(&self, keys: &[CacheKey], _now_ms: i64) -> Result<Vec<Option<Bytes>>, StoreError> {
        let names: Vec<String> = keys.iter().map(|key| self.external(key)).collect();
        let texts = self.0.connection.texts(&names).await.map_err(store_error)?;
        Ok(texts.into_iter().map(|text| text.map(Bytes::from)).collect())
    }

    async fn put(&self, kept: Kept, now_ms: i64) -> Result<bool, StoreError> {
        let left_ms = kept.until_ms.saturating_sub(now_ms);
        if left_ms <= 0 {
            return Ok(true);
        }
        let mut connection = self.0.connection.clone();
        let mut call = self.0.put.prepare_invoke();
        call.key(self.external(&kept.key))
            .arg(&kept.stamp.0.to_be_bytes()[..])
            .arg(&kept.bytes[..])
            .arg(left_ms);
        call.invoke_async::<i64>(&mut connection).await.map(|kept| kept == 1).map_err(store_error)
    }

    async fn discard(&self, key: &CacheKey) -> Result<(), StoreError> {
        let mut connection = self.0.connection.clone();
        let mut unlink = ::redis::cmd("UNLINK");
        unlink
            .arg(self.external(key))
            .query_async::<u64>(&mut connection)
            .await
            .map(drop)
            .map_err(store_error)
    }

    async fn clear(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        self.walk(tenant, "UNLINK", |_| true).await.map(|sum| sum.bytes).map_err(store_error)
    }

    /// The server does it by itself.
    async fn prune(&self, _: &Tenant, _: u64, _: i64, _: u32) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn usage(&self, tenant: &Tenant, _now_ms: i64) -> Result<LevelUsage, StoreError> {
        let markers = format!("{}t.", CacheKey::external_of_tenant(&self.0.installation, tenant));
        let is_entry = |key: &str| !key.starts_with(&markers);
        self.walk(tenant, "STRLEN", is_entry).await.map_err(store_error)
    }

    async fn take_lease(
        &self,
        key: &CacheKey,
        owner: u64,
        lease_ms: u64,
        _now_ms: i64,
    ) -> Result<bool, StoreError> {
        self.lease(&self.0.take_lease, key, owner, lease_ms.max(1)).await
    }

    async fn free_lease(&self, key: &CacheKey, owner: u64, _now_ms: i64) -> Result<bool, StoreError> {
        self.lease(&self.0.free_lease, key, owner, 0).await
    }
}

#[async_trait]
impl Backplane for RedisLevel {
    async fn tell(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut texts = Vec::new();
        for part in changes.chunks(CHANGES_MAX) {
            let message = Message { from: self.0.me, changes: part.iter().map(told).collect() };
            let text = serde_json::to_string(&message)
                .map_err(|error| StoreError::new(StoreErrorKind::Internal, error.to_string()))?;
            texts.push(text);
        }
        let mut connection = self.0.connection.clone();
        for text in texts {
            let mut publish = ::redis::cmd("PUBLISH");
            publish.arg(CacheKey::channel(&self.0.installation)).arg(text);
            publish.query_async::<u64>(&mut connection).await.map_err(store_error)?;
        }
        Ok(())
    }

    async fn next(&self) -> Heard {
        match self.0.heard.lock().await.recv().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }
}

fn told(change: &Change) -> Told {
    let kind = match change.kind {
        ChangeKind::Set => 0,
        ChangeKind::Remove => 1,
        ChangeKind::Expire => 2,
    };
    Told(change.tenant.0, change.namespace.clone(), change.key.clone(), kind, change.stamp.0)
}

/// What another host told; `None` when it is not to be understood, so that anything may have changed.
fn understood(text: &[u8], me: u64) -> Option<Vec<Change>> {
    let message: Message = serde_json::from_slice(text).ok()?;
    if message.from == me {
        return Some(Vec::new());
    }
    let change = |Told(tenant, namespace, key, kind, stamp)| {
        let kind =
            [ChangeKind::Set, ChangeKind::Remove, ChangeKind::Expire].get(usize::from(kind)).copied()?;
        Some(Change { tenant: TenantId(tenant), namespace, key, kind, stamp: Stamp(stamp) })
    };
    message.changes.into_iter().map(change).collect()
}

/// Hears what others tell until nobody wants to know: from one node after the other, as long as none of them is lost.
async fn listen(
    clients: Vec<Client>,
    channel: String,
    me: u64,
    heard: mpsc::Sender<Heard>,
    mut closed: watch::Receiver<()>,
) {
    let mut told_lost = false;
    for client in clients.iter().cycle() {
        let session = hear(client, &channel, me, &heard, &mut told_lost);
        let ended = tokio::select! {
            ended = session => ended,
            _ = closed.changed() => return,
        };
        if let Err(error) = ended {
            tracing::debug!(error = %error, "changes of other hosts cannot be heard");
        }
        if !told_lost {
            tracing::info!("the connection that hears changes of the cache was lost");
            told_lost = true;
            // With nobody to hear it, the listener ends below.
            let _ = heard.send(Heard::Lost).await;
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = closed.changed() => return,
        }
    }
}

async fn hear(
    client: &Client,
    channel: &str,
    me: u64,
    heard: &mpsc::Sender<Heard>,
    told_lost: &mut bool,
) -> RedisResult<()> {
    let late = |_| RedisError::from((ErrorKind::Io, "no answer in time"));
    let mut session = timeout(CONNECT, client.get_async_pubsub()).await.map_err(late)??;
    timeout(ANSWER, session.subscribe(channel)).await.map_err(late)??;
    let (mut sink, mut messages) = session.split();
    *told_lost = false;
    if heard.send(Heard::Found).await.is_err() {
        return Ok(());
    }
    loop {
        match timeout(QUIET, messages.next()).await {
            Ok(Some(message)) => {
                let news = match understood(message.get_payload_bytes(), me) {
                    Some(changes) if changes.is_empty() => continue,
                    Some(changes) => Heard::Changes(changes),
                    None => Heard::Found,
                };
                if heard.try_send(news).is_err() {
                    // Too many at once: what comes next says that some were lost.
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(_) => {
                timeout(ANSWER, sink.ping::<::redis::Value>()).await.map_err(late)??;
            }
        }
    }
}

/// A number that no other host has.
fn fresh_number() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// The store's error for one of Redis. Messages carry no keys.
fn store_error(error: RedisError) -> StoreError {
    let (kind, message) = match error.kind() {
        ErrorKind::Io => (StoreErrorKind::Down, "Redis cannot be reached"),
        ErrorKind::Server(_) if error.code() == Some("OOM") => (StoreErrorKind::Full, "Redis has no room"),
        ErrorKind::Server(_) => (StoreErrorKind::Busy, "Redis refused a command"),
        ErrorKind::AuthenticationFailed => (StoreErrorKind::Down, "Redis does not let this host in"),
        ErrorKind::Parse => (StoreErrorKind::Integrity, "Redis answered something else"),
        _ => (StoreErrorKind::Internal, "the client of Redis failed"),
    };
    StoreError::new(kind, message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_through_and_ones_own_are_none() {
        let change = |kind| Change {
            tenant: TenantId(7),
            namespace: "p.films".to_owned(),
            key: "a \"quoted\" key".to_owned(),
            kind,
            stamp: Stamp(u64::MAX),
        };
        let changes = [ChangeKind::Set, ChangeKind::Remove, ChangeKind::Expire].map(change);
        let message = Message { from: 1, changes: changes.iter().map(told).collect() };
        let text = serde_json::to_vec(&message).unwrap();
        assert_eq!(understood(&text, 2), Some(changes.to_vec()));
        assert_eq!(understood(&text, 1), Some(Vec::new()));
        assert_eq!(understood(b"hello", 1), None);
        assert_eq!(understood(br#"{"from":1,"changes":[[7,"n","k",9,1]]}"#, 2), None);
    }

    #[test]
    fn a_url_that_is_none_is_refused() {
        let open = |url: &str| RedisLevel::open(url, "a1".parse().unwrap()).err();
        assert!(matches!(open("nothing"), Some(OpenError::Url)));
        assert!(matches!(open("postgres://localhost"), Some(OpenError::Url)));
    }
}
