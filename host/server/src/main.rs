//! The program `keiko`: see `keiko --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keiko::cli::main()
}
