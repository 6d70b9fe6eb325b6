//! What the machine must have beside Rust, and how it is installed.

use std::process::Command;

use anyhow::{Result, bail};

use crate::step;

/// Whether anything may be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// What is missing is installed, and it is said what that is.
    Allowed,
    /// What is missing is an error that names the command.
    Forbidden,
}

impl Install {
    /// From the flag `--no-install`.
    pub fn unless(forbidden: bool) -> Install {
        if forbidden { Install::Forbidden } else { Install::Allowed }
    }
}

/// A C compiler: SQLite and the assembly of BLAKE3 and wasmtime are compiled from source.
pub fn ensure_compiler(install: Install) -> Result<()> {
    if step::succeeds(Command::new("cc").arg("--version")) {
        eprintln!("a C compiler is there; no system package is needed");
        return Ok(());
    }
    ensure_packages(&["gcc", "libc6-dev"], install)
}

/// Installs Debian packages, or says how to.
pub fn ensure_packages(packages: &[&str], install: Install) -> Result<()> {
    let known = |package: &&&str| !is_installed(package);
    let missing: Vec<&str> = packages.iter().filter(known).copied().collect();
    if missing.is_empty() {
        eprintln!("system packages are there: {}", packages.join(" "));
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if install == Install::Forbidden {
        bail!("system packages are missing; install them with `{by_hand}`");
    }
    let id = step::output(Command::new("id").arg("-u")).unwrap_or_default();
    if id.trim() != "0" || !step::succeeds(Command::new("apt-get").arg("--version")) {
        bail!(
            "system packages are missing, and only root on Debian can have them installed here; run `{by_hand}`"
        );
    }
    eprintln!("installing system packages: {}", missing.join(" "));
    step::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing);
    step::run(apt.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let status = step::output(query.args(["--show", "--showformat=${db:Status-Abbrev}", package]));
    status.is_some_and(|status| status.starts_with("ii"))
}
