//! What is checked of an upload before anything compiles it: a single pass over its sections that decodes no bodies and
//! allocates next to nothing. An upload is a component, or a core module that is a WASI preview-1 program.
//!
//! It says clearly what an upload is when it is no component, keeps floods of declarations, and what no attempt can have, away from the
//! compiler, and finds the embedded manifest. Whether the component is valid is the compile child's to say, under the
//! child's own limits.

use keiko_core::code::Code;
use keiko_core::limit::LimitFact;
use keiko_core::manifest::{self, Manifest};
use keiko_core::port::InstallError;
use keiko_core::profile::{Profile, Profiles};
use wasmparser::{Encoding, ExternalKind, KnownCustom, Name, NameSectionReader, Parser, Payload, TypeRef};

use crate::adapt::{PREVIEW1, START};
use crate::weight::Scales;
use crate::{need, section};

/// Core modules of a component. Composed components of real toolchains have fewer than 20.
pub(crate) const MODULES_MAX: u64 = 128;
/// Components inside a component, at any depth.
pub(crate) const COMPONENTS_MAX: u64 = 256;
/// How deep components are nested in each other.
pub(crate) const DEPTH_MAX: u64 = 8;
/// Sections in all; a component writes one for every change of kind.
pub(crate) const SECTIONS_MAX: u64 = 20_000;
/// Types in all, of core modules and components. The largest seen is a Python component with about 3,000.
pub(crate) const TYPES_MAX: u64 = 50_000;
/// Imports in all.
pub(crate) const IMPORTS_MAX: u64 = 20_000;
/// Exports in all; a language's runtime may export every function of its library.
pub(crate) const EXPORTS_MAX: u64 = 200_000;
/// Functions in all. StarlingMonkey has about 25,000, a Python component about 40,000.
pub(crate) const FUNCTIONS_MAX: u64 = 400_000;
/// Bytes of one function's body. The largest of an interpreter is below 400,000.
pub(crate) const FUNCTION_BYTES_MAX: u64 = 2 << 20;
/// Bytes of one function's name. wasmtime copies it for every frame of a trap, on the thread of the guest; the longest
/// of a C++ program is some thousand.
pub(crate) const FUNCTION_NAME_BYTES_MAX: u64 = 64 << 10;
/// Linear memories that a core module declares and imports. The parts of a composed component have a memory each; a module with several
/// is what only wasmtime's glue between them is.
pub(crate) const MODULE_MEMORIES_MAX: u64 = 1;
/// Globals, tables, memories, element and data segments, tags, instances, aliases and canonical functions together.
pub(crate) const ITEMS_MAX: u64 = 400_000;

/// What a scan finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The embedded manifest, when there is one.
    pub(crate) manifest: Option<Manifest>,
    /// What of it needs the concurrent profile, for people.
    pub(crate) concurrency: Option<&'static str>,
    /// Bytes of memory with which its instances begin, all together.
    pub(crate) memory_bytes: u64,
}

impl Scanned {
    /// The engine profile that it needs.
    pub(crate) fn profile(&self) -> Profile {
        need::profile_for(self.concurrency)
    }

    /// Refuses it where the profile that it needs is not among these.
    pub(crate) fn check_profile(&self, permitted: Profiles) -> Result<(), InstallError> {
        let profile = self.profile();
        let refusal = || InstallError::not_permitted(profile, self.concurrency);
        permitted.permit(profile).then_some(()).ok_or_else(refusal)
    }
}

/// Checks `bytes`, of which a tenant may have `bytes_max`.
pub(crate) fn scan(bytes: &[u8]) -> Result<Scanned, InstallError> {
    recognise(bytes)?;
    let mut program = Parser::is_core_wasm(bytes).then(Program::default);
    let (mut counts, mut scales) = (Counts::default(), Scales::default());
    let (mut section, mut concurrency) = (None::<&[u8]>, None);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| malformed(&error, bytes))?;
        counts.add(&payload)?;
        scales.add(&payload)?;
        concurrency = concurrency.or_else(|| need::concurrency(&payload));
        if let Some(program) = &mut program {
            program.look(&payload).map_err(|error| malformed(&error, bytes))?;
        }
        if let Payload::CustomSection(custom) = payload
            && custom.name() == manifest::SECTION
        {
            if section.is_some_and(|first| first != custom.data()) {
                let name = manifest::SECTION;
                return Err(invalid(format!("the component carries two different `{name}` sections")));
            }
            section = Some(custom.data());
        }
    }
    program.map_or(Ok(()), Program::check)?;
    let manifest = section.map(Manifest::parse).transpose();
    let manifest = manifest.map_err(|error| invalid(format!("section `{}`: {error}", manifest::SECTION)))?;
    Ok(Scanned { manifest, concurrency, memory_bytes: scales.memory_bytes })
}

/// What the first bytes say; whatever is no component is named.
fn recognise(bytes: &[u8]) -> Result<(), InstallError> {
    if Parser::is_component(bytes) || Parser::is_core_wasm(bytes) {
        return Ok(());
    }
    let what = if bytes.is_empty() {
        "the upload is empty"
    } else if bytes.starts_with(b"\x7fELF") {
        "this is a compiled artifact or native program, not a component: upload the .wasm file itself"
    } else if bytes.starts_with(b"\0asm") {
        "this is WebAssembly of an unknown version, or its first 8 bytes are cut off"
    } else if b"\0asm".starts_with(bytes) {
        "the component is truncated within its first 8 bytes"
    } else if std::str::from_utf8(&bytes[..bytes.len().min(64)])
        .is_ok_and(|text| text.starts_with(['(', ';']))
    {
        "this is the text format, not a binary component: convert it with `wasm-tools parse`"
    } else {
        "this is not WebAssembly: a component begins with the bytes 00 61 73 6d 0d 00 01 00"
    };
    Err(invalid(what))
}

/// What makes a core module a WASI program.
#[derive(Debug, Default)]
struct Program {
    starts: bool,
    has_memory: bool,
    /// The first import that no program has.
    foreign: Option<String>,
}

impl Program {
    fn look(&mut self, payload: &Payload<'_>) -> Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    let import = import?;
                    if import.module != PREVIEW1 && self.foreign.is_none() {
                        let name = format!("`{}` of `{}`", shown(import.name), shown(import.module));
                        self.foreign = Some(name);
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports.clone() {
                    let export = export?;
                    self.starts |= export.name == START && export.kind == ExternalKind::Func;
                    self.has_memory |= export.name == "memory" && export.kind == ExternalKind::Memory;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check(self) -> Result<(), InstallError> {
        if !self.starts {
            return Err(invalid(format!(
                "this is a core WebAssembly module that exports no function `{START}`, so it is neither a component nor \
                 a WASI program: build for wasm32-wasip2, or wrap it with `wasm-tools component new`"
            )));
        }
        if let Some(name) = self.foreign {
            return Err(invalid(format!(
                "the program imports {name}; all that it may import is `{PREVIEW1}`"
            )));
        }
        if !self.has_memory {
            return Err(invalid("the program exports no memory, where WASI would read and write"));
        }
        Ok(())
    }
}

/// A name as a message can bear it.
fn shown(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(80).collect()
}

#[derive(Debug, Default)]
struct Counts {
    depth: u64,
    modules: u64,
    components: u64,
    sections: u64,
    types: u64,
    imports: u64,
    exports: u64,
    functions: u64,
    items: u64,
    /// Memories of each module and component around this place, the innermost last.
    memories: Vec<u64>,
}

impl Counts {
    fn add(&mut self, payload: &Payload<'_>) -> Result<(), InstallError> {
        use Payload as P;
        bump(&mut self.sections, 1, "sections", SECTIONS_MAX)?;
        let items = |count: u32| u64::from(count);
        match payload {
            P::Version { encoding, .. } => {
                bump(&mut self.depth, 1, "nesting", DEPTH_MAX)?;
                self.memories.push(0);
                match encoding {
                    Encoding::Module => bump(&mut self.modules, 1, "core_modules", MODULES_MAX),
                    Encoding::Component => bump(&mut self.components, 1, "components", COMPONENTS_MAX),
                }
            }
            P::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                self.memories.pop();
                Ok(())
            }
            P::CodeSectionEntry(body) => {
                // Bodies are no sections: there may be as many as there are functions.
                self.sections -= 1;
                let bytes = body.range().len() as u64;
                bump(&mut 0, bytes, "function_bytes", FUNCTION_BYTES_MAX)
            }
            P::CustomSection(custom) => match custom.as_known() {
                KnownCustom::Name(names) => function_names(names),
                _ => Ok(()),
            },
            P::TypeSection(reader) => self.types(reader.count()),
            P::CoreTypeSection(reader) => self.types(reader.count()),
            P::ComponentTypeSection(reader) => self.types(reader.count()),
            P::ImportSection(reader) => {
                self.imports(reader.count())?;
                let imports = reader.clone().into_imports().map_while(Result::ok);
                self.memories(imports.filter(|import| matches!(import.ty, TypeRef::Memory(_))).count() as u64)
            }
            P::ComponentImportSection(reader) => self.imports(reader.count()),
            P::ExportSection(reader) => self.exports(reader.count()),
            P::ComponentExportSection(reader) => self.exports(reader.count()),
            P::FunctionSection(reader) => {
                bump(&mut self.functions, items(reader.count()), "functions", FUNCTIONS_MAX)
            }
            P::TableSection(reader) => self.items(reader.count()),
            P::MemorySection(reader) => {
                self.items(reader.count())?;
                self.memories(u64::from(reader.count()))
            }
            P::TagSection(reader) => self.items(reader.count()),
            P::GlobalSection(reader) => self.items(reader.count()),
            P::ElementSection(reader) => self.items(reader.count()),
            P::DataSection(reader) => self.items(reader.count()),
            P::InstanceSection(reader) => self.items(reader.count()),
            P::ComponentInstanceSection(reader) => self.items(reader.count()),
            P::ComponentAliasSection(reader) => self.items(reader.count()),
            P::ComponentCanonicalSection(reader) => self.items(reader.count()),
            _ => Ok(()),
        }
    }

    /// Adds to the memories of the module that is being read.
    fn memories(&mut self, more: u64) -> Result<(), InstallError> {
        let Some(memories) = self.memories.last_mut() else { return Ok(()) };
        *memories = memories.saturating_add(more);
        if *memories <= MODULE_MEMORIES_MAX {
            return Ok(());
        }
        Err(invalid(format!(
            "a core module has {memories} memories, and may have {MODULE_MEMORIES_MAX}; what needs several is composed of components \
             with a memory each"
        )))
    }

    fn types(&mut self, count: u32) -> Result<(), InstallError> {
        bump(&mut self.types, u64::from(count), "types", TYPES_MAX)
    }

    fn imports(&mut self, count: u32) -> Result<(), InstallError> {
        bump(&mut self.imports, u64::from(count), "imports", IMPORTS_MAX)
    }

    fn exports(&mut self, count: u32) -> Result<(), InstallError> {
        bump(&mut self.exports, u64::from(count), "exports", EXPORTS_MAX)
    }

    fn items(&mut self, count: u32) -> Result<(), InstallError> {
        bump(&mut self.items, u64::from(count), "items", ITEMS_MAX)
    }
}

/// Checks the names of functions as far as they can be read: who reads them later stops at the same place.
fn function_names(names: NameSectionReader<'_>) -> Result<(), InstallError> {
    for names in names.into_iter().map_while(Result::ok) {
        let Name::Function(names) = names else { continue };
        for naming in names {
            let Ok(naming) = naming else { return Ok(()) };
            bump(&mut 0, naming.name.len() as u64, "function_name_bytes", FUNCTION_NAME_BYTES_MAX)?;
        }
    }
    Ok(())
}

fn bump(count: &mut u64, more: u64, name: &str, limit: u64) -> Result<(), InstallError> {
    *count += more;
    if *count > limit {
        let fact = LimitFact::of_host(&format!("component_{name}"), limit, Some(*count));
        let refusal =
            InstallError::new(Code::CompileLimit, format!("the component goes over a limit: {fact}"));
        return Err(InstallError { limit: Some(fact), ..refusal });
    }
    Ok(())
}

pub(crate) fn malformed(error: &wasmparser::BinaryReaderError, bytes: &[u8]) -> InstallError {
    let (message, offset, len) = (error.message(), error.offset(), bytes.len());
    let section = section::at(bytes, offset).map(|section| format!(", {section}")).unwrap_or_default();
    if message.starts_with("unexpected end") || message.contains("out of bounds") {
        return invalid(format!("the component is truncated: {message} at byte {offset} of {len}{section}"));
    }
    invalid(format!("the component is malformed: {message} at byte {offset}{section}"))
}

/// A refusal that names no limit.
pub(crate) fn invalid(message: impl Into<String>) -> InstallError {
    InstallError::new(Code::ComponentInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_BYTES;

    const MANIFEST: &str = "[plugin]\nname = \"p\"\nversion = \"1\"\n[[kind]]\nname = \"k\"\n";

    fn section(text: &str) -> String {
        format!(
            "(@custom \"{}\" \"{}\")",
            manifest::SECTION,
            text.escape_default().to_string().replace("\\'", "'")
        )
    }

    fn component(body: &str) -> Vec<u8> {
        wat::parse_str(format!("(component {body})")).unwrap()
    }

    #[track_caller]
    fn refused(bytes: &[u8], code: Code, expected: &str) {
        let error = scan(bytes).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert_eq!(error.code, code);
    }

    #[test]
    fn a_manifest_is_found_in_the_component_and_in_its_modules() {
        let text = section(&MANIFEST.replace('\n', "\\0a"));
        let text = text.replace("\\\\0a", "\\0a").replace("\\\\\\\"", "\\\"");
        assert_eq!(scan(&component("")).unwrap(), Scanned::default());
        for body in [text.clone(), format!("(core module {text})"), format!("{text} (core module {text})")] {
            let manifest = scan(&component(&body)).unwrap().manifest.unwrap();
            assert_eq!(manifest.plugin.name.as_str(), "p");
        }
        let other = text.replace("\\\"p\\\"", "\\\"q\\\"");
        let two = component(&format!("{text} (core module {other})"));
        refused(&two, Code::ComponentInvalid, "two different `keiko:manifest` sections");
        refused(&component(&section("nonsense")), Code::ComponentInvalid, "section `keiko:manifest`");
    }

    #[test]
    fn what_is_no_component_is_named() {
        use Code::ComponentInvalid as Invalid;
        refused(b"", Invalid, "empty");
        let module = |body: &str| wat::parse_str(format!("(module {body})")).unwrap();
        refused(&module(""), Invalid, "core WebAssembly module that exports no function `_start`");
        refused(&module("(memory (export \"_start\") 1)"), Invalid, "no function `_start`");
        let start = "(func (export \"_start\"))";
        refused(&module(start), Invalid, "exports no memory");
        let foreign = format!("(import \"env\" \"gc\" (func)) (memory (export \"memory\") 1) {start}");
        refused(&module(&foreign), Invalid, "imports `gc` of `env`; all that it may import is");
        let program = format!(
            "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32))) (memory (export \"memory\") 1) {start}"
        );
        assert_eq!(
            scan(&module(&program)).unwrap(),
            Scanned { memory_bytes: PAGE_BYTES, ..Scanned::default() }
        );
        refused(b"\x7fELF\x02\x01\x01", Invalid, "compiled artifact");
        refused(b"(component)", Invalid, "text format");
        refused(b"#!/bin/sh", Invalid, "not WebAssembly");
        refused(b"\0asm\x63\0\0\0", Invalid, "unknown version");
        refused(b"\0as", Invalid, "truncated");
        let whole = component("(core module (func (export \"a long name\")))");
        for len in [9, 15, whole.len() - 1] {
            refused(&whole[..len], Invalid, "truncated");
        }
        refused(&whole[..whole.len() - 12], Invalid, ", in the export section of the core module at byte 10");
        let odd = b"\0asm\x0d\0\x01\0\x07\xff\xff\xff\xff\xff";
        refused(odd, Invalid, "malformed");
        refused(odd, Invalid, ", in the type section");
    }

    #[test]
    fn what_no_attempt_can_have_is_refused_before_it_is_compiled() {
        let instances = "(core instance (instantiate $m))".repeat(17);
        let error = scan(&component(&format!("(core module $m) {instances}"))).unwrap_err();
        assert_eq!(error.code, Code::QuotaExceeded);
        assert!(
            error.message.ends_with("17 exceeds the limit `core_instances` of 16, set by the host"),
            "{error}"
        );
        let program = format!(
            "(module (memory (export \"memory\") 1) {} (func (export \"_start\")))",
            "(table 1 funcref)".repeat(9)
        );
        refused(&wat::parse_str(program).unwrap(), Code::QuotaExceeded, "9 exceeds the limit `tables` of 8");
    }

    #[test]
    fn a_module_has_one_memory_and_a_component_several() {
        let imported = "(import \"m\" \"m\" (memory 1))";
        for accepted in ["(memory 1)", imported, "", "(import \"m\" \"f\" (func))"] {
            let module = format!("(core module {accepted})");
            let several = format!("{module} {module} (component {module}) {module}");
            assert!(scan(&component(&several)).is_ok(), "{accepted}");
        }
        for more in ["(memory 1) (memory 1)", &format!("{imported} (memory 1)"), &imported.repeat(2)] {
            let module = format!("(core module {more})");
            refused(&component(&module), Code::ComponentInvalid, "a core module has 2 memories");
            refused(&component(&format!("(component {module})")), Code::ComponentInvalid, "2 memories");
        }
        let program = "(module (memory (export \"memory\") 1) (memory 1) (func (export \"_start\")))";
        refused(&wat::parse_str(program).unwrap(), Code::ComponentInvalid, "a core module has 2 memories");
    }

    #[test]
    fn floods_stop_at_their_limits() {
        let nested = |depth: u64| {
            let depth = depth as usize - 1;
            component(&format!("{}{}", "(component ".repeat(depth), ")".repeat(depth)))
        };
        assert!(scan(&nested(DEPTH_MAX)).is_ok());
        refused(&nested(DEPTH_MAX + 1), Code::CompileLimit, "component_nesting");

        let modules = |count: u64| component(&"(core module)".repeat(count as usize));
        assert!(scan(&modules(MODULES_MAX)).is_ok());
        refused(&modules(MODULES_MAX + 1), Code::CompileLimit, "component_core_modules");

        let types = |count: u64| component(&"(type (list u8))".repeat(count as usize));
        assert!(scan(&types(TYPES_MAX)).is_ok());
        refused(&types(TYPES_MAX + 1), Code::CompileLimit, "component_types");

        let functions = |count: u64| component(&format!("(core module {})", "(func)".repeat(count as usize)));
        assert!(scan(&functions(FUNCTIONS_MAX)).is_ok());
        refused(&functions(FUNCTIONS_MAX + 1), Code::CompileLimit, "component_functions");

        // Two bytes beside the instructions: the empty list of locals and the end.
        let body =
            |bytes: u64| component(&format!("(core module (func {}))", "nop ".repeat(bytes as usize - 2)));
        assert!(scan(&body(FUNCTION_BYTES_MAX)).is_ok());
        refused(&body(FUNCTION_BYTES_MAX + 1), Code::CompileLimit, "component_function_bytes");

        let name =
            |bytes: u64| component(&format!("(core module (func) (func ${}))", "a".repeat(bytes as usize)));
        assert!(scan(&name(FUNCTION_NAME_BYTES_MAX)).is_ok());
        refused(&name(FUNCTION_NAME_BYTES_MAX + 1), Code::CompileLimit, "component_function_name_bytes");
    }
}
