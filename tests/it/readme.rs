//! What the README says to type works as it stands there, and what it promises has the tests it names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use keiko_tests::{source, tree};

use crate::Running;

/// A fenced block: what stands after the fence, and its text.
struct Block {
    info: String,
    text: String,
}

fn blocks(section: &str) -> Vec<Block> {
    let readme = fs::read_to_string(tree::root().join("README.md")).unwrap();
    let rest = readme.split(&format!("## {section}\n")).nth(1).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let fenced = section.split("```").skip(1).step_by(2);
    let block = |text: &str| {
        let (info, text) = text.split_once('\n').unwrap();
        Block { info: info.to_owned(), text: text.to_owned() }
    };
    fenced.map(block).collect()
}

/// Runs a block of commands in `folder` as a person would, with our program in the path and `server` as the host.
fn type_in(commands: &str, folder: &Path, server: &str) -> Output {
    let programs = tree::program().unwrap().parent().unwrap().to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", commands]).current_dir(folder);
    shell.env("PATH", path).env("KEIKO_SERVER", server);
    // Cargo is told nothing of the build that runs this test.
    let output = shell.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands}\n{said}");
    output
}

#[test]
fn the_first_plugin_works_as_it_is_written() {
    let running = Running::start();
    let folder = running.folder.path();
    let plugin = folder.join("word-count");
    fs::create_dir_all(plugin.join("src")).unwrap();
    symlink(tree::root(), folder.join("keiko")).unwrap();
    // What it builds is kept, so that only the first run of this test compiles the dependencies.
    let built = tree::target_dir().join("readme");
    fs::create_dir_all(&built).unwrap();
    symlink(built, plugin.join("target")).unwrap();
    // The versions that the tree was tested with, and nothing to download.
    fs::copy(tree::root().join("Cargo.lock"), plugin.join("Cargo.lock")).unwrap();
    let server = format!("http://{}", running.client.address());
    let mut results = Vec::new();
    for block in blocks("A first plugin") {
        match block.info.split_once(' ') {
            Some((_, file)) => fs::write(plugin.join(file), block.text).unwrap(),
            None => results.push(String::from_utf8(type_in(&block.text, &plugin, &server).stdout).unwrap()),
        }
    }
    assert_eq!(results.len(), 2);
    assert!(results[0].contains("{\"words\":6}"), "{}", results[0]);
    assert!(results[1].contains("\"words\":6") || results[1].contains("\"words\": 6"), "{}", results[1]);
    assert_eq!(running.client.count("completed").unwrap(), 1);
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let readme = fs::read_to_string(tree::root().join("README.md")).unwrap();
    let rows = readme.split("## What it promises\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let sources = source::files(".rs").unwrap();
    let mut promises = 0;
    for row in rows.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let test = row.rsplit('`').nth(1).unwrap();
        let exists = sources
            .iter()
            .any(|source| source.functions().iter().any(|found| found.is_test && found.name == test));
        assert!(exists, "there is no test `{test}`: {row}");
        promises += 1;
    }
    assert!(promises >= 5, "{promises}");
}
