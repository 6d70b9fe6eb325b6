//! The command line. Each command is a module; what they share is here, in [`client`], [`print`] and [`exit`].

mod agent;
mod batch;
mod bench;
mod cache;
mod client;
mod config;
mod db;
mod exit;
mod filter;
mod group;
mod input;
mod inspect;
mod pause;
mod plugin;
mod print;
mod report;
mod run;
mod schedule;
mod serve;
mod sign;
mod stats;
mod stream;
mod submit;
mod task;
mod token;
mod user;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use exit::Failure;

/// A host for agent tasks whose logic is WebAssembly.
#[derive(Debug, Parser)]
#[command(name = "keiko", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "\
Start here:
  keiko serve                                   a host in this folder, on 127.0.0.1:7700
  keiko plugin install my-plugin.wasm           give it a plugin
  keiko task submit --plugin my-plugin --input '{\"a\":1}' --wait 10
  keiko run my-plugin.wasm --input '{\"a\":1}'    try a plugin without a host

Exit status: 0 done, 1 the task or plugin failed, 2 the command line or the configuration is wrong,
3 the host refused, 4 the host is unreachable or at fault, 5 a limit stopped the run, 6 time was up.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a host until it is told to stop (Ctrl-C or SIGTERM)
    #[command(long_about = serve::ABOUT)]
    Serve(serve::Arguments),
    /// Run one attempt of a plugin here and now, without a host
    #[command(long_about = run::ABOUT)]
    Run(run::Arguments),
    /// Put a load on a host and measure it
    #[command(long_about = bench::ABOUT)]
    Bench(bench::Arguments),
    /// Show what a component or program is, needs, and would be refused for, without a host
    #[command(long_about = inspect::ABOUT)]
    Inspect(inspect::Arguments),
    /// Install, list, show, swap and remove plugins of a host
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Submit tasks to a host, and see what became of them
    #[command(subcommand)]
    Task(task::Command),
    /// Submit tasks as one group, and see what became of each
    #[command(subcommand)]
    Group(group::Command),
    /// Submit tasks again and again, by calendars
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// Make, list and change agents of a host
    #[command(subcommand)]
    Agent(agent::Command),
    /// Make and list users of a host, and see what was done for them
    #[command(subcommand)]
    User(user::Command),
    /// Add items to processors, and see what became of them
    #[command(subcommand)]
    Batch(batch::Command),
    /// Keep tasks from beginning: a kind, all of the tenant, or on this host
    #[command(subcommand)]
    Pause(pause::Pause),
    /// Let paused tasks begin again
    #[command(subcommand)]
    Resume(pause::Resume),
    /// Show how many tasks of each kind and state there were, and how long they ran
    Stats(stats::Arguments),
    /// Look into the tenant's cache, and take things out of it
    #[command(subcommand)]
    Cache(cache::Command),
    /// Show every setting a host would run with, and where it comes from
    Config(config::Arguments),
    /// Look after the database of a host
    #[command(subcommand)]
    Db(db::Command),
    /// Make tokens for tenants
    #[command(subcommand)]
    Token(token::Command),
    /// Compile one component: how a host starts itself
    #[command(name = "compile-child", hide = true)]
    CompileChild,
}

/// The program.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        // Before anything else: the child has limits of its own on memory and time.
        Command::CompileChild => keiko_engine::compile_child(),
        Command::Serve(arguments) => end(serve::serve(arguments)),
        Command::Run(arguments) => end(run::run(arguments)),
        Command::Inspect(arguments) => end(inspect::inspect(&arguments)),
        Command::Bench(arguments) => end(bench::bench(arguments)),
        Command::Plugin(command) => end(plugin::plugin(command)),
        Command::Task(command) => end(task::task(command)),
        Command::Group(command) => end(group::group(command)),
        Command::Schedule(command) => end(schedule::schedule(command)),
        Command::Agent(command) => end(agent::agent(command)),
        Command::User(command) => end(user::user(command)),
        Command::Batch(command) => end(batch::batch(command)),
        Command::Pause(command) => end(pause::pause(command)),
        Command::Resume(command) => end(pause::resume(command)),
        Command::Stats(arguments) => end(stats::stats(&arguments)),
        Command::Cache(command) => end(cache::cache(command)),
        Command::Config(arguments) => end(config::config(&arguments)),
        Command::Db(command) => end(db::db(command)),
        Command::Token(command) => end(token::token(command)),
    }
}

fn end(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        print::note(&format!("keiko: {failure}"));
        ExitCode::from(failure.status())
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Arguments::command().debug_assert();
    }
}
