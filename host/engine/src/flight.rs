//! One at a time per component, so that equal uploads and loads that come together compile once.

use std::collections::HashMap;
use std::sync::Arc;

use keiko_core::id::Digest;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Who is on the way.
#[derive(Default)]
pub(crate) struct Flights(Arc<Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>>);

/// The right to load one component; ends when dropped.
pub(crate) struct Flight {
    digest: Digest,
    flights: Arc<Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>>,
    /// Released by hand, before the entry is looked at.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits until nobody else loads `digest`.
    pub(crate) async fn board(&self, digest: Digest) -> Flight {
        let turn = self.0.lock().entry(digest).or_default().clone();
        let flights = self.0.clone();
        Flight { digest, flights, turn: Some(turn.lock_owned().await) }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        self.turn.take();
        // Whoever waits holds a clone beside the one in the map.
        if flights.get(&self.digest).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            flights.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flights_of_one_component_follow_each_other_and_leave_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let flights = Flights::default();
            let first = flights.board(Digest([1; 32])).await;
            let _other = flights.board(Digest([2; 32])).await;
            let mut second = std::pin::pin!(flights.board(Digest([1; 32])));
            let waits = std::future::poll_fn(|context| {
                std::task::Poll::Ready(second.as_mut().poll(context).is_pending())
            });
            assert!(waits.await);
            drop(first);
            drop(second.await);
            assert_eq!(flights.0.lock().len(), 1);
        });
    }
}
