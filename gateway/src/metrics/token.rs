//! The token that a reader must show.

use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::whole::{self, Stamp};

/// A token in a file, which may be replaced at any time.
#[derive(Debug)]
pub struct Token {
    path: PathBuf,
    read: Mutex<(Stamp, Vec<u8>)>,
}

/// Longer than any token.
const MOST_BYTES: u64 = 4096;

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let text = whole::read(path, MOST_BYTES)?;
    let token = text.trim_ascii();
    let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if token.is_empty() {
        return invalid("the file is empty");
    }
    // No reader could show anything else.
    if !token.iter().all(u8::is_ascii_graphic) {
        return invalid("expected one word of letters, digits and signs in it");
    }
    Ok(token.to_vec())
}

impl Token {
    /// The token in a file; white space around it does not count.
    ///
    /// # Errors
    /// The file cannot be read, or has no token.
    pub fn open(path: &Path) -> io::Result<Self> {
        let read = Mutex::new((Stamp::of(path)?, read(path)?));
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
        if let Ok(now) = Stamp::of(&self.path)
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
    use std::fs;

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
        fs::write(&path, "the-second-one\n").unwrap();
        assert!(token.is_shown(b"Bearer the-second-one"));
        assert!(!token.is_shown(b"Bearer first"));
        fs::write(&path, "").unwrap();
        assert!(token.is_shown(b"Bearer the-second-one"));
        fs::remove_file(&path).unwrap();
        assert!(token.is_shown(b"Bearer the-second-one"));
        assert!(Token::open(&path).is_err());
    }

    #[test]
    fn a_file_without_a_token_is_refused_at_the_start() {
        let path = std::env::temp_dir().join(format!("sluice-no-token-{}", std::process::id()));
        for (text, said) in [(" \n", "empty"), ("one\ntwo\n", "one word"), ("\0", "one word")] {
            fs::write(&path, text).unwrap();
            let refused = Token::open(&path).unwrap_err().to_string();
            assert!(refused.contains(said), "{text:?}: {refused}");
        }
        fs::remove_file(&path).unwrap();
        let refused = Token::open(&std::env::temp_dir()).unwrap_err().to_string();
        assert_eq!(refused, "it is no regular file");
    }
}
