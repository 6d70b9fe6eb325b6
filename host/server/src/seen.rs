//! How far a database had counted when a host of this data folder last looked: notices one that was put back from a
//! backup.
//!
//! Nothing depends on it but a warning: numbers of holders and tasks start from the clock, so an older database gives
//! none of them twice. What is newer than the backup is gone, and an operator should hear of that. Noticed is a database
//! that is older than the last start or orderly stop here.

use std::io;
use std::path::{Path, PathBuf};

use keiko_store::admin::Numbers;

use crate::config::Database;

/// The file in the data folder.
const FILE: &str = "database.seen";
/// What stands for the files in the data folder.
const FILES: &str = "sqlite";

/// The marker of a data folder, for one database.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    path: PathBuf,
    /// Which database: another one may have counted less.
    database: String,
}

impl Seen {
    /// The marker of this folder.
    pub(crate) fn new(data_dir: &Path, database: &Database) -> Seen {
        let name = match &database.url {
            // Without the password, which may change.
            Some(url) => blake3::hash(url.to_string().as_bytes()).to_hex()[..16].to_owned(),
            None => FILES.to_owned(),
        };
        Seen { path: data_dir.join(FILE), database: name }
    }

    /// Whether the database had counted further when it was last seen.
    pub(crate) fn is_older(&self, numbers: Numbers) -> bool {
        self.read().is_some_and(|seen| numbers.holder < seen.holder || numbers.task < seen.task)
    }

    /// Remembers how far the database has counted; whole or not at all.
    pub(crate) fn write(&self, numbers: Numbers) -> io::Result<()> {
        let next = self.path.with_extension("seen.next");
        std::fs::write(&next, format!("{} {} {}\n", self.database, numbers.holder, numbers.task))?;
        std::fs::rename(&next, &self.path)
    }

    /// What was seen of this database; a file that does not read is as good as none.
    fn read(&self) -> Option<Numbers> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let mut words = text.split_whitespace();
        if words.next()? != self.database {
            return None;
        }
        Some(Numbers { holder: words.next()?.parse().ok()?, task: words.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DatabaseUrl};

    #[test]
    fn a_database_that_counted_less_is_older_and_another_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = Config::defaults().database;
        let server = |url: &str| Database { url: Some(DatabaseUrl::parse(url).unwrap()), ..files.clone() };
        let numbers = |holder, task| Numbers { holder, task };
        let seen = Seen::new(folder.path(), &files);
        assert!(!seen.is_older(numbers(0, 0)), "nothing was seen yet");
        seen.write(numbers(5, 7)).unwrap();
        let check = |database: &Database, numbers, older| {
            assert_eq!(Seen::new(folder.path(), database).is_older(numbers), older, "{numbers:?}");
        };
        check(&files, numbers(5, 7), false);
        check(&files, numbers(6, 7), false);
        check(&files, numbers(4, 9), true);
        check(&files, numbers(6, 6), true);
        check(&server("postgres://u:a@h/d"), numbers(0, 0), false);
        Seen::new(folder.path(), &server("postgres://u:a@h/d")).write(numbers(5, 7)).unwrap();
        check(&server("postgres://u:b@h/d"), numbers(4, 7), true);
        check(&server("postgres://u:b@h/other"), numbers(4, 7), false);
        check(&files, numbers(4, 7), false);
        std::fs::write(folder.path().join(FILE), "sqlite 5").unwrap();
        check(&files, numbers(0, 0), false);
    }
}
