//! A `keiko serve` process of our own: started, killed, restarted on the same data.
//!
//! Only processes that were started here are ever signalled, by the handle that started them. Dropping a
//! [`Host`] ends its process.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::postgres::Database;
use crate::{Client, Engine, tree, wait};

/// A dev build on a busy machine needs a second; recovery of a long history some more.
const START_MAX: Duration = Duration::from_secs(60);
/// Longer than the host's own drain time.
const STOP_MAX: Duration = Duration::from_secs(45);

/// How to start a host.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program.
    pub program: PathBuf,
    /// Its data.
    pub data_dir: PathBuf,
    /// Where its tasks are; gone with the last host that has it.
    pub engine: Arc<Engine>,
    /// Where it listens; port 0 takes a free one.
    pub listen: String,
    /// Further arguments of `keiko serve`.
    pub arguments: Vec<OsString>,
    /// Where its log goes, by appending.
    pub log: PathBuf,
    /// The named point at which the host kills itself, and at which pass: `batch-formed:3`.
    pub kill_at: Option<String>,
    /// Whether a terminal's Ctrl-C leaves it alone, because whoever started it passes signals on.
    pub apart: bool,
}

impl Options {
    /// The program beside the running test, on a free port, with everything under `folder` and its tasks where this run
    /// of the tests has them.
    pub fn in_folder(folder: &Path) -> Result<Options> {
        Options::of(tree::program()?, folder)
    }

    /// The same with another program.
    pub fn of(program: PathBuf, folder: &Path) -> Result<Options> {
        Ok(Options {
            program,
            data_dir: folder.join("data"),
            engine: Arc::new(Engine::of_this_run()?),
            listen: "127.0.0.1:0".to_owned(),
            arguments: Vec::new(),
            log: folder.join("host.log"),
            kill_at: None,
            apart: false,
        })
    }

    /// The same with its tasks in this database, whichever engine this run of the tests is on: for hosts that share one.
    pub fn on(mut self, database: &Arc<Database>) -> Options {
        self.engine = Arc::new(Engine::Postgres(Arc::clone(database)));
        self
    }

    /// The same with a configuration file of this text.
    pub fn with_config(mut self, text: &str) -> Result<Options> {
        let path = self.log.with_file_name("keiko.toml");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        self.arguments.extend(["--config".into(), path.into()]);
        Ok(self)
    }
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    options: Options,
    child: Child,
    client: Client,
}

impl Host {
    /// Starts a host and waits until it is ready.
    pub fn start(options: Options) -> Result<Host> {
        let child = spawn(&options)?;
        let mut host = Host { options, child, client: Client::new("") };
        host.wait_ready()?;
        Ok(host)
    }

    /// A client without a token; it follows this host through restarts.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its data folder.
    pub fn data_dir(&self) -> &Path {
        &self.options.data_dir
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.options.log
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the host")?;
        self.child.wait().context("wait for the killed host")?;
        Ok(())
    }

    /// Sends SIGTERM and does not wait.
    pub fn ask_to_stop(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGINT, as Ctrl-C does, and does not wait.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Sends SIGSTOP: the process does nothing until [`Host::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Sends SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until the process has ended by itself.
    pub fn wait_stopped(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait::until("the host to stop", STOP_MAX, || Ok(child.try_wait()?))
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("look at the host")
    }

    /// SIGTERM, then waits.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.ask_to_stop()?;
        self.wait_stopped()
    }

    /// Starts again on the same data, after the process has ended, and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.spawn_again()?;
        self.wait_ready()
    }

    /// Starts again, to die at this point, which it may reach before it is ready.
    pub fn start_again_until(&mut self, kill_at: Option<String>) -> Result<()> {
        self.options.kill_at = kill_at;
        let ready = self.start_again();
        let killed = |status: ExitStatus| status.signal() == Some(Signal::KILL.as_raw());
        if self.options.kill_at.is_some() && self.ended()?.is_some_and(killed) { Ok(()) } else { ready }
    }

    /// Starts again and does not wait: for kills while it starts.
    pub fn spawn_again(&mut self) -> Result<()> {
        if self.is_running()? {
            bail!("the host still runs");
        }
        self.child = spawn(&self.options)?;
        Ok(())
    }

    /// Bytes of memory that are resident now, and the most that ever were.
    pub fn memory_bytes(&self) -> Result<(u64, u64)> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).context("the host's memory")?;
        Ok((kibibytes(&status, "VmRSS:")? << 10, kibibytes(&status, "VmHWM:")? << 10))
    }

    /// Forgets how much memory was ever resident: the most is that since now.
    pub fn forget_memory_peak(&self) -> Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").context("forget the host's peak of memory")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("the host's process id")?;
        kill_process(pid, signal).context("signal the host")
    }

    fn wait_ready(&mut self) -> Result<()> {
        let file = address_file(&self.options);
        let Host { child, client, options } = self;
        wait::until("the host to be ready", START_MAX, || {
            if let Some(status) = child.try_wait()? {
                bail!("the host ended while it started ({status}):\n{}", tail(&options.log));
            }
            let Ok(address) = fs::read_to_string(&file) else { return Ok(None) };
            client.moved_to(address.trim());
            Ok(client.get("/readyz").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })
        .with_context(|| format!("the host's log ends with:\n{}", tail(&options.log)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(options: &Options) -> Result<Child> {
    fs::create_dir_all(&options.data_dir)
        .with_context(|| format!("create {}", options.data_dir.display()))?;
    // One that a killed host left behind would be taken for the new one's.
    match fs::remove_file(address_file(options)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context("the old address file");
        }
        _ => {}
    }
    let log = OpenOptions::new().create(true).append(true).open(&options.log);
    let log = log.with_context(|| format!("open {}", options.log.display()))?;
    let mut command = Command::new(&options.program);
    command.arg("serve").arg("--data-dir").arg(&options.data_dir).arg("--listen").arg(&options.listen);
    if options.apart {
        command.process_group(0);
    }
    command.envs(options.engine.environment());
    if let Some(kill_at) = &options.kill_at {
        command.env("KEIKO_KILL_AT", kill_at);
    }
    command.args(&options.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {}", options.program.display()))
}

fn address_file(options: &Options) -> PathBuf {
    options.data_dir.join("keiko.address")
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn kibibytes(status: &str, field: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|text| text.parse().ok());
    number.with_context(|| format!("no {field} in the host's status"))
}
