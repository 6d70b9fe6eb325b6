//! Which attempts run right now, in a file that outlives the process.
//!
//! A host that dies leaves its leases behind; this file tells the next one which of the leased tasks had
//! started, so that only those are charged a crash. It is memory that the file stands behind, and never synced: what was
//! stored there is in the file whatever ends the process, and it need not survive the machine, because losing power is no
//! task's fault.
//!
//! - The file is [`MAGIC`], then slots of [`SLOT_BYTES`]: task id and token, little-endian; 0 is free.
//! - It has its full size, written out, before it is mapped: a full disk fails the start and no attempt.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use keiko_core::{TaskId, Token};
use memmap2::MmapMut;
use parking_lot::Mutex;

const MAGIC: &[u8; 16] = b"keiko running 1\n";
const SLOT_BYTES: usize = 16;
const NAME: &str = "running.journal";
/// What it is called until it is whole.
const DRAFT: &str = "running.journal.new";

/// The journal of one host.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<Slots>);

#[derive(Debug)]
struct Slots {
    map: MmapMut,
    /// Free slots, the lowest last.
    free: Vec<usize>,
}

/// A running attempt's slot. Dropped, it says that the attempt has ended.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    journal: &'a Journal,
    number: usize,
}

impl Journal {
    /// Reads what an earlier host left in `folder`: the attempts that ran when it died.
    pub(crate) fn read(folder: &Path) -> io::Result<Vec<(TaskId, Token)>> {
        let mut bytes = Vec::new();
        match File::open(folder.join(NAME)) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let Some(slots) = bytes.strip_prefix(MAGIC) else {
            return Ok(Vec::new());
        };
        let number = |bytes: &[u8]| bytes.try_into().map(i64::from_le_bytes).unwrap_or_default();
        let pairs = slots.chunks_exact(SLOT_BYTES).map(|slot| (number(&slot[..8]), number(&slot[8..])));
        Ok(pairs.filter(|(id, _)| *id != 0).map(|(id, token)| (TaskId(id), Token(token))).collect())
    }

    /// Starts an empty journal in `folder` for at most `running_max` attempts at once.
    pub(crate) fn create(folder: &Path, running_max: usize) -> io::Result<Journal> {
        // Not in the place of another's, who may still have it mapped.
        let draft = folder.join(DRAFT);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&draft)?;
        let mut bytes = MAGIC.to_vec();
        bytes.resize(MAGIC.len() + running_max * SLOT_BYTES, 0);
        file.write_all_at(&bytes, 0)?;
        fs::rename(&draft, folder.join(NAME))?;
        #[allow(unsafe_code, reason = "memory behind which there is a file")]
        // SAFETY: the file was made just now in a folder that is this host's own, and nobody shortens or writes to it but us;
        // what it says is copied in and out as bytes.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Journal(Mutex::new(Slots { map, free: (0..running_max).rev().collect() })))
    }

    /// Notes that an attempt starts; call it before the guest runs.
    pub(crate) fn start(&self, id: TaskId, token: Token) -> io::Result<Slot<'_>> {
        let mut slots = self.0.lock();
        let number = slots.free.pop();
        let number =
            number.ok_or_else(|| io::Error::other("more attempts run than the journal has slots"))?;
        slots.write(number, id.0, token.0);
        Ok(Slot { journal: self, number })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut slots = self.journal.0.lock();
        slots.write(self.number, 0, 0);
        slots.free.push(self.number);
    }
}

impl Slots {
    /// A process that ends in between leaves a pair that is no lease's.
    fn write(&mut self, slot: usize, id: i64, token: i64) {
        let at = MAGIC.len() + slot * SLOT_BYTES;
        self.map[at..at + 8].copy_from_slice(&id.to_le_bytes());
        self.map[at + 8..at + SLOT_BYTES].copy_from_slice(&token.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attempts_that_had_not_ended_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Journal::read(folder.path()).unwrap(), []);
        let journal = Journal::create(folder.path(), 2).unwrap();
        let first = journal.start(TaskId(1), Token(10)).unwrap();
        let _second = journal.start(TaskId(2), Token(20)).unwrap();
        assert!(journal.start(TaskId(3), Token(30)).is_err(), "one above the limit");
        drop(first);
        assert_eq!(Journal::read(folder.path()).unwrap(), [(TaskId(2), Token(20))]);
        let _third = journal.start(TaskId(3), Token(30)).unwrap();
        let running = Journal::read(folder.path()).unwrap();
        assert_eq!(running, [(TaskId(3), Token(30)), (TaskId(2), Token(20))]);
        Journal::create(folder.path(), 2).unwrap();
        assert_eq!(Journal::read(folder.path()).unwrap(), []);
    }

    #[test]
    fn a_torn_or_foreign_journal_charges_nobody_by_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        fs::write(&path, b"something else entirely").unwrap();
        assert_eq!(Journal::read(folder.path()).unwrap(), []);
        fs::write(&path, [MAGIC.as_slice(), &[7; SLOT_BYTES - 1]].concat()).unwrap();
        assert_eq!(Journal::read(folder.path()).unwrap(), []);
    }
}
