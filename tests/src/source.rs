//! The tree's own text, as its rules look at it: which files there are, and which functions stand in them.
//!
//! It reads lines, not syntax: that is enough for code that rustfmt laid out, and needs no parser.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tree;

/// What holds nothing of ours. `.git` is a file in a linked work tree.
const NOT_OURS: &[&str] = &["target", "data", ".git"];

/// A text file of the tree.
#[derive(Clone, Debug)]
pub struct Source {
    /// From the root of the checkout, with `/`.
    pub path: String,
    /// The whole text.
    pub text: String,
}

/// A function in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins, from 1.
    pub line: usize,
    /// Lines from `fn` to the closing brace; 0 without a body.
    pub lines: usize,
    /// Whether an attribute makes it a test.
    pub is_test: bool,
}

/// Every file of the tree with this ending, in order.
pub fn files(ending: &str) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![tree::root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            let path_from_root = from_root(&path);
            if NOT_OURS.contains(&path_from_root.as_str()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() && path_from_root.ends_with(ending) {
                // Files that are not text are nobody's source.
                sources
                    .extend(fs::read_to_string(&path).ok().map(|text| Source { path: path_from_root, text }));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

impl Source {
    /// The text before the file's own tests.
    pub fn before_tests(&self) -> &str {
        let tests = self.text.find("\n#[cfg(test)]\nmod ");
        &self.text[..tests.map_or(self.text.len(), |at| at + 1)]
    }

    /// Whether the whole file is tests.
    pub fn is_test(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.starts_with("tests/") && !self.path.starts_with("tests/fixtures/")
    }

    /// Every line with its number that is code, not a comment.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.text).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Every function, in order.
    pub fn functions(&self) -> Vec<Function<'_>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let function = |at: usize| {
            let name = function_name(lines[at])?;
            Some(Function { name, line: at + 1, lines: length(&lines[at..]), is_test: is_test(&lines[..at]) })
        };
        (0..lines.len()).filter_map(function).collect()
    }
}

/// The path from the root of the checkout, with `/`.
pub fn from_root(path: &Path) -> String {
    let short: PathBuf = path.strip_prefix(tree::root()).unwrap_or(path).to_owned();
    short.to_string_lossy().into_owned()
}

/// Lines with their numbers from 1.
pub fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// The name after `fn`, when the line begins a function.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    while let Some(after) = strip_qualifier(rest) {
        rest = after;
    }
    let rest = rest.strip_prefix("fn ")?;
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    // `fn $name()` stands in a macro: whatever it makes has its name and length elsewhere.
    (end > 0).then(|| &rest[..end])
}

fn strip_qualifier(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix("pub(") {
        return rest.split_once(") ").map(|(_, rest)| rest);
    }
    ["pub ", "const ", "async ", "unsafe ", "extern \"C\" "].iter().find_map(|word| text.strip_prefix(word))
}

/// From the line with `fn` to the line that closes it at the same depth.
fn length(lines: &[&str]) -> usize {
    let indent = &lines[0][..lines[0].len() - lines[0].trim_start().len()];
    let signature =
        lines.iter().position(|line| line.ends_with('{') || line.ends_with('}') || line.ends_with(';'));
    match signature {
        Some(at) if lines[at].ends_with('{') => {
            let closes = |line: &&str| line.strip_prefix(indent) == Some("}");
            lines.iter().position(closes).map_or(lines.len(), |at| at + 1)
        }
        Some(at) if lines[at].ends_with('}') => at + 1,
        _ => 0,
    }
}

/// Whether the attributes right above make a test.
fn is_test(above: &[&str]) -> bool {
    let attributes = above.iter().rev().take_while(|line| {
        let line = line.trim_start();
        line.starts_with("#[") || line.starts_with("///")
    });
    attributes.into_iter().any(|line| {
        let line = line.trim_start();
        line.starts_with("#[test]") || line.starts_with("#[tokio::test")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "//! x\npub(crate) async fn one(\n    a: u8,\n) -> u8 {\n    if a {\n    }\n    a\n}\n
trait T {\n    fn two(&self);\n}\n\n#[cfg(test)]\nmod tests {\n    /// Says.\n    #[test]\n    fn three() {}\n}\n";

    #[test]
    fn functions_are_found_with_their_length_and_their_kind() {
        let source = Source { path: "a.rs".to_owned(), text: SAMPLE.to_owned() };
        let functions = source.functions();
        let expected = [("one", 7, false), ("two", 0, false), ("three", 1, true)];
        let found: Vec<_> =
            functions.iter().map(|function| (function.name, function.lines, function.is_test)).collect();
        assert_eq!(found, expected);
        assert!(source.before_tests().ends_with("}\n\n") && !source.before_tests().contains("three"));
    }

    #[test]
    fn the_tree_is_seen_without_what_is_built() -> Result<()> {
        let sources = files(".rs")?;
        assert!(sources.iter().any(|source| source.path == "tests/src/source.rs"));
        assert!(!sources.iter().any(|source| source.path.starts_with("target/")));
        Ok(())
    }
}
