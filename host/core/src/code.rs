//! The closed list of codes that name every refusal and every failure.
//!
//! A code is stored with a failed task, sent in problem+json, put on metrics and matched by programs.
//! Never rename one; adding one is a change of the HTTP contract.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whether another attempt can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// The same input will meet the same end.
    Permanent,
    /// Tried again while attempts last.
    Retryable,
    /// Tried again, but at most this many attempts may end so.
    RetryableUpTo(u32),
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident $text:literal $status:literal $class:expr;)+) => {
        /// One reason for a refusal or a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The name programs match on.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)+ }
            }

            /// The HTTP status of an answer with this code.
            pub const fn http_status(self) -> u16 {
                match self { $(Code::$name => $status,)+ }
            }

            /// Whether a task that fails so is tried again by default.
            pub const fn retry_class(self) -> RetryClass {
                use RetryClass::{Permanent, Retryable, RetryableUpTo};
                match self { $(Code::$name => $class,)+ }
            }

            /// What the code means, in one line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc,)+),)+ }
            }
        }
    };
}

codes! {
    /// The attempt used all of its fuel.
    FuelExhausted "fuel_exhausted" 422 Permanent;
    /// The attempt reached the end of its wall clock.
    DeadlineExceeded "deadline_exceeded" 422 RetryableUpTo(2);
    /// The attempt asked for more memory or table elements than it may have.
    MemoryExceeded "memory_exceeded" 422 Permanent;
    /// The attempt used all of its stack.
    StackExhausted "stack_exhausted" 422 Permanent;
    /// The component trapped.
    Trap "trap" 422 Permanent;
    /// One host call carried more bytes than it may.
    HostcallTooLarge "hostcall_too_large" 422 Permanent;
    /// The attempt made more host calls than it may.
    HostcallBudget "hostcall_budget" 422 Permanent;
    /// The plugin said that it failed.
    PluginFailed "plugin_failed" 422 Permanent;
    /// The attempt holds more component resources than it may.
    HandlesExceeded "handles_exceeded" 422 Permanent;
    /// The policy does not grant this.
    Denied "denied" 403 Permanent;
    /// A quota of the tenant or of the request is used up or asked beyond.
    QuotaExceeded "quota_exceeded" 429 Permanent;
    /// Too many requests in too short a time.
    RateLimited "rate_limited" 429 Retryable;
    /// The upload is not a component this host can run.
    ComponentInvalid "component_invalid" 422 Permanent;
    /// Compiling the component went over a limit.
    CompileLimit "compile_limit" 422 Permanent;
    /// Stored bytes are not the bytes that were stored.
    Integrity "integrity" 500 Permanent;
    /// The queue holds as many tasks as it may.
    QueueFull "queue_full" 429 Retryable;
    /// The lease ended before the attempt did.
    LeaseLost "lease_lost" 503 Retryable;
    /// Somebody cancelled the task.
    Cancelled "cancelled" 409 Permanent;
    /// The task crashed the host three times, the last time alone.
    Quarantined "quarantined" 422 Permanent;
    /// The database is busy.
    StorageBusy "storage_busy" 503 Retryable;
    /// The database cannot be reached.
    StorageDown "storage_down" 503 Retryable;
    /// The database has no room.
    StorageFull "storage_full" 507 Retryable;
    /// The address is not one the policy allows.
    EgressBlocked "egress_blocked" 403 Permanent;
    /// An outbound request failed.
    EgressFailed "egress_failed" 502 Retryable;
    /// The input is malformed, too large, or not what its reader takes.
    InvalidInput "invalid_input" 400 Permanent;
    /// There is no such thing for this tenant.
    NotFound "not_found" 404 Permanent;
    /// The request contradicts what is stored.
    Conflict "conflict" 409 Permanent;
    /// The request carries no valid token.
    Unauthorized "unauthorized" 401 Permanent;
    /// The host is at fault.
    Internal "internal" 500 Retryable;
}

/// Some of the codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CodeSet(u64);

const _: () = assert!(Code::ALL.len() <= 64, "a set has a bit for each code");

impl CodeSet {
    /// Whether this code is among them.
    pub const fn contains(self, code: Code) -> bool {
        self.0 & (1 << code as u32) != 0
    }

    /// Them, in the order of [`Code::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Code> {
        Code::ALL.iter().copied().filter(move |code| self.contains(*code))
    }
}

impl FromIterator<Code> for CodeSet {
    fn from_iter<T: IntoIterator<Item = Code>>(codes: T) -> CodeSet {
        CodeSet(codes.into_iter().fold(0, |set, code| set | 1 << code as u32))
    }
}

/// Written as the list of their names.
impl Serialize for CodeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Code::as_str))
    }
}

impl<'de> Deserialize<'de> for CodeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CodeSet, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let codes = names.iter().map(|name| name.parse().map_err(D::Error::custom));
        codes.collect::<Result<CodeSet, _>>()
    }
}

/// A text that is none of the codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a code")]
pub struct UnknownCode(pub String);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Code::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_name() {
        for &code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
        }
        assert!("oops".parse::<Code>().is_err());
    }

    #[test]
    fn a_set_of_codes_reads_back_from_its_names() {
        let set: CodeSet = [Code::Internal, Code::FuelExhausted].into_iter().collect();
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, r#"["fuel_exhausted","internal"]"#);
        assert_eq!(serde_json::from_str::<CodeSet>(&text).unwrap(), set);
        assert!(serde_json::from_str::<CodeSet>(r#"["oops"]"#).is_err());
        let all: CodeSet = Code::ALL.iter().copied().collect();
        assert_eq!(all.iter().count(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| all.contains(*code) && !CodeSet::default().contains(*code)));
    }

    #[test]
    fn limits_are_permanent_and_faults_of_ours_are_not() {
        for code in [
            Code::FuelExhausted,
            Code::MemoryExceeded,
            Code::StackExhausted,
            Code::Trap,
            Code::Denied,
            Code::InvalidInput,
        ] {
            assert_eq!(code.retry_class(), RetryClass::Permanent, "{code}");
        }
        for code in [Code::Internal, Code::StorageBusy, Code::LeaseLost, Code::EgressFailed] {
            assert_eq!(code.retry_class(), RetryClass::Retryable, "{code}");
        }
        assert_eq!(Code::DeadlineExceeded.retry_class(), RetryClass::RetryableUpTo(2));
    }
}
