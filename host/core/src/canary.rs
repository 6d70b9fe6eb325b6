//! Canaries: a version that a part of a plugin's tasks and batches try, and the test that says whether it is worse than the current
//! one.
//!
//! Only the first attempt of a task tries a canary, the same tasks on every host ([`is_chosen`]); when it fails, the task runs on
//! the current version in the same attempt. A batch tries it as a task does, by its id and as a whole, when none of its items was
//! handed over before; unless the canary is done with every item, the current version works the whole batch, and what it says of the
//! items counts. At most [`CANARY_TASKS_MAX`] tasks and batches together try it before there is a verdict: a version has one, and
//! the items of a batch share its fate, so that a batch is one attempt to the test and not as many as it has items.
//!
//! The test compares two streams of attempts, each failing at a rate that nobody knows, whenever there is news of both: an exact
//! sequential test by e-values (R. Turner, A. Ly, P. Grünwald, "Generic E-variables for exact sequential k-sample tests that
//! allow for optional stopping", 2021, arXiv 2106.02693). The evidence against "the canary fails no more often" is a product
//! over blocks of `n` attempts on the current version and `m` on the canary:
//!
//! > the probability of what was seen at the rates `p` and `q` / its probability at their mean, `(n p + m q) / (n + m)`
//!
//! where `p < q` are estimated from the blocks before. If both versions fail at one rate, a block's factor is at most 1 in
//! expectation, because the mean of the factors of its attempts is 1 and their product is at most its power (inequality of the
//! means); if the canary fails less often it is less. So the evidence ever reaches `1 / alpha` with a probability of at most alpha,
//! however long and often one looks (Ville's inequality).
//!
//! What a plugin declares as its own failure says less than a trap: tasks may deserve it, and so may items that a processor rejects
//! or puts off. There is one product of traps and the like, and one of all failures; the evidence is their mean. Of the canary, a
//! declared failure counts when the current version does not fail the same.

use serde::{Deserialize, Serialize};

use crate::batch::ItemOutcome;
use crate::batch::work::Ran;
use crate::code::Code;
use crate::id::{Digest, TaskId, VersionId};
use crate::limit::{CANARY_PATIENCE_MS, CANARY_TASKS_MAX};
use crate::name::VersionName;
use crate::outcome::{Failure, Outcome};
use crate::policy::TenantPolicy;

/// The probability that a version is taken back though it fails no more often than the current one, at most.
pub const ALPHA: f64 = 0.001;

/// How far a canary has come. Stored by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Tasks try it and are counted.
    Trying,
    /// It was not found worse; its part of the tasks runs on it until somebody activates it or takes it back.
    Passed,
    /// It was found worse, and no task tries it any more.
    Worse,
    /// Somebody took it back.
    Withdrawn,
}

impl State {
    /// Every state, by its number.
    pub const ALL: &'static [State] = &[State::Trying, State::Passed, State::Worse, State::Withdrawn];

    /// The name that people and programs see.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Trying => "trying",
            State::Passed => "passed",
            State::Worse => "worse",
            State::Withdrawn => "withdrawn",
        }
    }

    /// The state of a stored number.
    pub fn numbered(number: i64) -> Option<State> {
        usize::try_from(number).ok().and_then(|place| State::ALL.get(place).copied())
    }

    /// Whether tasks run on it.
    pub const fn is_open(self) -> bool {
        matches!(self, State::Trying | State::Passed)
    }
}

/// Whether a task, or a batch by its number, is one of the `percent` that try a canary: the same on every host and in every
/// attempt.
pub fn is_chosen(task: TaskId, canary: VersionId, percent: u8) -> bool {
    let mut hasher = blake3::Hasher::new_derive_key("keiko 2026 tasks of a canary");
    hasher.update(&task.0.to_le_bytes()).update(&canary.0.to_le_bytes());
    let mut drawn = [0; 8];
    hasher.finalize_xof().fill(&mut drawn);
    u64::from_le_bytes(drawn) % 100 < u64::from(percent)
}

/// What an attempt says of the version it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It completed, or failed as it would have on the other version.
    Well,
    /// The plugin declared a failure.
    Declared,
    /// It trapped, met a limit or broke its contract.
    Broke,
}

/// What an outcome says of the version; nothing when the failure was the host's, or there is none.
pub fn seen(outcome: &Outcome) -> Option<Seen> {
    match outcome {
        Outcome::Completed(_) => Some(Seen::Well),
        Outcome::Failed(failure) => seen_failing(failure),
        Outcome::Stopped(_) => None,
    }
}

fn seen_failing(failure: &Failure) -> Option<Seen> {
    match failure.code {
        // With a limit it is the contract that was broken.
        Code::PluginFailed if failure.limit.is_some() => Some(Seen::Broke),
        // What it asked for contradicts what is there, which may be the task's fault as well.
        Code::PluginFailed | Code::InvalidInput | Code::Conflict => Some(Seen::Declared),
        Code::FuelExhausted
        | Code::DeadlineExceeded
        | Code::MemoryExceeded
        | Code::StackExhausted
        | Code::Trap
        | Code::HostcallTooLarge
        | Code::HostcallBudget
        | Code::HandlesExceeded
        | Code::Denied => Some(Seen::Broke),
        _ => None,
    }
}

/// What a failed attempt on the canary says of it, once the current version has run the same task.
pub fn compared(canary: &Failure, current: &Outcome) -> Option<Seen> {
    let seen = seen_failing(canary)?;
    match current {
        Outcome::Stopped(_) => None,
        Outcome::Failed(failure) if seen == Seen::Declared && failure.code == canary.code => Some(Seen::Well),
        _ => Some(seen),
    }
}

/// What a run of a whole batch of so many items says of the version; nothing when the failure was the host's.
pub fn seen_of_batch(items: usize, ran: &Ran) -> Option<Seen> {
    match ran {
        Ran::Answered(outcomes) if outcomes.len() != items => Some(Seen::Broke),
        Ran::Answered(outcomes) if outcomes.iter().all(is_done) => Some(Seen::Well),
        Ran::Answered(_) => Some(Seen::Declared),
        Ran::Failed(failure) => seen_failing(failure),
    }
}

/// What a run on the canary says of it that was not done with every item, once the current version has run the same batch.
pub fn compared_of_batch(items: usize, canary: &Ran, current: &Ran) -> Option<Seen> {
    let seen = seen_of_batch(items, canary)?;
    match (canary, current) {
        (Ran::Answered(canary), Ran::Answered(current)) if seen == Seen::Declared => {
            let same = |(canary, current): (&ItemOutcome, &ItemOutcome)| {
                is_done(canary) || std::mem::discriminant(canary) == std::mem::discriminant(current)
            };
            let all = canary.len() == current.len() && canary.iter().zip(current).all(same);
            Some(if all { Seen::Well } else { seen })
        }
        _ => Some(seen),
    }
}

fn is_done(outcome: &ItemOutcome) -> bool {
    *outcome == ItemOutcome::Done
}

/// A run of a task on a canary that failed, or whose end the database refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRun {
    /// The version.
    pub version: VersionName,
    /// Its component.
    pub digest: Digest,
    /// Why it failed.
    pub code: Code,
}

/// What tries a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A task, in its first attempt.
    Task,
    /// A batch, as a whole.
    Batch,
}

/// How many attempts there were, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// All of them, of tasks and of batches.
    pub tasks: u64,
    /// Those of batches.
    #[serde(default)]
    pub batches: u64,
    /// Those that the plugin declared failed.
    pub declared: u64,
    /// Those that trapped and the like.
    pub broke: u64,
}

impl Tally {
    /// With one more.
    pub fn with(mut self, unit: Unit, seen: Seen) -> Tally {
        self.tasks += 1;
        self.batches += u64::from(unit == Unit::Batch);
        self.declared += u64::from(seen == Seen::Declared);
        self.broke += u64::from(seen == Seen::Broke);
        self
    }

    /// Together with another.
    pub fn and(self, other: Tally) -> Tally {
        Tally {
            tasks: self.tasks.saturating_add(other.tasks),
            batches: self.batches.saturating_add(other.batches),
            declared: self.declared.saturating_add(other.declared),
            broke: self.broke.saturating_add(other.broke),
        }
    }

    /// Attempts and failures, of two kinds: traps and the like, and all.
    fn streams(self) -> [(f64, f64); 2] {
        let tasks = self.tasks as f64;
        [(tasks, self.broke as f64), (tasks, (self.broke + self.declared) as f64)]
    }
}

/// Tallies of both versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallies {
    /// Of the current version.
    pub current: Tally,
    /// Of the canary.
    pub canary: Tally,
}

impl Tallies {
    fn and(self, other: Tallies) -> Tallies {
        Tallies { current: self.current.and(other.current), canary: self.canary.and(other.canary) }
    }
}

/// The test of one canary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What the evidence is of.
    counted: Tallies,
    /// What waits for news of the other version.
    waiting: Tallies,
    /// Logarithms of the two products.
    evidence: [f64; 2],
}

impl Trial {
    /// Takes in what was seen since the last time.
    pub fn add(&mut self, news: Tallies) {
        let block = self.waiting.and(news);
        if block.current.tasks == 0 || block.canary.tasks == 0 {
            self.waiting = block;
            return;
        }
        let streams = |tallies: Tallies| tallies.current.streams().into_iter().zip(tallies.canary.streams());
        let weights = streams(self.counted).zip(streams(block)).map(|(before, block)| weight(before, block));
        self.evidence.iter_mut().zip(weights).for_each(|(evidence, weight)| *evidence += weight);
        (self.counted, self.waiting) = (self.counted.and(block), Tallies::default());
    }

    /// Everything that was seen.
    pub fn seen(&self) -> Tallies {
        self.counted.and(self.waiting)
    }

    /// Whether the canary fails more often than the current version, as good as certainly.
    pub fn is_worse(&self) -> bool {
        let [one, other] = self.evidence;
        // The mean of the two products, without leaving the logarithms.
        let more = one.max(other) + (-(one - other).abs()).exp().ln_1p();
        more - 2_f64.ln() >= -ALPHA.ln()
    }
}

/// A number of attempts, and how many of them failed, of the current version and of the canary.
type Pair = ((f64, f64), (f64, f64));

/// The logarithm of a block's factor, at rates that the blocks before suggest: before the first, that one of ten fails on the
/// current version, and one of four on the canary. At other than rising rates the block is passed over.
fn weight(before: Pair, block: Pair) -> f64 {
    let ((seen, failed), (seen_canary, failed_canary)) = before;
    let (p, q) = ((failed + 0.5) / (seen + 5.0), (failed_canary + 1.0) / (seen_canary + 4.0));
    if p >= q {
        return 0.0;
    }
    let ((n, bad), (m, bad_canary)) = block;
    let mean = (n * p + m * q) / (n + m);
    let likelihood = |tasks: f64, bad: f64, rate: f64| bad * rate.ln() + (tasks - bad) * (-rate).ln_1p();
    likelihood(n, bad, p) + likelihood(m, bad_canary, q) - likelihood(n + m, bad + bad_canary, mean)
}

/// How long the verdict waits for those that were let in last, in milliseconds: what runs for longest on the canary and then on
/// the current version has told by then.
pub fn patience_ms(policy: &TenantPolicy) -> i64 {
    let both = policy.max.wall_ms.saturating_mul(2).saturating_add(CANARY_PATIENCE_MS.unsigned_abs());
    i64::try_from(both).unwrap_or(i64::MAX)
}

/// Whether a task or a batch may run on a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It may, and is counted: what becomes of it is to be told.
    Counted,
    /// It may.
    Free,
    /// It may not.
    Closed,
}

/// What a host tells of a canary's trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// What attempts on the current version came to since the host told last.
    pub current: Tally,
    /// What the task or batch that was counted says of the canary.
    pub canary: Option<(Unit, Seen)>,
    /// Why it failed on it.
    pub failure: Option<String>,
}

/// Where a canary stands: what the database keeps of it, changed by [`Standing::enter`] and [`Standing::tell`] alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// How far it is.
    pub state: State,
    /// Tasks and batches that were let in, and have not come out without a result.
    pub touched: u32,
    /// When the last of them was.
    pub touched_ms: i64,
    /// Since when it is in its state.
    pub since_ms: i64,
    /// Its test.
    pub trial: Trial,
    /// Why a task or a batch failed on it last.
    pub failure: Option<String>,
}

impl Standing {
    /// Of a canary that nobody has tried.
    pub fn new(now_ms: i64) -> Standing {
        Standing {
            state: State::Trying,
            touched: 0,
            touched_ms: now_ms,
            since_ms: now_ms,
            trial: Trial::default(),
            failure: None,
        }
    }

    /// Lets a task or a batch in, if it may. When all that the trial takes are in and some have not told for so long, it does without them.
    pub fn enter(&mut self, patience_ms: i64, now_ms: i64) -> Entry {
        match self.state {
            State::Worse | State::Withdrawn => return Entry::Closed,
            State::Passed => return Entry::Free,
            State::Trying => {}
        }
        if self.touched < CANARY_TASKS_MAX {
            (self.touched, self.touched_ms) = (self.touched + 1, now_ms);
            return Entry::Counted;
        }
        // Nobody tells of tasks whose host is gone.
        if now_ms.saturating_sub(self.touched_ms) >= patience_ms {
            self.become_state(State::Passed, now_ms);
            return Entry::Free;
        }
        Entry::Closed
    }

    /// Takes in what became of a task or a batch that was let in; whether that was the verdict.
    pub fn tell(&mut self, news: News, now_ms: i64) -> bool {
        if self.state != State::Trying {
            return false;
        }
        if news.canary.is_none() {
            self.touched = self.touched.saturating_sub(1);
        }
        self.failure = news.failure.or(self.failure.take());
        let canary =
            news.canary.map_or_else(Tally::default, |(unit, seen)| Tally::default().with(unit, seen));
        self.trial.add(Tallies { current: news.current, canary });
        if self.trial.is_worse() {
            self.become_state(State::Worse, now_ms);
        } else if self.trial.seen().canary.tasks >= u64::from(CANARY_TASKS_MAX) {
            self.become_state(State::Passed, now_ms);
        }
        self.state != State::Trying
    }

    fn become_state(&mut self, state: State, now_ms: i64) {
        (self.state, self.since_ms) = (state, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::LimitFact;
    use crate::stop::StopReason;
    use crate::task::Payload;

    /// Draws evenly from 0 to 1; the same numbers for the same seed (splitmix64).
    struct Draw(u64);

    impl Draw {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn attempt(&mut self, broke: f64, declared: f64) -> Seen {
            match self.next() {
                drawn if drawn < broke => Seen::Broke,
                drawn if drawn < broke + declared => Seen::Declared,
                _ => Seen::Well,
            }
        }
    }

    /// Lives one canary to its verdict; how many tasks tried it, and the verdict. Rates are of traps and of declared failures.
    fn live(draw: &mut Draw, share: f64, current: (f64, f64), canary: (f64, f64)) -> (u32, State) {
        let (mut standing, mut seen) = (Standing::new(0), Tally::default());
        loop {
            if draw.next() >= share {
                seen = seen.with(Unit::Task, draw.attempt(current.0, current.1));
                continue;
            }
            assert_eq!(standing.enter(CANARY_PATIENCE_MS, 0), Entry::Counted);
            let tried = draw.attempt(canary.0, canary.1);
            let news =
                News { current: std::mem::take(&mut seen), canary: Some((Unit::Task, tried)), failure: None };
            if standing.tell(news, 0) {
                return (standing.touched, standing.state);
            }
        }
    }

    /// The part of `lives` that ended with `Worse`, and the most tasks that one of them took.
    fn worse(lives: u32, share: f64, current: (f64, f64), canary: (f64, f64)) -> (f64, u32) {
        let mut draw = Draw(7);
        let ends: Vec<(u32, State)> = (0..lives).map(|_| live(&mut draw, share, current, canary)).collect();
        let found = ends.iter().filter(|(_, state)| *state == State::Worse);
        let part = found.clone().count() as f64 / f64::from(lives);
        (part, found.map(|(touched, _)| *touched).max().unwrap_or(0))
    }

    #[test]
    fn a_version_that_is_no_worse_is_taken_back_no_oftener_than_alpha() {
        // 1,000 lives at a rate of 0.001 have more than 5 with a probability below 0.1 %.
        for share in [0.1, 0.5] {
            for (broke, declared) in
                [(0.0, 0.0), (0.01, 0.0), (0.05, 0.05), (0.0, 0.2), (0.3, 0.0), (0.5, 0.3), (0.0, 0.95)]
            {
                let (part, _) = worse(1_000, share, (broke, declared), (broke, declared));
                assert!(part <= 5.0 / 1_000.0, "{share} {broke} {declared}: {part}");
            }
        }
        assert_eq!(worse(1_000, 0.1, (0.3, 0.0), (0.1, 0.0)).0, 0.0, "nor one that is better");
    }

    #[test]
    fn a_version_that_traps_at_30_percent_is_found_before_the_bound() {
        for (share, current, most) in [
            (0.01, (0.0, 0.0), 60),
            (0.1, (0.0, 0.0), 80),
            (0.1, (0.01, 0.0), 100),
            (0.5, (0.0, 0.0), 170),
            // Many tasks deserve to fail: traps are seen all the same.
            (0.1, (0.0, 0.5), 80),
        ] {
            let (part, touched) = worse(1_000, share, current, (0.3, 0.7 * current.1));
            assert!(part == 1.0 && touched <= most, "{share} {current:?}: {part} within {touched}");
        }
        // One that declares failures that the current version does not.
        let (part, touched) = worse(1_000, 0.1, (0.0, 0.01), (0.0, 0.3));
        assert!(part == 1.0 && touched <= 100, "{part} within {touched}");
        assert_eq!(worse(100, 0.1, (0.0, 0.0), (1.0, 0.0)).0, 1.0);
    }

    #[test]
    fn evidence_is_what_the_formula_says() {
        let tally = |tasks, broke| Tally { tasks, broke, ..Tally::default() };
        let mut trial = Trial::default();
        trial.add(Tallies { current: tally(9, 0), canary: Tally::default() });
        assert_eq!(trial.evidence, [0.0, 0.0], "it waits for news of the canary");
        trial.add(Tallies { current: Tally::default(), canary: tally(1, 1) });
        // Rates 0.1 and 0.25; their mean over ten attempts is 0.115.
        let expected = (0.25_f64 / 0.115).ln() + 9.0 * (0.9_f64 / 0.885).ln();
        assert!(trial.evidence.iter().all(|evidence| (evidence - expected).abs() < 1e-12), "{trial:?}");
        assert_eq!((trial.seen().current.tasks, trial.seen().canary.broke), (9, 1));
        // Rates 0.5 / 14 and 0.4 from here on.
        trial.add(Tallies { current: tally(1, 0), canary: tally(1, 0) });
        let mean: f64 = (0.5 / 14.0 + 0.4) / 2.0;
        let more = (1.0_f64 - 0.5 / 14.0).ln() + 0.6_f64.ln() - 2.0 * (1.0 - mean).ln();
        assert!((trial.evidence[0] - expected - more).abs() < 1e-12, "{trial:?}");
    }

    #[test]
    fn the_verdict_falls_at_the_limit_and_not_one_below() {
        let with = |evidence| Trial { evidence, ..Trial::default() };
        let limit = 1_000_f64.ln();
        assert!(with([limit + 1e-9, limit + 1e-9]).is_worse());
        assert!(!with([limit - 1e-9, limit - 1e-9]).is_worse());
        assert!(with([2_000_f64.ln() + 1e-9, -700.0]).is_worse(), "half of one is enough");
        assert!(!with([2_000_f64.ln() - 1e-9, -700.0]).is_worse());
        assert!(with([5_000.0, 0.0]).is_worse(), "without leaving the numbers");
    }

    #[test]
    fn no_more_tasks_try_it_than_the_bound_and_all_of_them_are_a_verdict() {
        let mut standing = Standing::new(5);
        for _ in 0..CANARY_TASKS_MAX {
            assert_eq!(standing.enter(CANARY_PATIENCE_MS, 10), Entry::Counted);
        }
        assert_eq!(standing.enter(CANARY_PATIENCE_MS, 10), Entry::Closed);
        // One that was stopped makes room for another.
        assert!(!standing.tell(News::default(), 11));
        assert_eq!(
            (standing.enter(CANARY_PATIENCE_MS, 12), standing.enter(CANARY_PATIENCE_MS, 12)),
            (Entry::Counted, Entry::Closed)
        );
        for told in 1..=CANARY_TASKS_MAX {
            let news = News {
                current: Tally { tasks: 1, ..Tally::default() },
                canary: Some((Unit::Task, Seen::Well)),
                failure: None,
            };
            assert_eq!(standing.tell(news, 20), told == CANARY_TASKS_MAX, "{told}");
        }
        assert_eq!(
            (standing.state, standing.since_ms, standing.enter(CANARY_PATIENCE_MS, 30)),
            (State::Passed, 20, Entry::Free)
        );
        assert!(!standing.tell(News { canary: Some((Unit::Batch, Seen::Broke)), ..News::default() }, 40));
    }

    #[test]
    fn tasks_that_nobody_tells_of_do_not_hold_a_verdict_for_ever() {
        let mut standing = Standing::new(0);
        for _ in 0..CANARY_TASKS_MAX {
            assert_eq!(standing.enter(CANARY_PATIENCE_MS, 7), Entry::Counted);
        }
        assert_eq!(standing.enter(CANARY_PATIENCE_MS, 6 + CANARY_PATIENCE_MS), Entry::Closed);
        assert_eq!(standing.enter(CANARY_PATIENCE_MS, 7 + CANARY_PATIENCE_MS), Entry::Free);
        assert_eq!(standing.state, State::Passed);
    }

    #[test]
    fn a_canary_that_breaks_on_everything_is_closed_and_says_why() {
        let mut standing = Standing::new(0);
        for tried in 0.. {
            assert_eq!(standing.enter(CANARY_PATIENCE_MS, 1), Entry::Counted, "{tried}");
            let news = News {
                current: Tally { tasks: 9, ..Tally::default() },
                canary: Some((Unit::Batch, Seen::Broke)),
                failure: Some(format!("trap {tried}")),
            };
            if standing.tell(news, 2) {
                assert!(tried < 10, "{tried}");
                assert_eq!(standing.failure, Some(format!("trap {tried}")));
                break;
            }
        }
        assert_eq!((standing.state, standing.enter(CANARY_PATIENCE_MS, 3)), (State::Worse, Entry::Closed));
    }

    #[test]
    fn nobody_passes_while_an_attempt_of_the_longest_sort_may_still_run() {
        let mut policy = TenantPolicy::default();
        for wall_ms in [1, 30_000, policy.max.wall_ms] {
            policy.max.wall_ms = wall_ms;
            let patience_ms = patience_ms(&policy);
            let mut standing = Standing::new(0);
            for _ in 0..CANARY_TASKS_MAX {
                assert_eq!(standing.enter(patience_ms, 5), Entry::Counted);
            }
            // On the canary and on the current version.
            let over = 5 + 2 * wall_ms as i64;
            assert_eq!(standing.enter(patience_ms, over), Entry::Closed, "{wall_ms}");
            assert!(patience_ms >= CANARY_PATIENCE_MS);
        }
        policy.max.wall_ms = u64::MAX;
        assert_eq!(patience_ms(&policy), i64::MAX);
    }

    #[test]
    fn outcomes_say_whose_fault_they_are() {
        let failed = |code| Outcome::Failed(Failure::new(code, "no"));
        for (code, expected) in [
            (Code::Trap, Some(Seen::Broke)),
            (Code::FuelExhausted, Some(Seen::Broke)),
            (Code::DeadlineExceeded, Some(Seen::Broke)),
            (Code::Denied, Some(Seen::Broke)),
            (Code::PluginFailed, Some(Seen::Declared)),
            (Code::InvalidInput, Some(Seen::Declared)),
            (Code::Conflict, Some(Seen::Declared)),
            (Code::Internal, None),
            (Code::StorageDown, None),
            (Code::LeaseLost, None),
            (Code::NotFound, None),
        ] {
            assert_eq!(seen(&failed(code)), expected, "{code}");
        }
        assert_eq!(seen(&Outcome::Completed(Payload::json("1"))), Some(Seen::Well));
        assert_eq!(seen(&Outcome::Stopped(StopReason::Drained)), None);
        let fact = LimitFact::of_host("result_bytes", 1, Some(2));
        assert_eq!(seen(&Outcome::Failed(Failure::at_limit(Code::PluginFailed, fact))), Some(Seen::Broke));
    }

    #[test]
    fn a_declared_failure_counts_only_when_the_current_version_does_not_fail_the_same() {
        let failure = |code| Failure::new(code, "no");
        let check = |canary, current: Outcome| compared(&failure(canary), &current);
        let done = || Outcome::Completed(Payload::json("1"));
        assert_eq!(check(Code::PluginFailed, done()), Some(Seen::Declared));
        assert_eq!(check(Code::PluginFailed, Outcome::Failed(failure(Code::PluginFailed))), Some(Seen::Well));
        assert_eq!(
            check(Code::PluginFailed, Outcome::Failed(failure(Code::InvalidInput))),
            Some(Seen::Declared)
        );
        assert_eq!(check(Code::Trap, Outcome::Failed(failure(Code::Trap))), Some(Seen::Broke));
        assert_eq!(check(Code::Trap, Outcome::Stopped(StopReason::Cancelled)), None);
        assert_eq!(check(Code::Internal, done()), None);
    }

    #[test]
    fn a_batch_is_well_when_every_item_is_done_and_counts_as_one() {
        let reject = || ItemOutcome::Reject("odd".to_owned());
        let later = || ItemOutcome::Retry { after_ms: None, reason: "busy".to_owned() };
        let done = || ItemOutcome::Done;
        let answered = |outcomes: Vec<ItemOutcome>| Ran::Answered(outcomes);
        let failed = |code| Ran::Failed(Failure::new(code, "no"));
        assert_eq!(seen_of_batch(2, &answered(vec![done(), done()])), Some(Seen::Well));
        assert_eq!(seen_of_batch(2, &answered(vec![done(), reject()])), Some(Seen::Declared));
        assert_eq!(seen_of_batch(2, &answered(vec![later(), done()])), Some(Seen::Declared));
        assert_eq!(seen_of_batch(2, &answered(vec![done()])), Some(Seen::Broke), "it broke its contract");
        assert_eq!(seen_of_batch(1, &failed(Code::Trap)), Some(Seen::Broke));
        assert_eq!(seen_of_batch(1, &failed(Code::FuelExhausted)), Some(Seen::Broke));
        assert_eq!(seen_of_batch(1, &failed(Code::Internal)), None);
        let check = |canary: Ran, current: Ran| compared_of_batch(2, &canary, &current);
        let odd = || answered(vec![done(), reject()]);
        assert_eq!(check(odd(), odd()), Some(Seen::Well), "the item deserves it");
        assert_eq!(check(odd(), answered(vec![later(), reject()])), Some(Seen::Well), "it is better");
        assert_eq!(check(odd(), answered(vec![done(), done()])), Some(Seen::Declared));
        assert_eq!(check(odd(), answered(vec![done(), later()])), Some(Seen::Declared));
        assert_eq!(check(odd(), answered(vec![reject(), done()])), Some(Seen::Declared), "another item");
        assert_eq!(check(odd(), answered(vec![done()])), Some(Seen::Declared));
        assert_eq!(check(odd(), failed(Code::Trap)), Some(Seen::Declared));
        assert_eq!(check(failed(Code::Trap), failed(Code::Trap)), Some(Seen::Broke));
        assert_eq!(check(answered(vec![done()]), answered(vec![done()])), Some(Seen::Broke));
        assert_eq!(check(failed(Code::Internal), odd()), None);
        let tally = Tally::default().with(Unit::Batch, Seen::Broke).with(Unit::Task, Seen::Well);
        assert_eq!((tally.tasks, tally.batches, tally.broke), (2, 1, 1));
        assert_eq!(tally.and(tally).batches, 2);
    }

    #[test]
    fn the_chosen_tasks_are_as_many_as_were_asked_for_and_always_the_same() {
        for percent in [1, 10, 50] {
            let chosen = |version| {
                (0..20_000)
                    .filter(|id| is_chosen(TaskId(*id), VersionId(version), percent))
                    .collect::<Vec<_>>()
            };
            let part = chosen(3).len() as f64 / 200.0;
            assert!((part - f64::from(percent)).abs() < 1.2, "{percent}: {part}");
            assert_eq!(chosen(3), chosen(3));
            assert_ne!(chosen(3), chosen(4), "another canary has other tasks");
        }
        assert!((0..1_000).all(|id| !is_chosen(TaskId(id), VersionId(1), 0)));
    }

    #[test]
    fn states_keep_their_numbers_and_names() {
        let names = ["trying", "passed", "worse", "withdrawn"];
        for (number, name) in names.into_iter().enumerate() {
            assert_eq!(State::numbered(number as i64).map(State::as_str), Some(name));
            assert_eq!(State::ALL[number] as i64, number as i64);
        }
        assert_eq!((State::numbered(4), State::numbered(-1)), (None, None));
    }
}
