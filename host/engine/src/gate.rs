//! The gate: every call from a guest to the host passes here, WASI's included.
//!
//! It marks what the call makes of the run's purity, counts and charges the call, holds it to the budget, and asks
//! whether it is granted, in that order: a denied call is counted, charged and marked like any other, so that a
//! guest can neither loop on denials for free nor be called pure after it learnt of one.
//!
//! A host call has no access to the store's fuel, so what calls cost is kept apart and the attempt's total is both.
//! The total is compared with the budget in every call of ours as far as the charge alone goes, at every epoch tick,
//! and once more when the run ends; an overrun is therefore at most one tick of guest time.

use std::sync::Arc;

use keiko_core::limit::{HOSTCALL_FUEL_BASE, HOSTCALL_FUEL_PER_BYTE};
use keiko_core::outcome::Taint;
use keiko_core::policy::{Budget, Capability, Grants};

use crate::exceeded::Exceeded;

/// A host call as the gate knows it: one constant per function, or per interface of WASI.
#[derive(Debug)]
pub(crate) struct Call {
    /// For spans.
    pub(crate) name: &'static str,
    /// What must be granted; `None` for what every guest may do.
    pub(crate) capability: Option<Capability>,
    /// What the run has asked of the outside once it made this call.
    pub(crate) taint: Taint,
}

/// Whether the policy lets a call through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Do it.
    Granted,
    /// Answer with the interface's own denial.
    Denied,
}

/// The gate of one attempt.
#[derive(Debug)]
pub(crate) struct Gate {
    grants: Arc<Grants>,
    budget: Budget,
    charge: u64,
    host_calls: u64,
    taint: Taint,
}

impl Gate {
    pub(crate) fn new(grants: Arc<Grants>, budget: Budget) -> Gate {
        Gate { grants, budget, charge: 0, host_calls: 0, taint: Taint::NONE }
    }

    /// A call of ours that carries `bytes` into the host. The error ends the attempt.
    pub(crate) fn pass(&mut self, call: &Call, bytes: usize) -> Result<Verdict, Exceeded> {
        self.note(call);
        self.charge_bytes(bytes);
        self.check(0)?;
        let granted = call.capability.is_none_or(|capability| self.grants.allow(capability));
        Ok(if granted { Verdict::Granted } else { Verdict::Denied })
    }

    /// The same of a call that asks for something to be written with the task's end, which a run that is no task does
    /// not have.
    pub(crate) fn pass_effect(&mut self, call: &Call, bytes: usize) -> Result<Verdict, Exceeded> {
        let verdict = self.pass(call, bytes)?;
        Ok(if self.grants.allow_effects() { verdict } else { Verdict::Denied })
    }

    /// A call that cannot be refused on the spot, because WASI's own code answers it: the next epoch tick or the end
    /// of the run ends the attempt when it was one too many.
    pub(crate) fn note(&mut self, call: &Call) {
        tracing::trace!(target: "keiko_engine::gate", call = call.name);
        self.taint = self.taint.with(call.taint);
        self.host_calls = self.host_calls.saturating_add(1);
        self.charge = self.charge.saturating_add(HOSTCALL_FUEL_BASE);
    }

    /// Marks the run by what it began with, or by what an answer of a call makes of its purity.
    pub(crate) fn taint_by(&mut self, taint: Taint) {
        self.taint = self.taint.with(taint);
    }

    /// Charges bytes that a call carries.
    pub(crate) fn charge_bytes(&mut self, bytes: usize) {
        self.charge = self.charge.saturating_add((bytes as u64).saturating_mul(HOSTCALL_FUEL_PER_BYTE));
    }

    /// Whether the attempt is inside its budget with `guest_fuel` used by the guest itself.
    pub(crate) fn check(&self, guest_fuel: u64) -> Result<(), Exceeded> {
        if self.host_calls > self.budget.host_calls.value {
            return Err(Exceeded::HostCalls);
        }
        if self.fuel_used(guest_fuel) > self.budget.fuel.value {
            return Err(Exceeded::Fuel);
        }
        Ok(())
    }

    /// Fuel of guest and host calls together.
    pub(crate) fn fuel_used(&self, guest_fuel: u64) -> u64 {
        guest_fuel.saturating_add(self.charge)
    }

    pub(crate) fn host_calls(&self) -> u64 {
        self.host_calls
    }

    pub(crate) fn taint(&self) -> Taint {
        self.taint
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }
}

#[cfg(test)]
mod tests {
    use keiko_core::limit::SetBy;
    use keiko_core::policy::Limit;

    use super::*;

    const CALL: Call = Call { name: "t", capability: Some(Capability::Tasks), taint: Taint::TASKS };

    fn gate(fuel: u64, host_calls: u64, grants: Grants) -> Gate {
        let limit = |value| Limit { value, set_by: SetBy::Host };
        let budget = Budget {
            fuel: limit(fuel),
            memory_bytes: limit(0),
            wall_ms: limit(0),
            host_calls: limit(host_calls),
            attempts: limit(1),
            heartbeat_ms: None,
        };
        Gate::new(Arc::new(grants), budget)
    }

    #[test]
    fn calls_stop_at_their_number() {
        let mut gate = gate(u64::MAX, 2, Grants::default());
        assert_eq!(gate.pass(&CALL, 0), Ok(Verdict::Granted));
        assert_eq!(gate.pass(&CALL, 0), Ok(Verdict::Granted));
        assert_eq!(gate.pass(&CALL, 0), Err(Exceeded::HostCalls));
    }

    #[test]
    fn the_charge_counts_calls_and_bytes_to_the_unit() {
        let cost = HOSTCALL_FUEL_BASE + 10 * HOSTCALL_FUEL_PER_BYTE;
        assert_eq!(gate(cost, 9, Grants::default()).pass(&CALL, 10), Ok(Verdict::Granted));
        assert_eq!(gate(cost - 1, 9, Grants::default()).pass(&CALL, 10), Err(Exceeded::Fuel));
        let mut gate = gate(cost, 9, Grants::default());
        gate.note(&CALL);
        assert_eq!(gate.check(10), Ok(()));
        assert_eq!(gate.check(11), Err(Exceeded::Fuel));
    }

    #[test]
    fn a_run_that_is_no_task_may_ask_and_not_write() {
        let mut gate = gate(u64::MAX, 9, Grants::default().without_effects());
        assert_eq!(gate.pass(&CALL, 0), Ok(Verdict::Granted));
        assert_eq!(gate.pass_effect(&CALL, 1), Ok(Verdict::Denied));
        assert_eq!((gate.host_calls(), gate.taint()), (2, Taint::TASKS));
    }

    #[test]
    fn a_denied_call_is_counted_charged_and_marked() {
        let mut gate = gate(u64::MAX, 9, Grants::new([]));
        assert_eq!(gate.pass(&CALL, 1), Ok(Verdict::Denied));
        assert_eq!((gate.host_calls(), gate.taint()), (1, Taint::TASKS));
        assert_eq!(gate.fuel_used(0), HOSTCALL_FUEL_BASE + HOSTCALL_FUEL_PER_BYTE);
    }
}
