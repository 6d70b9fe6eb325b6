//! Leasing: one statement walks from tenant to tenant, divides the room, and takes the oldest due tasks of each.
//!
//! - The walk is two looks into `task_ready` for each tenant with due tasks, however many tasks it has. The tasks that run
//!   already stand in the index too and are passed over: a tenant has no more of them than its hosts run.
//! - The room is divided by the rule of [`keiko_core::share`]: evenly, none above its cap, the rest to the first. What
//!   tenants leave of their share is divided again among those who took all of it, in further rounds.
//! - What another host has in hand is skipped, and a row that it has leased since is looked at again: nothing is leased twice,
//!   and nobody waits. Of a segment that was skipped a part may be left: whoever has room looks again soon.
//! - The holder's lease is prolonged by the same statement, so that a rescue is wholly before or wholly after it.
//! - Where segments of tasks wait, other statements look at them beside the rows, and take the oldest of both.

mod text;

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use keiko_core::id::{AgentId, GroupId, KindId, TaskId, TenantId, Token, UserId};
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::priority::AGEING_MS;
use keiko_core::share::{Claim, shares};
use keiko_core::task::{LeasedTask, Lineage, Payload};
use keiko_core::time_out::Ends;
use sqlx::postgres::PgRow;

use self::text::segments_max;
pub(crate) use self::text::{LEASE, LEASE_BOTH, LEASE_MORE, LEASE_MORE_OF_BOTH, LEFT, LOOK, RAISE};
use super::end::fail_undecodable;
use super::pause::park;
use super::row::{self, get};
use super::segment;
use super::session::Session;
use super::slot;
use super::tree::trees;
use crate::admit::read_type;
use crate::format::{decode_budget, read_priority};
use crate::segment::task::Segment;
use crate::tree::roots;
use crate::trouble::undecodable;
use crate::turns::take_turns;

/// Inputs that one lease loads after the rows, in bytes; the first always fits. What does not fit is left for the next
/// lease.
const LEASE_BYTES_MAX: u64 = 64 << 20;
/// Rounds of one lease. Who is left then is served by the next one.
const ROUNDS_MAX: usize = 16;
/// When to look again for segments that another host has in hand. It cuts the one in which its share ends and tells nobody.
const LOOK_AGAIN_MS: i64 = 10;
/// Tasks with a priority that one lease gives their place.
const RAISE_MAX: i64 = 1_000;

/// What a lease that takes nothing answers; `None` when there is something to take.
pub(crate) async fn look(session: &mut Session, request: &LeaseRequest) -> Result<Option<Lease>, StoreError> {
    let query = sqlx::query(LOOK).bind(request.holder.0).bind(request.now_ms).bind(request.lease_ms);
    let Some(row) = session.row(query).await? else {
        return Ok(Some(Lease { lost: true, ..Lease::default() }));
    };
    let (freed, next_run_at_ms): (bool, Option<i64>) = (get(&row, 0)?, get(&row, 1)?);
    let due = freed || next_run_at_ms.is_some_and(|at| at <= request.now_ms);
    session.ahead.learn(next_run_at_ms);
    Ok((!due).then(|| Lease { after: request.after, next_run_at_ms, ..Lease::default() }))
}

/// Leases due tasks. A holder that is not registered gets nothing: its tasks could never be rescued.
pub(crate) async fn lease(session: &mut Session, request: &LeaseRequest) -> Result<Lease, StoreError> {
    let mut of_both = session.segments_wait;
    let mut taken = Taken::default();
    let Some(mut standing) = first_round(session, request, &mut taken, of_both).await? else {
        return Ok(Lease { lost: true, ..Lease::default() });
    };
    if standing.segments_wait && !of_both && taken.count < request.room {
        // They came since the last lease.
        of_both = true;
        let rest = taken.rest(request);
        if let Some(again) = first_round(session, &rest, &mut taken, of_both).await? {
            standing = Standing { raised: standing.raised, ..again };
        }
    }
    session.segments_wait = standing.segments_wait;
    let raised = standing.raised;
    if raised {
        let query = sqlx::query(RAISE).bind(request.now_ms).bind(AGEING_MS).bind(RAISE_MAX);
        session.run(query).await?;
    }
    // Behind as many tenants as there is room there may be others, whose turn it is when somebody else had those.
    let cut = standing.was_cut && taken.count < request.room;
    let whole = more_rounds(session, request, &mut taken, of_both).await? && !cut && !raised;
    // Somebody else looks at them at this moment, and may leave some.
    let are_looked_at = of_both && taken.count < request.room && left(session, request, &taken).await?;
    open_segments(session, request, &mut taken).await?;
    let whole = whole && taken.paused.is_empty();
    park(session, &taken.paused).await?;
    let after = taken.tenants.last().map(|&(tenant, _)| tenant).or(request.after);
    let Taken { mut tasks, mut unreadable, tenants, count, .. } = taken;
    take_turns(&mut tasks, &tenants, |one| (one.task.tenant, one.task.place_ms, one.task.id));
    let moved = slot::take(session, request, standing.freed, &mut tasks, |one| &mut one.task).await?;
    let fitted = load_inputs(session, &mut tasks, &mut unreadable).await?;
    let trees = trees(session, roots(tasks.iter().map(|one| &one.task))).await?;
    tasks.iter_mut().for_each(|one| one.task.tree = trees.get(&one.task.lineage.root).copied());
    fail_undecodable(session, &unreadable, request.now_ms).await?;
    let room_left = tasks.len() < request.room;
    let next_run_at_ms = match fitted && whole && !moved {
        true if room_left && count < request.room => {
            let again = are_looked_at.then_some(request.now_ms + LOOK_AGAIN_MS);
            again.into_iter().chain(standing.next_run_at_ms).min()
        }
        true if !room_left => None,
        // What did not fit, took its place or a slot just now, or stands behind what cannot be read is due already.
        _ => Some(request.now_ms),
    };
    let tasks = tasks.into_iter().map(|one| one.task).collect();
    session.ahead.learn(next_run_at_ms);
    Ok(Lease { tasks, after, next_run_at_ms, lost: false })
}

/// Takes a round of rows, or of rows and segments; `None` when the holder is lost.
async fn first_round(
    session: &mut Session,
    request: &LeaseRequest,
    taken: &mut Taken,
    of_both: bool,
) -> Result<Option<Standing>, StoreError> {
    let (tenants, caps): (Vec<i64>, Vec<i64>) =
        request.caps.iter().map(|(tenant, &cap)| (tenant.0, number(cap))).unzip();
    let after = request.after.map_or(i64::MIN, |tenant| tenant.0);
    let text = if of_both { LEASE_BOTH } else { LEASE };
    let query = sqlx::query(text).bind(request.holder.0).bind(request.now_ms).bind(request.lease_ms);
    let query = query.bind(after).bind(number(request.room)).bind(tenants).bind(caps);
    let rows = session.rows(query.bind(number(request.cap_default))).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    taken.full.clear();
    taken.add(&rows, of_both)?;
    taken.cut(session).await?;
    let behind = if of_both { SEGMENT + SEGMENT_COLUMNS } else { SEGMENT };
    Standing::read(first, behind, request.room).map(Some)
}

/// Divides what is left of the room among the tenants that took their whole share, as long as there are any. Returns
/// whether that is so.
async fn more_rounds(
    session: &mut Session,
    request: &LeaseRequest,
    taken: &mut Taken,
    of_both: bool,
) -> Result<bool, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let room = request.room - taken.count.min(request.room);
        let claims = taken.open(request);
        if room == 0 || claims.is_empty() {
            return Ok(true);
        }
        let given = shares(&claims, room, request.after);
        let tenants: Vec<i64> = given.iter().map(|(tenant, _)| tenant.0).collect();
        let caps: Vec<i64> = given.iter().map(|&(_, share)| number(share)).collect();
        let text = if of_both { LEASE_MORE_OF_BOTH } else { LEASE_MORE };
        let query = sqlx::query(text).bind(request.holder.0).bind(request.now_ms);
        let rows = session.rows(query.bind(tenants).bind(caps)).await?;
        // Those for whom no room was left this time may still have more.
        taken.full.retain(|tenant| given.iter().all(|(given, _)| given != tenant));
        taken.add(&rows, of_both)?;
        taken.cut(session).await?;
    }
    Ok(taken.open(request).is_empty())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Whether there are segments that this lease could have taken.
async fn left(session: &mut Session, request: &LeaseRequest, taken: &Taken) -> Result<bool, StoreError> {
    let full = taken.rest(request).caps.into_iter().filter(|(_, cap)| *cap == 0);
    let full: Vec<i64> = full.map(|(tenant, _)| tenant.0).collect();
    let row = session.row(sqlx::query(LEFT).bind(full)).await?;
    row.as_ref().map_or(Ok(false), |row| get(row, 0))
}

/// Makes tasks of the segments that were taken. Those that need more than a lease become rows.
async fn open_segments(
    session: &mut Session,
    request: &LeaseRequest,
    taken: &mut Taken,
) -> Result<(), StoreError> {
    let mut to_rows = Vec::new();
    for InSegment { segment, is_paused, .. } in std::mem::take(&mut taken.segments) {
        let ids = segment.tasks.iter().map(|(id, _)| TaskId(*id));
        let needs_slots = request.slots.kinds.contains_key(&segment.kind)
            || request.slots.tenants.contains_key(&segment.tenant);
        if segment.is_damaged {
            taken.unreadable.extend(ids);
            to_rows.push(segment);
        } else if is_paused {
            taken.paused.extend(ids.map(|id| (id, segment.kind)));
            to_rows.push(segment);
        } else {
            let stored = Some(TaskId(segment.first)).filter(|_| !needs_slots);
            to_rows.extend(needs_slots.then(|| segment.clone()));
            let tasks = segment.into_leased().map_err(undecodable)?;
            let tasks = tasks.map(|task| LeasedTask { segment: stored, ..task });
            taken.tasks.extend(tasks.map(|task| Leased { task, input_bytes: None }));
        }
    }
    segment::dissolve(session, &to_rows).await
}

/// Gives a lease back whose caller went away before it was told.
pub(crate) async fn give_back(session: &mut Session, leases: &[(TaskId, Token)]) -> Result<(), StoreError> {
    segment::give_back(session, leases).await?;
    let mut leases = leases.to_vec();
    leases.sort_unstable();
    let (ids, tokens): (Vec<i64>, Vec<i64>) = leases.iter().map(|(id, token)| (id.0, token.0)).unzip();
    let query = "UPDATE task AS t SET holder = NULL FROM unnest($1::bigint[], $2::bigint[]) AS l (id, token)
        WHERE t.id = l.id AND t.token = l.token AND t.holder IS NOT NULL";
    session.run(sqlx::query(query).bind(ids).bind(tokens)).await.map(drop)
}

/// The columns of a task, behind which stand its place in the round and the share of that place...
const PLACE: usize = 25;
/// ...and behind these, in statements that look at segments, their columns, the same two, how many tasks of it the share goes into,
/// and whether its kind is paused.
const SEGMENT: usize = PLACE + 2;
const SEGMENT_COLUMNS: usize = segment::COLUMNS + 4;

/// What a first round says beside its tasks.
struct Standing {
    /// Whether there were as many tenants as there was room.
    was_cut: bool,
    raised: bool,
    freed: bool,
    next_run_at_ms: Option<i64>,
    segments_wait: bool,
}

impl Standing {
    fn read(row: &PgRow, at: usize, room: usize) -> Result<Standing, StoreError> {
        Ok(Standing {
            was_cut: get::<i64>(row, at)? >= number(room),
            raised: get(row, at + 1)?,
            freed: get(row, at + 2)?,
            next_run_at_ms: get(row, at + 3)?,
            segments_wait: get(row, at + 4)?,
        })
    }
}

/// A segment of which a round took the first tasks.
struct InSegment {
    segment: Segment,
    room: usize,
    is_paused: bool,
}

/// What the rounds of a lease took.
#[derive(Default)]
struct Taken {
    tasks: Vec<Leased>,
    segments: Vec<InSegment>,
    /// Tasks that cannot be read: one bad row must not stop the queue.
    unreadable: Vec<TaskId>,
    /// Tasks of paused kinds.
    paused: Vec<(TaskId, KindId)>,
    /// Rows so far, readable or not.
    count: usize,
    /// The tenants of the first round in their order, with what each got so far.
    tenants: Vec<(TenantId, usize)>,
    /// Those that took their whole share in the last round, or as many segments as it looked at, and so may have more.
    full: HashSet<TenantId>,
}

struct Leased {
    task: LeasedTask,
    /// Size of the input that is still to be loaded.
    input_bytes: Option<u64>,
}

impl Taken {
    fn add(&mut self, rows: &[PgRow], of_both: bool) -> Result<(), StoreError> {
        // By place: the tenant, its share, how many tasks came, and in how many segments.
        let mut places: BTreeMap<i64, (TenantId, i64, usize, i64)> = BTreeMap::new();
        for row in rows {
            if of_both && get::<Option<i64>>(row, SEGMENT)?.is_some() {
                let at = SEGMENT + segment::COLUMNS;
                let (place, share, room): (i64, i64, i64) =
                    (get(row, at)?, get(row, at + 1)?, get(row, at + 2)?);
                let segment = segment::read(row, SEGMENT)?;
                let room = usize::try_from(room).unwrap_or_default().min(segment.tasks.len());
                let at_place = places.entry(place).or_insert((segment.tenant, share, 0, 0));
                (at_place.2, at_place.3) = (at_place.2 + room, at_place.3 + 1);
                self.count += room;
                self.segments.push(InSegment { segment, room, is_paused: get(row, at + 3)? });
                continue;
            }
            let Some(id) = get::<Option<i64>>(row, 0)? else { continue };
            let (tenant, place, share) = (TenantId(get(row, 1)?), get(row, PLACE)?, get(row, PLACE + 1)?);
            places.entry(place).or_insert((tenant, share, 0, 0)).2 += 1;
            self.count += 1;
            if get(row, 22)? {
                self.paused.push((TaskId(id), KindId(get(row, 2)?)));
                continue;
            }
            match decode(row) {
                Ok(task) => self.tasks.push(task),
                Err(_) => self.unreadable.push(TaskId(id)),
            }
        }
        for (tenant, share, got, segments) in places.into_values() {
            match self.tenants.iter_mut().find(|known| known.0 == tenant) {
                Some(known) => known.1 += got,
                None => self.tenants.push((tenant, got)),
            }
            if got as i64 == share || segments == segments_max(share) {
                self.full.insert(tenant);
            }
        }
        Ok(())
    }

    /// Cuts the segments in which shares end: what is behind them waits, for the next round, too.
    async fn cut(&mut self, session: &mut Session) -> Result<(), StoreError> {
        for InSegment { segment, room, .. } in &mut self.segments {
            segment::cut(session, segment, *room).await?;
        }
        Ok(())
    }

    /// What a request leaves to be taken.
    fn rest(&self, request: &LeaseRequest) -> LeaseRequest {
        let mut rest = LeaseRequest { room: request.room.saturating_sub(self.count), ..request.clone() };
        for &(tenant, got) in &self.tenants {
            let cap = request.caps.get(&tenant).copied().unwrap_or(request.cap_default);
            rest.caps.insert(tenant, cap.saturating_sub(got));
        }
        rest
    }

    /// Tenants that may have more due tasks, with what their caps leave them.
    fn open(&self, request: &LeaseRequest) -> Vec<Claim> {
        let cap = |tenant: &TenantId| request.caps.get(tenant).copied().unwrap_or(request.cap_default);
        let claims = self.tenants.iter().filter(|(tenant, _)| self.full.contains(tenant));
        let claims =
            claims.map(|(tenant, got)| Claim { tenant: *tenant, cap: cap(tenant).saturating_sub(*got) });
        let mut claims: Vec<Claim> = claims.filter(|claim| claim.cap > 0).collect();
        claims.sort_unstable_by_key(|claim| claim.tenant);
        claims
    }
}

fn decode(row: &PgRow) -> Result<Leased, StoreError> {
    let input: Option<&[u8]> = get(row, 16)?;
    let input_bytes = row::count(row, 15)?;
    let task = LeasedTask {
        id: TaskId(get(row, 0)?),
        tenant: TenantId(get(row, 1)?),
        kind: KindId(get(row, 2)?),
        token: Token(get(row, 3)?),
        attempts: row::count(row, 4)?,
        deadlines: row::count(row, 5)?,
        crashes: row::count(row, 6)?,
        created_ms: get(row, 7)?,
        place_ms: get(row, 8)?,
        priority: read_priority(get::<Option<i16>>(row, 24)?.map(i64::from)).map_err(undecodable)?,
        input: Payload {
            content_type: read_type(get(row, 14)?),
            bytes: Bytes::copy_from_slice(input.unwrap_or_default()),
        },
        budget: decode_budget(get(row, 12)?).map_err(undecodable)?,
        lineage: Lineage {
            root: TaskId(get(row, 9)?),
            parent: get::<Option<i64>>(row, 10)?.map(TaskId),
            depth: row::count(row, 11)?,
        },
        agent: get::<Option<i64>>(row, 17)?.map(AgentId),
        user: get::<Option<i64>>(row, 18)?.map(UserId),
        trace: get(row, 13)?,
        ends: Ends { start_by_ms: get(row, 19)?, end_by_ms: get(row, 20)? },
        group: get::<Option<i64>>(row, 21)?.map(GroupId),
        tree: None,
        slot_key: get(row, 23)?,
        has_slot: false,
        segment: None,
    };
    let input_bytes = input.is_none().then_some(u64::from(input_bytes));
    Ok(Leased { task, input_bytes })
}

/// Loads the large inputs, as many as fit, and gives the tasks of the others back. Returns whether all fitted.
async fn load_inputs(
    session: &mut Session,
    tasks: &mut Vec<Leased>,
    unreadable: &mut Vec<TaskId>,
) -> Result<bool, StoreError> {
    let mut wanted: Vec<i64> = Vec::new();
    let mut left: HashSet<TaskId> = HashSet::new();
    let mut sum = 0;
    for (one, size) in tasks.iter().filter_map(|one| Some((one, one.input_bytes?))) {
        sum += size;
        if wanted.is_empty() || sum <= LEASE_BYTES_MAX {
            wanted.push(one.task.id.0);
        } else {
            left.insert(one.task.id);
        }
    }
    if wanted.is_empty() {
        return Ok(true);
    }
    let query = sqlx::query("SELECT id, input FROM task WHERE id = ANY($1)").bind(wanted);
    let mut inputs: HashMap<TaskId, Bytes> = HashMap::new();
    for row in &session.rows(query).await? {
        inputs.insert(TaskId(get(row, 0)?), Bytes::from(get::<Vec<u8>>(row, 1)?));
    }
    let mut given_back = Vec::new();
    tasks.retain_mut(|one| {
        if left.contains(&one.task.id) {
            given_back.push((one.task.id, one.task.token));
            return false;
        }
        if one.input_bytes.is_none() {
            return true;
        }
        match inputs.remove(&one.task.id) {
            Some(input) => one.task.input.bytes = input,
            None => unreadable.push(one.task.id),
        }
        unreadable.last() != Some(&one.task.id)
    });
    if !given_back.is_empty() {
        give_back(session, &given_back).await?;
    }
    Ok(given_back.is_empty())
}
