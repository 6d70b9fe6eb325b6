//! Hostile uploads by several hands at once, beside those who install plugins, ask, and run tasks.
//!
//! What is sent: everything of [`super::upload`], the bombs of [`super::bombs`], components of both engine profiles with a few bytes
//! changed at random, and, in the long form, those that keep the compiler busy for a minute. Then 200 come at once. At the end the host is started again over artifacts that somebody has altered and planted.
//!
//! Promises: an upload that is no plugin is refused with the code of its kind, and none is the host's fault; of those that come at once
//! each is answered, with a plugin or with the limit that refuses it; the process stays, has at no moment more than so much more
//! memory ([`PEAK_BYTES_MAX`]), and grows by at most 20 MiB in the end; the neighbour's installs go through, and the API answers it within 100 ms (p99, in the long form);
//! what was planted is not run: the same plugin runs afterwards, and the host counts what it did not believe; a component of the
//! concurrent profile is refused for the neighbour, who may not have it, while the attacker's is loaded.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Report;
use super::attack::{Attack, base64_url, with_manifest, with_section};
use super::bombs::bombs;
use super::hostile::two_tenants;
use super::upload::{Upload, uploads};
use crate::{Answer, Client, Host, Random, tree, wait};

/// What is looked at.
pub const INVARIANTS: &[&str] = &[
    "process",
    "upload",
    "mutant",
    "neighbour's install",
    "neighbour's task",
    "profile",
    "api p99",
    "memory",
    "memory peak",
    "crowd",
    "planted",
];
/// Hands that send hostile uploads.
const HANDS: usize = 4;
/// The name of what has bytes changed.
const MUTANT: &str = "mutant";
/// What a mutant, or a bomb, may be refused with: it is broken, too much, or another component under a name that is taken.
const MUTANT_CODES: &[&str] =
    &["component_invalid", "compile_limit", "quota_exceeded", "conflict", "invalid_input"];
/// How much the host may grow, and how soon it must be back there.
const GROWTH_BYTES_MAX: u64 = 20 << 20;
/// How much more it may have at any moment: uploads of all hands, each of which is held once while it is received, checked and compiled.
const PEAK_BYTES_MAX: u64 = 192 << 20;
/// Uploads that come at once.
const CROWD: usize = 200;
/// What one of them may be refused with: there is no room now, or the tenant has used up its time of the compiler.
const CROWD_CODES: &[&str] = &["rate_limited", "queue_full", "compile_limit"];
const BACK_MAX: Duration = Duration::from_secs(20);
/// How slow the slowest hundredth of the answers may be.
const P99_MAX: Duration = Duration::from_millis(100);
/// How long an upload waits for its turn while others compile: those of every other hand, for a minute of the compiler each.
const TURN_MAX: Duration = Duration::from_secs(240);

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Components with bytes changed.
    pub mutants: usize,
    /// Whether times are judged, and what keeps the compiler busy is sent.
    pub long: bool,
    /// What decides every choice.
    pub seed: u64,
}

impl Plan {
    /// For every run of the tests.
    pub fn short(seed: u64) -> Plan {
        Plan { mutants: 60, long: false, seed }
    }

    /// 1,000 mutants, and compile bombs.
    pub fn long(seed: u64) -> Plan {
        Plan { mutants: 1_000, long: true, seed }
    }
}

/// Runs the check in `folder`.
pub fn run(plan: &Plan, folder: &Path) -> Result<Report> {
    let (mut host, attacker, victim) = two_tenants(folder)?;
    let attacker = attacker.with_timeout(TURN_MAX);
    let mut report = Report::new("upload", INVARIANTS);
    let family = tree::guest("family")?;
    attacker.install(&family)?;
    attacker.install(&concurrent()?.component()?)?;
    victim.install(&tree::guest("contract")?)?;
    victim.install(&family)?;
    run_task(&victim)?;
    let everything = everything(plan, host.data_dir(), &family)?;
    host.forget_memory_peak()?;
    let (before, _) = host.memory_bytes()?;
    let pid = host.pid();
    let seen = attack(&everything, &attacker, &victim, &mut report)?;
    let crowd = crowd(&family, &attacker, &victim, &mut report)?;
    report.require(host.is_running()? && host.pid() == pid, "process", || "the host is another".to_owned());
    check_profile(&attacker, &victim, &mut report)?;
    let peak = host.memory_bytes()?.1.saturating_sub(before);
    report.require(peak <= PEAK_BYTES_MAX, "memory peak", || format!("it had {peak} bytes more"));
    let grown = || anyhow::Ok(host.memory_bytes()?.0.saturating_sub(before));
    report.tried("memory_with_bombs_bytes", grown()?);
    remove_bombs(&attacker)?;
    let back = wait::until("the host's memory to come back", BACK_MAX, || {
        Ok((grown()? <= GROWTH_BYTES_MAX).then_some(()))
    });
    let grown = grown()?;
    report.require(back.is_ok(), "memory", || format!("it grew by {grown} bytes"));
    for (name, seen) in [("uploads", &seen), ("crowd", &crowd)] {
        let p99 = seen.p99();
        report.require(!plan.long || p99 <= P99_MAX, "api p99", || {
            format!("{p99:?} of {} answers beside the {name}", seen.answers.len())
        });
        report.tried(&format!("api_p99_us_beside_{name}"), p99.as_micros() as u64);
    }
    // Small bombs are plugins: were they none, nothing would have compiled them.
    report.require(seen.installed > 0, "upload", || "no bomb was compiled".to_owned());
    report.tried("uploads", everything.len());
    report.tried("uploads_installed", seen.installed);
    report.tried("crowd", CROWD);
    report.tried("crowd_installed", crowd.installed);
    report.tried("neighbour_installs", seen.installs);
    report.tried("api_answers", seen.answers.len());
    report.tried("memory_grown_bytes", grown);
    report.tried("memory_peak_grown_bytes", peak);
    report.tried("seed", plan.seed);
    drop((attacker, victim));
    plant(&mut host, &mut report)?;
    Ok(report)
}

/// What is sent, with the codes that are right.
type Sent = (Upload, &'static [&'static str]);

fn everything(plan: &Plan, data_dir: &Path, family: &[u8]) -> Result<Vec<Sent>> {
    let mut random = Random::new(plan.seed);
    let all = uploads(data_dir, plan.long)?.into_iter();
    let mut all: Vec<Sent> = all.map(|upload| (upload, &[] as &[&str])).collect();
    for (name, bytes) in bombs(plan.long)? {
        all.push((Upload { name, bytes, code: "compile_limit" }, MUTANT_CODES));
    }
    let manifest = "[plugin]\nname = \"mutant\"\nversion = \"1\"\n[[kind]]\nname = \"run\"\n";
    let small = Attack::named("unreachable").next().context("the plainest attack")?.bare_component()?;
    let bases = [
        family.to_vec(),
        with_manifest(small, manifest),
        with_manifest(concurrent()?.bare_component()?, manifest),
    ];
    for number in 0..plan.mutants {
        // One in four is large.
        let mut bytes = bases[[0, 1, 2, 1][number % 4]].clone();
        for _ in 0..=random.below(8) {
            let place = random.below(bytes.len() as u64) as usize;
            bytes[place] ^= 1 + random.below(255) as u8;
        }
        let upload = Upload { name: MUTANT, bytes, code: "component_invalid" };
        all.insert(random.below(all.len() as u64 + 1) as usize, (upload, MUTANT_CODES));
    }
    Ok(all)
}

/// An attack of the concurrent profile that can be installed.
fn concurrent() -> Result<&'static Attack> {
    Attack::named("waitable-flood").next().context("an attack of the concurrent profile")
}

/// Removes what turned out to be a plugin and no bomb: such ones take the memory of their code for as long as they are there.
fn remove_bombs(attacker: &Client) -> Result<()> {
    let told = attacker.get("/v1/plugins")?.expect(&[200])?;
    let plugins = told["plugins"].as_array().context("plugins")?;
    let names = plugins.iter().filter_map(|plugin| plugin["name"].as_str());
    let installed = bombs(false)?;
    for name in names.filter(|name| installed.iter().any(|(bomb, _)| bomb == name)) {
        let answer = attacker.delete(&format!("/v1/plugins/{name}"))?;
        ensure!(answer.status == 204, "{name}: {answer:.400}");
    }
    Ok(())
}

/// Whether the component that the attacker may have is told of with its profile, and refused for whoever may not have it.
fn check_profile(attacker: &Client, victim: &Client, report: &mut Report) -> Result<()> {
    let attack = concurrent()?;
    let told = attacker.get(&format!("/v1/plugins/{}", attack.plugin()))?.expect(&[200])?;
    report.require(told["profile"] == "concurrent", "profile", || told.to_string());
    let refused = in_turn(|| victim.upload(&attack.component()?))?;
    report.require(refused.status == 403 && refused.code() == "denied", "profile", || {
        format!("{refused:.400}")
    });
    Ok(())
}

/// What was seen while the uploads were sent.
#[derive(Default)]
struct Seen {
    installed: u64,
    installs: u64,
    answers: Vec<Duration>,
}

impl Seen {
    fn p99(&self) -> Duration {
        let mut answers = self.answers.clone();
        answers.sort_unstable();
        answers.get(answers.len() * 99 / 100).copied().unwrap_or_default()
    }
}

/// Sends everything, while a neighbour asks, installs and runs tasks.
fn attack(all: &[Sent], attacker: &Client, victim: &Client, report: &mut Report) -> Result<Seen> {
    let (next, over, installed) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let hand = || -> Result<Vec<(&'static str, String)>> {
        let mut wrong = Vec::new();
        while let Some((upload, codes)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let answer = in_turn(|| attacker.upload(&upload.bytes))?;
            if !codes.is_empty() && matches!(answer.status, 200 | 201) {
                installed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let is_right = answer.code() == upload.code || codes.contains(&answer.code().as_str());
            if !(400..500).contains(&answer.status) || !is_right {
                let invariant = if upload.name == MUTANT { "mutant" } else { "upload" };
                wrong.push((invariant, format!("{}: {answer:.400}", upload.name)));
            }
        }
        Ok(wrong)
    };
    let (hands, installs, answers) = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS).map(|_| scope.spawn(hand)).collect();
        let installs = scope.spawn(|| install_all(victim, &over));
        let answers = scope.spawn(|| ask_all(victim, &over));
        let hands: Vec<_> = hands.into_iter().map(|hand| hand.join()).collect();
        over.store(true, Ordering::Release);
        (hands, installs.join(), answers.join())
    });
    for hand in hands {
        let Ok(wrong) = hand else { bail!("a hand panicked") };
        wrong?.into_iter().for_each(|(invariant, note)| report.violation(invariant, note));
    }
    let (Ok(installs), Ok(answers)) = (installs, answers) else { bail!("the neighbour panicked") };
    let (installs, wrong) = installs?;
    wrong.into_iter().for_each(|(invariant, note)| report.violation(invariant, note));
    Ok(Seen { installed: installed.into_inner(), installs, answers: answers? })
}

/// Sends many good uploads at once, each of which is told at once what becomes of it, while a neighbour asks.
fn crowd(family: &[u8], attacker: &Client, victim: &Client, report: &mut Report) -> Result<Seen> {
    let over = AtomicBool::new(false);
    let send = |number: usize| {
        let name = format!("crowd-{number}");
        let manifest = format!("[plugin]\nname = \"{name}\"\nversion = \"1\"\n[[kind]]\nname = \"child\"\n");
        let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
        let bytes = with_section(family.to_vec(), "crowd", name.as_bytes());
        attacker.post(&path, &[("content-type", "application/wasm")], &bytes)
    };
    let (sent, answers) = std::thread::scope(|scope| {
        let send = &send;
        let answers = scope.spawn(|| ask_all(victim, &over));
        let sent: Vec<_> = (0..CROWD).map(|number| scope.spawn(move || send(number))).collect();
        let sent: Vec<_> = sent.into_iter().map(|one| one.join()).collect();
        over.store(true, Ordering::Release);
        (sent, answers.join())
    });
    let mut seen = Seen::default();
    for answer in sent {
        let Ok(answer) = answer else { bail!("a sender panicked") };
        match answer {
            Ok(answer) if answer.status == 201 => seen.installed += 1,
            Ok(answer) if CROWD_CODES.contains(&answer.code().as_str()) => {}
            Ok(answer) => report.violation("crowd", format!("{answer:.400}")),
            Err(error) => report.violation("crowd", format!("no answer: {error:#}")),
        }
    }
    report.require(seen.installed > 0, "crowd", || "none of them was taken".to_owned());
    let Ok(answers) = answers else { bail!("the neighbour panicked") };
    Ok(Seen { answers: answers?, ..seen })
}

/// Sends an upload until there is room for it.
fn in_turn(send: impl Fn() -> Result<Answer>) -> Result<Answer> {
    wait::until("room for an upload", TURN_MAX, || {
        let answer = send()?;
        Ok((answer.status != 503).then_some(answer))
    })
}

/// Installs version after version and runs a task on each; how many, and what went wrong.
fn install_all(client: &Client, over: &AtomicBool) -> Result<(u64, Vec<(&'static str, String)>)> {
    let family = tree::guest("family")?;
    let mut wrong = Vec::new();
    for version in 1.. {
        let manifest =
            format!("[plugin]\nname = \"family\"\nversion = \"1.{version}\"\n[[kind]]\nname = \"child\"\n");
        let path = format!("/v1/plugins?manifest={}", base64_url(manifest.as_bytes()));
        let answer = in_turn(|| client.post(&path, &[("content-type", "application/wasm")], &family))?;
        if answer.status != 201 {
            wrong.push(("neighbour's install", format!("{answer:.400}")));
        }
        if let Err(error) = run_task(client) {
            wrong.push(("neighbour's task", format!("{error:#}")));
        }
        if over.load(Ordering::Acquire) {
            return Ok((version, wrong));
        }
    }
    unreachable!("it ends when the uploads do")
}

fn run_task(client: &Client) -> Result<()> {
    let task = client.run("family", "child", json!({"n": 1, "which": 0}), json!(null))?;
    if task["state"] != "completed" {
        bail!("{task}");
    }
    Ok(())
}

/// How long answers took.
fn ask_all(client: &Client, over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !over.load(Ordering::Acquire) {
        let began = Instant::now();
        client.get("/v1/tasks/counts")?.expect(&[200])?;
        times.push(began.elapsed());
        wait::pause(Duration::from_millis(5));
    }
    Ok(times)
}

/// Alters every artifact, puts one in the place of another, and starts the host over them: those of what is installed are looked at.
fn plant(host: &mut Host, report: &mut Report) -> Result<()> {
    let stopped = host.stop()?;
    report.require(stopped.success(), "process", || format!("it ended with {stopped}"));
    let mut artifacts = files(&host.data_dir().join("artifacts"))?;
    artifacts.sort_by_key(|(_, bytes)| *bytes);
    let [first, .., last] = &artifacts[..] else { bail!("the host keeps {} artifacts", artifacts.len()) };
    let another = std::fs::read(&last.0)?;
    for (path, _) in &artifacts {
        let mut altered = std::fs::read(path)?;
        let middle = altered.len() / 2;
        altered[middle] ^= 1;
        std::fs::write(path, altered)?;
    }
    std::fs::write(&first.0, another)?;
    host.start_again()?;
    let page = host.client().get("/metrics")?;
    let text = String::from_utf8_lossy(&page.bytes).into_owned();
    let refused = text.lines().find_map(|line| line.strip_prefix("keiko_artifacts_refused_total "));
    let refused: f64 = refused.and_then(|number| number.trim().parse().ok()).unwrap_or_default();
    report.require(refused >= 1.0, "planted", || format!("{refused} artifacts were not believed"));
    report.tried("artifacts_refused", refused as u64);
    Ok(())
}

/// Every file below a folder with its size.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(found)
}
