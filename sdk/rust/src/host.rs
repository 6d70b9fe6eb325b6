//! The one seam to the host: the bindings in a component, a stand-in everywhere else.
//!
//! Both sides have the same functions, so nothing above this module knows which one it talks to.

#[cfg(not(target_family = "wasm"))]
mod native;
#[cfg(target_family = "wasm")]
mod wasm;

#[cfg(not(target_family = "wasm"))]
pub(crate) use native::*;
#[cfg(target_family = "wasm")]
pub(crate) use wasm::*;
