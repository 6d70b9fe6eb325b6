//! Trees of tasks: opened with the first children, charged with the attempts below the root, and read by a lease.

use std::collections::{BTreeMap, HashMap};

use keiko_core::id::TaskId;
use keiko_core::port::StoreError;
use keiko_core::tree::{Spending, Tree};
use sqlx::postgres::PgRow;

use super::row::get;
use super::session::Session;
use crate::stored::stored_number;
use crate::tree::{Opened, read};

const OPEN: &str =
    "INSERT INTO tree (root, tenant, fuel_max, host_calls_max, fuel_used, host_calls_used, end_ms)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::bigint[]) ON CONFLICT (root) DO NOTHING";

/// Adds to what trees have spent. A tree that is forgotten is charged nothing.
pub(crate) const CHARGE: &str = "UPDATE tree AS t SET fuel_used = t.fuel_used + c.fuel,
        host_calls_used = t.host_calls_used + c.host_calls
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS c (root, fuel, host_calls) WHERE t.root = c.root";

pub(crate) const TREES: &str = "SELECT root, fuel_max, host_calls_max, fuel_used, host_calls_used FROM tree
    WHERE root = ANY($1)";

/// Opens trees; `shift_ms` moves their ends to the database's clock.
pub(crate) async fn open(session: &mut Session, opened: &[Opened], shift_ms: i64) -> Result<(), StoreError> {
    if opened.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&Opened) -> i64| opened.iter().map(of).collect::<Vec<i64>>();
    let ends = opened.iter().map(|one| Some(one.end_ms?.saturating_add(shift_ms)));
    let query = sqlx::query(OPEN).bind(column(|one| one.root.0)).bind(column(|one| one.tenant.0));
    let query = query.bind(column(|one| stored_number(one.tree.max.fuel)));
    let query = query.bind(column(|one| stored_number(one.tree.max.host_calls)));
    let query = query.bind(column(|one| stored_number(one.tree.used.fuel)));
    let query = query.bind(column(|one| stored_number(one.tree.used.host_calls)));
    session.run(query.bind(ends.collect::<Vec<_>>())).await.map(drop)
}

pub(crate) async fn charge(
    session: &mut Session,
    charges: &BTreeMap<TaskId, Spending>,
) -> Result<(), StoreError> {
    if charges.is_empty() {
        return Ok(());
    }
    let roots: Vec<i64> = charges.keys().map(|root| root.0).collect();
    let fuel: Vec<i64> = charges.values().map(|used| stored_number(used.fuel)).collect();
    let calls: Vec<i64> = charges.values().map(|used| stored_number(used.host_calls)).collect();
    session.run(sqlx::query(CHARGE).bind(roots).bind(fuel).bind(calls)).await.map(drop)
}

/// How the trees of these roots stand, as far as they are not forgotten.
pub(crate) async fn trees(
    session: &mut Session,
    roots: Vec<i64>,
) -> Result<HashMap<TaskId, Tree>, StoreError> {
    if roots.is_empty() {
        return Ok(HashMap::new());
    }
    session.rows(sqlx::query(TREES).bind(roots)).await?.iter().map(tree).collect()
}

fn tree(row: &PgRow) -> Result<(TaskId, Tree), StoreError> {
    Ok((TaskId(get(row, 0)?), read([get(row, 1)?, get(row, 2)?, get(row, 3)?, get(row, 4)?])))
}
