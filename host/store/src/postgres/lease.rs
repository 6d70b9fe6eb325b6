//! Leasing: one statement walks from tenant to tenant, divides the room, and takes the oldest due tasks of each.
//!
//! - The walk is two looks into `task_ready` for each tenant with due tasks, however many tasks it has. The tasks that run
//!   already stand in the index too and are passed over: a tenant has no more of them than its hosts run.
//! - The room is divided by the rule of [`keiko_core::share`]: evenly, none above its cap, the rest to the first. What
//!   tenants leave of their share is divided again among those who took all of it, in further rounds.
//! - Rows that another host is about to lease are skipped, and a row that it has leased since is looked at again: nothing is
//!   leased twice, and nobody waits.
//! - The holder's lease is prolonged by the same statement, so that a rescue is wholly before or wholly after it.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use keiko_core::id::{AgentId, GroupId, KindId, TaskId, TenantId, Token, UserId};
use keiko_core::port::{Lease, LeaseRequest, StoreError};
use keiko_core::priority::AGEING_MS;
use keiko_core::share::{Claim, shares};
use keiko_core::task::{LeasedTask, Lineage, Payload};
use keiko_core::time_out::Ends;
use sqlx::postgres::PgRow;

use super::end::fail_undecodable;
use super::pause::park;
use super::row::{self, get};
use super::session::Session;
use super::slot::{self, is_over};
use super::tree::trees;
use crate::admit::read_type;
use crate::format::{decode_budget, read_priority};
use crate::tree::roots;
use crate::trouble::undecodable;
use crate::turns::take_turns;

/// Inputs that one lease loads after the rows, in bytes; the first always fits. What does not fit is left for the next
/// lease.
const LEASE_BYTES_MAX: u64 = 64 << 20;
/// Rounds of one lease. Who is left then is served by the next one.
const ROUNDS_MAX: usize = 16;
/// Tasks with a priority that one lease gives their place.
const RAISE_MAX: i64 = 1_000;

/// The columns of a leased task, times on the caller's clock, `$2`. Inputs up to 8 KiB come with it. The last one says
/// whether its kind is paused.
macro_rules! leased {
    () => {
        "t.id, t.tenant, t.kind, t.token, t.attempts, t.deadlines, t.crashes, t.created_ms, t.run_at_ms, t.root,
            t.parent, t.depth, t.budget, t.trace, t.input_type, octet_length(t.input) AS input_bytes,
            CASE WHEN octet_length(t.input) <= 8192 THEN t.input END AS input, t.agent, t.app_user,
            t.start_by_ms - (SELECT keiko_now($2) - $2) AS start_by_ms, t.end_by_ms - (SELECT keiko_now($2) - $2) AS end_by_ms,
            t.task_group, t.kind IN (SELECT kind FROM pause WHERE NOT ending) AS paused, t.slot_key, t.priority"
    };
}

/// When the first task that is not due comes due, on the clock of the caller, who says `$2`: one look per tenant.
macro_rules! next_run_at {
    () => {
        "WITH RECURSIVE waiting (tenant) AS (
            (SELECT tenant FROM task ORDER BY tenant LIMIT 1)
            UNION ALL
            SELECT next.tenant FROM waiting CROSS JOIN LATERAL (
                SELECT tenant FROM task WHERE tenant > waiting.tenant ORDER BY tenant LIMIT 1) AS next
        )
        SELECT min(first.run_at_ms) - (SELECT keiko_now($2) - $2) FROM waiting CROSS JOIN LATERAL (
            SELECT run_at_ms FROM task WHERE tenant = waiting.tenant AND holder IS NULL AND run_at_ms > keiko_now($2)
            ORDER BY run_at_ms LIMIT 1) AS first
        WHERE waiting.tenant NOT IN (SELECT tenant FROM pause WHERE kind = 0)"
    };
}

/// Prolongs the holder `$1` and leases a round for it. Parameters: now, lease, the tenant served last, room, the tenants
/// with a cap of their own, their caps, the others' cap. The one row without a task says that the holder lives; every row
/// says whether tasks with a priority came due and have not taken their place, which costs the others one look at nothing,
/// whether a slot may be free, and when the next task comes due if there is room left.
pub(crate) const LEASE: &str = concat!(
    "WITH RECURSIVE alive AS (
        UPDATE holder SET until_ms = greatest(until_ms, keiko_now($2) + $3) WHERE id = $1 RETURNING id
    ), behind (tenant, run_at_ms) AS (
        (SELECT tenant, run_at_ms FROM task WHERE holder IS NULL AND tenant > $4
            ORDER BY tenant, run_at_ms, id LIMIT 1)
        UNION ALL
        SELECT next.tenant, next.run_at_ms FROM behind CROSS JOIN LATERAL (
            SELECT tenant, run_at_ms FROM task WHERE holder IS NULL AND tenant > behind.tenant
            ORDER BY tenant, run_at_ms, id LIMIT 1) AS next
    ), before (tenant, run_at_ms) AS (
        (SELECT tenant, run_at_ms FROM task WHERE holder IS NULL AND tenant <= $4
            ORDER BY tenant, run_at_ms, id LIMIT 1)
        UNION ALL
        SELECT next.tenant, next.run_at_ms FROM before CROSS JOIN LATERAL (
            SELECT tenant, run_at_ms FROM task WHERE holder IS NULL AND tenant > before.tenant AND tenant <= $4
            ORDER BY tenant, run_at_ms, id LIMIT 1) AS next
    ), ready AS (
        SELECT tenant, cap FROM (
            SELECT tenant, coalesce(($7::bigint[])[array_position($6::bigint[], tenant)], $8) AS cap FROM (
                SELECT tenant FROM behind WHERE run_at_ms <= keiko_now($2)
                UNION ALL SELECT tenant FROM before WHERE run_at_ms <= keiko_now($2)) AS walk) AS capped
        WHERE cap > 0 AND tenant NOT IN (SELECT tenant FROM pause WHERE kind = 0) LIMIT $5
    ), placed AS MATERIALIZED (
        SELECT tenant, cap, row_number() OVER () AS place, count(*) OVER () AS tenants FROM ready
    ), due AS MATERIALIZED (
        SELECT taken.id, alive.id AS holder, given.place, given.share
        FROM alive CROSS JOIN (
            SELECT tenant, place, least(cap, $5 / tenants + (place <= $5 % tenants)::int) AS share FROM placed) AS given
        CROSS JOIN LATERAL (
            SELECT id FROM task WHERE tenant = given.tenant AND holder IS NULL AND run_at_ms <= keiko_now($2)
            ORDER BY run_at_ms, id LIMIT given.share FOR UPDATE SKIP LOCKED) AS taken
    ), leased AS (
        UPDATE task AS t SET holder = due.holder, token = t.token + 1 FROM due WHERE t.id = due.id
        RETURNING ",
    leased!(),
    ", due.place, due.share
    )
    SELECT leased.*, (SELECT count(*) FROM placed), EXISTS (
        SELECT FROM task WHERE run_at_ms = due_ms AND due_ms <= keiko_now($2) AND holder IS NULL),
        EXISTS (SELECT FROM slot_use AS u WHERE ",
    is_over!("$2"),
    "), CASE WHEN (SELECT count(*) FROM leased) < $5 THEN (",
    next_run_at!(),
    ") END
    FROM alive LEFT JOIN leased ON true"
);

/// Moves up to `$3` tasks with a priority that have come due to their place, each level being worth `$2`.
pub(crate) const RAISE: &str = "
    UPDATE task AS t SET run_at_ms = t.due_ms - t.priority * $2::bigint
    FROM (SELECT id FROM task WHERE run_at_ms = due_ms AND due_ms <= keiko_now($1) AND holder IS NULL
        ORDER BY due_ms LIMIT $3 FOR UPDATE SKIP LOCKED) AS due
    WHERE t.id = due.id";

/// Leases up to so many due tasks of each of these tenants: a further round.
pub(crate) const LEASE_MORE: &str = concat!(
    "WITH due AS MATERIALIZED (
        SELECT taken.id, given.place, given.share
        FROM unnest($3::bigint[], $4::bigint[]) WITH ORDINALITY AS given (tenant, share, place)
        CROSS JOIN LATERAL (
            SELECT id FROM task WHERE tenant = given.tenant AND holder IS NULL AND run_at_ms <= keiko_now($2)
            ORDER BY run_at_ms, id LIMIT given.share FOR UPDATE SKIP LOCKED) AS taken
    )
    UPDATE task AS t SET holder = $1, token = t.token + 1 FROM due WHERE t.id = due.id
    RETURNING ",
    leased!(),
    ", due.place, due.share"
);

/// Prolongs the holder `$1` and looks when the first pending task comes due, on the caller's clock, and the caller's
/// time: one look into `task_ready` for each tenant. It says first whether a slot may be free. Parameters: now, lease.
pub(crate) const LOOK: &str = concat!(
    "
    WITH RECURSIVE alive AS (
        UPDATE holder SET until_ms = greatest(until_ms, keiko_now($2) + $3) WHERE id = $1 RETURNING id
    ), waiting (tenant) AS (
        (SELECT tenant FROM task ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT next.tenant FROM waiting CROSS JOIN LATERAL (
            SELECT tenant FROM task WHERE tenant > waiting.tenant ORDER BY tenant LIMIT 1) AS next
    )
    SELECT EXISTS (SELECT FROM slot_use AS u WHERE ",
    is_over!("$2"),
    "), (SELECT min(first.run_at_ms) - (SELECT keiko_now($2) - $2) FROM waiting CROSS JOIN LATERAL (
        SELECT run_at_ms FROM task WHERE tenant = waiting.tenant AND holder IS NULL
        ORDER BY run_at_ms, id LIMIT 1) AS first
        WHERE waiting.tenant NOT IN (SELECT tenant FROM pause WHERE kind = 0))
    FROM alive"
);

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
    let rows = first_round(session, request).await?;
    if rows.is_empty() {
        return Ok(Lease { lost: true, ..Lease::default() });
    }
    let mut taken = Taken::default();
    taken.add(&rows)?;
    let raised = get::<bool>(&rows[0], 28)?;
    if raised {
        let query = sqlx::query(RAISE).bind(request.now_ms).bind(AGEING_MS).bind(RAISE_MAX);
        session.run(query).await?;
    }
    // Behind as many tenants as there is room there may be others, whose turn it is when somebody else had those.
    let cut = get::<i64>(&rows[0], 27)? >= number(request.room) && taken.count < request.room;
    let whole =
        more_rounds(session, request, &mut taken).await? && !cut && !raised && taken.paused.is_empty();
    park(session, &taken.paused).await?;
    let freed = get::<bool>(&rows[0], 29)?;
    let after = taken.tenants.last().map(|&(tenant, _)| tenant).or(request.after);
    let Taken { mut tasks, mut unreadable, tenants, count, .. } = taken;
    take_turns(&mut tasks, &tenants, |one| (one.task.tenant, one.task.place_ms, one.task.id));
    let moved = slot::take(session, request, freed, &mut tasks, |one| &mut one.task).await?;
    let fitted = load_inputs(session, &mut tasks, &mut unreadable).await?;
    let trees = trees(session, roots(tasks.iter().map(|one| &one.task))).await?;
    tasks.iter_mut().for_each(|one| one.task.tree = trees.get(&one.task.lineage.root).copied());
    fail_undecodable(session, &unreadable, request.now_ms).await?;
    let room_left = tasks.len() < request.room;
    let next_run_at_ms = match fitted && whole && !moved {
        true if room_left && count < request.room => get(&rows[0], 30)?,
        true if !room_left => None,
        // What did not fit, took its place or a slot just now, or stands behind what cannot be read is due already.
        _ => Some(request.now_ms),
    };
    let tasks = tasks.into_iter().map(|one| one.task).collect();
    session.ahead.learn(next_run_at_ms);
    Ok(Lease { tasks, after, next_run_at_ms, lost: false })
}

async fn first_round(session: &mut Session, request: &LeaseRequest) -> Result<Vec<PgRow>, StoreError> {
    let (tenants, caps): (Vec<i64>, Vec<i64>) =
        request.caps.iter().map(|(tenant, &cap)| (tenant.0, number(cap))).unzip();
    let after = request.after.map_or(i64::MIN, |tenant| tenant.0);
    let query = sqlx::query(LEASE).bind(request.holder.0).bind(request.now_ms).bind(request.lease_ms);
    let query = query.bind(after).bind(number(request.room)).bind(tenants).bind(caps);
    session.rows(query.bind(number(request.cap_default))).await
}

/// Divides what is left of the room among the tenants that took their whole share, as long as there are any. Returns
/// whether that is so.
async fn more_rounds(
    session: &mut Session,
    request: &LeaseRequest,
    taken: &mut Taken,
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
        let query = sqlx::query(LEASE_MORE).bind(request.holder.0).bind(request.now_ms);
        let rows = session.rows(query.bind(tenants).bind(caps)).await?;
        taken.full.clear();
        taken.add(&rows)?;
    }
    Ok(taken.open(request).is_empty())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Gives a lease back whose caller went away before it was told.
pub(crate) async fn give_back(session: &mut Session, leases: &[(TaskId, Token)]) -> Result<(), StoreError> {
    let mut leases = leases.to_vec();
    leases.sort_unstable();
    let (ids, tokens): (Vec<i64>, Vec<i64>) = leases.iter().map(|(id, token)| (id.0, token.0)).unzip();
    let query = "UPDATE task AS t SET holder = NULL FROM unnest($1::bigint[], $2::bigint[]) AS l (id, token)
        WHERE t.id = l.id AND t.token = l.token AND t.holder IS NOT NULL";
    session.run(sqlx::query(query).bind(ids).bind(tokens)).await.map(drop)
}

/// What the rounds of a lease took.
#[derive(Default)]
struct Taken {
    tasks: Vec<Leased>,
    /// Tasks that cannot be read: one bad row must not stop the queue.
    unreadable: Vec<TaskId>,
    /// Tasks of paused kinds.
    paused: Vec<(TaskId, KindId)>,
    /// Rows so far, readable or not.
    count: usize,
    /// The tenants of the first round in their order, with what each got so far.
    tenants: Vec<(TenantId, usize)>,
    /// Those that took their whole share in the last round, and so may have more.
    full: HashSet<TenantId>,
}

struct Leased {
    task: LeasedTask,
    /// Size of the input that is still to be loaded.
    input_bytes: Option<u64>,
}

impl Taken {
    fn add(&mut self, rows: &[PgRow]) -> Result<(), StoreError> {
        // By place: the tenant, its share, how many rows came.
        let mut places: BTreeMap<i64, (TenantId, i64, usize)> = BTreeMap::new();
        for row in rows {
            let Some(id) = get::<Option<i64>>(row, 0)? else { continue };
            let (tenant, place, share) = (TenantId(get(row, 1)?), get(row, 25)?, get(row, 26)?);
            places.entry(place).or_insert((tenant, share, 0)).2 += 1;
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
        let first = self.tenants.is_empty();
        for (tenant, share, got) in places.into_values() {
            if first {
                self.tenants.push((tenant, got));
            } else if let Some(known) = self.tenants.iter_mut().find(|known| known.0 == tenant) {
                known.1 += got;
            }
            if got as i64 == share {
                self.full.insert(tenant);
            }
        }
        Ok(())
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
