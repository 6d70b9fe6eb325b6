//! Components that are fetched: by a URL, or from a registry by an OCI reference.
//!
//! A tenant names a source, and the operator says which hosts may be asked at all (`[sources."HOST"]`). What this promises:
//! - No other host is connected to, whatever a redirect or a registry says; each of a host's addresses is public, or listed for
//!   it; and what was looked at is what is connected to, so that a name cannot mean something else a moment later.
//! - What comes is bounded in bytes while it comes, and in time.
//! - Of a registry, the bytes are those of the digest that its manifest names, and the manifest is that of the digest, if the
//!   reference has one. The bytes that were checked are handed on, and are not fetched again.
//! - A login goes to the host that it is listed for, and to where that sends for a token; over TLS, unless the operator listed
//!   the host as one without.
//!
//! It keeps no connection, caches nothing, and uses no proxy.

mod oci;
mod place;
mod reach;
mod request;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use keiko_core::{Code, Digest, TenantName};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};
use url::Url;

use self::oci::Reference;
use self::request::Answer;
use crate::wiring::apart;

pub use self::place::Place;
pub(crate) use self::place::{Login, Trust};

/// Longest source, in bytes.
pub(crate) const SOURCE_BYTES_MAX: usize = 4_096;
/// How long all of a fetch may take.
const FETCH_TIME: Duration = Duration::from_secs(120);
/// Redirects that one request follows.
const REDIRECTS_MAX: usize = 5;

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No source is written so.
    #[error("{0}")]
    Malformed(String),
    /// The operator lists no such host for the tenant.
    #[error("the operator lists no source `{0}`")]
    Unlisted(String),
    /// A host is to be asked in another way than the operator says.
    #[error("`{host}` is asked by {wanted} alone, as the operator lists it")]
    Scheme { host: String, wanted: &'static str },
    /// An address that is not public, and not listed.
    #[error("`{host}` has the address {address}, which is not public, and not listed for it")]
    Address { host: String, address: std::net::IpAddr },
    /// The host, or the way there, did not do what was asked.
    #[error("`{host}` {what}")]
    Failed { host: String, what: String },
    /// What came is no component that can be installed.
    #[error("{0}")]
    NoComponent(String),
    /// What came, or is announced, is too large.
    #[error("the component exceeds the limit of {limit} bytes")]
    TooLarge { limit: u64, asked: Option<u64> },
    /// What came is not what was named.
    #[error("the {what} has the digest {found}, and not {wanted}")]
    Digest { what: &'static str, wanted: Digest, found: Digest },
}

impl Error {
    /// The code that names it.
    pub(crate) fn kind(&self) -> Code {
        match self {
            Error::Malformed(_) => Code::InvalidInput,
            Error::Unlisted(_) | Error::Scheme { .. } | Error::Address { .. } => Code::EgressBlocked,
            Error::Failed { .. } => Code::EgressFailed,
            Error::NoComponent(_) => Code::ComponentInvalid,
            Error::TooLarge { .. } => Code::QuotaExceeded,
            Error::Digest { .. } => Code::Integrity,
        }
    }

    fn failed(host: &str, what: impl Into<String>) -> Error {
        Error::Failed { host: host.to_owned(), what: what.into() }
    }
}

/// Where a component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its bytes, behind a URL.
    Url(Url),
    /// An artifact of a registry.
    Oci(Reference),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source, Error> {
        if text.len() > SOURCE_BYTES_MAX {
            let text = format!("a source of {} bytes exceeds the limit of {SOURCE_BYTES_MAX}", text.len());
            return Err(Error::Malformed(text));
        }
        if let Some(reference) = text.strip_prefix(oci::SCHEME) {
            return reference.parse().map(Source::Oci).map_err(Error::Malformed);
        }
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(mut url) = url else {
            return Err(Error::Malformed(format!(
                "`{text}` is no source, such as https://example.com/guest.wasm or oci://registry.example/acme/guest:1.0.0"
            )));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Malformed(
                "a source carries no login; the operator lists one for its host".to_owned(),
            ));
        }
        url.set_fragment(None);
        Ok(Source::Url(url))
    }
}

/// Who may be asked for components.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(HashMap<(String, u16), Place>);

impl Sources {
    pub(crate) fn new(places: impl IntoIterator<Item = Place>) -> Sources {
        Sources(places.into_iter().map(|place| ((place.host.to_string(), place.port), place)).collect())
    }

    /// The component that stands at a source, for a tenant whose components have at most so many bytes. Of the time until `until`
    /// half is left for what follows.
    pub(crate) async fn fetch(
        &self,
        tenant: &TenantName,
        source: &Source,
        bytes_max: u64,
        until: Instant,
    ) -> Result<Bytes, Error> {
        let fetching = async {
            match source {
                Source::Url(url) => self.component(tenant, url, bytes_max).await,
                Source::Oci(reference) => self.pull(tenant, reference, bytes_max).await,
            }
        };
        let now = Instant::now();
        let until = now + FETCH_TIME.min(until.saturating_duration_since(now) / 2);
        let late = |_| Error::failed(&source.host(), "did not send all of it in time");
        timeout_at(until, Box::pin(fetching)).await.map_err(late)?
    }

    async fn component(&self, tenant: &TenantName, url: &Url, bytes_max: u64) -> Result<Bytes, Error> {
        let mut session = Session { sources: self, tenant, authorization: None };
        session.get(url, "application/wasm, */*").await?.bytes(bytes_max).await
    }

    /// Who stands behind a URL, when this tenant may ask there in that way.
    fn place(&self, tenant: &TenantName, url: &Url) -> Result<&Place, Error> {
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
        let place = self.0.get(&(host.to_owned(), port)).filter(|place| place.serves(tenant));
        let place = place.ok_or_else(|| Error::Unlisted(written(host, url.port())))?;
        if place.scheme() != url.scheme() {
            return Err(Error::Scheme { host: place.to_string(), wanted: place.scheme() });
        }
        Ok(place)
    }
}

/// What is asked for one component: where it needs to say who asks, it says so from then on.
struct Session<'a> {
    sources: &'a Sources,
    tenant: &'a TenantName,
    authorization: Option<HeaderValue>,
}

impl Session<'_> {
    /// What stands behind a URL; its body is still to come.
    async fn get(&mut self, url: &Url, accept: &str) -> Result<Answer, Error> {
        let (answer, last) = self.follow(url, accept, self.authorization.as_ref()).await?;
        // Whoever wants to know who asks is the host that was named, and no one that it sent us to.
        if answer.status != StatusCode::UNAUTHORIZED
            || self.authorization.is_some()
            || last.origin() != url.origin()
        {
            return answer.success();
        }
        let challenge = oci::challenge(answer.challenges());
        drop(answer);
        self.authorization = Some(self.introduce(url, challenge).await?);
        let (answer, _) = self.follow(url, accept, self.authorization.as_ref()).await?;
        answer.success()
    }

    /// Asks, wherever that is sent on to; also where it came to.
    async fn follow(
        &self,
        url: &Url,
        accept: &str,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Answer, Url), Error> {
        let (mut url, mut authorization) = (url.clone(), authorization);
        for _ in 0..=REDIRECTS_MAX {
            let place = self.sources.place(self.tenant, &url)?;
            let answer = request::get(place, &url, accept, authorization).await?;
            let Some(next) = answer.redirect(&url)? else { return Ok((answer, url)) };
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = next;
        }
        let host = url.host_str().unwrap_or_default();
        Err(Error::failed(host, format!("was the end of more than {REDIRECTS_MAX} redirects")))
    }

    /// What a host wants to be told that answered that it does not know who asks.
    async fn introduce(&self, url: &Url, challenge: Option<oci::Challenge>) -> Result<HeaderValue, Error> {
        let place = self.sources.place(self.tenant, url)?;
        let no_login =
            || Error::failed(&place.to_string(), "wants a user and a password, and the operator lists none");
        match challenge {
            Some(oci::Challenge::Basic) => place.basic().ok_or_else(no_login),
            Some(oci::Challenge::Bearer { realm, query }) => {
                let realm = oci::token_url(&realm, &query)
                    .ok_or_else(|| Error::failed(&place.to_string(), "names no place to get a token from"))?;
                let login = place.basic();
                let (answer, _) = self.follow(&realm, "application/json", login.as_ref()).await?;
                let body = answer.success()?.bytes_within(oci::TOKEN_BYTES_MAX).await?;
                oci::token(&body).ok_or_else(|| Error::failed(&written_of(&realm), "sent no token"))
            }
            None => Err(Error::failed(
                &place.to_string(),
                "wants to know who asks, in a way that is not known here",
            )),
        }
    }
}

impl Source {
    /// Who is asked for it.
    pub(crate) fn host(&self) -> String {
        match self {
            Source::Url(url) => written_of(url),
            Source::Oci(reference) => reference.authority().to_owned(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Url(url) => url.fmt(f),
            Source::Oci(reference) => write!(f, "{}{reference}", oci::SCHEME),
        }
    }
}

/// Fails unless bytes have this digest.
pub(crate) async fn check(what: &'static str, bytes: &Bytes, wanted: Digest) -> Result<(), Error> {
    let bytes = bytes.clone();
    let found = apart(move || Digest(Sha256::digest(&bytes).into())).await;
    if found == wanted { Ok(()) } else { Err(Error::Digest { what, wanted, found }) }
}

/// A host as it is written.
fn written(host: &str, port: Option<u16>) -> String {
    port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn written_of(url: &Url) -> String {
    written(url.host_str().unwrap_or_default(), url.port())
}

#[cfg(test)]
mod tests;
