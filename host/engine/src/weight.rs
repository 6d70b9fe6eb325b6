//! What a component makes at its start, counted from its sections without compiling: core instances with their memories and tables.
//!
//! Instantiations are followed through components that are nested in each other, so that what makes twice what makes twice is counted as
//! often as the compiler would have to write it down. It is a lower bound: of a module that is given to a component as an argument, and of what
//! the compiler adds itself, nothing is counted. What is beyond a limit here is beyond it in every attempt; the rest is
//! [`crate::install::check_resources`]'s to say.

use keiko_core::limit::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use keiko_core::port::InstallError;
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef,
    Encoding, Instance, Payload,
};

use crate::PAGE_BYTES;
use crate::install::within;

/// What one instantiation makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    instances: u32,
    memories: u32,
    tables: u32,
    table_elements: u32,
    memory_bytes: u64,
}

impl Weight {
    fn add(&mut self, other: Weight) {
        let Weight { instances, memories, tables, table_elements, memory_bytes } = other;
        self.instances = self.instances.saturating_add(instances);
        self.memories = self.memories.saturating_add(memories);
        self.tables = self.tables.saturating_add(tables);
        self.table_elements = self.table_elements.saturating_add(table_elements);
        self.memory_bytes = self.memory_bytes.saturating_add(memory_bytes);
    }

    fn check(&self) -> Result<(), InstallError> {
        within("core_instances", u64::from(CORE_INSTANCES_MAX), u64::from(self.instances))?;
        within("memories", u64::from(MEMORIES_MAX), u64::from(self.memories))?;
        within("tables", u64::from(TABLES_MAX), u64::from(self.tables))?;
        within("table_elements", TABLE_ELEMENTS_MAX as u64, u64::from(self.table_elements))
    }
}

/// A module or component that is being read.
struct Frame {
    is_module: bool,
    /// What an instance of it makes, as far as it was read.
    own: Weight,
    /// Its modules and its components, by their numbers; what is not known weighs nothing.
    modules: Vec<Weight>,
    components: Vec<Weight>,
}

/// Walks over an upload.
#[derive(Default)]
pub(crate) struct Scales {
    /// Around this place, the innermost last.
    frames: Vec<Frame>,
    /// Bytes of all memories at the start, once everything was read.
    pub(crate) memory_bytes: u64,
}

impl Scales {
    /// Takes in what comes next. Sections that cannot be read count as far as they can: the compiler refuses them.
    pub(crate) fn add(&mut self, payload: &Payload<'_>) -> Result<(), InstallError> {
        match payload {
            Payload::Version { encoding, .. } => {
                let is_module = *encoding == Encoding::Module;
                let own = Weight { instances: u32::from(is_module), ..Weight::default() };
                self.frames.push(Frame { is_module, own, modules: Vec::new(), components: Vec::new() });
                Ok(())
            }
            Payload::End(_) => self.end(),
            payload => {
                self.section(payload);
                Ok(())
            }
        }
    }

    fn end(&mut self) -> Result<(), InstallError> {
        let Some(Frame { is_module, own, .. }) = self.frames.pop() else { return Ok(()) };
        match self.frames.last_mut() {
            Some(outer) if is_module => outer.modules.push(own),
            Some(outer) => outer.components.push(own),
            None => {
                self.memory_bytes = own.memory_bytes;
                own.check()?;
            }
        }
        Ok(())
    }

    fn section(&mut self, payload: &Payload<'_>) {
        let Some(frame) = self.frames.last_mut() else { return };
        match payload {
            Payload::MemorySection(memories) => {
                frame.own.memories = frame.own.memories.saturating_add(memories.count());
                for memory in memories.clone().into_iter().map_while(Result::ok) {
                    let memory_bytes = memory.initial.saturating_mul(PAGE_BYTES);
                    frame.own.add(Weight { memory_bytes, ..Weight::default() });
                }
            }
            Payload::TableSection(tables) => {
                frame.own.tables = frame.own.tables.saturating_add(tables.count());
                for table in tables.clone().into_iter().map_while(Result::ok) {
                    let table_elements = u32::try_from(table.ty.initial).unwrap_or(u32::MAX);
                    frame.own.add(Weight { table_elements, ..Weight::default() });
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone().into_iter().map_while(Result::ok) {
                    match import.ty {
                        ComponentTypeRef::Module(_) => frame.modules.push(Weight::default()),
                        ComponentTypeRef::Component(_) => frame.components.push(Weight::default()),
                        _ => {}
                    }
                }
            }
            Payload::InstanceSection(instances) => {
                for instance in instances.clone().into_iter().map_while(Result::ok) {
                    if let Instance::Instantiate { module_index, .. } = instance {
                        frame.own.add(numbered(&frame.modules, module_index));
                    }
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.clone().into_iter().map_while(Result::ok) {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance {
                        frame.own.add(numbered(&frame.components, component_index));
                    }
                }
            }
            // An export has a number of its own.
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone().into_iter().map_while(Result::ok) {
                    frame.name(export.kind, |frame| match export.kind {
                        ComponentExternalKind::Module => numbered(&frame.modules, export.index),
                        _ => numbered(&frame.components, export.index),
                    });
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone().into_iter().map_while(Result::ok) {
                    self.alias(&alias);
                }
            }
            _ => {}
        }
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) {
        match *alias {
            ComponentAlias::InstanceExport { kind, .. } => {
                let Some(frame) = self.frames.last_mut() else { return };
                frame.name(kind, |_| Weight::default());
            }
            ComponentAlias::Outer { kind, count, index } => {
                let outer = self.frames.iter().rev().nth(count as usize);
                let weight = |all: fn(&Frame) -> &Vec<Weight>| {
                    outer.map_or(Weight::default(), |frame| numbered(all(frame), index))
                };
                let (kind, weight) = match kind {
                    ComponentOuterAliasKind::CoreModule => {
                        (ComponentExternalKind::Module, weight(|frame| &frame.modules))
                    }
                    ComponentOuterAliasKind::Component => {
                        (ComponentExternalKind::Component, weight(|frame| &frame.components))
                    }
                    _ => return,
                };
                let Some(frame) = self.frames.last_mut() else { return };
                frame.name(kind, |_| weight);
            }
            ComponentAlias::CoreInstanceExport { .. } => {}
        }
    }
}

impl Frame {
    /// Gives the next number to a module or component; other things have numbers of their own.
    fn name(&mut self, kind: ComponentExternalKind, weight: impl FnOnce(&Frame) -> Weight) {
        let weight = match kind {
            ComponentExternalKind::Module | ComponentExternalKind::Component => weight(self),
            _ => return,
        };
        let all =
            if kind == ComponentExternalKind::Module { &mut self.modules } else { &mut self.components };
        all.push(weight);
    }
}

fn numbered(all: &[Weight], number: u32) -> Weight {
    all.get(number as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keiko_core::code::Code;
    use wasmparser::Parser;

    use super::*;

    fn weigh(body: &str) -> Result<(), InstallError> {
        let bytes = wat::parse_str(format!("(component {body})")).unwrap();
        let mut scales = Scales::default();
        Parser::new(0).parse_all(&bytes).try_for_each(|payload| scales.add(&payload.unwrap()))
    }

    #[track_caller]
    fn refused(body: &str, name: &str, limit: u64, asked: u64) {
        let error = weigh(body).unwrap_err();
        let fact = error.limit.clone().expect("a limit");
        assert_eq!((fact.name.as_str(), fact.limit, fact.asked), (name, limit, Some(asked)));
        assert!(error.code == Code::QuotaExceeded && error.message.contains(name), "{error}");
    }

    /// Instances of a module.
    fn instances(count: u32, module: &str) -> String {
        format!("(core module $m {module}) {}", "(core instance (instantiate $m))".repeat(count as usize))
    }

    #[test]
    fn each_limit_is_kept_to_the_last_one() {
        let elements = TABLE_ELEMENTS_MAX as u32;
        for (most, module, name) in [
            (CORE_INSTANCES_MAX, "", "core_instances"),
            (MEMORIES_MAX, "(memory 1)", "memories"),
            (TABLES_MAX, "(table 1 funcref)", "tables"),
        ] {
            assert_eq!(weigh(&instances(most, module)), Ok(()), "{name}");
            refused(&instances(most + 1, module), name, u64::from(most), u64::from(most) + 1);
        }
        let table = |elements: u32| format!("(table {elements} funcref) (table 1 funcref)");
        assert_eq!(weigh(&instances(1, &table(elements - 1))), Ok(()));
        let (limit, asked) = (u64::from(elements), u64::from(elements) + 1);
        refused(&instances(1, &table(elements)), "table_elements", limit, asked);
    }

    #[test]
    fn what_is_declared_and_not_instantiated_weighs_nothing() {
        let module = "(core module (memory 1) (table 1 funcref))".repeat(40);
        assert_eq!(weigh(&format!("{module} (component {module})")), Ok(()));
        // Nor does an instance that only gathers exports.
        assert_eq!(weigh(&"(core instance) (instance)".repeat(40)), Ok(()));
    }

    #[test]
    fn what_nested_components_make_is_counted_as_often_as_they_are_made() {
        let twice = |part: &str| format!("(instance (instantiate {part})) (instance (instantiate {part}))");
        let doubled = |levels: usize| {
            let inner = format!("(component $c0 {})", instances(1, ""));
            let outer = |level: usize| {
                let before = level - 1;
                format!("(component $c{level} (alias outer 1 $c{before} (component $p)) {})", twice("$p"))
            };
            let all: String = (1..=levels).map(outer).collect();
            format!("{inner} {all} (instance (instantiate $c{levels}))")
        };
        assert_eq!(weigh(&doubled(4)), Ok(()));
        refused(&doubled(5), "core_instances", 16, 32);
        refused(&doubled(60), "core_instances", 16, u64::from(u32::MAX));
    }

    #[test]
    fn modules_and_components_keep_their_numbers_through_imports_exports_and_aliases() {
        let module = "(core module $m (memory 1))";
        let more = "(core instance (instantiate $x))".repeat(5);
        let aliased = format!(
            "{module} (component $c (alias outer 1 $m (core module $x)) {more}) (instance (instantiate $c))"
        );
        refused(&aliased, "memories", 4, 5);
        let exported = format!(r#"{module} (export $x "x" (core module $m)) {more}"#);
        refused(&exported, "memories", 4, 5);
        // What is imported is not known, and takes a number.
        let imported = format!(r#"(import "i" (core module $i)) {module} {}"#, more.replace("$x", "$m"));
        refused(&imported, "memories", 4, 5);
        assert_eq!(weigh(&imported.replace("instantiate $m", "instantiate $i")), Ok(()));
    }
}
