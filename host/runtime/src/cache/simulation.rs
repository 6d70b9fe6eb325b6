//! What simulations do with a cache that is no host's: they start its loops, and end them at once, as a process does that is
//! killed.

use keiko_core::catalog::Tenant;

use super::Cache;
use crate::service::Services;

/// The loops of a cache, which end when this is dropped.
#[derive(Debug)]
pub struct Loops {
    _services: Services,
}

impl Cache {
    /// Starts the loops as tasks of the caller's runtime.
    pub fn start(&self, tenants: Vec<Tenant>) -> Loops {
        let services = Services::new(true);
        self.keep(&services, tenants);
        Loops { _services: services }
    }
}
