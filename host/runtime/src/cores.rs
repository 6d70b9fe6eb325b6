//! Which processors the threads that run guests keep to.
//!
//! [`Cores::plan`] is the rule: each thread gets one processor, in turn, of those that were named and that the process may
//! use. Only Linux can keep a thread to one; asked for elsewhere, or for a processor that the process may not use, the
//! host does not start instead of running otherwise than it was told.
//!
//! - at most [`CORES_MAX`] processors, numbered below it: what the kernel's own set has room for

use std::collections::BTreeSet;
use std::str::FromStr;

use keiko_core::code::Code;

use crate::request::Error;

/// Processors that can be named.
pub const CORES_MAX: usize = 1_024;

/// The processors that guest workers keep to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// Whatever the operating system thinks best.
    #[default]
    Any,
    /// One for each thread, of all that the process may use.
    All,
    /// One for each thread, of these.
    These(BTreeSet<usize>),
}

impl FromStr for Cores {
    type Err = String;

    /// Empty, `all`, or numbers and ranges such as `0-3,6`.
    fn from_str(text: &str) -> Result<Cores, String> {
        match text {
            "" => return Ok(Cores::Any),
            "all" => return Ok(Cores::All),
            _ => {}
        }
        let mut cores = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().ok().filter(|core| *core < CORES_MAX);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cores.extend(first..=last),
                _ => {
                    let most = CORES_MAX - 1;
                    return Err(format!(
                        "`{part}` is no processor from 0 to {most} and no range of them, such as 0-3,6"
                    ));
                }
            }
        }
        Ok(Cores::These(cores))
    }
}

impl Cores {
    /// How many were named.
    pub fn count(&self) -> Option<usize> {
        match self {
            Cores::Any | Cores::All => None,
            Cores::These(cores) => Some(cores.len()),
        }
    }

    /// The processor of each of so many threads; none where the operating system chooses.
    pub(crate) fn plan(&self, threads: usize) -> Result<Vec<Option<usize>>, Error> {
        if *self == Cores::Any {
            return Ok(vec![None; threads]);
        }
        let allowed = allowed().map_err(|error| refused(format!("{error}")))?;
        self.among(&allowed, threads)
    }

    fn among(&self, allowed: &BTreeSet<usize>, threads: usize) -> Result<Vec<Option<usize>>, Error> {
        let cores = match self {
            Cores::Any => return Ok(vec![None; threads]),
            Cores::All => allowed,
            Cores::These(cores) => cores,
        };
        if let Some(core) = cores.difference(allowed).next() {
            return Err(refused(format!("this process may not use processor {core}, only {allowed:?}")));
        }
        Ok(cores.iter().copied().map(Some).cycle().take(threads).collect())
    }
}

fn refused(text: String) -> Error {
    Error::new(Code::InvalidInput, format!("guest workers cannot keep to their processors: {text}"))
}

/// The processors that this process may use.
#[cfg(target_os = "linux")]
fn allowed() -> std::io::Result<BTreeSet<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CORES_MAX).filter(|core| set.is_set(*core)).collect())
}

/// The processors that this process may use.
#[cfg(not(target_os = "linux"))]
fn allowed() -> std::io::Result<BTreeSet<usize>> {
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "only Linux can keep a thread to one"))
}

/// Keeps this thread to one processor.
#[cfg(target_os = "linux")]
pub(crate) fn keep_to(core: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Keeps this thread to one processor.
#[cfg(not(target_os = "linux"))]
pub(crate) fn keep_to(_core: usize) -> std::io::Result<()> {
    allowed().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_named_one_by_one_and_in_ranges() {
        let these = |cores: &[usize]| Ok(Cores::These(cores.iter().copied().collect()));
        let check = |text: &str, expected: Result<Cores, ()>| {
            assert_eq!(text.parse::<Cores>().map_err(drop), expected, "{text}");
        };
        check("", Ok(Cores::Any));
        check("all", Ok(Cores::All));
        check("0", these(&[0]));
        check("0-3,6", these(&[0, 1, 2, 3, 6]));
        check("6, 2-2,6", these(&[2, 6]));
        check("1023", these(&[1_023]));
        check("1024", Err(()));
        check("3-1", Err(()));
        check("0-1024", Err(()));
        check("-1", Err(()));
        check("1-", Err(()));
        check("0,,1", Err(()));
        check("every", Err(()));
    }

    #[test]
    fn threads_take_the_named_processors_in_turn() {
        let allowed = BTreeSet::from([0, 1, 4]);
        let check = |text: &str, threads: usize, expected: &[Option<usize>]| {
            let cores: Cores = text.parse().unwrap();
            assert_eq!(cores.among(&allowed, threads).unwrap(), expected, "{text}");
        };
        check("", 2, &[None, None]);
        check("all", 4, &[Some(0), Some(1), Some(4), Some(0)]);
        check("4,1", 3, &[Some(1), Some(4), Some(1)]);
        check("4", 1, &[Some(4)]);
    }

    #[test]
    fn a_processor_that_the_process_may_not_use_is_refused_by_its_number() {
        let cores: Cores = "0-2".parse().unwrap();
        let error = cores.among(&BTreeSet::from([0, 1]), 2).unwrap_err();
        assert_eq!(error.code, Code::InvalidInput);
        assert!(error.message.contains("processor 2, only {0, 1}"), "{}", error.message);
    }
}
