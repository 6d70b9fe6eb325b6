//! `keiko plugin key` and `keiko plugin sign`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::print;
use crate::signature::Secret;

/// Where the signature of a component is, unless somebody says otherwise.
pub(super) fn beside(component: &Path) -> PathBuf {
    component.with_extension("sig")
}

/// Makes a secret key, which nobody else may read, and shows the public one.
pub(super) fn key(file: &Path) -> Result<(), Failure> {
    let secret =
        Secret::new().ok_or_else(|| Failure::Usage("the system has no random numbers".to_owned()))?;
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = made.and_then(|mut made| made.write_all(format!("{}\n", secret.text()).as_bytes()));
    written.map_err(|error| unusable("written", file, &error))?;
    print::out(&secret.signer().to_string());
    Ok(())
}

/// Writes the signature of a component, and of the manifest that goes beside it.
pub(super) fn sign(file: &Path, key: &Path, manifest: Option<&Path>) -> Result<(), Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| unusable("read", path, &error));
    let secret = Secret::read(&String::from_utf8_lossy(&read(key)?));
    let secret =
        secret.ok_or_else(|| Failure::Usage(format!("{} is no key of `keiko plugin key`", key.display())))?;
    let manifest = manifest.map(read).transpose()?;
    let (signature, path) = (secret.sign(&read(file)?, manifest.as_deref()), beside(file));
    std::fs::write(&path, format!("{signature}\n")).map_err(|error| unusable("written", &path, &error))?;
    print::out(&format!("{} signed by {}", path.display(), secret.signer()));
    Ok(())
}

fn unusable(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("{} cannot be {what}: {error}", path.display()))
}
