//! graphile_worker, with the settings of its own benchmark of throughput: a local queue, and ends in batches.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, WorkerContext, WorkerOptions,
};
use serde::{Deserialize, Serialize};

use crate::measure::{Clock, Plan, Ran};

/// Jobs of one submit.
const BATCH: u64 = 1_000;

#[derive(Deserialize, Serialize)]
struct Noop {
    number: u64,
}

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        if let Some(ran) = context.get_ext::<Ran>() {
            ran.note(self.number);
        }
        Ok::<(), String>(())
    }
}

pub async fn run(plan: &Plan) -> Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL")?;
    let ran = Ran::default();
    let options = WorkerOptions::default()
        .database_url(&url)
        .max_pg_conn(10)
        .schema("graphile_worker")
        .listen_os_shutdown_signals(false)
        .add_extension(ran.clone())
        .define_job::<Noop>();
    let options = match plan {
        Plan::Bulk(_) => options
            .concurrency(500)
            .poll_interval(Duration::from_millis(5))
            .complete_job_batch_delay(Duration::from_millis(5))
            .local_queue(LocalQueueConfig::default().with_size(5_000)),
        Plan::Rate { .. } => options.concurrency(10),
    };
    let worker = Arc::new(options.init().await?);
    let utils = worker.create_utils();
    let job = |number| RawJobSpec {
        identifier: "noop".to_owned(),
        payload: serde_json::json!({ "number": number }),
        spec: JobSpec::default(),
    };
    match *plan {
        Plan::Bulk(tasks) => {
            let mut clock = Clock::start();
            for first in (0..tasks).step_by(BATCH as usize) {
                let jobs: Vec<_> = (first..tasks.min(first + BATCH)).map(job).collect();
                utils.add_raw_jobs(&jobs).await?;
            }
            clock.submitted();
            let working = tokio::spawn({
                let worker = Arc::clone(&worker);
                async move { worker.run().await }
            });
            ran.wait(tasks).await;
            // Ends that are still in its batch are written before it stops.
            worker.request_shutdown();
            working.await??;
            clock.print(tasks);
        }
        Plan::Rate { per_second, seconds } => {
            let working = tokio::spawn({
                let worker = Arc::clone(&worker);
                async move { worker.run().await }
            });
            let submit = async |number| {
                utils.add_job(Noop { number }, JobSpec::default()).await?;
                Ok(())
            };
            ran.at_rate(per_second, seconds, submit).await?;
            worker.request_shutdown();
            working.await??;
        }
    }
    Ok(())
}
