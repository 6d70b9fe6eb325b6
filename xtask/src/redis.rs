//! The Redis server that tests use: the one `KEIKO_TEST_REDIS` names, or one of our own on loopback, with nothing on disk,
//! that ends with the command.

use std::process::Command;

use anyhow::{Context, Result};
use keiko_tests::redis::{PROGRAM, Redis, SERVER_VARIABLE};

use crate::machine::{self, Install};
use crate::step;

/// A server that runs. Dropped, one of our own stops.
#[derive(Debug)]
pub struct Server {
    url: String,
    _own: Option<Redis>,
}

/// Finds the program; installs it where that is allowed and no server is named.
pub fn ensure(install: Install) -> Result<()> {
    if named().is_some() {
        eprintln!("Redis is the one that {SERVER_VARIABLE} names");
        return Ok(());
    }
    if step::succeeds(Command::new(PROGRAM).arg("--version")) {
        eprintln!("Redis is there");
        return Ok(());
    }
    machine::ensure_packages(&["redis-server"], install)
}

/// Starts a server unless one is named.
pub fn start() -> Result<Server> {
    if let Some(url) = named() {
        return Ok(Server { url, _own: None });
    }
    let redis = Redis::start().context("start Redis")?;
    let url = redis.url();
    eprintln!("Redis runs for this command alone");
    Ok(Server { url, _own: Some(redis) })
}

impl Server {
    /// Tells a command's tests where it is.
    pub fn hand_to(&self, command: &mut Command) {
        command.env(SERVER_VARIABLE, &self.url);
    }
}

fn named() -> Option<String> {
    std::env::var(SERVER_VARIABLE).ok().filter(|url| !url.is_empty())
}
