//! Trees of tasks: opened with the first children, charged with the attempts below the root, and read by a lease.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use keiko_core::id::TaskId;
use keiko_core::port::StoreError;
use keiko_core::tree::{Spending, Tree};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::store_error;
use super::session::{Binds, RowStatement, Session, json};
use crate::stored::stored_number;
use crate::tree::{Opened, read};

static OPEN: LazyLock<RowStatement> = LazyLock::new(|| {
    RowStatement::new(
        "INSERT INTO tree (root, tenant, fuel_max, host_calls_max, fuel_used, host_calls_used, end_ms)
        SELECT * FROM (VALUES) WHERE true ON CONFLICT (root) DO NOTHING",
        7,
    )
});

/// Adds to what trees have spent. A tree that is forgotten is charged nothing.
pub(crate) const CHARGE: &str = "UPDATE tree SET fuel_used = fuel_used + (spent.value ->> 1),
        host_calls_used = host_calls_used + (spent.value ->> 2)
    FROM json_each(?1) AS spent WHERE tree.root = spent.value ->> 0";

pub(crate) const TREES: &str = "SELECT root, fuel_max, host_calls_max, fuel_used, host_calls_used FROM tree
    WHERE root IN (SELECT value FROM json_each(?1))";

pub(crate) async fn open(session: &mut Session, opened: &[Opened]) -> Result<(), StoreError> {
    let bind = |one: &Opened, binds: &mut Binds| {
        let Tree { max, used } = one.tree;
        binds.add(one.root.0).add(one.tenant.0);
        for spending in [max, used] {
            binds.add(stored_number(spending.fuel)).add(stored_number(spending.host_calls));
        }
        binds.add(one.end_ms);
    };
    session.each(&OPEN, opened, bind).await.map(drop)
}

pub(crate) async fn charge(
    session: &mut Session,
    charges: &BTreeMap<TaskId, Spending>,
) -> Result<(), StoreError> {
    if charges.is_empty() {
        return Ok(());
    }
    let row = |(root, used): (&TaskId, &Spending)| {
        (root.0, stored_number(used.fuel), stored_number(used.host_calls))
    };
    let rows: Vec<(i64, i64, i64)> = charges.iter().map(row).collect();
    session.run(sqlx::query(CHARGE).bind(json(&rows))).await
}

/// How the trees of these roots stand, as far as they are not forgotten.
pub(crate) async fn trees(
    session: &mut Session,
    roots: Vec<i64>,
) -> Result<HashMap<TaskId, Tree>, StoreError> {
    if roots.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = session.rows(sqlx::query(TREES).bind(json(&roots))).await?;
    rows.iter().map(tree).collect::<Result<_, _>>().map_err(store_error)
}

fn tree(row: &SqliteRow) -> Result<(TaskId, Tree), sqlx::Error> {
    let numbers = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
    Ok((TaskId(row.try_get(0)?), read(numbers)))
}
