//! WASI programs as tasks: preview-1 core modules, and components that export `wasi:cli/run`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use keiko_core::Code;
use keiko_core::limit::{COMPONENT_BYTES_MAX, RESULT_BYTES_MAX};
use keiko_core::log::Source;
use keiko_core::manifest::{Command, Manifest};
use keiko_core::outcome::{AttemptReport, Outcome, RetryWish, Taint};
use keiko_core::port::{Compiled, InstallError, Runner, Stage};
use keiko_core::profile::Profiles;
use keiko_core::task::Payload;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

use crate::guest::guest;
use crate::host::{Run, block_on, failed, shared};

/// A preview-1 program around a body. It has `$cat` (stdin to stdout), `$say` (file, place, length), `$exit`, and the
/// texts `A=1` at 16 and `no` at 32; what it imports beside that is the body's own.
fn program(imports: &str, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            {imports}
            (memory (export "memory") 2)
            (data (i32.const 16) "A=1")
            (data (i32.const 32) "no")
            (func $say (param $file i32) (param $at i32) (param $length i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (if (call $write (local.get $file) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
            (func $cat
                (loop $more
                    (i32.store (i32.const 0) (i32.const 1024))
                    (i32.store (i32.const 4) (i32.const 65536))
                    (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
                    (if (i32.load (i32.const 8)) (then
                        (call $say (i32.const 1) (i32.const 1024) (i32.load (i32.const 8)))
                        (br $more)))))
            (func (export "_start") {body}))"#
    );
    wat::parse_str(text).unwrap()
}

/// A component that is a program of WASI 0.2 and answers like this.
fn component(answer: i32) -> Vec<u8> {
    let text = format!(
        r#"(component
            (core module $m (func (export "run") (result i32) (i32.const {answer})))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $run (export "run" (func $run)))
            (export "wasi:cli/run@0.2.3" (instance $run)))"#
    );
    wat::parse_str(text).unwrap()
}

async fn install(bytes: Vec<u8>) -> Result<Compiled, InstallError> {
    shared().compile(bytes.into(), COMPONENT_BYTES_MAX, Profiles::STRICT).await
}

async fn report(bytes: Vec<u8>, run: &Run, command: Option<Command>) -> AttemptReport {
    let compiled = install(bytes).await.unwrap();
    assert!(compiled.is_program);
    let mut attempt = run.attempt(compiled.digest);
    attempt.command = command.map(Box::new);
    shared().run(attempt, run.port.clone(), run.stop.clone()).await
}

/// Runs with an input and nothing said of how.
fn ran(bytes: Vec<u8>, input: &[u8]) -> AttemptReport {
    block_on(report(bytes, &Run::of(guest("")).input(input.to_vec()), None))
}

fn completed(report: &AttemptReport) -> &Payload {
    match &report.outcome {
        Outcome::Completed(payload) => payload,
        other => panic!("{other:?}"),
    }
}

#[test]
fn input_comes_on_stdin_and_what_is_printed_is_the_result() {
    let input = Bytes::from((0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    let report = ran(program("", "(call $cat)"), &input);
    let payload = completed(&report);
    assert!(payload.bytes == input);
    assert_eq!(payload.content_type, "application/octet-stream");
    assert_eq!(report.taint, Taint::NONE, "it asked nothing of the outside");
    assert!(report.log.lines().is_empty() && report.meter.host_calls > 3);
    assert_eq!(completed(&ran(program("", ""), b"unread")).bytes, "", "it need not read, nor print");
    let again = ran(program("", "(call $cat)"), &input);
    assert_eq!(again.meter.fuel_used, report.meter.fuel_used);
}

#[test]
fn arguments_and_environment_are_those_of_the_manifest() {
    // What is behind the pointers of the texts is printed as it lies in memory.
    let imports = r#"
        (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_get" (func $environment (param i32 i32) (result i32)))"#;
    let body = "
        (if (call $args (i32.const 64) (i32.const 256)) (then unreachable))
        (call $say (i32.const 1) (i32.const 256) (i32.const 16))
        (if (call $environment (i32.const 64) (i32.const 512)) (then unreachable))
        (call $say (i32.const 1) (i32.const 512) (i32.const 8))";
    let command = Command {
        arguments: ["tool", "-x", ""].map(str::to_owned).to_vec(),
        environment: BTreeMap::from([("A".to_owned(), "é".to_owned())]),
        content_type: "text/plain".to_owned(),
        completes_with: vec![10],
    };
    let run = Run::of(guest(""));
    let of_manifest = block_on(report(program(imports, body), &run, Some(command.clone())));
    let payload = completed(&of_manifest);
    assert_eq!(payload.bytes, "tool\0-x\0\0\0\0\0\0\0\0\0A=é\0\0\0\0".as_bytes());
    assert_eq!(payload.content_type, "text/plain");
    let answers = format!("{body} (call $exit (i32.const 10))");
    let status = |status: &str| {
        block_on(report(program(imports, &answers.replace("10)", status)), &run, Some(command.clone())))
    };
    assert_eq!(completed(&status("10)")).bytes, payload.bytes, "a status that the manifest names");
    assert_eq!(failed(status("11)")).code, Code::PluginFailed);
    let unsaid = block_on(report(program(imports, body), &run, None));
    assert_eq!(completed(&unsaid).bytes, [&b"kind"[..], &[0; 20]].concat(), "the kind, and no environment");
}

/// The same program as a toolchain of WASI 0.2 has it: a component that exports `wasi:cli/run`.
fn component_of(program: &[u8]) -> Vec<u8> {
    let mut encoder = ComponentEncoder::default();
    encoder.module(program).unwrap();
    encoder
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)
        .unwrap()
        .encode()
        .unwrap()
}

#[test]
fn a_command_of_wasi_0_2_has_stdin_and_the_arguments_and_environment_of_its_manifest() {
    let imports = r#"
        (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_get" (func $environment (param i32 i32) (result i32)))"#;
    let body = "
        (if (call $args (i32.const 64) (i32.const 256)) (then unreachable))
        (call $say (i32.const 1) (i32.const 256) (i32.const 16))
        (if (call $environment (i32.const 64) (i32.const 512)) (then unreachable))
        (call $say (i32.const 1) (i32.const 512) (i32.const 8))
        (call $cat)";
    let manifest = "[plugin]\nname = \"tool\"\nversion = \"1\"\n[[kind]]\nname = \"run\"\n\
        [kind.command]\narguments = [\"-x\", \"\"]\nenvironment = { A = \"é\" }\ncontent-type = \"text/plain\"\n";
    let manifest = Manifest::parse(manifest.as_bytes()).unwrap();
    let command = *manifest.command(&manifest.kinds[0].name).unwrap();
    let component = component_of(&program(imports, body));
    assert!(component.starts_with(b"\0asm\x0d\0\x01\0"), "it is no preview-1 module any more");
    let input = vec![b'z'; 100_000];
    let run = Run::of(guest("")).input(input.clone());
    let told = block_on(report(component, &run, Some(command)));
    let expected = ["tool\0-x\0\0\0\0\0\0\0\0\0A=é\0\0\0\0".as_bytes(), &input].concat();
    let payload = completed(&told);
    assert_eq!((payload.bytes.len(), payload.content_type.as_str()), (expected.len(), "text/plain"));
    assert!(payload.bytes == expected);
}

#[test]
fn the_exit_status_is_the_outcome() {
    let exits = |status: i32| {
        let body = format!(
            "(call $say (i32.const 2) (i32.const 32) (i32.const 2)) (call $exit (i32.const {status}))"
        );
        ran(program("", &body), b"")
    };
    assert_eq!(completed(&exits(0)).bytes, "");
    let ends = |status: i32| {
        let failure = failed(exits(status));
        assert_eq!(failure.message, format!("the program ended with status {status}: no"));
        assert!(failure.backtrace.is_empty());
        (failure.code, failure.retry)
    };
    assert_eq!(ends(1), (Code::PluginFailed, RetryWish::ByCode));
    assert_eq!(ends(3), (Code::PluginFailed, RetryWish::ByCode));
    assert_eq!(ends(65), (Code::InvalidInput, RetryWish::ByCode));
    assert_eq!(ends(75), (Code::PluginFailed, RetryWish::After(None)));
    assert_eq!(completed(&ran(component(0), b"")).bytes, "");
    assert_eq!(failed(ran(component(1), b"")).message, "the program ended with status 1");
}

#[test]
fn what_goes_to_stderr_is_logged_and_what_goes_to_stdout_is_not() {
    let body = "(call $say (i32.const 2) (i32.const 32) (i32.const 2)) (call $say (i32.const 1) (i32.const 16) (i32.const 3))";
    let report = ran(program("", body), b"");
    assert_eq!(completed(&report).bytes, "A=1");
    let lines: Vec<_> = report.log.lines().iter().map(|line| (line.source, line.message.as_str())).collect();
    assert_eq!(lines, [(Source::Stderr, "no")]);
}

#[test]
fn a_result_has_the_limit_of_every_result() {
    let most = vec![b'x'; RESULT_BYTES_MAX as usize];
    assert_eq!(completed(&ran(program("", "(call $cat)"), &most)).bytes.len(), most.len());
    let failure = failed(ran(program("", "(call $cat)"), &[&most[..], b"y"].concat()));
    assert_eq!(failure.code, Code::PluginFailed);
    assert_eq!(
        failure.limit.map(|limit| (limit.name, limit.limit)),
        Some(("result_bytes".to_owned(), RESULT_BYTES_MAX))
    );
}

#[test]
fn programs_have_the_limits_of_every_guest() {
    let endless = || program("", "(loop $again (br $again))");
    let code = |run: Run| failed(block_on(report(endless(), &run, None))).code;
    assert_eq!(code(Run::of(guest("")).fuel(1_000_000)), Code::FuelExhausted);
    let timed = Run::of(guest("")).fuel(u64::MAX / 2).wall_ms(Duration::from_millis(50).as_millis() as u64);
    assert_eq!(code(timed), Code::DeadlineExceeded);
    let grows = "(if (i32.eq (memory.grow (i32.const 2000)) (i32.const -1)) (then unreachable))";
    let failure = failed(ran(program("", grows), b""));
    assert_eq!(failure.code, Code::MemoryExceeded);
    let failure = failed(ran(program("", "unreachable"), b""));
    assert_eq!(failure.code, Code::Trap);
    assert!(failure.backtrace.iter().any(|frame| frame.function.contains("function")), "{failure:?}");
}

#[test]
fn a_program_that_asks_the_outside_is_tainted() {
    let imports = r#"
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))"#;
    let random = program(imports, "(drop (call $random (i32.const 64) (i32.const 8)))");
    assert_eq!(ran(random, b"").taint.names(), ["random"]);
    let wall = program(imports, "(drop (call $time (i32.const 0) (i64.const 1) (i32.const 64)))");
    assert_eq!(ran(wall, b"").taint.names(), ["wall-clock"]);
}

#[test]
fn what_no_host_gives_is_named_at_the_install() {
    let refused = |bytes| {
        let error = block_on(install(bytes)).unwrap_err();
        (error.code, error.stage, error.message)
    };
    let unknown = r#"(import "wasi_snapshot_preview1" "sock_open" (func (param i32 i32 i32) (result i32)))"#;
    let (code, stage, message) = refused(program(unknown, ""));
    assert_eq!((code, stage), (Code::ComponentInvalid, Some(Stage::Compile)));
    assert!(message.contains("sock_open"), "{message}");
    let foreign = r#"(import "env" "host_call" (func))"#;
    let (code, stage, message) = refused(program(foreign, ""));
    assert_eq!((code, stage), (Code::ComponentInvalid, Some(Stage::Scan)));
    assert!(message.contains("imports `host_call` of `env`"), "{message}");
    let mut renamed = component(0);
    let at = renamed.windows(12).rposition(|part| part == b"wasi:cli/run").unwrap();
    renamed[at + 9..at + 12].copy_from_slice(b"ran");
    let (code, stage, message) = refused(renamed);
    assert_eq!((code, stage), (Code::ComponentInvalid, Some(Stage::Instantiate)));
    assert!(
        message.contains("nor `wasi:cli/run` to be a program; it exports `wasi:cli/ran@0.2.3`"),
        "{message}"
    );
}
