//! What lies between the host's bytes and an author's function.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch::{Batch, Item, Outcome};
use crate::{Failure, Payload};

/// A plugin that runs tasks and works batches: what `plugin!` makes of the manifest and the handlers.
pub trait TaskPlugin {
    /// The manifest as it stands in `plugin.toml`.
    const MANIFEST: &'static str;
    /// The kinds there are, in the manifest's order.
    const KINDS: &'static [&'static str];

    /// The processors there are, in the manifest's order.
    const PROCESSORS: &'static [&'static str];

    /// Run one attempt of a task. A kind that does not exist is invalid input.
    fn run(kind: &str, input: Payload) -> Result<Payload, Failure>;

    /// Work one batch: an outcome for each item, in their order. A processor that does not exist rejects them all.
    fn process(batch: Batch, items: Vec<Item>) -> Vec<Outcome>;
}

/// What a handler may take: anything serde reads from JSON ([`AsJson`]), or the [`Payload`] itself ([`AsGiven`]).
///
/// The marker only keeps the two apart for the compiler, which finds the right one itself.
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "this is not a handler's input",
    note = "derive `serde::Deserialize` for it, or take `keiko_sdk::Payload` for the bytes as they came"
)]
pub trait Input<Marker>: Sized {
    /// The input of one attempt.
    fn take(input: Payload) -> Result<Self, Failure>;
}

/// What a handler may return, as [`Input`] in the other direction.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "this is not a handler's result",
    note = "derive `serde::Serialize` for it, or return `keiko_sdk::Payload` for bytes of another format"
)]
pub trait Output<Marker> {
    /// The result of one attempt.
    fn give(self) -> Result<Payload, Failure>;
}

/// Marks what goes through JSON.
pub enum AsJson {}

/// Marks what goes through as it is.
pub enum AsGiven {}

impl<T: DeserializeOwned> Input<AsJson> for T {
    fn take(input: Payload) -> Result<Self, Failure> {
        input.parse()
    }
}

impl Input<AsGiven> for Payload {
    fn take(input: Payload) -> Result<Self, Failure> {
        Ok(input)
    }
}

impl<T: Serialize> Output<AsJson> for T {
    fn give(self) -> Result<Payload, Failure> {
        Payload::json(&self)
    }
}

impl Output<AsGiven> for Payload {
    fn give(self) -> Result<Payload, Failure> {
        Ok(self)
    }
}

/// Run `handler` on `input`. `plugin!` writes the calls.
#[doc(hidden)]
pub fn handle<I, O, E, TakeMarker, GiveMarker>(
    handler: impl FnOnce(I) -> Result<O, E>,
    input: Payload,
) -> Result<Payload, Failure>
where
    I: Input<TakeMarker>,
    O: Output<GiveMarker>,
    E: Into<Failure>,
{
    handler(I::take(input)?).map_err(Into::into)?.give()
}

/// The answer to a kind that does not exist.
#[doc(hidden)]
pub fn unknown_kind(kind: &str, kinds: &[&str]) -> Failure {
    let known = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
    Failure::invalid_input(format!("no kind {kind:?}; the kinds are {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_bytes_both_reach_a_handler() {
        let double = |number: u32| Ok::<_, Failure>(number * 2);
        assert_eq!(handle(double, Payload::new("application/json", "21")).unwrap().bytes, b"42");

        let reverse = |mut input: Payload| {
            input.bytes.reverse();
            Ok::<_, Failure>(input)
        };
        let reversed = handle(reverse, Payload::new("image/png", vec![1, 2, 3])).unwrap();
        assert_eq!(reversed, Payload::new("image/png", vec![3, 2, 1]));
    }

    #[test]
    fn an_authors_own_error_becomes_its_failure() {
        struct Full;
        impl From<Full> for Failure {
            fn from(_: Full) -> Self {
                Self::retryable("full", None)
            }
        }
        let refuse = |_: u32| Err::<u32, _>(Full);
        assert_eq!(
            handle(refuse, Payload::new("application/json", "1")),
            Err(Failure::retryable("full", None))
        );
    }

    #[test]
    fn an_unknown_kind_names_the_ones_there_are() {
        assert_eq!(
            unknown_kind("nap", &["eat", "sleep"]),
            Failure::invalid_input("no kind \"nap\"; the kinds are eat, sleep")
        );
    }
}
