//! The compile child as a program of its own: a component on stdin, its artifact on stdout, a problem as JSON on
//! stderr. `keiko-compile [ADDRESS_SPACE_BYTES [CPU_SECONDS]]` lowers the limits it sets for itself.

use std::process::ExitCode;

use keiko_engine::{ChildLimits, compile_child_within};

fn main() -> ExitCode {
    let mut limits = ChildLimits::default();
    let mut arguments = std::env::args().skip(1);
    let mut lower = |limit: &mut u64| match arguments.next().map(|text| text.parse::<u64>()) {
        None => true,
        Some(Ok(number)) => {
            *limit = number.min(*limit);
            true
        }
        Some(Err(_)) => false,
    };
    if lower(&mut limits.address_space_bytes) && lower(&mut limits.cpu_seconds) {
        compile_child_within(limits)
    } else {
        ExitCode::from(2)
    }
}
