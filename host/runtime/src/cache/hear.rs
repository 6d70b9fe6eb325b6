//! The loops of a cache: hearing other hosts, repeating what levels missed, keeping rights to compute, and sweeping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use keiko_core::cache::{CacheKey, Stamp};
use keiko_core::catalog::Tenant;
use keiko_core::port::{Backplane, Change, Heard, Signal, Signals, StoreError};
use tokio_util::sync::CancellationToken;

use super::Cache;
use super::figures::Event;
use super::fill::LEASE;
use super::safeguard::{Safeguard, on};
use crate::service::Services;

/// The way to other hosts through the database's own messages. What is heard on it comes with everything else that is.
pub(crate) struct SignalPlane(pub(crate) Arc<dyn Signals>);

#[async_trait]
impl Backplane for SignalPlane {
    async fn tell(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.0.tell(Signal { cache: changes.to_vec(), ..Signal::default() });
        Ok(())
    }

    async fn next(&self) -> Heard {
        std::future::pending().await
    }
}

/// Time between two tries to repeat what levels missed.
const RECOVER_EVERY: Duration = Duration::from_secs(2);
/// Time between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

impl Cache {
    /// Starts the loops; they end when the services are stopped.
    pub(crate) fn keep(&self, services: &Services, tenants: Vec<Tenant>) {
        for (number, plane) in self.0.planes.iter().enumerate() {
            let backplane = Arc::clone(&plane.backplane);
            services.spawn(self.clone().hear(number, backplane, tenants.clone(), services.stop_signal()));
        }
        services.spawn(self.clone().repeat(services.stop_signal()));
        services.spawn(self.clone().prolong(services.stop_signal()));
        services.spawn(self.clone().sweep(tenants, services.stop_signal()));
    }

    async fn hear(
        self,
        number: usize,
        backplane: Arc<dyn Backplane>,
        tenants: Vec<Tenant>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                heard = backplane.next() => self.take(number, heard, &tenants),
            }
        }
    }

    /// Takes what is heard by the database's own messages, which are the last of the ways between hosts.
    pub(crate) fn take_signal(&self, heard: Heard, tenants: &[Tenant]) {
        self.take(self.0.planes.len().saturating_sub(1), heard, tenants);
    }

    /// Takes what is heard on one of the ways between hosts, by its place among [`super::CacheParts::backplanes`].
    pub fn take(&self, plane: usize, heard: Heard, tenants: &[Tenant]) {
        let now_ms = self.0.clock.now_ms();
        match heard {
            Heard::Lost if !on(Safeguard::HearLoss) => {}
            Heard::Lost => {
                self.0.counters.event(Event::Doubted);
                self.0.epoch.lost(plane, now_ms);
            }
            Heard::Found => {
                self.0.counters.event(Event::Doubted);
                self.0.epoch.found(plane);
            }
            Heard::Changes(changes) => {
                for change in changes {
                    let Some(tenant) = tenants.iter().find(|tenant| tenant.id == change.tenant) else {
                        continue;
                    };
                    self.change(tenant, &change, now_ms);
                }
            }
        }
    }

    fn change(&self, tenant: &Tenant, change: &Change, now_ms: i64) {
        let inner = &*self.0;
        let key = CacheKey::told(tenant, &change.namespace, &change.key);
        inner.counters.event(Event::Heard);
        if on(Safeguard::SeeStamps) {
            inner.stamps.saw(change.stamp);
        }
        inner.changes.fetch_add(1, Ordering::AcqRel);
        // First the readings, so that one that ends now does not bring back what was there.
        inner.readings.raise(&key, Stamp(change.stamp.0));
        if on(Safeguard::Hear) {
            inner.memory.change(&key, change.kind, change.stamp, now_ms);
        }
        if key == CacheKey::cleared(tenant) && on(Safeguard::HearClear) {
            inner.memory.cleared(tenant.id, change.stamp);
        }
        inner.fills.nudge(&key);
    }

    async fn repeat(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECOVER_EVERY) => {}
            }
            self.recover().await;
        }
    }

    async fn prolong(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LEASE / 3) => {}
            }
            self.prolong_leases().await;
        }
    }

    async fn sweep(self, tenants: Vec<Tenant>, stop: CancellationToken) {
        let mut seen = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            // Where nothing changed, nothing has to be made room for: an idle host asks its database nothing.
            let changes = self.0.changes();
            if std::mem::replace(&mut seen, changes) != changes {
                self.0.sweep(&tenants).await;
            }
        }
    }
}
