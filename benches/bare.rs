//! The least that anyone must do for an attempt, with the engine settings and the pool of a host: a fresh store, a WASI context,
//! fuel, an epoch deadline, a limiter, a pre-linked instance, the call, and the drop of all that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keiko_core::policy::BUDGET_DEFAULT;
use keiko_core::profile::Profile;
use keiko_engine::config::{self, Purpose};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentType, InstancePre, Lift, Linker, Lower, ResourceTable,
    ResourceType,
};
use wasmtime::{Store, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

/// A component that exports `keiko:plugin/task`, ready to be run.
pub struct Bare {
    engine: wasmtime::Engine,
    pre: InstancePre<Data>,
    run: ComponentExportIndex,
}

struct Data {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

impl WasiView for Data {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct GuestPayload {
    #[component(name = "content-type")]
    content_type: String,
    bytes: Vec<u8>,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct Retryable {
    message: String,
    #[component(name = "retry-after-ms")]
    retry_after_ms: Option<u64>,
}

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum Failure {
    #[component(name = "invalid-input")]
    InvalidInput(String),
    #[component(name = "permanent")]
    Permanent(String),
    #[component(name = "retryable")]
    Retryable(Retryable),
}

impl Bare {
    /// With a pool for so many attempts at once.
    pub fn new(bytes: &[u8], running_max: usize) -> Bare {
        let engine = config::engine(Purpose::Serve { running_max }, Profile::Strict).expect("an engine");
        let component = Component::new(&engine, bytes).expect("a component");
        let mut linker = Linker::<Data>::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).expect("WASI");
        refuse_ours(&mut linker, &component).expect("the rest");
        let pre = linker.instantiate_pre(&component).expect("a linked component");
        let task = component.get_export_index(None, "keiko:plugin/task@0.1.0").expect("a task plugin");
        let run = component.get_export_index(Some(&task), "run").expect("a task plugin");
        Bare { engine, pre, run }
    }

    /// One attempt, which must complete.
    pub async fn attempt(&self, kind: &str, input: &[u8]) {
        let data = Data {
            wasi: WasiCtxBuilder::new().build(),
            table: ResourceTable::new(),
            limits: StoreLimitsBuilder::new().memory_size(BUDGET_DEFAULT.memory_bytes as usize).build(),
        };
        let mut store = Store::new(&self.engine, data);
        store.limiter(|data| &mut data.limits);
        store.set_fuel(BUDGET_DEFAULT.fuel).expect("fuel");
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let instance = self.pre.instantiate_async(&mut store).await.expect("an instance");
        let run = instance
            .get_typed_func::<(&str, GuestPayload), (Result<GuestPayload, Failure>,)>(&mut store, self.run)
            .expect("the type of a task plugin");
        let input = GuestPayload { content_type: "application/json".to_owned(), bytes: input.to_vec() };
        let (result,) = run.call_async(&mut store, (kind, input)).await.expect("a return");
        assert!(result.is_ok());
    }

    /// Attempts on so many threads for so long; how many there were.
    pub fn attempts(&self, threads: usize, time: Duration, kind: &str, input: &[u8]) -> u64 {
        let (count, began) = (AtomicU64::new(0), Instant::now());
        let run = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                while began.elapsed() < time {
                    self.attempt(kind, input).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run))));
        count.into_inner()
    }
}

/// The interfaces of `keiko:`, whose calls trap: WASI's are there, under whichever version of 0.2 a guest names them.
fn refuse_ours(linker: &mut Linker<Data>, component: &Component) -> wasmtime::Result<()> {
    let engine = component.engine();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else { continue };
        if !name.starts_with("keiko:") {
            continue;
        }
        let mut linked = linker.instance(name)?;
        for (name, export) in interface.exports(engine) {
            match export.ty {
                ComponentItem::ComponentFunc(_) => {
                    linked.func_new(name, |_, _, _, _| wasmtime::bail!("there is no host"))?;
                }
                ComponentItem::Resource(_) => {
                    linked.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}
