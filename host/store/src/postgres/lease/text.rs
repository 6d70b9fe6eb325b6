//! The statements of leases, made of the same pieces: of rows alone, and of rows and segments.

use super::super::segment;
use super::super::slot::is_over;

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

/// The first of the rows with a due time, of the tenant that comes first and fits.
macro_rules! first_row {
    ($table:literal, $number:literal, $fits:expr) => {
        concat!(
            "SELECT tenant, run_at_ms FROM ",
            $table,
            " WHERE holder IS NULL AND ",
            $fits,
            " ORDER BY tenant, run_at_ms, ",
            $number,
            " LIMIT 1"
        )
    };
}
macro_rules! first_task {
    ($fits:expr) => {
        first_row!("task", "id", $fits)
    };
}
macro_rules! first_of_both {
    ($fits:expr) => {
        concat!(
            "SELECT tenant, run_at_ms FROM ((",
            first_task!($fits),
            ") UNION ALL (",
            first_row!("task_segment", "first", $fits),
            ")) AS both_tables ORDER BY tenant, run_at_ms LIMIT 1"
        )
    };
}

/// Prolongs the holder `$1` and divides the room: the tenants with due tasks, which `$first` finds one after the other, are
/// `placed`, with their shares in `given`. Parameters: now, lease, the tenant served last, room, the tenants with a cap of
/// their own, their caps, the others' cap.
macro_rules! given {
    ($first:ident) => {
        concat!(
            "WITH RECURSIVE alive AS (
        UPDATE holder SET until_ms = greatest(until_ms, keiko_now($2) + $3) WHERE id = $1 RETURNING id
    ), behind (tenant, run_at_ms) AS (
        (",
            $first!("tenant > $4"),
            ")
        UNION ALL
        SELECT next.tenant, next.run_at_ms FROM behind CROSS JOIN LATERAL (",
            $first!("tenant > behind.tenant"),
            ") AS next
    ), before (tenant, run_at_ms) AS (
        (",
            $first!("tenant <= $4"),
            ")
        UNION ALL
        SELECT next.tenant, next.run_at_ms FROM before CROSS JOIN LATERAL (",
            $first!("tenant > before.tenant AND tenant <= $4"),
            ") AS next
    ), ready AS (
        SELECT tenant, cap FROM (
            SELECT tenant, coalesce(($7::bigint[])[array_position($6::bigint[], tenant)], $8) AS cap FROM (
                SELECT tenant FROM behind WHERE run_at_ms <= keiko_now($2)
                UNION ALL SELECT tenant FROM before WHERE run_at_ms <= keiko_now($2)) AS walk) AS capped
        WHERE cap > 0 AND tenant NOT IN (SELECT tenant FROM pause WHERE kind = 0) LIMIT $5
    ), placed AS MATERIALIZED (
        SELECT tenant, cap, row_number() OVER () AS place, count(*) OVER () AS tenants FROM ready
    ), given AS (
        SELECT placed.tenant, placed.place, least(cap, $5 / tenants + (place <= $5 % tenants)::int) AS share
        FROM alive CROSS JOIN placed
    )"
        )
    };
}

/// The oldest due tasks of what is `given`.
macro_rules! due_tasks {
    () => {
        "SELECT id, run_at_ms FROM task WHERE tenant = given.tenant AND holder IS NULL AND run_at_ms <= keiko_now($2)
            ORDER BY run_at_ms, id LIMIT given.share FOR UPDATE SKIP LOCKED"
    };
}

/// Leases the oldest due tasks of what is `given`, as `leased`, for the holder `$1`.
macro_rules! lease_rows {
    () => {
        concat!(
            ", due AS MATERIALIZED (
        SELECT taken.id, given.place, given.share FROM given CROSS JOIN LATERAL (",
            due_tasks!(),
            ") AS taken
    ), leased AS (
        UPDATE task AS t SET holder = $1, token = t.token + 1 FROM due WHERE t.id = due.id
        RETURNING ",
            leased!(),
            ", due.place, due.share
    )"
        )
    };
}

/// The same of rows and segments, as `leased` and `segments`: the oldest of both, until the share is full. Of a segment in which a
/// share ends the column behind it says how many tasks are in it. So many segments of a tenant are looked at as hold the share if
/// none of them is small: see [`segments_max`].
macro_rules! lease_both {
    () => {
        concat!(
            ", found AS MATERIALIZED (
        SELECT id, run_at_ms, weight, of_many, place, share, sum(weight) OVER (PARTITION BY place
            ORDER BY run_at_ms, id ROWS UNBOUNDED PRECEDING) - weight AS older FROM (
            SELECT taken.id, taken.run_at_ms, 1 AS weight, false AS of_many, given.place, given.share
            FROM given CROSS JOIN LATERAL (",
            due_tasks!(),
            ") AS taken
            UNION ALL
            SELECT taken.first, taken.run_at_ms, taken.live, true, given.place, given.share
            FROM given CROSS JOIN LATERAL (
                SELECT first, run_at_ms, live FROM task_segment
                WHERE tenant = given.tenant AND holder IS NULL AND run_at_ms <= keiko_now($2)
                ORDER BY run_at_ms, first LIMIT 1 + given.share / 100 FOR UPDATE SKIP LOCKED) AS taken) AS both_tables
    ), due AS MATERIALIZED (
        SELECT id, place, share, of_many, share - older AS room FROM found WHERE older < share
    ), leased AS (
        UPDATE task AS t SET holder = $1, token = t.token + 1 FROM due WHERE t.id = due.id AND NOT due.of_many
        RETURNING ",
            leased!(),
            ", due.place, due.share
    ), segments AS (
        UPDATE task_segment AS s SET holder = $1, token = s.token + 1 FROM due WHERE s.first = due.id AND due.of_many
        RETURNING ",
            segment::columns!(),
            ", due.place, due.share, due.room, s.kind IN (SELECT kind FROM pause WHERE NOT ending) AS paused
    )"
        )
    };
}

/// Segments of a tenant that a round looks at.
pub(super) fn segments_max(share: i64) -> i64 {
    1 + share / 100
}

/// Rows and segments beside each other; those of the one have no columns of the other.
macro_rules! both {
    () => {
        "(SELECT leased.*, s.* FROM leased LEFT JOIN segments AS s ON false
            UNION ALL SELECT l.*, segments.* FROM segments LEFT JOIN leased AS l ON false)"
    };
}

/// What every row of a lease says beside its task: whether tasks with a priority came due and have not taken their place, which
/// costs the others one look at nothing, whether a slot may be free, when the next task comes due if there is room left,
/// and whether segments wait.
macro_rules! standing {
    () => {
        concat!(
            "(SELECT count(*) FROM placed), EXISTS (
        SELECT FROM task WHERE run_at_ms = due_ms AND due_ms <= keiko_now($2) AND holder IS NULL),
        EXISTS (SELECT FROM slot_use AS u WHERE ",
            is_over!("$2"),
            "), CASE WHEN (SELECT count(*) FROM due) < $5 THEN (",
            next_run_at!(),
            ") END, ",
            segments_wait!("")
        )
    };
}

/// Whether segments wait of tenants that are not paused. Each was due when it was stored: where one is not, the database's clock
/// was set back since, and it is looked at until it is due again.
macro_rules! segments_wait {
    ($but:literal) => {
        concat!(
            "EXISTS (WITH RECURSIVE owners (tenant) AS (
            (SELECT tenant FROM task_segment ORDER BY tenant LIMIT 1)
            UNION ALL
            SELECT next.tenant FROM owners CROSS JOIN LATERAL (
                SELECT tenant FROM task_segment WHERE tenant > owners.tenant ORDER BY tenant LIMIT 1) AS next
        )
        SELECT FROM owners CROSS JOIN LATERAL (
            SELECT FROM task_segment WHERE tenant = owners.tenant AND holder IS NULL LIMIT 1) AS first
        WHERE owners.tenant NOT IN (SELECT tenant FROM pause WHERE kind = 0)",
            $but,
            ")"
        )
    };
}

/// Whether segments wait, but for tenants of which no more may be leased, `$1`.
pub(crate) const LEFT: &str = concat!("SELECT ", segments_wait!(" AND owners.tenant <> ALL ($1::bigint[])"));

/// Leases a round of rows. The one row without a task says that the holder lives.
pub(crate) const LEASE: &str = concat!(
    given!(first_task),
    lease_rows!(),
    " SELECT leased.*, ",
    standing!(),
    " FROM alive LEFT JOIN leased ON true"
);

/// Leases a round of rows and segments.
pub(crate) const LEASE_BOTH: &str = concat!(
    given!(first_of_both),
    lease_both!(),
    " SELECT task.*, ",
    standing!(),
    " FROM alive LEFT JOIN ",
    both!(),
    " AS task ON true"
);

/// Moves up to `$3` tasks with a priority that have come due to their place, each level being worth `$2`.
pub(crate) const RAISE: &str = "
    UPDATE task AS t SET run_at_ms = t.due_ms - t.priority * $2::bigint
    FROM (SELECT id FROM task WHERE run_at_ms = due_ms AND due_ms <= keiko_now($1) AND holder IS NULL
        ORDER BY due_ms LIMIT $3 FOR UPDATE SKIP LOCKED) AS due
    WHERE t.id = due.id";

/// What further rounds give tenants.
macro_rules! given_more {
    () => {
        "WITH given AS (
        SELECT tenant, share, place FROM unnest($3::bigint[], $4::bigint[]) WITH ORDINALITY AS g (tenant, share, place))"
    };
}

/// Leases up to so many due tasks of each of these tenants: a further round.
pub(crate) const LEASE_MORE: &str = concat!(given_more!(), lease_rows!(), " SELECT * FROM leased");

/// The same of rows and segments.
pub(crate) const LEASE_MORE_OF_BOTH: &str =
    concat!(given_more!(), lease_both!(), " SELECT * FROM ", both!(), " AS task");

/// Prolongs the holder `$1` and looks when the first pending task comes due, on the caller's clock, and the caller's
/// time: one look into `task_ready` for each tenant. It says first whether a slot may be free, or a segment waits. Parameters: now,
/// lease.
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
    ") OR ",
    segments_wait!(""),
    ", (SELECT min(first.run_at_ms) - (SELECT keiko_now($2) - $2) FROM waiting CROSS JOIN LATERAL (
        SELECT run_at_ms FROM task WHERE tenant = waiting.tenant AND holder IS NULL
        ORDER BY run_at_ms, id LIMIT 1) AS first
        WHERE waiting.tenant NOT IN (SELECT tenant FROM pause WHERE kind = 0))
    FROM alive"
);
