//! Says where in a JSON text an error is: `films[3].title`.
//!
//! serde_json knows the line and column, people look for the field. Instead of tracking the path on every parse
//! (slower, and larger for every type), this walks the text once more after an error, up to the error's place.

/// Bytes of path shown; a deeper place is shown by the end of its path.
const PATH_BYTES_MAX: usize = 200;

/// The path at `line` and `column`, both as serde_json counts them: lines from 1, columns in bytes.
///
/// `None` at the top level, or when the place is not in `text`.
pub(crate) fn at(text: &[u8], line: usize, column: usize) -> Option<String> {
    let mut walk = Walk::default();
    let end = offset(text, line, column)?;
    let mut position = 0;
    while position < end {
        position = walk.step(text, position, end);
    }
    walk.path()
}

/// One object or list that is open at the place.
enum Step {
    Field { name: String, is_named: bool },
    Item(usize),
}

#[derive(Default)]
struct Walk {
    open: Vec<Step>,
}

impl Walk {
    /// Takes the token at `position` and returns where the next one starts.
    fn step(&mut self, text: &[u8], position: usize, end: usize) -> usize {
        match text[position] {
            b'{' => self.open.push(Step::Field { name: String::new(), is_named: false }),
            b'[' => self.open.push(Step::Item(0)),
            b'}' | b']' => {
                self.open.pop();
            }
            b',' => match self.open.last_mut() {
                Some(Step::Item(index)) => *index += 1,
                Some(Step::Field { is_named, .. }) => *is_named = false,
                None => {}
            },
            b'"' => return self.string(text, position, end),
            _ => {}
        }
        position + 1
    }

    /// A string names the next field unless the field it stands in already has its name.
    fn string(&mut self, text: &[u8], start: usize, end: usize) -> usize {
        let mut position = start + 1;
        while position < end && text[position] != b'"' {
            position += if text[position] == b'\\' { 2 } else { 1 };
        }
        if let Some(Step::Field { name, is_named: is_named @ false }) = self.open.last_mut() {
            *name = String::from_utf8_lossy(&text[start + 1..position.min(end)]).into_owned();
            *is_named = true;
        }
        position + 1
    }

    fn path(&self) -> Option<String> {
        let mut path = String::new();
        for step in &self.open {
            match step {
                Step::Field { name, .. } if name.is_empty() => {}
                Step::Field { name, .. } if path.is_empty() => path.push_str(name),
                Step::Field { name, .. } => path.extend([".", name]),
                Step::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        (!path.is_empty()).then(|| shorten(path))
    }
}

/// The place as an offset, or `None` when there is no such line.
fn offset(text: &[u8], line: usize, column: usize) -> Option<usize> {
    let mut start = 0;
    for _ in 1..line {
        start += text[start..].iter().position(|&byte| byte == b'\n')? + 1;
    }
    Some((start + column).min(text.len()))
}

fn shorten(path: String) -> String {
    if path.len() <= PATH_BYTES_MAX {
        return path;
    }
    let mut start = path.len() - PATH_BYTES_MAX;
    while !path.is_char_boundary(start) {
        start += 1;
    }
    format!("…{}", &path[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `|` marks the place in `text`.
    fn check(text: &str, expected: Option<&str>) {
        let place = text.find('|').unwrap();
        let text = text.replace('|', "");
        let line = text[..place].matches('\n').count() + 1;
        let column = place - text[..place].rfind('\n').map_or(0, |newline| newline + 1);
        assert_eq!(at(text.as_bytes(), line, column).as_deref(), expected, "{text}");
    }

    #[test]
    fn a_place_is_named_by_fields_and_numbers() {
        check("{\"a\": 1|}", Some("a"));
        check("{\"a\": 1, \"b\": 2|}", Some("b"));
        check("{\"a\": {\"b\": [1, [2, 3|]]}}", Some("a.b[1][1]"));
        check("[{\"a\": 1},\n {\"b\": tr|ue}]", Some("[1].b"));
        check("{\"a\": {\"b\": 1}|}", Some("a"));
    }

    #[test]
    fn text_inside_strings_is_no_structure() {
        check(r#"{"a": "}],{[\"", "b": 1|}"#, Some("b"));
        check(r#"{"a\"b": 1|}"#, Some(r#"a\"b"#));
        check("{\"a\": \"b\", \"c\": \"d|\"}", Some("c"));
    }

    #[test]
    fn the_top_level_has_no_path() {
        check("|", None);
        check("tru|", None);
        check("{}|", None);
    }

    #[test]
    fn a_broken_text_is_walked_without_harm() {
        check("{\"a|", Some("a"));
        check("{\"a\\|", Some("a\\"));
        check("]]}}|", None);
        check("{\"a\": [,,|", Some("a[2]"));
        assert_eq!(at(b"{}", 9, 9), None);
        assert_eq!(at(b"{\"a\": 1}", 1, 999), None);
    }

    #[test]
    fn a_long_path_keeps_its_end() {
        let text = format!("{{\"{}é\": {{\"last\": 1", "a".repeat(300));
        let path = at(text.as_bytes(), 1, text.len()).unwrap();
        assert!(path.len() <= PATH_BYTES_MAX + '…'.len_utf8(), "{}", path.len());
        assert!(path.ends_with("aé.last"), "{path}");
    }
}
