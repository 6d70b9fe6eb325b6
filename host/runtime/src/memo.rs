//! Results of pure attempts in the cache: whether an attempt is worth looking one up for, and keeping its own.
//!
//! A result that is looked up may be anybody's of the tenant who asked the same of the same component. It is not computed
//! once for however many ask at the same time: a task never waits for another one.

use keiko_core::TaskId;
use keiko_core::cache::{CacheKey, Lifetime, Namespace, Tag, Wish};
use keiko_core::catalog::{Plugin, Tenant};
use keiko_core::manifest::MemoizeSection;
use keiko_core::memo::{Asked, KeptResult, canonical, key};
use keiko_core::outcome::AttemptReport;
use keiko_core::policy::Budget;
use keiko_core::port::Attempt;

use crate::cache::{Cache, Found};
use crate::service::spawn_beside;

/// Where the result of an attempt is kept, and how.
#[derive(Debug)]
pub(crate) struct Memo {
    key: CacheKey,
    wish: Wish,
    none: bool,
}

impl Memo {
    /// For an attempt whose kind wants it, under these limits; brings its input into its one form. `None` when the kind does
    /// not.
    pub(crate) fn of(
        tenant: &Tenant,
        plugin: &Plugin,
        limits: &Budget,
        attempt: &mut Attempt,
    ) -> Option<Memo> {
        let kind = plugin.current.manifest.kind(&attempt.kind)?;
        let MemoizeSection { ttl_s, key_prefix, cache_none } = kind.memoize.as_ref()?;
        attempt.input = canonical(&attempt.input);
        let asked = Asked {
            digest: &attempt.digest,
            kind: &attempt.kind,
            command: attempt.command.as_deref(),
            budget: limits,
            grants: &attempt.grants,
            random: attempt.random,
            input: &attempt.input,
        };
        let prefix = key_prefix.as_deref().unwrap_or(attempt.kind.as_str());
        let text = format!("{prefix}:{}", key(&asked));
        // Neither can be refused: a manifest with another prefix is none.
        let key = CacheKey::new(tenant, &Namespace::of_results(&plugin.name), &text).ok()?;
        let component = Tag::of_component(&plugin.name, &plugin.current.digest);
        let tags = vec![component, Tag::given(prefix).ok()?];
        let wish = Wish { lifetime: Lifetime::of_ms(ttl_s.saturating_mul(1_000)), tags, ..Wish::default() };
        Some(Memo { key, wish, none: *cache_none })
    }

    /// The result, if there is one.
    pub(crate) async fn find(&self, cache: &Cache) -> Option<KeptResult> {
        match cache.get(&self.key).await {
            Found::Value(bytes) => KeptResult::decode(&bytes),
            Found::Absent | Found::Nothing(_) => None,
        }
    }

    /// Keeps the result of an attempt that was pure. Nobody waits for it.
    pub(crate) fn keep(&self, cache: &Cache, from: TaskId, report: &AttemptReport) {
        let Some(kept) = KeptResult::of(from, report, self.none) else { return };
        let (cache, key, wish) = (cache.clone(), self.key.clone(), self.wish.clone());
        spawn_beside(async move {
            cache.set(&key, kept.encode(), &wish).await;
        });
    }
}
