//! Hostile uploads: bytes that are no plugin, and how each must be refused.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::attack::{Attack, in_shell, manifest, with_manifest};
use crate::tree;

/// One upload that must be refused.
#[derive(Clone, Debug)]
pub struct Upload {
    /// For the report.
    pub name: &'static str,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// The code it is refused with.
    pub code: &'static str,
}

/// Every upload. `data_dir` is the host's own, where a compiled artifact is borrowed from; `long` adds those that
/// keep the compiler busy for a minute.
pub fn uploads(data_dir: &Path, long: bool) -> Result<Vec<Upload>> {
    let good = tree::guest("contract")?;
    let upload = |name, bytes| Upload { name, bytes, code: "component_invalid" };
    let core = wat::parse_str("(module (func (export \"run\")))")?;
    let no_export = with_manifest(wat::parse_str("(component)")?, &manifest("no-export"));
    let mut flipped = good.clone();
    // In the middle of the code, where a validator has to notice.
    flipped[good.len() / 3] ^= 0xff;
    flipped[good.len() / 3 + 1] ^= 0xff;
    let mut uploads = vec![
        upload("empty", Vec::new()),
        upload("not-wasm", b"#!/bin/sh\nrm -rf /\n".to_vec()),
        upload("zeros", vec![0; 1 << 20]),
        upload("truncated", good[..good.len() / 2].to_vec()),
        upload("cut-by-one-byte", good[..good.len() - 1].to_vec()),
        upload("core-module", with_manifest(core, &manifest("core"))),
        upload("no-export", no_export),
        upload("artifact", artifact(data_dir)?),
    ];
    let plainest = Attack::named("unreachable").next().context("the plainest attack")?.bare_component()?;
    for name in NAMES {
        uploads.push(upload("bad-name", with_manifest(plainest.clone(), &manifest(name))));
    }
    if long {
        uploads.push(Upload {
            name: "compile-bomb",
            bytes: compile_bomb(5_000, 1_500)?,
            code: "compile_limit",
        });
    }
    Ok(uploads)
}

/// Names that are paths, other people's, or simply too long. Each is TOML inside its quotes.
const NAMES: &[&str] = &[
    "",
    ".",
    "../../etc/passwd",
    "a/b",
    "a\\\\b",
    "a\\nb",
    "a\\u0000b",
    "UPPER",
    "<script>alert(1)</script>",
    "ünïcode",
    "-leading",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// The largest file that the host keeps compiled.
fn artifact(data_dir: &Path) -> Result<Vec<u8>> {
    let mut folders = vec![data_dir.join("artifacts")];
    let mut largest = (0, None);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry?;
            let size = entry.metadata()?.len();
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if size > largest.0 {
                largest = (size, Some(entry.path()));
            }
        }
    }
    let path = largest.1.context("the host keeps no compiled artifact")?;
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Nested loops over many locals: a value for every local at the head of every loop, in a few kilobytes.
fn compile_bomb(locals: usize, depth: usize) -> Result<Vec<u8>> {
    let declared = "i64 ".repeat(locals);
    let mut body = String::new();
    for level in 0..depth {
        let local = |step: usize| (level * step) % locals;
        let (to, from) = (local(7), local(13));
        body.push_str(&format!("(loop (local.set {to} (i64.add (local.get {from}) (local.get {to})))"));
    }
    body.push_str(&"(br_if 0 (i64.eqz (local.get 0))))".repeat(depth));
    let guest = format!(
        "(core module $guest
          (memory (export \"memory\") 1)
          (func (export \"realloc\") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
          (func (export \"run\") (param i32 i32 i32 i32 i32 i32) (result i32) (call $bomb) (unreachable))
          (func $bomb (local {declared}) {body}))
        (core instance $instance (instantiate $guest))"
    );
    Ok(with_manifest(in_shell(&guest)?, &manifest("compile-bomb")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compile_bomb_is_small() -> Result<()> {
        let bytes = compile_bomb(5_000, 1_500)?;
        assert!(bytes.len() < 40_000, "{} bytes", bytes.len());
        Ok(())
    }
}
