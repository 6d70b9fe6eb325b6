//! `keiko config`, and the flags that it shares with `keiko serve`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::exit::Failure;
use super::print;
use crate::config::{Config, Effective, Flags, Layers, LogFormat};

/// The file that is read when none is named and there is one.
const FILE: &str = "keiko.toml";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Where a host keeps everything, on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Configuration file [default: keiko.toml in this folder, if there is one]
    #[arg(long, env = "KEIKO_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of everything the host keeps [default: data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// PostgreSQL to keep tasks in, such as postgres://keiko@db/keiko [default: SQLite in the data folder]. Others on
    /// this machine see a command line: a password is better in KEIKO_DATABASE_URL
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

/// What the command line can say about a host.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    #[command(flatten)]
    place: Place,
    /// Address to listen on; port 0 picks one [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Threads that run plugins [default: one for each processor]
    #[arg(long, value_name = "N")]
    workers: Option<u64>,
    /// Processors that these threads keep to, one each in turn: `all`, or numbers such as 0-3,6 [default: any]
    #[arg(long, value_name = "CORES")]
    worker_cores: Option<String>,
    /// Folder whose components are installed when they change [default: none]
    #[arg(long, value_name = "DIR")]
    plugins_dir: Option<String>,
    /// What to log, such as `warn` or `info,keiko_runtime=debug` [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Form of the log [default: text]
    #[arg(long, value_name = "FORM")]
    log_format: Option<LogFormat>,
}

/// A value by path, with the flag's name.
type Given = (&'static str, &'static str, Option<String>);

impl Settings {
    /// The configuration of all layers.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let format = self.log_format.map(|format| match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        });
        self.place.config_with([
            ("host.listen", "--listen", self.listen.clone()),
            ("host.workers", "--workers", self.workers.map(|workers| workers.to_string())),
            ("host.worker_cores", "--worker-cores", self.worker_cores.clone()),
            ("host.plugins_dir", "--plugins-dir", self.plugins_dir.clone()),
            ("host.log", "--log", self.log.clone()),
            ("host.log_format", "--log-format", format.map(str::to_owned)),
        ])
    }
}

impl Place {
    /// The configuration of all layers.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        self.config_with([])
    }

    fn config_with<const N: usize>(&self, more: [Given; N]) -> Result<Config, Failure> {
        let file = self.config.clone().or_else(|| Path::new(FILE).is_file().then(|| PathBuf::from(FILE)));
        let place = [
            ("host.data_dir", "--data-dir", self.data_dir.clone()),
            ("database.url", "--database", self.database.clone()),
        ];
        let given = |(path, flag, value): Given| Some((path, flag, value?));
        let flags = Flags { values: place.into_iter().chain(more).filter_map(given).collect() };
        // A variable that is not text is none of ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let environment = std::env::vars_os().filter_map(text).collect();
        let config = Config::from_layers(Layers { file, environment, flags });
        config.map_err(|error| Failure::Usage(error.to_string()))
    }
}

pub(super) fn config(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = arguments.settings.config()?;
    if arguments.json {
        let entry = |entry: &Effective| {
            let hidden = entry.value.is_null();
            json!({"path": entry.path, "value": entry.value, "hidden": hidden, "origin": entry.origin.to_string()})
        };
        let entries: Vec<Value> = config.effective.iter().map(entry).collect();
        print::out(&json!({ "settings": entries }).to_string());
    } else {
        let row = |entry: &Effective| {
            let value = match &entry.value {
                Value::Null => "(hidden)".to_owned(),
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            vec![entry.path.clone(), value, entry.origin.to_string()]
        };
        print::table(&["setting", "value", "from"], config.effective.iter().map(row).collect());
    }
    Ok(ExitCode::SUCCESS)
}
