//! Names that people give: tenants, plugins, kinds, versions, processors, schedules.
//!
//! Names become rows, labels, file names and headers, so they are short, lower-case ASCII without separators
//! of any of those.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} name is 1 to 63 of {allowed}, starting with a letter or digit")]
pub struct InvalidName {
    what: &'static str,
    allowed: &'static str,
}

fn check(text: &str, extra: &[u8], upper: bool) -> bool {
    let letter =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || (upper && byte.is_ascii_uppercase());
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().next().is_some_and(letter)
        && text.bytes().all(|byte| letter(byte) || extra.contains(&byte))
}

macro_rules! names {
    ($($(#[$meta:meta])* $name:ident $what:literal $extra:literal $upper:literal $allowed:literal;)+) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if check(text, $extra, $upper) {
                    Ok($name(text.into()))
                } else {
                    Err(InvalidName { what: $what, allowed: $allowed })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

names! {
    /// A tenant's name.
    TenantName "tenant" b"-" false "a-z 0-9 -";
    /// A plugin's name, unique in its tenant.
    PluginName "plugin" b"-" false "a-z 0-9 -";
    /// A kind's name, unique in its plugin.
    KindName "kind" b"-_." false "a-z 0-9 - _ .";
    /// A processor's name, unique in its tenant.
    ProcessorName "processor" b"-_." false "a-z 0-9 - _ .";
    /// A schedule's name, unique in its tenant.
    ScheduleName "schedule" b"-_." false "a-z 0-9 - _ .";
    /// What an agent is for.
    AgentKind "agent kind" b"-_." false "a-z 0-9 - _ .";
    /// A version's name, unique in its plugin.
    VersionName "version" b"-_.+" true "A-Z a-z 0-9 - _ . +";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_letters_and_length() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        for good in ["a", "0", "movie-facts", longest.as_str()] {
            assert!(good.parse::<PluginName>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", "-a", "../x", "a/b", "A", "a b", "a\n", "é", "a.b", too_long.as_str()] {
            assert!(bad.parse::<PluginName>().is_err(), "{bad:?}");
        }
        assert!("a.b_c".parse::<KindName>().is_ok());
        assert!("1.0.0-RC.1+x".parse::<VersionName>().is_ok());
    }
}
