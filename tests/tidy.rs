//! The rules about this tree: layers, sizes, names, spawn sites, the contract's hash, links, and what must not be there.
//!
//! Every rule collects all its violations before it fails, so that one run shows everything there is to mend. Lists
//! of exceptions may only shrink.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use keiko_tests::source::{self, Source};
use keiko_tests::tree;

/// Longest function, in lines.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file before its tests, in lines.
const FILE_LINES_MAX: usize = 600;
/// Words that say nothing about what is meant.
const BANNED_WORDS: &[&str] = &["util", "utils", "helper", "helpers", "common", "manager", "misc"];
/// The only files that may start a thread, a task or a process.
const SPAWN_SITES: &[&str] = &[
    "host/runtime/src/service.rs",
    // Attempts, on the thread of their worker.
    "host/runtime/src/worker.rs",
    "host/store/src/transaction.rs",
    "host/engine/src/epoch.rs",
    "host/engine/src/compile/",
    // What takes long in an install.
    "host/engine/src/lib.rs",
    "host/server/src/wiring.rs",
];
/// What starts one.
const SPAWNS: &[&str] = &[
    concat!("tokio::spa", "wn("),
    concat!("thread::spa", "wn("),
    concat!("thread::", "Builder"),
    concat!("task::spa", "wn"),
    concat!("spawn_", "blocking("),
    concat!("spawn_", "local("),
    concat!("Join", "Set::"),
    concat!("Command::", "new("),
];
/// Whose package may depend on which of ours.
const LAYERS: &[(&str, &[&str])] = &[
    ("keiko-core", &[]),
    ("keiko-store", &["keiko-core"]),
    ("keiko-runtime", &["keiko-core"]),
    ("keiko-engine", &["keiko-core"]),
    ("keiko", &["keiko-core", "keiko-store", "keiko-runtime", "keiko-engine"]),
    ("keiko-sdk", &["keiko-sdk-macros"]),
    ("keiko-sdk-macros", &[]),
    // The whole program is tested from outside: nothing here links it.
    ("keiko-tests", &[]),
    ("keiko-componentize", &[]),
    ("xtask", &["keiko-tests"]),
];
/// What tests of a layer may use beside that: the runtime's promises are kept on the real store, and the program's on
/// databases of the harness.
const TEST_LAYERS: &[(&str, &str)] = &[("keiko-runtime", "keiko-store"), ("keiko", "keiko-tests")];
/// Who alone may name a dependency.
const OWNERS: &[(&str, &[&str])] = &[
    ("sqlx", &["keiko-store"]),
    ("redis", &["keiko-store"]),
    ("wasmtime", &["keiko-engine"]),
    ("wasmtime-wasi", &["keiko-engine"]),
    ("axum", &["keiko"]),
    ("clap", &["keiko"]),
    ("anyhow", &["keiko", "keiko-tests", "keiko-componentize", "xtask"]),
];

/// Fails with all violations, one a line.
fn none(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}

fn rust() -> Vec<Source> {
    source::files(".rs").unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(tree::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What cargo tells of a package of the workspace.
#[derive(serde::Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(serde::Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or neither.
    kind: Option<String>,
}

/// Read without a library for it: that asks for features of others which would then be compiled once with tests and once without.
fn packages() -> Vec<Package> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(tree::root());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Metadata>(&output.stdout).unwrap().packages
}

#[test]
fn layers_use_only_what_is_below_them() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut violations = Vec::new();
    for package in &packages {
        // Plugins and guest fixtures: they have the SDK and nothing of the host.
        let guest: (&str, &[&str]) = (package.name.as_str(), &["keiko-sdk"]);
        let (name, allowed) =
            *LAYERS.iter().find(|(name, _)| *name == package.name.as_str()).unwrap_or(&guest);
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            let in_tests = dependency.kind.as_deref() == Some("dev");
            let fits = allowed.contains(&used) || in_tests && TEST_LAYERS.contains(&(name, used));
            if ours.contains(used) && used != name && !fits {
                violations.push(format!("{name} uses {used}"));
            }
            let owners = OWNERS.iter().find(|(owned, _)| *owned == used).map(|(_, owners)| *owners);
            if owners.is_some_and(|owners| !owners.contains(&name)) && !(used == "anyhow" && in_tests) {
                violations.push(format!("{name} names {used}"));
            }
        }
    }
    none("a layer uses what is not below it", violations);
}

#[test]
fn functions_are_short() {
    let mut violations = Vec::new();
    for source in rust() {
        for function in source.functions() {
            if function.lines > FUNCTION_LINES_MAX {
                violations
                    .push(format!("{}:{} {}: {}", source.path, function.line, function.name, function.lines));
            }
        }
    }
    none("functions of more than 70 lines", violations);
}

#[test]
fn files_are_short() {
    let mut violations = Vec::new();
    for source in rust() {
        let lines = source.before_tests().lines().count();
        if lines > FILE_LINES_MAX {
            violations.push(format!("{}: {lines}", source.path));
        }
    }
    none("files of more than 600 lines before their tests", violations);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = rust().into_iter().filter(|source| {
        let first = source.text.lines().next().unwrap_or_default();
        first.strip_prefix("//! ").is_none_or(|doc| doc.len() < 10)
    });
    none("files that do not open with `//!`", silent.map(|source| source.path).collect());
}

#[test]
fn names_say_what_is_meant() {
    let mut violations = Vec::new();
    for source in rust() {
        let stem = source.path.trim_end_matches(".rs");
        for word in stem.split(['/', '_', '-']).filter(|word| BANNED_WORDS.contains(word)) {
            violations.push(format!("{}: `{word}` in the path", source.path));
        }
        for (number, line) in source.code() {
            let declared = declared_name(line).unwrap_or_default();
            if words(declared).iter().any(|word| BANNED_WORDS.contains(&word.as_str())) {
                violations.push(format!("{}:{number} `{declared}`", source.path));
            }
        }
    }
    none("names that say nothing", violations);
}

/// The name that a line declares: a type, a trait, a module, a function.
fn declared_name(line: &str) -> Option<&str> {
    let keywords = ["struct ", "enum ", "trait ", "mod ", "fn ", "type "];
    let rest = keywords.iter().find_map(|keyword| {
        let (before, rest) = line.trim_start().split_once(keyword)?;
        let qualifier = |word: &str| word.starts_with("pub") || matches!(word, "async" | "const" | "unsafe");
        before.split_whitespace().all(qualifier).then_some(rest)
    })?;
    rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next()
}

/// `CacheManager` and `cache_manager` as `cache`, `manager`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() {
            words.push(String::new());
        }
        if let (Some(last), true) = (words.last_mut(), letter != '_') {
            last.extend(letter.to_lowercase());
        }
    }
    words
}

#[test]
fn tests_are_named_by_their_outcome() {
    let mut violations = Vec::new();
    for source in rust() {
        let functions = source.functions();
        for function in
            functions.iter().filter(|function| function.is_test && function.name.starts_with("test_"))
        {
            violations.push(format!("{}:{} {}", source.path, function.line, function.name));
        }
    }
    none("tests named `test_…`", violations);
}

/// Needles are put together here so that this file does not find itself.
#[test]
fn nothing_is_unfinished_ignored_or_sleeping() {
    let never = [
        concat!("#[", "ignore"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
    ];
    let sleeps =
        [concat!("thread::", "sleep("), concat!("time::", "sleep("), concat!("time::", "sleep_until(")];
    let mut violations = Vec::new();
    for source in rust().iter().filter(|source| !source.path.starts_with("tests/fixtures/")) {
        let first_test_line = if source.is_test() { 0 } else { source.before_tests().lines().count() };
        for (number, line) in source.code() {
            let found = |needles: &[&str]| needles.iter().any(|needle| line.contains(needle));
            // A timer of a running part is no sleep of a test.
            if found(&never) || number > first_test_line && found(&sleeps) {
                violations.push(format!("{}:{number} {}", source.path, line.trim()));
            }
        }
    }
    none("unfinished, ignored, or sleeping in a test", violations);
}

#[test]
fn threads_and_tasks_are_started_in_the_named_places() {
    let mut violations = Vec::new();
    for source in rust().iter().filter(|source| source.path.starts_with("host/") && !source.is_test()) {
        if SPAWN_SITES.iter().any(|site| source.path.starts_with(site)) {
            continue;
        }
        let before_tests = source::numbered(source.before_tests());
        for (number, line) in before_tests.filter(|(_, line)| !line.trim_start().starts_with("//")) {
            if SPAWNS.iter().any(|spawn| line.contains(spawn)) {
                violations.push(format!("{}:{number} {}", source.path, line.trim()));
            }
        }
    }
    none("spawns outside of the named places", violations);
}

#[test]
fn the_contract_and_its_hash_change_together() {
    let mut files = source::files(".wit").unwrap();
    files.retain(|file| file.path.starts_with("wit/"));
    let mut hasher = blake3::Hasher::new();
    for file in &files {
        for text in [&file.path, &file.text] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    let hash = format!("blake3:{}", hasher.finalize().to_hex());
    let readme = read("wit/README.md");
    assert!(
        readme.contains(&hash),
        "wit/README.md has another hash; if the change of wit/ is meant, write {hash}"
    );
    for file in &files {
        let package =
            file.text.lines().find_map(|line| line.strip_prefix("package ")).unwrap().trim_end_matches(';');
        assert!(readme.contains(&format!("`{package}`")), "wit/README.md has no row for {package}");
    }
}

#[test]
fn every_item_of_the_contract_is_documented_and_dated() {
    let mut violations = Vec::new();
    for file in source::files(".wit").unwrap().iter().filter(|file| file.path.starts_with("wit/")) {
        let (mut documented, mut dated) = (false, false);
        for (number, line) in source::numbered(&file.text) {
            let line = line.trim();
            match wit_needs(line) {
                Wit::Doc => documented = true,
                Wit::Date => dated = true,
                Wit::Nothing => {}
                Wit::Item { doc, date } => {
                    if doc && !documented {
                        violations.push(format!("{}:{number} has no `///`: {line}", file.path));
                    }
                    if date && !dated {
                        violations.push(format!("{}:{number} has no `@since`: {line}", file.path));
                    }
                    (documented, dated) = (false, false);
                }
            }
        }
    }
    none("items of the contract", violations);
}

/// What a line of WIT is: a comment, a date, an item that needs some of both, or nothing of interest.
enum Wit {
    Doc,
    Date,
    Nothing,
    Item { doc: bool, date: bool },
}

fn wit_needs(line: &str) -> Wit {
    let first = line.split([' ', ':', '(', ',', '{']).next().unwrap_or_default();
    match first {
        "///" => Wit::Doc,
        "@since" | "@unstable" => Wit::Date,
        "" | "}" | "//" => Wit::Nothing,
        "package" => Wit::Item { doc: true, date: false },
        "use" | "import" | "export" | "include" => Wit::Item { doc: false, date: true },
        "interface" | "world" | "record" | "variant" | "enum" | "flags" | "resource" | "type" => {
            Wit::Item { doc: true, date: true }
        }
        _ if line.contains(": func(") => Wit::Item { doc: true, date: true },
        // A field or a case.
        _ => Wit::Item { doc: true, date: false },
    }
}

#[test]
fn every_guest_has_a_test_of_its_name() {
    let rust = rust();
    let tests: Vec<&Source> = rust.iter().filter(|source| source.is_test()).collect();
    let named = |name: &str| {
        let function = format!("fn {name}()");
        let attack = format!("    {name},");
        tests.iter().any(|source| {
            source.path.ends_with(&format!("/{name}.rs"))
                || source.text.contains(&function)
                || source.path == "tests/it/hostile.rs" && source.text.contains(&attack)
        })
    };
    let mut guests: Vec<String> = source::files(".wat").unwrap().into_iter().map(|file| file.path).collect();
    let fixtures = fs::read_dir(tree::root().join("tests/fixtures/guests")).unwrap();
    guests.extend(fixtures.map(|entry| source::from_root(&entry.unwrap().path())));
    // What others are put into is no guest by itself.
    guests.retain(|path| !path.ends_with("/shell.wat"));
    // One that the program itself carries is tested beside the code that carries it.
    let carried = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let in_a_test = format!("include_str!(\"{file}\")");
        rust.iter()
            .any(|source| source.text.contains(&in_a_test) && source.before_tests().len() < source.text.len())
    };
    let nameless = guests.into_iter().filter(|path| {
        let stem = Path::new(path).file_stem().unwrap().to_string_lossy().replace('-', "_");
        !named(&stem) && !carried(path)
    });
    none("guests without a test of the same name", nameless.collect());
}

#[test]
fn migrations_are_numbered_and_equal_on_both_databases() {
    let names = |database: &str| -> Vec<String> {
        let folder = tree::root().join("migrations").join(database);
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let (sqlite, postgres) = (names("sqlite"), names("postgres"));
    assert!(!sqlite.is_empty(), "there are no migrations");
    for (index, name) in sqlite.iter().enumerate() {
        let rest =
            name.strip_prefix(&format!("{:04}_", index + 1)).and_then(|rest| rest.strip_suffix(".sql"));
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(rest.is_some_and(plain), "{name} is not {:04}_words_like_these.sql", index + 1);
    }
    // The second database arrives with all numbers at once.
    assert!(postgres.is_empty() || postgres == sqlite, "{sqlite:?} and {postgres:?}");
}

#[test]
fn links_and_paths_in_documents_lead_somewhere() {
    let mut violations = Vec::new();
    for document in source::files(".md").unwrap() {
        let folder = Path::new(&document.path).parent().unwrap().to_owned();
        for (number, line) in source::numbered(&document.text) {
            for link in links(line) {
                let target = link.split('#').next().unwrap_or_default();
                let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
                if !outside && !tree::root().join(&folder).join(target).exists() {
                    violations.push(format!("{}:{number} {link}", document.path));
                }
            }
            let is_map = document.path == "docs/architecture.md";
            for path in quoted(line).filter(|text| is_map && text.contains('/') && text.contains(".rs")) {
                // The map leaves out `host/`.
                if !tree::root().join(path).exists() && !tree::root().join("host").join(path).exists() {
                    violations.push(format!("{}:{number} `{path}`", document.path));
                }
            }
        }
    }
    none("links that lead nowhere", violations);
}

/// Targets of `[text](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains(' '))
}

/// Texts between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_module_is_on_the_map() {
    let document = read("docs/architecture.md");
    let map = document.split("## Code map").nth(1).and_then(|rest| rest.split("## Decisions").next());
    let map = map.expect("docs/architecture.md has a code map");
    let named: BTreeSet<&str> =
        map.split(|letter: char| !letter.is_alphanumeric() && !"_-".contains(letter)).collect();
    let mut missing = Vec::new();
    for source in rust().iter().filter(|source| source.path.starts_with("host/")) {
        let mut parts = source.path.trim_end_matches(".rs").rsplit('/');
        let (file, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let name = if ["mod", "tests"].contains(&file) { folder } else { file };
        let is_module = source.path.split('/').nth(2) == Some("src") && !["lib", "main"].contains(&name);
        if is_module && !named.contains(name) {
            missing.push(source.path.clone());
        }
    }
    none("files of docs/architecture.md's code map", missing);
}

#[test]
fn every_invariant_names_a_test_that_exists() {
    let rust = rust();
    // A body of the conformance suite is made a test of each store by a macro, so its own attribute is elsewhere.
    let is_body = |source: &Source| {
        let suites = ["host/store/tests/conformance/", "host/store/tests/levels.rs"];
        suites.iter().any(|suite| source.path.starts_with(suite))
    };
    let tests_of =
        |source| Source::functions(source).into_iter().filter(move |test| test.is_test || is_body(source));
    let tests: BTreeSet<&str> = rust.iter().flat_map(tests_of).map(|test| test.name).collect();
    let map = read("docs/architecture.md");
    let table = map.split("## Invariants").nth(1).expect("docs/architecture.md has a section Invariants");
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
    let mut violations = Vec::new();
    for row in rows {
        let kept_by = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named: Vec<&str> = quoted(kept_by).map(|name| name.rsplit("::").next().unwrap_or(name)).collect();
        if named.is_empty() {
            violations.push(format!("names no test: {row}"));
        }
        let checks = ["kill", "hostile"];
        let unknown = named.into_iter().filter(|name| !tests.contains(name) && !checks.contains(name));
        violations.extend(unknown.map(|name| format!("there is no test `{name}`: {row}")));
    }
    none("invariants of docs/architecture.md", violations);
}

#[test]
fn nothing_names_this_machine_or_a_registry() {
    let needles = [
        concat!("/work/", "main"),
        concat!("/work/", "shared"),
        concat!("/ro", "ot/"),
        concat!("/fa", "rm/"),
        concat!("crates", ".io"),
        concat!("registry.", "npmjs"),
        concat!("py", "pi.org"),
        concat!("deb.", "debian.org"),
    ];
    let mut violations = Vec::new();
    for file in source::files("").unwrap().iter().filter(|file| !file.path.ends_with("Cargo.lock")) {
        for (number, line) in source::numbered(&file.text) {
            for needle in needles.iter().filter(|needle| line.contains(**needle)) {
                violations.push(format!("{}:{number} {needle}", file.path));
            }
        }
    }
    none("paths of a machine, or hosts of a registry", violations);
}

#[test]
fn every_log_field_is_documented() {
    let document = read("docs/telemetry.md");
    let known: BTreeSet<&str> =
        document.lines().filter(|line| line.starts_with("| `")).flat_map(quoted).collect();
    let mut unknown: BTreeMap<String, String> = BTreeMap::new();
    for source in rust().iter().filter(|source| source.path.starts_with("host/")) {
        for field in log_fields(source.before_tests()) {
            if !known.contains(field.as_str()) {
                unknown.insert(field, source.path.clone());
            }
        }
    }
    let violations = unknown.into_iter().map(|(field, path)| format!("`{field}` in {path}")).collect();
    none("log fields that docs/telemetry.md does not have", violations);
}

/// Names of the fields of every event and span in a text.
fn log_fields(text: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let macros =
        ["error", "warn", "info", "debug", "trace", "error_span", "info_span", "debug_span", "trace_span"];
    for name in macros {
        for after in text.split(&format!("tracing::{name}!(")).skip(1) {
            fields.extend(arguments(after).into_iter().filter_map(|argument| field_name(&argument)));
        }
    }
    fields
}

/// The arguments of a macro call whose opening parenthesis was just passed, split at its own commas.
fn arguments(text: &str) -> Vec<String> {
    let (mut depth, mut in_text) = (1, false);
    let mut arguments = vec![String::new()];
    for letter in text.chars() {
        match letter {
            '"' => in_text = !in_text,
            '(' | '[' | '{' if !in_text => depth += 1,
            ')' | ']' | '}' if !in_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if letter == ',' && depth == 1 && !in_text {
            arguments.push(String::new());
        } else if let Some(last) = arguments.last_mut() {
            last.push(letter);
        }
    }
    arguments
}

/// The field that an argument sets; `None` for the message and the target.
fn field_name(argument: &str) -> Option<String> {
    let argument = argument.trim();
    if argument.is_empty() || argument.starts_with('"') || argument.starts_with("target:") {
        return None;
    }
    let name = argument.split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?']);
    // `worker.name` as a shorthand sets a field of the last name.
    Some(name.rsplit('.').next().unwrap_or(name).to_owned())
}

#[test]
fn fields_are_read_from_any_form_of_an_event() {
    let text =
        r#"tracing::warn!(error = %error, task.id, ?outcome, "a, (message)"); tracing::info!("none");"#;
    assert_eq!(log_fields(text), ["error", "id", "outcome"]);
    assert_eq!(words("CacheManager"), ["", "cache", "manager"]);
    assert_eq!(declared_name("    pub(crate) async fn run_common(&self) {"), Some("run_common"));
}
