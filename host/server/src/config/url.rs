//! The URL of a database, whose password nobody sees.
//!
//! It is read by hand, before any client library, and strictly: whatever could hide a part of a password where it
//! would be shown or logged (an unescaped `@`, `/`, `?` or `#` in it, a parameter nobody knows) is refused, and what is
//! refused is not repeated.

use std::fmt;

/// Parameters that a URL may have. What the configuration has settings for is not among them.
const PARAMETERS: &[&str] = &[
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];
/// Longest URL, in bytes.
const BYTES_MAX: usize = 4_096;

/// A checked `postgres://…`. What it shows of itself has `***` for a password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    whole: String,
    shown: String,
}

impl DatabaseUrl {
    /// Reads a URL. The error says what is wrong and repeats nothing of it.
    pub fn parse(text: &str) -> Result<DatabaseUrl, String> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or("is not a URL such as postgres://keiko:PASSWORD@db.example/keiko")?;
        if text.len() > BYTES_MAX {
            return Err(format!("a URL of {} bytes exceeds the limit of {BYTES_MAX}", text.len()));
        }
        if let Some(odd) =
            text.chars().find(|letter| letter.is_control() || " \"<>\\^`{|}#".contains(*letter))
        {
            return Err(format!("{odd:?} does not stand in a URL; write it as %{:02X}", u32::from(odd)));
        }
        let (before, query) =
            rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
        let (authority, path) =
            before.split_once('/').map_or((before, None), |(authority, path)| (authority, Some(path)));
        if path.is_some_and(|path| path.contains(['/', '@', ':'])) {
            return Err(escape("the name of the database has a `/`, `@` or `:`"));
        }
        let (user, host) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        check_host(host)?;
        let mut shown = text[..text.len() - rest.len()].to_owned();
        if let Some(user) = user {
            shown.push_str(&shown_user(user)?);
            shown.push('@');
        }
        shown.push_str(host);
        if let Some(path) = path {
            shown.push('/');
            shown.push_str(path);
        }
        if let Some(query) = query {
            shown.push('?');
            shown.push_str(&shown_query(query)?);
        }
        Ok(DatabaseUrl { whole: text.to_owned(), shown })
    }

    /// The whole URL, for the one who connects.
    pub fn reveal(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({})", self.shown)
    }
}

fn escape(what: &str) -> String {
    format!("{what}; in a password write @ as %40, / as %2F, : as %3A, ? as %3F, % as %25")
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match host.strip_prefix('[') {
        // An address of IPv6 has colons of its own.
        Some(rest) => rest.split_once(']').ok_or_else(|| escape("the host has a `[` and no `]`"))?.1,
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(number) if number.parse::<u16>().is_ok() => Ok(()),
        _ => Err(escape("the port is not a number up to 65535")),
    }
}

fn shown_user(user: &str) -> Result<String, String> {
    match user.split_once(':') {
        _ if user.contains('@') => Err(escape("there are two `@`")),
        Some((name, _)) => Ok(format!("{name}:***")),
        None => Ok(user.to_owned()),
    }
}

fn shown_query(query: &str) -> Result<String, String> {
    let mut shown = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').ok_or_else(|| escape("a parameter has no `=`"))?;
        let known = name.split('[').next().unwrap_or_default();
        if !PARAMETERS.contains(&known) || value.contains(['?', '@']) {
            let text = format!("a parameter is not known; there are: {}", PARAMETERS.join(", "));
            return Err(escape(&text));
        }
        let value = if known == "password" { "***" } else { value };
        shown.push(format!("{name}={value}"));
    }
    Ok(shown.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_everything_but_its_password() {
        let check = |text: &str, expected: &str| {
            let url = DatabaseUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.to_string().as_str(), url.reveal()), (expected, text));
            assert_eq!(format!("{url:?}"), format!("DatabaseUrl({expected})"));
        };
        check("postgres://h", "postgres://h");
        check("postgresql://u@h:5433/d", "postgresql://u@h:5433/d");
        check("postgres://u:secret@h/d", "postgres://u:***@h/d");
        check("postgres://u:@h/d", "postgres://u:***@h/d");
        check("postgres://u:a:b@h/d", "postgres://u:***@h/d");
        check("postgres://u:a%40b%2F@h/d", "postgres://u:***@h/d");
        check("postgres://u:secret@[::1]:1/d", "postgres://u:***@[::1]:1/d");
        check("postgres://%2Frun%2Fpostgresql/d", "postgres://%2Frun%2Fpostgresql/d");
        check("postgres:///d?host=/tmp/x&password=secret", "postgres:///d?host=/tmp/x&password=***");
        check("postgres://h/d?options[keiko.time]=caller", "postgres://h/d?options[keiko.time]=caller");
    }

    #[test]
    fn what_could_hide_a_password_is_refused_and_not_repeated() {
        for text in [
            "mysql://u:secret@h/d",
            "u:secret@h/d",
            "postgres://u:se@cret@h/d",
            "postgres://u:se/cret@h/d",
            "postgres://u:12/secret@h/d",
            "postgres://u:12/34@h/secret",
            "postgres://u:12?secret@h/d",
            "postgres://u:12?host=secret@h/d",
            "postgres://u:12?host=3?secret@h/d",
            "postgres://u:12#secret@h/d",
            "postgres://h/d?pasword=secret",
            "postgres://h/d?statement-cache-capacity=0",
            "postgres://[::1/secret",
            "postgres://u: secret@h/d",
            &format!("postgres://u:{}@h/d", "secret".repeat(1_000)),
        ] {
            let error = DatabaseUrl::parse(text).expect_err(text);
            assert!(!error.contains("secret") && !error.contains("cret@"), "{text}: {error}");
        }
        let longest = format!("postgres://{}", "h".repeat(BYTES_MAX - 11));
        assert!(DatabaseUrl::parse(&longest).is_ok() && DatabaseUrl::parse(&format!("{longest}h")).is_err());
    }
}
