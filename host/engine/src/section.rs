//! In which section of an upload a byte lies, for whoever reads why the upload is refused: read from the headers of its sections
//! alone, which may be malformed themselves.

/// Bytes of a module's or component's own header.
const HEADER_BYTES: usize = 8;
/// Names of a core module's sections, by their numbers.
const OF_MODULE: [&str; 14] = [
    "custom",
    "type",
    "import",
    "function",
    "table",
    "memory",
    "global",
    "export",
    "start",
    "element",
    "code",
    "data",
    "data count",
    "tag",
];
/// Names of a component's sections, by their numbers.
const OF_COMPONENT: [&str; 13] = [
    "custom",
    "core module",
    "core instance",
    "core type",
    "component",
    "instance",
    "alias",
    "type",
    "canonical function",
    "start",
    "import",
    "export",
    "value",
];
/// A section of a component that is a whole module or component itself.
const NESTED: [u8; 2] = [1, 4];

/// Where a byte lies, to be read behind its place: `in the code section of the core module at byte 81`; `None` when it lies in no
/// section, as at the end of what is cut off there.
pub(crate) fn at(bytes: &[u8], place: usize) -> Option<String> {
    let (mut start, mut found) = (0, None);
    // Each round goes one level deeper, to where bytes are left.
    while let Some(section) = section(bytes, start, place) {
        let of = match (start, section.is_of_module) {
            (0, _) => String::new(),
            (start, true) => format!(" of the core module at byte {start}"),
            (start, false) => format!(" of the component at byte {start}"),
        };
        found = Some(format!("in the {} section{of}", section.name));
        match section.nested {
            Some(nested) if nested <= place => start = nested,
            _ => break,
        }
    }
    found
}

struct Section {
    name: String,
    is_of_module: bool,
    /// Where the module or component begins that it is.
    nested: Option<usize>,
}

/// The section, of the module or component that begins at `start`, in which a byte lies, or at whose end the bytes do.
fn section(bytes: &[u8], start: usize, place: usize) -> Option<Section> {
    let is_of_module = *bytes.get(start + 6)? == 0;
    let mut from = start + HEADER_BYTES;
    while from <= place {
        let number = *bytes.get(from)?;
        let (length, body) = length(bytes, from + 1);
        let end = length.and_then(|length| body.checked_add(length));
        if end.is_none_or(|end| place < end || end > bytes.len()) {
            let nested = (!is_of_module && NESTED.contains(&number)).then_some(body);
            return Some(Section { name: name(is_of_module, number), is_of_module, nested });
        }
        from = end?;
    }
    None
}

fn name(is_of_module: bool, number: u8) -> String {
    let names: &[&str] = if is_of_module { &OF_MODULE } else { &OF_COMPONENT };
    names.get(usize::from(number)).map_or_else(|| format!("unknown ({number})"), |name| (*name).to_owned())
}

/// A length of up to 32 bits that stands here, and where what it is of begins; none when it is malformed or cut off.
fn length(bytes: &[u8], from: usize) -> (Option<usize>, usize) {
    let mut length = 0_usize;
    for (at, byte) in bytes.iter().skip(from).take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return (Some(length), from + at + 1);
        }
    }
    (None, from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], place: usize, expected: Option<&str>) {
        assert_eq!(at(bytes, place).as_deref(), expected, "{place}");
    }

    fn find(bytes: &[u8], text: &[u8]) -> usize {
        bytes.windows(text.len()).position(|part| part == text).unwrap()
    }

    #[test]
    fn a_byte_is_told_with_its_section_at_every_depth() {
        let module = r#"(core module (func (export "apple")) (data "cherry") (@custom "n" "plum"))"#;
        let text = format!(r#"(component (import "pear" (func)) (component {module}) {module})"#);
        let bytes = wat::parse_str(text).unwrap();
        check(&bytes, 3, None);
        check(&bytes, find(&bytes, b"pear"), Some("in the import section"));
        let inner = find(&bytes[8..], b"\0asm\x0d") + 8;
        let module = find(&bytes, b"\0asm\x01");
        assert!(inner < module);
        let of_module = |name: &str| format!("in the {name} section of the core module at byte {module}");
        check(&bytes, find(&bytes, b"apple"), Some(&of_module("export")));
        check(&bytes, find(&bytes, b"cherry"), Some(&of_module("data")));
        check(&bytes, find(&bytes, b"plum"), Some(&of_module("custom")));
        check(
            &bytes,
            module + 2,
            Some(&format!("in the core module section of the component at byte {inner}")),
        );
        check(&bytes, bytes.len(), None);
    }

    #[test]
    fn what_is_cut_off_or_malformed_is_told_as_far_as_it_goes() {
        let module = wat::parse_str(r#"(module (func (export "apple")))"#).unwrap();
        let cut = &module[..find(&module, b"apple") + 2];
        check(cut, cut.len(), Some("in the export section"));
        for length in 0..module.len() {
            for place in 0..=length + 1 {
                drop(at(&module[..length], place));
            }
        }
        check(b"\0asm\x01\0\0\0\x63\x01\0", 10, Some("in the unknown (99) section"));
        check(b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\xff", 12, Some("in the type section"));
        check(b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\x0f", 13, Some("in the type section"));
        // Components in components without end.
        let mut deep = Vec::new();
        for _ in 0..10_000 {
            deep.extend(b"\0asm\x0d\0\x01\0\x04\xff\xff\xff\xff\x07");
        }
        assert!(at(&deep, deep.len() - 1).is_some());
    }
}
