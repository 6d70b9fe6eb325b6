//! Engine profiles: how the engine that runs a component is set.
//!
//! Which profile a component needs follows from its bytes: the strict one, unless its toolchain uses the component model's
//! concurrency. Whether it may have that one is for the tenant's policy to say, and none does by itself.

use std::fmt;
use std::str::FromStr;

/// How an engine is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// A component has one call at a time, and nothing goes on beside it. Cheaper, and out of reach of every fault in what
    /// the other one has more.
    Strict,
    /// A component may have tasks, waitables, streams and futures of its own, in bounds.
    Concurrent,
}

impl Profile {
    /// Every profile.
    pub const ALL: &'static [Profile] = &[Profile::Strict, Profile::Concurrent];

    /// The name in configurations and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Profile::Strict => "strict",
            Profile::Concurrent => "concurrent",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an engine profile; there are: strict, concurrent")]
pub struct UnknownProfile(pub String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        let mut all = Profile::ALL.iter().copied();
        all.find(|profile| profile.as_str() == text).ok_or_else(|| UnknownProfile(text.to_owned()))
    }
}

/// The profiles that a tenant's components may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profiles {
    concurrent: bool,
}

impl Profiles {
    /// The strict one alone: what a policy permits that says nothing.
    pub const STRICT: Profiles = Profiles { concurrent: false };
    /// Every one.
    pub const ALL: Profiles = Profiles { concurrent: true };

    /// These and the strict one, which cannot be taken away.
    pub fn new(profiles: impl IntoIterator<Item = Profile>) -> Profiles {
        Profiles { concurrent: profiles.into_iter().any(|profile| profile == Profile::Concurrent) }
    }

    /// Whether a component may have it.
    pub fn permit(self, profile: Profile) -> bool {
        self.iter().any(|permitted| permitted == profile)
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Profile> {
        let of_these = move |profile: &Profile| self.concurrent || *profile == Profile::Strict;
        Profile::ALL.iter().copied().filter(of_these)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_reads_back_from_its_name() {
        for &profile in Profile::ALL {
            assert_eq!(profile.as_str().parse(), Ok(profile));
        }
        let unknown = "fast".parse::<Profile>().unwrap_err().to_string();
        assert!(Profile::ALL.iter().all(|profile| unknown.contains(profile.as_str())), "{unknown}");
    }

    #[test]
    fn concurrency_is_permitted_only_by_its_name() {
        for (listed, permits) in [
            (&[][..], false),
            (&[Profile::Strict], false),
            (&[Profile::Concurrent], true),
            (&[Profile::Strict, Profile::Concurrent], true),
        ] {
            let profiles = Profiles::new(listed.iter().copied());
            assert!(profiles.permit(Profile::Strict), "{listed:?}");
            assert_eq!(profiles.permit(Profile::Concurrent), permits, "{listed:?}");
            assert_eq!(profiles.iter().count(), 1 + usize::from(permits), "{listed:?}");
        }
        assert_eq!(Profiles::default(), Profiles::STRICT);
    }
}
