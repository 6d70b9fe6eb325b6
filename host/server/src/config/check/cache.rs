//! `[cache]`.

use std::time::Duration;

use keiko_core::cache::{LIFETIME_MS_MAX, Times};
use keiko_runtime::cache::{CacheOptions, Computing, Patience};
use serde_json::Value;

use super::super::CacheConfig;
use super::super::origin::Origin;
use super::super::redis::RedisUrl;
use super::super::written::{Scalar, Set};
use super::Checker;

/// A tebibyte.
const MIB_MAX: u64 = 1 << 20;
/// Longest wait for a level.
const TIMEOUT_MS_MAX: u64 = 60_000;

impl Checker {
    pub(super) fn cache(&mut self) -> CacheConfig {
        let redis_url = self.redis_url();
        let mut lifetime = |path, default| self.number(path, default, 1, LIFETIME_MS_MAX / 1_000) * 1_000;
        let times = Times {
            memory_ms: lifetime("cache.memory_s", 300),
            redis_ms: lifetime("cache.redis_s", 3_600),
            database_ms: lifetime("cache.database_s", 86_400),
        };
        let mut patience =
            |path, default| Duration::from_millis(self.number(path, default, 1, TIMEOUT_MS_MAX));
        let redis_patience = patience("cache.redis_timeout_ms", 250);
        let database_patience = patience("cache.database_timeout_ms", 2_000);
        let computing = self.computing();
        let mut bytes = |path, default| self.number(path, default, 0, MIB_MAX) << 20;
        let options = CacheOptions {
            memory_bytes: bytes("cache.memory_mib", 64),
            database_bytes: bytes("cache.database_mib", 1_024),
            times,
            jitter: true,
            redis_patience,
            database_patience,
            computing,
        };
        CacheConfig { redis_url, options }
    }

    /// Values that the host computes itself.
    fn computing(&mut self) -> Computing {
        let stale_ms = self.number("cache.stale_s", 3_600, 0, LIFETIME_MS_MAX / 1_000) * 1_000;
        let eager = match self.number("cache.eager_percent", 80, 0, 100) {
            0 => None,
            percent => Some(percent as f64 / 100.0),
        };
        let mut patience = |path, default, max| Duration::from_millis(self.number(path, default, 1, max));
        let patience = Patience {
            soft: patience("cache.soft_timeout_ms", 100, TIMEOUT_MS_MAX),
            hard: patience("cache.hard_timeout_ms", 30_000, TIMEOUT_MS_MAX),
            throttle: patience("cache.throttle_ms", 30_000, LIFETIME_MS_MAX),
        };
        Computing { stale_ms, eager, patience }
    }

    /// An empty text is none: it takes back what an earlier layer said.
    fn redis_url(&mut self) -> Option<RedisUrl> {
        let path = "cache.redis_url";
        let (text, origin) = match self.scalars.remove(path) {
            Some(Set { value: Scalar::Text(text), origin }) => (text, origin),
            _ => (String::new(), Origin::Default),
        };
        if text.is_empty() {
            self.effective(path, Value::from(text), origin);
            return None;
        }
        match RedisUrl::parse(&text) {
            Ok(url) => {
                self.effective(path, Value::from(url.to_string()), origin);
                Some(url)
            }
            Err(text) => {
                self.mistake(path, origin, text);
                None
            }
        }
    }
}
