//! The statements of ends. Each that writes one is fenced.

use super::super::count::{agents, sum, usage};

/// The task is still the one's who leased it, under the token of that lease. A build that leaves this out shows that the
/// checks notice: `cargo xtask check hosts --unfenced`.
#[cfg(not(feature = "unfenced"))]
macro_rules! fence {
    ($holder:literal) => {
        concat!("t.holder = ", $holder)
    };
    ($holder:literal, $token:literal) => {
        concat!("t.holder = ", $holder, " AND t.token = ", $token)
    };
}
#[cfg(feature = "unfenced")]
macro_rules! fence {
    ($holder:literal) => {
        concat!($holder, "::bigint IS NOT NULL")
    };
    ($holder:literal, $token:literal) => {
        concat!($holder, "::bigint IS NOT NULL AND ", $token, " IS NOT NULL")
    };
}

/// Tasks that the holder `$2` runs, which nobody else changes until the commit, and how far the database's clock is
/// before the caller's, `$3`.
pub(crate) const HOLD: &str = concat!(
    "SELECT t.id, t.tenant, t.token, t.root, t.depth, t.budget, t.trace, t.agent, t.app_user,
        t.priority, keiko_now($3) - $3, t.end_by_ms - (SELECT keiko_now($3) - $3), o.end_ms - (SELECT keiko_now($3) - $3)
    FROM unnest($1::bigint[]) AS s (id) JOIN task AS t ON t.id = s.id
        LEFT JOIN tree AS o ON o.root = t.root AND t.parent IS NOT NULL WHERE ",
    fence!("$2"),
    " ORDER BY t.id FOR UPDATE OF t"
);

/// Ends as rows: see [`bind_ends`]. The arrays are unnested in the list of a `SELECT`: in `FROM` each becomes a table that is
/// written and read again.
macro_rules! ends {
    () => {
        "SELECT unnest($1::bigint[]) AS id, unnest($2::bigint[]) AS tenant,
            unnest($3::bigint[]) AS token, unnest($4::bigint[]) AS started_ms, unnest($5::bigint[]) AS version,
            unnest($6::bigint[]) AS fuel_used, unnest($7::bigint[]) AS memory_bytes_peak,
            unnest($8::bigint[]) AS host_calls, unnest($9::bigint[]) AS elapsed_us, unnest($10::integer[]) AS taint,
            unnest($11::integer[]) AS effects, unnest($12::text[]) AS code, unnest($13::text[]) AS message,
            unnest($14::text[]) AS detail, unnest($15::smallint[]) AS state, unnest($16::text[]) AS result_type,
            unnest($17::bytea[]) AS result, unnest($18::bytea[]) AS log"
    };
}

/// Takes ended tasks away as `gone`, and writes them to the finished ones as `ended`, with their logs.
macro_rules! ended {
    ($which:literal) => {
        concat!(
            "WITH gone AS (
        DELETE FROM task AS t USING (",
            ends!(),
            ") AS s
        WHERE t.id = s.id AND t.tenant = s.tenant AND ",
            fence!("$19", "s.token"),
            $which,
            "
        RETURNING t.id, t.tenant, t.kind, t.token, t.attempts, t.crashes, t.earlier, t.created_ms,
            coalesce(t.due_ms, t.run_at_ms) AS run_at_ms, t.root, t.parent, t.depth, t.budget, t.trace, t.input_type,
            t.input, t.agent, t.app_user, t.priority, t.task_group, t.slot_key, t.unique_key, s.started_ms, s.version,
            s.fuel_used, s.memory_bytes_peak, s.host_calls, s.elapsed_us, s.taint, s.effects, s.code, s.message, s.detail,
            s.state, s.result_type, s.result, s.log),
    ended AS (INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
        finished_ms, root, parent, depth, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail, budget, trace, input_type, result_type, input, result,
        agent, app_user, priority, task_group, slot_key, unique_key)
    SELECT id, tenant, kind, state, token, attempts + 1, crashes, earlier, created_ms, run_at_ms,
        $20, root, parent, depth, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
        elapsed_us, taint, effects, code, message, detail, CASE WHEN state <> 2 THEN budget END,
        CASE WHEN state <> 2 THEN trace END, CASE WHEN state <> 2 THEN input_type END, result_type,
        CASE WHEN state <> 2 THEN input END, result, agent, app_user, priority, task_group,
        CASE WHEN state <> 2 THEN slot_key END, CASE WHEN state <> 2 THEN unique_key END
    FROM gone RETURNING id, earlier + attempts AS number, agent, task_group),
    logged AS (INSERT INTO attempt_log (task, attempt, tenant, bytes)
        SELECT id, earlier + attempts + 1, tenant, log FROM gone WHERE log IS NOT NULL)"
        )
    };
}

/// Moves ended tasks to the finished ones; the caller counts them.
pub(crate) const END: &str = concat!(ended!(""), " SELECT id, number, agent, task_group FROM ended");

/// Counts what is `gone` for its tenants, on a day.
macro_rules! counted {
    ($day:literal) => {
        concat!(
            ", total AS (
        SELECT tenant, count(*) AS ended, count(*) FILTER (WHERE state = 2) AS completed, sum(fuel_used) AS fuel_used, ",
            sum!("elapsed_us"),
            " AS guest_us FROM gone GROUP BY tenant ORDER BY tenant),
    counted AS (
        UPDATE tenant_count AS t SET live = t.live - c.ended, completed = t.completed + c.completed,
            failed = t.failed + c.ended - c.completed
        FROM total AS c WHERE t.tenant = c.tenant),
    spent AS (",
            usage!($day, "(SELECT tenant, ended, completed, ended - completed, fuel_used, guest_us FROM total)"),
            ")"
        )
    };
}

/// Which tasks ended, as one value: a row for each is work for both sides.
macro_rules! ids {
    () => {
        "SELECT ARRAY(SELECT id FROM ended)"
    };
}

/// Moves ended tasks that are in no group, and counts them: all that such an end changes, in one statement.
pub(crate) const END_PLAIN: &str = concat!(
    ended!(" AND t.task_group IS NULL"),
    counted!("$21"),
    ", agents AS (",
    agents!(
        "(SELECT agent, tenant, 0, count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 3), 0, count(*), ",
        sum!("elapsed_us"),
        " FROM gone WHERE agent IS NOT NULL GROUP BY agent, tenant ORDER BY agent)"
    ),
    ") ",
    ids!()
);

/// Takes tasks that completed out of their segments as `gone`, and writes them to the finished ones as `ended`: see
/// [`super::segment`]. The segments are `$21` of each end and `$22` all together.
macro_rules! ended_in_segments {
    () => {
        concat!(
    "WITH held AS MATERIALIZED (
        SELECT t.first, t.tenant, t.kind, t.token, t.gone, t.live, t.created_ms, t.run_at_ms FROM task_segment AS t
        WHERE t.first = ANY($22) AND ",
    fence!("$19"),
    " ORDER BY t.first FOR UPDATE),
    gone AS MATERIALIZED (
        SELECT s.*, h.kind, h.created_ms, h.run_at_ms, h.live FROM (",
    ends!(),
    ", unnest($21::bigint[]) AS segment) AS s CROSS JOIN LATERAL (
            SELECT * FROM held WHERE first = s.segment AND tenant = s.tenant AND token = s.token LIMIT 1) AS h
        WHERE CASE WHEN s.id - h.first BETWEEN 0 AND 127 THEN get_bit(h.gone, (s.id - h.first)::integer) END = 0),
    ended AS (INSERT INTO finished (id, tenant, kind, state, token, attempts, crashes, earlier, created_ms, run_at_ms,
        finished_ms, root, depth, started_ms, version, fuel_used, memory_bytes_peak, host_calls, elapsed_us, taint,
        effects, detail, result_type, result)
        SELECT id, tenant, kind, state, token, 1, 0, 0, created_ms, run_at_ms, $20, id, 0, started_ms, version, fuel_used,
            memory_bytes_peak, host_calls, elapsed_us, taint, effects, detail, result_type, result
        FROM gone RETURNING id),
    logged AS (INSERT INTO attempt_log (task, attempt, tenant, bytes)
        SELECT id, 1, tenant, log FROM gone WHERE log IS NOT NULL),
    less AS MATERIALIZED (
        SELECT segment, live, count(*)::integer AS count, bit_or(B'1'::bit(128) >> (id - segment)::integer) AS gone
        FROM gone GROUP BY segment, live),
    kept AS (
        UPDATE task_segment AS t SET gone = t.gone | l.gone, live = t.live - l.count
        FROM less AS l WHERE t.first = l.segment AND l.count < l.live),
    emptied AS (DELETE FROM task_segment AS t USING less AS l WHERE t.first = l.segment AND l.count = l.live)"
        )
    };
}

/// Moves tasks that completed in their segments to the finished ones; the caller counts them.
pub(crate) const END_IN_SEGMENTS: &str =
    concat!(ended_in_segments!(), " SELECT id, 1, NULL::bigint, NULL::bigint FROM ended");

/// The same, and counts them, as [`END_PLAIN`] does.
pub(crate) const END_PLAIN_IN_SEGMENTS: &str = concat!(ended_in_segments!(), counted!("$23"), " ", ids!());

/// Puts tasks back to pending with one more attempt, and keeps that. Due times are the caller's, by the clock of `$18`.
pub(crate) const RETRY: &str = concat!(
    "
    WITH back AS (
        UPDATE task AS t SET holder = NULL, attempts = t.attempts + 1, deadlines = t.deadlines + s.deadlines,
            run_at_ms = s.run_at_ms + (SELECT keiko_now($18) - $18),
            due_ms = CASE WHEN t.due_ms IS NOT NULL THEN s.run_at_ms + (SELECT keiko_now($18) - $18) END, start_by_ms = NULL
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
            $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::integer[], $11::integer[], $12::text[],
            $13::text[], $14::text[], $15::integer[], $16::bigint[])
            AS s (id, tenant, token, started_ms, version, fuel_used, memory_bytes_peak, host_calls, elapsed_us, taint,
                effects, code, message, detail, deadlines, run_at_ms)
        WHERE t.id = s.id AND t.tenant = s.tenant AND ",
    fence!("$17", "s.token"),
    "
        RETURNING t.id, t.tenant, t.earlier, t.attempts, t.agent, s.started_ms, s.version, s.fuel_used,
            s.memory_bytes_peak, s.host_calls, s.elapsed_us, s.taint, s.effects, s.code, s.message, s.detail),
    kept AS (
        INSERT INTO attempt (task, number, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail)
        SELECT id, earlier + attempts, tenant, started_ms, version, fuel_used, memory_bytes_peak, host_calls,
            elapsed_us, taint, effects, code, message, detail FROM back)
    SELECT id, earlier + attempts, agent, NULL::bigint FROM back"
);

pub(crate) const HAND_BACK: &str = concat!(
    "UPDATE task AS t SET holder = NULL
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS s (id, tenant, token)
    WHERE t.id = s.id AND t.tenant = s.tenant AND ",
    fence!("$4", "s.token"),
    " RETURNING t.id"
);

pub(crate) const INSERT_LOGS: &str = "INSERT INTO attempt_log (task, attempt, tenant, bytes)
    SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bytea[])";

/// Gives agents the statuses that completed tasks ask for; an agent of another tenant is none.
pub(crate) const SET_STATUSES: &str = "UPDATE agent AS a SET status = s.status, updated_ms = $4
    FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) AS s (id, tenant, status)
    WHERE a.id = s.id AND a.tenant = s.tenant";
