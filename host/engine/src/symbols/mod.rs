//! Where in a plugin's own sources a guest was when it failed: functions that were inlined, files and lines.
//!
//! wasmtime tells a place in the component's bytes and the name of the function there. The rest stands in the debug
//! information, which is read by us, when it is first needed, from the kept bytes of the component. Its writer may be
//! hostile, so reading it
//! - happens on a thread where it holds up nobody, one component at a time in this process, and is no guest's time;
//! - costs at most [`PASS_STEPS`] at once, and [`LIFE_STEPS`] for one component as long as it is loaded: what wants more
//!   is told without lines from then on;
//! - is waited for [`WAIT_MAX`] by an attempt, which otherwise ends with the names alone.
//!
//! What was found of a place is remembered: equal failures cost a look into a map.

mod component;
mod dwarf;
mod name;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keiko_core::id::Digest;
use keiko_core::limit::BACKTRACE_FRAMES_MAX;
use keiko_core::outcome::Frame;
use keiko_core::port::Components;
use keiko_core::stop::Stop;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::apart;
use component::{Found, look_up};
use dwarf::Work;
pub(crate) use name::function_name;

/// How long an attempt waits for its lines.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Steps of reading debug information once: 0.7 s of one processor at the most. A Rust guest with 2 MB of it needs
/// 3 million for 20 places, which is 13 ms.
const PASS_STEPS: u64 = 64 << 20;
/// Steps of reading the debug information of one component as long as it is loaded.
const LIFE_STEPS: u64 = 8 * PASS_STEPS;
/// Functions that are remembered of one component, with file and line: 1 KiB each at the most.
const SYMBOLS_MAX: usize = 4_096;

/// A frame as wasmtime tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawFrame {
    /// The function's name for people.
    pub(crate) function: String,
    /// Where the instruction stands in the bytes of the component.
    pub(crate) place: Option<u64>,
}

/// A function at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Symbol {
    /// `None` where only the line is known.
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
}

/// What all components of an engine share for this.
pub(crate) struct Library {
    components: Arc<dyn Components>,
    /// Readings at once: one, so that hostile components take a processor from nobody.
    reading: Arc<Semaphore>,
    readings: AtomicU64,
}

/// The symbols of one generation.
pub(crate) struct Symbols {
    digest: Digest,
    library: Arc<Library>,
    /// Held while this component is read.
    turn: Arc<Semaphore>,
    known: Mutex<Known>,
}

/// Written by readings, read by attempts.
#[derive(Debug)]
struct Known {
    places: HashMap<u64, Arc<[Symbol]>>,
    symbols: usize,
    /// What readings may still cost. Taken before one, and given back as far as it was not needed: one that panics
    /// has used up its own.
    steps: u64,
}

impl Symbol {
    /// A line is one of a file, and 0 is none.
    fn new(function: Option<String>, file: Option<String>, line: Option<u32>) -> Symbol {
        let line = line.filter(|line| *line != 0 && file.is_some());
        Symbol { function, file, line }
    }
}

impl Library {
    pub(crate) fn new(components: Arc<dyn Components>) -> Arc<Library> {
        Arc::new(Library { components, reading: Arc::new(Semaphore::new(1)), readings: AtomicU64::new(0) })
    }

    /// Symbols for a generation that is about to be loaded.
    pub(crate) fn of(self: &Arc<Self>, digest: Digest) -> Arc<Symbols> {
        Arc::new(Symbols {
            digest,
            library: self.clone(),
            turn: Arc::new(Semaphore::new(1)),
            known: Mutex::new(Known { places: HashMap::new(), symbols: 0, steps: LIFE_STEPS }),
        })
    }

    /// How often debug information was read.
    pub(crate) fn readings(&self) -> u64 {
        self.readings.load(Ordering::Relaxed)
    }
}

impl Symbols {
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// The frames of a backtrace, with lines as far as they can be had. Whoever stops the attempt does not wait for
    /// them.
    pub(crate) async fn describe(self: &Arc<Self>, trace: Vec<RawFrame>, stop: &Stop) -> Vec<Frame> {
        if !self.unknown(&trace).is_empty() {
            tokio::select! {
                biased;
                _ = stop.wait() => {}
                read = tokio::time::timeout(WAIT_MAX, self.read(&trace)) => {
                    if read.is_err() {
                        tracing::debug!(plugin_version = %self.digest, "a backtrace is told before its lines are read");
                    }
                }
            }
        }
        self.frames(trace)
    }

    /// Waits until the places of `trace` are looked up. Who no longer waits does not end it.
    async fn read(self: &Arc<Self>, trace: &[RawFrame]) {
        let Ok(turn) = self.turn.clone().acquire_owned().await else { return };
        // Whoever had the turn before may have read the same.
        if self.unknown(trace).is_empty() {
            return;
        }
        let Ok(reading) = self.library.reading.clone().acquire_owned().await else { return };
        let (symbols, runtime, places) = (self.clone(), Handle::current(), self.unknown(trace));
        let pass = move || {
            symbols.pass(&runtime, &places);
            drop((reading, turn));
        };
        // A panic is told where it is caught; what it cost is not given back.
        let _ = apart(pass).await;
    }

    /// Reads the debug information once.
    fn pass(&self, runtime: &Handle, places: &[u64]) {
        self.library.readings.fetch_add(1, Ordering::Relaxed);
        let granted = self.known.lock().take();
        let component = match runtime.block_on(self.library.components.get(self.digest)) {
            Ok(Some(component)) => component,
            Ok(None) => return self.keep(places, Found::default(), granted),
            Err(error) => {
                tracing::debug!(plugin_version = %self.digest, error = %error, "a component cannot be read for its lines");
                return self.known.lock().steps += granted;
            }
        };
        let work = Work::new(granted);
        let found = look_up(&component, places, &work);
        self.keep(places, found, work.left());
    }

    fn keep(&self, places: &[u64], found: Found, left: u64) {
        if !found.has_more {
            tracing::debug!(plugin_version = %self.digest, "a component's debug information is read no further");
        }
        self.known.lock().add(places, found, left);
    }

    /// Places that are worth reading for, each once, in order.
    fn unknown(&self, trace: &[RawFrame]) -> Vec<u64> {
        let known = self.known.lock();
        if known.steps == 0 {
            return Vec::new();
        }
        let places = trace.iter().filter_map(|frame| frame.place);
        let mut places: Vec<u64> = places.filter(|place| !known.places.contains_key(place)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    fn frames(&self, trace: Vec<RawFrame>) -> Vec<Frame> {
        let known = self.known.lock();
        let mut frames = Vec::new();
        for RawFrame { function, place } in trace {
            match place.and_then(|place| known.places.get(&place)).filter(|symbols| !symbols.is_empty()) {
                Some(symbols) => frames.extend(symbols.iter().map(|symbol| Frame {
                    function: symbol.function.clone().unwrap_or_else(|| function.clone()),
                    file: symbol.file.clone(),
                    line: symbol.line,
                })),
                None => frames.push(Frame { function, file: None, line: None }),
            }
        }
        frames.truncate(BACKTRACE_FRAMES_MAX);
        frames
    }
}

impl Known {
    fn take(&mut self) -> u64 {
        let granted = self.steps.min(PASS_STEPS);
        self.steps -= granted;
        granted
    }

    /// Remembers what a reading found, and that nothing was found of the other places. When there is no room for
    /// more, or nothing more to find, it was the last reading.
    fn add(&mut self, places: &[u64], mut found: Found, left: u64) {
        self.steps += left;
        for place in places {
            let symbols: Arc<[Symbol]> = found.symbols.remove(place).unwrap_or_default().into();
            self.symbols += symbols.len().max(1);
            self.places.insert(*place, symbols);
        }
        if !found.has_more || self.symbols > SYMBOLS_MAX {
            self.steps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(steps: u64) -> Known {
        Known { places: HashMap::new(), symbols: 0, steps }
    }

    /// So many functions at one place.
    fn found(place: u64, functions: usize) -> Found {
        let symbol = Symbol::new(Some("f".to_owned()), None, None);
        Found { symbols: HashMap::from([(place, vec![symbol; functions])]), has_more: true }
    }

    #[test]
    fn steps_are_given_back_unless_a_reading_loses_them() {
        let mut known = known(LIFE_STEPS);
        let granted = known.take();
        assert_eq!((granted, known.steps), (PASS_STEPS, LIFE_STEPS - PASS_STEPS));
        known.add(&[7], found(7, 1), granted - 5);
        assert_eq!(known.steps, LIFE_STEPS - 5);
        // One that panics gives nothing back.
        known.take();
        assert_eq!(known.steps, LIFE_STEPS - 5 - PASS_STEPS);
        known.steps = 3;
        assert_eq!((known.take(), known.steps), (3, 0));
    }

    #[test]
    fn a_reading_with_nothing_more_to_find_is_the_last() {
        let mut known = known(LIFE_STEPS);
        known.add(&[7, 8], Found { has_more: false, ..found(7, 2) }, 100);
        assert_eq!(known.steps, 0);
        assert_eq!((known.places[&7].len(), known.places[&8].len()), (2, 0));
    }

    #[test]
    fn symbols_stop_at_their_number() {
        let mut known = known(LIFE_STEPS);
        known.add(&[7], found(7, SYMBOLS_MAX - 1), 0);
        // A place without symbols takes room too.
        known.add(&[8], Found { has_more: true, ..Found::default() }, 0);
        assert_eq!((known.symbols, known.steps), (SYMBOLS_MAX, LIFE_STEPS));
        known.add(&[9], found(9, 1), 0);
        assert_eq!(known.steps, 0);
        // What is known stays.
        assert_eq!(known.places[&9].len(), 1);
    }
}
