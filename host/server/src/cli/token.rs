//! `keiko token`.

use std::io::BufRead;
use std::process::ExitCode;

use super::exit::Failure;
use super::print;
use crate::token::Token;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a token, and print the line for `tokens` in keiko.toml
    #[command(long_about = "\
Make a random token for a tenant. The token is printed once, on stderr, and kept nowhere; the line for the \
tenant's `tokens` in keiko.toml, which holds only a hash of it, is printed on stdout.

With --stdin, the token is read from stdin instead, and only its line is printed.")]
    Hash {
        /// What to call it in keiko.toml
        #[arg(long)]
        name: Option<String>,
        /// Read a token from stdin instead of making one
        #[arg(long)]
        stdin: bool,
    },
}

pub(super) fn token(command: Command) -> Result<ExitCode, Failure> {
    let Command::Hash { name, stdin } = command;
    let token = if stdin {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_line(&mut text);
        read.map_err(|error| Failure::Usage(format!("stdin cannot be read: {error}")))?;
        Token::parse(text.trim()).map_err(|error| Failure::Usage(error.to_owned()))?
    } else {
        let token = Token::random().map_err(|error| Failure::Host(format!("no random bytes: {error}")))?;
        print::note(&format!("token, shown only now:\n{}\nline for `tokens` in keiko.toml:", token.reveal()));
        token
    };
    print::out(&token.line(name.as_deref()));
    Ok(ExitCode::SUCCESS)
}
