//! Components that are composed of others: what their parts hand each other, and that limits hold for all of them together.

use keiko_core::Code;
use keiko_core::limit::{COMPONENT_BYTES_MAX, MEMORIES_MAX};
use keiko_core::outcome::AttemptReport;
use keiko_core::port::{Compiled, InstallError, Runner};
use keiko_core::profile::{Profile, Profiles};

use crate::guest::{Guest, guest};
use crate::host::{Run, block_on, completed, failed, install, install_with, shared};

const PAGE: u64 = 65_536;

/// The text of a component with the guest in one of its own, beside the component `$Part` of this text, whose function of this
/// name and type it imports as `$imported`: what is outside may not call what is inside. It imports nothing else.
pub fn beside(guest: &Guest, part: &str, name: &str, function: &str) -> String {
    let text = guest.text();
    let (types, rest) = text.split_once("(core module $Libc").unwrap();
    let (body, rest) = rest.split_once("(component $Shim").unwrap();
    let (shapes, rest) = rest.split_once(r#"(import "run""#).unwrap();
    let (_, exports) = rest.split_once("(export $payload2").unwrap();
    let inside = format!(r#"(instantiate $Inside (with "{name}" (func $part "{name}"))"#);
    let exports = exports.replace("(instantiate $Shim", &inside).replace(r#"(with "run" (func $run))"#, "");
    format!(
        r#"{types} {part} (instance $part (instantiate $Part))
        (component $Inside {shapes} (import "{name}" (func $imported {function}))
            (core module $Libc {body} (export $payload2 {exports}"#
    )
}

/// A part with a memory and an allocator, whose function `help` has this type and is the core function of that name.
fn part(function: &str, options: &str, body: &str) -> String {
    format!(
        r#"(component $Part
            (core module $M
                (memory (export "memory") 4)
                (global $next (mut i32) (i32.const 4096))
                (func (export "realloc") (param i32 i32 i32) (param $size i32) (result i32)
                    (global.get $next)
                    (global.set $next (i32.add (global.get $next) (local.get $size))))
                {body})
            (core instance $m (instantiate $M))
            (func (export "help") {function} (canon lift (core func $m "help") (memory (core memory $m "memory"))
                (realloc (core func $m "realloc")) {options})))"#
    )
}

/// The type of a function from bytes to bytes.
const BYTES: &str = r#"(param "bytes" (list u8)) (result (list u8))"#;

/// One that goes through the bytes it is handed, and hands back what `answer` leaves at 1024: where they are, and how many.
fn bytes(answer: &str) -> String {
    let body = format!(
        r#"(func (export "help") (param $at i32) (param $length i32) (result i32)
            (local $i i32)
            (loop $more
                (if (i32.lt_u (local.get $i) (local.get $length)) (then
                    (i32.store8 (i32.add (local.get $at) (local.get $i))
                        (i32.add (i32.load8_u (i32.add (local.get $at) (local.get $i))) (i32.const 1)))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br $more))))
            (i32.store (i32.const 1024) (local.get $at))
            (i32.store (i32.const 1028) (local.get $length))
            {answer}
            (i32.const 1024))"#
    );
    part(BYTES, "", &body)
}

/// A guest that is helped by its neighbour: `call` does that, and leaves at 2048 where the answer is and how long.
fn helped(call: &str, signature: &str) -> Guest {
    guest(&format!("{call} (call $answer (i32.load (i32.const 2048)) (i32.load (i32.const 2052)))"))
        .component(
            r#"(core func $help (canon lower (func $imported) (memory (core memory $libc "memory"))
            (realloc (core func $libc "cabi_realloc"))))
        (core instance $helper (export "help" (func $help)))"#,
        )
        .argument(r#"(with "helper" (instance $helper))"#)
        .import(&format!(r#"(import "helper" "help" (func $help {signature}))"#))
}

/// A component of two parts, of which the guest hands its input to the other, which has one more byte in each place.
fn composed(part: &str) -> String {
    let call = "(call $help (local.get $input) (local.get $length) (i32.const 2048))";
    beside(&helped(call, "(param i32 i32 i32)"), part, "help", BYTES)
}

fn compile(text: &str) -> Result<Compiled, InstallError> {
    let bytes = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"));
    block_on(shared().compile(bytes.into(), COMPONENT_BYTES_MAX, Profiles::STRICT))
}

fn report(text: &str, run: &Run) -> AttemptReport {
    let digest = compile(text).unwrap().digest;
    block_on(shared().run(run.attempt(digest), run.port.clone(), run.stop.clone()))
}

fn run() -> Run {
    Run::of(guest("")).input("null")
}

#[test]
fn parts_with_a_memory_each_hand_each_other_lists_on_the_strict_profile() {
    let text = composed(&bytes(""));
    assert_eq!(compile(&text).unwrap().profile, Profile::Strict);
    let first = report(&text, &run());
    assert_eq!(completed(&first), "ovmm");
    assert!(first.taint.is_none());
    assert_eq!(report(&text, &run()).meter.fuel_used, first.meter.fuel_used, "equal runs cost the same");
    let more = report(&text, &run().input("n".repeat(100_000)));
    assert_eq!(completed(&more), "o".repeat(100_000));
    assert!(more.meter.fuel_used > first.meter.fuel_used + 100_000, "what the part does is paid for");
}

#[test]
fn texts_change_their_encoding_between_parts_and_bad_ones_are_a_trap() {
    let says = |text: &str| {
        // At 2048: where the text is, and how many units of two bytes it has.
        let body = format!(
            r#"(data (i32.const 1024) "{text}") (data (i32.const 2048) "\00\04\00\00\04\00\00\00")
            (func (export "help") (result i32) (i32.const 2048))"#
        );
        let part = part("(result string)", "string-encoding=utf16", &body);
        let guest = helped("(call $help (i32.const 2048))", "(param i32)");
        let text = beside(&guest, &part, "help", "(result string)");
        report(&text, &run())
    };
    assert_eq!(completed(&says(r"n\00u\00l\00l\00")), "null");
    assert_eq!(completed(&says(r"\fc\00\ac\20\3d\d8\00\de")), "ü€😀");
    let alone = failed(says(r"n\00\3d\d8u\00l\00"));
    assert_eq!(alone.code, Code::Trap, "half of a surrogate pair: {alone:?}");
}

#[test]
fn what_a_part_says_that_is_not_so_is_a_trap() {
    for lie in [
        "(i32.store (i32.const 1024) (i32.const 0x7fffffff))",
        "(i32.store (i32.const 1024) (i32.const -1))",
        "(i32.store (i32.const 1028) (i32.const 262144))",
        "(i32.store (i32.const 1028) (i32.const -1))",
        "(return (i32.const 262141))",
    ] {
        let failure = failed(report(&composed(&bytes(lie)), &run()));
        assert_eq!(failure.code, Code::Trap, "{lie}: {failure:?}");
    }
}

#[test]
fn limits_are_those_of_all_parts_together() {
    let limit = |text: &str, run: &Run| {
        let failure = failed(report(text, run));
        (failure.code, failure.limit.map(|limit| limit.name))
    };
    // One page and four, and what the neighbour wants.
    let grows = composed(&bytes("(drop (memory.grow (i32.const 16)))"));
    assert_eq!(completed(&report(&grows, &run().memory(21 * PAGE))), "ovmm");
    let memory = (Code::MemoryExceeded, Some("memory_bytes".to_owned()));
    assert_eq!(limit(&grows, &run().memory(21 * PAGE - 1)), memory);
    let for_ever = composed(&bytes("(loop $for-ever (br $for-ever))"));
    assert_eq!(limit(&for_ever, &run()), (Code::FuelExhausted, Some("fuel".to_owned())));
    let one = "(instance $part (instantiate $Part))";
    let parts = |count: u32| {
        composed(&bytes(""))
            .replace(one, &format!("{one} {}", "(instance (instantiate $Part))".repeat(count as usize - 1)))
    };
    // The guest has a memory, too.
    assert_eq!(completed(&report(&parts(MEMORIES_MAX - 1), &run())), "ovmm");
    let error = compile(&parts(MEMORIES_MAX)).unwrap_err();
    assert_eq!(error.code, Code::QuotaExceeded, "{error}");
    assert!(error.message.contains("memories"), "{error}");
}

#[test]
fn a_module_with_several_memories_is_refused_on_either_profile() {
    let several = guest("(call $done)").module("(memory 1)");
    for profiles in [Profiles::STRICT, Profiles::ALL] {
        let error = block_on(install_with(&several, profiles)).unwrap_err();
        assert_eq!(error.code, Code::ComponentInvalid, "{error}");
        assert!(error.message.contains("a core module has 2 memories, and may have 1"), "{error}");
    }
    let concurrent = several.component("(core func (canon waitable-set.new))");
    let error = block_on(install_with(&concurrent, Profiles::ALL)).unwrap_err();
    assert!(error.message.contains("a core module has 2 memories, and may have 1"), "{error}");
    let one_each =
        guest("(call $done)").component("(core module $More (memory 1)) (core instance (instantiate $More))");
    assert!(block_on(install(&one_each)).is_ok());
}
