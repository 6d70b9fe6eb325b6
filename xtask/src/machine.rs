//! What the machine must have beside Rust, and how it is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;

/// What Debian's package asks before it makes a cluster.
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

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

/// A C compiler and make: SQLite, the allocator and the assembly of BLAKE3 and wasmtime are compiled from source.
pub fn ensure_compiler(install: Install) -> Result<()> {
    let is_there = |program: &str| step::succeeds(Command::new(program).arg("--version"));
    if is_there("cc") && is_there("make") {
        eprintln!("a C compiler and make are there; no system package is needed");
        return Ok(());
    }
    ensure_packages(&["gcc", "libc6-dev", "make"], install)
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

/// PostgreSQL's server. Debian's package would make a cluster and run it from then on: nobody asked for that, so it is
/// told not to before it is installed.
pub fn ensure_postgres(install: Install) -> Result<()> {
    if install == Install::Forbidden {
        return ensure_packages(&["postgresql"], install);
    }
    ensure_packages(&["postgresql-common"], install)?;
    let path = Path::new(CREATE_CLUSTER);
    let text = fs::read_to_string(path).with_context(|| format!("read {CREATE_CLUSTER}"))?;
    if let Some(text) = without_main_cluster(&text) {
        eprintln!("telling {CREATE_CLUSTER} that no cluster is wanted");
        fs::write(path, text).with_context(|| format!("write {CREATE_CLUSTER}"))?;
    }
    ensure_packages(&["postgresql"], install)
}

/// The settings of Debian's cluster maker with the main cluster switched off; `None` when somebody has set it already.
fn without_main_cluster(text: &str) -> Option<String> {
    let is_set = |line: &str| line.split('=').next().is_some_and(|name| name.trim() == "create_main_cluster");
    if text.lines().any(is_set) {
        return None;
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Some(format!("{text}{end}create_main_cluster = false\n"))
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    let status = step::output(query.args(["--show", "--showformat=${db:Status-Abbrev}", package]));
    status.is_some_and(|status| status.starts_with("ii"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_main_cluster_is_made_unless_somebody_decided() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(without_main_cluster(text).as_deref(), expected, "{text:?}");
        };
        let packaged = "# Default values\n#create_main_cluster = true\n";
        check(packaged, Some(&format!("{packaged}create_main_cluster = false\n")));
        check("", Some("create_main_cluster = false\n"));
        check("start_conf = auto", Some("start_conf = auto\ncreate_main_cluster = false\n"));
        check("create_main_cluster = false\n", None);
        check(" create_main_cluster=true\n", None);
    }

    #[test]
    fn what_may_not_be_installed_is_named_with_its_command() {
        let missing = "keiko-has-no-such-package";
        let error = ensure_packages(&[missing], Install::Forbidden).unwrap_err().to_string();
        assert!(
            error.contains("apt-get install --no-install-recommends keiko-has-no-such-package"),
            "{error}"
        );
    }
}
