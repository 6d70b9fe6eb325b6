//! Write Keiko plugins in Rust.
//!
//! A plugin is one function per kind of task, from typed JSON to typed JSON, and a `plugin.toml` beside `Cargo.toml`:
//!
//! ```
//! use keiko_sdk::Failure;
//! use serde::{Deserialize, Serialize};
//!
//! keiko_sdk::plugin! {
//! #   manifest: "../../plugins/word-count/plugin.toml",
//!     kinds: { "count" => count },
//! }
//!
//! #[derive(Deserialize)]
//! struct Text {
//!     text: String,
//! }
//!
//! #[derive(Serialize)]
//! struct Count {
//!     words: usize,
//! }
//!
//! fn count(input: Text) -> Result<Count, Failure> {
//!     Ok(Count { words: input.text.split_whitespace().count() })
//! }
//! # fn main() {}
//! ```
//!
//! Built with `cargo build --release --target wasm32-wasip2` that is a component. A handler that wants the bytes
//! as they came takes a [`Payload`] instead, and one that answers something other than JSON returns one.
//!
//! A plugin that works batches has one function per processor, `fn(Batch, Vec<Item>) -> Vec<Outcome>` of [`batch`], under
//! `processors: { "films" => films }`.
//!
//! What a plugin asks of the host stands in the modules named after the capabilities: [`agents`], [`attempt`],
//! [`batch`], [`cache`], [`config`], [`history`], [`log`], [`metrics`], [`progress`] and [`output`], [`tasks`]. A component imports only what its
//! code reaches, and the manifest's `wants` names the same.
//!
//! On any target but WebAssembly there is no host. Then lines go to standard error, progress and output are checked and
//! forgotten, what is measured is forgotten, and everything else answers `Unavailable`, so `cargo test` runs a plugin's logic as it is.

pub mod agents;
pub mod attempt;
pub mod batch;
pub mod cache;
pub mod config;
pub mod history;
pub mod log;
pub mod metrics;
pub mod output;
pub mod progress;
pub mod tasks;

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod bindings;
mod failure;
mod handler;
mod host;
mod json_path;
mod payload;

pub use failure::Failure;
pub use handler::{AsGiven, AsJson, Input, Output, TaskPlugin, handle, unknown_kind};
pub use keiko_sdk_macros::plugin;
pub use payload::Payload;
