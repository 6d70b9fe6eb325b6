//! `keiko inspect`: what a component is, what it needs, and what a policy would refuse, without a host.

use std::path::PathBuf;
use std::process::ExitCode;

use keiko_core::admission::admit;
use keiko_core::manifest::{KindSection, Manifest, Random};
use keiko_core::policy::{BudgetRequest, TenantPolicy};
use keiko_core::port::InstallError;
use keiko_engine::{Inspection, Need, inspect as look};
use serde_json::{Value, json};

use super::config::Place;
use super::exit::{self, Failure};
use super::{print, sign};
use crate::config::TenantConfig;
use crate::signature::Signers;

/// What `--help` says.
pub(super) const ABOUT: &str = "\
Show what a component or WASI program is: its world, the engine profile it needs, what it imports and the grant that each needs, what it exports, \
its kinds, sizes and tools, and what a tenant's policy would refuse. It is read and not compiled: what only the compiler \
sees is told at the install.

Exit status: 0 a host would take it as far as can be told, 2 the command line is wrong, 3 it would be refused.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The component or program (.wasm)
    #[arg(value_name = "COMPONENT")]
    component: PathBuf,
    /// Its manifest, when it carries none itself
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// The signature of both, for a tenant that takes signed ones only [default: beside the component, if it is there]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// The tenant whose policy counts, of the configuration [default: the only one]
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))
    };
    let tenant = tenant(arguments)?;
    let text = arguments.manifest.as_ref().map(read).transpose()?;
    let beside = text.as_deref().map(Manifest::parse).transpose();
    let beside = beside.map_err(|error| Failure::Usage(format!("the manifest: {error}")))?;
    let component = read(&arguments.component)?;
    let found = look(&component).map_err(|error| {
        Failure::Refused(format!("{} ({})", print::clean_lines(&error.message), error.code))
    })?;
    let manifest = beside.or_else(|| found.manifest.clone());
    let mut verdict = Verdict::of(&found, manifest.as_ref(), &tenant.options.policy);
    if !tenant.signers.is_empty() {
        let file = Some(sign::beside(&arguments.component)).filter(|file| file.is_file());
        let signature = arguments.signature.clone().or(file).map(|file| read(&file)).transpose()?;
        let signature = signature.map(|text| String::from_utf8_lossy(&text).into_owned());
        let believed = Signers::believe(&tenant.signers, &component, text.as_deref(), signature.as_deref());
        verdict.refused.extend(believed.err().map(|error| error.message));
    }
    if arguments.json {
        print::out(&json(&found, manifest.as_ref(), &verdict).to_string());
    } else {
        show(&found, manifest.as_ref(), &verdict);
    }
    Ok(ExitCode::from(if verdict.refused.is_empty() { 0 } else { exit::REFUSED }))
}

/// The tenant whose policy counts.
fn tenant(arguments: &Arguments) -> Result<TenantConfig, Failure> {
    let config = arguments.place.config()?;
    let is_only = config.tenants.len() == 1;
    let mut tenants = config.tenants.into_iter();
    let found = match &arguments.tenant {
        Some(name) => tenants.find(|tenant| tenant.options.name.as_str() == name),
        None if is_only => tenants.next(),
        None => return Err(Failure::Usage("there are several tenants; name one with --tenant".to_owned())),
    };
    found.ok_or_else(|| Failure::Usage("the configuration has no such tenant".to_owned()))
}

/// What would become of an upload under a policy.
struct Verdict {
    /// Why it would not be installed.
    refused: Vec<String>,
    /// What would be denied at each call.
    denied: Vec<String>,
}

impl Verdict {
    fn of(found: &Inspection, manifest: Option<&Manifest>, policy: &TenantPolicy) -> Verdict {
        let mut refused: Vec<String> = found.refusals.iter().map(|error| error.message.clone()).collect();
        let mut at_most = |name: &str, limit: u64, asked: u64| {
            if asked > limit {
                refused.push(format!("{asked} exceeds the limit `{name}` of {limit}"));
            }
        };
        at_most("component_bytes", policy.component_bytes_max, found.sizes.bytes);
        // What the host tries it with is by the manifest that it carries.
        let trial = Manifest::trial_memory_bytes(found.manifest.as_ref());
        let memory_bytes = found.sizes.memory_bytes_minimum;
        at_most("memory_bytes", trial, memory_bytes);
        if !policy.profiles.permit(found.profile) {
            refused.push(InstallError::not_permitted(found.profile, found.concurrency).message);
        }
        match manifest {
            None => refused.push("it carries no manifest, and none was given beside it".to_owned()),
            Some(manifest) => {
                let world = found.world;
                let fits =
                    manifest.check_component(world.is_program(), world.runs_tasks(), world.works_batches());
                refused.extend(fits.err().map(str::to_owned));
            }
        }
        let kinds = manifest.into_iter().flat_map(|manifest| &manifest.kinds);
        let denied_kinds = kinds.filter_map(|kind| {
            let denied = admit(policy, &kind.budget(), &BudgetRequest::default()).err()?;
            Some(format!("tasks of the kind {}: {denied}", kind.name))
        });
        let imported = found.imports.iter().filter_map(|import| match import.need {
            Need::Grant(capability) => Some(capability),
            _ => None,
        });
        let wanted = manifest.map(Manifest::wants).unwrap_or_default();
        let mut capabilities: Vec<_> = imported.chain(wanted).collect();
        capabilities.sort_unstable();
        capabilities.dedup();
        let grants = capabilities.into_iter().filter(|capability| !policy.grants.allow(*capability));
        let denied = grants.map(|capability| format!("the policy does not grant {capability}"));
        let max = policy.max.memory_bytes;
        let too_large = (trial >= memory_bytes && memory_bytes > max)
            .then(|| format!("every attempt: {memory_bytes} exceeds the limit `memory_bytes` of {max}"));
        Verdict { refused, denied: denied.chain(denied_kinds).chain(too_large).collect() }
    }
}

fn need(need: Need) -> (&'static str, Option<&'static str>) {
    match need {
        Need::Nothing => ("none", None),
        Need::Grant(capability) => ("grant", Some(capability.as_str())),
        Need::Denied => ("denied", None),
        Need::Missing => ("missing", None),
    }
}

fn json(found: &Inspection, manifest: Option<&Manifest>, verdict: &Verdict) -> Value {
    let imports = found.imports.iter().map(|import| {
        let (need, grant) = need(import.need);
        json!({ "name": import.name, "need": need, "grant": grant })
    });
    let producers = found
        .producers
        .iter()
        .map(|producer| json!({ "role": producer.role, "name": producer.name, "version": producer.version }));
    let sizes = found.sizes;
    json!({
        "world": found.world.as_str(),
        "profile": found.profile.as_str(),
        "digest": found.digest.to_string(),
        "component_bytes": sizes.bytes,
        "code_bytes": sizes.code_bytes,
        "data_bytes": sizes.data_bytes,
        "custom_bytes": sizes.custom_bytes,
        "core_modules": sizes.core_modules,
        "functions": sizes.functions,
        "memory_bytes_minimum": sizes.memory_bytes_minimum,
        "imports": imports.collect::<Vec<_>>(),
        "exports": found.exports,
        "producers": producers.collect::<Vec<_>>(),
        "name": manifest.map(|manifest| manifest.plugin.name.as_str()),
        "version": manifest.map(|manifest| manifest.plugin.version.as_str()),
        "kinds": manifest.map(|manifest| names(manifest, |_| true)),
        "random_seeded": manifest.map(|manifest| names(manifest, is_seeded)),
        "refused": verdict.refused,
        "denied": verdict.denied,
    })
}

fn is_seeded(kind: &KindSection) -> bool {
    kind.random == Random::Seeded
}

/// The kinds of which something holds.
fn names(manifest: &Manifest, holds: impl Fn(&KindSection) -> bool) -> Vec<&str> {
    manifest.kinds.iter().filter(|kind| holds(kind)).map(|kind| kind.name.as_str()).collect()
}

fn show(found: &Inspection, manifest: Option<&Manifest>, verdict: &Verdict) {
    let line = |name: &str, value: &str| print::out(&format!("{name:<12} {}", print::clean(value)));
    let sizes = found.sizes;
    line("world", found.world.as_str());
    line("digest", &found.digest.to_string());
    let reason = found.concurrency.map(|reason| format!(": {reason}")).unwrap_or_default();
    line("profile", &format!("{}{reason}", found.profile));
    let (code, data) = (print::size(sizes.code_bytes), print::size(sizes.data_bytes));
    let custom = print::size(sizes.custom_bytes);
    line(
        "size",
        &format!("{}: code {code}, data {data}, names and debug {custom}", print::size(sizes.bytes)),
    );
    let (modules, functions) = (sizes.core_modules, print::thousands(sizes.functions));
    line("contents", &format!("{modules} core modules, {functions} functions"));
    line("memory", &format!("{} at least", print::size(sizes.memory_bytes_minimum)));
    if let Some(manifest) = manifest {
        line("plugin", &format!("{} {}", manifest.plugin.name, manifest.plugin.version));
        line("kinds", &names(manifest, |_| true).join(", "));
        let seeded = names(manifest, is_seeded);
        if !seeded.is_empty() {
            line("random", &format!("seeded by the input, so no secret, in {}", seeded.join(", ")));
        }
    }
    for producer in &found.producers {
        line(&producer.role, &format!("{} {}", producer.name, producer.version));
    }
    for export in &found.exports {
        line("exports", export);
    }
    for refusal in &verdict.refused {
        line("refused", refusal);
    }
    for denial in &verdict.denied {
        line("denied", denial);
    }
    if found.imports.is_empty() {
        return;
    }
    print::out("");
    let row = |import: &keiko_engine::Imported| {
        let text = match need(import.need) {
            ("grant", Some(grant)) => grant.to_owned(),
            ("denied", _) => "none: every call is denied".to_owned(),
            ("missing", _) => "no host has it".to_owned(),
            _ => "none".to_owned(),
        };
        vec![print::clean(&import.name), text]
    };
    print::table(&["import", "grant"], found.imports.iter().map(row).collect());
}
