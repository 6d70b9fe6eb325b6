//! `keiko db`: what an operator does with a database, beside the host or without one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use keiko_core::TenantName;
use keiko_core::port::{Clock, StoreError};
use keiko_core::retention::KeptFrom;
use keiko_runtime::Retention;
use keiko_store::admin::{AdminError, Finding, Status, TenantStatus};
use keiko_store::{postgres, sqlite};
use serde_json::{Value, json};

use super::config::Place;
use super::exit::{self, Failure};
use super::print;
use crate::api::time;
use crate::config::Config;
use crate::store::{Seams, Store, postgres_options, with_causes};
use crate::wiring::SystemClock;

/// A day of retention.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Bring the database to this program's schema, as a host does when it starts
    Migrate(Arguments),
    /// Show engine, schema, sizes, tasks and hosts
    Status(Arguments),
    /// Look whether the database holds together; exit status 1 when it does not
    #[command(long_about = CHECK)]
    Check(Arguments),
    /// Forget ended tasks that are older than the configuration keeps them, as a host does every ten minutes
    #[command(long_about = PRUNE)]
    Prune {
        /// Days that completed tasks are kept, instead of the configuration's; 0 is for ever
        #[arg(long, value_name = "DAYS")]
        completed_days: Option<u32>,
        /// Days that failed tasks are kept
        #[arg(long, value_name = "DAYS")]
        failed_days: Option<u32>,
        /// Days that cancelled tasks are kept
        #[arg(long, value_name = "DAYS")]
        cancelled_days: Option<u32>,
        #[command(flatten)]
        arguments: Arguments,
    },
    /// Copy an embedded database into a folder, while a host works with it or not
    #[command(long_about = BACKUP)]
    Backup {
        /// A folder that is empty, or is made
        folder: PathBuf,
        #[command(flatten)]
        arguments: Arguments,
    },
}

const CHECK: &str = "\
Look whether the database holds together: counts equal a recount, no task is there twice, results, attempts, logs and \
inputs belong to tasks, leases belong to hosts, files and indexes are sound. The exit status is 1 when a rule is broken.

An embedded database is looked at while no host has it; PostgreSQL at any time.";

const PRUNE: &str = "\
Forget ended tasks that are older than the configuration keeps them ([retention]), with their attempts and logs, in small \
batches. An embedded database is pruned while no host has it, and by its host otherwise; PostgreSQL at any time.";

/// Ended tasks that are looked at in one transaction.
const PRUNE_COUNT: u32 = 1_000;

const BACKUP: &str = "\
Copy the embedded database into an empty folder: keiko.db with the tasks, then components.db with the components. Each is \
a copy of one moment, and a host may go on meanwhile: every component that the tasks' copy names is in the other one. \
To restore, stop the host and put both files into a data folder without keiko.db, keiko.db-wal, components.db and \
components.db-wal.

PostgreSQL has pg_dump for this.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn db(command: Command) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Host(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        match command {
            Command::Migrate(arguments) => migrate(&arguments).await,
            Command::Status(arguments) => show_status(&arguments).await,
            Command::Check(arguments) => check(&arguments).await,
            Command::Prune { completed_days, failed_days, cancelled_days, arguments } => {
                prune([completed_days, failed_days, cancelled_days], &arguments).await
            }
            Command::Backup { folder, arguments } => backup(folder, &arguments).await,
        }
    })
}

async fn migrate(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.place.config()?;
    let before = match status(&config).await {
        Ok(status) => status.schema,
        Err(AdminError::Missing(_)) => 0,
        Err(error) => return Err(failed(&error)),
    };
    let store = Store::open(&config).await.map_err(|error| Failure::Host(error.to_string()))?;
    store.close().await.map_err(|error| Failure::Host(with_causes(&error)))?;
    let after = status(&config).await.map_err(|error| failed(&error))?.schema;
    match arguments.json {
        true => print::out(&json!({"schema_before": before, "schema": after}).to_string()),
        false if before == after => print::out(&format!("the schema is {after} already")),
        false => print::out(&format!("the schema was {before} and is {after}")),
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_status(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let status = status(&arguments.place.config()?).await.map_err(|error| failed(&error))?;
    if arguments.json {
        print::out(&status_json(&status).to_string());
    } else {
        print_status(&status);
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(config: &Config) -> Result<Status, AdminError> {
    match postgres_options(&config.database) {
        Some(options) => postgres::admin::status(&options).await,
        None => sqlite::admin::status(&config.data_dir).await,
    }
}

async fn check(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.place.config()?;
    let findings = match postgres_options(&config.database) {
        Some(options) => postgres::admin::check(&options).await,
        None => sqlite::admin::check(&config.data_dir).await,
    };
    let findings = findings.map_err(|error| failed(&error))?;
    let broken: Vec<&Finding> = findings.iter().filter(|finding| finding.broken > 0).collect();
    if arguments.json {
        let rule = |finding: &Finding| json!({"rule": finding.rule, "broken": finding.broken});
        let rules: Vec<Value> = findings.iter().map(rule).collect();
        print::out(&json!({"rules": rules, "rules_broken": broken.len()}).to_string());
    } else {
        for finding in &broken {
            print::out(&format!("broken {} times: {}", print::thousands(finding.broken), finding.rule));
        }
        print::out(&format!("{} of {} rules hold", findings.len() - broken.len(), findings.len()));
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
}

async fn prune(days: [Option<u32>; 3], arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.place.config()?;
    let kept = |asked: Option<u32>, configured: Option<Duration>| match asked {
        Some(0) => None,
        Some(days) => Some(DAY * days),
        None => configured,
    };
    let retention = Retention {
        completed: kept(days[0], config.retention.completed),
        failed: kept(days[1], config.retention.failed),
        cancelled: kept(days[2], config.retention.cancelled),
    };
    let tenants = status(&config).await.map_err(|error| failed(&error))?.tenants;
    let store = Store::open_beside(&config).await.map_err(|error| Failure::Host(error.to_string()))?;
    let outcome = prune_all(&store, &tenants, retention.kept_from(SystemClock.now_ms())).await;
    let closed = store.close().await;
    let forgotten = outcome.and_then(|forgotten| closed.map(|()| forgotten));
    let forgotten = forgotten.map_err(|error| Failure::Host(with_causes(&error)))?;
    match arguments.json {
        true => print::out(&json!({ "forgotten": forgotten }).to_string()),
        false => print::out(&format!("{} ended tasks were forgotten", print::thousands(forgotten))),
    }
    Ok(ExitCode::SUCCESS)
}

async fn prune_all(store: &Store, tenants: &[TenantStatus], kept: KeptFrom) -> Result<u64, StoreError> {
    let Seams { tasks, catalog, .. } = store.seams();
    let names: Vec<TenantName> = tenants.iter().filter_map(|tenant| tenant.name.parse().ok()).collect();
    let mut forgotten = 0;
    for tenant in catalog.ensure_tenants(&names).await? {
        let mut after = None;
        loop {
            let round = tasks.prune_finished(tenant.id, kept, after, PRUNE_COUNT).await?;
            forgotten += round.pruned;
            after = round.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(forgotten)
}

async fn backup(folder: PathBuf, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.place.config()?;
    if config.database.url.is_some() {
        let text = "this copies an embedded database; PostgreSQL has its own tool: \
                    pg_dump --format=custom --file=keiko.dump URL, and pg_restore";
        return Err(Failure::Usage(text.to_owned()));
    }
    let copied = sqlite::admin::backup(&config.data_dir, &folder).await.map_err(|error| failed(&error))?;
    if arguments.json {
        let file = |(path, bytes): &(PathBuf, u64)| json!({"path": path, "bytes": bytes});
        print::out(&json!({ "files": copied.iter().map(file).collect::<Vec<_>>() }).to_string());
    } else {
        for (path, bytes) in copied {
            print::out(&format!("{} {}", path.display(), print::size(bytes)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whose fault it is: the command line's, or the database's.
fn failed(error: &AdminError) -> Failure {
    let text = with_causes(error);
    match error {
        AdminError::Missing(_) | AdminError::Taken(_) | AdminError::Folder { .. } => Failure::Usage(text),
        AdminError::Sqlite(_)
        | AdminError::Postgres(_)
        | AdminError::Schema { .. }
        | AdminError::Database(_) => Failure::Host(text),
    }
}

fn status_json(status: &Status) -> Value {
    let sizes: serde_json::Map<String, Value> =
        status.sizes.iter().map(|(name, bytes)| (name.clone(), Value::from(*bytes))).collect();
    let tenants = status.tenants.iter().map(|tenant| {
        json!({
            "name": tenant.name,
            "live": tenant.live,
            "completed": tenant.completed,
            "failed": tenant.failed,
            "cancelled": tenant.cancelled,
        })
    });
    let holders = status.holders.iter().map(|holder| {
        json!({
            "holder": holder.id,
            "opened_at": time(holder.opened_ms),
            "until": time(holder.until_ms),
            "running": holder.running,
        })
    });
    json!({
        "engine": status.engine,
        "version": status.version,
        "schema": status.schema,
        "schema_known": status.schema_known,
        "bytes": sizes,
        "tenants": tenants.collect::<Vec<_>>(),
        "holders": holders.collect::<Vec<_>>(),
    })
}

fn print_status(status: &Status) {
    let row = |name: &str, text: String| print::out(&format!("{name:<12}{text}"));
    let sum = |count: fn(&TenantStatus) -> u64| print::thousands(status.tenants.iter().map(count).sum());
    row("engine", format!("{} {}", status.engine, status.version));
    row("schema", format!("{} (this program's is {})", status.schema, status.schema_known));
    for (name, bytes) in &status.sizes {
        row("size", format!("{name} {}", print::size(*bytes)));
    }
    row("tenants", print::thousands(status.tenants.len() as u64));
    row("live", sum(|tenant| tenant.live));
    row("completed", sum(|tenant| tenant.completed));
    row("failed", sum(|tenant| tenant.failed));
    row("cancelled", sum(|tenant| tenant.cancelled));
    for holder in &status.holders {
        let (opened, until) = (time(holder.opened_ms), time(holder.until_ms));
        let text = format!("{} since {opened}, until {until}: {} tasks", holder.id, holder.running);
        row("holder", text);
    }
}
