//! Uploads that are small, or at least allowed, and mean much work or memory for whoever compiles them, of several sorts.

use anyhow::Result;

use super::attack::{in_shell, manifest, with_manifest};

/// A guest beside which a bomb stands. Nothing of the bomb is ever instantiated: it is compiled all the same.
const GUEST: &str = r#"(core module $guest
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
    (func (export "run") (param i32 i32 i32 i32 i32 i32) (result i32) (unreachable)))
  (core instance $instance (instantiate $guest))"#;

/// Every sort with its name, of the sizes that take a compiler seconds, or of a twentieth of them.
pub fn bombs(long: bool) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let size = |large: usize| if long { large } else { large / 20 };
    let sorts = [
        ("many-functions", functions(size(200_000))),
        ("deep-nesting", nesting(size(100_000))),
        ("huge-br-table", br_table(size(1_000_000))),
        ("giant-data-segment", data(1, size(16 << 20))),
        ("many-data-segments", data(size(80_000), 4)),
        ("many-types", types(size(45_000))),
        ("many-imports", imports(size(18_000))),
        ("many-exports", exports(size(180_000))),
    ];
    sorts.into_iter().map(|(name, module)| Ok((name, component(name, &module)?))).collect()
}

fn component(name: &str, module: &str) -> Result<Vec<u8>> {
    let component = in_shell(&format!("(core module $bomb {module}) {GUEST}"))?;
    Ok(with_manifest(component, &manifest(name)))
}

/// One function after the other, none of which is like another.
fn functions(count: usize) -> String {
    (0..count).map(|number| format!("(func (result i32) i32.const {number}) ")).collect()
}

/// Blocks in each other, each of which may be left.
fn nesting(depth: usize) -> String {
    format!("(func (param i32) {} {})", "block local.get 0 br_if 0 ".repeat(depth), "end ".repeat(depth))
}

/// A jump to one of many places, which are two.
fn br_table(targets: usize) -> String {
    format!("(func (param i32) block block local.get 0 br_table {} end end)", "0 1 ".repeat(targets / 2))
}

fn data(segments: usize, bytes: usize) -> String {
    let text = "z".repeat(bytes);
    let all: String = (0..segments).map(|_| format!("(data (i32.const 0) \"{text}\")")).collect();
    format!("(memory {}) {all}", bytes.div_ceil(65_536))
}

/// Types of functions, none of which is like another.
fn types(count: usize) -> String {
    let parameters = |number: usize| {
        let bits = (0..16).map(|bit| if number >> bit & 1 == 1 { "i64 " } else { "i32 " });
        bits.collect::<String>()
    };
    (0..count).map(|number| format!("(type (func (param {})))", parameters(number))).collect()
}

fn imports(count: usize) -> String {
    (0..count).map(|number| format!("(import \"m\" \"{number}\" (func))")).collect()
}

fn exports(count: usize) -> String {
    let all: String = (0..count).map(|number| format!("(export \"{number}\" (func 0))")).collect();
    format!("(func) {all}")
}
