//! How many requests of each class are answered at once, in all and of one tenant.

use std::collections::HashMap;
use std::sync::Arc;

use keiko_core::TenantId;
use parking_lot::Mutex;

/// One class of requests. A limit and its count are one thing.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total_max: usize,
    /// Leaves room for others when there are others.
    tenant_max: usize,
    /// Written by [`Gate::enter`] and by the drop of what it gave.
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    total: usize,
    by_tenant: HashMap<TenantId, usize>,
}

/// Marks an answer whose request is inside until the last of it is written, or its reader is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams;

/// One request inside; dropping it lets the next one in.
#[derive(Debug)]
pub(super) struct Entered {
    gate: Gate,
    tenant: Option<TenantId>,
}

impl Gate {
    /// A gate for `total_max` requests. With several tenants one of them gets at most three quarters of it.
    pub(super) fn new(total_max: usize, tenants: usize) -> Gate {
        let tenant_max = if tenants > 1 { (total_max * 3).div_ceil(4) } else { total_max };
        Gate(Arc::new(Inner { total_max, tenant_max, inside: Mutex::default() }))
    }

    /// Lets a request in, or says which limit keeps it out.
    pub(super) fn enter(&self, tenant: Option<TenantId>) -> Result<Entered, usize> {
        let mut inside = self.0.inside.lock();
        if let Some(tenant) = tenant {
            let own = inside.by_tenant.get(&tenant).copied().unwrap_or(0);
            if own >= self.0.tenant_max {
                return Err(self.0.tenant_max);
            }
        }
        if inside.total >= self.0.total_max {
            return Err(self.0.total_max);
        }
        inside.total += 1;
        if let Some(tenant) = tenant {
            *inside.by_tenant.entry(tenant).or_default() += 1;
        }
        Ok(Entered { gate: self.clone(), tenant })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut inside = self.gate.0.inside.lock();
        inside.total -= 1;
        let Some(tenant) = self.tenant else { return };
        if let Some(own) = inside.by_tenant.get_mut(&tenant) {
            *own -= 1;
            if *own == 0 {
                inside.by_tenant.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_in_as_many_as_it_says() {
        let gate = Gate::new(2, 1);
        let first = gate.enter(Some(TenantId(1))).unwrap();
        let _second = gate.enter(Some(TenantId(1))).unwrap();
        assert_eq!(gate.enter(None).unwrap_err(), 2);
        drop(first);
        assert!(gate.enter(None).is_ok());
    }

    #[test]
    fn one_tenant_leaves_room_for_another() {
        let gate = Gate::new(4, 2);
        let own: Vec<_> = (0..3).map(|_| gate.enter(Some(TenantId(1))).unwrap()).collect();
        assert_eq!(gate.enter(Some(TenantId(1))).unwrap_err(), 3);
        let other = gate.enter(Some(TenantId(2))).unwrap();
        assert_eq!(gate.enter(Some(TenantId(3))).unwrap_err(), 4);
        drop((own, other));
        assert!(gate.0.inside.lock().by_tenant.is_empty());
    }
}
