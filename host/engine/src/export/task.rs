//! `keiko:plugin/task`.

use keiko_core::code::Code;
use keiko_core::effect::check_content_type;
use keiko_core::limit::{LimitFact, RESULT_BYTES_MAX};
use keiko_core::name::KindName;
use keiko_core::outcome::{Failure, RetryWish};
use keiko_core::task::Payload;
use wasmtime::component::types;

use super::command;
use crate::bindings::exports::keiko::plugin::task::{Failure as GuestFailure, Payload as GuestPayload};
use crate::kept::Place;
use crate::registry::{Generation, Tasks};

/// The export's name.
pub(crate) const NAME: &str = "keiko:plugin/task@0.1.0";

/// What `run` answers.
pub(crate) type Returned = Result<GuestPayload, GuestFailure>;

/// Instantiates and calls, whatever kind of component it is. Start functions run under the same limits as the call itself.
pub(crate) async fn run(
    place: &mut Place,
    generation: &Generation,
    tasks: &Tasks,
    kind: &KindName,
    input: Payload,
) -> wasmtime::Result<Returned> {
    let instance = place.instance(&generation.pre).await?;
    let store = &mut place.store;
    let guest = match tasks {
        Tasks::Plugin(indices) => indices.load(&mut *store, &instance)?,
        Tasks::Program(run) => return command::run(store, &instance, run).await,
    };
    let input = GuestPayload { content_type: input.content_type, bytes: input.bytes.into() };
    guest.keiko_plugin_task().call_run(store, kind.as_str(), &input).await
}

/// Whether an exported function has the type of `run`.
pub(crate) fn typecheck(
    function: &types::ComponentFunc,
    component: &types::Component,
) -> wasmtime::Result<()> {
    function.typecheck::<(&str, &GuestPayload), (Returned,)>(&component.instance_type())
}

/// What a task becomes of what the plugin said.
pub(crate) fn result(returned: Returned) -> Result<Payload, Failure> {
    returned.map_err(by_plugin).and_then(stored)
}

/// A result as it is stored, or the plugin's failure to keep to its contract.
fn stored(payload: GuestPayload) -> Result<Payload, Failure> {
    let bytes = payload.bytes.len() as u64;
    if bytes > RESULT_BYTES_MAX {
        return Err(too_large_a_result(Some(bytes)));
    }
    check_content_type(&payload.content_type).map_err(|problem| {
        Failure::new(
            Code::PluginFailed,
            format!("the plugin returned a result without a media type: {problem}"),
        )
    })?;
    Ok(Payload { content_type: payload.content_type, bytes: payload.bytes.into() })
}

pub(super) fn too_large_a_result(asked: Option<u64>) -> Failure {
    let fact = LimitFact::of_host("result_bytes", RESULT_BYTES_MAX, asked);
    let mut failure = Failure::new(Code::PluginFailed, format!("the result is too large: {fact}"));
    failure.limit = Some(fact);
    failure
}

fn by_plugin(failure: GuestFailure) -> Failure {
    match failure {
        GuestFailure::InvalidInput(message) => Failure::new(Code::InvalidInput, message),
        GuestFailure::Permanent(message) => Failure::new(Code::PluginFailed, message),
        GuestFailure::Retryable(retryable) => {
            let mut failure = Failure::new(Code::PluginFailed, retryable.message);
            failure.retry = RetryWish::After(retryable.retry_after_ms);
            failure
        }
    }
}
