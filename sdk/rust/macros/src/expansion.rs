//! Writes the plugin that a manifest and its handlers describe.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::Error;
use syn::spanned::Spanned as _;

use crate::invocation::Invocation;
use crate::manifest::Manifest;

/// The code of one plugin. `path` is where the manifest was read; the compiler reads it there again, so that an edit
/// of the manifest builds the plugin anew.
pub(crate) fn write(invocation: &Invocation, manifest: &Manifest, path: &str) -> syn::Result<TokenStream> {
    check_same_kinds(invocation, manifest)?;
    let description = &manifest.description;
    let kinds = &manifest.kinds;
    let arms = invocation.handlers.iter().map(|handler| {
        let (kind, function) = (&handler.kind, &handler.function);
        // An error of types shows the handler and not the whole macro.
        let run = quote_spanned!(function.span()=> ::keiko_sdk::handle(#function, input));
        quote!(#kind => #run)
    });
    Ok(quote! {
        #[doc = #description]
        pub struct Plugin;

        impl ::keiko_sdk::TaskPlugin for Plugin {
            const MANIFEST: &'static str = ::core::include_str!(#path);
            const KINDS: &'static [&'static str] = &[#(#kinds),*];

            fn run(
                kind: &str,
                input: ::keiko_sdk::Payload,
            ) -> ::core::result::Result<::keiko_sdk::Payload, ::keiko_sdk::Failure> {
                match kind {
                    #(#arms,)*
                    _ => ::core::result::Result::Err(::keiko_sdk::unknown_kind(kind, Self::KINDS)),
                }
            }
        }

        #[cfg(target_family = "wasm")]
        const _: () = {
            #[used]
            #[allow(unsafe_code, reason = "a custom section is data that nothing in the program reads")]
            #[unsafe(link_section = "keiko:manifest")]
            static MANIFEST: [u8; ::core::include_bytes!(#path).len()] = *::core::include_bytes!(#path);

            ::keiko_sdk::bindings::export!(Plugin with_types_in ::keiko_sdk::bindings);
        };
    })
}

/// Handlers and manifest name the same kinds, each once.
fn check_same_kinds(invocation: &Invocation, manifest: &Manifest) -> syn::Result<()> {
    let handlers = &invocation.handlers;
    let named = |kind: &str| handlers.iter().filter(|handler| handler.kind.value() == kind).count();
    let mut mistakes = Vec::new();
    for (index, handler) in handlers.iter().enumerate() {
        let kind = handler.kind.value();
        if !manifest.kinds.contains(&kind) {
            let known = manifest.kinds.join(", ");
            let report = format!("the manifest names no kind `{kind}`; its kinds are {known}");
            mistakes.push(Error::new(handler.kind.span(), report));
        } else if handlers[..index].iter().any(|earlier| earlier.kind.value() == kind) {
            mistakes.push(Error::new(handler.kind.span(), format!("the kind `{kind}` has two handlers")));
        }
    }
    for kind in manifest.kinds.iter().filter(|kind| named(kind) == 0) {
        let report = format!(
            "the manifest names the kind `{kind}`, which has no handler: add `\"{kind}\" => function`"
        );
        mistakes.push(Error::new(invocation.manifest_span(), report));
    }
    let combined = mistakes.into_iter().reduce(|mut all, next| {
        all.combine(next);
        all
    });
    combined.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(handlers: &str, kinds: &[&str]) -> Result<String, Vec<String>> {
        let invocation = syn::parse_str(&format!("kinds: {{ {handlers} }}")).unwrap();
        let manifest =
            Manifest { description: "Films.".into(), kinds: kinds.iter().map(|&kind| kind.into()).collect() };
        match write(&invocation, &manifest, "/films/plugin.toml") {
            Ok(tokens) => Ok(tokens.to_string()),
            Err(error) => Err(error.into_iter().map(|error| error.to_string()).collect()),
        }
    }

    fn check_refused(handlers: &str, kinds: &[&str], mistakes: &[&str]) {
        assert_eq!(expand(handlers, kinds).unwrap_err(), mistakes, "{handlers}");
    }

    #[test]
    fn the_plugin_is_whole_rust_items() {
        let code = expand(r#""b" => b, "a" => films::a"#, &["a", "b"]).unwrap();
        let file: syn::File = syn::parse_str(&code).unwrap();
        assert_eq!(file.items.len(), 3, "{code}");
        assert!(code.contains("\"/films/plugin.toml\""), "{code}");
        assert!(code.contains("\"keiko:manifest\""), "{code}");
    }

    #[test]
    fn a_difference_between_manifest_and_handlers_is_named() {
        check_refused(
            r#""count" => count"#,
            &["count", "merge"],
            &["the manifest names the kind `merge`, which has no handler: add `\"merge\" => function`"],
        );
        check_refused(
            r#""count" => count, "cuont" => count"#,
            &["count", "merge"],
            &[
                "the manifest names no kind `cuont`; its kinds are count, merge",
                "the manifest names the kind `merge`, which has no handler: add `\"merge\" => function`",
            ],
        );
        check_refused(
            r#""count" => count, "count" => other"#,
            &["count"],
            &["the kind `count` has two handlers"],
        );
    }
}
