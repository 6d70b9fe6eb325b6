//! The URL of Redis, whose password nobody sees.

use std::fmt;

/// Longest URL, in bytes.
const BYTES_MAX: usize = 4_096;
/// What such a URL looks like.
const SHAPE: &str = "redis://:PASSWORD@cache.example:6379/0";
/// What the URL of a server, and that of the nodes of a cluster, begins with.
const SCHEMES: [&str; 2] = ["redis://", "redis+cluster://"];

/// A checked `redis://…`, or `redis+cluster://…` with some of the cluster's nodes. What it shows of itself has `***` for
/// user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    whole: String,
    shown: String,
}

impl RedisUrl {
    /// Reads a URL. The error says what is wrong and repeats nothing of it.
    pub fn parse(text: &str) -> Result<RedisUrl, String> {
        if text.starts_with("rediss://") {
            return Err(
                "this host speaks no TLS with Redis; keep it on a private network, or behind a proxy"
                    .to_owned(),
            );
        }
        let scheme = SCHEMES.into_iter().find(|scheme| text.starts_with(scheme));
        let scheme = scheme.ok_or(format!("is not a URL such as {SHAPE}"))?;
        let rest = &text[scheme.len()..];
        if text.len() > BYTES_MAX {
            return Err(format!("a URL of {} bytes exceeds the limit of {BYTES_MAX}", text.len()));
        }
        if text.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
            return Err("has a blank or a control character; write it as %20".to_owned());
        }
        let (before, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A password may have had to be escaped: then it would show up behind the host.
        if after.contains('@') {
            return Err("has a `@` behind the host; write `/`, `?`, `#` and `@` of a password as %2F, %3F, %23 and %40".to_owned());
        }
        let (secret, host) =
            before.rsplit_once('@').map_or((None, before), |(secret, host)| (Some(secret), host));
        let is_cluster = scheme != SCHEMES[0];
        if host.split(',').any(str::is_empty) {
            return Err(format!("has no host; a URL is such as {SHAPE}"));
        }
        if is_cluster && !matches!(after, "" | "/") {
            return Err("of a cluster ends with its hosts: a cluster has one database".to_owned());
        }
        if !is_cluster && host.contains(',') {
            return Err("has several hosts; those of a cluster stand behind `redis+cluster://`".to_owned());
        }
        let secret = if secret.is_some() { "***@" } else { "" };
        Ok(RedisUrl { whole: text.to_owned(), shown: format!("{scheme}{secret}{host}{after}") })
    }

    /// The whole URL, for the one who connects.
    pub fn reveal(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_no_password() {
        let check = |text: &str, shown: &str| {
            let url = RedisUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.to_string().as_str(), url.reveal()), (shown, text));
            assert_eq!(format!("{url:?}"), shown);
        };
        check("redis://127.0.0.1", "redis://127.0.0.1");
        check("redis://:secret@h:6379/2", "redis://***@h:6379/2");
        check("redis+cluster://:secret@a:1,b:2", "redis+cluster://***@a:1,b:2");
        check("redis+cluster://a/", "redis+cluster://a/");
        check("redis://user:s%40cret@h/?protocol=resp3", "redis://***@h/?protocol=resp3");
    }

    #[test]
    fn what_is_no_url_is_refused_without_repeating_it() {
        let check = |text: &str, expected: &str| {
            let error = RedisUrl::parse(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        };
        check("h:6379", "is not a URL such as redis://");
        check("rediss://:secret@h", "no TLS");
        check("redis://:sec/secret@h", "behind the host");
        check("redis://:secret@", "no host");
        check("redis+cluster://:secret@a,", "no host");
        check("redis+cluster://:secret@a/1", "one database");
        check("redis://:secret@a,b", "redis+cluster://");
        check("redis://h/ 1", "blank");
        check(&format!("redis://{}", "h".repeat(BYTES_MAX)), "exceeds the limit of 4096");
    }
}
