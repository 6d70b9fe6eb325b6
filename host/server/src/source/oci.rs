//! Components in registries, as the CNCF's guidance for wasm artifacts has them and `wkg` pushes them: a manifest whose
//! configuration is of `application/vnd.wasm.config.v0+json`, with one layer of `application/wasm`.
//!
//! A registry that does not know who asks says where a token is had for that, which anybody gets for what is public.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use hyper::header::HeaderValue;
use keiko_core::{Digest, TenantName};
use serde::Deserialize;
use url::Url;

use super::{Error, Session, Sources, check};

/// What a reference begins with.
pub(super) const SCHEME: &str = "oci://";
/// Largest manifest of an artifact, in bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Largest answer with a token, in bytes.
pub(super) const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Longest name of a repository, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;
/// The kinds of manifests that are understood.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What makes an artifact one of wasm.
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// What its layer is.
const LAYER: &str = "application/wasm";
/// What a reference looks like.
const SHAPE: &str = "oci://registry.example/acme/guest:1.0.0 or oci://registry.example/acme/guest@sha256:…";

/// An artifact of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Host, with its port if one is named.
    authority: String,
    repository: String,
    /// What it is called there; nothing when only the digest counts.
    tag: Option<String>,
    /// Of its manifest.
    digest: Option<Digest>,
}

impl Reference {
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Where something of the repository is.
    fn url(&self, scheme: &str, what: &str, which: &str) -> Result<Url, Error> {
        let text = format!("{scheme}://{}/v2/{}/{what}/{which}", self.authority, self.repository);
        Url::parse(&text).map_err(|error| Error::Malformed(format!("`{}`: {error}", self.authority)))
    }
}

impl FromStr for Reference {
    type Err = String;

    /// Reads what stands behind the scheme.
    fn from_str(text: &str) -> Result<Reference, String> {
        let wrong = |what: &str| format!("`{SCHEME}{text}` {what}; a reference is such as {SHAPE}");
        let (authority, rest) = text.split_once('/').ok_or_else(|| wrong("names no repository"))?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse::<Digest>();
                (rest, Some(digest.map_err(|error| wrong(&format!("ends with no digest: {error}")))?))
            }
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (rest, None),
        };
        let is_host = Url::parse(&format!("https://{authority}/")).is_ok_and(|url| {
            url.path() == "/"
                && url.query().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
        if !is_host || authority.contains(['@', '?', '#']) {
            return Err(wrong("names no host"));
        }
        if repository.len() > NAME_BYTES_MAX || !repository.split('/').all(is_part) {
            return Err(wrong("names no repository"));
        }
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("has no tag behind its `:`"));
        }
        if tag.is_none() && digest.is_none() {
            return Err(wrong("says neither which tag nor which digest"));
        }
        Ok(Reference { authority: authority.to_owned(), repository: repository.to_owned(), tag, digest })
    }
}

/// Behind the scheme.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.authority, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// A part of a repository's name: lower case and digits, with single separators between them.
fn is_part(part: &str) -> bool {
    let is_word = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let bytes = part.as_bytes();
    let edges =
        bytes.first().zip(bytes.last()).is_some_and(|(first, last)| is_word(*first) && is_word(*last));
    let separators = part.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    edges
        && separators.into_iter().all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|letter| letter == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_';
    let rest = |letter: u8| is_word(letter) || matches!(letter, b'.' | b'-');
    tag.len() <= TAG_BYTES_MAX && tag.bytes().next().is_some_and(is_word) && tag.bytes().all(rest)
}

/// A manifest, as far as it is read.
#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Of an index of several.
    manifests: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
}

/// The layer that is the component: its digest and how many bytes it has.
fn layer(manifest: &[u8]) -> Result<(Digest, u64), String> {
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|error| format!("has a manifest that is none: {error}"))?;
    if manifest.manifests.is_some() {
        return Err("is an index of several artifacts; name one of them by its digest".to_owned());
    }
    let config = manifest.config.map(|config| config.media_type).unwrap_or_default();
    if config != CONFIG {
        return Err(format!(
            "is no wasm artifact: its configuration is of `{config}`, and not of `{CONFIG}`"
        ));
    }
    let layers = manifest.layers.unwrap_or_default();
    let [layer] = layers.as_slice() else {
        return Err(format!("has {} layers; a component is one", layers.len()));
    };
    if layer.media_type != LAYER {
        return Err(format!("has a layer of `{}`, and not of `{LAYER}`", layer.media_type));
    }
    let digest =
        layer.digest.parse().map_err(|error| format!("names its layer by `{}`: {error}", layer.digest))?;
    Ok((digest, layer.size))
}

/// How a host wants to be told who asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// By user and password.
    Basic,
    /// By a token, which is had there for that.
    Bearer { realm: String, query: Vec<(&'static str, String)> },
}

/// The first way that is known here; a token is better than a password.
pub(super) fn challenge<'a>(written: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for text in written {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let parameters = parameters(rest);
            let named = |wanted: &str| {
                let found = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.clone())
            };
            let query = ["service", "scope"].into_iter().filter_map(|name| Some((name, named(name)?)));
            return Some(Challenge::Bearer { realm: named("realm")?, query: query.collect() });
        }
    }
    basic
}

/// `name="value", name=value`; what is written in another way ends the list.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_owned();
        let (value, rest) = match rest.strip_prefix('"') {
            None => {
                let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
                (value.trim().to_owned(), rest)
            }
            Some(quoted) => match unquoted(quoted) {
                Some(read) => read,
                None => break,
            },
        };
        found.push((name, value));
        text = rest;
    }
    found
}

/// A text up to its closing quote, and what stands behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut letters) = (String::new(), text.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

/// Where a token is had.
pub(super) fn token_url(realm: &str, query: &[(&'static str, String)]) -> Option<Url> {
    let mut url = Url::parse(realm).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    url.query_pairs_mut().extend_pairs(query);
    Some(url)
}

/// What a token is shown as.
pub(super) fn token(answer: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let Answer { token, access_token } = serde_json::from_slice(answer).ok()?;
    let token = token.or(access_token).filter(|token| !token.is_empty())?;
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Sources {
    /// The component of an artifact.
    pub(super) async fn pull(
        &self,
        tenant: &TenantName,
        reference: &Reference,
        bytes_max: u64,
    ) -> Result<Bytes, Error> {
        let scheme = self.scheme(&reference.authority);
        let mut session = Session { sources: self, tenant, authorization: None };
        let which = reference.digest.map(|digest| digest.to_string());
        let which = which.or_else(|| reference.tag.clone()).unwrap_or_default();
        let url = reference.url(scheme, "manifests", &which)?;
        let manifest = session.get(&url, MANIFEST).await?.bytes_within(MANIFEST_BYTES_MAX).await?;
        if let Some(digest) = reference.digest {
            check("manifest", &manifest, digest).await?;
        }
        let found = layer(&manifest).map_err(|what| Error::NoComponent(format!("`{reference}` {what}")));
        let (digest, size) = found?;
        if size > bytes_max {
            return Err(Error::TooLarge { limit: bytes_max, asked: Some(size) });
        }
        let url = reference.url(scheme, "blobs", &digest.to_string())?;
        // No more than what was announced: more has another digest anyway.
        let component = session.get(&url, "*/*").await?.bytes_within(size).await?;
        check("component", &component, digest).await?;
        Ok(component)
    }

    /// How a registry is asked, which a reference does not say.
    fn scheme(&self, authority: &str) -> &'static str {
        let plain = Url::parse(&format!("http://{authority}/")).ok();
        let plain = plain.and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
        let is_plain = plain.and_then(|key| self.0.get(&key)).is_some_and(|place| place.trust.is_none());
        if is_plain { "http" } else { "https" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_read_back() {
        for text in [
            "ghcr.io/acme/guest:1.0.0".to_owned(),
            "registry.example:5000/guest:latest".to_owned(),
            format!("127.0.0.1:5000/a/b__c/d-e--f/g.h@sha256:{HEX}"),
            format!("[::1]:5000/guest:v1_a.b-c@sha256:{HEX}"),
            format!("a.example/{}:{}", "a".repeat(NAME_BYTES_MAX), "t".repeat(TAG_BYTES_MAX)),
        ] {
            assert_eq!(text.parse::<Reference>().map(|reference| reference.to_string()), Ok(text));
        }
    }

    #[test]
    fn what_is_no_reference_says_why() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("ghcr.io", "names no repository");
        check("/guest:1", "names no host");
        check("user@ghcr.io/guest:1", "names no host");
        check("ghcr.io?a/guest:1", "names no host");
        check("ghcr.io:x/guest:1", "names no host");
        check("ghcr.io/guest", "neither which tag nor which digest");
        check("ghcr.io/guest:", "no tag behind its `:`");
        check("ghcr.io/guest:.1", "no tag behind its `:`");
        check("ghcr.io/guest:a/b", "no tag behind its `:`");
        check("ghcr.io/guest@sha256:00", "ends with no digest");
        check(&format!("ghcr.io/guest@sha512:{HEX}"), "ends with no digest");
        for name in ["", "Acme", "a/../b", "a//b", "a..b", "a___b", "-a", "a-", "a/", "a?b", "a%2fb", "a b"] {
            check(&format!("ghcr.io/{name}:1"), "names no repository");
        }
        check(&format!("ghcr.io/{}:1", "a".repeat(NAME_BYTES_MAX + 1)), "names no repository");
        check(&format!("ghcr.io/a:{}", "t".repeat(TAG_BYTES_MAX + 1)), "no tag behind its `:`");
    }

    #[test]
    fn a_manifest_names_one_layer_of_wasm() {
        let layer_of = |media_type: &str| {
            format!(
                "{{\"mediaType\":\"{media_type}\",\"digest\":\"sha256:{HEX}\",\"size\":7,\"annotations\":{{}}}}"
            )
        };
        let manifest = |config: &str, layers: &[&str]| {
            let layers: Vec<String> = layers.iter().map(|media_type| layer_of(media_type)).collect();
            format!(
                "{{\"schemaVersion\":2,\"config\":{},\"layers\":[{}]}}",
                layer_of(config),
                layers.join(",")
            )
        };
        assert_eq!(
            layer(manifest(CONFIG, &[LAYER]).as_bytes()),
            Ok((format!("sha256:{HEX}").parse().unwrap(), 7))
        );
        for (text, expected) in [
            (manifest("application/vnd.oci.image.config.v1+json", &[LAYER]), "is no wasm artifact"),
            (manifest(CONFIG, &[]), "has 0 layers"),
            (manifest(CONFIG, &[LAYER, LAYER]), "has 2 layers"),
            (manifest(CONFIG, &["application/vnd.oci.image.layer.v1.tar+gzip"]), "has a layer of"),
            (manifest(CONFIG, &[LAYER]).replace("sha256", "sha512"), "names its layer by `sha512:"),
            ("{\"schemaVersion\":2,\"manifests\":[]}".to_owned(), "is an index"),
            ("{}".to_owned(), "is no wasm artifact"),
            ("[".to_owned(), "has a manifest that is none"),
        ] {
            let error = layer(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, query: &[(&'static str, &str)]| Challenge::Bearer {
            realm: realm.to_owned(),
            query: query.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        };
        for (written, expected) in [
            (vec!["Basic realm=\"x\""], Some(Challenge::Basic)),
            (
                vec![
                    "Bearer realm=\"https://ghcr.io/token\",service=\"ghcr.io\",scope=\"repository:a/b:pull\"",
                ],
                Some(bearer(
                    "https://ghcr.io/token",
                    &[("service", "ghcr.io"), ("scope", "repository:a/b:pull")],
                )),
            ),
            (
                vec!["basic", "bearer scope=\"a,b \\\"c\\\"\", realm=https://a.example/t"],
                Some(bearer("https://a.example/t", &[("scope", "a,b \"c\"")])),
            ),
            (vec!["Bearer service=\"x\""], None),
            (vec!["Bearer realm=\"x"], None),
            (vec!["Negotiate"], None),
            (vec![], None),
        ] {
            assert_eq!(challenge(written.iter().copied()), expected, "{written:?}");
        }
    }

    #[test]
    fn a_token_is_had_for_what_was_asked() {
        let query = [("service", "a b".to_owned()), ("scope", "repository:a/b:pull".to_owned())];
        let url = token_url("https://a.example/t?x=1", &query).unwrap();
        assert_eq!(url.as_str(), "https://a.example/t?x=1&service=a+b&scope=repository%3Aa%2Fb%3Apull");
        assert!(token_url("file:///etc/passwd", &[]).is_none());
        for (answer, expected) in [
            ("{\"token\":\"a\",\"access_token\":\"b\"}", Some("Bearer a")),
            ("{\"access_token\":\"b\",\"expires_in\":3}", Some("Bearer b")),
            ("{\"token\":\"\"}", None),
            ("{\"token\":\"a\\nb\"}", None),
            ("{}", None),
            ("token", None),
        ] {
            assert_eq!(
                token(answer.as_bytes()).as_ref().map(HeaderValue::as_bytes),
                expected.map(str::as_bytes)
            );
        }
    }
}
