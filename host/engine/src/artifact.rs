//! Compiled artifacts on disk.
//!
//! An artifact is machine code that this process will run, so it is believed only with a MAC under the cluster key over
//! everything that must match: the format, the engine's settings, the component's digest, and the bytes. A file is copied
//! once, into memory that is sealed before it is verified, so that what was verified is what is loaded; that memory is what the
//! code runs from, and what instances begin with. One that does not verify (altered, renamed, of another cluster, of
//! other settings, cut short) is removed and counted, and the component is compiled again. Those that another build, or
//! this one on another processor, left under names that nobody asks for any more are removed and counted at the start.
//!
//! File: `MAGIC`, 32 bytes of MAC, the artifact as wasmtime serializes it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use keiko_core::id::Digest;
use keiko_core::limit::ARTIFACT_BYTES_MAX;
use keiko_core::port::ArtifactName;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use wasmtime::component::Component;

use crate::adapt::ADAPTER;
use crate::key::ClusterKey;

/// Format number 1.
const MAGIC: &[u8; 16] = b"keiko artifact 1";
/// What names of artifacts among hosts begin to be hashed with, so that none of them is a MAC.
const NAME: &[u8; 16] = b"keiko art name 1";
/// Extension of an artifact.
const READY: &str = "cwasm";
/// Extension of a file that is being written.
const DRAFT: &str = "new";
/// Letters of settings in the name of a file.
const SHORT: usize = 16;
const MAC_BYTES: usize = 32;
const HEADER_BYTES: usize = MAGIC.len() + MAC_BYTES;
/// Bytes of an artifact that are hashed at once: they stay in a processor's own cache.
const PIECE_BYTES: usize = 256 << 10;

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

/// An artifact as the compile child, a program that the operator named, wrote it on its own pipe.
#[derive(Debug)]
pub(crate) struct Made(Vec<u8>);

impl Made {
    pub(crate) fn from_child(bytes: Vec<u8>) -> Made {
        Made(bytes)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Loads the component for `engine`; wasmtime refuses artifacts of other settings by itself once more.
    pub(crate) fn load(&self, engine: &wasmtime::Engine) -> wasmtime::Result<Component> {
        #[allow(unsafe_code, reason = "there is no other way to load machine code")]
        // SAFETY: the bytes are what `precompile_component` wrote: they came through the pipe of the compile child.
        unsafe {
            Component::deserialize(engine, &self.0)
        }
    }
}

/// An artifact of the folder whose MAC was right, in memory that nobody can change.
#[derive(Debug)]
pub(crate) struct Kept {
    sealed: fs::File,
    bytes: u64,
}

impl Kept {
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    /// Loads the component for `engine`, as [`Made::load`] does, out of that memory and without another copy.
    pub(crate) fn load(&self, engine: &wasmtime::Engine) -> wasmtime::Result<Component> {
        #[allow(unsafe_code, reason = "there is no other way to load machine code")]
        // SAFETY: the bytes are what `precompile_component` wrote: a MAC under the cluster key covers these very bytes, and
        // hosts that have that key make MACs only of what came through the pipe of a compile child. Nobody alters them while
        // they are mapped: the memory was sealed against writing, growing and shrinking before the MAC was looked at, and seals
        // cannot be taken away.
        unsafe {
            Component::deserialize_file(engine, path_of(&self.sealed))
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

    /// Removes and counts what was made under other settings than any of these.
    pub(crate) fn sweep(&self, settings: &[&Settings]) -> io::Result<()> {
        let mut stale = 0;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let named = path.file_name().and_then(OsStr::to_str).and_then(parts);
            if named.is_some_and(|(_, made)| settings.iter().all(|settings| settings.short() != made)) {
                fs::remove_file(&path)?;
                stale += 1;
            }
        }
        if stale > 0 {
            self.refused.fetch_add(stale, Ordering::Relaxed);
            tracing::warn!(items = stale, "artifacts that another build left were removed");
        }
        Ok(())
    }

    /// Removes what was written before a time and is of none of these components; how many files.
    pub(crate) fn forget(&self, kept: &HashSet<String>, before: SystemTime) -> io::Result<u64> {
        let mut forgotten = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let named = name.to_str().and_then(parts);
            let is_needed = named.is_none_or(|(digest, _)| kept.contains(digest));
            if !is_needed && entry.metadata()?.modified()? < before {
                fs::remove_file(entry.path())?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
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
    pub(crate) fn read(&self, digest: Digest, settings: &Settings) -> io::Result<Option<Kept>> {
        let path = self.path(digest, settings);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut header = Vec::with_capacity(HEADER_BYTES);
        (&file).take(HEADER_BYTES as u64).read_to_end(&mut header)?;
        let sealed = sealed(file)?;
        if let Some(mac) = header.strip_prefix(MAGIC).and_then(|mac| <[u8; MAC_BYTES]>::try_from(mac).ok()) {
            let kept = Kept { bytes: sealed.metadata()?.len(), sealed };
            let mut hasher = self.hasher(digest, settings);
            each_piece(&kept, |piece| {
                hasher.update(piece);
            })?;
            // `blake3::Hash` compares in constant time.
            if kept.bytes <= ARTIFACT_BYTES_MAX && hasher.finalize() == blake3::Hash::from_bytes(mac) {
                return Ok(Some(kept));
            }
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
    pub(crate) fn write(&self, digest: Digest, settings: &Settings, artifact: &Made) -> io::Result<()> {
        let mac = self.hasher(digest, settings).update(&artifact.0).finalize();
        self.put(digest, settings, &[MAGIC, mac.as_bytes(), &artifact.0])
    }

    /// What the artifact of a component is known by among hosts: who has another key, processor or build finds nothing there.
    pub(crate) fn name(&self, settings: &Settings) -> ArtifactName {
        let mut hasher = blake3::Hasher::new_keyed(self.key.bytes());
        hasher.update(NAME).update(settings.0.as_bytes());
        ArtifactName(*hasher.finalize().as_bytes())
    }

    /// The file of a component's artifact, for other hosts.
    pub(crate) fn file(&self, digest: Digest, settings: &Settings) -> io::Result<Vec<u8>> {
        fs::read(self.path(digest, settings))
    }

    /// Puts a file of another host under the name of a component's artifact; whether it can be believed shows when it is read.
    pub(crate) fn receive(&self, digest: Digest, settings: &Settings, file: &[u8]) -> io::Result<()> {
        self.put(digest, settings, &[file])
    }

    fn put(&self, digest: Digest, settings: &Settings, parts: &[&[u8]]) -> io::Result<()> {
        let draft = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = self.dir.join(format!("{}-{}-{draft}.{DRAFT}", digest.short(), std::process::id()));
        let written = self.write_draft(&draft, &self.path(digest, settings), parts);
        if written.is_err() {
            // What could not be written is of no use; that it cannot be removed either adds nothing.
            let _ = fs::remove_file(&draft);
        }
        written
    }

    fn write_draft(&self, draft: &Path, name: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(draft, name)?;
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Of the MAC of an artifact, before its bytes.
    fn hasher(&self, digest: Digest, settings: &Settings) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(self.key.bytes());
        hasher.update(MAGIC);
        hasher.update(settings.0.as_bytes());
        hasher.update(&digest.0);
        hasher
    }

    fn path(&self, digest: Digest, settings: &Settings) -> PathBuf {
        self.dir.join(format!("{}-{}.{READY}", digest.hex(), settings.short()))
    }
}

/// Of which component, in hex, and under which settings, in short, an artifact of this name was made; `None` when it is no
/// artifact's name.
fn parts(name: &str) -> Option<(&str, &str)> {
    let (digest, settings) = name.strip_suffix(READY)?.strip_suffix('.')?.split_once('-')?;
    let is_hex =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_hex(digest, 64) && is_hex(settings, SHORT)).then_some((digest, settings))
}

/// What is left of a file, as far as an artifact may go, in memory that nobody can change any more.
fn sealed(file: fs::File) -> io::Result<fs::File> {
    let memory = memfd_create(c"keiko-artifact", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut memory = fs::File::from(memory);
    io::copy(&mut file.take(ARTIFACT_BYTES_MAX + 1), &mut memory)?;
    fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(memory)
}

/// Where an open file can be opened once more, whatever it is called elsewhere.
fn path_of(file: &fs::File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

/// Reads an artifact piece by piece.
fn each_piece(kept: &Kept, mut look: impl FnMut(&[u8])) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut from = 0;
    loop {
        let read = kept.sealed.read_at(&mut piece, from)?;
        if read == 0 {
            return Ok(());
        }
        look(&piece[..read]);
        from += read as u64;
    }
}

impl Settings {
    /// What names of files show of it.
    fn short(&self) -> String {
        self.0.to_hex()[..SHORT].to_owned()
    }

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
    use std::io::Seek;

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

    #[test]
    fn what_was_verified_cannot_be_changed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123").unwrap();
        file.rewind().unwrap();
        let mut memory = sealed(file.try_clone().unwrap()).unwrap();
        file.write_all_at(b"9", 0).unwrap();
        assert!(memory.write_all_at(b"9", 0).is_err() && memory.write_all(b"9").is_err());
        assert!(memory.set_len(3).is_err() && memory.set_len(9).is_err());
        let again = fs::OpenOptions::new().write(true).open(path_of(&memory));
        assert!(again.is_err() || again.unwrap().write_all(b"9").is_err());
        let mut bytes = Vec::new();
        each_piece(&Kept { sealed: memory, bytes: 4 }, |piece| bytes.extend_from_slice(piece)).unwrap();
        assert_eq!(bytes, b"0123");
    }
}
