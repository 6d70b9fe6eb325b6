//! Redis for tests: a server of our own on loopback, with nothing on disk, gone with its owner.
//!
//! `KEIKO_TEST_REDIS` names the server that tests use; `cargo xtask test` starts one and sets it. A test that wants one
//! fails without.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::wait;

/// Names the server that tests use.
pub const SERVER_VARIABLE: &str = "KEIKO_TEST_REDIS";
/// The server's program, in the path.
pub const PROGRAM: &str = "redis-server";
/// A new server on a busy machine.
const START_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(30);
/// Ports that are tried: one that was free may be taken before the server has it.
const TRIES: usize = 5;

/// A running server of our own.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    child: Option<Child>,
    folder: TempDir,
}

impl Redis {
    /// Starts a server.
    pub fn start() -> Result<Redis> {
        let folder = tempfile::Builder::new().prefix("keiko-redis-").tempdir().context("make a folder")?;
        let mut redis = Redis { port: 0, child: None, folder };
        let mut tries = 0;
        loop {
            redis.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            tries += 1;
            match redis.run() {
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(redis),
            }
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it again on the same port, with nothing in it.
    pub fn run(&mut self) -> Result<()> {
        // The kernel stops the server when we go without a word.
        let guarded = Command::new("setpriv").arg("--version").output().is_ok_and(|out| out.status.success());
        let mut command = Command::new(if guarded { "setpriv" } else { PROGRAM });
        if guarded {
            command.args(["--pdeathsig", "KILL", PROGRAM]);
        }
        command.args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command
            .arg("--dir")
            .arg(self.folder.path())
            .arg("--logfile")
            .arg(self.folder.path().join("redis.log"));
        // A terminal's Ctrl-C leaves it alone: whoever started it stops it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.child.insert(command.spawn().context("start redis-server")?);
        let port = self.port;
        wait::until("Redis to be ready", START_MAX, || {
            if let Some(status) = child.try_wait()? {
                bail!("redis-server ended while it started ({status})");
            }
            Ok(ask(port, "PING").ok().filter(|answer| answer.starts_with("+PONG")).map(drop))
        })
    }

    /// Sends a command of one line; its answer as the server writes it.
    pub fn ask(&self, command: &str) -> Result<String> {
        ask(self.port, command)
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Stops it where it is: it answers nothing and keeps its connections.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the server does not run")?;
        kill_process(Pid::from_child(child), signal).context("signal Redis")
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if child.try_wait()?.is_none() {
            kill_process(Pid::from_child(child), signal).context("signal Redis")?;
            wait::until("Redis to stop", STOP_MAX, || Ok(child.try_wait()?))?;
        }
        self.child = None;
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Also one that was paused; it has nothing to keep.
        let _ = self.end(Signal::KILL);
    }
}

fn ask(port: u16, command: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), START_MAX)?;
    stream.set_read_timeout(Some(STOP_MAX))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = [0; 4_096];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_killed_started_again_and_gone_with_its_owner() -> Result<()> {
        let mut redis = Redis::start()?;
        assert!(redis.url().starts_with("redis://127.0.0.1:"));
        assert_eq!(redis.ask("SET k v")?, "+OK");
        redis.pause()?;
        redis.resume()?;
        assert_eq!(redis.ask("EXISTS k")?, ":1");
        redis.kill()?;
        assert!(redis.ask("PING").is_err());
        redis.run()?;
        assert_eq!(redis.ask("EXISTS k")?, ":0", "nothing is kept");
        let (port, folder) = (redis.port, redis.folder().to_owned());
        drop(redis);
        assert!(ask(port, "PING").is_err() && !folder.exists());
        Ok(())
    }
}
