//! The handle's part for plugins: what is installed, swapped and removed, and what is told of versions.

use std::collections::HashMap;

use bytes::Bytes;
use keiko_core::catalog::{Generation, NewVersion, Plugin, RemoveWhen, Target};
use keiko_core::limit::{LimitFact, SetBy};
use keiko_core::manifest::Manifest;
use keiko_core::port::{Compiled, Stage};
use keiko_core::profile::Profile;
use keiko_core::{Code, Digest, TenantId};

use crate::batch;
use crate::handle::Handle;
use crate::request::Error;
use crate::shared::TenantEntry;

impl Handle {
    /// Installs a component and makes it current; says whether anything changed.
    pub async fn install(
        &self,
        tenant: TenantId,
        component: Bytes,
        manifest: Option<Manifest>,
    ) -> Result<(Plugin, bool), Error> {
        let version = self.prepare(tenant, component, manifest).await?;
        let before = self.shared.catalog.snapshot();
        let answer =
            self.shared.catalog.install(version).await.inspect_err(|_| self.shared.catalog.discard())?;
        self.shared.swapped(&before).await;
        Ok(answer)
    }

    /// Checks and keeps a component that is to be a version.
    pub(crate) async fn prepare(
        &self,
        tenant: TenantId,
        component: Bytes,
        manifest: Option<Manifest>,
    ) -> Result<NewVersion, Error> {
        let entry = self.entry(tenant)?;
        let refuse = |manifest: &Manifest| batch::taken(&self.shared, tenant, manifest);
        let catalog = &self.shared.catalog;
        let prepared = async {
            let compiled = self.compile(entry, component.clone()).await?;
            catalog.prepare(tenant, compiled, component, manifest, refuse).await
        };
        prepared.await.inspect_err(|_| catalog.discard())
    }

    /// Compiles what a tenant uploads, as long as its uploads have not taken more of the compiler than they may.
    async fn compile(&self, entry: &TenantEntry, component: Bytes) -> Result<Compiled, Error> {
        let (policy, now_ms) = (&entry.policy, self.shared.clock.now_ms());
        let admitted = entry.compiling.lock().admit(policy.compile_seconds_max, now_ms);
        admitted.map_err(|wait_ms| no_more(policy.compile_seconds_max, wait_ms.div_ceil(1_000)))?;
        let (bytes_max, profiles) = (policy.component_bytes_max, policy.profiles);
        let compiled = self.shared.runner.compile(component, bytes_max, profiles).await;
        let took = compiled.as_ref().map_or_else(|error| error.compile_ms, |compiled| compiled.compile_ms);
        entry.compiling.lock().add(took);
        Ok(compiled?)
    }

    /// Makes a version that was installed before the current one; says whether anything changed. Attempts that run
    /// finish on what they began with.
    pub async fn activate(
        &self,
        tenant: TenantId,
        name: &str,
        target: Target,
    ) -> Result<(Plugin, bool), Error> {
        let before = self.shared.catalog.snapshot();
        let answer = self.shared.catalog.activate(tenant, name, target).await?;
        self.shared.swapped(&before).await;
        Ok(answer)
    }

    /// Up to `limit` swaps of a plugin, newest first, before the generation `before`.
    pub async fn generations(
        &self,
        tenant: TenantId,
        name: &str,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Generation>, Error> {
        self.shared.catalog.generations(tenant, name, before, limit).await
    }

    /// A tenant's plugins by name.
    pub fn plugins(&self, tenant: TenantId) -> Vec<Plugin> {
        self.shared.catalog.plugins(tenant)
    }

    /// One of a tenant's plugins.
    pub fn plugin(&self, tenant: TenantId, name: &str) -> Option<Plugin> {
        self.shared.catalog.plugin(tenant, name)
    }

    /// The engine profiles that components of versions need; of those whose bytes are not there to say so, nothing. What is not
    /// loaded may have to be read, one after the other.
    pub async fn profiles(&self, digests: impl IntoIterator<Item = Digest>) -> HashMap<Digest, Profile> {
        let mut profiles = HashMap::new();
        for digest in digests {
            if profiles.contains_key(&digest) {
                continue;
            }
            match self.shared.runner.profile(digest).await {
                Ok(profile) => drop(profiles.insert(digest, profile)),
                Err(error) => {
                    tracing::debug!(error = %error, "a component does not say which profile it needs");
                }
            }
        }
        profiles
    }

    /// Takes a plugin away; `Some` is how many live tasks it waits for.
    pub async fn remove_plugin(
        &self,
        tenant: TenantId,
        name: &str,
        when: RemoveWhen,
    ) -> Result<Option<u64>, Error> {
        let before = self.shared.catalog.snapshot();
        let left = self.shared.catalog.remove(tenant, name, when).await?;
        self.shared.swapped(&before).await;
        Ok(left)
    }
}

/// The refusal of an upload whose tenant has to wait for so many seconds.
fn no_more(limit: u64, wait_s: u64) -> Error {
    let name = "compile_seconds".to_owned();
    let fact = LimitFact { name, limit, asked: None, set_by: SetBy::Tenant };
    let message = format!(
        "the tenant's uploads have taken the {limit} seconds of compiling that an hour has for them; the next may come in {wait_s} s"
    );
    Error {
        limit: Some(fact),
        retry_after_s: Some(wait_s),
        stage: Some(Stage::Compile),
        ..Error::new(Code::RateLimited, message)
    }
}
