//! One small plugin as text. Its kinds:
//!
//! | kind | what it does |
//! | --- | --- |
//! | `echo` | its input is its result, content type and all |
//! | `fail` | fails for good, with its input as the message |
//! | `loop` | never ends by itself |
//! | `say` | logs its input, then as `echo` |
//! | `odd` | says that its result is JSON, which it is not |

/// The manifest's text.
pub fn manifest(name: &str, version: &str) -> String {
    let kinds = ["echo", "fail", "loop", "say", "odd"].map(|kind| format!("[[kind]]\nname = \"{kind}\"\n"));
    let head =
        format!("[plugin]\nname = \"{name}\"\nversion = \"{version}\"\nwants = [\"log\", \"tasks\"]\n");
    format!("{head}{}", kinds.concat())
}

/// The component with its manifest inside.
pub fn component(name: &str, version: &str) -> Vec<u8> {
    with_section(bare(), "keiko:manifest", manifest(name, version).as_bytes())
}

/// The component without a manifest.
pub fn bare() -> Vec<u8> {
    wat::parse_str(TEXT).unwrap_or_else(|error| panic!("{error}"))
}

/// The component filled up to exactly `bytes`.
pub fn padded(mut component: Vec<u8>, bytes: usize) -> Vec<u8> {
    // A section has 1 byte of kind, 5 of length here, and a name of 4 bytes with its length.
    let padding = bytes - component.len() - 6 - 5;
    component.push(0);
    component.extend(leb5(padding + 5));
    component.extend(b"\x04fill");
    component.resize(component.len() + padding, 0);
    component
}

fn with_section(mut component: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    component.push(0);
    component.extend(leb5(1 + name.len() + data.len()));
    component.push(name.len() as u8);
    component.extend(name.as_bytes());
    component.extend(data);
    component
}

/// A length in five bytes, however small.
fn leb5(number: usize) -> [u8; 5] {
    std::array::from_fn(|at| (number >> (7 * at)) as u8 & 0x7f | if at < 4 { 0x80 } else { 0 })
}

const TEXT: &str = r#"(component
  (import "keiko:log/log@0.1.0" (instance $log
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (type $field' (record (field "name" string) (field "value" string)))
    (export "field" (type $field (eq $field')))
    (export "write" (func (param "level" $level) (param "message" string) (param "fields" (list $field))))))
  (core module $Libc
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 4096))
    (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
      (local $at i32) (local $pages i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get $size)))
      (local.set $pages (i32.shr_u (i32.add (global.get $next) (i32.const 65535)) (i32.const 16)))
      (if (i32.gt_u (local.get $pages) (memory.size))
        (then (if (i32.eq (memory.grow (i32.sub (local.get $pages) (memory.size))) (i32.const -1))
          (then unreachable))))
      (local.get $at))
    (data (i32.const 0) "application/json")
    (data (i32.const 16) "{]"))
  (core instance $libc (instantiate $Libc))
  (core func $write (canon lower (func $log "write") (memory (core memory $libc "memory"))
    (realloc (core func $libc "cabi_realloc"))))
  (core module $Main
    (import "libc" "memory" (memory 0))
    (import "host" "log" (func $log (param i32 i32 i32 i32 i32)))
    (func $answer (param $type i32) (param $type-length i32) (param $at i32) (param $length i32) (result i32)
      (i32.store8 (i32.const 1024) (i32.const 0))
      (i32.store (i32.const 1032) (local.get $type))
      (i32.store (i32.const 1036) (local.get $type-length))
      (i32.store (i32.const 1040) (local.get $at))
      (i32.store (i32.const 1044) (local.get $length))
      (i32.const 1024))
    (func (export "run") (param $kind i32) (param i32) (param $type i32) (param $type-length i32)
      (param $input i32) (param $length i32) (result i32)
      (local $letter i32)
      (local.set $letter (i32.load8_u (local.get $kind)))
      (if (i32.eq (local.get $letter) (i32.const 102)) (then
        (i32.store8 (i32.const 1024) (i32.const 1))
        (i32.store8 (i32.const 1032) (i32.const 1))
        (i32.store (i32.const 1040) (local.get $input))
        (i32.store (i32.const 1044) (local.get $length))
        (return (i32.const 1024))))
      (if (i32.eq (local.get $letter) (i32.const 108)) (then (loop $again (br $again))))
      (if (i32.eq (local.get $letter) (i32.const 115)) (then
        (call $log (i32.const 3) (local.get $input) (local.get $length) (i32.const 0) (i32.const 0))))
      (if (i32.eq (local.get $letter) (i32.const 111)) (then
        (return (call $answer (i32.const 0) (i32.const 16) (i32.const 16) (i32.const 2)))))
      (call $answer (local.get $type) (local.get $type-length) (local.get $input) (local.get $length))))
  (core instance $host (export "log" (func $write)))
  (core instance $main (instantiate $Main (with "libc" (instance $libc)) (with "host" (instance $host))))
  (import "keiko:plugin/types@0.1.0" (instance $types
    (type $payload' (record (field "content-type" string) (field "bytes" (list u8))))
    (export "payload" (type $payload (eq $payload')))
    (type $retryable' (record (field "message" string) (field "retry-after-ms" (option u64))))
    (export "retryable" (type $retryable (eq $retryable')))
    (type $failure' (variant (case "invalid-input" string) (case "permanent" string)
      (case "retryable" $retryable)))
    (export "failure" (type $failure (eq $failure')))))
  (alias export $types "payload" (type $payload))
  (alias export $types "retryable" (type $retryable))
  (alias export $types "failure" (type $failure))
  (func $run (param "kind" string) (param "input" $payload) (result (result $payload (error $failure)))
    (canon lift (core func $main "run") (memory (core memory $libc "memory"))
      (realloc (core func $libc "cabi_realloc"))))
  (component $Shim
    (type $payload' (record (field "content-type" string) (field "bytes" (list u8))))
    (import "payload" (type $payload (eq $payload')))
    (type $retryable' (record (field "message" string) (field "retry-after-ms" (option u64))))
    (import "retryable" (type $retryable (eq $retryable')))
    (type $failure' (variant (case "invalid-input" string) (case "permanent" string)
      (case "retryable" $retryable)))
    (import "failure" (type $failure (eq $failure')))
    (import "run" (func $run (param "kind" string) (param "input" $payload)
      (result (result $payload (error $failure)))))
    (export $payload2 "payload" (type $payload))
    (export $failure2 "failure" (type $failure))
    (export "run" (func $run) (func (param "kind" string) (param "input" $payload2)
      (result (result $payload2 (error $failure2))))))
  (instance $task (instantiate $Shim (with "payload" (type $payload)) (with "retryable" (type $retryable))
    (with "failure" (type $failure)) (with "run" (func $run))))
  (export "keiko:plugin/task@0.1.0" (instance $task)))"#;
