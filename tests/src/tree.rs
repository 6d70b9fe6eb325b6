//! Where things are in this tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo builds: `CARGO_TARGET_DIR`, or the folder of the checkout.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(given) => root().join(given),
        None => root().join("target"),
    }
}

/// The `keiko` program: `KEIKO_PROGRAM`, or what was built beside the running test.
pub fn program() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("KEIKO_PROGRAM") {
        return Ok(given.into());
    }
    let running = std::env::current_exe().context("where this program is")?;
    let found =
        running.ancestors().skip(1).take(2).map(|folder| folder.join("keiko")).find(|path| path.is_file());
    found.with_context(|| {
        format!("there is no program `keiko` beside {}: run `cargo build -p keiko`", running.display())
    })
}

/// Where the built guests are: `KEIKO_GUESTS_DIR`, or where cargo leaves them.
pub fn guests_dir() -> PathBuf {
    match std::env::var_os("KEIKO_GUESTS_DIR") {
        Some(given) => given.into(),
        None => target_dir().join("wasm32-wasip2/guest"),
    }
}

/// The component of a plugin or of a guest fixture.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let path = guests_dir().join(format!("{}.wasm", name.replace('-', "_")));
    if !path.is_file() {
        bail!(
            "there is no component of `{name}` ({}): build it with \
             `cargo build --profile guest --target wasm32-wasip2 -p {name}`, or everything with `cargo xtask test`",
            path.display()
        );
    }
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Where WASI programs are that package registries have, and that foreign compilers made: `KEIKO_PROGRAMS_DIR`, or where
/// `cargo xtask test` puts them.
pub fn programs_dir() -> PathBuf {
    match std::env::var_os("KEIKO_PROGRAMS_DIR") {
        Some(given) => given.into(),
        None => root().join("target/programs"),
    }
}

/// One of those programs.
pub fn wasi_program(name: &str) -> Result<Vec<u8>> {
    let path = programs_dir().join(format!("{name}.wasm"));
    std::fs::read(&path).with_context(|| {
        format!("there is no program {}: `cargo xtask programs` makes and fetches them", path.display())
    })
}

/// Where guests in other languages than Rust are: `KEIKO_LANGUAGES_DIR`, or where `cargo xtask test` puts them.
pub fn languages_dir() -> PathBuf {
    match std::env::var_os("KEIKO_LANGUAGES_DIR") {
        Some(given) => given.into(),
        None => root().join("target/languages"),
    }
}

/// The path of such a guest, for example `contract-python`.
pub fn language_guest_path(name: &str) -> Result<PathBuf> {
    let path = languages_dir().join(format!("{name}.wasm"));
    if !path.is_file() {
        bail!("there is no component {}: `cargo xtask programs` makes them", path.display());
    }
    Ok(path)
}

/// A file under `tests/fixtures`.
pub fn fixture(name: &str) -> Result<Vec<u8>> {
    let path = root().join("tests/fixtures").join(name);
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}
