//! How fast tasks go through a store, with nothing around it: submit, lease, settle, in batches. The embedded store, or
//! the one in the database of `--postgres`, which should be empty.
//!
//! `cargo run --release -p keiko-store --example throughput -- [tasks] [batch] [tenants] [--postgres URL]`

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement for a person, by the real clock"
)]

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use keiko_core::catalog::{Installed, NewVersion};
use keiko_core::id::{Digest, KindId, TaskId, TenantId};
use keiko_core::manifest::Manifest;
use keiko_core::outcome::{Meter, Taint};
use keiko_core::policy::BudgetRequest;
use keiko_core::port::{CatalogStore, LeaseRequest, TaskStore};
use keiko_core::priority::Priority;
use keiko_core::task::{
    AttemptRecord, LeasedTask, Lineage, NewTask, Payload, Settlement, Submit, Transition,
};
use keiko_store::postgres::{PostgresOptions, PostgresStore};
use keiko_store::sqlite::{SqliteOptions, SqliteStore, WriterCounts};

const NOW: i64 = 1_800_000_000_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = arguments.iter().position(|argument| argument == "--postgres");
    let url = at.map(|at| arguments.drain(at..).nth(1).ok_or("--postgres needs a URL")).transpose()?;
    let mut numbers = arguments.iter().map(|text| text.parse::<u32>());
    let mut number = |default| numbers.next().transpose().map(|given| given.unwrap_or(default));
    let (tasks, batch, tenants) = (number(50_000)?, number(500)?, number(1)?);
    if let Some(url) = url {
        let store = PostgresStore::open(PostgresOptions::new(url)).await?;
        measure(&store, &|| store.writer_counts(), tasks, batch, tenants).await?;
        store.close().await?;
    } else {
        let folder = tempfile::tempdir()?;
        let options = SqliteOptions { data_dir: folder.path().to_owned(), readers: 2, statement_log: false };
        let store = SqliteStore::open(options).await?;
        measure(&store, &|| store.writer_counts(), tasks, batch, tenants).await?;
        store.close().await?;
    }
    Ok(())
}

/// A store of either kind.
trait Store: TaskStore + CatalogStore {}
impl<S: TaskStore + CatalogStore> Store for S {}

async fn measure(
    store: &dyn Store,
    counts: &dyn Fn() -> WriterCounts,
    tasks: u32,
    batch: u32,
    tenants: u32,
) -> Result<(), Box<dyn Error>> {
    let mut customers = Vec::new();
    for at in 0..tenants {
        customers.push(customer(store, &format!("t{at}")).await?);
    }
    phase(counts, "submit", tasks, submit(store, &customers, tasks, batch)).await?;
    phase(counts, "lease + settle", tasks, drain(store, batch)).await
}

/// Runs `work` and says what it took.
async fn phase(
    counted: &dyn Fn() -> WriterCounts,
    name: &str,
    tasks: u32,
    work: impl Future<Output = Result<(), Box<dyn Error>>>,
) -> Result<(), Box<dyn Error>> {
    let (counts, cpu, start) = (counted(), cpu_us()?, Instant::now());
    work.await?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_us()? - cpu);
    let (after, tasks) = (counted(), f64::from(tasks));
    println!(
        "{name}: {:.0} tasks/s, {:.1} us CPU per task, {:.4} statements and {:.4} commits per task",
        tasks / seconds,
        cpu as f64 / tasks,
        (after.statements - counts.statements) as f64 / tasks,
        (after.transactions - counts.transactions) as f64 / tasks,
    );
    Ok(())
}

async fn customer(store: &dyn Store, name: &str) -> Result<(TenantId, KindId), Box<dyn Error>> {
    let tenant = store.ensure_tenants(&[name.parse()?]).await?[0].id;
    let manifest = "[plugin]\nname = \"p\"\nversion = \"1\"\n[[kind]]\nname = \"run\"\n";
    let manifest = Manifest::parse(manifest.as_bytes())?.into();
    let version = NewVersion { tenant, digest: Digest([1; 32]), component_bytes: 1, manifest };
    let Installed::Current(plugin) = store.install(version, NOW).await? else { return Err("not new".into()) };
    Ok((tenant, plugin.kinds[&"run".parse()?]))
}

async fn submit(
    store: &dyn Store,
    customers: &[(TenantId, KindId)],
    tasks: u32,
    batch: u32,
) -> Result<(), Box<dyn Error>> {
    for at in 0..tasks / batch {
        let (tenant, kind) = customers[at as usize % customers.len()];
        let first = store.reserve_ids(batch, NOW).await?.first.0;
        let task = |id| NewTask {
            id: TaskId(id),
            kind,
            input: Payload::json(r#"{"title":"Alien","year":1979}"#),
            created_ms: NOW,
            run_at_ms: NOW,
            priority: Priority::default(),
            budget: BudgetRequest::default(),
            lineage: Lineage::root(TaskId(id)),
            agent: None,
            user: None,
            trace: None,
            group: None,
            held: false,
            tree_end_ms: None,
            slot_key: None,
            once: None,
        };
        let tasks = (first..first + i64::from(batch)).map(task).collect();
        let submit = Submit { tenant, tasks, key: None, queue_max: u64::MAX, group: None };
        store.enqueue(vec![submit], NOW).await?;
    }
    Ok(())
}

async fn drain(store: &dyn Store, batch: u32) -> Result<(), Box<dyn Error>> {
    let holder = store.open_holder(NOW, 30_000).await?;
    let mut after = None;
    loop {
        let request = LeaseRequest {
            holder,
            room: batch as usize,
            caps: HashMap::new(),
            cap_default: usize::MAX,
            slots: Default::default(),
            after,
            expects: true,
            lease_ms: 30_000,
            now_ms: NOW,
        };
        let lease = store.lease(request).await?;
        if lease.tasks.is_empty() {
            return Ok(());
        }
        after = lease.after;
        store.settle(holder, lease.tasks.iter().map(complete).collect(), NOW).await?;
    }
}

fn complete(task: &LeasedTask) -> Settlement {
    Settlement {
        id: task.id,
        tenant: task.tenant,
        token: task.token,
        transition: Transition::Complete(Payload::json(r#"{"ok":true,"score":8.5}"#)),
        attempt: AttemptRecord {
            number: task.attempts + 1,
            started_ms: NOW,
            meter: Meter { fuel_used: 12_345, memory_bytes_peak: 131_072, host_calls: 3, elapsed_us: 900 },
            taint: Taint::NONE,
            effects: 0,
            version: None,
            memoized_from: None,
            canary: None,
        },
        effects: Default::default(),
        log: Default::default(),
        charge: None,
        group: task.group,
        segment: task.segment,
    }
}

/// CPU time of this process so far, all threads, in microseconds (at the kernel's 100 ticks a second).
fn cpu_us() -> Result<u64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks * 10_000)
}
