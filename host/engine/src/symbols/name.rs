//! Names of functions and files as a frame tells them: demangled, and cut to a length that a task's record can carry.

use std::fmt::{self, Write};

/// Longest name of a function, and longest path of a file, that a frame tells, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 512;
/// Longest name that is demangled, in bytes.
const MANGLED_BYTES_MAX: usize = 8 << 10;
/// Stands for what was cut off.
const CUT: char = '…';

/// The name of a function for people.
pub(crate) fn function_name(mangled: &str) -> String {
    let mut name = Short(String::new());
    let written = if mangled.len() <= MANGLED_BYTES_MAX {
        write!(name, "{:#}", rustc_demangle::demangle(mangled))
    } else {
        name.write_str(mangled)
    };
    if written.is_err() {
        name.0.push(CUT);
    }
    name.0
}

/// A path whose beginning is left out when it is too long: the file stands at its end.
pub(super) fn cut_path(path: String) -> String {
    match path.len().checked_sub(NAME_BYTES_MAX) {
        None | Some(0) => path,
        Some(beyond) => format!("{CUT}{}", &path[path.ceil_char_boundary(beyond)..]),
    }
}

/// Goes from one folder on to a path, which may be absolute.
pub(super) fn join(path: &mut String, piece: &str) {
    let is_windows = |path: &str| path.starts_with('\\') || path.get(1..3) == Some(":\\");
    if piece.starts_with('/') || piece.get(1..3) == Some(":/") || is_windows(piece) {
        path.clear();
    }
    let separator = if is_windows(path) { '\\' } else { '/' };
    if !path.is_empty() && !path.ends_with(separator) {
        path.push(separator);
    }
    path.push_str(piece);
}

/// Text up to a length. Whoever writes more is told to stop: a short mangled name can stand for a very long one.
struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = NAME_BYTES_MAX.saturating_sub(self.0.len());
        let fits = text.floor_char_boundary(room);
        self.0.push_str(&text[..fits]);
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_demangled_and_cut() {
        for (mangled, expected) in [
            ("run", "run"),
            ("_ZN3app5outer17h0123456789abcdefE", "app::outer"),
            ("_RNvCs1234_3app5outer", "app::outer"),
            ("_ZN3app", "_ZN3app"),
        ] {
            assert_eq!(function_name(mangled), expected, "{mangled:?}");
        }
        let longest = "x".repeat(NAME_BYTES_MAX);
        assert_eq!(function_name(&longest), longest);
        assert_eq!(function_name(&format!("{longest}x")), format!("{longest}…"));
        // At a character's edge, and without a look at how it would be demangled.
        assert_eq!(
            function_name(&"é".repeat(MANGLED_BYTES_MAX)),
            format!("{}…", "é".repeat(NAME_BYTES_MAX / 2))
        );
    }

    #[test]
    fn a_name_that_stands_for_a_very_long_one_is_cut_while_it_is_written() {
        // Every tuple is the one before it, twice: 2^20 times `u8`.
        let mut mangled = String::from("_RIC1aThhE");
        let mut at = 3;
        for _ in 0..20 {
            let (before, next) = (at, mangled.len() - 2);
            mangled.push_str(&format!("TB{}_B{}_E", base_62(before), base_62(before)));
            at = next;
        }
        mangled.push('E');
        let name = function_name(&mangled);
        assert!(name.starts_with("a::<(u8, u8)") && name.ends_with('…'), "{name}");
        assert_eq!(name.len(), NAME_BYTES_MAX + CUT.len_utf8());
    }

    /// A place in a mangled name, counted behind its `_R`, as the name itself refers to it.
    fn base_62(place: usize) -> String {
        const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let Some(mut rest) = place.checked_sub(1) else { return String::new() };
        let mut digits = Vec::new();
        loop {
            digits.insert(0, DIGITS[rest % 62]);
            rest /= 62;
            if rest == 0 {
                return String::from_utf8(digits).unwrap();
            }
        }
    }

    #[test]
    fn paths_are_joined_and_keep_their_end() {
        for (pieces, expected) in [
            (&["/build", "src", "lib.rs"][..], "/build/src/lib.rs"),
            (&["/build/", "lib.rs"], "/build/lib.rs"),
            (&["/build", "/rustc/src", "lib.rs"], "/rustc/src/lib.rs"),
            (&["C:\\build", "src", "lib.rs"], "C:\\build\\src\\lib.rs"),
            (&["/build", "C:/src", "lib.rs"], "C:/src/lib.rs"),
            (&["lib.rs"], "lib.rs"),
        ] {
            let mut path = String::new();
            pieces.iter().for_each(|piece| join(&mut path, piece));
            assert_eq!(path, expected);
        }
        let longest = "é".repeat(NAME_BYTES_MAX / 2);
        assert_eq!(cut_path(longest.clone()), longest);
        assert_eq!(cut_path(format!("/{longest}")), format!("…{longest}"));
    }
}
