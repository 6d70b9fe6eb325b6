//! Reads what stands between the braces of `plugin! { … }`.

use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Ident, LitStr, Path, Token, braced};

const MANIFEST_DEFAULT: &str = "plugin.toml";

/// `manifest: "plugin.toml", kinds: { "name" => function, … }, processors: { "name" => function, … }`
pub(crate) struct Invocation {
    manifest: Option<LitStr>,
    /// Of kinds.
    pub(crate) handlers: Vec<Handler>,
    pub(crate) processors: Vec<Handler>,
}

/// `"name" => function`
pub(crate) struct Handler {
    pub(crate) name: LitStr,
    pub(crate) function: Path,
}

impl Invocation {
    pub(crate) fn manifest_name(&self) -> String {
        self.manifest.as_ref().map_or_else(|| MANIFEST_DEFAULT.into(), LitStr::value)
    }

    /// Where a mistake in the manifest is shown.
    pub(crate) fn manifest_span(&self) -> Span {
        self.manifest.as_ref().map_or_else(Span::call_site, LitStr::span)
    }
}

impl Parse for Invocation {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut manifest = None;
        let (mut handlers, mut processors) = (None, None);
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            input.parse::<Token![:]>()?;
            match name.to_string().as_str() {
                "manifest" if manifest.is_none() => manifest = Some(input.parse()?),
                "kinds" if handlers.is_none() => handlers = Some(list(input)?),
                "processors" if processors.is_none() => processors = Some(list(input)?),
                "manifest" | "kinds" | "processors" => {
                    return Err(Error::new(name.span(), format!("`{name}` stands here twice")));
                }
                _ => return Err(Error::new(name.span(), "expected `manifest`, `kinds` or `processors`")),
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        if handlers.is_none() && processors.is_none() {
            return Err(input.error("expected `kinds: { \"name\" => function }`"));
        }
        let (handlers, processors) = (handlers.unwrap_or_default(), processors.unwrap_or_default());
        Ok(Self { manifest, handlers, processors })
    }
}

/// `{ "name" => function, … }`
fn list(input: ParseStream<'_>) -> syn::Result<Vec<Handler>> {
    let content;
    braced!(content in input);
    Ok(Punctuated::<Handler, Token![,]>::parse_terminated(&content)?.into_iter().collect())
}

impl Parse for Handler {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![=>]>()?;
        Ok(Self { name, function: input.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, &[&str]), &str>) {
        match (syn::parse_str::<Invocation>(text), expected) {
            (Ok(invocation), Ok((manifest, kinds))) => {
                assert_eq!(invocation.manifest_name(), manifest, "{text}");
                let found: Vec<_> = invocation.handlers.iter().map(|handler| handler.name.value()).collect();
                assert_eq!(found, kinds, "{text}");
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{text}: {error}"),
            (Ok(_), Err(expected)) => panic!("{text} should be refused: {expected}"),
            (Err(error), Ok(_)) => panic!("{text}: {error}"),
        }
    }

    #[test]
    fn manifest_and_kinds_are_read_in_any_order() {
        check(r#"manifest: "a.toml", kinds: { "a" => a, "b" => c::d, }"#, Ok(("a.toml", &["a", "b"])));
        check(r#"kinds: { "a" => a }, manifest: "a.toml","#, Ok(("a.toml", &["a"])));
        check(r#"kinds: { "a" => a }"#, Ok(("plugin.toml", &["a"])));
        check("kinds: {}", Ok(("plugin.toml", &[])));
        check(r#"processors: { "p" => p }"#, Ok(("plugin.toml", &[])));
        let both: Invocation = syn::parse_str(r#"kinds: { "a" => a }, processors: { "p" => p }"#).unwrap();
        assert_eq!((both.handlers.len(), both.processors[0].name.value()), (1, "p".to_owned()));
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        check("", Err("expected `kinds"));
        check(r#"manifest: "a.toml""#, Err("expected `kinds"));
        check("sorts: {}", Err("expected `manifest`, `kinds` or `processors`"));
        check("processors: {}, processors: {}", Err("`processors` stands here twice"));
        check("kinds: {}, kinds: {}", Err("`kinds` stands here twice"));
        check("kinds: { a => a }", Err("expected string literal"));
        check(r#"kinds: { "a": a }"#, Err("expected `=>`"));
    }
}
