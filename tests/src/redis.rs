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

/// Nodes of a cluster of our own.
const NODES: u16 = 3;
/// Slots of any cluster.
const SLOTS: u16 = 16_384;
/// Ports for the ways between nodes are so far behind those of clients.
const BUS: u16 = 10_000;

/// A running server of our own.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    child: Option<Child>,
    folder: TempDir,
    is_node: bool,
}

impl Redis {
    /// Starts a server.
    pub fn start() -> Result<Redis> {
        Redis::start_as(false)
    }

    fn start_as(is_node: bool) -> Result<Redis> {
        let folder = tempfile::Builder::new().prefix("keiko-redis-").tempdir().context("make a folder")?;
        let mut redis = Redis { port: 0, child: None, folder, is_node };
        let mut tries = 0;
        loop {
            redis.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if is_node && redis.port > u16::MAX - BUS {
                continue;
            }
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
        if self.is_node {
            // A cluster of our own has no copies: what a lost node had is away, and the rest goes on.
            command.args(["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]);
            command.args(["--cluster-node-timeout", "1000"]);
        }
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
            // Another test's server may have taken the port just before ours.
            let is_ours = |info: &String| info.contains(&format!("process_id:{}\r\n", child.id()));
            Ok(ask(port, "INFO server").ok().filter(is_ours).map(drop))
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

/// A running cluster of our own: masters that share the slots.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts the nodes and makes them a cluster.
    pub fn start() -> Result<Cluster> {
        let nodes = (0..NODES).map(|_| Redis::start_as(true)).collect::<Result<Vec<_>>>()?;
        for (at, node) in (0..NODES).zip(&nodes) {
            let first = SLOTS / NODES * at;
            let last = if at + 1 == NODES { SLOTS } else { first + SLOTS / NODES } - 1;
            node.done(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
            node.done(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1))?;
            node.done(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].port))?;
        }
        let cluster = Cluster { nodes };
        cluster.wait()?;
        Ok(cluster)
    }

    /// Waits until every node knows of all slots.
    pub fn wait(&self) -> Result<()> {
        wait::until("the cluster to be whole", START_MAX, || {
            let whole = |node: &Redis| {
                let info = node.ask("CLUSTER INFO").unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOTS}"))
            };
            Ok(self.nodes.iter().all(whole).then_some(()))
        })
    }

    /// Its URL, with all nodes.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}

impl Redis {
    fn done(&self, command: &str) -> Result<()> {
        match self.ask(command)?.as_str() {
            "+OK" => Ok(()),
            other => bail!("{command}: {other}"),
        }
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
    fn a_cluster_is_whole_when_it_has_started_and_again_after_a_kill() -> Result<()> {
        let mut cluster = Cluster::start()?;
        assert_eq!(cluster.nodes.len(), usize::from(NODES));
        let answers: Vec<String> =
            cluster.nodes.iter().map(|node| node.ask("SET k v")).collect::<Result<_>>()?;
        assert_eq!(
            answers.iter().filter(|answer| *answer == "+OK").count(),
            1,
            "one node has it: {answers:?}"
        );
        cluster.nodes[1].kill()?;
        cluster.nodes[1].run()?;
        cluster.wait()
    }

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
