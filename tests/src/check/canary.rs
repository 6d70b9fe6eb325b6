//! A version that a part of the tasks try while all of them wait for their results.
//!
//! Two lives of one plugin under load. In the first, three of ten tasks trap on the new version: it is to be taken back before more
//! tasks have tried it than the bound allows. In the second the new version is as good as the current one: it is to pass.
//!
//! Promises: no task fails for its submitter, no task has more than one attempt, and every attempt ran one of the two versions; at most
//! 200 tasks try a version before there is a verdict, on all hosts together; the verdict is the right one, and every host follows it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Report;
use super::attack::{base64_url, in_shell, with_section};
use crate::{Client, Host, Options, wait};

/// What is looked at.
pub const INVARIANTS: &[&str] = &[
    "task failed",
    "attempt repeated",
    "attempt on no version",
    "bound exceeded",
    "wrong verdict",
    "not followed",
];
/// Submitters; each waits for its task before the next.
const SUBMITTERS: u64 = 8;
/// Tasks that try a version before its verdict.
const TRIED_MAX: u64 = 200;
/// How soon every host knows of a verdict: a second, and what a slow machine adds.
const FOLLOWS_MAX: Duration = Duration::from_secs(3);
/// Tasks of one life, at most: those of the bound, and what runs meanwhile on the current version, twice over.
const TASKS_MAX: u64 = 5_000;

/// Traps when the last digit of its input is below a letter's.
const GUEST: &str = r#"
(core module $guest
  (memory (export "memory") 1)
  (global $next (mut i32) (i32.const 4096))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  (data (i32.const 64) "application/json1")
  (func (export "run") (param i32 i32 i32 i32 i32 i32) (result i32)
    (if (i32.lt_u
          (i32.load8_u (i32.sub (i32.add (local.get 4) (local.get 5)) (i32.const 1)))
          (i32.const LETTER))
      (then unreachable))
    (i32.store (i32.const 1032) (i32.const 64))
    (i32.store (i32.const 1036) (i32.const 16))
    (i32.store (i32.const 1040) (i32.const 80))
    (i32.store (i32.const 1044) (i32.const 1))
    (i32.const 1024)))
(core instance $instance (instantiate $guest))
"#;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Times both lives are lived.
    pub rounds: u32,
    /// The part of the tasks, or of the batches, that try.
    pub percent: u64,
}

impl Plan {
    /// For every run of the tests: half of them try, so that a verdict takes few of them.
    pub fn short() -> Plan {
        Plan { rounds: 1, percent: 50 }
    }

    /// 20 of each life, a tenth of them in each.
    pub fn long() -> Plan {
        Plan { rounds: 20, percent: 10 }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let host = Host::start(Options::in_folder(folder)?)?;
    run_on(plan, &[host.client()])
}

/// Runs the check on hosts of one database: each is asked in turn.
pub fn run_on(plan: &Plan, clients: &[Client]) -> Result<Report> {
    let mut report = Report::new("canary", INVARIANTS);
    let (mut tasks, mut tried, mut most) = (0, 0, 0);
    for round in 0..plan.rounds {
        for (name, traps) in [("bad", 3), ("good", 0)] {
            let life = Life::begin(clients, &format!("{name}-{round}"), traps, plan.percent)?;
            let ran = life.live(&mut report)?;
            let touched = judge(clients, &life.plugin, "1", traps > 0, &mut report)?;
            tasks += ran;
            tried += touched;
            if traps > 0 {
                most = most.max(touched);
            }
        }
    }
    report.tried("lives", 2 * plan.rounds);
    report.tried("tasks", tasks);
    report.tried("tried", tried);
    report.tried("tried_at_most_by_a_bad_one", most);
    Ok(report)
}

/// A plugin with its canary.
struct Life<'a> {
    /// Of the hosts, the first one for all that is not a task.
    clients: &'a [Client],
    plugin: String,
    /// Of both versions, the current one first.
    digests: [String; 2],
}

impl Life<'_> {
    fn begin<'a>(clients: &'a [Client], plugin: &str, traps: u8, percent: u64) -> Result<Life<'a>> {
        let [client, ..] = clients else { bail!("there is no host") };
        let current = install(client, plugin, 1, 0, "")?;
        let canary = install(client, plugin, 2, traps, &format!("&canary_percent={percent}"))?;
        let digest = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let digests = [digest(&current["digest"]), digest(&canary["canary"]["digest"])];
        Ok(Life { clients, plugin: plugin.to_owned(), digests })
    }

    /// Submits tasks until there is a verdict; how many.
    fn live(&self, report: &mut Report) -> Result<u64> {
        let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let submit = || -> Result<Vec<(&'static str, String)>> {
            let mut wrong = Vec::new();
            while !over.load(Ordering::Acquire) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let body = json!({"plugin": self.plugin, "kind": "run", "input": number});
                let client = &self.clients[number as usize % self.clients.len()];
                let task = client.post_json("/v1/tasks?wait=30", &body, None)?.expect(&[201])?;
                wrong.extend(self.look(&task));
                let done = number >= TASKS_MAX
                    || number % 20 == 0 && tried(self.clients, &self.plugin)?["state"] != "trying";
                over.fetch_or(done, Ordering::AcqRel);
            }
            Ok(wrong)
        };
        let parts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..SUBMITTERS).map(|_| scope.spawn(submit)).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for part in parts {
            let Ok(wrong) = part else { bail!("a submitting thread panicked") };
            wrong?.into_iter().for_each(|(invariant, note)| report.violation(invariant, note));
        }
        Ok(next.into_inner())
    }

    /// What is wrong with a task as it ended.
    fn look(&self, task: &Value) -> Option<(&'static str, String)> {
        if task["state"] != "completed" || task["result"] != 1 {
            return Some(("task failed", task.to_string()));
        }
        let attempts = task["attempts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let [attempt] = attempts else { return Some(("attempt repeated", task.to_string())) };
        let is_known = self.digests.iter().any(|digest| attempt["digest"] == **digest);
        (!is_known).then(|| ("attempt on no version", task.to_string()))
    }
}

/// How a plugin's canary stands.
pub(super) fn tried(clients: &[Client], plugin: &str) -> Result<Value> {
    clients[0].get(&format!("/v1/plugins/{plugin}/canary"))?.expect(&[200])
}

/// Looks at the verdict on a plugin's canary beside this current version; how many tasks and batches it took.
pub(super) fn judge(
    clients: &[Client],
    plugin: &str,
    current: &str,
    is_bad: bool,
    report: &mut Report,
) -> Result<u64> {
    let tried = tried(clients, plugin)?;
    let touched = tried["tasks"].as_u64().unwrap_or_default();
    report.require(touched <= TRIED_MAX, "bound exceeded", || tried.to_string());
    let expected = if is_bad { "worse" } else { "passed" };
    report.require(tried["state"] == expected, "wrong verdict", || tried.to_string());
    let broke = tried["canary"]["broke"].as_u64().unwrap_or_default();
    report.require((broke > 0) == is_bad, "wrong verdict", || tried.to_string());
    let canary = if is_bad { json!(null) } else { json!("passed") };
    for client in clients {
        let path = format!("/v1/plugins/{plugin}");
        let follows = wait::until("the host to follow the verdict", FOLLOWS_MAX, || {
            let plugin = client.get(&path)?.expect(&[200])?;
            Ok((plugin["version"] == current && plugin["canary"]["state"] == canary).then_some(()))
        });
        report.require(follows.is_ok(), "not followed", || client.address());
    }
    Ok(touched)
}

/// Installs a version of which so many of ten inputs trap.
fn install(client: &Client, plugin: &str, version: u32, traps: u8, more: &str) -> Result<Value> {
    let manifest =
        format!("[plugin]\nname = \"{plugin}\"\nversion = \"{version}\"\n[[kind]]\nname = \"run\"\n");
    let guest = in_shell(&GUEST.replace("LETTER", &(b'0' + traps).to_string()))?;
    let guest = with_section(guest, "version", version.to_string().as_bytes());
    let path = format!("/v1/plugins?manifest={}{more}", base64_url(manifest.as_bytes()));
    client.post(&path, &[("content-type", "application/wasm")], &guest)?.expect(&[201])
}
