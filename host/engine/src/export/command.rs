//! `wasi:cli/run`: a program is given its input on stdin, and prints its result.
//!
//! Its exit status is the outcome: 0, and what the manifest names, completes the task, 65 (`EX_DATAERR`) refuses its input, 75 (`EX_TEMPFAIL`) may go
//! better another time, and any other fails it. The message is the end of what it wrote to stderr.

use wasmtime::Store;
use wasmtime::component::{Component, ComponentExportIndex, Instance, types};
use wasmtime_wasi::I32Exit;

use super::task::Returned;
use crate::bindings::exports::keiko::plugin::task::{Failure, Payload};
use crate::bindings::keiko::plugin::types::Retryable;
use crate::state::State;

/// What a program's function answers.
type Ran = (Result<(), ()>,);

/// The input is not what the program can read.
const DATA_ERROR: i32 = 65;
/// Another attempt may help.
const TEMPORARY_FAILURE: i32 = 75;

/// Runs.
pub(crate) async fn run(
    store: &mut Store<State>,
    instance: &Instance,
    run: &ComponentExportIndex,
) -> wasmtime::Result<Returned> {
    let run = instance.get_typed_func::<(), Ran>(&mut *store, run)?;
    let status = match run.call_async(&mut *store, ()).await {
        Ok((ended,)) => i32::from(ended.is_err()),
        Err(error) => match error.downcast_ref() {
            Some(I32Exit(status)) => *status,
            None => return Err(error),
        },
    };
    let state = store.data_mut();
    let completes = state.completes(status);
    let mut console = state.console.lock();
    Ok(match completes {
        Some(content_type) => Ok(Payload { content_type, bytes: console.take_output() }),
        None => Err(failure(status, console.last_words())),
    })
}

fn failure(status: i32, last_words: Option<String>) -> Failure {
    let words = last_words.map(|words| format!(": {words}")).unwrap_or_default();
    let message = format!("the program ended with status {status}{words}");
    match status {
        DATA_ERROR => Failure::InvalidInput(message),
        TEMPORARY_FAILURE => Failure::Retryable(Retryable { message, retry_after_ms: None }),
        _ => Failure::Permanent(message),
    }
}

/// Whether an exported function has the type of a program's.
pub(crate) fn typecheck(function: &types::ComponentFunc, component: &Component) -> wasmtime::Result<()> {
    function.typecheck::<(), Ran>(&component.component_type().instance_type())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_whose_fault_it_is_and_whether_to_try_again() {
        let words = || Some("no more\nroom".to_owned());
        let text = |status: i32| format!("the program ended with status {status}: no more\nroom");
        assert!(matches!(failure(1, words()), Failure::Permanent(said) if said == text(1)));
        assert!(matches!(failure(65, words()), Failure::InvalidInput(said) if said == text(65)));
        let retryable = failure(75, words());
        assert!(matches!(retryable, Failure::Retryable(Retryable { message, .. }) if message == text(75)));
        assert!(
            matches!(failure(2, None), Failure::Permanent(said) if said == "the program ended with status 2")
        );
    }
}
