//! `keiko-componentize bindings WIT WORLD FOLDER` writes the face of a world in C: a header, its code, and an object that
//! carries the world. `keiko-componentize components FOLDER MODULE...` makes a component of each core module and writes it to
//! the folder.
//!
//! For compilers that do not link components themselves. The module must carry the WIT of its world, as every wit-bindgen
//! guest does; what it asks of WASI preview 1 is led to WASI 0.2. The encoder and the bindings of all guests are pinned
//! together in the workspace.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_bindgen_core::Files;
use wit_component::ComponentEncoder;
use wit_parser::Resolve;

const USAGE: &str =
    "usage: keiko-componentize bindings WIT WORLD FOLDER, or keiko-componentize components FOLDER MODULE...";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["bindings", wit, world, folder] => bindings(Path::new(wit), world, Path::new(folder)),
        ["components", folder, ref modules @ ..] if !modules.is_empty() => {
            components(Path::new(folder), modules)
        }
        _ => bail!(USAGE),
    }
}

fn bindings(wit: &Path, world: &str, folder: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).with_context(|| format!("read {}", wit.display()))?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    files.iter().try_for_each(|(name, content)| write(&folder.join(name), content))
}

fn components(folder: &Path, modules: &[&str]) -> Result<()> {
    for path in modules.iter().map(Path::new) {
        let module = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let component = componentize(&module).with_context(|| format!("{} is no guest", path.display()))?;
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        write(&folder.join(name), &component)?;
    }
    Ok(())
}

fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default()
        .module(module)?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?
        .validate(true)
        .encode()
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
