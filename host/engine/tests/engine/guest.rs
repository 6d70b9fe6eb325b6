//! Guests as text: a frame that makes a task plugin of the body of a core module, and the interfaces it may import.

/// An interface of the host, in the three places a component needs it.
#[derive(Clone, Copy)]
pub struct Import {
    /// The import of the component itself.
    pub interface: &'static str,
    /// (name in the core module, function of the interface, core type)
    pub functions: &'static [(&'static str, &'static str, &'static str)],
    /// What the component calls the instance.
    pub instance: &'static str,
}

pub const LOG: Import = Import {
    interface: r#"(import "keiko:log/log@0.1.0" (instance $log
        (type $level' (enum "trace" "debug" "info" "warn" "error"))
        (export "level" (type $level (eq $level')))
        (type $field' (record (field "name" string) (field "value" string)))
        (export "field" (type $field (eq $field')))
        (export "write" (func (param "level" $level) (param "message" string) (param "fields" (list $field))))))"#,
    functions: &[("log", "write", "(param i32 i32 i32 i32 i32)")],
    instance: "$log",
};

pub const ATTEMPT: Import = Import {
    interface: r#"(import "keiko:attempt/attempt@0.1.0" (instance $attempt
        (type $facts' (record (field "tenant" string) (field "task" string) (field "root" string)
            (field "parent" (option string)) (field "depth" u32) (field "number" u32)
            (field "attempts-max" u32) (field "trace" (option string))))
        (export "facts" (type $facts (eq $facts')))
        (type $error' (variant (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "get" (func (result (result $facts (error $error)))))
        (export "remaining-ms" (func (result (result u64 (error $error)))))))"#,
    functions: &[("attempt-get", "get", "(param i32)"), ("remaining-ms", "remaining-ms", "(param i32)")],
    instance: "$attempt",
};

pub const CONFIG: Import = Import {
    interface: r#"(import "keiko:config/config@0.1.0" (instance $config
        (type $error' (variant (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "get" (func (param "key" string) (result (result (option string) (error $error)))))
        (export "get-all" (func (result (result (list (tuple string string)) (error $error)))))))"#,
    functions: &[("config-get", "get", "(param i32 i32 i32)"), ("config-get-all", "get-all", "(param i32)")],
    instance: "$config",
};

pub const PROGRESS: Import = Import {
    interface: r#"(import "keiko:progress/progress@0.1.0" (instance $progress
        (type $error' (variant (case "fraction-out-of-range") (case "message-too-long" u64) (case "denied")
            (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "report" (func (param "fraction" f64) (param "message" string)
            (result (result (error $error)))))))"#,
    functions: &[("progress", "report", "(param f64 i32 i32 i32)")],
    instance: "$progress",
};

pub const OUTPUT: Import = Import {
    interface: r#"(import "keiko:progress/output@0.1.1" (instance $output
        (type $error' (variant (case "piece-too-large" u64) (case "too-many-pieces" u64) (case "too-many-bytes" u64)
            (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "emit" (func (param "piece" (list u8)) (result (result (error $error)))))))"#,
    functions: &[("emit", "emit", "(param i32 i32 i32)")],
    instance: "$output",
};

pub const TASKS: Import = Import {
    interface: r#"(import "keiko:tasks/tasks@0.1.0" (instance $tasks
        (type $error' (variant (case "not-found" string) (case "invalid-input" string)
            (case "input-too-large" u64) (case "fan-out-exceeded" u64) (case "depth-exceeded" u32)
            (case "effects-exceeded" u64) (case "effect-bytes-exceeded" u64) (case "queue-full" u64)
            (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (type $child' (record (field "plugin" (option string)) (field "kind" (option string))
            (field "content-type" (option string)) (field "input" (list u8)) (field "key" (option string))
            (field "delay-ms" (option u64))))
        (export "child" (type $child (eq $child')))
        (export "submit" (func (param "child" $child) (result (result string (error $error)))))
        (export "submit-many" (func (param "children" (list $child))
            (result (result (list string) (error $error)))))))"#,
    functions: &[
        (
            "submit",
            "submit",
            // plugin, kind, content type: (some, pointer, length); input; key; delay; answer.
            "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)",
        ),
        ("submit-many", "submit-many", "(param i32 i32 i32)"),
    ],
    instance: "$tasks",
};

pub const AGENTS: Import = Import {
    interface: r#"(import "keiko:agents/agents@0.1.0" (instance $agents
        (type $status' (enum "idle" "active" "paused" "failed" "retired"))
        (export "status" (type $status (eq $status')))
        (type $agent' (record (field "id" string) (field "name" string) (field "kind" string)
            (field "status" $status) (field "created-ms" u64) (field "updated-ms" u64)))
        (export "agent" (type $agent (eq $agent')))
        (type $statistics' (record (field "total" u64) (field "completed" u64) (field "failed" u64)
            (field "cancelled" u64) (field "average-us" u64) (field "success-rate" f64)))
        (export "statistics" (type $statistics (eq $statistics')))
        (type $listed' (record (field "agent" $agent) (field "statistics" $statistics)))
        (export "listed" (type $listed (eq $listed')))
        (type $filter' (record (field "kind" (option string)) (field "status" (option $status))
            (field "before" (option string)) (field "limit" (option u32))))
        (export "filter" (type $filter (eq $filter')))
        (type $page' (record (field "agents" (list $listed)) (field "next" (option string))))
        (export "page" (type $page (eq $page')))
        (type $change' (record (field "agent" string) (field "status" $status)))
        (export "change" (type $change (eq $change')))
        (type $error' (variant (case "invalid-input" string) (case "ids-exceeded" u64) (case "page-exceeded" u64)
            (case "not-found" (list string)) (case "effects-exceeded" u64) (case "effect-bytes-exceeded" u64)
            (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "load" (func (param "ids" (list string)) (result (result (list (option $agent)) (error $error)))))
        (export "list-agents" (func (param "filter" $filter) (result (result $page (error $error)))))
        (export "set-statuses" (func (param "changes" (list $change)) (result (result (error $error)))))))"#,
    functions: &[
        ("load", "load", "(param i32 i32 i32)"),
        // kind: (some, pointer, length); status: (some, which); before; limit: (some, number); answer.
        ("list-agents", "list-agents", "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)"),
        ("set-statuses", "set-statuses", "(param i32 i32 i32)"),
    ],
    instance: "$agents",
};

pub const HISTORY: Import = Import {
    interface: r#"(import "keiko:history/history@0.1.0" (instance $history
        (type $state' (enum "pending" "running" "completed" "failed" "cancelled"))
        (export "state" (type $state (eq $state')))
        (type $user' (record (field "id" string) (field "name" string)))
        (export "user" (type $user (eq $user')))
        (type $agent' (record (field "id" string) (field "name" string) (field "kind" string)))
        (export "agent" (type $agent (eq $agent')))
        (type $payload' (record (field "content-type" string) (field "bytes" (list u8))))
        (export "payload" (type $payload (eq $payload')))
        (type $failure' (record (field "code" string) (field "message" string)))
        (export "failure" (type $failure (eq $failure')))
        (type $task' (record (field "id" string) (field "plugin" string) (field "kind" string)
            (field "state" $state) (field "created-ms" u64) (field "ended-ms" (option u64)) (field "user" $user)
            (field "agent" (option $agent)) (field "output" (option $payload)) (field "failure" (option $failure))))
        (export "user-task" (type $task (eq $task')))
        (type $page' (record (field "tasks" (list $task)) (field "next" (option string))))
        (export "page" (type $page (eq $page')))
        (type $range' (record (field "from-ms" u64) (field "to-ms" u64)))
        (export "date-range" (type $range (eq $range')))
        (type $statistics' (record (field "plugin" string) (field "kind" string) (field "state" $state)
            (field "count" u64) (field "average-us" u64) (field "minimum-us" u64) (field "maximum-us" u64)
            (field "p50-us" u64) (field "p95-us" u64)))
        (export "statistics" (type $statistics (eq $statistics')))
        (type $error' (variant (case "invalid-input" string) (case "page-exceeded" u64) (case "not-found" string)
            (case "answer-exceeded" u64) (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "user-tasks" (func (param "user" string) (param "before" (option string))
            (param "limit" (option u32)) (result (result $page (error $error)))))
        (export "summarize" (func (param "range" $range) (result (result (list $statistics) (error $error)))))))"#,
    functions: &[
        // user; before: (some, pointer, length); limit: (some, number); answer.
        ("user-tasks", "user-tasks", "(param i32 i32 i32 i32 i32 i32 i32 i32)"),
        ("summarize", "summarize", "(param i64 i64 i32)"),
    ],
    instance: "$history",
};

/// A guest that drops fills takes [`Guest::dropping_fills`] instead.
pub const CACHE: Import = Import {
    interface: r#"(import "keiko:cache/cache@0.1.0" (instance $cache
        (type $error' (variant (case "invalid-key" string) (case "invalid-tag" string) (case "too-many-tags" u64)
            (case "too-many-keys" u64) (case "value-too-large" u64) (case "answer-too-large" u64)
            (case "invalid-lifetime" u64) (case "fill-held") (case "fill-lost") (case "denied") (case "unavailable")
            (case "other" string)))
        (export "error" (type $error (eq $error')))
        (type $keeping' (record (field "lifetime-ms" (option u64)) (field "tags" (list string))))
        (export "keeping" (type $keeping (eq $keeping')))
        (export "fill" (type $fill (sub resource)))
        (type $filling' (variant (case "hit" (list u8)) (case "fill" (own $fill))))
        (export "filling" (type $filling (eq $filling')))
        (export "[method]fill.complete" (func (param "self" (borrow $fill)) (param "value" (list u8))
            (param "keeping" $keeping) (result (result (error $error)))))
        (export "get" (func (param "key" string) (result (result (option (list u8)) (error $error)))))
        (export "get-many" (func (param "keys" (list string))
            (result (result (list (option (list u8))) (error $error)))))
        (export "set" (func (param "key" string) (param "value" (list u8)) (param "keeping" $keeping)
            (result (result (error $error)))))
        (export "remove" (func (param "key" string) (result (result (error $error)))))
        (export "remove-tag" (func (param "tag" string) (result (result (error $error)))))
        (export "get-or-fill" (func (param "key" string) (result (result $filling (error $error)))))))"#,
    functions: &[
        ("get", "get", "(param i32 i32 i32)"),
        ("get-many", "get-many", "(param i32 i32 i32)"),
        // key; value; lifetime: (some, number); tags; answer.
        ("set", "set", "(param i32 i32 i32 i32 i32 i64 i32 i32 i32)"),
        ("remove", "remove", "(param i32 i32 i32)"),
        ("remove-tag", "remove-tag", "(param i32 i32 i32)"),
        ("get-or-fill", "get-or-fill", "(param i32 i32 i32)"),
        // fill; value; lifetime; tags; answer.
        ("complete", "[method]fill.complete", "(param i32 i32 i32 i32 i64 i32 i32 i32)"),
    ],
    instance: "$cache",
};

pub const BATCH: Import = Import {
    interface: r#"(import "keiko:batch/batch@0.1.0" (instance $batch
        (type $error' (variant (case "not-found" string) (case "invalid-input" string) (case "item-too-large" u64)
            (case "effects-exceeded" u64) (case "effect-bytes-exceeded" u64) (case "queue-full" u64) (case "denied")
            (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (type $item' (record (field "key" (option string)) (field "content-type" (option string))
            (field "bytes" (list u8))))
        (export "new-item" (type $item (eq $item')))
        (export "add" (func (param "processor" string) (param "items" (list $item))
            (result (result (list string) (error $error)))))))"#,
    functions: &[("add-items", "add", "(param i32 i32 i32 i32 i32)")],
    instance: "$batch",
};

pub const METRICS: Import = Import {
    interface: r#"(import "keiko:metrics/metrics@0.1.0" (instance $metrics
        (type $error' (variant (case "not-found" string) (case "invalid-labels" string) (case "invalid-value")
            (case "denied") (case "unavailable") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (type $label' (record (field "name" string) (field "value" string)))
        (export "label" (type $label (eq $label')))
        (export "add" (func (param "name" string) (param "labels" (list $label)) (param "more" u64)
            (result (result (error $error)))))
        (export "observe" (func (param "name" string) (param "labels" (list $label)) (param "value" f64)
            (result (result (error $error)))))))"#,
    functions: &[
        // name; labels; number; answer.
        ("count", "add", "(param i32 i32 i32 i32 i64 i32)"),
        ("observe", "observe", "(param i32 i32 i32 i32 f64 i32)"),
    ],
    instance: "$metrics",
};

pub const WALL_CLOCK: Import = Import {
    interface: r#"(import "wasi:clocks/wall-clock@0.2.0" (instance $wall
        (type $datetime' (record (field "seconds" u64) (field "nanoseconds" u32)))
        (export "datetime" (type $datetime (eq $datetime')))
        (export "now" (func (result $datetime)))))"#,
    functions: &[("wall-now", "now", "(param i32)")],
    instance: "$wall",
};

/// With the pollables that its waits are.
pub const MONOTONIC_CLOCK: Import = Import {
    interface: r#"(import "wasi:io/poll@0.2.0" (instance $poll
            (export "pollable" (type $pollable (sub resource)))
            (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
        (alias export $poll "pollable" (type $pollable))
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance $monotonic
            (alias outer 1 $pollable (type $pollable'))
            (export "pollable" (type $pollable (eq $pollable')))
            (export "now" (func (result u64)))
            (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))"#,
    functions: &[
        ("monotonic-now", "now", "(result i64)"),
        ("subscribe", "subscribe-duration", "(param i64) (result i32)"),
        ("block", "$poll [method]pollable.block", "(param i32)"),
    ],
    instance: "$monotonic",
};

pub const RANDOM: Import = Import {
    interface: r#"(import "wasi:random/random@0.2.0" (instance $random
        (export "get-random-bytes" (func (param "len" u64) (result (list u8))))
        (export "get-random-u64" (func (result u64)))))"#,
    functions: &[
        ("random-bytes", "get-random-bytes", "(param i64 i32)"),
        ("random", "get-random-u64", "(result i64)"),
    ],
    instance: "$random",
};

pub const INSECURE: Import = Import {
    interface: r#"(import "wasi:random/insecure@0.2.0" (instance $insecure
        (export "get-insecure-random-bytes" (func (param "len" u64) (result (list u8))))))"#,
    functions: &[("insecure-bytes", "get-insecure-random-bytes", "(param i64 i32)")],
    instance: "$insecure",
};

pub const INSECURE_SEED: Import = Import {
    interface: r#"(import "wasi:random/insecure-seed@0.2.0" (instance $seed
        (export "insecure-seed" (func (result (tuple u64 u64))))))"#,
    functions: &[("seed", "insecure-seed", "(param i32)")],
    instance: "$seed",
};

/// Standard error, with the streams it is one of.
pub const STDERR: Import = Import {
    interface: r#"(import "wasi:io/error@0.2.0" (instance $ioerror (export "error" (type (sub resource)))))
        (alias export $ioerror "error" (type $ioerror))
        (import "wasi:io/streams@0.2.0" (instance $streams
            (export "output-stream" (type $output (sub resource)))
            (alias outer 1 $ioerror (type $ioerror'))
            (export "error" (type $ioerror (eq $ioerror')))
            (type $error' (variant (case "last-operation-failed" (own $ioerror)) (case "closed")))
            (export "stream-error" (type $error (eq $error')))
            (export "[method]output-stream.write-zeroes" (func (param "self" (borrow $output))
                (param "len" u64) (result (result (error $error)))))
            (export "[method]output-stream.blocking-write-and-flush" (func (param "self" (borrow $output))
                (param "contents" (list u8)) (result (result (error $error)))))))
        (alias export $streams "output-stream" (type $output))
        (import "wasi:cli/stderr@0.2.0" (instance $stderr
            (alias outer 1 $output (type $output'))
            (export "output-stream" (type $output (eq $output')))
            (export "get-stderr" (func (result (own $output))))))"#,
    functions: &[
        ("get-stderr", "get-stderr", "(result i32)"),
        ("print", "$streams [method]output-stream.blocking-write-and-flush", "(param i32 i32 i32 i32)"),
        ("zeroes", "$streams [method]output-stream.write-zeroes", "(param i32 i64 i32)"),
    ],
    instance: "$stderr",
};

pub const EXIT: Import = Import {
    interface: r#"(import "wasi:cli/exit@0.2.0" (instance $exit
        (export "exit" (func (param "status" (result))))))"#,
    functions: &[("exit", "exit", "(param i32)")],
    instance: "$exit",
};

pub const SOCKETS: Import = Import {
    interface: r#"(import "wasi:sockets/network@0.2.0" (instance $network
            (type $code' (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory"
                "timeout" "concurrency-conflict" "not-in-progress" "would-block" "invalid-state"
                "new-socket-limit" "address-not-bindable" "address-in-use" "remote-unreachable"
                "connection-refused" "connection-reset" "connection-aborted" "datagram-too-large"
                "name-unresolvable" "temporary-resolver-failure" "permanent-resolver-failure"))
            (export "error-code" (type $code (eq $code')))
            (type $family' (enum "ipv4" "ipv6"))
            (export "ip-address-family" (type $family (eq $family')))))
        (alias export $network "error-code" (type $code))
        (alias export $network "ip-address-family" (type $family))
        (import "wasi:sockets/tcp@0.2.0" (instance $tcp (export "tcp-socket" (type (sub resource)))))
        (alias export $tcp "tcp-socket" (type $socket))
        (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $create
            (alias outer 1 $code (type $code'))
            (export "error-code" (type $code (eq $code')))
            (alias outer 1 $family (type $family'))
            (export "ip-address-family" (type $family (eq $family')))
            (alias outer 1 $socket (type $socket'))
            (export "tcp-socket" (type $socket (eq $socket')))
            (export "create-tcp-socket" (func (param "address-family" $family)
                (result (result (own $socket) (error $code)))))))"#,
    functions: &[("create-tcp", "create-tcp-socket", "(param i32 i32)")],
    instance: "$create",
};

/// What every module has: its memory, a bump allocator, and how to answer.
///
/// Bytes 0 to 1023 are constants, from 1024 on stands the answer of `run`, from 2048 answers of the host, from 4096
/// what the host hands over.
const LIBC: &str = r#"
    (memory (export "memory") PAGES)
    (global $next (mut i32) (i32.const 4096))
    (func (export "cabi_realloc") (param $old i32) (param $had i32) (param $align i32) (param $size i32)
        (result i32)
        (local $at i32) (local $pages i32)
        (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (global.set $next (i32.add (local.get $at) (local.get $size)))
        (local.set $pages (i32.shr_u (i32.add (global.get $next) (i32.const 65535)) (i32.const 16)))
        (if (i32.gt_u (local.get $pages) (memory.size))
            (then (if (i32.eq (memory.grow (i32.sub (local.get $pages) (memory.size))) (i32.const -1))
                (then unreachable))))
        (if (local.get $had) (then (memory.copy (local.get $at) (local.get $old)
            (select (local.get $had) (local.get $size) (i32.lt_u (local.get $had) (local.get $size))))))
        (local.get $at))
    (data (i32.const 0) "application/json")
    (data (i32.const 16) "null")
"#;

const ANSWERS: &str = r#"
    (func $answer (param $pointer i32) (param $length i32) (result i32)
        (i32.store8 (i32.const 1024) (i32.const 0))
        (i32.store (i32.const 1032) (i32.const 0))
        (i32.store (i32.const 1036) (i32.const 16))
        (i32.store (i32.const 1040) (local.get $pointer))
        (i32.store (i32.const 1044) (local.get $length))
        (i32.const 1024))
    (func $done (result i32) (call $answer (i32.const 16) (i32.const 4)))
    (func $digit (param $number i32) (result i32)
        (i32.store8 (i32.const 32) (i32.add (i32.const 48) (local.get $number)))
        (call $answer (i32.const 32) (i32.const 1)))
    (func $fail (param $case i32) (param $pointer i32) (param $length i32) (result i32)
        (i32.store8 (i32.const 1024) (i32.const 1))
        (i32.store8 (i32.const 1032) (local.get $case))
        (i32.store (i32.const 1040) (local.get $pointer))
        (i32.store (i32.const 1044) (local.get $length))
        (i32.store8 (i32.const 1048) (i32.const 0))
        (i32.const 1024))
"#;

/// A guest that is put together.
#[derive(Clone)]
pub struct Guest {
    imports: Vec<Import>,
    modules: String,
    arguments: String,
    core_imports: String,
    pages: String,
    body: String,
    types: String,
    export: String,
}

/// A guest whose `run` is `code`: it leaves the pointer of an answer, from `$answer`, `$done`, `$digit` or `$fail`.
/// Parameters are `$kind`, `$kind-length`, `$type`, `$type-length`, `$input`, `$length`; locals `$i`, `$j`, `$k`.
pub fn guest(code: &str) -> Guest {
    let body = format!(
        r#"(func $run (export "run") (param $kind i32) (param $kind-length i32) (param $type i32)
            (param $type-length i32) (param $input i32) (param $length i32) (result i32)
            (local $i i32) (local $j i32) (local $k i32)
            {code})"#
    );
    Guest {
        imports: Vec::new(),
        modules: String::new(),
        arguments: String::new(),
        core_imports: String::new(),
        pages: "1".to_owned(),
        body,
        types: task_types(),
        export: task_export(),
    }
}

impl Guest {
    /// Imports an interface.
    pub fn with(mut self, import: Import) -> Guest {
        self.imports.push(import);
        self
    }

    /// Adds to the main module.
    pub fn module(mut self, text: &str) -> Guest {
        self.body.push_str(text);
        self
    }

    /// Adds to the component, before the main module is instantiated.
    pub fn component(mut self, text: &str) -> Guest {
        self.modules.push_str(text);
        self
    }

    /// Gives the main module one more instance to import from.
    pub fn argument(mut self, text: &str) -> Guest {
        self.arguments.push_str(text);
        self
    }

    /// Lets the main module import one more function.
    pub fn import(mut self, text: &str) -> Guest {
        self.core_imports.push_str(text);
        self
    }

    /// Imports the cache and `$drop-fill`.
    pub fn dropping_fills(self) -> Guest {
        self.with(CACHE)
            .component(
                r#"(alias export $cache "fill" (type $fill)) (core func $drop-fill (canon resource.drop $fill))
                (core instance $drops (export "fill" (func $drop-fill)))"#,
            )
            .argument(r#"(with "drops" (instance $drops))"#)
            .import(r#"(import "drops" "fill" (func $drop-fill (param i32)))"#)
    }

    /// Runs no tasks: another body of the main module, and the end of the component that exports it.
    pub fn exporting(mut self, body: String, export: String) -> Guest {
        (self.body, self.export) = (body, export);
        self.types.clear();
        self
    }

    /// Changes the end of the component, where `run` is lifted and exported.
    pub fn with_export(mut self, change: impl FnOnce(String) -> String) -> Guest {
        self.export = change(self.export);
        self
    }

    /// The memory starts with, and may be bounded by, these pages.
    pub fn pages(mut self, pages: &str) -> Guest {
        self.pages = pages.to_owned();
        self
    }

    /// The component's text.
    pub fn text(&self) -> String {
        let mut interfaces = String::new();
        let (mut lowers, mut imports, mut host) = (String::new(), String::new(), String::new());
        for import in &self.imports {
            interfaces.push_str(import.interface);
            for (name, function, signature) in import.functions {
                let (instance, function) = match function.split_once(' ') {
                    Some((instance, function)) => (instance, function),
                    None => (import.instance, *function),
                };
                lowers.push_str(&format!(
                    r#"(core func ${name} (canon lower (func {instance} "{function}") (memory (core memory $libc "memory"))
                        (realloc (core func $libc "cabi_realloc"))))"#
                ));
                imports.push_str(&format!(r#"(import "host" "{name}" (func ${name} {signature}))"#));
                host.push_str(&format!(r#"(export "{name}" (func ${name}))"#));
            }
        }
        let libc = LIBC.replace("PAGES", &self.pages);
        let Guest { modules, arguments, core_imports, body, types, .. } = self;
        format!(
            r#"(component
                {interfaces}
                {types}
                (core module $Libc {libc})
                (core instance $libc (instantiate $Libc))
                {lowers}
                {modules}
                (core module $Main
                    (import "libc" "memory" (memory 0))
                    (import "libc" "cabi_realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))
                    {imports}
                    {core_imports}
                    {ANSWERS}
                    {body})
                (core instance $host {host})
                (core instance $main (instantiate $Main (with "libc" (instance $libc))
                    (with "host" (instance $host)) {arguments}))
                {}
            )"#,
            self.export
        )
    }

    /// The component.
    pub fn bytes(&self) -> Vec<u8> {
        wat::parse_str(self.text()).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What a task is given and answers, in the component or in the shim that exports it.
fn task_shapes() -> String {
    let failure =
        r#"(variant (case "invalid-input" string) (case "permanent" string) (case "retryable" $retryable))"#;
    format!(
        r#"(type $payload' (record (field "content-type" string) (field "bytes" (list u8))))
        (OUT "payload" (type $payload (eq $payload')))
        (type $retryable' (record (field "message" string) (field "retry-after-ms" (option u64))))
        (OUT "retryable" (type $retryable (eq $retryable')))
        (type $failure' {failure})
        (OUT "failure" (type $failure (eq $failure')))"#
    )
}

fn task_types() -> String {
    format!(
        r#"(import "keiko:plugin/types@0.1.0" (instance $types {}))
        (alias export $types "payload" (type $payload))
        (alias export $types "retryable" (type $retryable))
        (alias export $types "failure" (type $failure))"#,
        task_shapes().replace("OUT", "export")
    )
}

fn task_export() -> String {
    let function =
        r#"(param "kind" string) (param "input" $payload) (result (result $payload (error $failure)))"#;
    let imported = task_shapes().replace("OUT", "import");
    format!(
        r#"(func $run {function} (canon lift (core func $main "run") (memory (core memory $libc "memory"))
            (realloc (core func $libc "cabi_realloc"))))
        (component $Shim
            {imported}
            (import "run" (func $run {function}))
            (export $payload2 "payload" (type $payload))
            (export $failure2 "failure" (type $failure))
            (export "run" (func $run) (func (param "kind" string) (param "input" $payload2)
                (result (result $payload2 (error $failure2))))))
        (instance $task (instantiate $Shim (with "payload" (type $payload)) (with "retryable" (type $retryable))
            (with "failure" (type $failure)) (with "run" (func $run))))
        (export "keiko:plugin/task@0.1.0" (instance $task))"#
    )
}
