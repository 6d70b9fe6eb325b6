//! Building the plugins and the guest fixtures.
//!
//! The way is rustup's target `wasm32-wasip2`: what it builds is a component already. Where it cannot be had, the
//! distribution's compiler builds core modules for `wasm32-unknown-unknown` with a standard library of its own, and
//! `xtask/componentize` makes components of them. Such guests have no WASI: they run every task of ours,
//! but a clock, a random number or a printed line of theirs does not reach the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use keiko_tests::tree;

use crate::arguments::Arguments;
use crate::machine::{Install, ensure_packages};
use crate::step::{self, Steps, cargo};

const TARGET: &str = "wasm32-wasip2";
/// Debian packages of the fallback, and what they bring.
const FALLBACK_PACKAGES: &[&str] = &["rustc-web", "rust-web-src", "lld-19"];
const FALLBACK_RUSTC: &str = "/usr/bin/rustc";
const FALLBACK_TARGET: &str = "wasm32-unknown-unknown";
const FALLBACK_LINKER: &str = "wasm-ld-19";

/// What builds guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// rustup's target.
    Wasip2,
    /// The distribution's compiler and `xtask/componentize`.
    Fallback,
}

impl Toolchain {
    /// The toolchain that was asked for, if one was.
    pub fn asked(arguments: &mut Arguments) -> Result<Option<Toolchain>> {
        match arguments.option("--guest-toolchain")?.as_deref() {
            None => Ok(None),
            Some("wasip2") => Ok(Some(Toolchain::Wasip2)),
            Some("fallback") => Ok(Some(Toolchain::Fallback)),
            Some(other) => bail!("there is no guest toolchain `{other}`; there are: wasip2, fallback"),
        }
    }

    /// Where the components end up.
    pub fn guests_dir(self) -> PathBuf {
        match self {
            Toolchain::Wasip2 => tree::target_dir().join(TARGET).join("guest"),
            Toolchain::Fallback => fallback_dir().join("components"),
        }
    }
}

/// Sets up a toolchain, rustup's when nobody asks for another and it can be had.
pub fn set_up(steps: &mut Steps, asked: Option<Toolchain>, install: Install) -> Result<Toolchain> {
    steps.step("guest toolchain", || match asked {
        Some(Toolchain::Fallback) => set_up_fallback(install),
        Some(Toolchain::Wasip2) => set_up_wasip2(install),
        None => set_up_wasip2(install).or_else(|error| {
            eprintln!("{error:#}");
            eprintln!("rustup's {TARGET} cannot be had here: using the distribution's compiler instead");
            set_up_fallback(install)
        }),
    })
}

fn set_up_wasip2(install: Install) -> Result<Toolchain> {
    let mut rustc = Command::new("rustc");
    let libraries = step::output(rustc.args(["--print", "target-libdir", "--target", TARGET]));
    if libraries.is_some_and(|folder| Path::new(folder.trim()).is_dir()) {
        eprintln!("Rust has the target {TARGET}");
        return Ok(Toolchain::Wasip2);
    }
    if install == Install::Forbidden {
        bail!("Rust has no target {TARGET}; add it with `rustup target add {TARGET}`");
    }
    eprintln!("adding the target {TARGET} to Rust");
    step::run(Command::new("rustup").args(["target", "add", TARGET]))?;
    Ok(Toolchain::Wasip2)
}

fn set_up_fallback(install: Install) -> Result<Toolchain> {
    ensure_packages(FALLBACK_PACKAGES, install)?;
    Ok(Toolchain::Fallback)
}

/// Every plugin and every guest fixture of the tree, by package name in order.
pub fn all() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in ["plugins", "tests/fixtures/guests"] {
        let folder = tree::root().join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.join("Cargo.toml").is_file() {
                names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Builds these packages as components.
pub fn build(steps: &mut Steps, toolchain: Toolchain, names: &[String]) -> Result<()> {
    match toolchain {
        Toolchain::Wasip2 => {
            let mut build = cargo();
            build.args(["build", "--profile", "guest", "--target", TARGET]);
            steps.run("build guests", with_packages(&mut build, names))
        }
        Toolchain::Fallback => build_fallback(steps, names),
    }
}

fn build_fallback(steps: &mut Steps, names: &[String]) -> Result<()> {
    let mut build = cargo();
    build
        .args(["build", "--profile", "guest", "--target", FALLBACK_TARGET, "-Zbuild-std=std,panic_abort"])
        .arg("--target-dir")
        .arg(fallback_dir())
        .env("RUSTC", FALLBACK_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", FALLBACK_LINKER)
        // rustup's proxies would hand the distribution's compiler a toolchain of theirs.
        .env_remove("RUSTUP_TOOLCHAIN");
    steps.run("build guests with the distribution's compiler", with_packages(&mut build, names))?;
    let components = Toolchain::Fallback.guests_dir();
    fs::create_dir_all(&components).with_context(|| format!("create {}", components.display()))?;
    let mut componentize = cargo();
    componentize
        .args(["run", "--quiet", "--package", "keiko-componentize", "--", "components"])
        .arg(&components);
    let modules = fallback_dir().join(FALLBACK_TARGET).join("guest");
    componentize.args(names.iter().map(|name| modules.join(format!("{}.wasm", name.replace('-', "_")))));
    steps.run("make components of the modules", &mut componentize)
}

fn with_packages<'a>(command: &'a mut Command, names: &[String]) -> &'a mut Command {
    for name in names {
        command.args(["--package", name]);
    }
    command
}

fn fallback_dir() -> PathBuf {
    tree::target_dir().join("guest-fallback")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_and_fixtures_are_found() -> Result<()> {
        let names = all()?;
        for name in ["contract", "family", "movie-facts", "text-digest"] {
            assert!(names.iter().any(|found| found == name), "{name}");
        }
        Ok(())
    }
}
