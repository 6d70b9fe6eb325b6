//! What is refused at install, and what the refusal says.

use std::sync::Arc;

use bytes::Bytes;
use keiko_core::Code;
use keiko_core::limit::{COMPONENT_BYTES_MAX, CORE_INSTANCES_MAX, MEMORIES_MAX, SetBy, TABLES_MAX};
use keiko_core::port::{Compiled, InstallError, Runner};
use keiko_core::profile::Profiles;

use crate::guest::{Guest, LOG, MONOTONIC_CLOCK, STDERR, guest};
use crate::host::{Kept, block_on, engine, install, key, shared};

fn compile(bytes: impl Into<Bytes>) -> Result<Compiled, InstallError> {
    block_on(shared().compile(bytes.into(), COMPONENT_BYTES_MAX, Profiles::STRICT))
}

#[track_caller]
fn refused(guest: &Guest, code: Code, expected: &str) -> InstallError {
    let error = block_on(install(guest)).unwrap_err();
    assert!(error.message.contains(expected), "{error}");
    assert_eq!(error.code, code, "{error}");
    error
}

#[test]
fn what_was_installed_is_told() {
    let guest = guest("(call $done)").with(LOG).with(MONOTONIC_CLOCK);
    let bytes = guest.bytes();
    let compiled = compile(bytes.clone()).unwrap();
    assert_eq!(compiled.component_bytes, bytes.len() as u64);
    assert!(compiled.artifact_bytes > 1_000);
    assert_eq!(compiled.manifest, None);
    assert_eq!(
        compiled.imports,
        [
            "keiko:log/log@0.1.0",
            "wasi:io/poll@0.2.0",
            "wasi:clocks/monotonic-clock@0.2.0",
            "keiko:plugin/types@0.1.0"
        ]
    );
    assert!(compiled.compile_ms > 0);
    let again = Compiled { compile_ms: 0, ..compiled };
    assert_eq!(compile(bytes).unwrap(), again, "it is there");
}

#[test]
fn a_manifest_in_a_module_is_found() {
    let text = "[plugin]\\0aname = \\\"p\\\"\\0aversion = \\\"1\\\"\\0a[[kind]]\\0aname = \\\"k\\\"\\0a";
    let text = text.replace("\\\\", "\\");
    let guest = guest("(call $done)").module(&format!("(@custom \"keiko:manifest\" \"{text}\")"));
    let manifest = compile(guest.bytes()).unwrap().manifest.unwrap();
    assert_eq!(manifest.plugin.name.as_str(), "p");
}

#[test]
fn what_is_no_component_is_refused_without_compiling() {
    let of = |bytes: &'static [u8]| compile(bytes).unwrap_err();
    assert!(of(b"\x7fELF\x02\x01\x01").message.contains("compiled artifact"));
    assert!(of(b"not wasm").message.contains("not WebAssembly"));
    let module = compile(wat::parse_str("(module)").unwrap()).unwrap_err();
    assert!(module.message.contains("core WebAssembly module"), "{module}");
    assert_eq!(module.code, Code::ComponentInvalid);
}

#[test]
fn an_artifact_uploaded_as_a_component_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), key('c'), Arc::<Kept>::default(), &[]);
    block_on(engine.compile(guest("(call $done)").bytes().into(), COMPONENT_BYTES_MAX, Profiles::STRICT))
        .unwrap();
    let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(compile(bytes.clone()).unwrap_err().code, Code::ComponentInvalid);
    let error = compile(bytes[48..].to_vec()).unwrap_err();
    assert!(error.message.contains("compiled artifact"), "{error}");
}

#[test]
fn a_component_stops_at_its_size() {
    let bytes = Bytes::from(guest("(call $done)").bytes());
    let size = bytes.len() as u64;
    assert!(block_on(shared().compile(bytes.clone(), size, Profiles::STRICT)).is_ok());
    let error = block_on(shared().compile(bytes, size - 1, Profiles::STRICT)).unwrap_err();
    assert_eq!(error.code, Code::QuotaExceeded);
    let limit = error.limit.unwrap();
    assert_eq!(
        (limit.name.as_str(), limit.limit, limit.set_by),
        ("component_bytes", size - 1, SetBy::Tenant)
    );
}

#[test]
fn an_unknown_import_is_named() {
    let other = |import: &str| {
        let text = format!("(component (import \"{import}\" (instance)) ");
        let bytes = guest("(call $done)").text().replacen("(component", &text, 1);
        compile(wat::parse_str(bytes).unwrap()).unwrap_err()
    };
    let unknown = other("acme:bank/account@1.0.0");
    assert!(unknown.message.contains("`acme:bank/account@1.0.0`"), "{unknown}");
    assert!(unknown.message.contains("no package `acme:bank`"), "{unknown}");
    let later = other("keiko:log/log@0.2.0");
    assert!(later.message.contains("this host has `keiko:log/log@0.1.0`"), "{later}");
    let unlisted = other("wasi:http/outgoing-handler@0.2.0");
    assert!(unlisted.message.contains("no package `wasi:http`"), "{unlisted}");
    assert_eq!(unlisted.code, Code::ComponentInvalid);
}

#[test]
fn an_import_of_another_shape_is_named() {
    let mut other = LOG;
    other.interface = r#"(import "keiko:log/log@0.1.0" (instance $log
        (export "write" (func (param "message" string)))))"#;
    other.functions = &[];
    refused(&guest("(call $done)").with(other), Code::ComponentInvalid, "keiko:log/log@0.1.0");
    let more = r#"(import "keiko:log/log@0.1.0" (instance $log (export "flush" (func))))"#;
    other.interface = more;
    refused(&guest("(call $done)").with(other), Code::ComponentInvalid, "flush");
}

#[test]
fn another_world_is_refused() {
    let nothing = compile(wat::parse_str("(component)").unwrap()).unwrap_err();
    assert!(nothing.message.contains("does not export `keiko:plugin/task@0.1.0`"), "{nothing}");
    assert!(nothing.message.ends_with("it exports nothing"), "{nothing}");
    let text = guest("(call $done)").text();
    let renamed = text.replace("keiko:plugin/task@0.1.0", "keiko:plugin/other@0.1.0");
    let other = compile(wat::parse_str(renamed).unwrap()).unwrap_err();
    assert!(other.message.ends_with("it exports `keiko:plugin/other@0.1.0`"), "{other}");
    let shorter = text.replace("(case \"permanent\" string)", "");
    let changed = compile(wat::parse_str(shorter).unwrap()).unwrap_err();
    assert!(changed.message.contains("another type"), "{changed}");
    let newer = text.replace("keiko:plugin/task@0.1.0", "keiko:plugin/task@0.2.0");
    assert_eq!(compile(wat::parse_str(newer).unwrap()).unwrap_err().code, Code::ComponentInvalid);
}

#[test]
fn what_no_attempt_can_have_is_refused() {
    let more = |count: u32, module: &str| {
        let instances = "(core instance (instantiate $More))".repeat(count as usize);
        guest("(call $done)").component(&format!("(core module $More {module}) {instances}"))
    };
    // The guest has one memory of its own.
    assert!(block_on(install(&more(MEMORIES_MAX - 1, "(memory 1)"))).is_ok());
    refused(&more(MEMORIES_MAX, "(memory 1)"), Code::QuotaExceeded, "memories");
    assert!(block_on(install(&more(TABLES_MAX, "(table 1 funcref)"))).is_ok());
    refused(&more(TABLES_MAX + 1, "(table 1 funcref)"), Code::QuotaExceeded, "tables");
    // And two instances.
    assert!(block_on(install(&more(CORE_INSTANCES_MAX - 2, ""))).is_ok());
    refused(&more(CORE_INSTANCES_MAX - 1, ""), Code::QuotaExceeded, "core_instances");
    refused(&guest("(call $done)").pages("16385"), Code::QuotaExceeded, "memory");
    refused(&guest("(call $done)").module("(table 100001 funcref)"), Code::QuotaExceeded, "table");
}

#[test]
fn what_does_not_start_is_refused() {
    let start = |code: &str| guest("(call $done)").module(&format!("(func $begin {code}) (start $begin)"));
    refused(&start("unreachable"), Code::ComponentInvalid, "unreachable");
    let hungry = refused(&start("(loop $for-ever br $for-ever)"), Code::QuotaExceeded, "fuel");
    assert_eq!(hungry.limit.unwrap().name, "fuel");
    refused(&guest("(call $done)").pages("1025"), Code::QuotaExceeded, "memory_bytes");
    assert!(block_on(install(&guest("(call $done)").pages("1024"))).is_ok());
}

#[test]
fn features_that_are_off_are_refused() {
    for (what, module) in [
        ("threads", "(memory $shared 1 1 shared)"),
        ("memory64", "(memory $long i64 1)"),
        ("exceptions", "(tag $tag)"),
        ("gc", "(type $struct (struct))"),
        ("a second memory", "(memory $second 1) (func (drop (i32.load $second (i32.const 0))))"),
    ] {
        let guest = guest("(call $done)").module(module);
        let error = block_on(install(&guest)).unwrap_err();
        assert_eq!(error.code, Code::ComponentInvalid, "{what}: {error}");
    }
}

#[test]
fn equal_uploads_at_once_are_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), key('d'), Arc::<Kept>::default(), &[]);
    let bytes = Bytes::from(guest("(call $digit (i32.const 3))").with(STDERR).bytes());
    block_on(async {
        let compile = || engine.compile(bytes.clone(), COMPONENT_BYTES_MAX, Profiles::STRICT);
        let (a, b, c) = tokio::join!(compile(), compile(), compile());
        let took = [a, b, c].map(|compiled| compiled.unwrap().compile_ms > 0);
        assert_eq!(took.iter().filter(|took| **took).count(), 1, "{took:?}");
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(engine.counts().loaded, 1);
}

#[test]
fn a_compiler_that_is_no_compiler_is_the_hosts_fault() {
    let dir = tempfile::tempdir().unwrap();
    for program in ["/does/not/exist", "/bin/false", "/bin/true"] {
        let options = keiko_engine::EngineOptions {
            artifacts_dir: dir.path().to_owned(),
            cluster_key: key('e'),
            compiler: keiko_engine::Compiler { program: program.into(), arguments: Vec::new() },
            running_max: 1,
        };
        let engine = keiko_engine::Engine::new(options, Arc::<Kept>::default()).unwrap();
        let error = block_on(engine.compile(
            guest("(call $done)").bytes().into(),
            COMPONENT_BYTES_MAX,
            Profiles::STRICT,
        ));
        assert_eq!(error.unwrap_err().code, Code::Internal, "{program}");
    }
}
