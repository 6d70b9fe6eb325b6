//! Settling: the ends of attempts, all of a call in a handful of statements.
//!
//! Every end is written by one statement that takes the live row, fenced by id, tenant, token and holder, and writes the
//! history of what it took: what it does not return was stale. Rows are taken in the order of their ids.

mod text;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use keiko_core::code::Code;
use keiko_core::id::{AgentId, GroupId, Holder, TaskId};
use keiko_core::outcome::Failure;
use keiko_core::port::StoreError;
use keiko_core::task::{Payload, Settled, Settlement, TaskState, Transition};
use keiko_core::usage::day;
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;

pub(crate) use self::text::{
    END, END_IN_SEGMENTS, END_PLAIN, END_PLAIN_IN_SEGMENTS, HAND_BACK, HOLD, INSERT_LOGS, RETRY, SET_STATUSES,
};
use super::count as counts;
use super::row::{self, get, stored_text};
use super::session::{Session, chunks, some};
use super::{PostgresStore, batch, child, segment, tree};
use crate::admit::stored_type;
use crate::count::Changes;
use crate::family::{self, Parent};
use crate::format::encode_end;
use crate::gather::{WaitingChanges, of_tasks};
use crate::stored::{Stored, count, payload_bytes, statuses, stored_number};
use crate::transaction::Priority;
use crate::tree::charges;

impl PostgresStore {
    /// Writes the ends of attempts, by as few statements as they allow; the answers are in their order.
    pub(super) async fn settle_all(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let in_segments = settlements.iter().filter(|one| one.segment.is_some()).count();
        let are_in_segments =
            in_segments == settlements.len() && settlements.iter().all(completes_in_segment);
        if !are_plain(&settlements) || !(in_segments == 0 || are_in_segments) {
            return self.settle_any(holder, settlements, now_ms).await;
        }
        let settlements: Arc<[Settlement]> = settlements.into();
        let bytes = settlements.iter().map(payload_bytes).sum();
        let plain =
            self.0.settle.write_plain(bytes, Arc::clone(&settlements), move |session, settlements| {
                Box::pin(end_plain(session, holder, settlements, are_in_segments, now_ms))
            });
        let ended = plain.await?;
        // Stale ones, and those of which somebody did not know that they are in a group.
        let rest: Vec<Settlement> =
            settlements.iter().filter(|one| !ended.contains(&one.id)).cloned().collect();
        let mut answers = if rest.is_empty() {
            Vec::new().into_iter()
        } else {
            self.settle_any(holder, rest, now_ms).await?.into_iter()
        };
        let mut answer = |one: &Settlement| match ended.contains(&one.id) {
            true => Settled::Stored,
            false => answers.next().unwrap_or(Settled::Stale),
        };
        Ok(settlements.iter().map(&mut answer).collect())
    }

    /// Settles whatever ends there are.
    async fn settle_any(
        &self,
        holder: Holder,
        settlements: Vec<Settlement>,
        now_ms: i64,
    ) -> Result<Vec<Settled>, StoreError> {
        let bytes = settlements.iter().map(payload_bytes).sum();
        self.write(Priority::Task, bytes, settlements, move |session, settlements| {
            Box::pin(settle(session, holder, settlements, now_ms))
        })
        .await
    }
}

/// Writes the ends of attempts; the answers are in their order.
pub(crate) async fn settle(
    session: &mut Session,
    holder: Holder,
    settlements: &[Settlement],
    now_ms: i64,
) -> Result<Vec<Settled>, StoreError> {
    segment::leave_settled(session, holder, settlements, completes_in_segment).await?;
    let mut answers = vec![Settled::Stale; settlements.len()];
    let mut rest: Vec<usize> = (0..settlements.len()).collect();
    while !rest.is_empty() {
        // A statement sees every task once, so a task that is settled twice takes two rounds, in order.
        let mut places = HashMap::new();
        let (round, later): (Vec<usize>, Vec<usize>) =
            rest.into_iter().partition(|&at| *places.entry(settlements[at].id).or_insert(at) == at);
        let mut round: Vec<&Settlement> = round.into_iter().map(|at| &settlements[at]).collect();
        round.sort_unstable_by_key(|one| one.id);
        for (id, settled) in settle_round(session, holder, round, now_ms).await? {
            if let Some(&at) = places.get(&id) {
                answers[at] = settled;
            }
        }
        rest = later;
    }
    set_statuses(session, &statuses(settlements, &answers), now_ms).await?;
    batch::insert(session, &of_tasks(settlements, &answers), WaitingChanges::default(), now_ms).await?;
    Ok(answers)
}

/// Settles tasks of which each is named once; tasks that are not in the answer were stale.
async fn settle_round(
    session: &mut Session,
    holder: Holder,
    round: Vec<&Settlement>,
    now_ms: i64,
) -> Result<HashMap<TaskId, Settled>, StoreError> {
    let (completed, mut round): (Vec<_>, Vec<_>) =
        round.into_iter().partition(|one| completes_in_segment(one));
    let ends_in_segments = end(session, holder, &completed, true, now_ms).await?;
    // A rescue that met a lease has made rows of its segments.
    round.extend(completed.iter().copied().filter(|one| ends_in_segments.stored(one).is_none()));
    round.sort_unstable_by_key(|one| one.id);
    let held = hold(session, holder, &round, now_ms).await?;
    let (mut ended, other): (Vec<_>, Vec<_>) = round
        .into_iter()
        .partition(|one| matches!(one.transition, Transition::Complete(_) | Transition::Fail(_)));
    let (retried, handed_back): (Vec<_>, Vec<_>) =
        other.into_iter().partition(|one| matches!(one.transition, Transition::Retry { .. }));
    let mut changes = Changes::default();
    let mut answers = child::apply(session, &ended, &held, now_ms, &mut changes).await?;
    ended.retain(|one| !answers.contains_key(&one.id));

    let ends = end(session, holder, &ended, false, now_ms).await?;
    let mut stored: Vec<_> = ended.iter().filter_map(|one| ends.stored(one)).collect();
    stored.extend(completed.iter().filter_map(|one| ends_in_segments.stored(one)));
    let retries = retry(session, holder, &retried, now_ms).await?;
    let again: Vec<_> = retried.iter().filter_map(|one| retries.stored(one)).collect();
    keep_logs(session, &again).await?;
    stored.extend(again);
    let handed_back = hand_back(session, holder, &handed_back).await?;
    let usage = count(&stored, now_ms, &mut changes);
    counts::store_with(session, &changes, &usage, now_ms).await?;
    tree::charge(session, &charges(&stored)).await?;

    answers.extend(stored.iter().map(|stored| (stored.one.id, Settled::Stored)));
    answers.extend(handed_back.into_iter().map(|id| (id, Settled::Stored)));
    Ok(answers)
}

/// The tasks of a round, as far as they had to be held before anything is written.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) parents: HashMap<TaskId, Parent>,
    /// How far the database's clock is before the caller's.
    pub(crate) shift_ms: i64,
}

/// Holds the tasks of a round that takes more than one statement, so that rows are still taken in one order, and that
/// the children of a task go with its end.
async fn hold(
    session: &mut Session,
    holder: Holder,
    round: &[&Settlement],
    now_ms: i64,
) -> Result<Held, StoreError> {
    let class = |one: &&Settlement| match one.transition {
        Transition::Complete(_) | Transition::Fail(_) => 0,
        Transition::Retry { .. } => 1,
        Transition::HandBack => 2,
    };
    let mixed = round.windows(2).any(|pair| class(&pair[0]) != class(&pair[1]));
    let large = chunks(round, |one| carried(one)).len() > 1;
    let mut held = Held::default();
    if !mixed && !large && !round.iter().any(|one| family::asks(one)) {
        return Ok(held);
    }
    let ids: Vec<i64> = round.iter().map(|one| one.id.0).collect();
    for row in &session.rows(sqlx::query(HOLD).bind(ids).bind(holder.0).bind(now_ms)).await? {
        let (id, parent) = child::parent(row)?;
        held.parents.insert(id, parent);
        held.shift_ms = get(row, 10)?;
    }
    Ok(held)
}

/// The attempt's number and the task's agent and group of every settlement that was not stale.
#[derive(Default)]
struct Written(HashMap<TaskId, (u32, Option<AgentId>, Option<GroupId>)>);

impl Written {
    fn add(&mut self, written: &[PgRow]) -> Result<(), StoreError> {
        for one in written {
            let agent = get::<Option<i64>>(one, 2)?.map(AgentId);
            let group = get::<Option<i64>>(one, 3)?.map(GroupId);
            self.0.insert(TaskId(get(one, 0)?), (row::count(one, 1)?, agent, group));
        }
        Ok(())
    }

    fn stored<'a>(&self, one: &'a Settlement) -> Option<Stored<'a>> {
        let &(number, agent, group) = self.0.get(&one.id)?;
        Some(Stored { one, number, agent, group })
    }
}

/// Whether nothing but counts changes with these ends, so that one statement writes them: no task is named twice, none is
/// known to be in a group, none has effects or is charged to a tree.
pub(crate) fn are_plain(settlements: &[Settlement]) -> bool {
    let is_plain = |one: &Settlement| {
        matches!(one.transition, Transition::Complete(_) | Transition::Fail(_))
            && one.group.is_none()
            && one.effects.is_empty()
            && one.charge.is_none()
    };
    let mut seen = HashSet::with_capacity(settlements.len());
    settlements.iter().all(|one| is_plain(one) && seen.insert(one.id))
        && chunks(settlements, carried).len() == 1
}

/// Whether it is in a segment and completes there: nothing but counts changes with that.
fn completes_in_segment(one: &Settlement) -> bool {
    one.segment.is_some()
        && matches!(one.transition, Transition::Complete(_))
        && one.effects.is_empty()
        && one.charge.is_none()
}

/// Writes such ends, all of them of tasks that complete in their segments or all of others, by one statement, which may run
/// twice: what it took is gone. The tasks that it ended.
pub(crate) async fn end_plain(
    session: &mut Session,
    holder: Holder,
    settlements: &[Settlement],
    are_in_segments: bool,
    now_ms: i64,
) -> Result<HashSet<TaskId>, StoreError> {
    let mut sorted: Vec<&Settlement> = settlements.iter().collect();
    sorted.sort_unstable_by_key(|one| one.id);
    let text = if are_in_segments { END_PLAIN_IN_SEGMENTS } else { END_PLAIN };
    let query = bind_ends(sqlx::query(text), &sorted, are_in_segments, holder, now_ms);
    // To the end of the answer, which is behind the commit: a long row may come before it.
    let rows = session.rows(query.bind(day(now_ms))).await?;
    let ids: Vec<i64> = rows.first().map_or_else(|| Ok(Vec::new()), |row| get(row, 0))?;
    Ok(ids.into_iter().map(TaskId).collect())
}

/// Moves ended tasks away: all of them such as completed in their segments, or all of them others.
async fn end(
    session: &mut Session,
    holder: Holder,
    ended: &[&Settlement],
    are_in_segments: bool,
    now_ms: i64,
) -> Result<Written, StoreError> {
    let text = if are_in_segments { END_IN_SEGMENTS } else { END };
    let mut written = Written::default();
    for chunk in chunks(ended, |one| carried(one)) {
        let query = bind_ends(sqlx::query(text), chunk, are_in_segments, holder, now_ms);
        written.add(&session.rows(query).await?)?;
    }
    Ok(written)
}

/// Puts tasks back for another attempt.
async fn retry(
    session: &mut Session,
    holder: Holder,
    retried: &[&Settlement],
    now_ms: i64,
) -> Result<Written, StoreError> {
    let mut written = Written::default();
    for chunk in chunks(retried, |_| 0) {
        let again = |one: &&Settlement| match &one.transition {
            Transition::Retry { run_at_ms, failure } => {
                (i32::from(failure.code == Code::DeadlineExceeded), *run_at_ms)
            }
            _ => (0, now_ms),
        };
        let (deadlines, run_at): (Vec<i32>, Vec<i64>) = chunk.iter().map(again).unzip();
        let query = bind_attempts(sqlx::query(RETRY), chunk).bind(deadlines).bind(run_at);
        written.add(&session.rows(query.bind(holder.0).bind(now_ms)).await?)?;
    }
    Ok(written)
}

async fn hand_back(
    session: &mut Session,
    holder: Holder,
    handed_back: &[&Settlement],
) -> Result<Vec<TaskId>, StoreError> {
    if handed_back.is_empty() {
        return Ok(Vec::new());
    }
    let column = |of: fn(&Settlement) -> i64| handed_back.iter().map(|one| of(one)).collect::<Vec<i64>>();
    let query = sqlx::query(HAND_BACK).bind(column(|one| one.id.0)).bind(column(|one| one.tenant.0));
    let rows = session.rows(query.bind(column(|one| one.token.0)).bind(holder.0)).await?;
    rows.iter().map(|row| get(row, 0).map(TaskId)).collect()
}

async fn keep_logs(session: &mut Session, stored: &[Stored<'_>]) -> Result<(), StoreError> {
    let logs: Vec<_> = stored.iter().filter(|stored| !stored.one.log.is_empty()).collect();
    for chunk in chunks(&logs, |stored| stored.one.log.len()) {
        let ids: Vec<i64> = chunk.iter().map(|stored| stored.one.id.0).collect();
        let numbers: Vec<i32> = chunk.iter().map(|stored| stored.number as i32).collect();
        let tenants: Vec<i64> = chunk.iter().map(|stored| stored.one.tenant.0).collect();
        let bytes: Vec<&[u8]> = chunk.iter().map(|stored| &stored.one.log[..]).collect();
        session.run(sqlx::query(INSERT_LOGS).bind(ids).bind(numbers).bind(tenants).bind(bytes)).await?;
    }
    Ok(())
}

pub(crate) async fn set_statuses(
    session: &mut Session,
    statuses: &[(i64, i64, i64)],
    now_ms: i64,
) -> Result<(), StoreError> {
    if statuses.is_empty() {
        return Ok(());
    }
    let agents: Vec<i64> = statuses.iter().map(|row| row.0).collect();
    let tenants: Vec<i64> = statuses.iter().map(|row| row.1).collect();
    let numbers: Vec<i16> = statuses.iter().map(|row| row.2 as i16).collect();
    let query = sqlx::query(SET_STATUSES).bind(agents).bind(tenants).bind(numbers).bind(now_ms);
    session.run(query).await.map(drop)
}

fn result(one: &Settlement) -> Option<&Payload> {
    match &one.transition {
        Transition::Complete(result) => Some(result),
        _ => None,
    }
}

/// Bytes that an end carries.
fn carried(one: &Settlement) -> usize {
    result(one).map_or(0, |result| result.bytes.len()) + one.log.len()
}

fn failure(one: &Settlement) -> Option<&Failure> {
    match &one.transition {
        Transition::Fail(failure) | Transition::Retry { failure, .. } => Some(failure),
        _ => None,
    }
}

/// Binds the 20 parameters of an end, and the segments of ends that are in some: of each, and all together.
fn bind_ends<'q>(
    query: Query<'q, Postgres, PgArguments>,
    chunk: &[&'q Settlement],
    are_in_segments: bool,
    holder: Holder,
    now_ms: i64,
) -> Query<'q, Postgres, PgArguments> {
    let state = |one: &&Settlement| match one.transition {
        Transition::Complete(_) => TaskState::Completed as i16,
        _ => TaskState::Failed as i16,
    };
    let types = chunk.iter().map(|one| result(one).and_then(stored_type).map(stored_text));
    let results = chunk.iter().map(|one| result(one).map(|result| &result.bytes[..]));
    let logs = chunk.iter().map(|one| (!one.log.is_empty()).then_some(&one.log[..]));
    let query = bind_attempts(query, chunk).bind(chunk.iter().map(state).collect::<Vec<_>>());
    let query = query.bind(some(types)).bind(results.collect::<Vec<Option<&[u8]>>>());
    let query = query.bind(some(logs)).bind(holder.0).bind(now_ms);
    if !are_in_segments {
        return query;
    }
    let segments: Vec<i64> = chunk.iter().filter_map(|one| Some(one.segment?.0)).collect();
    let all: BTreeSet<i64> = segments.iter().copied().collect();
    query.bind(segments).bind(all.into_iter().collect::<Vec<_>>())
}

/// Binds the first 14 parameters, a column each: the fence, the attempt, the failure. The number is not among them: the
/// row knows it.
fn bind_attempts<'q>(
    query: Query<'q, Postgres, PgArguments>,
    chunk: &[&'q Settlement],
) -> Query<'q, Postgres, PgArguments> {
    let column = |of: fn(&Settlement) -> i64| chunk.iter().map(|one| of(one)).collect::<Vec<i64>>();
    let text = |of: fn(&Settlement) -> Option<String>| some(chunk.iter().map(|one| of(one)));
    let versions: Vec<Option<i64>> =
        chunk.iter().map(|one| one.attempt.version.map(|version| version.0)).collect();
    let taints: Vec<i32> = chunk.iter().map(|one| one.attempt.taint.0 as i32).collect();
    let effects: Vec<i32> = chunk.iter().map(|one| one.attempt.effects as i32).collect();
    query
        .bind(column(|one| one.id.0))
        .bind(column(|one| one.tenant.0))
        .bind(column(|one| one.token.0))
        .bind(column(|one| one.attempt.started_ms))
        .bind(versions)
        .bind(column(|one| stored_number(one.attempt.meter.fuel_used)))
        .bind(column(|one| stored_number(one.attempt.meter.memory_bytes_peak)))
        .bind(column(|one| stored_number(one.attempt.meter.host_calls)))
        .bind(column(|one| stored_number(one.attempt.meter.elapsed_us)))
        .bind(taints)
        .bind(effects)
        .bind(text(|one| failure(one).map(|failure| failure.code.as_str().to_owned())))
        .bind(text(|one| failure(one).map(|failure| stored_text(&failure.message))))
        .bind(text(|one| encode_end(failure(one), &one.attempt)))
}
