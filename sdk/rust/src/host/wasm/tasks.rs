//! Children through the bindings, with the types turned over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::milliseconds;
use crate::Payload;
use crate::bindings::keiko::tasks::tasks as bound;
use crate::tasks::{Child, Error, Grouping, Once, Options, Retry};

pub(crate) fn submit(child: Child) -> Result<String, Error> {
    Ok(bound::submit(&child.into())?)
}

pub(crate) fn submit_many(children: Vec<Child>) -> Result<Vec<String>, Error> {
    let children: Vec<_> = children.into_iter().map(Into::into).collect();
    Ok(bound::submit_many(&children)?)
}

pub(crate) fn submit_with(children: Vec<Child>) -> Result<Vec<String>, Error> {
    let children: Vec<_> = children.into_iter().map(with).collect();
    Ok(bound::submit_with(&children)?)
}

pub(crate) fn submit_joined(
    children: Vec<Child>,
    grouping: Grouping,
    then: Child,
) -> Result<Vec<String>, Error> {
    let children: Vec<_> = children.into_iter().map(Into::into).collect();
    Ok(bound::submit_joined(&children, grouping.into(), &then.into())?)
}

pub(crate) fn submit_joined_with(
    children: Vec<Child>,
    grouping: Grouping,
    then: Child,
) -> Result<Vec<String>, Error> {
    let children: Vec<_> = children.into_iter().map(with).collect();
    let (then, options) = with(then);
    Ok(bound::submit_joined_with(&children, grouping.into(), (&then, &options))?)
}

impl From<Grouping> for bound::Grouping {
    fn from(Grouping { live_max, fail_fast }: Grouping) -> Self {
        Self { live_max, fail_fast }
    }
}

impl From<Child> for bound::Child {
    /// JSON is what the contract takes for granted, so its name need not cross.
    fn from(child: Child) -> Self {
        let content_type = child.input.content_type;
        Self {
            plugin: child.plugin,
            kind: child.kind,
            content_type: (content_type != Payload::JSON).then_some(content_type),
            input: child.input.bytes,
            key: child.key,
            delay_ms: child.delay.map(milliseconds),
        }
    }
}

fn with(mut child: Child) -> (bound::Child, bound::Options) {
    let options = std::mem::take(&mut child.options);
    (child.into(), options.into())
}

impl From<Options> for bound::Options {
    fn from(options: Options) -> Self {
        Self {
            priority: options.priority,
            run_at_ms: options.run_at.map(since_1970),
            fuel: options.fuel,
            memory_bytes: options.memory_bytes,
            timeout_ms: options.timeout.map(milliseconds),
            attempts: options.attempts,
            queued_timeout_ms: options.queued_timeout.map(milliseconds),
            total_timeout_ms: options.total_timeout.map(milliseconds),
            heartbeat_timeout_ms: options.heartbeat_timeout.map(milliseconds),
            retry: options.retry.map(Into::into),
            concurrency_key: options.concurrency_key,
            once: options.once.map(|(key, rule)| bound::Once { key, rule: rule.into() }),
        }
    }
}

impl From<Retry> for bound::Retry {
    fn from(retry: Retry) -> Self {
        let Retry { first, max, factor, jitter_percent, codes } = retry;
        Self {
            first_ms: first.map(milliseconds),
            max_ms: max.map(milliseconds),
            factor,
            jitter_percent,
            codes,
        }
    }
}

impl From<Once> for bound::OnceRule {
    fn from(once: Once) -> Self {
        match once {
            Once::Unique => Self::Unique,
            Once::UniqueOrConflict => Self::UniqueOrConflict,
            Once::Debounce { wait, max } => {
                Self::Debounce(bound::Debounce { wait_ms: milliseconds(wait), max_ms: max.map(milliseconds) })
            }
            Once::Throttle(interval) => Self::Throttle(milliseconds(interval)),
        }
    }
}

/// What lies before 1970 is due at once, as everything that is past.
fn since_1970(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

impl From<bound::Error> for Error {
    fn from(error: bound::Error) -> Self {
        match error {
            bound::Error::NotFound(what) => Self::NotFound(what),
            bound::Error::InvalidInput(how) => Self::InvalidInput(how),
            bound::Error::InputTooLarge(limit) => Self::InputTooLarge(limit),
            bound::Error::FanOutExceeded(limit) => Self::FanOutExceeded(limit),
            bound::Error::DepthExceeded(limit) => Self::DepthExceeded(limit),
            bound::Error::EffectsExceeded(limit) => Self::EffectsExceeded(limit),
            bound::Error::EffectBytesExceeded(limit) => Self::EffectBytesExceeded(limit),
            bound::Error::QueueFull(limit) => Self::QueueFull(limit),
            bound::Error::Denied => Self::Denied,
            bound::Error::Unavailable => Self::Unavailable,
            bound::Error::Other(text) => Self::Other(text),
        }
    }
}
