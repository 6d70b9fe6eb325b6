//! Schedules: their rows, and the transaction that submits the task of an occurrence.

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::id::TenantId;
use keiko_core::name::ScheduleName;
use keiko_core::port::{Created, DueSchedules, Fired, Firing, ScheduleKey, Schedules, StoreError};
use keiko_core::schedule::Schedule;
use keiko_core::task::Payload;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use super::catalog::read_name;
use super::error::store_error;
use super::session::{Session, json};
use super::submit;
use crate::admit::{read_type, stored_type};
use crate::schedule::{columns, decode, due, encode, last, noted};
use crate::transaction::Priority;
use crate::trouble::undecodable;

/// Schedules as [`read`] takes them.
macro_rules! schedules {
    ($rest:literal) => {
        concat!(
            "SELECT tenant, name, definition, input_type, input, created_ms, paused_ms, next_ms, last_ms, last_task,
                last_code, last_message FROM schedule ",
            $rest
        )
    };
}

const INSERT: &str = "
    INSERT INTO schedule (tenant, name, definition, input_type, input, created_ms, paused_ms, next_ms)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE (SELECT count(*) FROM schedule WHERE tenant = ?1) < ?9
    ON CONFLICT DO NOTHING RETURNING 1";

pub(crate) const LIST: &str = schedules!("WHERE tenant = ?1 AND name > ?2 ORDER BY name LIMIT ?3");

/// Schedules that are to occur, but for those of `?3`.
pub(crate) const DUE: &str = schedules!(
    "INDEXED BY schedule_next WHERE next_ms IS NOT NULL AND next_ms <= ?1
        AND (tenant, name) NOT IN (SELECT value ->> 0, value ->> 1 FROM json_each(?3))
    ORDER BY next_ms LIMIT ?2"
);

pub(crate) const NEXT: &str =
    "SELECT min(next_ms) FROM schedule INDEXED BY schedule_next WHERE next_ms IS NOT NULL AND next_ms > ?1";

#[async_trait]
impl Schedules for SqliteStore {
    async fn create(&self, schedule: Schedule, count_max: u64) -> Result<Created, StoreError> {
        let bytes = schedule.task.input.bytes.len();
        self.write(Priority::Task, bytes, schedule, move |session, schedule| {
            Box::pin(create(session, schedule, count_max))
        })
        .await
    }

    async fn schedules(
        &self,
        tenant: TenantId,
        after: Option<&ScheduleName>,
        limit: u32,
    ) -> Result<Vec<Schedule>, StoreError> {
        let after = after.map_or("", |name| name.as_str());
        let query = sqlx::query(LIST).bind(tenant.0).bind(after).bind(limit);
        let rows = query.fetch_all(&self.0.readers).await.map_err(store_error)?;
        rows.iter().map(read).collect()
    }

    async fn schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<Option<Schedule>, StoreError> {
        let query = sqlx::query(schedules!("WHERE tenant = ?1 AND name = ?2")).bind(tenant.0);
        let row = query.bind(name.as_str()).fetch_optional(&self.0.readers).await.map_err(store_error)?;
        row.as_ref().map(read).transpose()
    }

    async fn pause_schedule(
        &self,
        tenant: TenantId,
        name: &ScheduleName,
        paused_ms: Option<i64>,
        next_ms: Option<i64>,
    ) -> Result<Option<bool>, StoreError> {
        self.write(Priority::Task, 0, name.clone(), move |session, name| {
            Box::pin(pause(session, tenant, name, paused_ms, next_ms))
        })
        .await
    }

    async fn remove_schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<bool, StoreError> {
        self.write(Priority::Task, 0, name.clone(), move |session, name| {
            Box::pin(async move {
                let query = "DELETE FROM schedule WHERE tenant = ?1 AND name = ?2 RETURNING 1";
                let rows = session.rows(sqlx::query(query).bind(tenant.0).bind(name.as_str())).await?;
                Ok(!rows.is_empty())
            })
        })
        .await
    }

    async fn due_schedules(
        &self,
        now_ms: i64,
        passed: &[ScheduleKey],
        limit: u32,
    ) -> Result<DueSchedules, StoreError> {
        let readers = &self.0.readers;
        let passed: Vec<(i64, &str)> = passed.iter().map(|(tenant, name)| (tenant.0, &name[..])).collect();
        let query = sqlx::query(DUE).bind(now_ms).bind(limit).bind(json(&passed));
        let rows = query.fetch_all(readers).await.map_err(store_error)?;
        let next = sqlx::query(NEXT).bind(now_ms).fetch_one(readers).await.map_err(store_error)?;
        let key =
            |row: &SqliteRow| Ok::<ScheduleKey, sqlx::Error>((TenantId(row.try_get(0)?), row.try_get(1)?));
        let rows: Result<Vec<_>, sqlx::Error> = rows.iter().map(|row| Ok((key(row)?, read(row)))).collect();
        Ok(due(rows.map_err(store_error)?, now_ms, next.try_get(0).map_err(store_error)?))
    }

    async fn fire(&self, firing: Firing, now_ms: i64) -> Result<Fired, StoreError> {
        self.write(Priority::Task, 0, firing, move |session, firing| Box::pin(fire(session, firing, now_ms)))
            .await
    }
}

async fn create(session: &mut Session, schedule: &Schedule, count_max: u64) -> Result<Created, StoreError> {
    let input = &schedule.task.input;
    let (tenant, name) = (schedule.tenant.0, schedule.name.as_str());
    let query = sqlx::query(INSERT).bind(tenant).bind(name).bind(encode(schedule));
    let query = query.bind(stored_type(input)).bind(&input.bytes[..]).bind(schedule.created_ms);
    let query = query.bind(schedule.paused_ms).bind(schedule.next_ms);
    let query = query.bind(i64::try_from(count_max).unwrap_or(i64::MAX));
    if !session.rows(query).await?.is_empty() {
        return Ok(Created::Stored);
    }
    let query = "SELECT count(*), sum(name = ?2) FROM schedule WHERE tenant = ?1";
    let rows = session.rows(sqlx::query(query).bind(tenant).bind(name)).await?;
    let numbers = |row: &SqliteRow| Ok((row.try_get::<i64, _>(0)?, row.try_get::<Option<i64>, _>(1)?));
    let numbers = rows.first().map(numbers).transpose().map_err(store_error)?;
    let (count, taken) = numbers.unwrap_or_default();
    let count = count.max(0) as u64;
    Ok(if taken.is_some_and(|taken| taken > 0) { Created::Taken } else { Created::Full { count } })
}

async fn pause(
    session: &mut Session,
    tenant: TenantId,
    name: &ScheduleName,
    paused_ms: Option<i64>,
    next_ms: Option<i64>,
) -> Result<Option<bool>, StoreError> {
    let query = "UPDATE schedule SET paused_ms = ?3, next_ms = ?4
            WHERE tenant = ?1 AND name = ?2 AND (paused_ms IS NULL) = (?3 IS NOT NULL);
        SELECT changes() FROM schedule WHERE tenant = ?1 AND name = ?2";
    let query = sqlx::query(query).bind(tenant.0).bind(name.as_str()).bind(paused_ms).bind(next_ms);
    let rows = session.rows(query).await?;
    rows.first().map(|row| row.try_get(0)).transpose().map_err(store_error)
}

async fn fire(session: &mut Session, firing: &Firing, now_ms: i64) -> Result<Fired, StoreError> {
    let (tenant, name) = (firing.tenant.0, firing.name.as_str());
    let query =
        "UPDATE schedule SET next_ms = ?4 WHERE tenant = ?1 AND name = ?2 AND next_ms = ?3 RETURNING 1";
    let query = sqlx::query(query).bind(tenant).bind(name).bind(firing.due_ms).bind(firing.next_ms);
    if session.rows(query).await?.is_empty() {
        return Ok(Fired::NotDue);
    }
    let answer = match &firing.occurrence {
        Some((_, Ok(wanted))) => submit::enqueue(session, &[(wanted, now_ms)]).await?.pop(),
        _ => None,
    };
    if let Some(last) = noted(firing, answer.as_ref()) {
        let (at_ms, task, code, message) = columns(Some(last));
        let query = "UPDATE schedule SET last_ms = ?3, last_task = ?4, last_code = ?5, last_message = ?6
            WHERE tenant = ?1 AND name = ?2";
        let query = sqlx::query(query).bind(tenant).bind(name).bind(at_ms).bind(task).bind(code);
        session.run(query.bind(message)).await?;
    }
    Ok(answer.map_or(Fired::Noted, Fired::Submitted))
}

fn read(row: &SqliteRow) -> Result<Schedule, StoreError> {
    let input = Payload {
        content_type: read_type(row.try_get(3).map_err(store_error)?),
        bytes: Bytes::from(row.try_get::<Vec<u8>, _>(4).map_err(store_error)?),
    };
    let definition: &str = row.try_get(2).map_err(store_error)?;
    let (recurrence, task) = decode(definition, input).map_err(undecodable)?;
    let of_last = || Ok((row.try_get(8)?, row.try_get(9)?, row.try_get(10)?, row.try_get(11)?));
    Ok(Schedule {
        tenant: TenantId(row.try_get(0).map_err(store_error)?),
        name: read_name(row, 1, "schedule name")?,
        recurrence,
        task,
        created_ms: row.try_get(5).map_err(store_error)?,
        paused_ms: row.try_get(6).map_err(store_error)?,
        next_ms: row.try_get(7).map_err(store_error)?,
        last: last(of_last().map_err(store_error)?),
    })
}
