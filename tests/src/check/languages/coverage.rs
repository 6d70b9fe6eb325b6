//! What the contract has: its functions and the cases of their errors, read from the WIT, and which of them were met.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::tree;

/// Cases that no host of this version answers, or not at a size that a test has, with the reason.
const NEVER: &[(&str, &str, &str)] = &[
    ("*", "other", "it is for hosts to come: this one has a case for everything that it says"),
    ("keiko:attempt/attempt", "unavailable", "the facts of an attempt are at hand"),
    ("keiko:config/config", "unavailable", "settings are at hand"),
    ("keiko:progress/progress", "unavailable", "progress is kept in memory"),
    ("keiko:progress/output", "unavailable", "what is given out is kept in memory"),
    ("keiko:metrics/metrics", "unavailable", "metrics are kept in memory"),
    (
        "keiko:tasks/tasks",
        "unavailable",
        "ids are reserved ahead: only a database that is away for long answers it",
    ),
    (
        "keiko:agents/agents",
        "effect-bytes-exceeded",
        "as many statuses as an attempt may set are smaller than that",
    ),
    ("keiko:history/history", "answer-exceeded", "4 MiB of statistics are those of 20,000 kinds of tasks"),
    ("keiko:cache/cache", "fill-lost", "the SDK of Rust has no way to complete a fill twice"),
];

/// Functions, and cases of errors, each as it is named: `keiko:cache/cache.get`, `keiko:cache/cache!denied`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    functions: BTreeSet<String>,
    cases: BTreeSet<String>,
}

impl Met {
    /// A function was called, and answered this.
    pub fn answer(&mut self, function: &str, answer: &Value) {
        self.functions.insert(function.to_owned());
        if let (Some(case), Some((interface, _))) =
            (answer["error"]["name"].as_str(), function.split_once('.'))
        {
            self.cases.insert(format!("{interface}!{case}"));
        }
    }

    /// What the contract has and nothing met, beyond what never is.
    pub fn missing(&self, contract: &Met) -> Vec<String> {
        let is_never = |case: &&String| {
            let (interface, name) = case.split_once('!').unwrap_or_default();
            NEVER.iter().any(|(of, never, _)| (*of == "*" || *of == interface) && *never == name)
        };
        let functions = contract.functions.difference(&self.functions);
        functions
            .chain(contract.cases.difference(&self.cases).filter(|case| !is_never(case)))
            .cloned()
            .collect()
    }

    /// How many there are of each.
    pub fn counts(&self) -> (usize, usize) {
        (self.functions.len(), self.cases.len())
    }
}

/// Everything that the packages under `wit/deps` have.
pub fn contract() -> Result<Met> {
    let mut met = Met::default();
    let folder = tree::root().join("wit/deps");
    for package in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        for file in fs::read_dir(package?.path())? {
            let path = file?.path();
            read(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?, &mut met);
        }
    }
    Ok(met)
}

/// A file of one package with one interface, as ours are: a line for each function and each case.
fn read(text: &str, met: &mut Met) {
    let (mut package, mut interface, mut resource, mut is_error) = ("", "", "", false);
    for line in text.lines() {
        let code = line.trim();
        if let Some(name) = code.strip_prefix("package ") {
            package = name.split('@').next().unwrap_or_default();
        } else if let Some(name) = code.strip_prefix("interface ") {
            interface = name.trim_end_matches(" {");
        } else if let Some(name) = code.strip_prefix("resource ") {
            resource = name.trim_end_matches(" {");
        } else if code == "variant error {" {
            is_error = true;
        } else if code == "}" {
            (is_error, resource) = (false, "");
        } else if is_error && !code.starts_with("//") && code.ends_with(',') {
            let case = code.trim_end_matches(',').split('(').next().unwrap_or_default();
            met.cases.insert(format!("{package}/{interface}!{case}"));
        } else if let Some((name, _)) = code.split_once(": func(") {
            let method = if resource.is_empty() { String::new() } else { format!("[method]{resource}.") };
            met.functions.insert(format!("{package}/{interface}.{method}{name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_contract_is_read_from_its_files() -> Result<()> {
        let contract = contract()?;
        let has = |name: &str| contract.functions.contains(name) || contract.cases.contains(name);
        for name in [
            "keiko:attempt/attempt.remaining-ms",
            "keiko:cache/cache.[method]fill.complete",
            "keiko:cache/cache.get-or-fill",
            "keiko:tasks/tasks.submit-joined",
            "keiko:tasks/tasks!fan-out-exceeded",
            "keiko:agents/agents!not-found",
        ] {
            assert!(has(name), "{name} of {contract:?}");
        }
        assert_eq!(contract.counts(), (27, 71));
        Ok(())
    }

    #[test]
    fn what_was_not_met_is_missing_unless_it_never_is() {
        let mut contract = Met::default();
        read(
            "package a:b@1.0.0;\ninterface c {\n  variant error {\n    denied,\n    other(string),\n  }\n  d: func();\n}",
            &mut contract,
        );
        let mut met = Met::default();
        assert_eq!(met.missing(&contract), ["a:b/c.d", "a:b/c!denied"]);
        met.answer("a:b/c.d", &json!({"error": {"name": "denied"}}));
        assert_eq!(met.missing(&contract), [""; 0]);
    }
}
