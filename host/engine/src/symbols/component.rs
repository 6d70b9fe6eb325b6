//! From places in the bytes of a component to what the debug information of its core modules says of them.

use std::collections::HashMap;
use std::ops::Range;

use gimli::SectionId;
use wasmparser::{Encoding, Parser, Payload};

use super::Symbol;
use super::dwarf::{Probe, Reading, Trouble, Work};

/// Bytes of debug information of one core module; with more, its functions have names and no lines.
pub(super) const DEBUG_BYTES_MAX: usize = 16 << 20;
/// What is read of it.
const SECTIONS: &[SectionId] = &[
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// What one reading of a component found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Of the places that something is known of: functions, innermost first.
    pub(super) symbols: HashMap<u64, Vec<Symbol>>,
    /// Whether another reading, of other places, may find something.
    pub(super) has_more: bool,
}

/// A core module inside a component.
#[derive(Debug, Default)]
struct Module<'a> {
    /// Contents of the code section, in bytes of the component.
    code: Range<u64>,
    sections: Vec<(SectionId, &'a [u8])>,
}

/// Looks up `places`, each given once and counted in bytes of the component, as wasmtime counts them.
pub(super) fn look_up(component: &[u8], places: &[u64], work: &Work) -> Found {
    let mut found = Found::default();
    // A program was made a component after it was uploaded: its places are none of its own bytes.
    if !Parser::is_component(component) {
        return found;
    }
    // The bytes were fetched and are gone through once, which costs far less than to understand them.
    let mut done = work.charge(component.len() / 16);
    for module in modules(component) {
        if !module.is_readable() {
            continue;
        }
        found.has_more = true;
        let places: Vec<u64> = places.iter().copied().filter(|place| module.code.contains(place)).collect();
        if done.is_ok() && !places.is_empty() {
            done = look_up_in(&module, &places, work, &mut found);
        }
    }
    found.has_more &= done.is_ok();
    found
}

fn look_up_in(module: &Module<'_>, places: &[u64], work: &Work, found: &mut Found) -> Result<(), Trouble> {
    let mut probes: Vec<Probe<'_>> =
        places.iter().map(|place| Probe::new(place - module.code.start)).collect();
    let done = Reading::new(|id| module.section(id), work).and_then(|reading| reading.look_up(&mut probes));
    let symbols = places.iter().zip(probes).map(|(place, probe)| (*place, probe.symbols));
    found.symbols.extend(symbols.filter(|(_, symbols)| !symbols.is_empty()));
    done
}

impl<'a> Module<'a> {
    fn section(&self, id: SectionId) -> &'a [u8] {
        // The last of a name counts, as it does for wasmtime.
        self.sections.iter().rev().find(|(known, _)| *known == id).map_or(&[], |(_, bytes)| bytes)
    }

    /// Whether there is debug information, and not too much of it.
    fn is_readable(&self) -> bool {
        let bytes: usize = self.sections.iter().map(|(_, bytes)| bytes.len()).sum();
        !self.section(SectionId::DebugInfo).is_empty() && bytes <= DEBUG_BYTES_MAX
    }
}

/// The core modules of a component, up to where it is damaged.
fn modules(component: &[u8]) -> Vec<Module<'_>> {
    let mut modules: Vec<Module<'_>> = Vec::new();
    // Whether what is being read is a core module: the last one found.
    let mut nested = Vec::new();
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        match (payload, modules.last_mut()) {
            (Payload::Version { encoding: Encoding::Module, .. }, _) => {
                nested.push(true);
                modules.push(Module::default());
            }
            (Payload::Version { .. }, _) => nested.push(false),
            (Payload::End(_), _) => drop(nested.pop()),
            (Payload::CodeSectionStart { range, .. }, Some(module)) => {
                module.code = range.start as u64..range.end as u64;
            }
            (Payload::CustomSection(custom), Some(module)) if nested.last() == Some(&true) => {
                let id = SECTIONS.iter().find(|id| id.name() == custom.name());
                module.sections.extend(id.map(|id| (*id, custom.data())));
            }
            _ => {}
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 1 << 24;

    fn section(name: &str, bytes: &[u8]) -> String {
        let text: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
        format!("(@custom \"{name}\" \"{text}\")")
    }

    /// The debug information of a module: one unit from 1 to 1,000, one function of that name.
    fn debug_info(function: &str) -> Vec<(&'static str, Vec<u8>)> {
        let table = [1, 0x11, 1, 0x11, 1, 0x12, 6, 0, 0, 2, 0x2e, 0, 3, 8, 0x11, 1, 0x12, 6, 0, 0, 0];
        let from = [1, 0, 0, 0, 0xe8, 3, 0, 0];
        let entries = [&[4, 0, 0, 0, 0, 0, 4, 1][..], &from, &[2], function.as_bytes(), &[0], &from].concat();
        let info = [&(entries.len() as u32).to_le_bytes()[..], &entries].concat();
        vec![(".debug_abbrev", table.to_vec()), (".debug_info", info)]
    }

    fn described(function: &str) -> String {
        debug_info(function).iter().map(|(name, bytes)| section(name, bytes)).collect()
    }

    fn component(body: &str) -> Vec<u8> {
        wat::parse_str(format!("(component {body})")).unwrap()
    }

    /// Where `unreachable` stands, which is nowhere else.
    fn places(component: &[u8]) -> Vec<u64> {
        let body = [0x05, 0x00, 0x41, 0x2a, 0x00, 0x0b];
        let at = component.windows(body.len()).enumerate().filter(|(_, bytes)| *bytes == body);
        at.map(|(at, _)| at as u64 + 4).collect()
    }

    const CODE: &str = "(func i32.const 42 unreachable)";

    fn functions(component: &[u8], places: &[u64]) -> (Vec<Option<String>>, bool) {
        let mut found = look_up(component, places, &Work::new(STEPS));
        let function = |place: &u64| found.symbols.remove(place)?.remove(0).function;
        let functions = places.iter().map(function).collect();
        (functions, found.has_more)
    }

    #[test]
    fn each_place_is_looked_up_in_the_module_that_it_is_in() {
        let (a, b) = (described("a"), described("b"));
        let component = component(&format!(
            "(core module {CODE} {a}) (core module {CODE}) {} (component (core module {CODE} {b})) {}",
            described("outside"),
            described("outside")
        ));
        let places = places(&component);
        assert_eq!(places.len(), 3);
        let named = |name: &str| Some(name.to_owned());
        let expected = vec![named("a"), None, named("b")];
        assert_eq!(functions(&component, &places), (expected, true));
        assert_eq!(functions(&component, &[0, 1 << 40]), (vec![None, None], true));
        assert_eq!(functions(&component[..places[1] as usize], &places).0, vec![named("a"), None, None]);
        assert_eq!(functions(b"nonsense", &places), (vec![None; 3], false));
    }

    #[test]
    fn without_debug_information_nothing_is_worth_another_look() {
        let component = component(&format!("(core module {CODE}) {}", described("outside")));
        assert_eq!(functions(&component, &places(&component)), (vec![None], false));
    }

    #[test]
    fn more_debug_information_than_is_read_is_left_alone() {
        let rest: usize = debug_info("a").iter().map(|(_, bytes)| bytes.len()).sum();
        let with = |name: &str, bytes: usize| {
            let filled = format!("(@custom \"{name}\" \"{}\")", "x".repeat(bytes));
            let component = component(&format!("(core module {CODE} {} {filled})", described("a")));
            functions(&component, &places(&component))
        };
        let found = (vec![Some("a".to_owned())], true);
        assert_eq!(with(".debug_str", DEBUG_BYTES_MAX - rest), found);
        assert_eq!(with(".debug_str", DEBUG_BYTES_MAX - rest + 1), (vec![None], false));
        // What nobody reads counts for nothing.
        assert_eq!(with(".debug_loc", DEBUG_BYTES_MAX), found);
    }

    #[test]
    fn a_reading_that_is_given_up_is_the_last() {
        let component = component(&format!("(core module {CODE} {})", described("a")));
        let found = look_up(&component, &places(&component), &Work::new(component.len() as u64 / 16));
        assert_eq!(found, Found::default());
    }
}
