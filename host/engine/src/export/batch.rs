//! `keiko:plugin/batch`.

use keiko_core::batch::{Item, ItemOutcome};
use keiko_core::port::BatchRun;
use wasmtime::component::types;

use crate::bindings::batch::BatchHostIndices;
use crate::bindings::batch::exports::keiko::plugin::batch::{
    BatchInfo, Item as GuestItem, ItemOutcome as GuestOutcome, Later,
};
use crate::kept::Place;
use crate::registry::Generation;

/// The export's name.
pub(crate) const NAME: &str = "keiko:plugin/batch@0.1.0";

/// What `process` answers.
pub(crate) type Returned = Vec<GuestOutcome>;

/// Instantiates and calls, as for a task.
pub(crate) async fn process(
    place: &mut Place,
    generation: &Generation,
    batch: &BatchHostIndices,
    run: BatchRun,
) -> wasmtime::Result<Returned> {
    let instance = place.instance(&generation.pre).await?;
    let guest = batch.load(&mut place.store, &instance)?;
    let BatchRun { id, processor, key, items } = run;
    let info =
        BatchInfo { id, processor: processor.as_str().to_owned(), key: (!key.is_empty()).then_some(key) };
    let items: Vec<GuestItem> = items.into_iter().map(item).collect();
    guest.keiko_plugin_batch().call_process(&mut place.store, &info, &items).await
}

fn item(item: Item) -> GuestItem {
    GuestItem {
        id: item.id.to_string(),
        content_type: item.payload.content_type,
        bytes: item.payload.bytes.into(),
        attempts: item.attempts,
    }
}

/// What became of the items by the plugin's own word.
pub(crate) fn outcomes(returned: Returned) -> Vec<ItemOutcome> {
    let outcome = |outcome| match outcome {
        GuestOutcome::Done => ItemOutcome::Done,
        GuestOutcome::Retry(Later { reason, after_ms }) => ItemOutcome::Retry { after_ms, reason },
        GuestOutcome::Reject(reason) => ItemOutcome::Reject(reason),
    };
    returned.into_iter().map(outcome).collect()
}

/// Whether an exported function has the type of `process`.
pub(crate) fn typecheck(
    function: &types::ComponentFunc,
    component: &types::Component,
) -> wasmtime::Result<()> {
    function.typecheck::<(&BatchInfo, &[GuestItem]), (Returned,)>(&component.instance_type())
}
