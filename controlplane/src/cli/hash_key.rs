//! `controlplane hash-key`: the hash of an admin key, for `deployment.admin.admin_key[].key`.
//!
//! The key comes from standard input, since a command line can be read by every user of the
//! machine. SHA-256 is right for random keys, which cannot be guessed; a short key could be found
//! from its hash, so it is refused.

use std::io::{self, IsTerminal, Read, Write};

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::admin::access::key_digest;

pub(crate) const EXAMPLES: &str = "Examples:
  openssl rand -hex 32 > admin.key && controlplane hash-key < admin.key
  controlplane hash-key                             type the key, Enter, Ctrl-D

The file then holds the hash, and clients send the key:
  admin_key: [{name: ops, key: \"sha256:9f9f5111...\", role: admin}]";

/// The least characters of a key.
const KEY_CHARACTERS: usize = 16;
/// Fewer bytes than these are read from standard input.
const INPUT_BYTES_MAX: u64 = 64 << 10;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashKeyError {
    #[error("standard input cannot be read as text: {0}")]
    Input(io::Error),
    #[error("standard output cannot be written: {0}")]
    Output(io::Error),
    #[error(
        "standard input must be one key without blanks, of at least {KEY_CHARACTERS} characters, such as `openssl rand -hex 32` makes: \
         a shorter one can be found from its hash"
    )]
    Key,
}

/// Prints `sha256:` and the hash of the key in `input`.
///
/// # Errors
/// When the input is no key, or a stream fails. The error does not show the input.
pub(crate) fn run(input: impl Read, out: &mut dyn Write) -> Result<(), HashKeyError> {
    let mut text = Zeroizing::new(String::new());
    input.take(INPUT_BYTES_MAX).read_to_string(&mut text).map_err(HashKeyError::Input)?;
    let key = text.trim_end_matches(['\r', '\n']);
    let cut_off = text.len() as u64 >= INPUT_BYTES_MAX;
    if cut_off || key.chars().count() < KEY_CHARACTERS || key.contains(char::is_whitespace) {
        return Err(HashKeyError::Key);
    }
    writeln!(out, "sha256:{}", HEXLOWER.encode(&key_digest(key.as_bytes()))).map_err(HashKeyError::Output)
}

/// As [`run`] from standard input. A terminal gets a prompt on standard error.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_on_stdin(out: &mut dyn Write) -> Result<(), HashKeyError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        telemetry::log::write_unfiltered(&format_args!("type the key, Enter, Ctrl-D"));
    }
    run(stdin.lock(), out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(input: &[u8]) -> Result<String, String> {
        let mut out = Vec::new();
        run(input, &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_hash_is_that_of_the_key_without_its_newline() {
        // printf 0123456789abcdef | sha256sum
        let expected = "sha256:9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f\n";
        for input in ["0123456789abcdef", "0123456789abcdef\n", "0123456789abcdef\r\n"] {
            assert_eq!(hash(input.as_bytes()).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn an_input_that_is_no_key_is_not_shown() {
        for input in
            ["", "\n", "sesame", "two words that are long enough", "line-one-is-long\nline-two-is-long"]
        {
            let error = hash(input.as_bytes()).unwrap_err();
            assert!(error.contains("at least 16 characters") && !error.contains("sesame"), "{error}");
        }
        assert!(hash(&[0xff; 40]).unwrap_err().contains("as text"));
        assert!(hash(&[b'x'; 1 << 20]).is_err(), "a hash of its beginning would be wrong");
    }
}
