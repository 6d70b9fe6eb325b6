//! Named points at which a test kills the host, as `kill -9` would: between two steps that nothing from outside can tell
//! apart. Nothing sets one but a test.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Where a host dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// After accept: items are stored, and nobody was told.
    ItemAccepted,
    /// Before flush: a batch is formed, and not handed over.
    BatchFormed,
    /// After the processor's success, a plugin's or the host's own: it has answered, and nothing of it is stored.
    BatchWorked,
    /// Before acknowledgement: the end of a batch is stored with its effects, and neither this host's machine nor anybody
    /// else was told.
    BatchSettled,
}

impl Point {
    /// Every point.
    pub const ALL: [Point; 4] =
        [Point::ItemAccepted, Point::BatchFormed, Point::BatchWorked, Point::BatchSettled];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Point::ItemAccepted => "item-accepted",
            Point::BatchFormed => "batch-formed",
            Point::BatchWorked => "batch-worked",
            Point::BatchSettled => "batch-settled",
        }
    }
}

/// The point at which a host dies, and when it passes there for how many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KillAt {
    /// Where.
    pub point: Point,
    /// From 1.
    pub pass: u64,
}

impl FromStr for KillAt {
    type Err = ();

    /// `batch-formed:3`.
    fn from_str(text: &str) -> Result<KillAt, ()> {
        let (name, pass) = text.split_once(':').ok_or(())?;
        let point = Point::ALL.into_iter().find(|point| point.as_str() == name).ok_or(())?;
        let pass = pass.parse().ok().filter(|pass| *pass > 0).ok_or(())?;
        Ok(KillAt { point, pass })
    }
}

/// The passes of one host.
#[derive(Debug, Default)]
pub(crate) struct Points {
    kill_at: Option<KillAt>,
    passed: AtomicU64,
}

impl Points {
    pub(crate) fn new(kill_at: Option<KillAt>) -> Points {
        Points { kill_at, passed: AtomicU64::new(0) }
    }

    /// Passes a point, or dies there.
    pub(crate) fn pass(&self, point: Point) {
        let Some(kill_at) = self.kill_at.filter(|kill_at| kill_at.point == point) else { return };
        if self.passed.fetch_add(1, Ordering::SeqCst) + 1 == kill_at.pass {
            // Nothing is left that could handle an error.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_a_pass() {
        let expected = KillAt { point: Point::BatchFormed, pass: 3 };
        assert_eq!("batch-formed:3".parse(), Ok(expected));
        for text in ["batch-formed", "batch-formed:0", "batch-formed:x", "nowhere:1"] {
            assert_eq!(text.parse::<KillAt>(), Err(()), "{text}");
        }
        let points = Points::new(Some(expected));
        points.pass(Point::BatchWorked);
        points.pass(Point::BatchFormed);
        points.pass(Point::BatchFormed);
        assert_eq!(points.passed.load(Ordering::SeqCst), 2, "and lives");
    }
}
