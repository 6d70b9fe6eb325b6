//! The contract with plugins, met in four languages: one guest and one example in each, asked the same by the same code.
//!
//! Each language has tenants of its own on one host, under the same policies and with the same names. Promises: every row of
//! [`rows`] is answered as it says; every function of the contract is called, and every case of its errors is met that a host
//! answers; items that a processor is handed end as it says; the SDKs of Rust, Python and TypeScript keep what a function
//! answers; `text-digest` gives the same bytes in all languages, for the example's
//! vectors and for random texts; a result that is kept equals one that is computed again.
//!
//! The long form also counts how many tasks of Python and TypeScript a second has that do nothing.

mod coverage;
mod digests;
mod rows;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::coverage::Met;
use self::rows::{Comes, Row, Under, rows};
use super::Report;
use super::attack::base64_url;
use super::hostile::token;
use crate::{Client, Host, Options, tree, wait};

/// What the check looks at.
const INVARIANTS: &[&str] = &["row", "coverage", "batch", "log", "function", "digest", "memoized"];
/// The languages, and what their guests are called.
const LANGUAGES: &[&str] = &["rust", "c", "typescript", "python"];
/// The policies, and what each adds to a tenant.
const POLICIES: &[(Under, &str, &str)] = &[
    (Under::All, "", "limits = { fan_out_max = 2000 }\n"),
    (Under::Denied, "-denied", "grants = [\"log\"]\n"),
    (Under::Narrow, "-narrow", "limits = { fan_out_max = 5, depth_max = 1 }\n"),
    (Under::Full, "-full", "limits = { queue_max = 3, waiting_items_max = 3 }\n"),
];
/// Kinds of the guest.
const KINDS: &[&str] = &[
    "trivial",
    "describe",
    "facts",
    "remaining",
    "config-get",
    "config-get-all",
    "log",
    "progress",
    "emit",
    "measure",
    "submit",
    "submit-many",
    "submit-joined",
    "batch-add",
    "agents-load",
    "agents-list",
    "agents-set-statuses",
    "history-user-tasks",
    "history-summarize",
    "cache",
    "memoized",
    "clock-wall",
    "random-secure",
    "fail",
    "panic",
    "recurse",
    "grow",
    "spin",
    "output",
];
/// What the guest declares beside its kinds.
const DECLARED: &str = r#"
[[processor]]
name = "things"
age-ms = 20
attempts = 2

[[metric]]
name = "films_total"
type = "counter"
labels = { era = ["silent", "sound"] }

[[metric]]
name = "minutes"
type = "histogram"
buckets = [60, 90.5]
"#;
/// Something that takes milliseconds when nothing else runs.
const SOON: Duration = Duration::from_secs(30);

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of the random texts.
    pub seed: u64,
    /// Random texts that are digested in every language.
    pub texts: usize,
    /// Whether rates are measured.
    pub rates: bool,
}

impl Plan {
    /// For every run of the tests.
    pub fn short(seed: u64) -> Plan {
        Plan { seed, texts: 20, rates: false }
    }

    /// Many texts, and rates.
    pub fn long(seed: u64) -> Plan {
        Plan { seed, texts: 1_000, rates: true }
    }
}

/// One language on the host.
pub(crate) struct Language {
    pub(crate) name: &'static str,
    clients: BTreeMap<Under, Client>,
    /// What stands for the names of the rows.
    names: BTreeMap<&'static str, String>,
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let mut report = Report::new("languages", INVARIANTS);
    let (_host, mut languages) = start(folder)?;
    report.tried("seed", plan.seed);
    for language in &mut languages {
        language.install(&guest("contract", language.name)?)?;
        language.people()?;
        // Before the rows, which leave items behind that are no wishes.
        language.works_batches(&mut report)?;
        let met = language.meets(&mut report)?;
        language.logs(&mut report)?;
        language.keeps_functions(&mut report)?;
        let met = language.without_a_host(met, folder)?;
        let missing = met.missing(&coverage::contract()?);
        report.require(missing.is_empty(), "coverage", || format!("{}: not met: {missing:?}", language.name));
        let (functions, cases) = met.counts();
        report.tried(language.name, json!({"functions": functions, "cases": cases}));
    }
    digests::run(plan, &languages, &mut report)?;
    if plan.rates {
        for language in &languages {
            let rate = language.rate()?;
            report.tried(&format!("{}_tasks_per_second", language.name), rate);
        }
    }
    Ok(report)
}

/// A host with the tenants of all languages.
fn start(folder: &Path) -> Result<(Host, Vec<Language>)> {
    let mut config = String::new();
    let mut secrets = Vec::new();
    for name in LANGUAGES {
        for (_, suffix, policy) in POLICIES {
            let token = token()?;
            let tenant = format!("{name}{suffix}");
            config += &format!("[tenants.{tenant}]\ntokens = [{}]\n{policy}", token.entry);
            config += &format!(
                "[tenants.{tenant}.plugins.contract.settings]\ncolour = \"red\"\nshape = \"räud\"\n\n"
            );
            secrets.push(token.secret);
        }
    }
    let host = Host::start(Options::in_folder(folder)?.with_config(&config)?)?;
    let client = host.client();
    let mut secrets = secrets.into_iter();
    let languages = LANGUAGES.iter().map(|name| {
        let clients = POLICIES.iter().zip(secrets.by_ref());
        let clients = clients.map(|((under, ..), secret)| (*under, client.with_token(secret))).collect();
        Language { name, clients, names: BTreeMap::new() }
    });
    let languages = languages.collect();
    Ok((host, languages))
}

/// The component of a guest in a language.
fn guest(name: &str, language: &str) -> Result<Vec<u8>> {
    if language == "rust" {
        return tree::guest(name);
    }
    let path = tree::language_guest_path(&format!("{name}-{language}"))?;
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// The manifest of the guest `contract`, which is the same in all languages.
fn manifest() -> String {
    let kinds: String = KINDS.iter().map(|kind| format!("[[kind]]\nname = \"{kind}\"\n")).collect();
    format!("[plugin]\nname = \"contract\"\nversion = \"1\"\n{kinds}{DECLARED}")
}

/// Installs a component under a manifest that is given beside it. Compiling one takes longer than a request may on a machine that
/// does much else; who asks again waits for the same compilation.
pub fn install(client: &Client, component: &[u8], manifest: &str) -> Result<Value> {
    let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
    let upload = || client.post(&path, &[("content-type", "application/wasm")], component);
    upload().or_else(|_| upload()).or_else(|_| upload())?.expect(&[200, 201])
}

impl Language {
    pub(crate) fn client(&self, under: Under) -> Result<&Client> {
        self.clients.get(&under).context("a policy has a tenant")
    }

    fn install(&self, component: &[u8]) -> Result<()> {
        self.clients.values().try_for_each(|client| install(client, component, &manifest()).map(drop))
    }

    /// Whom the rows are about.
    fn people(&mut self) -> Result<()> {
        let client = self.client(Under::All)?;
        let made = |path: &str, body: Value| -> Result<String> {
            let answer = client.post_json(path, &body, None)?.expect(&[201])?;
            answer["id"].as_str().map(str::to_owned).context("an id")
        };
        self.names = [
            ("@max", made("/v1/agents", json!({"name": "Max", "kind": "reviewer"}))?),
            ("@ada", made("/v1/users", json!({"name": "Ada"}))?),
            ("@tenant", self.name.to_owned()),
        ]
        .into();
        Ok(())
    }

    /// A value with the names of this tenant in the place of ours.
    fn named(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                self.names.get(text.as_str()).map_or_else(|| value.clone(), |name| json!(name))
            }
            Value::Array(all) => all.iter().map(|one| self.named(one)).collect(),
            Value::Object(members) => {
                Value::Object(members.iter().map(|(name, one)| (name.clone(), self.named(one))).collect())
            }
            other => other.clone(),
        }
    }

    /// Asks every row.
    fn meets(&self, report: &mut Report) -> Result<Met> {
        let mut met = Met::default();
        for row in rows() {
            let client = self.client(row.under)?;
            let (input, more) = (self.named(&row.input), self.named(&row.more));
            let task = client.run("contract", row.kind, input, more)?;
            note(&row, &task["result"], &mut met);
            let comes = match &row.comes {
                Comes::Result(like) => Comes::Result(self.named(like)),
                other => other.clone(),
            };
            let said = if task["state"] == "failed" { log_of(client, &task)? } else { String::new() };
            report.require(came(&comes, &task, &said), "row", || {
                let input: String = row.input.to_string().chars().take(200).collect();
                let found: String = [&task["result"], &task["error"]].map(Value::to_string).concat();
                let found: String = found.chars().take(400).collect();
                format!(
                    "{}: {} of {input}: {found} instead of {:.400}",
                    self.name,
                    row.kind,
                    format!("{comes:?}")
                )
            });
        }
        self.depth(report, &mut met)?;
        Ok(met)
    }

    /// A child at the greatest depth may not have one of its own; and it knows whose child it is.
    fn depth(&self, report: &mut Report, met: &mut Met) -> Result<()> {
        let client = self.client(Under::Narrow)?;
        let first_child = |child: Value| -> Result<(Value, Value)> {
            let parent = client.run("contract", "submit", json!({ "child": child }), Value::Null)?;
            let id = parent["result"][0]["ok"].as_str().with_context(|| format!("a child: {parent}"))?;
            Ok((client.ended(id)?, parent["id"].clone()))
        };
        let (child, _) = first_child(json!({"kind": "submit", "input": {"child": {"kind": "trivial"}}}))?;
        met.answer("keiko:tasks/tasks.submit", &child["result"][0]);
        let expected = json!([{"error": {"name": "depth-exceeded", "number": 1}}]);
        report.require(child["result"] == expected, "row", || format!("{}: depth: {child}", self.name));
        let (child, parent) = first_child(json!({"kind": "facts", "input": {}}))?;
        let facts = &child["result"]["ok"];
        let knows = facts["parent"] == parent && facts["root"] == parent && facts["depth"] == 1;
        report.require(knows, "row", || format!("{}: facts of a child: {child}", self.name));
        Ok(())
    }

    /// Items end as they wish, and the reasons of dead letters tell what the processor was told.
    fn works_batches(&self, report: &mut Report) -> Result<()> {
        let client = self.client(Under::All)?;
        let item = |wish: Value, key: Value| json!({"item": wish, "key": key});
        let items = [
            item(json!({"be": "done"}), Value::Null),
            item(json!({"be": "reject", "reason": "whÿ"}), json!("k")),
            item(json!({"be": "retry", "reason": "again", "after_ms": 1}), Value::Null),
            item(json!({"be": "panic", "reason": "harm"}), json!("p")),
        ];
        let task = client.run(
            "contract",
            "batch-add",
            json!({"processor": "things", "items": items}),
            Value::Null,
        )?;
        if task["result"]["ok"].as_array().map(Vec::len) != Some(4) {
            bail!("{}: items were not added: {task}", self.name);
        }
        let dead = wait::until("dead letters", SOON, || {
            let found = client.get("/v1/batches/things/dead?limit=100")?.expect(&[200])?;
            let dead = found["dead"].as_array().cloned().unwrap_or_default();
            Ok((dead.len() == 3).then_some(dead))
        })?;
        let messages = dead.iter().map(|item| item["error"]["message"].as_str().unwrap_or_default());
        let mut messages: Vec<&str> = messages.collect();
        messages.sort_unstable();
        let as_told = messages.contains(&"whÿ things k 0") && messages.contains(&"again things None 1");
        let traps = dead.iter().filter(|item| item["error"]["code"] == "trap").count();
        report
            .require(as_told && traps == 1, "batch", || format!("{}: dead letters {messages:?}", self.name));
        Ok(())
    }

    /// A line comes with its level and its fields.
    fn logs(&self, report: &mut Report) -> Result<()> {
        let client = self.client(Under::All)?;
        let input = json!({"level": "warn", "message": "ödd", "fields": [["colour", "red"]]});
        let id = client.submit("contract", "log", input, Value::Null)?;
        client.ended(&id)?;
        let logs = client.get(&format!("/v1/tasks/{id}/logs"))?.expect(&[200])?;
        let line = &logs["attempts"][0]["lines"][0];
        let is_it =
            line["level"] == "warn" && line["message"] == "ödd" && line["fields"] == json!({"colour": "red"});
        report.require(is_it, "log", || format!("{}: {logs}", self.name));
        Ok(())
    }

    /// What a function of the guest answers is kept by its arguments.
    fn keeps_functions(&self, report: &mut Report) -> Result<()> {
        const ASKED: &[(Under, &str, Option<u64>)] = &[
            (Under::All, r#"{"input": {"b": [1.5, "ü"], "a": 2}}"#, Some(1)),
            (Under::All, r#"{"input": { "a": 2, "b": [1.5, "ü"]}}"#, Some(0)),
            // A failure is not kept, and leaves the right to the next.
            (Under::All, r#"{"input": 7, "fail": true}"#, None),
            (Under::All, r#"{"input": 7}"#, Some(1)),
            (Under::All, r#"{"input": 7, "fail": true}"#, Some(0)),
            (Under::All, r#"{"input": "7"}"#, Some(1)),
            (Under::All, r#"{"input": null}"#, Some(1)),
            (Under::All, r#"{"input": null, "keep_none": true}"#, Some(1)),
            (Under::All, r#"{"input": null}"#, Some(0)),
            // Without a cache it is computed every time.
            (Under::Denied, r#"{"input": 7}"#, Some(1)),
            (Under::Denied, r#"{"input": 7}"#, Some(1)),
        ];
        for (under, input, computed) in ASKED {
            let body =
                format!(r#"{{"plugin": "contract", "kind": "memoized", "input": {input}, "attempts": 1}}"#);
            let json = [("content-type", "application/json")];
            let task =
                self.client(*under)?.post("/v1/tasks?wait=30", &json, body.as_bytes())?.expect(&[201])?;
            let given = serde_json::from_str::<Value>(input)?["input"].take();
            let output = if given.is_null() { Value::Null } else { json!({ "of": given }) };
            let as_asked = match computed {
                Some(computed) => task["result"] == json!({"output": output, "computed": computed}),
                None => task["error"]["code"] == "plugin_failed" && task["error"]["message"] == "as told",
            };
            report.require(as_asked, "function", || format!("{}: {under:?} {input}: {task}", self.name));
        }
        Ok(())
    }

    /// In a process without a host, what is a host's is unavailable.
    fn without_a_host(&self, mut met: Met, folder: &Path) -> Result<Met> {
        let asked = [
            ("keiko:agents/agents.list-agents", "agents-list", json!({})),
            ("keiko:history/history.summarize", "history-summarize", json!({"from_ms": 0, "to_ms": 1})),
            ("keiko:batch/batch.add", "batch-add", json!({"processor": "things", "items": [{"item": 1}]})),
            ("keiko:cache/cache.get", "cache", json!({"steps": [{"do": "get", "key": "k"}]})),
        ];
        let (component, beside) = (folder.join("guest.wasm"), folder.join("guest.toml"));
        std::fs::write(&component, guest("contract", self.name)?)?;
        std::fs::write(&beside, manifest())?;
        for (function, kind, input) in asked {
            let mut run = Command::new(tree::program()?);
            run.arg("run").arg(&component).arg("--manifest").arg(&beside).args(["--kind", kind, "--input"]);
            let output =
                run.arg(input.to_string()).env("XDG_CACHE_HOME", folder).output().context("keiko run")?;
            let told: Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr)))?;
            met.answer(function, if told.is_array() { &told[0] } else { &told });
        }
        Ok(met)
    }

    /// Tasks a second that do nothing, submitted at once.
    fn rate(&self) -> Result<f64> {
        const TASKS: usize = 5_000;
        let client = self.client(Under::All)?;
        let task = json!({"plugin": "contract", "kind": "trivial", "input": null});
        let before = client.count("completed")?;
        let began = std::time::Instant::now();
        client.post_json("/v1/tasks", &json!({ "tasks": vec![task; TASKS] }), None)?.expect(&[200, 201])?;
        wait::until("the tasks to end", Duration::from_secs(120), || {
            Ok((client.count("completed")? >= before + TASKS as u64).then_some(()))
        })?;
        Ok(TASKS as f64 / began.elapsed().as_secs_f64())
    }
}

/// What a row's answers say of the contract.
fn note(row: &Row, result: &Value, met: &mut Met) {
    let answers = match result {
        Value::Array(all) => all.as_slice(),
        one => std::slice::from_ref(one),
    };
    for (place, call) in row.calls.iter().enumerate().filter(|(_, call)| !call.is_empty()) {
        // Of several calls with one answer the first came back well.
        met.answer(call, answers.get(place).unwrap_or(&Value::Null));
    }
}

/// Everything that the log of a task says.
fn log_of(client: &Client, task: &Value) -> Result<String> {
    let id = task["id"].as_str().context("an id")?;
    Ok(client.get(&format!("/v1/tasks/{id}/logs"))?.expect(&[200])?.to_string())
}

fn came(comes: &Comes, task: &Value, said: &str) -> bool {
    let completed = task["state"] == "completed";
    match comes {
        Comes::Result(expected) => completed && like(expected, &task["result"]),
        Comes::Last(expected) => {
            completed
                && task["result"]
                    .as_array()
                    .and_then(|all| all.last())
                    .is_some_and(|last| like(expected, last))
        }
        Comes::Failure(codes, text) => {
            let error = &task["error"];
            let code = error["code"].as_str().unwrap_or_default();
            task["state"] == "failed"
                && codes.contains(&code)
                && (error.to_string().contains(text) || said.contains(text))
        }
    }
}

/// Whether a value is like an expected one, in which some texts stand for more.
fn like(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(text), found) if text.starts_with('$') => match text.as_str() {
            "$text" => found.is_string(),
            "$number" => found.is_number(),
            "$list" => found.is_array(),
            _ => true,
        },
        (Value::Number(expected), Value::Number(found)) => expected.as_f64() == found.as_f64(),
        (Value::Array(expected), Value::Array(found)) => {
            expected.len() == found.len()
                && expected.iter().zip(found).all(|(expected, found)| like(expected, found))
        }
        (Value::Object(expected), Value::Object(found)) => {
            let is_like =
                |(name, value): (&String, &Value)| found.get(name).is_some_and(|found| like(value, found));
            expected.len() == found.len() && expected.iter().all(is_like)
        }
        (expected, found) => expected == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_like_another_only_where_nothing_is_left_open() {
        let check = |expected: Value, found: Value, is_like: bool| {
            assert_eq!(like(&expected, &found), is_like, "{expected} {found}");
        };
        check(json!({"a": [1, "$text"]}), json!({"a": [1.0, "x"]}), true);
        check(json!({"a": [1, "$text"]}), json!({"a": [1, 2]}), false);
        check(json!({"a": "$list"}), json!({"a": [], "b": 1}), false);
        check(json!(["$any"]), json!([null, null]), false);
        check(json!("$number"), json!("1"), false);
    }
}
