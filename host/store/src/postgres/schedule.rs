//! Schedules: their rows, and the transaction that submits the task of an occurrence.

use async_trait::async_trait;
use bytes::Bytes;
use keiko_core::id::TenantId;
use keiko_core::name::ScheduleName;
use keiko_core::port::{Created, DueSchedules, Fired, Firing, ScheduleKey, Schedules, StoreError};
use keiko_core::schedule::Schedule;
use keiko_core::task::Payload;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::row::{get, large_count, name as read_name, stored_text};
use super::session::Session;
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
    SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE (SELECT count(*) FROM schedule WHERE tenant = $1) < $9
    ON CONFLICT DO NOTHING";

pub(crate) const LIST: &str = schedules!("WHERE tenant = $1 AND name > $2 ORDER BY name LIMIT $3");

/// Schedules that are to occur, but for those of the tenants `$3` with the names `$4`.
pub(crate) const DUE: &str = schedules!(
    "WHERE next_ms IS NOT NULL AND next_ms <= keiko_now($1)
        AND (tenant, name) NOT IN (SELECT unnest($3::bigint[]), unnest($4::text[]))
    ORDER BY next_ms LIMIT $2"
);

/// The time, and when the first of the others occurs.
pub(crate) const NEXT: &str = "SELECT keiko_now($1), (SELECT min(next_ms) FROM schedule WHERE next_ms IS NOT NULL AND next_ms > keiko_now($1))";

#[async_trait]
impl Schedules for PostgresStore {
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
        let mut connection = self.pool().tenant(tenant).await?;
        let query = sqlx::query(LIST).bind(connection.id().0).bind(after).bind(i64::from(limit));
        connection.rows(query).await?.iter().map(read).collect()
    }

    async fn schedule(&self, tenant: TenantId, name: &ScheduleName) -> Result<Option<Schedule>, StoreError> {
        let mut connection = self.pool().tenant(tenant).await?;
        let query = sqlx::query(schedules!("WHERE tenant = $1 AND name = $2"));
        let query = query.bind(connection.id().0).bind(name.as_str());
        connection.row(query).await?.as_ref().map(read).transpose()
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
                let query = sqlx::query("DELETE FROM schedule WHERE tenant = $1 AND name = $2");
                Ok(session.run(query.bind(tenant.0).bind(name.as_str())).await? > 0)
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
        let mut connection = self.pool().system().await?;
        let next = connection.row(sqlx::query(NEXT).bind(now_ms)).await?;
        let (time_ms, next_ms) = match &next {
            Some(row) => (get(row, 0)?, get(row, 1)?),
            None => (now_ms, None),
        };
        let (tenants, names): (Vec<i64>, Vec<&str>) =
            passed.iter().map(|(tenant, name)| (tenant.0, name.as_str())).unzip();
        let query = sqlx::query(DUE).bind(now_ms).bind(i64::from(limit)).bind(tenants).bind(names);
        let rows = connection.rows(query).await?;
        let key = |row: &PgRow| Ok::<ScheduleKey, StoreError>((TenantId(get(row, 0)?), get(row, 1)?));
        let rows: Result<Vec<_>, StoreError> = rows.iter().map(|row| Ok((key(row)?, read(row)))).collect();
        Ok(due(rows?, time_ms, next_ms))
    }

    async fn fire(&self, firing: Firing, now_ms: i64) -> Result<Fired, StoreError> {
        let _writing = self.pool().writing([firing.tenant]);
        self.write(Priority::Task, 0, firing, move |session, firing| Box::pin(fire(session, firing, now_ms)))
            .await
    }
}

async fn create(session: &mut Session, schedule: &Schedule, count_max: u64) -> Result<Created, StoreError> {
    let (tenant, name, input) = (schedule.tenant, schedule.name.as_str(), &schedule.task.input);
    // One after the other, so that their number is exact.
    submit::lock_tenants(session, [tenant].into(), schedule.created_ms).await?;
    let query = sqlx::query(INSERT).bind(tenant.0).bind(name).bind(stored_text(&encode(schedule)));
    let query = query.bind(stored_type(input).map(stored_text)).bind(&input.bytes[..]);
    let query = query.bind(schedule.created_ms).bind(schedule.paused_ms).bind(schedule.next_ms);
    if session.run(query.bind(i64::try_from(count_max).unwrap_or(i64::MAX))).await? > 0 {
        return Ok(Created::Stored);
    }
    let query = "SELECT count(*), coalesce(bool_or(name = $2), false) FROM schedule WHERE tenant = $1";
    let row = session.row(sqlx::query(query).bind(tenant.0).bind(name)).await?;
    let (count, taken) = match &row {
        Some(row) => (large_count(row, 0)?, get(row, 1)?),
        None => (0, false),
    };
    Ok(if taken { Created::Taken } else { Created::Full { count } })
}

async fn pause(
    session: &mut Session,
    tenant: TenantId,
    name: &ScheduleName,
    paused_ms: Option<i64>,
    next_ms: Option<i64>,
) -> Result<Option<bool>, StoreError> {
    let query = "WITH changed AS (UPDATE schedule SET paused_ms = $3, next_ms = $4
            WHERE tenant = $1 AND name = $2 AND (paused_ms IS NULL) = ($3::bigint IS NOT NULL) RETURNING 1)
        SELECT EXISTS (SELECT FROM changed) FROM schedule WHERE tenant = $1 AND name = $2";
    let query = sqlx::query(query).bind(tenant.0).bind(name.as_str()).bind(paused_ms).bind(next_ms);
    session.row(query).await?.as_ref().map(|row| get(row, 0)).transpose()
}

async fn fire(session: &mut Session, firing: &Firing, now_ms: i64) -> Result<Fired, StoreError> {
    let (tenant, name) = (firing.tenant.0, firing.name.as_str());
    let query = "UPDATE schedule SET next_ms = $4 WHERE tenant = $1 AND name = $2 AND next_ms = $3";
    let query = sqlx::query(query).bind(tenant).bind(name).bind(firing.due_ms).bind(firing.next_ms);
    if session.run(query).await? == 0 {
        return Ok(Fired::NotDue);
    }
    let answer = match &firing.occurrence {
        Some((_, Ok(wanted))) => submit::enqueue(session, &[(wanted, now_ms)]).await?.pop(),
        _ => None,
    };
    if let Some(last) = noted(firing, answer.as_ref()) {
        let (at_ms, task, code, message) = columns(Some(last));
        let query = "UPDATE schedule SET last_ms = $3, last_task = $4, last_code = $5, last_message = $6
            WHERE tenant = $1 AND name = $2";
        let query = sqlx::query(query).bind(tenant).bind(name).bind(at_ms).bind(task).bind(code);
        session.run(query.bind(message.as_deref().map(stored_text))).await?;
    }
    Ok(answer.map_or(Fired::Noted, Fired::Submitted))
}

fn read(row: &PgRow) -> Result<Schedule, StoreError> {
    let input =
        Payload { content_type: read_type(get(row, 3)?), bytes: Bytes::from(get::<Vec<u8>>(row, 4)?) };
    let (recurrence, task) = decode(get(row, 2)?, input).map_err(undecodable)?;
    Ok(Schedule {
        tenant: TenantId(get(row, 0)?),
        name: read_name(row, 1, "schedule name")?,
        recurrence,
        task,
        created_ms: get(row, 5)?,
        paused_ms: get(row, 6)?,
        next_ms: get(row, 7)?,
        last: last((get(row, 8)?, get(row, 9)?, get(row, 10)?, get(row, 11)?)),
    })
}
