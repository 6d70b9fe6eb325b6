//! Does nothing, as little as a guest in Rust can do: what benchmarks run whose matter is everything around the guest.

use keiko_sdk::{Failure, Payload};

keiko_sdk::plugin! {
    manifest: "plugin.toml",
    kinds: { "noop" => noop },
}

fn noop(input: Payload) -> Result<Payload, Failure> {
    Ok(input)
}
