//! The watched folder: a component that is put there is installed and made current.
//!
//! Files in the folder itself are the tenant `default`'s, those in a folder named like a tenant are that tenant's. `NAME.wasm` is a
//! component, `NAME.toml` beside it its manifest, when it carries none itself, and `NAME.sig` their signature, where the tenant wants one; what begins with a dot is passed over.
//!
//! A file is taken when neither it nor its manifest has changed for [`QUIET`], and only if both are still the same after they were
//! read: one that is being written never is, as long as its writer does not pause for longer. Whoever wants to be sure writes
//! beside it and renames. What was installed from here once is not installed again until its bytes change, also not by the next
//! start: a version that somebody activated since then stays. A file that is taken away takes nothing with it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use keiko_core::manifest::{MANIFEST_BYTES_MAX, Manifest};
use keiko_core::port::Clock;
use keiko_core::{Code, TenantId, TenantName};
use keiko_runtime::{Error, Handle};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::signature::Signers;
use crate::wiring::apart;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a file must not have changed.
const QUIET: Duration = Duration::from_secs(1);
/// Components of one folder that are looked at.
const FILES_MAX: usize = 1_000;
/// What the name of a signature ends with.
const SIGNATURE: &str = "sig";
/// Bytes of a signature's file.
const SIGNATURE_BYTES_MAX: u64 = 1_000;
/// The file in the data folder that says what was installed.
const INSTALLED: &str = "watched.json";

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Whose.
    pub(crate) tenant: TenantId,
    /// When it was taken.
    pub(crate) at_ms: i64,
    /// The plugin and its version, or why there is none.
    pub(crate) outcome: Result<(String, String), (Code, String)>,
}

/// What became of every file that was taken, by its path below the folder.
pub(crate) type WatchedFiles = Arc<Mutex<BTreeMap<String, Watched>>>;

/// A folder that is watched.
pub(crate) struct Watcher {
    pub(crate) handle: Handle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) folder: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) tenants: Vec<(TenantName, TenantId)>,
    pub(crate) signers: Arc<Signers>,
    pub(crate) files: WatchedFiles,
}

/// What a file is known by, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

/// A component and its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    component: Stamp,
    manifest: Option<Stamp>,
    signature: Option<Stamp>,
}

/// Which files are ready to be taken.
#[derive(Default)]
struct Looks(BTreeMap<PathBuf, Seen>);

struct Seen {
    look: Look,
    since: Duration,
    is_taken: bool,
}

impl Looks {
    /// Takes in what is there now, and says what has not changed for long enough and was not taken as it is.
    fn ready(&mut self, now: Duration, found: BTreeMap<PathBuf, Look>) -> Vec<PathBuf> {
        self.0.retain(|path, _| found.contains_key(path));
        let mut ready = Vec::new();
        for (path, look) in found {
            let seen = self.0.entry(path.clone()).or_insert(Seen { look, since: now, is_taken: false });
            if seen.look != look {
                *seen = Seen { look, since: now, is_taken: false };
            }
            if !seen.is_taken && now.saturating_sub(seen.since) >= QUIET {
                ready.push(path);
            }
        }
        ready
    }

    /// How a file looked that is about to be taken.
    fn look(&self, path: &Path) -> Option<Look> {
        self.0.get(path).map(|seen| seen.look)
    }

    fn take(&mut self, path: &Path) {
        if let Some(seen) = self.0.get_mut(path) {
            seen.is_taken = true;
        }
    }
}

/// What was read.
struct Read {
    component: Vec<u8>,
    manifest: Option<Vec<u8>>,
    signature: Option<String>,
}

impl Read {
    /// What it is known by in the file of what was installed.
    fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.component.len() as u64).to_le_bytes()).update(&self.component);
        hasher.update(self.manifest.as_deref().unwrap_or_default());
        hasher.finalize().to_hex().to_string()
    }
}

impl Watcher {
    /// Watches until stopped.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let began = tokio::time::Instant::now();
        let (mut looks, mut installed) = (Looks::default(), self.installed().await);
        tracing::info!("a folder of plugins is watched");
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let found = self.found().await;
            for path in looks.ready(began.elapsed(), found) {
                if stop.is_cancelled() {
                    return;
                }
                let Some(look) = looks.look(&path) else { continue };
                if self.take(&path, look, &mut installed).await {
                    looks.take(&path);
                }
            }
        }
    }

    /// Installs a file unless it is what was installed; whether it was taken, and not in the middle of a change.
    async fn take(&self, path: &Path, look: Look, installed: &mut BTreeMap<String, String>) -> bool {
        let Some((name, tenant)) = self.owner(path) else { return true };
        let limit = self.handle.policy(tenant).map_or(0, |policy| policy.component_bytes_max);
        if look.component.bytes > limit {
            let text = format!("a component of {} bytes exceeds the limit of {limit}", look.component.bytes);
            self.tell(name, tenant, Err(Error::new(Code::QuotaExceeded, text)));
            return true;
        }
        let read = {
            let path = path.to_owned();
            apart(move || read(&path, look)).await
        };
        let read = match read {
            Ok(Some(read)) => read,
            // Somebody writes it.
            Ok(None) => return false,
            Err(error) => {
                let text = format!("the file cannot be read: {error}");
                self.tell(name, tenant, Err(Error::new(Code::InvalidInput, text)));
                return true;
            }
        };
        let hash = read.hash();
        if installed.get(&name) == Some(&hash) {
            return true;
        }
        let answer = self.install(tenant, read).await;
        let is_installed = answer.is_ok();
        // What the database or the host could not do is tried again.
        let again = answer.as_ref().is_err_and(|error| error.code.http_status() >= 500);
        self.tell(name.clone(), tenant, answer);
        if is_installed {
            installed.insert(name, hash);
            self.remember(installed.clone()).await;
        }
        !again
    }

    async fn install(&self, tenant: TenantId, read: Read) -> Result<(String, String), Error> {
        let signers = Arc::clone(&self.signers);
        let (read, checked) = apart(move || {
            let signature = read.signature.as_deref().filter(|_| signers.are_wanted(tenant));
            let checked = signers.check(tenant, &read.component, read.manifest.as_deref(), signature);
            (read, checked)
        })
        .await;
        checked?;
        let manifest = read.manifest.map(|manifest| Manifest::parse(&manifest)).transpose();
        let manifest = manifest.map_err(|error| Error::new(Code::InvalidInput, error.to_string()))?;
        let (plugin, _) = self.handle.install(tenant, Bytes::from(read.component), manifest).await?;
        Ok((plugin.name.to_string(), plugin.current.name.to_string()))
    }

    fn tell(&self, file: String, tenant: TenantId, answer: Result<(String, String), Error>) {
        if let Err(error) = &answer {
            let told = self.files.lock().get(&file).is_some_and(|told| told.outcome == Err(told_of(error)));
            if !told {
                tracing::warn!(plugin = %file, error = %error, "a file of the watched folder is refused");
            }
        }
        let outcome = answer.map_err(|error| told_of(&error));
        let watched = Watched { tenant, at_ms: self.clock.now_ms(), outcome };
        self.files.lock().insert(file, watched);
    }

    /// The name of a file below the folder, and whose it is.
    fn owner(&self, path: &Path) -> Option<(String, TenantId)> {
        let below = path.strip_prefix(&self.folder).ok()?;
        let name = below.to_str()?.to_owned();
        let folder = below.parent().and_then(Path::to_str).filter(|folder| !folder.is_empty());
        let tenant = folder.unwrap_or(crate::config::DEFAULT_TENANT);
        let (_, id) = self.tenants.iter().find(|(name, _)| name.as_str() == tenant)?;
        Some((name, *id))
    }

    /// Every component of every tenant.
    async fn found(&self) -> BTreeMap<PathBuf, Look> {
        let folders: Vec<PathBuf> = std::iter::once(self.folder.clone())
            .chain(self.tenants.iter().map(|(name, _)| self.folder.join(name.as_str())))
            .collect();
        apart(move || folders.iter().flat_map(|folder| components(folder)).collect()).await
    }

    async fn installed(&self) -> BTreeMap<String, String> {
        let path = self.data_dir.join(INSTALLED);
        apart(move || {
            let text = std::fs::read(path).unwrap_or_default();
            serde_json::from_slice(&text).unwrap_or_default()
        })
        .await
    }

    async fn remember(&self, installed: BTreeMap<String, String>) {
        let path = self.data_dir.join(INSTALLED);
        let written = apart(move || {
            let next = path.with_extension("json.next");
            std::fs::write(&next, serde_json::to_vec(&installed)?)?;
            std::fs::rename(&next, &path)
        });
        if let Err(error) = written.await {
            tracing::warn!(error = %error, "what was installed from the watched folder is not remembered");
        }
    }
}

fn told_of(error: &Error) -> (Code, String) {
    (error.code, error.message.clone())
}

/// The components of a folder; none when it is not there.
fn components(folder: &Path) -> Vec<(PathBuf, Look)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_component = |path: &PathBuf| {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden && path.extension().is_some_and(|extension| extension == "wasm")
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_component).collect();
    paths.sort();
    paths.truncate(FILES_MAX);
    let look = |path: PathBuf| {
        let component = stamp(&path)?;
        let manifest = stamp(&path.with_extension("toml"));
        let signature = stamp(&path.with_extension(SIGNATURE));
        Some((path, Look { component, manifest, signature }))
    };
    paths.into_iter().filter_map(look).collect()
}

/// How a file looks; `None` when there is none.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some(Stamp { bytes: found.len(), modified: found.modified().ok() })
}

/// Reads a component and its manifest; `None` when they no longer look as they did.
fn read(path: &Path, look: Look) -> io::Result<Option<Read>> {
    let beside = path.with_extension("toml");
    if look.manifest.is_some_and(|manifest| manifest.bytes > MANIFEST_BYTES_MAX as u64) {
        return Err(io::Error::other(format!("its manifest is larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    let component = std::fs::read(path)?;
    let manifest = look.manifest.map(|_| std::fs::read(&beside)).transpose()?;
    let signed = path.with_extension(SIGNATURE);
    let signature = look.signature.filter(|signature| signature.bytes <= SIGNATURE_BYTES_MAX);
    let signature = signature.map(|_| std::fs::read_to_string(&signed)).transpose()?;
    let is_whole = component.len() as u64 == look.component.bytes
        && stamp(path) == Some(look.component)
        && stamp(&beside) == look.manifest
        && stamp(&signed) == look.signature;
    Ok(is_whole.then_some(Read { component, manifest, signature }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(bytes: u64, manifest: Option<u64>) -> Look {
        let stamp = |bytes| Stamp { bytes, modified: None };
        Look { component: stamp(bytes), manifest: manifest.map(stamp), signature: None }
    }

    #[test]
    fn a_file_is_ready_once_when_it_has_not_changed_for_long_enough() {
        let mut looks = Looks::default();
        let mut at = |ms: u64, found: Option<Look>| {
            let found = found.map(|look| (PathBuf::from("a.wasm"), look)).into_iter().collect();
            let ready = looks.ready(Duration::from_millis(ms), found);
            ready.iter().for_each(|path| looks.take(path));
            !ready.is_empty()
        };
        for (ms, found, expected) in [
            (0, Some(look(1, None)), false),
            (999, Some(look(1, None)), false),
            // It grows, and its time begins again.
            (1_000, Some(look(2, None)), false),
            (1_999, Some(look(2, None)), false),
            (2_000, Some(look(2, None)), true),
            (9_000, Some(look(2, None)), false),
            // So it does when its manifest changes.
            (9_500, Some(look(2, Some(1))), false),
            (10_500, Some(look(2, Some(1))), true),
            (11_000, None, false),
            (11_500, Some(look(2, Some(1))), false),
            (12_500, Some(look(2, Some(1))), true),
        ] {
            assert_eq!(at(ms, found), expected, "at {ms}");
        }
    }

    #[test]
    fn what_changes_while_it_is_read_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wasm");
        std::fs::write(&path, b"12345").unwrap();
        let found: BTreeMap<PathBuf, Look> = components(folder.path()).into_iter().collect();
        assert!(read(&path, found[&path]).unwrap().is_some());
        std::fs::write(&path, b"123456").unwrap();
        assert!(read(&path, found[&path]).unwrap().is_none());
        let found: BTreeMap<PathBuf, Look> = components(folder.path()).into_iter().collect();
        std::fs::write(folder.path().join("a.toml"), b"").unwrap();
        assert!(read(&path, found[&path]).unwrap().is_none(), "a manifest came in the meantime");
        std::fs::write(folder.path().join("a.toml"), vec![b'#'; MANIFEST_BYTES_MAX + 1]).unwrap();
        let found: BTreeMap<PathBuf, Look> = components(folder.path()).into_iter().collect();
        assert!(read(&path, found[&path]).is_err());
    }

    #[test]
    fn only_components_are_found_and_no_more_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.wasm", ".b.wasm", "c.wasm.part", "d.toml"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        std::fs::create_dir(folder.path().join("e.wasm")).unwrap();
        let names: Vec<PathBuf> = components(folder.path()).into_iter().map(|(path, _)| path).collect();
        assert_eq!(names, [folder.path().join("a.wasm")]);
        for number in 0..=FILES_MAX {
            std::fs::write(folder.path().join(format!("{number}.wasm")), b"").unwrap();
        }
        assert!(components(folder.path()).len() <= FILES_MAX);
        assert!(components(&folder.path().join("nowhere")).is_empty());
    }
}
