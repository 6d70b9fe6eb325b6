//! `--input`: JSON on the command line, a file, or stdin.

use std::io::Read;
use std::path::Path;

use keiko_core::limit::INPUT_BYTES_MAX;
use keiko_core::task::Payload;
use serde_json::value::RawValue;

use super::exit::Failure;

/// Reads the input. What parses as JSON is JSON; `-` is stdin; everything else names a file, whose content is JSON
/// when it parses as such and bytes otherwise. A given media type makes it bytes of that type.
pub(super) fn read(text: Option<&str>, content_type: Option<&str>) -> Result<Payload, Failure> {
    let Some(text) = text else { return Ok(Payload::json("null")) };
    let bytes = if text == "-" {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| Failure::Usage(format!("stdin cannot be read: {error}")))?;
        bytes
    } else if is_json(text.as_bytes()) {
        text.as_bytes().to_vec()
    } else {
        let path = Path::new(text);
        std::fs::read(path).map_err(|error| {
            Failure::Usage(format!("--input is neither JSON nor a file that can be read: `{text}`: {error}"))
        })?
    };
    Ok(match content_type {
        Some(content_type) => Payload { content_type: content_type.to_owned(), bytes: bytes.into() },
        None if is_json(&bytes) => Payload::json(bytes.trim_ascii().to_vec()),
        None => Payload { content_type: "application/octet-stream".to_owned(), bytes: bytes.into() },
    })
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_json_a_file_or_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_string_lossy().into_owned()
        };
        let check = |text: Option<&str>, content_type: Option<&str>, expected: (&str, &[u8])| {
            let payload = read(text, content_type).unwrap();
            assert_eq!((payload.content_type.as_str(), payload.bytes.as_ref()), expected, "{text:?}");
        };
        check(None, None, ("application/json", b"null"));
        check(Some(r#"{"a": 1.0}"#), None, ("application/json", br#"{"a": 1.0}"#));
        check(Some(&file("a.json", b"[1]\n")), None, ("application/json", b"[1]"));
        check(Some(&file("a.csv", b"a,b\n")), None, ("application/octet-stream", b"a,b\n"));
        check(Some(&file("b.json", b"[1]\n")), Some("text/plain"), ("text/plain", b"[1]\n"));
        assert!(
            read(Some("nowhere.json"), None).unwrap_err().to_string().contains("neither JSON nor a file")
        );
    }
}
