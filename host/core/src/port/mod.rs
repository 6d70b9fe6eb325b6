//! What the crates are to each other. A trait stands here when it has two real implementations, or when it
//! breaks a cycle between layers.

mod catalog;
mod clock;
mod runner;
mod task;

pub use catalog::{CatalogStore, Components};
pub use clock::Clock;
pub use runner::{Attempt, AttemptFacts, Compiled, HostPort, InstallError, ReserveError, Reserved, Runner};
pub use task::{
    Beat, Dead, IdBlock, Lease, LeaseRequest, Records, Rescued, StoreError, StoreErrorKind, TaskStore,
};
