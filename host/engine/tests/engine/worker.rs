//! Guests that work batches.

use crate::guest::{Guest, guest};

/// A guest that works batches: `each` writes the outcome of one item, of 32 bytes at `$at`, which are those of `done`.
/// `$item` is where the item stands: id, content type, bytes, attempts. Parameters are `$id`, `$id-length`,
/// `$processor`, `$processor-length`, `$some-key`, `$key`, `$key-length`, `$items`, `$count`.
pub fn processor(each: &str) -> Guest {
    let body = format!(
        r#"(func (export "process") (param $id i32) (param $id-length i32) (param $processor i32)
            (param $processor-length i32) (param $some-key i32) (param $key i32) (param $key-length i32)
            (param $items i32) (param $count i32) (result i32)
            (local $outcomes i32) (local $at i32) (local $item i32) (local $left i32)
            (local.set $outcomes (call $realloc (i32.const 0) (i32.const 0) (i32.const 8)
                (i32.mul (local.get $count) (i32.const 32))))
            (local.set $at (local.get $outcomes))
            (local.set $item (local.get $items))
            (local.set $left (local.get $count))
            (block $end (loop $next
                (br_if $end (i32.eqz (local.get $left)))
                {each}
                (local.set $at (i32.add (local.get $at) (i32.const 32)))
                (local.set $item (i32.add (local.get $item) (i32.const 28)))
                (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                (br $next)))
            (i32.store (i32.const 1024) (local.get $outcomes))
            (i32.store (i32.const 1028) (local.get $count))
            (i32.const 1024))
        (func $reject (param $at i32) (param $text i32) (param $length i32)
            (i32.store8 (local.get $at) (i32.const 2))
            (i32.store offset=8 (local.get $at) (local.get $text))
            (i32.store offset=12 (local.get $at) (local.get $length)))"#
    );
    guest("").exporting(body, export())
}

/// The end of its component: `process` with its types.
fn export() -> String {
    let function = r#"(param "batch" $info) (param "items" (list $item)) (result (list $outcome))"#;
    let types = r#"(type $info' (record (field "id" string) (field "processor" string) (field "key" (option string))))
        (OUT "batch-info" (type $info (eq $info')))
        (type $item' (record (field "id" string) (field "content-type" string) (field "bytes" (list u8))
            (field "attempts" u32)))
        (OUT "item" (type $item (eq $item')))
        (type $later' (record (field "reason" string) (field "after-ms" (option u64))))
        (OUT "later" (type $later (eq $later')))
        (type $outcome' (variant (case "done") (case "retry" $later) (case "reject" string)))
        (OUT "item-outcome" (type $outcome (eq $outcome')))"#;
    let imported = types.replace("OUT", "import");
    // What is exported is made of what is exported.
    let exported = r#"
        (type $info3 (record (field "id" string) (field "processor" string) (field "key" (option string))))
        (export $info2 "batch-info" (type $info3))
        (type $item3 (record (field "id" string) (field "content-type" string) (field "bytes" (list u8))
            (field "attempts" u32)))
        (export $item2 "item" (type $item3))
        (type $later3 (record (field "reason" string) (field "after-ms" (option u64))))
        (export $later2 "later" (type $later3))
        (type $outcome3 (variant (case "done") (case "retry" $later2) (case "reject" string)))
        (export $outcome2 "item-outcome" (type $outcome3))"#;
    let plain: String = types.lines().filter(|line| !line.contains("(OUT")).collect();
    let plain = plain.replace('\'', "");
    format!(
        r#"{plain}
        (func $process {function} (canon lift (core func $main "process") (memory (core memory $libc "memory"))
            (realloc (core func $libc "cabi_realloc"))))
        (component $Shim
            {imported}
            (import "process" (func $process {function}))
            {exported}
            (export "process" (func $process) (func (param "batch" $info2) (param "items" (list $item2))
                (result (list $outcome2)))))
        (instance $worker (instantiate $Shim (with "batch-info" (type $info)) (with "item" (type $item))
            (with "later" (type $later)) (with "item-outcome" (type $outcome)) (with "process" (func $process))))
        (export "keiko:plugin/batch@0.1.0" (instance $worker))"#
    )
}
