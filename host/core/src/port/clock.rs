//! Time, so that tests can move it.

/// The wall clock of a host.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    fn now_ms(&self) -> i64;

    /// The same for those who ask so often that asking counts: never ahead of it, and at most 10 ms behind.
    fn about_now_ms(&self) -> i64 {
        self.now_ms()
    }
}
