//! `keiko:plugin/task`.

use keiko_core::name::KindName;
use keiko_core::task::Payload;
use wasmtime::Store;
use wasmtime::component::types;

use super::command;
use crate::bindings::exports::keiko::plugin::task::{Failure, Payload as GuestPayload};
use crate::registry::{Entry, Generation};
use crate::state::State;

/// What `run` answers.
pub(crate) type Returned = Result<GuestPayload, Failure>;

/// Instantiates and calls, whatever kind of component it is. Start functions run under the same limits as the call itself.
pub(crate) async fn run(
    store: &mut Store<State>,
    generation: &Generation,
    kind: &KindName,
    input: Payload,
) -> wasmtime::Result<Returned> {
    let pre = match &generation.entry {
        Entry::Task(pre) => pre,
        Entry::Program(pre, run) => return command::run(store, pre, run).await,
    };
    let guest = pre.instantiate_async(&mut *store).await?;
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
