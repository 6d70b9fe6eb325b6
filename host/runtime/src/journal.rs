//! Which attempts run right now, in a file that outlives the process.
//!
//! A host that dies leaves its leases behind; this file tells the next one which of the leased tasks had
//! started, so that only those are charged a crash. It is written without a sync: it must survive the process,
//! not the machine, because losing power is no task's fault.
//!
//! - The file is [`MAGIC`], then slots of [`SLOT_BYTES`]: task id and token, little-endian; 0 is free.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use keiko_core::{TaskId, Token};
use parking_lot::Mutex;

const MAGIC: &[u8; 16] = b"keiko running 1\n";
const SLOT_BYTES: usize = 16;
const NAME: &str = "running.journal";

/// The journal of one host.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    /// Free slots, the lowest last.
    free: Mutex<Vec<usize>>,
}

/// A running attempt's slot; free it with [`Journal::end`].
#[derive(Debug)]
pub(crate) struct Slot(usize);

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
        let file = File::create(folder.join(NAME))?;
        file.write_all_at(MAGIC, 0)?;
        Ok(Journal { file, free: Mutex::new((0..running_max).rev().collect()) })
    }

    /// Notes that an attempt starts; call it before the guest runs.
    pub(crate) fn start(&self, id: TaskId, token: Token) -> io::Result<Slot> {
        let slot = self.free.lock().pop();
        let slot = slot.ok_or_else(|| io::Error::other("more attempts run than the journal has slots"))?;
        self.write(slot, id.0, token.0)?;
        Ok(Slot(slot))
    }

    /// Notes that an attempt has ended.
    pub(crate) fn end(&self, slot: Slot) -> io::Result<()> {
        self.write(slot.0, 0, 0)?;
        self.free.lock().push(slot.0);
        Ok(())
    }

    fn write(&self, slot: usize, id: i64, token: i64) -> io::Result<()> {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..].copy_from_slice(&token.to_le_bytes());
        self.file.write_all_at(&bytes, (MAGIC.len() + slot * SLOT_BYTES) as u64)
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
        journal.end(first).unwrap();
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
        std::fs::write(&path, b"something else entirely").unwrap();
        assert_eq!(Journal::read(folder.path()).unwrap(), []);
        std::fs::write(&path, [MAGIC.as_slice(), &[7; SLOT_BYTES - 1]].concat()).unwrap();
        assert_eq!(Journal::read(folder.path()).unwrap(), []);
    }
}
