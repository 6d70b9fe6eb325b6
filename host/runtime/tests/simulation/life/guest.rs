//! The scripted guest, and the book of everything that ran.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::batch::{ItemOutcome, ItemWish};
use keiko_core::code::Code;
use keiko_core::effect::{ChildWish, Effects, Joined, wish_of};
use keiko_core::group::NewGroup;
use keiko_core::log::LogBuffer;
use keiko_core::manifest::Manifest;
use keiko_core::outcome::{AttemptReport, Failure, Meter, Outcome, RetryWish, Taint};
use keiko_core::port::{
    Attempt, AttemptFacts, BatchOutcome, BatchReport, BatchRun, Compiled, HostPort, InstallError,
    ReserveError, Runner,
};
use keiko_core::profile::{Profile, Profiles};
use keiko_core::stop::Stop;
use keiko_core::task::Payload;
use keiko_core::{Digest, ItemId, TaskId, TenantName, VersionId};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use crate::random::Random;
use crate::story::Story;

/// The only processor.
pub const PROCESSOR: &str = "sink";
/// The longest that two attempts of one task may run beside each other on hosts that nobody stopped.
const BESIDE_MAX: Duration = Duration::from_millis(1_500);
/// A host that was stopped within this before another began may still run what it has lost.
const STOPPED_BEFORE: Duration = Duration::from_secs(35);

/// What a task does, as its input says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// How it ends.
    pub end: End,
    /// How long it works before.
    pub work_ms: u64,
    /// Children that it asks for when it completes.
    pub children: u64,
    /// Levels of single ones below its child.
    pub levels: u64,
    /// Items that it asks for when it completes.
    pub items: u64,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It completes.
    Completes,
    /// It fails for good.
    Fails,
    /// It fails so often, and then completes.
    FailsFirst(u64),
    /// It computes until it is stopped, or its time is over.
    Endless,
    /// It takes its host down.
    Crashes,
}

impl Script {
    /// Some script.
    pub fn draw(random: &mut Random) -> Script {
        let end = match random.among(0, 99) {
            0..=69 => End::Completes,
            70..=77 => End::Fails,
            78..=93 => End::FailsFirst(random.among(1, 5)),
            94..=97 => End::Endless,
            _ => End::Crashes,
        };
        let work_ms = match random.among(0, 9) {
            0..=3 => 0,
            4..=6 => random.among(1, 2_000),
            7..=8 => random.among(2_000, 25_000),
            _ => random.among(25_000, 55_000),
        };
        let children = if random.percent(20) { random.among(1, 3) } else { 0 };
        let items = if random.percent(15) { random.among(1, 3) } else { 0 };
        Script { end, work_ms, children, levels: 0, items }
    }

    /// The input of a task that follows it, with a mark that tells its submit from others.
    pub fn input(self, mark: &str) -> String {
        let (end, times) = match self.end {
            End::Completes => ("completes", 0),
            End::Fails => ("fails", 0),
            End::FailsFirst(times) => ("fails-first", times),
            End::Endless => ("endless", 0),
            End::Crashes => ("crashes", 0),
        };
        let Script { work_ms, children, levels, items, .. } = self;
        let input = json!({
            "end": end, "times": times, "work_ms": work_ms, "children": children, "levels": levels,
            "items": items, "mark": mark,
        });
        input.to_string()
    }

    fn read(input: &Value) -> Script {
        let number = |name: &str| input[name].as_u64().unwrap_or(0);
        let end = match input["end"].as_str() {
            Some("fails") => End::Fails,
            Some("fails-first") => End::FailsFirst(number("times")),
            Some("endless") => End::Endless,
            Some("crashes") => End::Crashes,
            _ => End::Completes,
        };
        Script {
            end,
            work_ms: number("work_ms"),
            children: number("children"),
            levels: number("levels"),
            items: number("items"),
        }
    }
}

/// Whether the process at a place stands still. No channel of tokio's: those wake many that wait in an order of their own.
#[derive(Default)]
pub struct Stall {
    stands: AtomicBool,
    changed: Notify,
}

impl Stall {
    pub fn set(&self, stands: bool) {
        self.stands.store(stands, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    pub fn stands(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    /// Waits until the process goes on.
    async fn over(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.stands() {
                return;
            }
            changed.await;
        }
    }
}

/// A host from its start to its end, as its guests see it.
pub struct Process {
    /// Different for every start.
    pub number: u64,
    /// Where it runs.
    pub place: usize,
    /// Whether it stands still.
    pub stalled: Arc<Stall>,
    /// When it last stood still, or began.
    pub awake_since: Arc<Mutex<Instant>>,
    /// Whether it is gone.
    pub dead: AtomicBool,
}

impl Process {
    /// Goes on only while the process does.
    async fn pass(&self) {
        self.stalled.over().await;
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Whether nobody stopped it from so long before `since` until now.
    fn was_awake(&self, since: Instant) -> bool {
        !self.stalled.stands() && *self.awake_since.lock() + STOPPED_BEFORE < since
    }
}

/// One attempt that began.
#[derive(Clone)]
pub struct Run {
    pub task: TaskId,
    pub process: Arc<Process>,
}

/// What a run asks to be written with its result.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub children: Vec<TaskId>,
    pub joined: Vec<Joined>,
    pub items: Vec<ItemId>,
}

/// A pause that was answered.
pub struct Pause {
    /// The process that was asked.
    pub process: u64,
    /// Whose tasks are paused; `None` are everybody's.
    pub of: Option<TenantName>,
    /// When it was answered.
    pub since: Instant,
}

/// Everything that ran, in its order; a run's number is its place.
#[derive(Default)]
pub struct Runs(Mutex<Ran>);

#[derive(Default)]
struct Ran {
    runs: Vec<Run>,
    /// Tasks that ran, by the mark of their submit.
    marked: BTreeMap<String, BTreeSet<TaskId>>,
    /// Runs that have not ended.
    active: BTreeMap<TaskId, Vec<usize>>,
    /// An earlier and a later run of a task that go on beside each other since then.
    beside: Vec<(usize, usize, Instant)>,
    /// How often each task ran when its host died.
    crashes: BTreeMap<TaskId, u64>,
    /// What runs that completed asked for, by the run.
    asked: BTreeMap<usize, Asked>,
    /// The batches whose runs were done with an item.
    worked: BTreeMap<ItemId, BTreeSet<String>>,
    /// What is paused.
    paused: Option<Pause>,
    violations: Vec<String>,
}

impl Runs {
    fn begin(&self, task: TaskId, process: &Arc<Process>, mark: Option<&str>) -> usize {
        let mut ran = self.0.lock();
        let number = ran.runs.len();
        ran.runs.push(Run { task, process: Arc::clone(process) });
        if let Some(mark) = mark {
            ran.marked.entry(mark.to_owned()).or_default().insert(task);
        }
        let others = ran.active.entry(task).or_default();
        others.push(number);
        let others: Vec<_> = others.iter().copied().filter(|other| *other != number).collect();
        ran.beside.extend(others.into_iter().map(|other| (other, number, Instant::now())));
        number
    }

    fn end(&self, number: usize) {
        let mut ran = self.0.lock();
        let Ran { runs, active, beside, violations, .. } = &mut *ran;
        let task = runs[number].task;
        active.entry(task).or_default().retain(|other| *other != number);
        beside.retain(|&(earlier, later, since)| {
            if earlier != number && later != number {
                return true;
            }
            let process = &runs[earlier].process;
            if since.elapsed() > BESIDE_MAX && process.was_awake(since) {
                let (first, second) = (process.number, runs[later].process.number);
                let ms = since.elapsed().as_millis();
                violations.push(format!(
                    "I-2: {task} ran on {first} and on {second} for {ms} ms beside each other"
                ));
            }
            false
        });
    }

    /// A host is gone with everything that it still ran.
    pub fn lost(&self, process: &Process) {
        let mut ran = self.0.lock();
        let Ran { runs, active, beside, crashes, .. } = &mut *ran;
        for (task, numbers) in active.iter_mut() {
            let before = numbers.len();
            numbers.retain(|number| runs[*number].process.number != process.number);
            if numbers.len() < before {
                *crashes.entry(*task).or_default() += 1;
            }
        }
        beside.retain(|(earlier, later, _)| {
            [earlier, later].into_iter().all(|number| runs[*number].process.number != process.number)
        });
    }

    fn worked(&self, batch: &BatchRun) {
        // Parts of one batch are named after it.
        let id = batch.id.split('-').next().unwrap_or(&batch.id);
        let mut ran = self.0.lock();
        for item in &batch.items {
            ran.worked.entry(item.id).or_default().insert(id.to_owned());
        }
    }

    fn asks(&self, run: usize, effects: &Effects) {
        let children = effects.children.iter().map(|child| child.id).collect();
        let items = effects.items.iter().map(|item| item.id).collect();
        self.0.lock().asked.insert(run, Asked { children, joined: effects.joined.clone(), items });
    }

    /// A host has answered that something is paused; one pause at a time.
    pub fn paused(&self, pause: Pause) {
        self.0.lock().paused = Some(pause);
    }

    /// It will be resumed.
    pub fn resumed(&self) {
        self.0.lock().paused = None;
    }

    /// Nothing begins where it is paused.
    fn check_pause(&self, facts: &AttemptFacts, process: &Process) {
        let mut ran = self.0.lock();
        let covers = |pause: &Pause| {
            let of = pause.of.as_ref().is_none_or(|tenant| *tenant == facts.tenant);
            // What was about to begin goes on.
            of && pause.process == process.number && pause.since < Instant::now()
        };
        if ran.paused.as_ref().is_some_and(covers) {
            let text = format!("P-1: {} begins on host {}, where it is paused", facts.task, process.number);
            ran.violations.push(text);
        }
    }

    /// What each run asked for that says that it completed.
    pub fn asked(&self) -> BTreeMap<usize, Asked> {
        self.0.lock().asked.clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().runs.len()
    }

    /// The task of a run.
    pub fn task(&self, number: usize) -> Option<TaskId> {
        self.0.lock().runs.get(number).map(|run| run.task)
    }

    /// How often a task ran when its host died.
    pub fn crashes(&self, task: TaskId) -> u64 {
        self.0.lock().crashes.get(&task).copied().unwrap_or(0)
    }

    /// How many tasks of a submit ran.
    pub fn of(&self, mark: &str) -> u64 {
        self.0.lock().marked.get(mark).map_or(0, |tasks| tasks.len() as u64)
    }

    /// In how many batches an item was done with.
    pub fn batches_of(&self, item: ItemId) -> usize {
        self.0.lock().worked.get(&item).map_or(0, BTreeSet::len)
    }

    pub fn violates(&self, text: String) {
        self.0.lock().violations.push(text);
    }

    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().violations)
    }
}

/// Runs scripts on one host.
pub struct Guests {
    pub process: Arc<Process>,
    pub runs: Arc<Runs>,
    pub story: Arc<Story>,
    /// Takes the process down that runs at a place.
    pub crash: mpsc::UnboundedSender<usize>,
}

impl Guests {
    async fn work(&self, script: Script, attempt: &Attempt, stop: &Stop) -> Option<Outcome> {
        let wall = Duration::from_millis(attempt.budget.wall_ms.value);
        let endless = script.end == End::Endless;
        let work = if endless { wall } else { Duration::from_millis(script.work_ms).min(wall) };
        let stopped = tokio::select! {
            biased;
            reason = stop.wait() => Some(Outcome::Stopped(reason)),
            () = sleep(work) => None,
        };
        self.process.pass().await;
        if stopped.is_none() && script.end == End::Crashes {
            // Nobody listens when the life is over.
            let _ = self.crash.send(self.process.place);
            std::future::pending::<()>().await;
        }
        let late = || (work == wall).then(|| Failure::new(Code::DeadlineExceeded, "too late"));
        stopped.or_else(|| late().map(Outcome::Failed))
    }

    async fn end(&self, script: Script, attempt: &Attempt, port: &dyn HostPort, run: usize) -> AttemptReport {
        match script.end {
            End::Fails => return failed("as scripted", RetryWish::ByCode),
            End::FailsFirst(times) if u64::from(attempt.facts.number) <= times => {
                return failed("as scripted", RetryWish::After(Some(500)));
            }
            _ => {}
        }
        let again = |error: String| failed(&error, RetryWish::After(Some(1_000)));
        let mut effects = Effects::default();
        if script.children > 0
            && let Err(error) = ask_children(script, port, run, &mut effects).await
        {
            return again(error.to_string());
        }
        if script.items > 0 {
            let items = (0..script.items).map(|index| item(&format!("of {run}, {index}"))).collect();
            match port.reserve_items(PROCESSOR, items).await {
                Ok(items) => items.into_iter().for_each(|item| effects.push_item(item)),
                Err(error) => return again(error.to_string()),
            }
        }
        // A process that died in the meantime says nothing.
        self.process.pass().await;
        self.runs.asks(run, &effects);
        AttemptReport {
            effects,
            ..report(Outcome::Completed(Payload::json(json!({ "run": run }).to_string())))
        }
    }
}

/// An item with a text.
pub fn item(text: &str) -> ItemWish {
    ItemWish { key: String::new(), payload: Payload::json(json!(text).to_string()) }
}

/// Several children are joined: some of them fail, and one more begins when all have ended.
async fn ask_children(
    script: Script,
    port: &dyn HostPort,
    run: usize,
    effects: &mut Effects,
) -> Result<(), ReserveError> {
    if let Some(levels) = script.levels.checked_sub(1) {
        let wish = wish(json!({
            "end": "completes", "work_ms": run as u64 * 977 % 6_000, "children": levels.min(1), "levels": levels,
        }));
        let reserved = port.reserve(std::slice::from_ref(&wish)).await?;
        effects.push(wish, reserved.into_iter().next().expect("one was asked for"));
        return Ok(());
    }
    let joins = script.children > 1;
    let mut wishes: Vec<_> = (0..script.children).map(|index| child(run, index, joins)).collect();
    let then = || wish(json!({"joins": script.children, "parent_run": run}));
    wishes.extend(joins.then(then));
    let reserved = port.reserve(&wishes).await?;
    match wishes.pop().filter(|_| joins) {
        Some(then) => {
            let asked = NewGroup {
                live_max: (!run.is_multiple_of(3)).then_some(1),
                fail_fast: run.is_multiple_of(2),
            };
            effects.push_joined(wishes, asked, then, reserved);
        }
        None => effects.push(child(run, 0, false), reserved.into_iter().next().expect("one was asked for")),
    }
    Ok(())
}

fn child(run: usize, index: u64, joins: bool) -> ChildWish {
    let number = run as u64 + index;
    let fails = joins && number.is_multiple_of(4);
    let work_ms = if joins { number * 977 % 4_000 } else { 0 };
    let end = if fails { "fails" } else { "completes" };
    wish(json!({"end": end, "work_ms": work_ms, "parent_run": run, "index": index}))
}

fn wish(input: Value) -> ChildWish {
    ChildWish { input: Payload::json(input.to_string()), ..wish_of(0) }
}

/// Whether a join was given the outcome of each of the tasks before it, in their order, and all of them had ended.
fn joins_ended(join: TaskId, count: u64, tasks: &Value) -> bool {
    let Some(tasks) = tasks.as_array().filter(|tasks| tasks.len() as u64 == count) else { return false };
    let ids = join.0 - count as i64..join.0;
    ids.zip(tasks).all(|(id, one)| {
        let completed = one["state"] == "completed";
        let ended = completed || one["state"] == "failed" || one["state"] == "cancelled";
        one["task"] == TaskId(id).to_string() && ended && completed == one["result"].is_object()
    })
}

fn report(outcome: Outcome) -> AttemptReport {
    AttemptReport {
        outcome,
        meter: Meter::default(),
        taint: Taint::NONE,
        effects: Effects::default(),
        log: LogBuffer::default(),
    }
}

fn failed(text: &str, retry: RetryWish) -> AttemptReport {
    report(Outcome::Failed(Failure { retry, ..Failure::new(Code::PluginFailed, text) }))
}

#[async_trait]
impl Runner for Guests {
    async fn compile(
        &self,
        bytes: Bytes,
        _component_bytes_max: u64,
        _profiles: Profiles,
    ) -> Result<Compiled, InstallError> {
        let manifest = Manifest::parse(&bytes).expect("scripts have good manifests");
        Ok(Compiled {
            digest: Digest([1; 32]),
            component_bytes: bytes.len() as u64,
            artifact_bytes: 0,
            compile_ms: 0,
            profile: Profile::Strict,
            manifest: Some(manifest),
            imports: Vec::new(),
            is_program: false,
            runs_tasks: true,
            works_batches: true,
        })
    }

    async fn load(&self, _digest: Digest, _profiles: Profiles) -> Result<(), InstallError> {
        Ok(())
    }

    async fn profile(&self, _digest: Digest) -> Result<Profile, InstallError> {
        Ok(Profile::Strict)
    }

    async fn run(&self, attempt: Attempt, port: Arc<dyn HostPort>, stop: Stop) -> AttemptReport {
        let input: Value = serde_json::from_slice(&attempt.input.bytes).unwrap_or_default();
        let script = Script::read(&input);
        let (task, number, host) = (attempt.facts.task, attempt.facts.number, self.process.number);
        let run = self.runs.begin(task, &self.process, input["mark"].as_str());
        match input["context"]["joins"].as_u64() {
            // Its input is read before it begins, which may take a while.
            Some(count) if !joins_ended(task, count, &input["tasks"]) => {
                self.runs.violates(format!("G-1: {task} joins {count} tasks and is given {input}"));
            }
            Some(_) => {}
            None => self.runs.check_pause(&attempt.facts, &self.process),
        }
        self.story.tell(format_args!("host {host} begins attempt {number} of {task}: run {run}, {script:?}"));
        self.process.pass().await;
        let report = match self.work(script, &attempt, &stop).await {
            Some(outcome) => report(outcome),
            // The engine stops a guest that waits in a call of the host, too.
            None => tokio::select! {
                biased;
                reason = stop.wait() => report(Outcome::Stopped(reason)),
                report = self.end(script, &attempt, &*port, run) => report,
            },
        };
        self.runs.end(run);
        let outcome = match &report.outcome {
            Outcome::Completed(_) => "completes",
            Outcome::Failed(failure) => failure.code.as_str(),
            Outcome::Stopped(_) => "is stopped",
        };
        self.story.tell(format_args!("run {run} of {task} on host {host} {outcome}"));
        report
    }

    async fn process(
        &self,
        _attempt: Attempt,
        batch: BatchRun,
        _port: Arc<dyn HostPort>,
        stop: Stop,
    ) -> BatchReport {
        self.process.pass().await;
        let host = self.process.number;
        self.story.tell(format_args!(
            "host {host} is given batch {} of {} items",
            batch.id,
            batch.items.len()
        ));
        let stopped = tokio::select! {
            biased;
            reason = stop.wait() => Some(BatchOutcome::Stopped(reason)),
            () = sleep(Duration::from_millis(300)) => None,
        };
        self.process.pass().await;
        let outcome = stopped.unwrap_or_else(|| {
            self.runs.worked(&batch);
            BatchOutcome::Answered(vec![ItemOutcome::Done; batch.items.len()])
        });
        self.story.tell(format_args!("batch {} on host {host} ends: {outcome:?}", batch.id));
        BatchReport {
            outcome,
            meter: Meter::default(),
            effects: Effects::default(),
            log: LogBuffer::default(),
        }
    }

    fn retain(&self, _components: &[Digest], _versions: &[VersionId]) {}
}
