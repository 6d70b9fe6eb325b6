//! The `plugin!` macro: makes a component of a manifest and one function per kind.
//!
//! Use it as `keiko_sdk::plugin!`; the code it writes names `keiko_sdk`.

mod expansion;
mod invocation;
mod manifest;

use std::path::{Path, PathBuf};

use proc_macro::TokenStream;
use syn::{Error, parse_macro_input};

use crate::invocation::Invocation;
use crate::manifest::Manifest;

/// Declare a plugin: its manifest, the function that runs each kind, and the one that works each processor's batches.
///
/// ```text
/// keiko_sdk::plugin! {
///     manifest: "plugin.toml",
///     kinds: {
///         "normalise" => normalise,
///         "merge" => films::merge,
///     },
/// }
/// ```
///
/// `manifest` is a path from the folder of `Cargo.toml`, and may be left out when it is `plugin.toml`. A handler is
/// any function `fn(I) -> Result<O, E>`: `I` what serde reads from JSON or `keiko_sdk::Payload`, `O` what serde
/// writes as JSON or `keiko_sdk::Payload`, `E` what becomes a `keiko_sdk::Failure`.
///
/// `processors: { "films" => films }` names functions `fn(Batch, Vec<Item>) -> Vec<Outcome>` of `keiko_sdk::batch`. A
/// plugin has `kinds`, `processors`, or both.
///
/// It is an error when the manifest is not one, or when its names and the handlers' are not the same. The macro
/// makes `pub struct Plugin`, which implements `keiko_sdk::TaskPlugin` on every target, so tests can run
/// `Plugin::run("normalise", payload)`. In a component it also exports `task.run` and `batch.process`, and keeps the manifest's bytes in
/// the custom section `keiko:manifest`. One crate has one `plugin!`, and a component is made of one such crate: the
/// linker joins sections of the same name, and the host refuses two manifests in one.
#[proc_macro]
pub fn plugin(input: TokenStream) -> TokenStream {
    let invocation = parse_macro_input!(input as Invocation);
    match expand(&invocation) {
        Ok(tokens) => tokens.into(),
        Err(error) => error.into_compile_error().into(),
    }
}

fn expand(invocation: &Invocation) -> syn::Result<proc_macro2::TokenStream> {
    let path = manifest_path(&invocation.manifest_name());
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::new(invocation.manifest_span(), format!("cannot read {}: {error}", path.display()))
    })?;
    let manifest = Manifest::parse(&text).map_err(|mistakes| {
        let report = format!("{} is not a plugin's manifest: {mistakes}", path.display());
        Error::new(invocation.manifest_span(), report)
    })?;
    expansion::write(invocation, &manifest, &path.to_string_lossy())
}

/// Cargo names the folder of the crate that is being built; without cargo the path counts from the working folder.
fn manifest_path(name: &str) -> PathBuf {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    Path::new(&folder).join(name)
}
