//! What a replica has to have replayed before it may answer a list: a place in the primary's log.
//!
//! - A tenant that wrote through this host, or was told by it how a task ended, finds that in its lists: the first list
//!   after it asks the primary how far its log goes, and from then on whatever has replayed that far may answer.
//! - Nobody's lists are older than the longest lag that is allowed, whoever wrote: the primary is asked a few times in
//!   that long ([`PERIODS`]), and what its log had then is needed by everybody once the lag is over.
//!
//! No I/O, and no clock of its own. A write costs a mark in memory and nothing else.

use std::collections::HashMap;
use std::time::Duration;

use keiko_core::id::TenantId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The primary is asked so often in the longest lag, as long as there are lists.
const PERIODS: u32 = 3;

/// A place in the primary's log: what is written later is further on.
pub(crate) type Position = i64;

/// What lists need, tenant by tenant.
pub(crate) struct Freshness {
    period: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Writes so far.
    writes: u64,
    /// Tenants whose writes are not known to lie before `floor`.
    wrote: HashMap<TenantId, Mark>,
    /// Needed by everybody.
    floor: Position,
    /// Where the log ended when the primary was last asked for everybody's sake, and when that was.
    asked: Option<(Position, Instant)>,
}

/// Where a tenant's writes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Nobody has asked since this write.
    Unknown(u64),
    At(Position),
}

/// What to do before a replica is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The replica has to be this far.
    Known(Position),
    /// The primary has to be asked how far its log goes, and [`Freshness::learn`] told.
    Ask(Question),
}

/// A question to the primary: it covers the writes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    writes: u64,
    at: Instant,
}

impl Freshness {
    pub(crate) fn new(lag_max: Duration) -> Freshness {
        Freshness { period: lag_max / PERIODS, state: Mutex::default() }
    }

    /// Notes that the tenant wrote, or was told of something that was written. After the commit.
    pub(crate) fn wrote(&self, tenant: TenantId) {
        let mut state = self.state.lock();
        state.writes += 1;
        let mark = Mark::Unknown(state.writes);
        state.wrote.insert(tenant, mark);
    }

    /// What a list of this tenant needs.
    pub(crate) fn need(&self, tenant: TenantId, now: Instant) -> Need {
        let state = self.state.lock();
        let question = Question { writes: state.writes, at: now };
        let is_due = state.asked.is_none_or(|(_, at)| now.saturating_duration_since(at) >= self.period);
        match state.wrote.get(&tenant) {
            _ if is_due => Need::Ask(question),
            Some(Mark::Unknown(_)) => Need::Ask(question),
            Some(Mark::At(position)) => Need::Known(state.floor.max(*position)),
            None => Need::Known(state.floor),
        }
    }

    /// Takes the primary's answer; what the list needs.
    pub(crate) fn learn(&self, question: Question, tenant: TenantId, position: Position) -> Position {
        let mut state = self.state.lock();
        let known = |mark: Mark| match mark {
            Mark::Unknown(write) if write <= question.writes => Mark::At(position),
            mark => mark,
        };
        if let Some(mark) = state.wrote.get_mut(&tenant) {
            *mark = known(*mark);
        }
        let age = state.asked.map(|(_, at)| question.at.saturating_duration_since(at));
        if age.is_none_or(|age| age >= self.period) {
            let before = state.asked.replace((position, question.at));
            // After a silence the last answer says too little.
            let floor = before.filter(|_| age.is_some_and(|age| age <= self.period * 2));
            let floor = floor.map_or(position, |(before, _)| before).max(state.floor);
            state.floor = floor;
            state.wrote.retain(|_, mark| {
                *mark = known(*mark);
                !matches!(mark, Mark::At(position) if *position <= floor)
            });
        }
        match state.wrote.get(&tenant) {
            Some(Mark::At(own)) => state.floor.max(*own),
            // A write that has not been answered yet.
            Some(Mark::Unknown(_)) => state.floor.max(position),
            None => state.floor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: TenantId = TenantId(1);
    const BOB: TenantId = TenantId(2);
    const LAG: Duration = Duration::from_secs(30);

    /// A replica's rules, on a clock that is told.
    struct Rules(Freshness, Instant);

    impl Rules {
        /// A primary whose log ends there has been asked at the start.
        fn new(position: Position) -> Rules {
            let rules = Rules(Freshness::new(LAG), Instant::now());
            assert_eq!(rules.list(ADA, 0, position), position, "nothing is known before");
            rules
        }

        fn need(&self, tenant: TenantId, second: u64) -> Need {
            self.0.need(tenant, self.1 + Duration::from_secs(second))
        }

        /// What a list needs, of a primary whose log ends there.
        fn list(&self, tenant: TenantId, second: u64, position: Position) -> Position {
            match self.need(tenant, second) {
                Need::Known(position) => position,
                Need::Ask(question) => self.0.learn(question, tenant, position),
            }
        }
    }

    #[test]
    fn who_wrote_needs_its_writes_and_nobody_else_does() {
        let rules = Rules::new(100);
        rules.0.wrote(ADA);
        assert_eq!(rules.need(BOB, 1), Need::Known(100));
        assert_eq!(rules.list(ADA, 1, 250), 250);
        assert_eq!(rules.need(ADA, 2), Need::Known(250), "asked once");
        assert_eq!(rules.need(BOB, 2), Need::Known(100));
        rules.0.wrote(ADA);
        assert_eq!(rules.list(ADA, 3, 300), 300);
    }

    #[test]
    fn an_answer_covers_the_writes_before_the_question_alone() {
        let rules = Rules::new(100);
        rules.0.wrote(ADA);
        let Need::Ask(question) = rules.need(ADA, 1) else { panic!("it wrote") };
        rules.0.wrote(ADA);
        rules.0.wrote(BOB);
        assert_eq!(rules.0.learn(question, ADA, 200), 200, "for this list");
        assert_eq!(rules.list(ADA, 1, 210), 210, "and the next one asks again");
        assert_eq!(rules.list(BOB, 1, 220), 220);
    }

    #[test]
    fn what_the_log_had_is_needed_by_everybody_within_the_lag() {
        let rules = Rules::new(100);
        assert_eq!(rules.list(BOB, 9, 900), 100);
        assert_eq!(rules.list(BOB, 10, 1_000), 100, "asked, and the answer is not needed yet");
        assert_eq!(rules.list(BOB, 19, 1_900), 100);
        assert_eq!(rules.list(BOB, 20, 2_000), 1_000);
        assert_eq!(rules.list(BOB, 40, 4_000), 2_000);
        // Whoever lists again after a long silence does not go by what was known before it.
        assert_eq!(rules.list(BOB, 61, 6_100), 6_100);
        assert_eq!(rules.list(BOB, 70, 7_000), 6_100);
    }

    #[test]
    fn marks_that_everybody_needs_anyway_are_forgotten() {
        let rules = Rules::new(100);
        for tenant in 0..100 {
            rules.0.wrote(TenantId(tenant));
        }
        assert_eq!(rules.list(BOB, 1, 110), 110);
        assert_eq!(rules.0.state.lock().wrote.len(), 100);
        assert_eq!(rules.list(BOB, 10, 1_000), 110, "its own writes, and no more");
        rules.0.wrote(ADA);
        assert_eq!(rules.list(BOB, 20, 2_000), 1_000);
        assert_eq!(rules.list(BOB, 30, 3_000), 2_000);
        assert!(rules.0.state.lock().wrote.is_empty());
    }

    #[test]
    fn a_primary_that_lost_what_it_had_takes_nothing_back() {
        let rules = Rules::new(100);
        assert_eq!(rules.list(BOB, 10, 50), 100);
        assert_eq!(rules.list(BOB, 20, 60), 100);
    }
}
