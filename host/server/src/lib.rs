//! Keiko as a library and as the program `keiko`: one host in this process.
//!
//! ```no_run
//! # async fn example() -> Result<(), keiko::StartError> {
//! let host = keiko::Host::builder().data_dir("data").without_http().build().await?;
//! let handle = host.handle();
//! # let _ = handle;
//! host.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! A program that embeds a host is started by it as the compile child: it calls [`compile_child`] first in its
//! `main` when its first argument is [`COMPILE_CHILD`], or names another program by [`HostBuilder::compiler`].

pub mod api;
pub mod auth;
#[doc(hidden)]
pub mod cli;
pub mod config;
mod limits;
mod seen;
pub mod signature;
pub mod source;
mod store;
pub mod token;
mod watch;
mod wiring;

pub use keiko_engine::compile_child;
pub use keiko_runtime::Handle;
pub use keiko_store::postgres::PoolFigures;
pub use store::OpenError;
pub use wiring::{ADDRESS_FILE, COMPILE_CHILD, Host, HostBuilder, StartError, SystemClock};
