//! Steps of a command: each is named, its command line printed, its time taken, and the whole summed up at the end.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keiko_tests::tree;

/// The steps so far.
#[derive(Debug)]
pub struct Steps {
    start: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// None yet.
    pub fn new() -> Steps {
        Steps { start: Instant::now(), done: Vec::new() }
    }

    /// Runs a step of our own.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let outcome = work().with_context(|| format!("step `{name}`"));
        self.done.push((name.to_owned(), start.elapsed()));
        outcome
    }

    /// Runs a command as a step.
    pub fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.step(name, || run(command))
    }

    /// Says how long each step took.
    pub fn print(&self) {
        eprintln!("\nsteps:");
        for (name, time) in &self.done {
            eprintln!("  {:>8.1} s  {name}", time.as_secs_f64());
        }
        eprintln!("  {:>8.1} s  in all", self.start.elapsed().as_secs_f64());
    }
}

/// Cargo, as it runs us, in the root of the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree::root());
    command
}

/// Prints the command and runs it; an exit status other than 0 is an error.
///
/// Its output goes where ours about steps goes: standard output is kept for what a person asked to see.
pub fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status =
        command.stdout(std::io::stderr()).status().with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// The same, with every line of its two outputs shown to `see` on its way through.
pub fn run_watched(command: &mut Command, mut see: impl FnMut(&str)) -> Result<()> {
    announce(command);
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    // One pipe for both, so that lines stay in order.
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).stdin(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("start {}", shown(command)))?;
    // The writing ends inside the command would keep the pipe open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        see(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// What a command prints, when it succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Whether a command can be started and succeeds.
pub fn succeeds(command: &mut Command) -> bool {
    output(command).is_some()
}

fn announce(command: &Command) {
    eprintln!("$ {}", shown(command));
}

/// The command as a person would type it in the checkout.
fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value.filter(|_| name != "CARGO_TERM_COLOR") {
            words.push(format!("{}={}", name.to_string_lossy(), quoted(value)));
        }
    }
    let program = std::path::Path::new(command.get_program());
    words.push(program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned());
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let root = format!("{}/", tree::root().display());
    let word = word.to_string_lossy().replace(&root, "");
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,+@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "a b"]).env("KEIKO_X", tree::root().join("target"));
        assert_eq!(shown(&command), "KEIKO_X=target cargo test 'a b'");
    }

    #[test]
    fn every_line_of_both_outputs_is_seen_and_a_failure_is_told() -> Result<()> {
        let mut lines = Vec::new();
        let see = |line: &str| lines.push(line.to_owned());
        let mut script = Command::new("sh");
        let outcome = run_watched(script.args(["-c", "echo one; echo two >&2; exit 3"]), see);
        assert_eq!(lines, ["one", "two"]);
        assert!(outcome.unwrap_err().to_string().contains("exit status: 3"));
        Ok(())
    }
}
