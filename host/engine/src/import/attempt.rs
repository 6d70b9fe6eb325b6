//! `keiko:attempt`.

use std::time::Instant;

use keiko_core::outcome::Taint;
use keiko_core::policy::Capability;

use crate::bindings::keiko::attempt::attempt::{Error, Facts, Host};
use crate::gate::{Call, Verdict};
use crate::state::State;

const GET: Call =
    Call { name: "keiko:attempt/attempt.get", capability: Some(Capability::Attempt), taint: Taint::ATTEMPT };
const REMAINING_MS: Call = Call { name: "keiko:attempt/attempt.remaining-ms", ..GET };

impl Host for State {
    fn get(&mut self) -> wasmtime::Result<Result<Facts, Error>> {
        if self.gate.pass(&GET, 0)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let known = &self.facts;
        let facts = Facts {
            tenant: known.tenant.as_str().to_owned(),
            task: known.task.to_string(),
            root: known.lineage.root.to_string(),
            parent: known.lineage.parent.map(|parent| parent.to_string()),
            depth: known.lineage.depth,
            number: known.number,
            attempts_max: known.attempts_max,
            trace: known.trace.clone(),
        };
        let texts = [&facts.tenant, &facts.task, &facts.root];
        let bytes = texts.into_iter().chain(&facts.parent).chain(&facts.trace).map(String::len).sum();
        self.gate.charge_bytes(bytes);
        Ok(Ok(facts))
    }

    fn remaining_ms(&mut self) -> wasmtime::Result<Result<u64, Error>> {
        if self.gate.pass(&REMAINING_MS, 0)? == Verdict::Denied {
            return Ok(Err(Error::Denied));
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        Ok(Ok(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
    }
}
