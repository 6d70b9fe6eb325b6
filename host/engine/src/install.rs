//! From the bytes of a component to a generation that runs: what it imports and exports, what it needs, and whether it
//! starts at all.

use std::sync::Arc;

use async_trait::async_trait;
use keiko_core::code::Code;
use keiko_core::effect::ChildWish;
use keiko_core::id::{Digest, TaskId};
use keiko_core::limit::{LimitFact, MEMORIES_MAX, SetBy, TABLE_ELEMENTS_MAX, TABLES_MAX};
use keiko_core::manifest::{Manifest, Random};
use keiko_core::policy::{BUDGET_CEILING, BUDGET_DEFAULT, Budget, Grants, Limit};
use keiko_core::port::{Attempt, AttemptFacts, HostPort, InstallError, ReserveError, Reserved};
use keiko_core::stop::Stop;
use keiko_core::task::{Lineage, Payload};
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, ComponentExportIndex, Linker};

use crate::PAGE_BYTES;
use crate::attempt;
use crate::bindings::TaskHostIndices;
use crate::bindings::batch::BatchHostIndices;
use crate::compile::internal;
use crate::export;
use crate::import::INTERFACES;
use crate::import::wasi::VERSION;
use crate::registry::{Generation, Linked, Tasks};
use crate::scan::invalid;
use crate::state::State;

/// What a component exports to be a program, without its version.
pub(crate) const PROGRAM: &str = "wasi:cli/run";
/// What a plugin may export beside its interfaces, for its kept instances.
const RESET: &str = "reset";
/// Wall clock of the trial instantiation, in milliseconds.
const TRIAL_WALL_MS: u64 = 10_000;

/// Names of everything a component imports, in order.
pub(crate) fn imports(component: &Component) -> Vec<String> {
    let ty = component.component_type();
    ty.imports(component.engine()).map(|(name, _)| name.to_owned()).collect()
}

/// Links a component, or says what this host does not have.
pub(crate) fn link(linker: &Linker<State>, component: &Component) -> Result<Linked, InstallError> {
    let runs_tasks = exports(component, export::task::NAME, "run", export::task::typecheck)?;
    let works_batches = exports(component, export::batch::NAME, "process", export::batch::typecheck)?;
    let program = if runs_tasks || works_batches { None } else { program(component)? };
    if !runs_tasks && !works_batches && program.is_none() {
        return Err(exports_nothing(component));
    }
    for name in imports(component) {
        check_import(&name)?;
    }
    let unlinked = |error| invalid(format!("the component does not link: {error:#}"));
    let pre = linker.instantiate_pre(component).map_err(unlinked)?;
    let plugin = runs_tasks.then(|| TaskHostIndices::new(&pre)).transpose().map_err(unlinked)?;
    let batch = works_batches.then(|| BatchHostIndices::new(&pre)).transpose().map_err(unlinked)?;
    let tasks = plugin.map(Tasks::Plugin).or(program.map(Tasks::Program));
    Ok(Linked { pre, tasks, batch, reset: reset(component)? })
}

/// The function that a plugin wants called before an instance of it is used again.
fn reset(component: &Component) -> Result<Option<ComponentExportIndex>, InstallError> {
    let Some((item, index)) = component.get_export(None, RESET) else { return Ok(None) };
    let ty = component.component_type();
    let is_one = |item: &ComponentItem| match item {
        ComponentItem::ComponentFunc(reset) => reset.typecheck::<(), ()>(&ty.instance_type()).is_ok(),
        _ => false,
    };
    if !is_one(&item) {
        return Err(invalid(format!("the export `{RESET}` is no function without parameters and results")));
    }
    Ok(Some(index))
}

/// Whether a component exports an interface, whose one function then has to have its type.
fn exports(
    component: &Component,
    name: &str,
    function: &str,
    typecheck: fn(&types::ComponentFunc, &types::Component) -> wasmtime::Result<()>,
) -> Result<bool, InstallError> {
    let ty = component.component_type();
    let engine = component.engine();
    let exported = ty.get_export(engine, name).map(|export| export.ty);
    let Some(ComponentItem::ComponentInstance(interface)) = exported else { return Ok(false) };
    let exported = interface.get_export(engine, function).map(|export| export.ty);
    let Some(ComponentItem::ComponentFunc(exported)) = exported else {
        return Err(invalid(format!("the export `{name}` has no function `{function}`")));
    };
    typecheck(&exported, &ty).map(|()| true).map_err(|error| {
        invalid(format!("the function `{function}` of `{name}` has another type: {error:#}"))
    })
}

fn exports_nothing(component: &Component) -> InstallError {
    let ty = component.component_type();
    let names: Vec<_> = ty.exports(component.engine()).map(|(name, _)| format!("`{name}`")).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    let (task, batch) = (export::task::NAME, export::batch::NAME);
    invalid(format!(
        "the component does not export `{task}` or `{batch}`, nor `{PROGRAM}` to be a program; it exports {names}"
    ))
}

/// The function of a program, if the component is one.
fn program(component: &Component) -> Result<Option<ComponentExportIndex>, InstallError> {
    let (ty, engine) = (component.component_type(), component.engine());
    let mut exports = ty.exports(engine);
    let found = exports.find_map(|(name, _)| {
        let (interface, version) = name.split_once('@')?;
        (interface == PROGRAM && track(version) == track(VERSION)).then(|| name.to_owned())
    });
    let Some(name) = found else { return Ok(None) };
    let (item, instance) =
        component.get_export(None, &name).ok_or_else(|| invalid(format!("the export `{name}` is gone")))?;
    let run = component.get_export(Some(&instance), "run");
    let (ComponentItem::ComponentInstance(_), Some((ComponentItem::ComponentFunc(run), index))) = (item, run)
    else {
        return Err(invalid(format!("the export `{name}` has no function `run`")));
    };
    export::command::typecheck(&run, component)
        .map_err(|error| invalid(format!("the function `run` of `{name}` has another type: {error:#}")))?;
    Ok(Some(index))
}

/// Whether this host has an interface of that name and a compatible version.
pub(crate) fn check_import(name: &str) -> Result<(), InstallError> {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    let known = INTERFACES.iter().find(|(known, _)| *known == interface);
    if known.is_some_and(|(_, known)| track(known) == track(version)) {
        return Ok(());
    }
    let package = interface.split('/').next().unwrap_or(interface);
    let of_package: Vec<String> = INTERFACES
        .iter()
        .filter(|(known, _)| known.split('/').next() == Some(package))
        .map(|(known, version)| format!("`{known}@{version}`"))
        .collect();
    let has = match known {
        Some((known, version)) => format!("this host has `{known}@{version}`"),
        None if of_package.is_empty() => format!("this host has no package `{package}`"),
        None => format!("of that package this host has {}", of_package.join(", ")),
    };
    Err(invalid(format!("the component imports `{name}`, which this host does not have; {has}")))
}

/// The part of a version that decides compatibility: the major number, or the minor below 1.0.
pub(crate) fn track(version: &str) -> &str {
    let version = version.split(['-', '+']).next().unwrap_or(version);
    let mut dots = version.match_indices('.').map(|(place, _)| place);
    let end = if version.starts_with("0.") { dots.nth(1) } else { dots.next() };
    end.map_or(version, |end| &version[..end])
}

/// Whether what a component needs to start is within what any attempt can have.
pub(crate) fn check_resources(component: &Component) -> Result<(), InstallError> {
    let Some(needs) = component.resources_required() else {
        return Err(invalid("the component imports core modules, which no host gives"));
    };
    within("memories", u64::from(MEMORIES_MAX), u64::from(needs.num_memories))?;
    within("tables", u64::from(TABLES_MAX), u64::from(needs.num_tables))?;
    let memory = needs.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE_BYTES);
    within("memory_bytes", BUDGET_CEILING.memory_bytes, memory)?;
    within("table_elements", TABLE_ELEMENTS_MAX as u64, needs.max_initial_table_size.unwrap_or(0))
}

/// Whether so much of something is within what any attempt can have.
pub(crate) fn within(name: &str, limit: u64, asked: u64) -> Result<(), InstallError> {
    if asked <= limit {
        return Ok(());
    }
    let fact = LimitFact::of_host(name, limit, Some(asked));
    Err(InstallError { limit: Some(fact.clone()), ..beyond_pool(fact) })
}

/// The refusal of a component that needs more than any attempt can have, such as instances larger than the pool's places.
pub(crate) fn beyond_pool(error: impl std::fmt::Display) -> InstallError {
    let message = format!("the component needs more than an attempt can have: {error}");
    InstallError::new(Code::QuotaExceeded, message)
}

/// Instantiates a component once under the default limits, except that it gets the most memory that its manifest asks
/// for. What does not start here would not start in any attempt.
pub(crate) async fn try_out(
    generation: &Generation,
    manifest: Option<&Manifest>,
) -> Result<(), InstallError> {
    let attempt = trial(generation.digest(), manifest)?;
    let (budget, stop) = (attempt.budget, Stop::default());
    let state = State::new(attempt, Arc::new(Nobody), stop.clone());
    let deadline = state.deadline;
    let mut store =
        attempt::open(generation, state).map_err(|error| internal(format!("no store: {error:#}")))?;
    let ending = attempt::drive(generation.pre.instantiate_async(&mut store), &stop, deadline, None).await;
    let ending = attempt::told(ending, &mut store);
    let Some(failure) = export::trial_failure(ending, &budget) else { return Ok(()) };
    let code = match (failure.code, &failure.limit) {
        (Code::Internal, _) => Code::Internal,
        (_, Some(_)) => Code::QuotaExceeded,
        (_, None) => Code::ComponentInvalid,
    };
    let message = format!("the component does not start: {}", failure.message);
    Err(InstallError { limit: failure.limit, ..InstallError::new(code, message) })
}

fn trial(digest: Digest, manifest: Option<&Manifest>) -> Result<Attempt, InstallError> {
    let memory = Manifest::trial_memory_bytes(manifest);
    let of_host = |value| Limit { value, set_by: SetBy::Host };
    let name = |error: keiko_core::name::InvalidName| internal(error.to_string());
    Ok(Attempt {
        facts: AttemptFacts {
            tenant: "install".parse().map_err(name)?,
            task: TaskId(0),
            lineage: Lineage::root(TaskId(0)),
            number: 1,
            attempts_max: 1,
            trace: None,
        },
        digest,
        kind: "install".parse().map_err(name)?,
        input: Payload::json("null"),
        budget: Budget {
            fuel: of_host(BUDGET_DEFAULT.fuel),
            memory_bytes: of_host(memory),
            wall_ms: of_host(TRIAL_WALL_MS),
            host_calls: of_host(BUDGET_DEFAULT.host_calls),
            attempts: of_host(1),
            heartbeat_ms: None,
        },
        grants: Arc::new(Grants::new([])),
        settings: Arc::default(),
        command: None,
        keep: None,
        random: Random::Secure,
    })
}

/// The runtime of a trial, and of an instance between two attempts: there is none.
pub(crate) struct Nobody;

#[async_trait]
impl HostPort for Nobody {
    fn now_ms(&self) -> i64 {
        0
    }

    fn progress(&self, _: f64, _: String) {}

    async fn reserve(&self, _: &[ChildWish]) -> Result<Vec<Reserved>, ReserveError> {
        Err(ReserveError::Unavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_one_track_are_compatible() {
        for (version, expected) in
            [("0.1.0", "0.1"), ("0.2.12", "0.2"), ("0.3.0-rc-1", "0.3"), ("1.4.2", "1"), ("", ""), ("0", "0")]
        {
            assert_eq!(track(version), expected, "{version:?}");
        }
    }

    #[test]
    fn an_unknown_import_is_named_with_what_the_host_has() {
        let message = |name: &str| check_import(name).unwrap_err().message;
        assert!(check_import("wasi:cli/stdout@0.2.0").is_ok());
        assert!(check_import("keiko:log/log@0.1.0").is_ok());
        assert!(message("keiko:log/log@0.2.0").ends_with("this host has `keiko:log/log@0.1.0`"));
        assert!(
            message("wasi:cli/run@0.2.0")
                .contains("of that package this host has `wasi:cli/environment@0.2.12`")
        );
        assert!(message("acme:bank/account").ends_with("this host has no package `acme:bank`"));
    }
}
