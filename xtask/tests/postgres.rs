//! The server of a command is gone with the command, also when a signal ends it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use keiko_tests::postgres::{Database, PROGRAMS_VARIABLE, SERVER_VARIABLE};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_signal_stops_the_server_and_removes_its_data() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask.args(["postgres", "--no-install"]).env_remove(SERVER_VARIABLE).stdout(Stdio::piped());
        let mut xtask = xtask.spawn().unwrap();
        let line = BufReader::new(xtask.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        let url = line.strip_prefix(&format!("export {SERVER_VARIABLE}='")).unwrap().trim_end_matches('\'');
        let database = Database::new(url).unwrap();
        assert_eq!(database.query("SELECT 1 + 1").unwrap(), "2");
        let data = database.query("SHOW data_directory").unwrap();
        let socket = url.split("host=").nth(1).unwrap().to_owned();
        assert!(Path::new(&data).exists() && Path::new(&socket).exists());
        kill_process(Pid::from_child(&xtask), signal).unwrap();
        assert_eq!(xtask.wait().unwrap().signal(), Some(signal.as_raw()));
        assert!(!Path::new(&data).exists() && !Path::new(&socket).exists());
        assert!(database.query("SELECT 1").is_err());
    }
}

#[test]
fn a_missing_postgresql_is_an_error_that_names_what_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let xtask = xtask.args(["postgres", "--no-install", "--postgres-bin"]).arg(folder.path());
    let output = xtask.env_remove(SERVER_VARIABLE).env_remove(PROGRAMS_VARIABLE).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("does not have PostgreSQL's initdb"), "{text}");
}
