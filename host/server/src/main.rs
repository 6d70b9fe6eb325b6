//! The program `keiko`: see `keiko --help`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// A host answers many threads and runs for long: what they free must not stay with each of them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    keiko::cli::main()
}
