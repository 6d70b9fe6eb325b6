//! Segments of tasks in their table: how they are stored, how tasks complete in them, and how tasks leave them to become rows.
//!
//! Whoever changes a segment holds it, before rows of tasks, several in the order of their first numbers; a lease waits for none,
//! and so may take any. A task is in its segment or a row, so what looks for tasks by their numbers lets them leave first, and
//! changes rows only.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use keiko_core::id::{Holder, KindId, TaskId, TenantId, Token};
use keiko_core::port::StoreError;
use keiko_core::task::{NewTask, Settlement};
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;

use super::row::{get, large_count, stored_text};
use super::session::{Session, chunks};
use crate::admit::stored_type;
use crate::format::encode_budget;
use crate::segment::task::{New, SPAN, Segment, gone, packed};

/// Only when every kind is its tenant's, of which `$10` and `$11` are each one once; the number tells.
const INSERT: &str =
    "INSERT INTO task_segment (first, tenant, kind, created_ms, run_at_ms, budget, trace, gone, live, tasks)
    SELECT n.first, n.tenant, n.kind, n.created_ms, n.run_at_ms, n.budget, n.trace, n.gone::bit(128),
        128 - bit_count(n.gone::bit(128)), n.tasks
    FROM (SELECT unnest($1::bigint[]) AS first, unnest($2::bigint[]) AS tenant, unnest($3::bigint[]) AS kind,
        unnest($4::bigint[]) AS created_ms, unnest($5::bigint[]) AS run_at_ms, unnest($6::text[]) AS budget,
        unnest($7::text[]) AS trace, unnest($8::text[]) AS gone, unnest($9::bytea[]) AS tasks) AS n
    WHERE (SELECT count(*) FROM unnest($10::bigint[], $11::bigint[]) AS w (tenant, kind)
        JOIN kind AS k ON k.id = w.kind AND k.tenant = w.tenant) = cardinality($10)";

/// The segment in which a task is, if it is in any: see [`is_in`].
macro_rules! around {
    ($id:literal) => {
        concat!(
            "(SELECT * FROM task_segment WHERE first BETWEEN ",
            $id,
            " - 127 AND ",
            $id,
            " ORDER BY first DESC LIMIT 1)"
        )
    };
}
pub(crate) use around;
const _: () = assert!(SPAN == 128);

/// Whether a task has not left the segment that is `s`, and is [`around`] it.
macro_rules! is_in {
    ($id:literal) => {
        concat!("get_bit(s.gone, (", $id, " - s.first)::integer) = 0")
    };
}
pub(crate) use is_in;

/// The tasks `$1` as `w` with the segments in which they are as `s`, of the tenant `$2` if there is one.
macro_rules! found {
    () => {
        concat!(
            "unnest($1::bigint[]) AS w (id) CROSS JOIN LATERAL ",
            around!("w.id"),
            " AS s WHERE s.tenant = coalesce($2, s.tenant) AND ",
            is_in!("w.id")
        )
    };
}

/// In which segments these tasks are.
pub(crate) const FIND: &str = concat!("SELECT w.id, s.first FROM ", found!());

/// What is read of a segment, in this order.
macro_rules! columns {
    () => {
        "s.first, s.tenant, s.kind, s.token, s.holder, s.created_ms, s.run_at_ms, s.budget, s.trace, s.gone::text, s.tasks"
    };
}
pub(crate) use columns;
/// How many columns that are.
pub(crate) const COLUMNS: usize = 11;

pub(crate) const HOLD: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM task_segment AS s WHERE s.first = ANY($1) ORDER BY s.first FOR UPDATE"
);

/// The segments in which these tasks are, as they are when nobody else changes them any more.
pub(crate) const HOLD_FOUND: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM task_segment AS s WHERE s.first = ANY(ARRAY(SELECT s.first FROM ",
    found!(),
    ")) ORDER BY s.first FOR UPDATE"
);

/// Segments of hosts that are gone.
const HOLD_OF_NOBODY: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM task_segment AS s WHERE s.holder IS NOT NULL AND NOT EXISTS (SELECT FROM holder AS h WHERE h.id = s.holder)
    ORDER BY s.first FOR UPDATE"
);

/// Tasks that left a segment, as rows.
const INSERT_ROWS: &str = "INSERT INTO task (id, tenant, kind, token, holder, created_ms, run_at_ms, root, budget, trace,
        input_type, input)
    SELECT n.id, n.tenant, n.kind, n.token, n.holder, n.created_ms, n.run_at_ms, n.id, n.budget, n.trace, n.input_type, n.input
    FROM (SELECT unnest($1::bigint[]) AS id, unnest($2::bigint[]) AS tenant, unnest($3::bigint[]) AS kind,
        unnest($4::bigint[]) AS token, unnest($5::bigint[]) AS holder, unnest($6::bigint[]) AS created_ms,
        unnest($7::bigint[]) AS run_at_ms, unnest($8::text[]) AS budget, unnest($9::text[]) AS trace,
        unnest($10::text[]) AS input_type, unnest($11::bytea[]) AS input) AS n";

const LEAVE: &str =
    "UPDATE task_segment AS s SET gone = l.gone::bit(128), live = 128 - bit_count(l.gone::bit(128))
    FROM unnest($1::bigint[], $2::text[]) AS l (first, gone) WHERE s.first = l.first";

/// Whether the task `$1` of the tenant `$2` is in a segment, and whether that is leased, as a task's state.
macro_rules! state {
    () => {
        concat!(
            "SELECT CASE WHEN s.holder IS NULL THEN 0 ELSE 1 END FROM ",
            $crate::postgres::segment::around!("$1"),
            " AS s WHERE s.tenant = $2 AND ",
            $crate::postgres::segment::is_in!("$1")
        )
    };
}
pub(crate) use state;

/// Stores segments. `shift_ms` moves due times to the database's clock. Whether every kind is its tenant's.
pub(crate) async fn insert(
    session: &mut Session,
    segments: &[&[New<'_>]],
    shift_ms: i64,
) -> Result<bool, StoreError> {
    let bytes = |segment: &&[New<'_>]| segment.iter().map(|(_, task)| task.input.bytes.len()).sum();
    for chunk in chunks(segments, bytes) {
        let heads: Vec<New<'_>> = chunk.iter().map(|segment| segment[0]).collect();
        let column = |of: fn(&NewTask) -> i64| heads.iter().map(|(_, task)| of(task)).collect::<Vec<_>>();
        let text =
            |of: fn(&NewTask) -> Option<String>| heads.iter().map(|(_, task)| of(task)).collect::<Vec<_>>();
        let places = heads.iter().map(|(_, task)| task.run_at_ms.saturating_add(shift_ms));
        let all_gone =
            chunk.iter().map(|segment| gone(segment[0].1.id.0, segment.iter().map(|(_, task)| task.id.0)));
        let owners: BTreeSet<_> = heads.iter().map(|(tenant, task)| (tenant.0, task.kind.0)).collect();
        let (owner, owned): (Vec<i64>, Vec<i64>) = owners.into_iter().unzip();
        let query = sqlx::query(INSERT).bind(column(|task| task.id.0));
        let query = query.bind(heads.iter().map(|(tenant, _)| tenant.0).collect::<Vec<_>>());
        let query = query.bind(column(|task| task.kind.0)).bind(column(|task| task.created_ms));
        let query = query.bind(places.collect::<Vec<_>>()).bind(text(|task| encode_budget(&task.budget)));
        let query = query.bind(text(|task| task.trace.as_deref().map(stored_text)));
        let query = query.bind(all_gone.collect::<Vec<_>>());
        let query = query.bind(chunk.iter().map(|segment| packed(segment)).collect::<Vec<_>>());
        if session.run(query.bind(owner).bind(owned)).await? != chunk.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets tasks, of one tenant or whosever, leave the segments that they are in. Those that are in none stay what they are.
pub(crate) async fn leave(
    session: &mut Session,
    ids: &[i64],
    tenant: Option<TenantId>,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(HOLD_FOUND).bind(ids).bind(tenant.map(|tenant| tenant.0));
    let segments = hold(session, query).await?;
    let leave: HashSet<i64> = ids.iter().copied().collect();
    leave_held(session, segments, |_, id| leave.contains(&id)).await
}

/// Lets the tasks of settlements leave that are not completed in their segments, as far as they are under their leases.
pub(crate) async fn leave_settled(
    session: &mut Session,
    holder: Holder,
    settlements: &[Settlement],
    stays: impl Fn(&Settlement) -> bool,
) -> Result<(), StoreError> {
    let (mut wanted, mut tokens) = (HashSet::new(), HashSet::new());
    let leave = settlements.iter().filter(|one| !stays(one));
    for (first, one) in leave.filter_map(|one| Some((one.segment?, one))) {
        wanted.insert((first.0, one.id.0));
        tokens.insert((first.0, one.token));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let firsts: Vec<i64> = tokens.iter().map(|(first, _)| *first).collect();
    let mut segments = hold(session, sqlx::query(HOLD).bind(firsts)).await?;
    segments.retain(|segment| {
        segment.holder == Some(holder.0) && tokens.contains(&(segment.first, segment.token))
    });
    leave_held(session, segments, |first, id| wanted.contains(&(first, id))).await
}

/// Runs a statement that holds segments.
async fn hold(
    session: &mut Session,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<Segment>, StoreError> {
    session.rows(query).await?.iter().map(|row| read(row, 0)).collect()
}

/// Lets tasks leave segments that the transaction holds: those that are to, by the first number of the segment and their own.
async fn leave_held(
    session: &mut Session,
    mut segments: Vec<Segment>,
    leaves: impl Fn(i64, i64) -> bool,
) -> Result<(), StoreError> {
    let mut left = Vec::new();
    for segment in &mut segments {
        let first = segment.first;
        let tasks = segment.tasks.extract_if(.., |(id, _)| leaves(first, *id)).collect();
        left.push(Segment { tasks, ..segment.clone() });
    }
    become_rows(session, &left).await?;
    keep(session, &segments).await
}

/// Makes rows of all tasks of segments that the transaction holds.
pub(crate) async fn dissolve(session: &mut Session, segments: &[Segment]) -> Result<(), StoreError> {
    become_rows(session, segments).await?;
    let empty: Vec<Segment> =
        segments.iter().map(|segment| Segment { tasks: Vec::new(), ..segment.clone() }).collect();
    keep(session, &empty).await
}

/// Makes rows of what hosts held that are gone.
pub(crate) async fn dissolve_of_nobody(session: &mut Session) -> Result<(), StoreError> {
    let segments = hold(session, sqlx::query(HOLD_OF_NOBODY)).await?;
    dissolve(session, &segments).await
}

async fn become_rows(session: &mut Session, segments: &[Segment]) -> Result<(), StoreError> {
    let tasks: Vec<_> =
        segments.iter().flat_map(|of| of.tasks.iter().map(move |(id, input)| (of, *id, input))).collect();
    for chunk in chunks(&tasks, |(.., input)| input.bytes.len()) {
        let column = |of: fn(&Segment) -> i64| chunk.iter().map(|(one, ..)| of(one)).collect::<Vec<_>>();
        let text =
            |of: fn(&Segment) -> Option<&str>| chunk.iter().map(|(one, ..)| of(one)).collect::<Vec<_>>();
        let holders: Vec<Option<i64>> = chunk.iter().map(|(one, ..)| one.holder).collect();
        let types = chunk.iter().map(|(.., input)| stored_type(input).map(stored_text));
        let inputs: Vec<&[u8]> = chunk.iter().map(|(.., input)| &input.bytes[..]).collect();
        let query = sqlx::query(INSERT_ROWS).bind(chunk.iter().map(|(_, id, _)| *id).collect::<Vec<_>>());
        let query = query.bind(column(|one| one.tenant.0)).bind(column(|one| one.kind.0));
        let query = query.bind(column(|one| one.token.0)).bind(holders).bind(column(|one| one.created_ms));
        let query = query.bind(column(|one| one.run_at_ms)).bind(text(|one| one.budget.as_deref()));
        let query = query.bind(text(|one| one.trace.as_deref())).bind(types.collect::<Vec<_>>());
        session.run(query.bind(inputs)).await?;
    }
    Ok(())
}

/// Notes which tasks have left segments, and takes those away that have none.
async fn keep(session: &mut Session, segments: &[Segment]) -> Result<(), StoreError> {
    let (empty, left): (Vec<&Segment>, Vec<&Segment>) =
        segments.iter().partition(|segment| segment.tasks.is_empty());
    if !left.is_empty() {
        let firsts: Vec<i64> = left.iter().map(|segment| segment.first).collect();
        let all_gone: Vec<String> = left.iter().map(|segment| segment.gone()).collect();
        session.run(sqlx::query(LEAVE).bind(firsts).bind(all_gone)).await?;
    }
    if !empty.is_empty() {
        let firsts: Vec<i64> = empty.iter().map(|segment| segment.first).collect();
        session.run(sqlx::query("DELETE FROM task_segment WHERE first = ANY($1)").bind(firsts)).await?;
    }
    Ok(())
}

/// Cuts a segment that is leased to the caller behind its first `count` tasks; the others wait for the next lease.
pub(crate) async fn cut(
    session: &mut Session,
    segment: &mut Segment,
    count: usize,
) -> Result<(), StoreError> {
    if segment.is_damaged {
        // Written anew it would be sound.
        return Ok(());
    }
    let Some(rest) = segment.split_off(count) else { return Ok(()) };
    // The numbers from the rest on are its own from now on.
    let query = "UPDATE task_segment SET gone = $2::text::bit(128), live = $3, tasks = $4 WHERE first = $1";
    let query = sqlx::query(query).bind(segment.first).bind(segment.gone());
    session.run(query.bind(segment.tasks.len() as i32).bind(segment.pack())).await?;
    let query = "INSERT INTO task_segment (first, tenant, kind, token, created_ms, run_at_ms, gone, live, budget, trace, tasks)
        VALUES ($1, $2, $3, $4, $5, $6, $7::text::bit(128), $8, $9, $10, $11)";
    let query = sqlx::query(query).bind(rest.first).bind(rest.tenant.0).bind(rest.kind.0).bind(rest.token.0);
    let query = query.bind(rest.created_ms).bind(rest.run_at_ms).bind(rest.gone());
    let query = query.bind(rest.tasks.len() as i32).bind(&rest.budget).bind(&rest.trace).bind(rest.pack());
    session.run(query).await.map(drop)
}

/// Gives segments back whose lease nobody heard of.
pub(crate) async fn give_back(session: &mut Session, leases: &[(TaskId, Token)]) -> Result<(), StoreError> {
    let tokens: HashMap<i64, i64> = leases.iter().map(|(id, token)| (id.0, token.0)).collect();
    let ids: Vec<i64> = tokens.keys().copied().collect();
    let mut segments = BTreeMap::new();
    for row in session.rows(sqlx::query(FIND).bind(ids).bind(None::<i64>)).await? {
        let (id, first): (i64, i64) = (get(&row, 0)?, get(&row, 1)?);
        segments.extend(tokens.get(&id).map(|token| (first, *token)));
    }
    if segments.is_empty() {
        return Ok(());
    }
    let query = "WITH held AS MATERIALIZED (SELECT s.first FROM unnest($1::bigint[], $2::bigint[]) AS l (first, token)
            JOIN task_segment AS s ON s.first = l.first AND s.token = l.token AND s.holder IS NOT NULL
            ORDER BY s.first FOR UPDATE OF s)
        UPDATE task_segment AS s SET holder = NULL FROM held WHERE s.first = held.first";
    let (firsts, tokens): (Vec<i64>, Vec<i64>) = segments.into_iter().unzip();
    session.run(sqlx::query(query).bind(firsts).bind(tokens)).await.map(drop)
}

/// Gives back what a holder has; how many tasks.
pub(crate) async fn give_back_all(session: &mut Session, holder: Holder) -> Result<u64, StoreError> {
    let query = "WITH held AS MATERIALIZED (SELECT first FROM task_segment WHERE holder = $1 ORDER BY first FOR UPDATE),
        back AS (UPDATE task_segment AS s SET holder = NULL FROM held WHERE s.first = held.first RETURNING s.live)
        SELECT coalesce(sum(live), 0)::bigint FROM back";
    let row = session.row(sqlx::query(query).bind(holder.0)).await?;
    row.as_ref().map_or(Ok(0), |row| large_count(row, 0))
}

/// A segment whose columns begin at `at`.
pub(crate) fn read(row: &PgRow, at: usize) -> Result<Segment, StoreError> {
    let mut segment = Segment {
        first: get(row, at)?,
        tenant: TenantId(get(row, at + 1)?),
        kind: KindId(get(row, at + 2)?),
        token: Token(get(row, at + 3)?),
        holder: get(row, at + 4)?,
        created_ms: get(row, at + 5)?,
        run_at_ms: get(row, at + 6)?,
        budget: get(row, at + 7)?,
        trace: get(row, at + 8)?,
        tasks: Vec::new(),
        is_damaged: false,
    };
    segment.read_tasks(get(row, at + 9)?, &Bytes::from(get::<Vec<u8>>(row, at + 10)?));
    Ok(segment)
}
