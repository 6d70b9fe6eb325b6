//! apalis on PostgreSQL: tasks in batches, each run on a task of the runtime.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use sqlx::postgres::PgPoolOptions;

use crate::measure::{Clock, Plan, Ran};

/// Jobs of one submit, and of one fetch.
const BATCH: usize = 1_000;

async fn noop(number: u64, ran: Data<Ran>) -> Result<(), BoxDynError> {
    ran.note(number);
    Ok(())
}

pub async fn run(plan: &Plan) -> Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL")?;
    let pool = PgPoolOptions::new().max_connections(10).connect(&url).await?;
    PostgresStorage::setup(&pool).await.map_err(|error| anyhow!("{error}"))?;
    let ran = Ran::default();
    let batch = if matches!(plan, Plan::Bulk(_)) { BATCH } else { 10 };
    let config = Config::default().queue("noop").batch_size(batch);
    let mut backend = PostgresStorage::new(&pool).with_config(config.clone());
    match *plan {
        Plan::Bulk(tasks) => {
            let mut clock = Clock::start();
            for first in (0..tasks).step_by(BATCH) {
                let numbers: Vec<u64> = (first..tasks.min(first + BATCH as u64)).collect();
                backend.push_bulk(numbers).await.map_err(|error| anyhow!("{error}"))?;
            }
            clock.submitted();
            let worker = WorkerBuilder::new("peers")
                .backend(backend)
                .data(ran.clone())
                .parallelize(tokio::spawn)
                .build(noop);
            let working = tokio::spawn(worker.run());
            ran.wait(tasks).await;
            while done(&pool).await? < tasks {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            clock.print(tasks);
            working.abort();
        }
        Plan::Rate { per_second, seconds } => {
            let listening = PostgresStorage::new(&pool).with_config(config).with_pubsub();
            let worker = WorkerBuilder::new("peers")
                .backend(listening)
                .data(ran.clone())
                .parallelize(tokio::spawn)
                .build(noop);
            let working = tokio::spawn(worker.run());
            let submit = async |number| backend.push(number).await.map_err(|error| anyhow!("{error}"));
            ran.at_rate(per_second, seconds, submit).await?;
            working.abort();
        }
    }
    Ok(())
}

/// Jobs whose end is stored.
async fn done(pool: &PgPool) -> Result<u64> {
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM apalis.jobs WHERE status = 'Done'").fetch_one(pool).await?;
    Ok(count as u64)
}
