//! A plugin's part of the cache: its namespace, the tag of its component on everything it stores, and the limits of what it
//! may ask.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::cache::{
    CacheKey, KEYS_MAX, LIFETIME_MS_MAX, Lifetime, Namespace, TAGS_MAX, Tag, VALUE_BYTES_MAX, Wish,
};
use keiko_core::catalog::{Plugin, Tenant};
use keiko_core::port::{CacheFill, CacheFilling, CacheRefused, Keeping};

use super::{Cache, FillGuard, Filling, Found, Stored};
use crate::catalog::Loaded;
use crate::service::Apart;

/// What one attempt reaches of the cache.
#[derive(Clone)]
pub(crate) struct PluginCache {
    cache: Cache,
    tenant: Tenant,
    loaded: Arc<Loaded>,
    namespace: Namespace,
    component: Tag,
    /// Where what waits for other levels goes on.
    apart: Apart,
}

/// The part of the cache that a plugin's component has.
pub(crate) fn namespace_of(plugin: &Plugin) -> Namespace {
    match &plugin.current.manifest.plugin.shared_cache {
        Some(name) => Namespace::shared(name),
        None => Namespace::of_plugin(&plugin.name, &plugin.current.digest),
    }
}

/// Removes everything that the component of a plugin has kept, and what was kept of its results, and nothing else.
pub(crate) async fn forget(cache: &Cache, tenant: &Tenant, plugin: &Plugin) {
    let component = Tag::of_component(&plugin.name, &plugin.current.digest);
    for part in [namespace_of(plugin), Namespace::of_results(&plugin.name)] {
        cache.remove_tag(tenant, &part, &component).await;
    }
}

impl PluginCache {
    pub(crate) fn new(cache: Cache, tenant: Tenant, loaded: &Arc<Loaded>, apart: Apart) -> PluginCache {
        let plugin = &loaded.plugin;
        let component = Tag::of_component(&plugin.name, &plugin.current.digest);
        let (namespace, loaded) = (namespace_of(plugin), Arc::clone(loaded));
        PluginCache { cache, tenant, loaded, namespace, component, apart }
    }

    pub(crate) async fn get(&self, keys: &[String]) -> Result<Vec<Option<Bytes>>, CacheRefused> {
        if keys.len() > KEYS_MAX {
            return Err(CacheRefused::TooManyKeys(KEYS_MAX as u64));
        }
        if let [key] = keys {
            let key = self.key(key)?;
            if let Some(value) = self.cache.peek(&key) {
                return Ok(vec![Some(value)]);
            }
            let cache = self.cache.clone();
            return Ok(vec![value(self.apart.run(async move { cache.get(&key).await }).await)]);
        }
        let keys: Vec<CacheKey> = keys.iter().map(|key| self.key(key)).collect::<Result<_, _>>()?;
        let cache = self.cache.clone();
        let found = self.apart.run(async move { cache.get_many(&keys).await }).await;
        Ok(found.into_iter().map(value).collect())
    }

    pub(crate) async fn set(&self, key: &str, value: Bytes, keeping: Keeping) -> Result<(), CacheRefused> {
        let (key, wish) = (self.key(key)?, self.wish(keeping)?);
        if self.is_late() && value.len() <= VALUE_BYTES_MAX {
            return Ok(());
        }
        let cache = self.cache.clone();
        kept(self.apart.run(async move { cache.set(&key, value, &wish).await }).await)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), CacheRefused> {
        let (cache, key) = (self.cache.clone(), self.key(key)?);
        self.apart.run(async move { cache.remove(&key).await }).await;
        Ok(())
    }

    pub(crate) async fn remove_tag(&self, tag: &str) -> Result<(), CacheRefused> {
        let tag = Tag::given(tag).map_err(CacheRefused::Tag)?;
        let part = self.clone();
        let removed = async move { part.cache.remove_tag(&part.tenant, &part.namespace, &tag).await };
        self.apart.run(removed).await;
        Ok(())
    }

    pub(crate) async fn fill(&self, key: &str) -> Result<CacheFilling, CacheRefused> {
        let (cache, key) = (self.cache.clone(), self.key(key)?);
        Ok(match self.apart.run(async move { cache.fill(&key).await }).await {
            Filling::Hit(value) => CacheFilling::Hit(value),
            Filling::Fill(guard) => CacheFilling::Fill(Box::new(PluginFill { guard, part: self.clone() })),
        })
    }

    /// Whether this component's entries were dropped already: what it still stores in a part that others read is not kept.
    /// A part of its own is read by nobody else.
    fn is_late(&self) -> bool {
        self.loaded.is_retired() && self.loaded.plugin.current.manifest.plugin.shared_cache.is_some()
    }

    fn key(&self, text: &str) -> Result<CacheKey, CacheRefused> {
        CacheKey::new(&self.tenant, &self.namespace, text).map_err(CacheRefused::Key)
    }

    fn wish(&self, keeping: Keeping) -> Result<Wish, CacheRefused> {
        let taken = |ms| Lifetime::of_ms(ms).ok_or(CacheRefused::Lifetime(LIFETIME_MS_MAX));
        let lifetime = keeping.lifetime_ms.map(taken).transpose()?;
        if keeping.tags.len() > TAGS_MAX {
            return Err(CacheRefused::TooManyTags(TAGS_MAX as u64));
        }
        let given = keeping.tags.iter().map(|tag| Tag::given(tag).map_err(CacheRefused::Tag));
        let tags = std::iter::once(Ok(self.component.clone())).chain(given).collect::<Result<_, _>>()?;
        Ok(Wish { lifetime, tags, ..Wish::default() })
    }
}

struct PluginFill {
    guard: FillGuard,
    part: PluginCache,
}

#[async_trait]
impl CacheFill for PluginFill {
    async fn complete(self: Box<Self>, value: Bytes, keeping: Keeping) -> Result<(), CacheRefused> {
        let wish = self.part.wish(keeping)?;
        if self.part.is_late() {
            return Err(CacheRefused::Lost);
        }
        let (guard, apart) = (self.guard, self.part.apart);
        match apart.run(async move { guard.complete(value, &wish).await }).await {
            Ok(stored) => kept(stored),
            Err(_) => Err(CacheRefused::Lost),
        }
    }
}

fn kept(stored: Stored) -> Result<(), CacheRefused> {
    match stored {
        Stored::Kept => Ok(()),
        Stored::TooLarge => Err(CacheRefused::TooLarge(VALUE_BYTES_MAX as u64)),
    }
}

fn value(found: Found) -> Option<Bytes> {
    match found {
        Found::Value(value) => Some(value),
        Found::Absent | Found::Nothing(_) => None,
    }
}
