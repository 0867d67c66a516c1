//! The token that a reader must show.

use std::fs;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::warn;

/// A token in a file, which may be replaced at any time.
#[derive(Debug)]
pub struct Token {
    path: PathBuf,
    read: Mutex<(Stamp, Vec<u8>)>,
}

/// What changes when a file does: its inode, length, and when it was written (s, ns).
pub(super) type Stamp = (u64, u64, i64, i64);

pub(super) fn stamp(path: &Path) -> io::Result<Stamp> {
    let found = fs::metadata(path)?;
    Ok((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let text = fs::read(path)?;
    let token = text.trim_ascii();
    if token.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
    }
    Ok(token.to_vec())
}

impl Token {
    /// The token in a file; white space around it does not count.
    ///
    /// # Errors
    /// The file cannot be read, or has no token.
    pub fn open(path: &Path) -> io::Result<Self> {
        let read = Mutex::new((stamp(path)?, read(path)?));
        Ok(Self { path: path.to_owned(), read })
    }

    /// Whether a reader has shown it: the value of its header `Authorization`.
    pub fn is_shown(&self, authorization: &[u8]) -> bool {
        let Some((scheme, shown)) = authorization.split_at_checked(7) else { return false };
        scheme.eq_ignore_ascii_case(b"bearer ") && same(shown.trim_ascii(), &self.current())
    }

    /// The token as the file has it now; while it cannot be read, the last one.
    fn current(&self) -> Vec<u8> {
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(now) = stamp(&self.path)
            && now != last.0
        {
            match read(&self.path) {
                Ok(token) => last.1 = token,
                Err(error) => {
                    let path = self.path.display();
                    warn!(%path, %error, "the token cannot be read; the last one stays");
                }
            }
            last.0 = now;
        }
        last.1.clone()
    }
}

/// Compares in a time that tells nothing of where two tokens differ.
fn same(shown: &[u8], token: &[u8]) -> bool {
    let mut difference = u8::from(shown.len() != token.len());
    for (n, byte) in shown.iter().enumerate() {
        difference = black_box(difference | byte ^ token[n % token.len()]);
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        for (shown, expected) in [
            ("secret", true),
            ("secre", false),
            ("secrets", false),
            ("Secret", false),
            ("", false),
            ("secretsecret", false),
        ] {
            assert_eq!(same(shown.as_bytes(), b"secret"), expected, "{shown}");
        }
    }

    #[test]
    fn a_new_token_counts_at_once_and_an_empty_file_changes_nothing() {
        let path = std::env::temp_dir().join(format!("sluice-token-{}", std::process::id()));
        fs::write(&path, "first\n").unwrap();
        let token = Token::open(&path).unwrap();
        for (header, expected) in [
            ("Bearer first", true),
            ("bearer  first ", true),
            ("Basic first", false),
            ("first", false),
            ("Bearer second", false),
        ] {
            assert_eq!(token.is_shown(header.as_bytes()), expected, "{header}");
        }
        fs::write(&path, "the second one\n").unwrap();
        assert!(token.is_shown(b"Bearer the second one"));
        assert!(!token.is_shown(b"Bearer first"));
        fs::write(&path, "").unwrap();
        assert!(token.is_shown(b"Bearer the second one"));
        fs::remove_file(&path).unwrap();
        assert!(token.is_shown(b"Bearer the second one"));
        assert!(Token::open(&path).is_err());
    }

    #[test]
    fn a_file_without_a_token_is_refused_at_the_start() {
        let path = std::env::temp_dir().join(format!("sluice-no-token-{}", std::process::id()));
        fs::write(&path, " \n").unwrap();
        assert!(Token::open(&path).unwrap_err().to_string().contains("empty"));
        fs::remove_file(&path).unwrap();
    }
}
