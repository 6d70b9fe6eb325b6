//! `keiko serve`.

use std::io::IsTerminal;
use std::process::ExitCode;

use keiko_core::code::Code;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::config::Settings;
use super::exit::{self, Failure};
use super::print;
use crate::config::{Config, LogFormat};
use crate::wiring::{Host, StartError};

/// What `--help` says.
pub(super) const ABOUT: &str = "\
Run a host: store tasks, run plugins, answer HTTP.

Without a configuration there is one tenant, `default`, who needs no token; then only this machine can reach the \
host. Settings come from defaults, keiko.toml, the environment (KEIKO_HOST__WORKERS=4 is `workers` of [host]) and \
flags; `keiko config` shows all of them.

The first SIGTERM or SIGINT (Ctrl-C) drains: no new tasks, running attempts may finish, the rest goes back to the \
queue. The second ends at once.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn serve(arguments: Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.settings.config()?;
    start_log(&config);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().thread_name("keiko").max_blocking_threads(config.blocking_max).build();
    let runtime = runtime.map_err(|error| Failure::Host(format!("no threads: {error}")))?;
    runtime.block_on(serve_until_told(config))
}

async fn serve_until_told(config: Config) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::Host(format!("no signals: {error}")))?;
    let data_dir = config.data_dir.clone();
    let host = Host::builder().config(config).build().await.map_err(|error| match error {
        StartError::Exposed(_) => Failure::Usage(error.to_string()),
        // A setting that does not go with this machine.
        StartError::Runtime(ref runtime) if runtime.code == Code::InvalidInput => {
            Failure::Usage(error.to_string())
        }
        error => Failure::Host(error.to_string()),
    })?;
    if let Some(address) = host.address() {
        print::note(&format!("keiko: ready on http://{address}, data in {}", data_dir.display()));
    }
    signals.next().await;
    tracing::info!("draining; another signal ends at once");
    tokio::select! {
        report = host.drain() => {
            tracing::info!(finished = report.finished, handed_back = report.handed_back, "stopped");
            Ok(ExitCode::SUCCESS)
        }
        () = signals.next() => {
            tracing::warn!("ended before the drain was over");
            // Without this, the threads that run guests would be waited for.
            std::process::exit(i32::from(exit::FAILED));
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn start_log(config: &Config) {
    // The filter was parsed when the configuration was checked.
    let filter = config.log.parse::<EnvFilter>().unwrap_or_default();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Failing means that there is a log already, which an embedder's would be.
    let _ = match config.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
