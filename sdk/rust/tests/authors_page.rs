//! Holds `docs/plugin-authors.md` against the plugin that it makes, which is built and tested as `plugins/word-count`.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "page/data.rs"]
mod data;

use std::fs;

use keiko_sdk::Failure;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn read(path: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The first block of code behind a line that begins with `mark`.
fn block(page: &str, mark: &str) -> String {
    let behind = page.split(&format!("\n{mark}")).nth(1).unwrap_or_else(|| panic!("no line with {mark}"));
    let code = behind.split("\n```").nth(1).unwrap();
    code.split_once('\n').unwrap().1.to_owned() + "\n"
}

#[test]
fn the_page_shows_the_manifest_as_it_is() {
    let page = read("docs/plugin-authors.md");
    assert_eq!(block(&page, "`plugin.toml`"), read("plugins/word-count/plugin.toml"));
}

#[test]
fn the_page_shows_the_code_as_it_is() {
    let page = read("docs/plugin-authors.md");
    let code = read("plugins/word-count/src/lib.rs");
    let (_doc, behind_doc) = code.split_once("\n\n").unwrap();
    let (before_tests, _tests) = behind_doc.split_once("\n#[cfg(test)]").unwrap();
    assert_eq!(block(&page, "`src/lib.rs`"), before_tests);
}

#[test]
fn the_page_shows_how_data_is_asked_for() {
    let page = read("docs/plugin-authors.md");
    let code = read("sdk/rust/tests/page/data.rs");
    let (_doc, behind_doc) = code.split_once("\n\n").unwrap();
    assert_eq!(block(&page, "Each call of `agents`"), behind_doc);
    // Without a host nothing is known, and a later attempt may have one.
    assert!(matches!(data::rest_the_unlucky(), Err(Failure::Retryable { .. })));
    assert!(matches!(data::last_result("user_0000000000001"), Err(Failure::Retryable { .. })));
}
