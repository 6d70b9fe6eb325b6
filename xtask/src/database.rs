//! The PostgreSQL server that tests and checks use: the one `KEIKO_TEST_POSTGRES` names, or a cluster of our own that
//! is removed when the command ends, however it ends.
//!
//! What the server is made of is found or installed early ([`Wish::ensure`]) and started when it is needed
//! ([`Found::start`]), so that what fails soonest comes first.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use keiko_tests::postgres::{self, Postgres, Programs};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use crate::arguments::Arguments;
use crate::machine::{self, Install};

/// `cargo xtask postgres`: a server for tests that are run by hand, until Ctrl-C.
pub fn serve(mut arguments: Arguments) -> Result<ExitCode> {
    let install = Install::unless(arguments.flag("--no-install"));
    let wish = Wish::asked(&mut arguments)?;
    arguments.finish()?;
    if wish.url.is_some() {
        bail!("{} names a server already", postgres::SERVER_VARIABLE);
    }
    let server = wish.ensure(install)?.start()?;
    println!("export {}='{}'", postgres::SERVER_VARIABLE, server.url);
    server.own.map_or(Ok(()), Guarded::wait)?;
    Ok(ExitCode::SUCCESS)
}

/// What the command line and the environment say about the server.
#[derive(Debug)]
pub struct Wish {
    /// A server that runs and is used as it is.
    url: Option<String>,
    /// Where the programs are.
    folder: Option<PathBuf>,
}

impl Wish {
    /// Takes `--postgres-bin DIR`.
    pub fn asked(arguments: &mut Arguments) -> Result<Wish> {
        let folder = arguments.option("--postgres-bin")?.map(PathBuf::from);
        let url = std::env::var(postgres::SERVER_VARIABLE).ok().filter(|url| !url.is_empty());
        if folder.is_some() && url.is_some() {
            bail!("`--postgres-bin` starts a server, and {} names one: which?", postgres::SERVER_VARIABLE);
        }
        // The command's folder is ours, its children's is not.
        let folder = folder.map(|folder| std::path::absolute(&folder).context("`--postgres-bin`"));
        Ok(Wish { url, folder: folder.transpose()? })
    }

    /// Finds the programs; installs them where that is allowed and nobody asked for others.
    pub fn ensure(self, install: Install) -> Result<Found> {
        if self.url.is_some() {
            eprintln!("PostgreSQL is the one that {} names", postgres::SERVER_VARIABLE);
            return Ok(Found { url: self.url, programs: None });
        }
        let programs = programs(self.folder.as_deref(), install)?;
        eprintln!("PostgreSQL {} is in {}", programs.major(), programs.folder().display());
        Ok(Found { url: None, programs: Some(programs) })
    }
}

fn programs(asked: Option<&Path>, install: Install) -> Result<Programs> {
    let missing = match Programs::find(asked) {
        Err(missing) if asked.is_none() && std::env::var_os(postgres::PROGRAMS_VARIABLE).is_none() => missing,
        found => return found,
    };
    eprintln!("{missing:#}");
    machine::ensure_postgres(install)?;
    Programs::find(None).context("PostgreSQL was installed")
}

/// What a server is made of, or where one runs.
#[derive(Debug)]
pub struct Found {
    url: Option<String>,
    programs: Option<Programs>,
}

impl Found {
    /// Tells a command which programs to start servers of its own with.
    pub fn hand_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.programs.as_ref().map(|programs| (postgres::PROGRAMS_VARIABLE, programs.folder())))
    }

    /// Starts a server unless one runs.
    pub fn start(self) -> Result<Server> {
        self.start_by(Postgres::start)
    }

    /// The same, with a server that is as durable as an operator's.
    pub fn start_durable(self) -> Result<Server> {
        self.start_by(Postgres::start_durable)
    }

    fn start_by(self, start: fn(Programs) -> Result<Postgres>) -> Result<Server> {
        let Some(programs) = self.programs else {
            return Ok(Server { url: self.url.unwrap_or_default(), programs: None, own: None });
        };
        let folder = programs.folder().to_owned();
        let postgres = start(programs)?;
        let (url, log) = (postgres.url(), postgres.log());
        eprintln!("PostgreSQL runs for this command alone; its log is {}", log.display());
        Ok(Server { url, programs: Some(folder), own: Some(Guarded::new(postgres)?) })
    }
}

/// A server that runs. Dropped, one of our own stops and its data are removed.
#[derive(Debug)]
pub struct Server {
    url: String,
    /// Where its programs are, when it is ours.
    programs: Option<PathBuf>,
    own: Option<Guarded>,
}

impl Server {
    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a statement answers in the database that the URL names.
    pub fn query(&self, statement: &str) -> Result<String> {
        postgres::query_at(&self.url, statement)
    }

    /// Its first process, when it is ours.
    pub fn pid(&self) -> Option<u32> {
        let own = self.own.as_ref()?;
        own.postgres.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.pid()
    }

    /// Tells a command's tests where it is, and which programs to start servers of their own with.
    pub fn hand_to(&self, command: &mut Command) {
        command.env(postgres::SERVER_VARIABLE, &self.url);
        command.envs(self.programs.as_ref().map(|folder| (postgres::PROGRAMS_VARIABLE, folder)));
    }

    /// Stops it, if it is ours, and says when that did not go well.
    pub fn stop(self) -> Result<()> {
        match self.own {
            Some(own) => own.stop(),
            None => Ok(()),
        }
    }
}

/// A server that also stops when a signal ends this program.
#[derive(Debug)]
struct Guarded {
    postgres: Arc<Mutex<Option<Postgres>>>,
    signals: Handle,
    watching: Option<JoinHandle<()>>,
}

impl Guarded {
    fn new(postgres: Postgres) -> Result<Guarded> {
        let postgres = Arc::new(Mutex::new(Some(postgres)));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listen for signals")?;
        let (handle, watched) = (signals.handle(), Arc::clone(&postgres));
        let watch = move || {
            let Some(signal) = signals.forever().next() else { return };
            drop(take(&watched));
            // As if nobody had listened: whoever waits for this program learns of the signal.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        };
        let watching = std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
        Ok(Guarded { postgres, signals: handle, watching: Some(watching) })
    }

    /// Waits for a signal, which ends this program.
    fn wait(mut self) -> Result<()> {
        let ended = self.watching.take().map(JoinHandle::join);
        ended.transpose().map(drop).map_err(|_| anyhow!("nobody listens for signals any more"))
    }

    fn stop(self) -> Result<()> {
        take(&self.postgres).map_or(Ok(()), |mut postgres| postgres.stop())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(take(&self.postgres));
        self.signals.close();
        // A watcher that panicked has nothing left to watch.
        let _ = self.watching.take().map(JoinHandle::join);
    }
}

fn take(postgres: &Mutex<Option<Postgres>>) -> Option<Postgres> {
    postgres.lock().unwrap_or_else(PoisonError::into_inner).take()
}
