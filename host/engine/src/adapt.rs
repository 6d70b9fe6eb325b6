//! WASI preview-1 programs: core modules that speak `wasi_snapshot_preview1`, as most toolchains and package registries
//! have them. They become components of WASI 0.2 in the compile child, before they are compiled; what is kept, named by
//! its digest, and handed out is what was uploaded.
//!
//! The adapter of wasmtime makes every exit status but 0 the same. So the one import `proc_exit` is led to an adapter of our
//! own, which hands the status to the host as it is.

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// What a program imports everything from.
pub(crate) const PREVIEW1: &str = WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
/// What a program exports to be one.
pub(crate) const START: &str = "_start";
/// The adapter, which becomes a part of every such component and so of what decides the code.
pub(crate) const ADAPTER: &[u8] = WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER;
/// The host's own interface for a program's end, without its version, and its one function.
pub(crate) const EXIT: &str = "keiko:program/exit";
pub(crate) const EXIT_WITH: &str = "end";
/// Its version.
pub(crate) const EXIT_VERSION: &str = "0.1.0";

/// Whatever goes wrong: the reader's, the encoder's, or ours.
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// The function that ends a program.
const PROC_EXIT: &str = "proc_exit";
/// Where a program imports it from instead: as long as the name of everything else, so that no byte moves.
const EXIT_MODULE: &str = "keiko_program_exit_1.0";

/// The component of an upload that passed the scan: a component as it is, a program adapted.
pub(crate) fn component(upload: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if !Parser::is_core_wasm(upload) {
        return Ok(Cow::Borrowed(upload));
    }
    let adapted = adapted(upload);
    adapted.map(Cow::Owned).map_err(|error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        format!("the program cannot be made a component: {text}")
    })
}

fn adapted(program: &[u8]) -> Result<Vec<u8>, Trouble> {
    let mut module = program.to_vec();
    let exit = find_exit(program)?;
    if let Some(place) = exit {
        module[place..place + EXIT_MODULE.len()].copy_from_slice(EXIT_MODULE.as_bytes());
    }
    let mut encoder = ComponentEncoder::default();
    encoder.module(&module)?.adapter(PREVIEW1, ADAPTER)?;
    if exit.is_some() {
        encoder.adapter(EXIT_MODULE, &exit_adapter()?)?;
    }
    Ok(encoder.validate(true).encode()?)
}

/// Where the name of the module stands that `proc_exit` is imported from.
fn find_exit(program: &[u8]) -> Result<Option<usize>, Trouble> {
    for payload in Parser::new(0).parse_all(program) {
        let Payload::ImportSection(imports) = payload? else { continue };
        for import in imports.into_imports() {
            let import = import?;
            if (import.module, import.name) == (PREVIEW1, PROC_EXIT) {
                let place = (import.module.as_ptr() as usize).checked_sub(program.as_ptr() as usize);
                return place.map(Some).ok_or_else(|| "a name stands outside of its module".into());
            }
        }
    }
    Ok(None)
}

/// A module whose `proc_exit` calls the host's.
fn exit_adapter() -> Result<Vec<u8>, Trouble> {
    let interface = format!("{EXIT}@{EXIT_VERSION}");
    let section = |id: u8, content: &[u8]| [&[id, content.len() as u8], content].concat();
    let named = |name: &str| [&[name.len() as u8], name.as_bytes()].concat();
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // One type: a number to nothing.
    module.extend(section(1, &[1, 0x60, 1, 0x7f, 0]));
    module.extend(section(2, &[&[1][..], &named(&interface), &named(EXIT_WITH), &[0, 0]].concat()));
    module.extend(section(3, &[1, 0]));
    module.extend(section(7, &[&[1][..], &named(PROC_EXIT), &[0, 1]].concat()));
    // `local.get 0`, `call 0`, `end`.
    module.extend(section(10, &[1, 6, 0, 0x20, 0, 0x10, 0, 0x0b]));
    let (package, name) = EXIT.split_once('/').unwrap_or((EXIT, "exit"));
    let text = format!(
        "package {package}@{EXIT_VERSION};
        interface {name} {{ {EXIT_WITH}: func(status: u32); }}
        world program {{ import {name}; }}"
    );
    let mut resolve = Resolve::default();
    let package = resolve.push_source("exit.wit", &text)?;
    let world = resolve.select_world(&[package], Some("program"))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_program_is_led_elsewhere() {
        assert_eq!(EXIT_MODULE.len(), PREVIEW1.len());
        let program = |imports: &str| {
            let text =
                format!("(module {imports} (memory (export \"memory\") 1) (func (export \"_start\")))");
            wat::parse_str(text).unwrap()
        };
        let exit = r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))"#;
        let random = r#"(import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))"#;
        let both = program(&format!("{random}{exit}"));
        let place = find_exit(&both).unwrap().unwrap();
        assert_eq!(&both[place..place + PREVIEW1.len()], PREVIEW1.as_bytes());
        let ends = |bytes: &[u8]| {
            let component = component(bytes).unwrap().into_owned();
            component.windows(EXIT.len()).any(|part| part == EXIT.as_bytes())
        };
        assert!(ends(&both) && !ends(&program(random)) && !ends(&program("")));
        let as_it_is = wat::parse_str("(component)").unwrap();
        assert_eq!(component(&as_it_is).unwrap(), as_it_is);
    }
}
