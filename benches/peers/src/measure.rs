//! What every side is asked for, and how it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// What a side is to do.
pub enum Plan {
    /// So many jobs, submitted in bulk.
    Bulk(u64),
    /// So many jobs a second for so long, one at a time.
    Rate { per_second: u64, seconds: u64 },
}

impl Plan {
    /// Reads the command line.
    pub fn read(mut words: impl Iterator<Item = String>) -> Result<Plan> {
        let (mut tasks, mut rate, mut seconds) = (None, None, 10);
        while let Some(word) = words.next() {
            let number: u64 = words.next().with_context(|| format!("{word} needs a number"))?.parse()?;
            match word.as_str() {
                "--tasks" => tasks = Some(number),
                "--rate" => rate = Some(number),
                "--seconds" => seconds = number,
                other => bail!("there is no option `{other}`"),
            }
        }
        match (tasks, rate) {
            (Some(tasks), None) => Ok(Plan::Bulk(tasks)),
            (None, Some(per_second)) => Ok(Plan::Rate { per_second, seconds }),
            _ => bail!("either --tasks or --rate"),
        }
    }
}

/// What handlers write and the measurement reads.
#[derive(Clone, Debug, Default)]
pub struct Ran(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    count: AtomicU64,
    /// When each job was submitted, by its number.
    submitted: Mutex<Vec<Instant>>,
    latencies_us: Mutex<Vec<u64>>,
}

impl Ran {
    /// A job runs; with a rate its latency is noted.
    pub fn note(&self, number: u64) {
        let submitted = self.0.submitted.lock().unwrap().get(number as usize).copied();
        if let Some(submitted) = submitted {
            self.0.latencies_us.lock().unwrap().push(submitted.elapsed().as_micros() as u64);
        }
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until so many have run.
    pub async fn wait(&self, count: u64) {
        while self.0.count.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Calls `submit` with a number at every tick.
    pub async fn at_rate(
        &self,
        per_second: u64,
        seconds: u64,
        mut submit: impl AsyncFnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second as f64));
        for number in 0..per_second * seconds {
            ticks.tick().await;
            self.0.submitted.lock().unwrap().push(Instant::now());
            submit(number).await?;
        }
        self.wait(per_second * seconds).await;
        let mut sorted = std::mem::take(&mut *self.0.latencies_us.lock().unwrap());
        sorted.sort_unstable();
        let at = |percent: usize| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)] as f64 / 1e3;
        println!(
            r#"{{"tasks":{},"latency_p50_ms":{:.3},"latency_p99_ms":{:.3}}}"#,
            sorted.len(),
            at(50),
            at(99)
        );
        Ok(())
    }
}

/// A measurement from the first submit to the last end.
pub struct Clock {
    start: Instant,
    cpu: Duration,
    submitted: Option<Duration>,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { start: Instant::now(), cpu: cpu(), submitted: None }
    }

    /// Everything is submitted.
    pub fn submitted(&mut self) {
        self.submitted = Some(self.start.elapsed());
    }

    /// Everything has ended: says so.
    pub fn print(&self, tasks: u64) {
        let (whole, submit) =
            (self.start.elapsed().as_secs_f64(), self.submitted.unwrap_or_default().as_secs_f64());
        let per_second = |seconds: f64| tasks as f64 / seconds;
        println!(
            r#"{{"tasks":{tasks},"tasks_per_s":{:.0},"submits_per_s":{:.0},"ends_per_s":{:.0},"cpu_us":{:.2}}}"#,
            per_second(whole),
            per_second(submit),
            per_second(whole - submit),
            (cpu() - self.cpu).as_secs_f64() * 1e6 / tasks as f64,
        );
    }
}

/// Processor time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
