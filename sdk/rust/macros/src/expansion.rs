//! Writes the plugin that a manifest and its handlers describe.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::Error;
use syn::spanned::Spanned as _;

use crate::invocation::{Handler, Invocation};
use crate::manifest::Manifest;

/// The code of one plugin. `path` is where the manifest was read; the compiler reads it there again, so that an edit
/// of the manifest builds the plugin anew.
pub(crate) fn write(invocation: &Invocation, manifest: &Manifest, path: &str) -> syn::Result<TokenStream> {
    check_same_names(invocation, manifest)?;
    let description = &manifest.description;
    let (kinds, processors) = (&manifest.kinds, &manifest.processors);
    let arms = invocation.handlers.iter().map(|handler| {
        let (kind, function) = (&handler.name, &handler.function);
        // An error of types shows the handler and not the whole macro.
        let run = quote_spanned!(function.span()=> ::keiko_sdk::handle(#function, input));
        quote!(#kind => #run)
    });
    let processor_arms = invocation.processors.iter().map(|handler| {
        let (name, function) = (&handler.name, &handler.function);
        let work = quote_spanned!(function.span()=> #function(batch, items));
        quote!(#name => #work)
    });
    Ok(quote! {
        #[doc = #description]
        pub struct Plugin;

        impl ::keiko_sdk::TaskPlugin for Plugin {
            const MANIFEST: &'static str = ::core::include_str!(#path);
            const KINDS: &'static [&'static str] = &[#(#kinds),*];
            const PROCESSORS: &'static [&'static str] = &[#(#processors),*];

            fn run(
                kind: &str,
                input: ::keiko_sdk::Payload,
            ) -> ::core::result::Result<::keiko_sdk::Payload, ::keiko_sdk::Failure> {
                match kind {
                    #(#arms,)*
                    _ => ::core::result::Result::Err(::keiko_sdk::unknown_kind(kind, Self::KINDS)),
                }
            }

            fn process(
                batch: ::keiko_sdk::batch::Batch,
                items: ::std::vec::Vec<::keiko_sdk::batch::Item>,
            ) -> ::std::vec::Vec<::keiko_sdk::batch::Outcome> {
                match batch.processor.as_str() {
                    #(#processor_arms,)*
                    other => ::keiko_sdk::batch::unknown_processor(other, Self::PROCESSORS, items.len()),
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

/// Handlers and manifest name the same kinds and processors, each once.
fn check_same_names(invocation: &Invocation, manifest: &Manifest) -> syn::Result<()> {
    let mut mistakes = Vec::new();
    same(invocation, &invocation.handlers, &manifest.kinds, "kind", &mut mistakes);
    same(invocation, &invocation.processors, &manifest.processors, "processor", &mut mistakes);
    let combined = mistakes.into_iter().reduce(|mut all, next| {
        all.combine(next);
        all
    });
    combined.map_or(Ok(()), Err)
}

fn same(
    invocation: &Invocation,
    handlers: &[Handler],
    names: &[String],
    what: &str,
    mistakes: &mut Vec<Error>,
) {
    let named = |name: &str| handlers.iter().filter(|handler| handler.name.value() == name).count();
    for (index, handler) in handlers.iter().enumerate() {
        let name = handler.name.value();
        if !names.contains(&name) {
            let known = names.join(", ");
            let report = format!("the manifest names no {what} `{name}`; its {what}s are {known}");
            mistakes.push(Error::new(handler.name.span(), report));
        } else if handlers[..index].iter().any(|earlier| earlier.name.value() == name) {
            mistakes.push(Error::new(handler.name.span(), format!("the {what} `{name}` has two handlers")));
        }
    }
    for name in names.iter().filter(|name| named(name) == 0) {
        let report = format!(
            "the manifest names the {what} `{name}`, which has no handler: add `\"{name}\" => function`"
        );
        mistakes.push(Error::new(invocation.manifest_span(), report));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(handlers: &str, kinds: &[&str]) -> Result<String, Vec<String>> {
        let invocation = syn::parse_str(&format!("kinds: {{ {handlers} }}")).unwrap();
        let kinds = kinds.iter().map(|&kind| kind.into()).collect();
        let manifest = Manifest { description: "Films.".into(), kinds, processors: Vec::new() };
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
    fn processors_are_held_to_the_manifest_as_kinds_are() {
        let invocation = syn::parse_str(r#"processors: { "films" => films }"#).unwrap();
        let manifest = |processors: &[&str]| {
            let processors = processors.iter().map(|&name| name.into()).collect();
            Manifest { description: String::new(), kinds: Vec::new(), processors }
        };
        let code = write(&invocation, &manifest(&["films"]), "/films/plugin.toml").unwrap().to_string();
        assert!(code.contains("films (batch , items)"), "{code}");
        let error = write(&invocation, &manifest(&["flims"]), "/films/plugin.toml").unwrap_err();
        let errors: Vec<String> = error.into_iter().map(|error| error.to_string()).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert_eq!(errors[0], "the manifest names no processor `films`; its processors are flims");
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
