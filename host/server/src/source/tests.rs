//! Which sources there are, and who may ask for them.

use super::*;

fn sources() -> Sources {
    let place = |name: &str, trust: Option<Trust>| Place::named(name, trust).unwrap();
    let acme = Place {
        tenants: Some(vec!["acme".parse().unwrap()]),
        ..place("acme.example", Some(Trust::public()))
    };
    Sources::new([
        place("ghcr.io", Some(Trust::public())),
        place("registry.example:5000", None),
        place("plain.example", None),
        acme,
    ])
}

#[test]
fn sources_are_urls_and_references() {
    for text in ["https://a.example/b.wasm", "http://a.example:81/?x=1", "oci://a.example/b:1"] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }
    assert_eq!("https://A.example/b#c".parse::<Source>().unwrap().to_string(), "https://a.example/b");
    for (text, expected) in [
        ("", "is no source"),
        ("guest.wasm", "is no source"),
        ("file:///etc/passwd", "is no source"),
        ("ftp://a.example/b", "is no source"),
        ("https://", "is no source"),
        ("https://user:password@a.example/b", "carries no login"),
        ("oci://a.example/b", "neither which tag"),
    ] {
        let error = text.parse::<Source>().unwrap_err();
        assert!(error.to_string().contains(expected), "{text}: {error}");
        assert_eq!(error.kind(), Code::InvalidInput);
    }
}

#[test]
fn a_source_is_as_long_as_its_limit_and_no_longer() {
    let source = |bytes: usize| format!("https://a.example/{:a<1$}", "", bytes - 18);
    assert_eq!(source(SOURCE_BYTES_MAX).len(), SOURCE_BYTES_MAX);
    assert!(source(SOURCE_BYTES_MAX).parse::<Source>().is_ok());
    let error = source(SOURCE_BYTES_MAX + 1).parse::<Source>().unwrap_err();
    assert_eq!(error.to_string(), "a source of 4097 bytes exceeds the limit of 4096");
}

#[test]
fn only_what_is_listed_is_asked_and_only_as_it_is_listed() {
    let sources = sources();
    let check = |tenant: &str, url: &str, expected: Option<&str>| {
        let place = sources.place(&tenant.parse().unwrap(), &Url::parse(url).unwrap());
        match (place, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                assert_eq!(error.kind(), Code::EgressBlocked);
                assert!(error.to_string().contains(expected), "{url}: {error}");
            }
            (place, _) => panic!("{url}: {place:?}"),
        }
    };
    check("other", "https://ghcr.io/a", None);
    check("other", "https://GHCR.io:443/a", None);
    check("other", "http://registry.example:5000/a", None);
    check("other", "http://plain.example/a", None);
    check("acme", "https://acme.example/a", None);
    check("other", "https://acme.example/a", Some("no source `acme.example`"));
    check("other", "http://ghcr.io/a", Some("no source `ghcr.io`"));
    check("other", "http://ghcr.io:443/a", Some("`ghcr.io` is asked by https alone"));
    check("other", "https://registry.example:5000/a", Some("`registry.example:5000` is asked by http alone"));
    check("other", "https://registry.example/a", Some("no source `registry.example`"));
    for host in [
        "ghcr.io.",
        "x.ghcr.io",
        "ghcr.io.evil.example",
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "localhost:7700",
    ] {
        check("other", &format!("https://{host}/a"), Some("the operator lists no source"));
    }
}

#[test]
fn hosts_are_listed_as_they_are_looked_up() {
    for name in ["ghcr.io", "registry.example:5000", "10.0.0.1", "[fd00::1]:5000", "ghcr.io:443"] {
        assert!(Place::named(name, Some(Trust::public())).is_some(), "{name}");
    }
    for name in [
        "",
        "GHCR.io",
        "a b",
        "a/b",
        "a.example/",
        "a.example:0x1",
        "u@a.example",
        "2130706433",
        "a.example:",
        "*.example",
    ] {
        assert!(Place::named(name, Some(Trust::public())).is_none(), "{name}");
    }
}
