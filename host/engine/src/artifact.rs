//! Compiled artifacts on disk.
//!
//! An artifact is machine code that this process will run, so it is believed only with a MAC under the cluster key over
//! everything that must match: the format, the engine's settings, the component's digest, and the bytes. A file is read
//! once, and what was verified is what is loaded. One that does not verify (altered, renamed, of another cluster, of
//! other settings, cut short) is removed and counted, and the component is compiled again.
//!
//! File: `MAGIC`, 32 bytes of MAC, the artifact as wasmtime serializes it.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use keiko_core::id::Digest;
use keiko_core::limit::ARTIFACT_BYTES_MAX;
use wasmtime::component::Component;

use crate::adapt::ADAPTER;
use crate::key::ClusterKey;

/// Format number 1.
const MAGIC: &[u8; 16] = b"keiko artifact 1";
/// Extension of a file that is being written.
const DRAFT: &str = "new";
const MAC_BYTES: usize = 32;
const HEADER_BYTES: usize = MAGIC.len() + MAC_BYTES;

/// The folder of artifacts of a host.
#[derive(Debug)]
pub(crate) struct Artifacts {
    dir: PathBuf,
    key: ClusterKey,
    refused: AtomicU64,
    /// Makes names of drafts unique in this process.
    drafts: AtomicU64,
}

/// Hash of everything that decides what code is generated: an artifact made under other settings is foreign.
#[derive(Debug)]
pub(crate) struct Settings(blake3::Hash);

/// Bytes of an artifact whose MAC was right, or that our own compile child has just made.
#[derive(Debug)]
pub(crate) struct Trusted {
    bytes: Vec<u8>,
    /// Where the artifact begins in them.
    from: usize,
}

impl Trusted {
    /// What the compile child, a program that the operator named, wrote on its own pipe.
    pub(crate) fn from_child(bytes: Vec<u8>) -> Trusted {
        Trusted { bytes, from: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    /// Loads the component for `engine`; wasmtime refuses artifacts of other settings by itself once more.
    pub(crate) fn load(&self, engine: &wasmtime::Engine) -> wasmtime::Result<Component> {
        #[allow(unsafe_code, reason = "there is no other way to load machine code")]
        // SAFETY: the bytes are what `precompile_component` wrote. A `Trusted` is made only of what came through
        // the pipe of the compile child, or of a file whose MAC under the cluster key covers these very bytes, and
        // hosts that have that key make MACs only of what came through such a pipe.
        unsafe {
            Component::deserialize(engine, self.bytes())
        }
    }
}

impl Artifacts {
    /// Opens a folder, making it when it is missing, and removes drafts that a process left when it was killed.
    pub(crate) fn open(dir: PathBuf, key: ClusterKey) -> io::Result<Artifacts> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == DRAFT) {
                fs::remove_file(path)?;
            }
        }
        Ok(Artifacts { dir, key, refused: AtomicU64::new(0), drafts: AtomicU64::new(0) })
    }

    /// Files that were not believed since the start.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether there is a file under the name of a component's artifact, whatever is in it.
    pub(crate) fn has(&self, digest: Digest, settings: &Settings) -> bool {
        self.path(digest, settings).exists()
    }

    /// The artifact of a component, unless there is none that can be believed.
    pub(crate) fn read(&self, digest: Digest, settings: &Settings) -> io::Result<Option<Trusted>> {
        let path = self.path(digest, settings);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes_max = HEADER_BYTES as u64 + ARTIFACT_BYTES_MAX + 1;
        // Room for all of it at once: what grows on the way is copied with every doubling.
        let mut bytes = Vec::with_capacity(file.metadata()?.len().min(bytes_max) as usize + 1);
        file.take(bytes_max).read_to_end(&mut bytes)?;
        if let Some(trusted) = self.verify(digest, settings, bytes) {
            return Ok(Some(trusted));
        }
        self.refuse(digest, settings);
        Ok(None)
    }

    /// Removes and counts a file that cannot be used.
    pub(crate) fn refuse(&self, digest: Digest, settings: &Settings) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(plugin_version = %digest, "an artifact was altered, foreign or stale and is compiled again");
        if let Err(error) = fs::remove_file(self.path(digest, settings)) {
            tracing::warn!(error = %error, "an artifact could not be removed");
        }
    }

    /// Keeps the artifact of a component: whole under its name, or not at all.
    pub(crate) fn write(&self, digest: Digest, settings: &Settings, artifact: &Trusted) -> io::Result<()> {
        let draft = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = self.dir.join(format!("{}-{}-{draft}.{DRAFT}", digest.short(), std::process::id()));
        let (name, mac) = (self.path(digest, settings), self.mac(digest, settings, artifact.bytes()));
        let written = self.write_draft(&draft, &name, mac, artifact.bytes());
        if written.is_err() {
            // What could not be written is of no use; that it cannot be removed either adds nothing.
            let _ = fs::remove_file(&draft);
        }
        written
    }

    fn write_draft(&self, draft: &Path, name: &Path, mac: blake3::Hash, bytes: &[u8]) -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        file.write_all(MAGIC)?;
        file.write_all(mac.as_bytes())?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(draft, name)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    fn verify(&self, digest: Digest, settings: &Settings, bytes: Vec<u8>) -> Option<Trusted> {
        if bytes.len() < HEADER_BYTES || !bytes.starts_with(MAGIC) {
            return None;
        }
        let mac: [u8; MAC_BYTES] = bytes[MAGIC.len()..HEADER_BYTES].try_into().ok()?;
        // `blake3::Hash` compares in constant time.
        if self.mac(digest, settings, &bytes[HEADER_BYTES..]) != blake3::Hash::from_bytes(mac) {
            return None;
        }
        Some(Trusted { bytes, from: HEADER_BYTES })
    }

    fn mac(&self, digest: Digest, settings: &Settings, bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(self.key.bytes());
        hasher.update(MAGIC);
        hasher.update(settings.0.as_bytes());
        hasher.update(&digest.0);
        hasher.update(bytes);
        hasher.finalize()
    }

    fn path(&self, digest: Digest, settings: &Settings) -> PathBuf {
        self.dir.join(format!("{}-{}.cwasm", digest.hex(), &settings.0.to_hex()[..16]))
    }
}

impl Settings {
    /// What wasmtime says decides compatibility: its version, the target and CPU features, and every setting of code
    /// generation, the profile's among them; and the adapter, which is compiled into programs.
    pub(crate) fn of(engine: &wasmtime::Engine) -> Settings {
        struct Feed(blake3::Hasher);

        impl Hasher for Feed {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }

            fn finish(&self) -> u64 {
                let hash = self.0.finalize();
                u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap_or(&[0; 8]))
            }
        }

        let mut feed = Feed(blake3::Hasher::new());
        engine.precompile_compatibility_hash().hash(&mut feed);
        feed.write(ADAPTER);
        Settings(feed.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::profile::Profile;
    use wasmtime::{Config, Engine, WasmBacktraceDetails};

    use super::*;
    use crate::config::{self, Purpose};

    #[test]
    fn artifacts_made_with_debug_information_are_others() {
        let settings = |details| {
            let mut config = Config::new();
            Settings::of(&Engine::new(config.wasm_backtrace_details(details)).unwrap()).0
        };
        let without = settings(WasmBacktraceDetails::Disable);
        assert_eq!(settings(WasmBacktraceDetails::Disable), without);
        assert_ne!(settings(WasmBacktraceDetails::Enable), without);
    }

    #[test]
    fn artifacts_of_one_profile_are_foreign_to_the_other() {
        let settings = |purpose, profile| Settings::of(&config::engine(purpose, profile).unwrap()).0;
        let strict = settings(Purpose::Compile, Profile::Strict);
        let concurrent = settings(Purpose::Compile, Profile::Concurrent);
        assert_ne!(strict, concurrent);
        // What they are for changes nothing of the code.
        let serve = Purpose::Serve { running_max: 1 };
        assert_eq!(settings(serve, Profile::Strict), strict);
        assert_eq!(settings(serve, Profile::Concurrent), concurrent);
    }
}
