//! Keys that carry whose they are: the installation, the tenant, and the part of the tenant's cache.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use super::{KEY_BYTES_MAX, TAG_BYTES_MAX};
use crate::catalog::Tenant;
use crate::id::Digest;
use crate::name::PluginName;

/// Number of the form of keys and of what is stored under them: another one shares nothing with this one.
const FORM: &str = "k1";
/// Longest name of an installation, in bytes.
const INSTALLATION_BYTES_MAX: usize = 64;
/// Letters of a component's digest in the name of its part: enough for the components of one plugin.
const COMPONENT_LETTERS: usize = 16;
/// Longest part of a key that is shown when it is refused.
const SHOWN: usize = 40;

/// Why a text is no key or no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It is longer than it may be, or empty.
    #[error("a {what} of {bytes} bytes is outside of the limit of 1 to {bytes_max}")]
    Length {
        /// `key` or `tag`.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest there may be.
        bytes_max: usize,
    },
    /// It has control characters.
    #[error("the {what} `{shown}` has control characters")]
    Control {
        /// `key` or `tag`.
        what: &'static str,
        /// Its beginning, without them.
        shown: String,
    },
}

fn check(what: &'static str, text: &str, bytes_max: usize) -> Result<(), InvalidKey> {
    let bytes = text.len();
    if !(1..=bytes_max).contains(&bytes) {
        return Err(InvalidKey::Length { what, bytes, bytes_max });
    }
    if text.chars().any(char::is_control) {
        let shown = text.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect();
        return Err(InvalidKey::Control { what, shown });
    }
    Ok(())
}

/// Whose entries these are, where several installations share a server: the random name that a database got when it was
/// made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation(Arc<str>);

impl Installation {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Installation {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Installation, InvalidKey> {
        check("installation", text, INSTALLATION_BYTES_MAX)?;
        if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(InvalidKey::Control { what: "installation", shown: text.to_owned() });
        }
        Ok(Installation(text.into()))
    }
}

/// A part of a tenant's cache. Parts of different owners have different first letters, so that none can be named like
/// another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// What one component of a plugin keeps for itself: another one, whichever host swaps it in, never meets it.
    pub fn of_plugin(plugin: &PluginName, component: &Digest) -> Namespace {
        let mut component = component.hex();
        component.truncate(COMPONENT_LETTERS);
        Namespace(format!("p.{plugin}@{component}").into())
    }

    /// What plugins of the tenant keep together.
    pub fn shared(name: &PluginName) -> Namespace {
        Namespace(format!("s.{name}").into())
    }

    /// Results of a plugin's pure tasks.
    pub fn of_results(plugin: &PluginName) -> Namespace {
        Namespace(format!("r.{plugin}").into())
    }

    /// What the host keeps for itself.
    pub fn of_host(name: &'static str) -> Namespace {
        Namespace(format!("h.{name}").into())
    }

    /// Where it is noted which tags of this part were removed.
    #[must_use]
    pub fn markers(&self) -> Namespace {
        Namespace(format!("t.{}", self.0).into())
    }

    /// Whether tags are noted here, which must outlive what has them.
    pub fn is_markers(&self) -> bool {
        self.0.starts_with("t.")
    }

    /// Its name in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of the cache by the name that answers and operators give it: `p.films@0123456789abcdef` is the own one of a
/// component of the plugin `films`, `s.films` a shared one, `r.films` results of its tasks.
impl FromStr for Namespace {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Namespace, InvalidKey> {
        let is_component = |text: &str| {
            text.len() == COMPONENT_LETTERS
                && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let name = match text.split_once('.') {
            Some(("p", rest)) => {
                rest.split_once('@').filter(|(_, component)| is_component(component)).map(|(name, _)| name)
            }
            Some(("s" | "r" | "h", name)) => Some(name),
            _ => None,
        };
        match name.map(PluginName::from_str) {
            Some(Ok(_)) => Ok(Namespace(text.into())),
            _ => Err(InvalidKey::Control {
                what: "namespace",
                shown: text.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect(),
            }),
        }
    }
}

/// What several entries have in common, so that they can be removed together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// A tag that somebody gave. It can never be one of the host's own.
    pub fn given(text: &str) -> Result<Tag, InvalidKey> {
        check("tag", text, TAG_BYTES_MAX)?;
        Ok(Tag(format!("={text}").into()))
    }

    /// The tag of everything that one component of a plugin has made.
    pub fn of_component(plugin: &PluginName, component: &Digest) -> Tag {
        Tag(format!("@{plugin}.{}", component.hex()).into())
    }

    /// The tag that everything has without being told: removing it clears.
    pub fn everything() -> Tag {
        Tag("*".into())
    }

    /// A tag as it is stored.
    pub(super) fn stored(text: &str) -> Option<Tag> {
        (text.starts_with(['=', '@']) && text.len() <= TAG_BYTES_MAX + 1).then(|| Tag(text.into()))
    }

    /// How it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag as somebody gave it, unless it is one of the host's own.
    pub fn text(&self) -> Option<&str> {
        self.0.strip_prefix('=')
    }

    /// The component that this is the tag of, as `PLUGIN.DIGEST`.
    pub fn component(&self) -> Option<&str> {
        self.0.strip_prefix('@')
    }
}

/// Where an entry is.
#[derive(Clone)]
pub struct CacheKey {
    tenant: Tenant,
    namespace: Namespace,
    text: Arc<str>,
}

impl CacheKey {
    /// A key of a tenant.
    pub fn new(tenant: &Tenant, namespace: &Namespace, text: &str) -> Result<CacheKey, InvalidKey> {
        check("key", text, KEY_BYTES_MAX)?;
        Ok(CacheKey { tenant: tenant.clone(), namespace: namespace.clone(), text: text.into() })
    }

    /// Where it is noted that a tag of this key's part was removed.
    pub fn marker(&self, tag: &Tag) -> CacheKey {
        CacheKey::marker_of(&self.tenant, &self.namespace, tag)
    }

    /// The same without a key.
    pub fn marker_of(tenant: &Tenant, namespace: &Namespace, tag: &Tag) -> CacheKey {
        CacheKey { tenant: tenant.clone(), namespace: namespace.markers(), text: Arc::clone(&tag.0) }
    }

    /// Where it is noted that everything of a tenant was removed.
    pub fn cleared(tenant: &Tenant) -> CacheKey {
        // Whoever reads something from a level that is shared asks for it.
        static ALL: LazyLock<(Namespace, Tag)> =
            LazyLock::new(|| (Namespace::of_host("all").markers(), Tag::everything()));
        let (namespace, tag) = &*ALL;
        CacheKey { tenant: tenant.clone(), namespace: namespace.clone(), text: Arc::clone(&tag.0) }
    }

    /// Whether it is noted here that everything of a tenant was removed.
    pub fn is_cleared(&self) -> bool {
        self.namespace.is_markers() && *self == CacheKey::cleared(&self.tenant)
    }

    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Which part of the tenant's cache it is in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The key as its owner knows it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The key on a level that others share. No part but the last has a colon.
    pub fn external(&self, installation: &Installation) -> String {
        self.parts(installation).concat()
    }

    /// What that is made of, in order.
    pub(super) fn parts<'a>(&'a self, installation: &'a Installation) -> [&'a str; 9] {
        let (tenant, namespace) = (self.tenant.name.as_str(), self.namespace.as_str());
        [FORM, ":", installation.as_str(), ":", tenant, ":", namespace, ":", &self.text]
    }

    /// What all keys of a tenant begin with there.
    pub fn external_of_tenant(installation: &Installation, tenant: &Tenant) -> String {
        format!("{FORM}:{}:{}:", installation.0, tenant.name)
    }

    /// Where hosts of an installation tell each other of changes.
    pub fn channel(installation: &Installation) -> String {
        format!("{FORM}:{}:news", installation.0)
    }

    /// A key from the parts that another host told.
    pub fn told(tenant: &Tenant, namespace: &str, text: &str) -> CacheKey {
        CacheKey { tenant: tenant.clone(), namespace: Namespace(namespace.into()), text: text.into() }
    }
}

/// The tenant's number tells tenants of one installation apart.
impl PartialEq for CacheKey {
    fn eq(&self, other: &CacheKey) -> bool {
        self.tenant.id == other.tenant.id && self.text == other.text && self.namespace == other.namespace
    }
}

impl Eq for CacheKey {}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.tenant.id.hash(state);
        self.namespace.hash(state);
        self.text.hash(state);
    }
}

/// Without the key itself, which is never logged.
impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/({} bytes)", self.tenant.name, self.namespace, self.text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TenantId;

    fn tenant(id: i64, name: &str) -> Tenant {
        Tenant { id: TenantId(id), name: name.parse().unwrap() }
    }

    #[test]
    fn a_key_carries_installation_tenant_and_part() {
        let installation: Installation = "a1b2".parse().unwrap();
        let (ada, films) = (tenant(1, "ada"), "films".parse().unwrap());
        let part = |byte| Namespace::of_plugin(&films, &Digest([byte; 32]));
        let key = CacheKey::new(&ada, &part(7), "a:b").unwrap();
        assert_eq!(key.external(&installation), "k1:a1b2:ada:p.films@0707070707070707:a:b");
        assert!(key.external(&installation).starts_with(&CacheKey::external_of_tenant(&installation, &ada)));
        let others = [
            CacheKey::new(&tenant(2, "bob"), &part(7), "a:b").unwrap(),
            CacheKey::new(&ada, &part(8), "a:b").unwrap(),
            CacheKey::new(&ada, &Namespace::shared(&films), "a:b").unwrap(),
            CacheKey::new(&ada, &Namespace::of_results(&films), "a:b").unwrap(),
            CacheKey::new(&ada, &part(7), "a").unwrap(),
            key.marker(&Tag::given("a:b").unwrap()),
        ];
        for other in &others {
            assert_ne!(*other, key);
            assert_ne!(other.external(&installation), key.external(&installation));
        }
    }

    #[test]
    fn a_tag_that_somebody_gives_is_none_of_the_hosts() {
        let longest = "f".repeat(63).parse().unwrap();
        let component = Tag::of_component(&longest, &Digest([7; 32]));
        assert_eq!(Tag::stored(component.as_str()), Some(component.clone()));
        assert_eq!((component.text(), Tag::given("=a").unwrap().text()), (None, Some("=a")));
        assert!(component.component().is_some_and(|text| text.starts_with("fff") && text.ends_with("0707")));
        for text in [component.as_str(), "*"] {
            let of_host = |given: Tag| [component.clone(), Tag::everything()].contains(&given);
            assert!(!Tag::given(text).is_ok_and(of_host), "{text}");
        }
        assert!(CacheKey::cleared(&tenant(1, "ada")).namespace().is_markers());
    }

    #[test]
    fn keys_and_tags_have_a_length_and_no_control_characters() {
        let (ada, host) = (tenant(1, "ada"), Namespace::of_host("x"));
        let key = |text: &str| CacheKey::new(&ada, &host, text).map(|_| ());
        assert_eq!(key(&"k".repeat(KEY_BYTES_MAX)), Ok(()));
        let too_long = key(&"k".repeat(KEY_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(too_long.to_string(), "a key of 513 bytes is outside of the limit of 1 to 512");
        assert!(key("").is_err() && key("a\nb").is_err());
        assert!(Tag::given(&"t".repeat(TAG_BYTES_MAX)).is_ok());
        assert!(Tag::given(&"t".repeat(TAG_BYTES_MAX + 1)).is_err());
        for bad in ["", "A", "a b", "a:b"] {
            assert!(bad.parse::<Installation>().is_err(), "{bad}");
        }
        let own = Namespace::of_plugin(&"films".parse().unwrap(), &Digest([7; 32]));
        for (text, good) in [
            (own.as_str(), true),
            ("s.a", true),
            ("r.films", true),
            ("p.films", false),
            ("p.films@07", false),
            ("p.films@070707070707070G", false),
            ("s.films@0707070707070707", false),
            ("t.p.films@0707070707070707", false),
            ("films", false),
            ("s.", false),
        ] {
            assert_eq!(text.parse::<Namespace>().is_ok(), good, "{text}");
        }
    }
}
