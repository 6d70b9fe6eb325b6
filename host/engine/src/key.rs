//! The cluster key: what authenticates compiled artifacts. Hosts of one database share it, and it never leaves them.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Hexadecimal digits of a key.
const KEY_DIGITS: usize = 2 * KEY_BYTES;

/// 32 secret bytes.
#[derive(Clone)]
pub struct ClusterKey([u8; KEY_BYTES]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text or file is not a key.
    #[error("a cluster key is {KEY_DIGITS} hexadecimal digits")]
    Malformed,
    /// The file cannot be read or made.
    #[error("the cluster key cannot be read or made")]
    Io(#[from] io::Error),
    /// The system gives no random bytes.
    #[error("the system has no random bytes")]
    Random,
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

impl ClusterKey {
    /// The key that is written in a file, which is made, readable by its owner only, when there is none. Processes
    /// that start together end up with the same key.
    pub fn load_or_create(path: &Path) -> Result<ClusterKey, KeyError> {
        match fs::read_to_string(path) {
            Ok(text) => ClusterKey::from_hex(text.trim_end()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => ClusterKey::create(path),
            Err(error) => Err(error.into()),
        }
    }

    /// The key that these 64 digits write.
    pub fn from_hex(text: &str) -> Result<ClusterKey, KeyError> {
        if text.len() != KEY_DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(KeyError::Malformed);
        }
        let mut key = [0; KEY_BYTES];
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digit = |place: usize| char::from(digits[place]).to_digit(16).unwrap_or(0) as u8;
            *byte = digit(0) << 4 | digit(1);
        }
        Ok(ClusterKey(key))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    fn create(path: &Path) -> Result<ClusterKey, KeyError> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|_| KeyError::Random)?;
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(|_| KeyError::Random)?;
        let draft = path.with_extension(format!("{:016x}.new", u64::from_le_bytes(unique)));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(digits.as_bytes()).and_then(|()| file.sync_all())?;
        // A link, unlike a rename, never replaces the key of a process that was faster.
        let linked = fs::hard_link(&draft, path);
        fs::remove_file(&draft)?;
        match linked {
            Ok(()) => Ok(ClusterKey(key)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                ClusterKey::from_hex(fs::read_to_string(path)?.trim_end())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        let first = ClusterKey::load_or_create(&path).unwrap();
        let again = ClusterKey::load_or_create(&path).unwrap();
        assert_eq!(first.bytes(), again.bytes());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        let good = "0123456789abcdefABCDEF0123456789".repeat(2);
        assert_eq!(ClusterKey::from_hex(&good).unwrap().bytes()[..4], [0x01, 0x23, 0x45, 0x67]);
        for bad in
            ["", "00", &good[1..], &format!("{good}0"), &good.replace('0', "g"), &good.replace("01", "é")]
        {
            assert!(matches!(ClusterKey::from_hex(bad), Err(KeyError::Malformed)), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        fs::write(&path, "").unwrap();
        assert!(matches!(ClusterKey::load_or_create(&path), Err(KeyError::Malformed)));
    }
}
