//! `[database]`, `[retention]`, and the key that hosts of one database share.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use keiko_engine::ClusterKey;
use serde_json::Value;

use super::super::origin::Origin;
use super::super::url::DatabaseUrl;
use super::super::written::{CLUSTER_KEY, Scalar, Set};
use keiko_runtime::Retention;

use super::super::Database;
use super::Checker;

/// Connections to a server, of one kind.
const CONNECTIONS_MAX: u64 = 1_000;
/// A hundred years.
const DAYS_MAX: u64 = 36_500;
const DAY_S: u64 = 86_400;

impl Checker {
    pub(super) fn database(&mut self) -> Database {
        let mistakes = self.mistakes.len();
        let url = self.url("database.url");
        let url_is_missing = url.is_none() && self.mistakes.len() == mistakes;
        let replica_url = self.url("database.replica_url");
        if replica_url.is_some() && url_is_missing {
            let origin = self.effective.last().map_or(Origin::Default, |entry| entry.origin.clone());
            self.mistake("database.replica_url", origin, "there is no `url` that it could be a replica of");
        }
        let number = |checker: &mut Checker, path, default, min, max| checker.number(path, default, min, max);
        Database {
            url,
            replica_url,
            replica_lag_max: Duration::from_secs(number(self, "database.replica_lag_max_s", 10, 1, 3_600)),
            pool_size: number(self, "database.pool_size", 20, 1, CONNECTIONS_MAX) as u32,
            pool_overflow: number(self, "database.pool_overflow", 30, 0, CONNECTIONS_MAX) as u32,
            acquire_timeout: Duration::from_secs(number(self, "database.acquire_timeout_s", 30, 1, 600)),
            recycle: Duration::from_secs(number(self, "database.recycle_s", 3_600, 1, 7 * DAY_S)),
            idle_timeout: Duration::from_secs(number(self, "database.idle_timeout_s", 600, 1, 7 * DAY_S)),
            test_before_use: self.boolean("database.test_before_use", true),
            statement_log: self.boolean("database.statement_log", false),
            // Without a cache the client keeps every statement it ever prepared, and never frees one.
            statement_cache: number(self, "database.statement_cache", 100, 1, 10_000) as usize,
            slow_acquire: Duration::from_millis(number(self, "database.slow_acquire_ms", 2_000, 1, 600_000)),
        }
    }

    pub(super) fn retention(&mut self) -> Retention {
        let mut days = |path, default| match self.number(path, default, 0, DAYS_MAX) {
            0 => None,
            days => Some(Duration::from_secs(days.saturating_mul(DAY_S))),
        };
        Retention {
            completed: days("retention.completed_days", 30),
            failed: days("retention.failed_days", 90),
            cancelled: days("retention.cancelled_days", 30),
        }
    }

    pub(super) fn cluster_key(&mut self, written: Option<Set<String>>) -> Option<ClusterKey> {
        let Set { value, origin } = written?;
        let key = parse_key(value.trim());
        match key {
            Some(_) => self.effective(CLUSTER_KEY, Value::Null, origin),
            None => {
                self.mistake("", origin, "a cluster key is 64 hexadecimal digits, or the base64 of 32 bytes");
            }
        }
        key
    }

    /// An empty text is none: it takes back what an earlier layer said.
    fn url(&mut self, path: &'static str) -> Option<DatabaseUrl> {
        let (text, origin) = match self.scalars.remove(path) {
            Some(Set { value: Scalar::Text(text), origin }) => (text, origin),
            _ => (String::new(), Origin::Default),
        };
        if text.is_empty() {
            self.effective(path, Value::from(text), origin);
            return None;
        }
        match DatabaseUrl::parse(&text) {
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

    fn boolean(&mut self, path: &'static str, default: bool) -> bool {
        let (value, origin) = match self.scalars.remove(path) {
            Some(Set { value: Scalar::Boolean(value), origin }) => (value, origin),
            _ => (default, Origin::Default),
        };
        self.effective(path, Value::from(value), origin);
        value
    }
}

/// A key in any of the forms that tools write 32 bytes in.
fn parse_key(text: &str) -> Option<ClusterKey> {
    if let Ok(key) = ClusterKey::from_hex(text) {
        return Some(key);
    }
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabets = [alphabet::STANDARD, alphabet::URL_SAFE];
    let decode = |alphabet| GeneralPurpose::new(&alphabet, lenient).decode(text).ok();
    let bytes = alphabets.into_iter().find_map(decode).filter(|bytes| bytes.len() == 32)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    ClusterKey::from_hex(&digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_key_is_32_bytes_in_hexadecimal_or_base64() {
        let check = |text: &str, fits: bool| assert_eq!(parse_key(text).is_some(), fits, "{text}");
        check(&"0f".repeat(32), true);
        check(&"0F".repeat(32), true);
        check("//////////////////////////////////////////8=", true);
        check("//////////////////////////////////////////8", true);
        check("__________________________________________8=", true);
        check("", false);
        check(&"0f".repeat(31), false);
        check("AAAA", false);
        // 48 bytes: the length of a key in hexadecimal.
        check(&"zz".repeat(32), false);
    }
}
