//! The host's side of every interface a guest can import. Nothing here decides: each call is converted, passes the
//! gate, and is converted back.

mod agents;
mod attempt;
mod batch;
pub(crate) mod cache;
mod config;
mod history;
mod log;
mod metrics;
mod output;
mod progress;
mod tasks;
pub(crate) mod wasi;

use wasmtime::component::{HasSelf, Linker};

use crate::adapt;
use crate::bindings::TaskHost;
use crate::bindings::keiko::plugin::types;
use crate::state::State;

/// Every interface of this host, by package and interface, with the version it has.
pub(crate) const INTERFACES: &[(&str, &str)] = &[
    ("keiko:plugin/types", "0.1.0"),
    ("keiko:log/log", "0.1.0"),
    ("keiko:attempt/attempt", "0.1.0"),
    ("keiko:config/config", "0.1.0"),
    ("keiko:progress/progress", "0.1.1"),
    ("keiko:progress/output", "0.1.1"),
    ("keiko:tasks/tasks", "0.1.2"),
    ("keiko:agents/agents", "0.1.0"),
    ("keiko:history/history", "0.1.0"),
    (adapt::EXIT, adapt::EXIT_VERSION),
    ("keiko:batch/batch", "0.1.0"),
    ("keiko:cache/cache", "0.1.0"),
    ("keiko:metrics/metrics", "0.1.0"),
    ("wasi:io/error", wasi::VERSION),
    ("wasi:io/poll", wasi::VERSION),
    ("wasi:io/streams", wasi::VERSION),
    ("wasi:clocks/wall-clock", wasi::VERSION),
    ("wasi:clocks/monotonic-clock", wasi::VERSION),
    ("wasi:random/random", wasi::VERSION),
    ("wasi:random/insecure", wasi::VERSION),
    ("wasi:random/insecure-seed", wasi::VERSION),
    ("wasi:cli/environment", wasi::VERSION),
    ("wasi:cli/exit", wasi::VERSION),
    ("wasi:cli/stdin", wasi::VERSION),
    ("wasi:cli/stdout", wasi::VERSION),
    ("wasi:cli/stderr", wasi::VERSION),
    ("wasi:cli/terminal-input", wasi::VERSION),
    ("wasi:cli/terminal-output", wasi::VERSION),
    ("wasi:cli/terminal-stdin", wasi::VERSION),
    ("wasi:cli/terminal-stdout", wasi::VERSION),
    ("wasi:cli/terminal-stderr", wasi::VERSION),
    ("wasi:filesystem/types", wasi::VERSION),
    ("wasi:filesystem/preopens", wasi::VERSION),
    ("wasi:sockets/network", wasi::VERSION),
    ("wasi:sockets/instance-network", wasi::VERSION),
    ("wasi:sockets/ip-name-lookup", wasi::VERSION),
    ("wasi:sockets/tcp", wasi::VERSION),
    ("wasi:sockets/tcp-create-socket", wasi::VERSION),
    ("wasi:sockets/udp", wasi::VERSION),
    ("wasi:sockets/udp-create-socket", wasi::VERSION),
];

/// The shapes that imports and exports share: no calls.
impl types::Host for State {}

/// Links all of them.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    TaskHost::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    wasi::add_to_linker(&mut linker)?;
    wasi::add_exit(&mut linker)?;
    Ok(linker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keiko_core::profile::Profile;

    use crate::config::{self, Purpose};

    #[test]
    fn every_interface_that_is_listed_is_linked() {
        for &profile in Profile::ALL {
            every_interface_is_linked(&config::engine(Purpose::Compile, profile).unwrap());
        }
    }

    fn every_interface_is_linked(engine: &wasmtime::Engine) {
        // The first is types only, which nothing needs to define.
        for (interface, version) in &INTERFACES[1..] {
            let mut linker = linker(engine).unwrap();
            // What is there cannot be defined again as something else.
            let mut define = |name: &str| linker.root().func_wrap(name, |_, ()| Ok(()));
            assert!(define("acme:bank/account@1.0.0").is_ok());
            assert!(define(&format!("{interface}@{version}")).is_err(), "{interface}@{version}");
        }
    }
}
