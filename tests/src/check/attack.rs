//! Hostile guests: what each tries and how it must end.
//!
//! The guests are WebAssembly texts under `tests/fixtures/hostile`; this is the table of expectations. In a text,
//! `@3{\00}` stands for `\00\00\00`, so that what is long only by repetition can be read. An attack ends once, with the code of the limit or rule that it met, whatever else it hoped for.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::tree;

/// Where a fixture's text goes in `shell.wat`.
const PLACE: &str = ";;@attack";

/// What a fixture says whose function is async.
const ASYNC: &str = ";;@async";
/// Both places of `shell.wat` that it changes, and how.
const OF_ASYNC: &[(&str, &str)] = &[
    ("(func $run (param", "(func $run async (param"),
    (
        r#"(canon lift (core func $instance "run")"#,
        r#"(canon lift (core func $instance "run")
      async (callback (core func $instance "callback"))"#,
    ),
];

/// How an attack must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is not installed, with this code.
    Refused(&'static str),
    /// Its task fails with this code.
    Failed(&'static str),
    /// Its task completes: it harmed nobody but itself.
    Completed,
}

/// One attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// The fixture, without `.wat`.
    pub name: &'static str,
    /// MiB of memory it asks for; 0 leaves the default.
    pub memory_mib: u64,
    /// Whether it gets fuel without end and one second of wall clock, so that only the deadline can end it.
    pub deadline_only: bool,
    /// How it must end.
    pub end: End,
}

const fn attack(name: &'static str, end: End) -> Attack {
    Attack { name, memory_mib: 0, deadline_only: false, end }
}

const fn until_deadline(name: &'static str) -> Attack {
    Attack { name, memory_mib: 0, deadline_only: true, end: End::Failed("deadline_exceeded") }
}

/// Every attack by a guest.
pub const ATTACKS: &[Attack] = &[
    // Processor and time.
    attack("infinite-loop", End::Failed("fuel_exhausted")),
    until_deadline("infinite-loop"),
    attack("loop-in-start", End::Refused("quota_exceeded")),
    attack("trap-in-start", End::Refused("component_invalid")),
    until_deadline("bulk-fill"),
    until_deadline("sleep-for-ever"),
    until_deadline("realloc-for-ever"),
    attack("realloc-for-ever", End::Failed("fuel_exhausted")),
    attack("hostcall-flood", End::Failed("hostcall_budget")),
    attack("child-flood", End::Failed("hostcall_budget")),
    attack("log-flood", End::Failed("fuel_exhausted")),
    // Memory, tables, stack and handles.
    attack("memory-bomb", End::Failed("memory_exceeded")),
    attack("memory-gulp", End::Failed("memory_exceeded")),
    attack("memory-minimum", End::Refused("quota_exceeded")),
    attack("many-memories", End::Failed("memory_exceeded")),
    attack("too-many-memories", End::Refused("quota_exceeded")),
    attack("too-many-instances", End::Refused("quota_exceeded")),
    attack("table-bomb", End::Failed("memory_exceeded")),
    // Elements cost fuel before anybody looks whether there is room for them.
    attack("bottomless-table", End::Failed("fuel_exhausted")),
    attack("table-minimum", End::Refused("quota_exceeded")),
    attack("deep-recursion", End::Failed("stack_exhausted")),
    attack("recursion-with-host-calls", End::Failed("stack_exhausted")),
    attack("handle-flood", End::Failed("handles_exceeded")),
    // What is handed to the host.
    Attack { memory_mib: 256, ..attack("huge-list", End::Failed("hostcall_too_large")) },
    attack("many-pollables", End::Failed("handles_exceeded")),
    attack("many-fields", End::Failed("hostcall_too_large")),
    attack("huge-random", End::Failed("hostcall_too_large")),
    attack("lying-list", End::Failed("trap")),
    attack("bad-enum", End::Failed("trap")),
    attack("poll-nothing", End::Failed("trap")),
    attack("stale-handle", End::Failed("trap")),
    // What is answered.
    attack("lying-pointer", End::Failed("trap")),
    attack("lying-length", End::Failed("trap")),
    attack("unaligned-result", End::Failed("trap")),
    attack("bad-utf8", End::Failed("trap")),
    attack("bad-discriminant", End::Failed("trap")),
    attack("bad-failure", End::Failed("trap")),
    attack("realloc-out-of-bounds", End::Failed("trap")),
    attack("realloc-overlap", End::Completed),
    attack("huge-result", End::Failed("plugin_failed")),
    attack("huge-content-type", End::Failed("plugin_failed")),
    attack("header-in-content-type", End::Failed("plugin_failed")),
    attack("huge-failure", End::Failed("plugin_failed")),
    // Ends that every guest can meet by mistake.
    attack("unreachable", End::Failed("trap")),
    attack("division-by-zero", End::Failed("trap")),
    attack("out-of-bounds", End::Failed("trap")),
    attack("null-call", End::Failed("trap")),
    // What is told of an end.
    attack("heavy-debug-info", End::Failed("trap")),
    attack("deep-debug-info", End::Failed("trap")),
    attack("unknown-import", End::Refused("component_invalid")),
    // With the component model's concurrency.
    attack("waitable-flood", End::Failed("handles_exceeded")),
    until_deadline("yield-for-ever"),
    attack("wait-for-nothing", End::Failed("trap")),
    attack("lying-stream", End::Failed("trap")),
];

impl Attack {
    /// The attacks of one fixture.
    pub fn named(name: &str) -> impl Iterator<Item = &'static Attack> {
        ATTACKS.iter().filter(move |attack| attack.name == name)
    }

    /// The plugin that the fixture becomes.
    pub fn plugin(&self) -> String {
        format!("hostile-{}", self.name)
    }

    /// The component, with a manifest of the one kind `run`.
    pub fn component(&self) -> Result<Vec<u8>> {
        Ok(with_manifest(self.bare_component()?, &manifest(&self.plugin())))
    }

    /// The component without a manifest.
    pub fn bare_component(&self) -> Result<Vec<u8>> {
        let guest = String::from_utf8(tree::fixture(&format!("hostile/{}.wat", self.name))?)?;
        in_shell(&guest).context(self.name)
    }

    /// What its submit says beside plugin, kind and input. One attempt: what fails is to fail at once.
    pub fn submit(&self) -> Value {
        let mut more = json!({ "attempts": 1 });
        if self.memory_mib > 0 {
            more["memory_mib"] = self.memory_mib.into();
        }
        if self.deadline_only {
            more["fuel"] = 100_000_000_000_u64.into();
            more["timeout_s"] = 1.into();
        }
        more
    }
}

/// The component that a guest's text makes in the shell.
pub fn in_shell(guest: &str) -> Result<Vec<u8>> {
    let mut shell = String::from_utf8(tree::fixture("hostile/shell.wat")?)?;
    if guest.lines().any(|line| line == ASYNC) {
        for (from, to) in OF_ASYNC {
            shell = shell.replace(from, to);
        }
    }
    Ok(wat::parse_str(shell.replace(PLACE, &repeated(guest)))?)
}

/// Writes out each `@times{text}`.
fn repeated(text: &str) -> String {
    let mut written = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('@') {
        written.push_str(before);
        let times = after.split_once('{').and_then(|(times, after)| Some((times.parse().ok()?, after)));
        let once = times.and_then(|(times, after): (usize, _)| Some((times, after.split_once('}')?)));
        rest = match once {
            Some((times, (once, after))) => {
                written.push_str(&once.repeat(times));
                after
            }
            None => {
                written.push('@');
                after
            }
        };
    }
    written + rest
}

/// The manifest of a plugin with the one kind `run`.
pub fn manifest(plugin: &str) -> String {
    format!("[plugin]\nname = \"{plugin}\"\nversion = \"1.0.0\"\n\n[[kind]]\nname = \"run\"\n")
}

/// Puts a manifest behind a component, as the custom section that the host looks for.
pub fn with_manifest(component: Vec<u8>, manifest: &str) -> Vec<u8> {
    with_section(component, "keiko:manifest", manifest.as_bytes())
}

/// Puts a custom section behind a component.
pub fn with_section(mut component: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    let mut section = vec![name.len() as u8];
    section.extend(name.as_bytes());
    section.extend(data);
    component.push(0);
    let mut length = section.len();
    // LEB128, as everywhere in the format.
    while length >= 0x80 {
        component.push(length as u8 | 0x80);
        length >>= 7;
    }
    component.push(length as u8);
    component.extend(section);
    component
}

/// Bytes as an address can carry them.
pub fn base64_url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = group.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for letter in 0..=group.len() {
            text.push(char::from(LETTERS[(number >> (18 - 6 * letter) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_is_a_component_and_has_a_row() -> Result<()> {
        let folder = tree::root().join("tests/fixtures/hostile");
        for file in std::fs::read_dir(folder)? {
            let name = file?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".wat").filter(|name| *name != "shell") {
                let attack = Attack::named(name).next().with_context(|| format!("{name} has no row"))?;
                assert!(attack.component()?.starts_with(b"\0asm\x0d\0\x01\0"), "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn repetitions_are_written_out_and_the_rest_stays() {
        assert_eq!(
            repeated(r#"(@custom "a" "\01@3{\02}\03@0{x}") @ @x{y}"#),
            r#"(@custom "a" "\01\02\02\02\03") @ @x{y}"#
        );
    }

    #[test]
    fn a_long_section_has_a_long_length() {
        let component = with_manifest(Vec::new(), &"x".repeat(300));
        assert_eq!(component[..3], [0, 0xbb, 0x02]);
        assert_eq!(component.len(), 3 + 1 + 14 + 300);
    }
}
