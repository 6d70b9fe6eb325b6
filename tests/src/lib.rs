//! The whole program under test, as its users meet it: a real `keiko serve` process and its HTTP API.
//!
//! [`Host`] starts, kills and restarts the process; [`Client`] talks to it; [`Engine`] says where its tasks are, and
//! [`postgres`] and [`redis`] have servers and databases;
//! [`check`] holds the long checks that `cargo xtask check` runs, short forms of which run with the tests. Nothing here
//! links the host: what can only be seen from inside is tested in the host's own crates.

pub mod check;
mod client;
mod engine;
mod host;
pub mod postgres;
mod random;
pub mod redis;
pub mod source;
pub mod tree;
pub mod wait;

pub use client::{Answer, Client};
pub use engine::{ENGINE_VARIABLE, Engine, POSTGRESQL};
pub use host::{Host, Options};
pub use random::{Random, seed};
