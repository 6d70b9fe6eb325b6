//! The program over HTTP, as its users meet it: one test binary, every test with a host, a folder and a port of its own.
//!
//! The program and the guests are built before: `cargo xtask test` does that, and a test that misses one says which
//! command makes it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod batches;
mod cache;
mod checks;
mod concurrency;
mod contract;
mod data;
mod database;
mod family;
mod hostile;
mod logs;
mod memoize;
mod plugins;
mod postgres;
mod programs;
mod readme;
mod replica;
mod sameness;
mod sharing;
mod stopping;
mod tenants;
mod trees;

use std::ops::{Deref, DerefMut};

use keiko_tests::{Client, Host, Options, tree};
use tempfile::TempDir;

/// A host with everything it keeps; both are gone with it.
struct Running {
    host: Host,
    client: Client,
    folder: TempDir,
}

impl Running {
    /// With the defaults: one tenant, no token.
    fn start() -> Running {
        Running::with_config("")
    }

    /// With this configuration file.
    fn with_config(text: &str) -> Running {
        let folder = tempfile::Builder::new().prefix("keiko-it-").tempdir().unwrap();
        let options = Options::in_folder(folder.path()).unwrap().with_config(text).unwrap();
        let host = Host::start(options).unwrap();
        let client = host.client();
        Running { host, client, folder }
    }

    /// With the defaults and these guests installed.
    fn with_guests(names: &[&str]) -> Running {
        let running = Running::start();
        for name in names {
            running.client.install(&tree::guest(name).unwrap()).unwrap();
        }
        running
    }
}

impl Deref for Running {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Host {
        &mut self.host
    }
}
