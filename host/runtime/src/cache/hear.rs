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
use super::lease::LEASE;
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
/// Time between two sweeps while something changes...
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// ...and so many times that while nothing does: what was stored last ends, too.
const QUIET_SWEEPS: u32 = 60;

impl Cache {
    /// Starts the loops; they end when the services are stopped.
    pub(crate) fn keep(&self, services: &Services, tenants: Vec<Tenant>) {
        for (number, plane) in self.0.planes.iter().enumerate() {
            let backplane = Arc::clone(&plane.backplane);
            let hears = self.clone().hear(number, backplane, tenants.clone(), services.stop_signal());
            services.spawn(format!("cache-hear-{number}"), hears);
        }
        services.spawn("cache-repeat", self.clone().repeat(services.stop_signal()));
        services.spawn("cache-prolong", self.clone().prolong(services.stop_signal()));
        services.spawn("cache-sweep", self.clone().sweep(tenants, services.stop_signal()));
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
            if on(Safeguard::Prolong) {
                self.prolong_leases().await;
            }
        }
    }

    async fn sweep(self, tenants: Vec<Tenant>, stop: CancellationToken) {
        let (mut seen, mut quiet) = (0, 0);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
            // Where nothing changed, nothing has to be made room for: an idle host asks its database hardly anything.
            let changes = self.0.changes();
            quiet = if std::mem::replace(&mut seen, changes) == changes { quiet + 1 } else { QUIET_SWEEPS };
            if quiet >= QUIET_SWEEPS {
                quiet = 0;
                self.0.sweep(&tenants).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use bytes::Bytes;
    use keiko_core::TenantId;
    use keiko_core::cache::{Installation, Lifetime, Namespace, REMOVED_MS, Wish};
    use keiko_core::port::{CacheLevel, Clock};
    use keiko_store::memory::MemoryLevel;

    use super::super::{CacheOptions, CacheParts, Fenced, Filling, Stored};
    use super::*;

    #[derive(Default)]
    struct Moved(AtomicI64);

    impl Clock for Moved {
        fn now_ms(&self) -> i64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// A host over a database alone, with room for so many bytes.
    fn host(database: &MemoryLevel, clock: &Arc<Moved>, database_bytes: u64) -> Cache {
        let parts = CacheParts {
            installation: installation(),
            redis: None,
            database: Some(Arc::new(database.another_host())),
            backplanes: Vec::new(),
            shared: true,
            clock: clock.clone(),
        };
        Cache::new(parts, CacheOptions { database_bytes, jitter: false, ..CacheOptions::default() })
    }

    fn installation() -> Installation {
        "test".parse().unwrap()
    }

    fn ada() -> Tenant {
        Tenant { id: TenantId(1), name: "ada".parse().unwrap() }
    }

    fn key(text: &str) -> CacheKey {
        CacheKey::new(&ada(), &Namespace::of_host("test"), text).unwrap()
    }

    fn lasting(ms: u64) -> Wish {
        Wish { lifetime: Lifetime::of_ms(ms), ..Wish::default() }
    }

    #[tokio::test]
    async fn a_sweep_takes_away_what_has_ended_and_what_does_not_fit() {
        let (database, clock) = (MemoryLevel::new(installation()), Arc::new(Moved::default()));
        let cache = host(&database, &clock, 30_000);
        let entries = || async { database.usage(&ada(), clock.now_ms()).await.unwrap().entries };
        let at = |ms: i64| clock.0.store(ms, Ordering::SeqCst);
        at(1);
        cache.set(&key("short"), Bytes::from_static(b"v"), &lasting(1_000)).await;
        cache.set(&key("long"), Bytes::from_static(b"v"), &lasting(3_600_000)).await;
        // What has ended is remembered for a while: it tells that it is newer than what is late.
        at(1_001 + REMOVED_MS - 1);
        cache.0.sweep(&[ada()]).await;
        assert_eq!(entries().await, 2);
        at(1_001 + REMOVED_MS);
        cache.0.sweep(&[ada()]).await;
        assert_eq!(entries().await, 1, "the other is still fresh");
        for number in 0..5 {
            at(REMOVED_MS + 2_000 + number);
            let value = Bytes::from(vec![7; 10_000]);
            cache.set(&key(&number.to_string()), value, &lasting(3_600_000)).await;
        }
        cache.0.sweep(&[ada()]).await;
        assert_eq!(
            entries().await,
            2,
            "the newest of 10,000 bytes, which have a little more with their envelopes"
        );
        for (number, there) in [(2, false), (3, true), (4, true)] {
            let held = database.get(&[key(&number.to_string())], clock.now_ms()).await.unwrap();
            assert_eq!(held[0].is_some(), there, "{number}");
        }
    }

    #[tokio::test]
    async fn a_lease_lasts_as_long_as_it_is_prolonged_and_its_loss_is_known_before_the_end() {
        let (database, clock) = (MemoryLevel::new(installation()), Arc::new(Moved::default()));
        let [one, other] = [(); 2].map(|()| host(&database, &clock, 1 << 20));
        let step = LEASE.as_millis() as i64 * 9 / 10;
        let Filling::Fill(fill) = one.fill(&key("k")).await else { panic!("nobody has computed it") };
        let wanted = key("k");
        let mut waiting = Box::pin(other.fill(&wanted));
        for _ in 0..5 {
            clock.0.fetch_add(step, Ordering::SeqCst);
            one.prolong_leases().await;
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        assert_eq!(fill.complete(Bytes::from_static(b"v"), &lasting(1_000_000)).await, Ok(Stored::Kept));
        assert!(matches!(waiting.await, Filling::Hit(_)));

        let Filling::Fill(late) = one.fill(&key("late")).await else { panic!("nobody has computed it") };
        clock.0.fetch_add(2 * step, Ordering::SeqCst);
        let Filling::Fill(next) = other.fill(&key("late")).await else { panic!("its lease has ended") };
        one.prolong_leases().await;
        assert_eq!(next.complete(Bytes::from_static(b"next"), &lasting(1_000_000)).await, Ok(Stored::Kept));
        assert_eq!(late.complete(Bytes::from_static(b"late"), &lasting(1_000_000)).await, Err(Fenced));
    }
}
