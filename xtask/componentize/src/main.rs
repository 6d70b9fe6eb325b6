//! `keiko-componentize FOLDER MODULE...`: makes a component of each core module and writes it to the folder.
//!
//! Only for guests of a target that does not link components itself; the module must carry the WIT of its world,
//! as every wit-bindgen guest does. Its encoder and the guests' bindings are pinned together in the workspace.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use wit_component::ComponentEncoder;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.next().context("usage: keiko-componentize FOLDER MODULE...")?;
    for path in arguments {
        let path = Path::new(&path);
        let module = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let component = componentize(&module).with_context(|| format!("{} is no guest", path.display()))?;
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let target = Path::new(&folder).join(name);
        fs::write(&target, component).with_context(|| format!("write {}", target.display()))?;
    }
    Ok(())
}

fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default().module(module)?.validate(true).encode()
}
