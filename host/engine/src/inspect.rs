//! What a component or a program is, read from its bytes alone: nothing is compiled and nothing runs.
//!
//! It says what a host would refuse as far as that can be told without the compiler: a type that does not fit, or code that
//! does not validate, is told at the install.

use std::collections::BTreeSet;

use keiko_core::id::Digest;
use keiko_core::manifest::Manifest;
use keiko_core::policy::Capability;
use keiko_core::port::{InstallError, Stage};
use keiko_core::profile::Profile;
use wasmparser::{ComponentExternalKind, Encoding, KnownCustom, Parser, Payload};

use crate::adapt::PREVIEW1;
use crate::digest;
use crate::export::{batch, task};
use crate::install::{PROGRAM, check_import, track};
use crate::scan::{self, invalid};

/// What an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// A plugin of `keiko:plugin`.
    Task,
    /// A plugin of `keiko:plugin` that works batches only.
    Batch,
    /// A plugin of `keiko:plugin` that does both.
    TaskAndBatch,
    /// A component that is a WASI program.
    Program,
    /// A core module that is a WASI preview-1 program.
    Preview1Program,
    /// Nothing that a host runs.
    Unknown,
}

impl World {
    /// The name that people and programs see.
    pub const fn as_str(self) -> &'static str {
        match self {
            World::Task => "keiko:plugin/task-plugin",
            World::Batch => "keiko:plugin/batch-plugin",
            World::TaskAndBatch => "keiko:plugin/task-plugin, keiko:plugin/batch-plugin",
            World::Program => "wasi:cli/command",
            World::Preview1Program => "wasi_snapshot_preview1 command",
            World::Unknown => "unknown",
        }
    }

    /// Whether a host runs it as a WASI program.
    pub const fn is_program(self) -> bool {
        matches!(self, World::Program | World::Preview1Program)
    }

    /// Whether it runs tasks.
    pub const fn runs_tasks(self) -> bool {
        matches!(self, World::Task | World::TaskAndBatch) || self.is_program()
    }

    /// Whether it works batches.
    pub const fn works_batches(self) -> bool {
        matches!(self, World::Batch | World::TaskAndBatch)
    }
}

/// What an import needs before its calls are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Every guest may.
    Nothing,
    /// The tenant's grant.
    Grant(Capability),
    /// It is there, and every call is denied: folders and sockets.
    Denied,
    /// No host has it.
    Missing,
}

/// Something that is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// By the component's own name.
    pub name: String,
    /// What it needs.
    pub need: Need,
}

/// A tool that made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Producer {
    /// `language`, `processed-by` or `sdk`.
    pub role: String,
    /// Its name.
    pub name: String,
    /// Its version, as it writes it.
    pub version: String,
}

/// How large what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Everything.
    pub bytes: u64,
    /// Code of all core modules.
    pub code_bytes: u64,
    /// Data of all core modules.
    pub data_bytes: u64,
    /// Custom sections: names, debug information, manifests.
    pub custom_bytes: u64,
    /// Core modules.
    pub core_modules: u64,
    /// Functions of all core modules.
    pub functions: u64,
    /// Linear memories of all instances at the start, all together.
    pub memory_bytes_minimum: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// What it is.
    pub world: World,
    /// How large.
    pub sizes: Sizes,
    /// What it imports, in order.
    pub imports: Vec<Imported>,
    /// What it exports, in order.
    pub exports: Vec<String>,
    /// The engine profile that it needs.
    pub profile: Profile,
    /// Why it needs another one than the strict one.
    pub concurrency: Option<&'static str>,
    /// What it says of itself.
    pub manifest: Option<Manifest>,
    /// Which tools made it.
    pub producers: Vec<Producer>,
    /// Why every host would refuse it, as far as it can be told.
    pub refusals: Vec<InstallError>,
}

/// Reads an upload. An error is what keeps even that from being done.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, InstallError> {
    let scanned = scan::scan(bytes).map_err(|error| error.at(Stage::Scan))?;
    let mut found = Found::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| scan::malformed(&error, bytes).at(Stage::Scan))?;
        found.add(&payload);
    }
    let world = found.world();
    let imports: Vec<Imported> = found.imports.iter().map(|name| imported(name)).collect();
    let mut refusals: Vec<InstallError> = found
        .imports
        .iter()
        .filter(|name| *name != PREVIEW1)
        .filter_map(|name| check_import(name).err())
        .collect();
    if world == World::Unknown {
        refusals.push(invalid(format!(
            "the component exports neither `{}` nor `{}` nor `{PROGRAM}`",
            task::NAME,
            batch::NAME
        )));
    }
    Ok(Inspection {
        digest: digest(bytes),
        world,
        sizes: Sizes { bytes: bytes.len() as u64, memory_bytes_minimum: scanned.memory_bytes, ..found.sizes },
        imports,
        exports: found.exports,
        profile: scanned.profile(),
        concurrency: scanned.concurrency,
        manifest: scanned.manifest,
        producers: found.producers.into_iter().collect(),
        refusals: refusals.into_iter().map(|error| error.at(Stage::Instantiate)).collect(),
    })
}

fn imported(name: &str) -> Imported {
    let interface = name.split('@').next().unwrap_or(name);
    let noun = interface.strip_prefix("keiko:").and_then(|rest| rest.split('/').next());
    let need = if name == PREVIEW1 {
        Need::Nothing
    } else if check_import(name).is_err() {
        Need::Missing
    } else if interface.starts_with("wasi:filesystem/") || interface.starts_with("wasi:sockets/") {
        Need::Denied
    } else {
        noun.and_then(|noun| noun.parse().ok()).map_or(Need::Nothing, Need::Grant)
    };
    Imported { name: name.to_owned(), need }
}

#[derive(Default)]
struct Found {
    /// How deep the walk is: 1 in the outermost module or component.
    depth: usize,
    is_module: bool,
    sizes: Sizes,
    imports: Vec<String>,
    exports: Vec<String>,
    producers: BTreeSet<Producer>,
}

impl Found {
    fn add(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::Version { encoding, .. } => {
                self.depth += 1;
                if *encoding == Encoding::Module {
                    self.is_module |= self.depth == 1;
                    self.sizes.core_modules += 1;
                }
            }
            Payload::End(_) => self.depth -= 1,
            Payload::CodeSectionStart { count, size, .. } => {
                self.sizes.functions += u64::from(*count);
                self.sizes.code_bytes += u64::from(*size);
            }
            Payload::DataSection(data) => self.sizes.data_bytes += data.range().len() as u64,
            Payload::CustomSection(custom) => {
                self.sizes.custom_bytes += custom.data().len() as u64;
                if let KnownCustom::Producers(fields) = custom.as_known() {
                    self.producers(fields);
                }
            }
            _ if self.depth == 1 => self.outermost(payload),
            _ => {}
        }
    }

    fn outermost(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::ComponentImportSection(imports) => {
                let imports = imports.clone().into_iter().map_while(Result::ok);
                self.imports.extend(imports.map(|import| import.name.name.to_owned()));
            }
            Payload::ComponentExportSection(exports) => {
                let exports = exports.clone().into_iter().map_while(Result::ok);
                // Types that are exported serve the others.
                let exports = exports.filter(|export| export.kind != ComponentExternalKind::Type);
                self.exports.extend(exports.map(|export| export.name.name.to_owned()));
            }
            // Of a program the scan let nothing through but this.
            Payload::ImportSection(imports) if imports.count() > 0 => self.imports.push(PREVIEW1.to_owned()),
            Payload::ExportSection(exports) => {
                let exports = exports.clone().into_iter().map_while(Result::ok);
                self.exports.extend(exports.map(|export| export.name.to_owned()));
            }
            _ => {}
        }
    }

    fn producers(&mut self, fields: wasmparser::ProducersSectionReader<'_>) {
        for field in fields.into_iter().map_while(Result::ok) {
            for value in field.values.into_iter().map_while(Result::ok) {
                let owned = str::to_owned;
                let (role, name, version) = (owned(field.name), owned(value.name), owned(value.version));
                self.producers.insert(Producer { role, name, version });
            }
        }
    }

    fn world(&self) -> World {
        let exports = |interface: &str, wanted: &str| {
            self.exports.iter().any(|name| {
                let (found, version) = name.split_once('@').unwrap_or((name, ""));
                found == interface && track(version) == wanted
            })
        };
        let ours = |name: &'static str| {
            let (interface, version) = name.split_once('@').unwrap_or((name, ""));
            exports(interface, track(version))
        };
        match () {
            () if self.is_module => World::Preview1Program,
            () if ours(task::NAME) && ours(batch::NAME) => World::TaskAndBatch,
            () if ours(task::NAME) => World::Task,
            () if ours(batch::NAME) => World::Batch,
            () if exports(PROGRAM, "0.2") => World::Program,
            () => World::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_BYTES;
    use crate::import::INTERFACES;

    fn found(text: &str) -> Inspection {
        inspect(&wat::parse_str(text).unwrap()).unwrap()
    }

    #[test]
    fn every_interface_of_ours_but_the_shapes_needs_a_grant() {
        for (interface, version) in INTERFACES {
            let need = imported(&format!("{interface}@{version}")).need;
            let expected = match *interface {
                "keiko:plugin/types" | crate::adapt::EXIT => need == Need::Nothing,
                name if name.starts_with("keiko:") => matches!(need, Need::Grant(_)),
                name if name.starts_with("wasi:filesystem") || name.starts_with("wasi:sockets") => {
                    need == Need::Denied
                }
                _ => need == Need::Nothing,
            };
            assert!(expected, "{interface}: {need:?}");
        }
        assert_eq!(imported("acme:bank/account@1.0.0").need, Need::Missing);
    }

    #[test]
    fn a_program_is_told_with_its_sizes_and_its_tools() {
        let program = found(
            r#"(module
                (@producers (language "C11" "") (processed-by "clang" "19.1.7"))
                (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
                (memory (export "memory") 3) (data (i32.const 0) "abc")
                (func (export "_start") nop))"#,
        );
        assert_eq!((program.world, program.refusals.len()), (World::Preview1Program, 0));
        let sizes = program.sizes;
        assert_eq!((sizes.core_modules, sizes.functions, sizes.memory_bytes_minimum), (1, 1, 3 * PAGE_BYTES));
        assert!(sizes.code_bytes > 0 && sizes.data_bytes > 3 && sizes.custom_bytes > 0 && sizes.bytes > 100);
        assert_eq!(program.imports, [Imported { name: PREVIEW1.to_owned(), need: Need::Nothing }]);
        assert_eq!(program.exports, ["memory", "_start"]);
        let producer = |role: &str, name: &str, version: &str| Producer {
            role: role.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
        };
        assert_eq!(
            program.producers,
            [producer("language", "C11", ""), producer("processed-by", "clang", "19.1.7")]
        );
    }

    #[test]
    fn what_no_host_has_is_told_before_the_install() {
        let component = found(
            r#"(component
                (import "acme:bank/account@1.0.0" (instance))
                (import "keiko:tasks/tasks@0.1.0" (instance))
                (import "wasi:sockets/tcp@0.2.0" (instance))
                (component (import "inner" (func)))
                (core module $one (memory 1)) (core module $two (memory 2)) (core module (memory 4))
                (core instance (instantiate $one)) (core instance (instantiate $two)))"#,
        );
        let needs: Vec<Need> = component.imports.iter().map(|import| import.need).collect();
        assert_eq!(needs, [Need::Missing, Need::Grant(Capability::Tasks), Need::Denied]);
        assert_eq!(component.sizes.memory_bytes_minimum, 3 * PAGE_BYTES);
        let refusals: Vec<&str> = component.refusals.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(refusals.len(), 2, "{refusals:?}");
        assert!(refusals[0].contains("acme:bank/account@1.0.0") && refusals[1].contains("exports neither"));
        assert_eq!((component.profile, component.concurrency), (Profile::Strict, None));
        assert_eq!(inspect(b"no wasm").unwrap_err().stage, Some(Stage::Scan));
    }

    #[test]
    fn what_runs_tasks_and_works_batches_is_told_as_both() {
        let check = |names: &[&str], expected: World, of: (bool, bool, bool)| {
            let exports: String =
                names.iter().map(|name| format!(r#"(export "{name}" (instance $i))"#)).collect();
            let world = found(&format!("(component (instance $i) {exports})")).world;
            assert_eq!(world, expected, "{names:?}");
            assert_eq!((world.is_program(), world.runs_tasks(), world.works_batches()), of, "{names:?}");
        };
        check(&[task::NAME], World::Task, (false, true, false));
        check(&[batch::NAME], World::Batch, (false, false, true));
        check(&[task::NAME, batch::NAME], World::TaskAndBatch, (false, true, true));
        check(&[batch::NAME, "wasi:cli/run@0.2.0"], World::Batch, (false, false, true));
        check(&["wasi:cli/run@0.2.0"], World::Program, (true, true, false));
        check(&["acme:bank/account"], World::Unknown, (false, false, false));
    }

    #[test]
    fn the_profile_that_a_component_needs_is_told_with_its_reason() {
        let component = found("(component (component (core func (canon waitable-set.new))))");
        assert_eq!(component.profile, Profile::Concurrent);
        assert_eq!(component.concurrency, Some("it has sets of waitables"));
    }
}
