//! PostgreSQL for tests: a server of our own, and databases of a server that is there.
//!
//! [`Postgres`] makes a cluster in a temporary folder, is reached by a unix socket alone, and is gone with its owner:
//! dropped, it stops; and where `setpriv` is, the kernel stops it when the thread that started it ends. Nothing here is
//! durable (`fsync=off`), which a test never notices: it ends processes, not machines; only who measures asks for a
//! durable one. [`Database`] is one database of any
//! server. Both work through the server's own programs, so that nothing here links a client library.
//!
//! `KEIKO_TEST_POSTGRES` names the server that tests use; `cargo xtask test` starts one and sets it. A test that wants a
//! database fails without: a test that is left out when something is missing proves nothing.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::{tree, wait};

/// Names the server that tests use.
pub const SERVER_VARIABLE: &str = "KEIKO_TEST_POSTGRES";
/// Names the folder of PostgreSQL's programs.
pub const PROGRAMS_VARIABLE: &str = "KEIKO_TEST_PG_BIN";
/// The oldest PostgreSQL that the host works with.
pub const MAJOR_MIN: u32 = 14;
/// What a folder of a server's programs has. Some have no client; any version's does.
const SERVER: &[&str] = &["initdb", "postgres"];
/// Where Debian keeps PostgreSQL's programs, by version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// A new cluster on a busy machine, or the recovery of one that was stopped at once.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);
/// The superuser of the clusters made here, who needs no password on our own socket.
const SUPERUSER: &str = "postgres";
/// What a server needs beside where it is. Tests have many databases at once, and some look at its statistics.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "max_connections=400",
    "shared_preload_libraries=pg_stat_statements",
    "unix_socket_permissions=0777",
    "logging_collector=off",
];

/// What makes a server for tests quick.
const NOT_DURABLE: &[&str] = &["fsync=off", "full_page_writes=off"];

/// The programs of one version of PostgreSQL.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
    major: u32,
}

impl Programs {
    /// The programs in this folder; without one, those of `KEIKO_TEST_PG_BIN`, of the path, or Debian's newest.
    pub fn find(asked: Option<&Path>) -> Result<Programs> {
        let folder = find_folder(asked, SERVER)?;
        let output = Command::new(folder.join("postgres")).arg("--version").output();
        let output = output.with_context(|| format!("start {}/postgres", folder.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let major = major(&text).with_context(|| format!("no version in `{}`", text.trim()))?;
        if major < MAJOR_MIN {
            bail!("{} has PostgreSQL {major}; the host needs {MAJOR_MIN} or newer", folder.display());
        }
        Ok(Programs { folder, major })
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Their version, such as 15.
    pub fn major(&self) -> u32 {
        self.major
    }
}

/// A running server of our own.
#[derive(Debug)]
pub struct Postgres {
    programs: Programs,
    /// Whom it runs as, when we are root: PostgreSQL refuses to.
    owner: Option<(u32, u32)>,
    is_durable: bool,
    child: Option<Child>,
    data: TempDir,
    /// Short, because the path of a socket has 107 bytes; a checkout may lie deep.
    socket: TempDir,
}

impl Postgres {
    /// Makes a cluster and starts its server.
    pub fn start(programs: Programs) -> Result<Postgres> {
        Postgres::start_as(programs, false)
    }

    /// The same, with a server that keeps what it says it has stored, as those of operators do.
    pub fn start_durable(programs: Programs) -> Result<Postgres> {
        Postgres::start_as(programs, true)
    }

    fn start_as(programs: Programs, is_durable: bool) -> Result<Postgres> {
        let owner = owner()?;
        let data = data_folder(owner)?;
        let socket = own_folder(&std::env::temp_dir(), "keiko-pg-", owner)?;
        let mut postgres = Postgres { programs, owner, is_durable, child: None, data, socket };
        let mut initdb = postgres.command(&postgres.programs.folder.join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username", SUPERUSER]);
        let output = initdb.arg("--pgdata").arg(postgres.cluster()).output().context("start initdb")?;
        if !output.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        postgres.run()?;
        Ok(postgres)
    }

    /// A standby that follows this server and answers reads: it starts from a copy of the data, made while the server
    /// stands still for a moment.
    pub fn new_replica(&mut self) -> Result<Postgres> {
        let data = data_folder(self.owner)?;
        let socket = own_folder(&std::env::temp_dir(), "keiko-pg-", self.owner)?;
        let mut replica = Postgres {
            programs: self.programs.clone(),
            owner: self.owner,
            is_durable: self.is_durable,
            child: None,
            data,
            socket,
        };
        self.stop()?;
        let copied =
            self.command(Path::new("cp")).arg("-R").args([self.cluster(), replica.cluster()]).status();
        self.run()?;
        if !copied.context("start cp")?.success() {
            bail!("the data of {} cannot be copied", self.url());
        }
        let settings = replica.cluster().join("postgresql.auto.conf");
        let follow = format!("primary_conninfo = 'host={} user={SUPERUSER}'\n", self.socket.path().display());
        let mut file = File::options().append(true).open(&settings).context("open the replica's settings")?;
        file.write_all(follow.as_bytes()).context("write the replica's settings")?;
        // A copy of what is empty: it belongs to the server's owner, too.
        let signal = replica.cluster().join("standby.signal");
        let made = self.command(Path::new("touch")).arg(&signal).status();
        if !made.context("start touch")?.success() {
            bail!("{} cannot be made", signal.display());
        }
        replica.run()?;
        Ok(replica)
    }

    /// What a statement answers in its database `postgres`; see [`Database::query`].
    pub fn query(&self, statement: &str) -> Result<String> {
        query(&psql()?, &self.url(), statement)
    }

    /// The URL of its database `postgres`, for its superuser.
    pub fn url(&self) -> String {
        format!("postgres://{SUPERUSER}@localhost/postgres?host={}", escaped(self.socket.path()))
    }

    /// Its programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// What it logs.
    pub fn log(&self) -> PathBuf {
        self.data.path().join("server.log")
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A new, empty database.
    pub fn new_database(&self) -> Result<Database> {
        Database::new(&self.url())
    }

    /// Stops the server and starts it again on the same data: in order, or, with `immediate`, as after a crash.
    pub fn restart(&mut self, immediate: bool) -> Result<()> {
        self.end(if immediate { Signal::QUIT } else { Signal::INT })?;
        self.run()
    }

    /// Stops the server in order; connections end.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::INT)
    }

    fn run(&mut self) -> Result<()> {
        let log = self.log();
        let output = File::options().append(true).create(true).open(&log);
        let output = output.with_context(|| format!("open {}", log.display()))?;
        let server = self.programs.folder.join("postgres");
        // The kernel stops the server when we go without a word: killed, or timed out by a test runner.
        let guarded = Command::new("setpriv").arg("--version").output().is_ok_and(|out| out.status.success());
        let mut command = self.command(if guarded { Path::new("setpriv") } else { &server });
        if guarded {
            command.args(["--pdeathsig", "QUIT"]).arg(&server);
        }
        command.arg("-D").arg(self.cluster());
        let quick = if self.is_durable { &[] } else { NOT_DURABLE };
        for setting in SETTINGS.iter().chain(quick) {
            command.args(["-c", setting]);
        }
        command.arg("-c").arg(format!("unix_socket_directories={}", self.socket.path().display()));
        // A terminal's Ctrl-C leaves it alone: whoever started it stops it when everything that uses it has ended.
        command.process_group(0).stdout(output.try_clone()?).stderr(output);
        let child = self.child.insert(command.spawn().context("start the server")?);
        let url = format!("postgres://{SUPERUSER}@localhost/postgres?host={}", escaped(self.socket.path()));
        let psql = psql()?;
        wait::until("PostgreSQL to be ready", START_MAX, || {
            if let Some(status) = child.try_wait()? {
                bail!("PostgreSQL ended while it started ({status}):\n{}", tail(&log));
            }
            Ok(query(&psql, &url, "SELECT 1").ok().map(drop))
        })
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if child.try_wait()?.is_none() {
            kill_process(Pid::from_child(child), signal).context("signal PostgreSQL")?;
            wait::until("PostgreSQL to stop", STOP_MAX, || Ok(child.try_wait()?))?;
        }
        self.child = None;
        Ok(())
    }

    /// A program as the server's owner, in a folder that it can be in.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.data.path()).stdin(Stdio::null());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        // What a person set for a server of theirs is none of this one's.
        for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGOPTIONS", "PGDATABASE"] {
            command.env_remove(name);
        }
        command
    }

    fn cluster(&self) -> PathBuf {
        self.data.path().join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.end(Signal::INT).is_err()
            && let Some(child) = &mut self.child
        {
            // The processes of a killed server end by themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A database of a server, dropped with this.
#[derive(Debug)]
pub struct Database {
    server: String,
    name: String,
    url: String,
}

impl Database {
    /// A new, empty database of the server that tests use; fails when there is none.
    pub fn for_test() -> Result<Database> {
        Database::new(&server_url()?)
    }

    /// A new, empty database of the server with this URL, whose user may make databases.
    pub fn new(server: &str) -> Result<Database> {
        // Not from a seed: what a seed repeats must not meet what is still there.
        let name = format!("keiko_{:016x}", RandomState::new().build_hasher().finish());
        query(&psql()?, server, &format!("CREATE DATABASE {name}"))?;
        Ok(Database { url: with_database(server, &name)?, server: server.to_owned(), name })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of its copy at a replica of its server.
    pub fn url_at(&self, replica: &Postgres) -> Result<String> {
        with_database(&replica.url(), &self.name)
    }

    /// What a statement answers at a replica of its server.
    pub fn query_at(&self, replica: &Postgres, statement: &str) -> Result<String> {
        query(&psql()?, &self.url_at(replica)?, statement)
    }

    /// What a statement answers, as `psql` prints it without decoration: a row a line, `|` between columns.
    pub fn query(&self, statement: &str) -> Result<String> {
        query(&psql()?, &self.url, statement)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // With the server gone, the database is too.
        let _ = psql().and_then(|psql| {
            query(&psql, &self.server, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))
        });
    }
}

/// The URL of the server that tests use.
pub fn server_url() -> Result<String> {
    match std::env::var(SERVER_VARIABLE) {
        Ok(url) if !url.is_empty() => Ok(url),
        _ => bail!(
            "this test needs a PostgreSQL server: run it by `cargo xtask test`, or name a server whose user may make \
             databases and roles in {SERVER_VARIABLE}, such as postgres://postgres@localhost/postgres?host=/run/postgresql"
        ),
    }
}

/// What a statement answers at a server of this URL; see [`Database::query`].
pub fn query_at(url: &str, statement: &str) -> Result<String> {
    query(&psql()?, url, statement)
}

/// A server's own `psql` rather than the one in the path, which Debian wraps.
fn psql() -> Result<PathBuf> {
    let client = [SERVER, &["psql"]].concat();
    let folder = find_folder(None, &client).or_else(|_| search(&client)).or_else(|_| search(&["psql"]))?;
    Ok(folder.join("psql"))
}

fn query(psql: &Path, url: &str, statement: &str) -> Result<String> {
    let mut command = Command::new(psql);
    command.args([
        "--no-psqlrc",
        "--quiet",
        "--tuples-only",
        "--no-align",
        "--set=ON_ERROR_STOP=1",
        "--command",
    ]);
    let output = command.arg(statement).arg(url).env("PGCONNECT_TIMEOUT", "10").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {}", psql.display()))?;
    if !output.status.success() {
        bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// The first folder that has all these programs.
fn find_folder(asked: Option<&Path>, programs: &[&str]) -> Result<PathBuf> {
    let given = std::env::var_os(PROGRAMS_VARIABLE).filter(|given| !given.is_empty()).map(PathBuf::from);
    let asked = asked.map(Path::to_owned).or(given);
    if let Some(folder) = asked {
        if !complete(&folder, programs) {
            bail!("{} does not have PostgreSQL's {}", folder.display(), programs.join(", "));
        }
        return Ok(folder);
    }
    search(programs)
}

/// The first folder of the path, or of Debian's, that has all these programs.
fn search(programs: &[&str]) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(debian_folders(Path::new(DEBIAN)));
    folders.find(|folder| complete(folder, programs)).with_context(|| {
        format!("there is no PostgreSQL with {} in the path or in {DEBIAN}", programs.join(", "))
    })
}

fn complete(folder: &Path, programs: &[&str]) -> bool {
    programs.iter().all(|program| folder.join(program).is_file())
}

/// The folders of programs below Debian's, newest version first.
fn debian_folders(root: &Path) -> Vec<PathBuf> {
    let versions = fs::read_dir(root).into_iter().flatten().flatten();
    let number = |name: &OsStr| name.to_str().and_then(|name| name.parse::<u32>().ok());
    let mut versions: Vec<u32> = versions.filter_map(|entry| number(&entry.file_name())).collect();
    versions.sort_unstable();
    versions.iter().rev().map(|version| root.join(version.to_string()).join("bin")).collect()
}

/// The 15 of `postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`, and of `15beta1`.
fn major(text: &str) -> Option<u32> {
    let number = text.split(") ").nth(1)?;
    let end = number.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

/// The same server's URL for another database.
fn with_database(url: &str, name: &str) -> Result<String> {
    let (before, query) = url.split_once('?').map_or((url, ""), |(before, query)| (before, query));
    let (scheme, rest) = before.split_once("://").with_context(|| format!("{SERVER_VARIABLE} is no URL"))?;
    let host = rest.split('/').next().unwrap_or_default();
    let mark = if query.is_empty() { "" } else { "?" };
    Ok(format!("{scheme}://{host}/{name}{mark}{query}"))
}

/// A path as a part of a URL.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                text.push(char::from(*byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Whom a server runs as: ourselves, or, when we are root, the system's user for it or the one for nothing.
fn owner() -> Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let id = |flag: &str, user: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, user]).stderr(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let found = ["postgres", "nobody"].iter().find_map(|user| Some((id("-u", user)?, id("-g", user)?)));
    found
        .map(Some)
        .context("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")
}

/// Below `target`, where whoever clears it expects such things; elsewhere when the server's owner cannot get there.
fn data_folder(owner: Option<(u32, u32)>) -> Result<TempDir> {
    let target = tree::target_dir();
    fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
    let folder = own_folder(&target, "postgres-", owner)?;
    let Some((user, group)) = owner else { return Ok(folder) };
    let mut reach = Command::new("test");
    if reach.arg("-w").arg(folder.path()).uid(user).gid(group).current_dir("/").status()?.success() {
        return Ok(folder);
    }
    own_folder(&std::env::temp_dir(), "keiko-pg-data-", owner)
}

fn own_folder(parent: &Path, prefix: &str, owner: Option<(u32, u32)>) -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
    let folder = folder.with_context(|| format!("make a folder in {}", parent.display()))?;
    if let Some((user, group)) = owner {
        chown(folder.path(), Some(user), Some(group)).context("give the server its folder")?;
        debug_assert_eq!(fs::metadata(folder.path())?.uid(), user);
    }
    Ok(folder)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_keeps_what_was_committed_and_is_gone_with_its_owner() -> Result<()> {
        let mut postgres = Postgres::start(Programs::find(None)?)?;
        let database = postgres.new_database()?;
        assert!(
            postgres.url().contains("?host=/")
                && database.url().starts_with("postgres://postgres@localhost/keiko_")
        );
        database.query("CREATE TABLE t (n int)")?;
        for immediate in [false, true] {
            database.query("INSERT INTO t VALUES (1)")?;
            postgres.restart(immediate)?;
        }
        assert_eq!(database.query("SELECT count(*), max(n) FROM t")?, "2|1");
        let (pid, folder) = (postgres.pid().context("it runs")?, postgres.data.path().to_owned());
        postgres.stop()?;
        assert!(database.query("SELECT 1").is_err());
        drop(postgres);
        assert!(!folder.exists() && !Path::new(&format!("/proc/{pid}")).exists());
        Ok(())
    }

    #[test]
    fn a_database_is_dropped_though_somebody_is_in_it() -> Result<()> {
        let database = Database::for_test()?;
        let (server, name) = (database.server.clone(), database.name.clone());
        let mut guest = Command::new(psql()?);
        let mut guest = guest
            .arg(database.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let inside = "SELECT 1 WHERE EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND \
                      pid <> pg_backend_pid())";
        wait::until("a guest", START_MAX, || Ok((database.query(inside)? == "1").then_some(())))?;
        drop(database);
        let left =
            query(&psql()?, &server, &format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'"))?;
        assert_eq!(left, "0");
        guest.kill()?;
        guest.wait()?;
        Ok(())
    }

    #[test]
    fn versions_urls_and_folders_are_read() -> Result<()> {
        assert_eq!(major("postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("nothing"), None);
        assert_eq!(
            with_database("postgres://u:p@h:1/postgres?host=/tmp/x", "k")?,
            "postgres://u:p@h:1/k?host=/tmp/x"
        );
        assert_eq!(with_database("postgres://h", "k")?, "postgres://h/k");
        assert_eq!(escaped(Path::new("/tmp/a b")), "/tmp/a%20b");
        let folder = tempfile::tempdir()?;
        for version in ["9", "14", "15", "common"] {
            fs::create_dir(folder.path().join(version))?;
        }
        let found: Vec<_> =
            debian_folders(folder.path()).iter().map(|path| path.parent().unwrap().to_owned()).collect();
        assert_eq!(found, ["15", "14", "9"].map(|version| folder.path().join(version)));
        Ok(())
    }

    #[test]
    fn a_folder_without_the_programs_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let error = Programs::find(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("does not have PostgreSQL's initdb, postgres"), "{error}");
        for (version, fits) in [("13.9", false), ("14.0", true)] {
            for &program in SERVER {
                let path = folder.path().join(program);
                fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"))?;
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            }
            let found = Programs::find(Some(folder.path()));
            assert_eq!(found.is_ok(), fits, "{version}: {found:?}");
        }
        Ok(())
    }
}
