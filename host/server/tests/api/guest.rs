//! Two small plugins as text. [`worker`] works batches; the other one's kinds:
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
    wat::parse_str(TEXT.replace("LIBC", LIBC)).unwrap_or_else(|error| panic!("{error}"))
}

/// The same component, with its manifest inside, on the concurrent profile: it has what it does not use.
pub fn concurrent(name: &str, version: &str) -> Vec<u8> {
    let text = TEXT.replace("LIBC", &format!("{LIBC} (core func (canon waitable-set.new))"));
    let bytes = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"));
    with_section(bytes, "keiko:manifest", manifest(name, version).as_bytes())
}

/// A component that takes a compiler many seconds: nested loops, in each of which every local changes.
pub fn bomb() -> Vec<u8> {
    let (depth, locals) = (400, 400);
    let mut body = String::new();
    for level in 0..depth {
        let (to, from) = (level * 7 % locals + 1, level * 13 % locals + 1);
        body.push_str(&format!("(loop (local.set {to} (i64.add (local.get {from}) (local.get {to})))"));
    }
    body.push_str(&"(br_if 0 (i64.eqz (local.get 0))))".repeat(depth));
    let declared = "i64 ".repeat(locals);
    let text = format!("(component (core module (func (param i64) (local {declared}) {body})))");
    with_section(wat::parse_str(text).unwrap(), "keiko:manifest", manifest("bomb", "1").as_bytes())
}

/// A plugin with a processor of its name, and `more` in its table: it rejects texts and is done with everything else.
pub fn worker(name: &str, more: &str) -> Vec<u8> {
    let manifest = format!(
        "[plugin]\nname = \"{name}\"\nversion = \"0.1.0\"\n[[processor]]\nname = \"{name}\"\n{more}\n"
    );
    let bytes = wat::parse_str(WORKER.replace("LIBC", LIBC)).unwrap_or_else(|error| panic!("{error}"));
    with_section(bytes, "keiko:manifest", manifest.as_bytes())
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

/// Memory with a bump allocator.
const LIBC: &str = r#"(core module $Libc
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
  (core instance $libc (instantiate $Libc))"#;

const TEXT: &str = r#"(component
  (import "keiko:log/log@0.1.0" (instance $log
    (type $level' (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $level')))
    (type $field' (record (field "name" string) (field "value" string)))
    (export "field" (type $field (eq $field')))
    (export "write" (func (param "level" $level) (param "message" string) (param "fields" (list $field))))))
  LIBC
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

const WORKER: &str = r#"(component
  LIBC
  (core module $Main
    (import "libc" "memory" (memory 0))
    (import "libc" "cabi_realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
    (func (export "process") (param i32 i32 i32 i32 i32 i32 i32) (param $item i32) (param $count i32) (result i32)
      (local $at i32) (local $left i32)
      (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
        (i32.mul (local.get $count) (i32.const 32))))
      (i32.store (i32.const 1024) (local.get $at))
      (i32.store (i32.const 1028) (local.get $count))
      (local.set $left (local.get $count))
      (block $end (loop $next
        (br_if $end (i32.eqz (local.get $left)))
        (if (i32.eq (i32.load8_u (i32.load offset=16 (local.get $item))) (i32.const 34)) (then
          (i32.store8 (local.get $at) (i32.const 2))
          (i32.store offset=8 (local.get $at) (i32.const 0))
          (i32.store offset=12 (local.get $at) (i32.const 11))))
        (local.set $at (i32.add (local.get $at) (i32.const 32)))
        (local.set $item (i32.add (local.get $item) (i32.const 28)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $next)))
      (i32.const 1024)))
  (core instance $main (instantiate $Main (with "libc" (instance $libc))))
  (type $info (record (field "id" string) (field "processor" string) (field "key" (option string))))
  (type $item (record (field "id" string) (field "content-type" string) (field "bytes" (list u8))
    (field "attempts" u32)))
  (type $later (record (field "reason" string) (field "after-ms" (option u64))))
  (type $outcome (variant (case "done") (case "retry" $later) (case "reject" string)))
  (func $process (param "batch" $info) (param "items" (list $item)) (result (list $outcome))
    (canon lift (core func $main "process") (memory (core memory $libc "memory"))
      (realloc (core func $libc "cabi_realloc"))))
  (component $Shim
    (type $info' (record (field "id" string) (field "processor" string) (field "key" (option string))))
    (import "batch-info" (type $info (eq $info')))
    (type $item' (record (field "id" string) (field "content-type" string) (field "bytes" (list u8))
      (field "attempts" u32)))
    (import "item" (type $item (eq $item')))
    (type $later' (record (field "reason" string) (field "after-ms" (option u64))))
    (import "later" (type $later (eq $later')))
    (type $outcome' (variant (case "done") (case "retry" $later) (case "reject" string)))
    (import "item-outcome" (type $outcome (eq $outcome')))
    (import "process" (func $process (param "batch" $info) (param "items" (list $item))
      (result (list $outcome))))
    (type $info3 (record (field "id" string) (field "processor" string) (field "key" (option string))))
    (export $info2 "batch-info" (type $info3))
    (type $item3 (record (field "id" string) (field "content-type" string) (field "bytes" (list u8))
      (field "attempts" u32)))
    (export $item2 "item" (type $item3))
    (type $later3 (record (field "reason" string) (field "after-ms" (option u64))))
    (export $later2 "later" (type $later3))
    (type $outcome3 (variant (case "done") (case "retry" $later2) (case "reject" string)))
    (export $outcome2 "item-outcome" (type $outcome3))
    (export "process" (func $process) (func (param "batch" $info2) (param "items" (list $item2))
      (result (list $outcome2)))))
  (instance $worker (instantiate $Shim (with "batch-info" (type $info)) (with "item" (type $item))
    (with "later" (type $later)) (with "item-outcome" (type $outcome)) (with "process" (func $process))))
  (export "keiko:plugin/batch@0.1.0" (instance $worker)))"#;
