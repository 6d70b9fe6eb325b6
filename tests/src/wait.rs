//! Waiting for a process that is not ours to be told by.
//!
//! Tests of the host's parts wait for events. A process seen from outside has none to offer for "I listen now" or
//! "I am gone", so this one function looks again and again, and gives up at a deadline. Everything that can be
//! waited for over HTTP is (`?wait=`).

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const STEP: Duration = Duration::from_millis(5);

/// Looks until `look` answers something, or fails after `at_most`, naming `what` it waited for.
pub fn until<T>(what: &str, at_most: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > at_most {
            bail!("waited {} s in vain for {what}", at_most.as_secs());
        }
        pause(STEP);
    }
}

/// Lets `time` pass: for moments that are chosen at random, never for something to have happened.
pub fn pause(time: Duration) {
    let start = Instant::now();
    // Parking may end early; nobody unparks on purpose.
    while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}
