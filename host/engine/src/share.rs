//! Machine code that hosts of one database hand each other: what one of them has compiled, no other of its sort has to.
//!
//! It travels as the file that it is in the folder of artifacts, and is believed no more than any file there: its MAC under the cluster
//! key is looked at when it is loaded. It is known by a hash under that key of all that must match, so that hosts with another
//! key, processor or build do not find it at all. What cannot be had or handed over costs time and nothing else.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use keiko_core::id::Digest;
use keiko_core::port::InstallError;
use keiko_core::profile::Profile;

use crate::compile::internal;
use crate::{Engine, apart};

impl Engine {
    /// Fetches what another host has made of a component into the folder; whether there was something.
    pub(crate) async fn receive(&self, digest: Digest, profile: Profile) -> bool {
        match self.received(digest, profile).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %error, "what other hosts have compiled could not be fetched");
                false
            }
        }
    }

    async fn received(&self, digest: Digest, profile: Profile) -> Result<bool, InstallError> {
        let name = self.0.artifacts.name(self.0.machines.settings(profile)?);
        let found = self.0.components.artifact(digest, name).await;
        let Some(file) = found.map_err(|error| InstallError::new(error.code(), error.to_string()))? else {
            return Ok(false);
        };
        let inner = self.0.clone();
        let written = apart(move || {
            let settings = inner.machines.settings(profile)?;
            let written = inner.artifacts.receive(digest, settings, &file);
            written.map_err(|error| internal(format!("an artifact could not be kept: {error}")))
        });
        written.await??;
        self.0.received.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Hands the machine code of a component that is kept to the other hosts.
    pub(crate) async fn hand_over(&self, digest: Digest, profile: Profile) {
        if let Err(error) = self.handed_over(digest, profile).await {
            tracing::warn!(error = %error, "what was compiled could not be handed to other hosts");
        }
    }

    async fn handed_over(&self, digest: Digest, profile: Profile) -> Result<(), InstallError> {
        let inner = self.0.clone();
        let read = apart(move || {
            let settings = inner.machines.settings(profile)?;
            let file = inner.artifacts.file(digest, settings);
            let file = file.map_err(|error| internal(format!("an artifact could not be read: {error}")))?;
            Ok::<_, InstallError>((inner.artifacts.name(settings), Bytes::from(file)))
        });
        let (name, file) = read.await??;
        let kept = self.0.components.put_artifact(digest, name, file).await;
        kept.map_err(|error| InstallError::new(error.code(), error.to_string()))
    }
}
