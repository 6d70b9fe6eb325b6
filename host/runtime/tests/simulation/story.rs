//! What happens in a life, in its order and with its virtual time: always as a number, so that equal lives are known by
//! it, and as lines to whoever reads them.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Takes a line as soon as it is told.
pub type Reader = fn(&str);

/// The story of one life.
pub struct Story {
    start: Instant,
    hasher: Mutex<DefaultHasher>,
    reader: Option<Reader>,
}

impl Story {
    /// Begins.
    pub fn new(reader: Option<Reader>) -> Story {
        Story { start: Instant::now(), hasher: Mutex::default(), reader }
    }

    /// Tells what happens now.
    pub fn tell(&self, what: fmt::Arguments<'_>) {
        let at_ms = self.start.elapsed().as_millis() as u64;
        let mut hasher = self.hasher.lock();
        hasher.write_u64(at_ms);
        // Hashing does not fail.
        let _ = Hashed(&mut hasher).write_fmt(what);
        if let Some(reader) = self.reader {
            reader(&format!("{:>5}.{:03} s  {what}", at_ms / 1_000, at_ms % 1_000));
        }
    }

    /// A number that stands for everything that was told.
    pub fn trace(&self) -> u64 {
        self.hasher.lock().finish()
    }
}

/// Hashes a text without making it.
struct Hashed<'a>(&'a mut DefaultHasher);

impl Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
