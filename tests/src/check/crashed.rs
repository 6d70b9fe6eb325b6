//! Which tasks were running when the check killed their host: read from the journal that the host leaves, before it starts
//! again. A task that was so three times is quarantined, as is promised, though it was none of its doing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// How the journal of a host begins; behind it stand pairs of a running task's number and token, and zeros.
const MAGIC: &[u8; 16] = b"keiko running 1\n";
const PAIR_BYTES: usize = 16;
/// Crashes after which a task is quarantined.
const CRASHES_MAX: u64 = 3;

/// How often tasks were running when their host was killed, by number.
#[derive(Debug, Default)]
pub(super) struct Crashed(BTreeMap<i64, u64>);

impl Crashed {
    /// Adds what the killed host in this data folder was running.
    pub(super) fn add(&mut self, data: &Path) -> Result<()> {
        let path = data.join("journal/running.journal");
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let pairs = bytes.strip_prefix(MAGIC);
        ensure!(pairs.is_some(), "{} is no journal that this check knows", path.display());
        for pair in pairs.unwrap_or_default().chunks_exact(PAIR_BYTES) {
            let number = i64::from_le_bytes(pair[..8].try_into()?);
            *self.0.entry(number).or_default() += u64::from(number != 0);
        }
        Ok(())
    }

    /// Whether kills alone were enough to quarantine a task.
    pub(super) fn enough(&self, id: &str) -> bool {
        number(id).and_then(|number| self.0.get(&number)).is_some_and(|&times| times >= CRASHES_MAX)
    }
}

/// The number of a task's id: 13 letters of Crockford's base 32.
fn number(id: &str) -> Option<i64> {
    const LETTERS: &str = "0123456789abcdefghjkmnpqrstvwxyz";
    id.strip_prefix("task_")?
        .chars()
        .try_fold(0i64, |number, letter| number.checked_mul(32)?.checked_add(LETTERS.find(letter)? as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_kills_are_enough() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("journal")).unwrap();
        let journal = folder.path().join("journal/running.journal");
        let pairs = [(33i64, 7i64), (0, 0), (34, 1)];
        let mut bytes = MAGIC.to_vec();
        pairs.iter().for_each(|(id, token)| bytes.extend([id.to_le_bytes(), token.to_le_bytes()].concat()));
        std::fs::write(&journal, bytes).unwrap();
        let mut crashed = Crashed::default();
        for kills in 0..3 {
            assert!(!crashed.enough("task_0000000000011"), "after {kills}");
            crashed.add(folder.path()).unwrap();
        }
        assert!(crashed.enough("task_0000000000011") && crashed.enough("task_0000000000012"));
        assert!(!crashed.enough("task_0000000000000") && !crashed.enough("task_!") && !crashed.enough("x"));
        std::fs::write(&journal, "something else").unwrap();
        assert!(crashed.add(folder.path()).is_err());
    }
}
