//! PEM, parsed as OpenSSL does (RFC 7468 lax form): text before, between and after the blocks is
//! ignored.
//!
//! `cert`, `key` and `revocation` use it. Invariant: a block without its BEGIN line, without its
//! END line or with a malformed body is an error and never skipped, so a damaged bundle cannot
//! silently lose a certificate or a CRL.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

/// One block: the label between the dashes, and the decoded bytes. Wiped on drop, because it may be
/// a private key.
pub(crate) struct Block<'a> {
    pub(crate) label: &'a str,
    /// `Proc-Type` marks the body as encrypted (RFC 1421); `bytes` is then empty.
    pub(crate) encrypted: bool,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum PemError {
    /// OpenSSL skips such a block: its BEGIN line is misspelt, indented, or follows other text.
    #[error(
        "the line `-----END {label}-----` has no `-----BEGIN {label}-----` before it: that line must stand alone, \
         without blanks or other characters before it, with five dashes on both sides"
    )]
    NoBegin { label: String },
    #[error("the block `{label}` has no `-----END {label}-----` line")]
    Unterminated { label: String },
    #[error("the body of the block `{label}` is not base64")]
    Body { label: String },
}

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
/// Most characters of a label in an error message.
pub(crate) const LABEL_CHARS_MAX: usize = 64;
const DASHES: &str = "-----";

impl Block<'_> {
    /// Whether the block cannot change the trust in a certificate file: a key, its parameters or a
    /// certificate request. Any other unused block (a CRL, PKCS #7, an attribute certificate)
    /// might, and must not be skipped.
    pub(crate) fn is_irrelevant_to_trust(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
            || matches!(
                self.label,
                "EC PARAMETERS" | "DH PARAMETERS" | "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST"
            )
    }
}

/// The start of a label, for error messages.
pub(crate) fn truncated(label: &str) -> String {
    label.chars().take(LABEL_CHARS_MAX).collect()
}

/// The blocks of `text` in order. Stops after the first error.
pub(crate) fn blocks(text: &str) -> impl Iterator<Item = Result<Block<'_>, PemError>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let begin = next_begin(text);
        let between = begin.map_or(text, |begin| begin.before);
        if let Some(label) = stray_end(between) {
            return Some(Err(PemError::NoBegin { label: truncated(label) }));
        }
        let begin = begin?;
        match read_body(begin.label, begin.after) {
            Ok((block, after)) => {
                rest = Some(after);
                Some(Ok(block))
            }
            Err(error) => Some(Err(error)),
        }
    })
}

/// A BEGIN line and the text before and after it.
#[derive(Clone, Copy)]
struct BeginLine<'a> {
    before: &'a str,
    label: &'a str,
    after: &'a str,
}

/// The next BEGIN line.
fn next_begin(text: &str) -> Option<BeginLine<'_>> {
    let mut from = 0;
    loop {
        let found = from + text.get(from..)?.find(BEGIN)?;
        let before = text.get(..found)?;
        from = found + BEGIN.len();
        if !(before.is_empty() || before.ends_with(['\n', '\r'])) {
            continue;
        }
        let rest = text.get(from..)?;
        let line = rest.split(['\n', '\r']).next().unwrap_or(rest);
        if let Some(label) = line.trim_end().strip_suffix(DASHES) {
            return Some(BeginLine { before, label, after: rest.get(line.len()..)? });
        }
    }
}

/// The label of an END line in text without a block. A line with a prefix (`# -----END`) is a
/// comment.
fn stray_end(text: &str) -> Option<&str> {
    text.split(['\n', '\r']).find_map(|line| {
        let line = line.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        line.strip_prefix(END)?.strip_suffix(DASHES)
    })
}

fn read_body<'a>(label: &'a str, text: &'a str) -> Result<(Block<'a>, &'a str), PemError> {
    let end = format!("{END}{label}{DASHES}");
    let (body, after) =
        text.split_once(end.as_str()).ok_or_else(|| PemError::Unterminated { label: truncated(label) })?;
    // RFC 1421 headers, if any, end with an empty line; only legacy private keys have them.
    let (headers, body) = match body.find(':') {
        Some(_) => body.split_once("\n\n").or_else(|| body.split_once("\r\n\r\n")).unwrap_or((body, "")),
        None => ("", body),
    };
    let encrypted = headers.lines().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"));
    let mut bytes = Zeroizing::new(Vec::new());
    if !encrypted {
        let compact: Zeroizing<Vec<u8>> =
            Zeroizing::new(body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
        // One allocation: growing would leave parts of a key in memory.
        bytes.reserve_exact(compact.len() / 4 * 3 + 3);
        STANDARD
            .decode_vec(compact.as_slice(), &mut bytes)
            .map_err(|_| PemError::Body { label: truncated(label) })?;
    }
    Ok((Block { label, encrypted, bytes }, after))
}

/// The text of one block, with lines of 64 characters, as OpenSSL writes it.
pub(crate) fn encode(label: &str, bytes: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(bytes));
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 40));
    text.push_str(BEGIN);
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // base64 is ASCII: any index is a boundary.
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_around_blocks_is_ignored() {
        let text = "subject=CN = a\n-----BEGIN A-----\r\nAAEC\r\n-----END A-----\nnoise -----BEGIN X-----\nnoise -----END X-----\n-----BEGIN B B-----\nAw==\n-----END B B-----";
        let read: Vec<_> =
            blocks(text).map(|block| block.map(|b| (b.label.to_owned(), b.bytes.to_vec()))).collect();
        assert_eq!(read, [Ok(("A".to_owned(), vec![0, 1, 2])), Ok(("B B".to_owned(), vec![3]))]);
    }

    #[test]
    fn a_damaged_block_is_an_error() {
        let first = |text| blocks(text).next().unwrap().err().unwrap();
        assert_eq!(first("-----BEGIN A-----\nAAEC\n"), PemError::Unterminated { label: "A".to_owned() });
        assert_eq!(
            first("-----BEGIN A-----\nA*EC\n-----END A-----"),
            PemError::Body { label: "A".to_owned() }
        );
    }

    #[test]
    fn an_end_line_without_begin_is_an_error() {
        let whole = "-----BEGIN A-----\nAAEC\n-----END A-----\n";
        for (damaged, why) in [
            (whole.replace("-----BEGIN", "----BEGIN"), "four dashes"),
            (whole.replace("BEGIN A-----", "BEGIN A----"), "four dashes behind"),
            (whole.replace("BEGIN A", "begin A"), "lower case"),
            (format!("\u{feff}{whole}"), "a byte order mark"),
            (format!(" {}", whole.replace('\n', "\n ")), "indented"),
            (format!("text {whole}"), "text before it"),
            (whole.replace("-----BEGIN A-----\n", ""), "no line"),
        ] {
            for text in [damaged.clone(), format!("{whole}{damaged}"), format!("{damaged}{whole}")] {
                let error = blocks(&text).find_map(Result::err);
                assert_eq!(error, Some(PemError::NoBegin { label: "A".to_owned() }), "{why}: {text}");
            }
        }
        let comment = whole.lines().map(|line| format!("# {line}\n")).collect::<String>();
        assert_eq!(blocks(&comment).count(), 0);
        // Concatenated files whose last line has no line break.
        assert_eq!(blocks(&format!("{}{whole}", whole.trim_end())).filter(Result::is_ok).count(), 2);
    }

    #[test]
    fn legacy_encryption_is_detected() {
        let text = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAEC\n-----END RSA PRIVATE KEY-----\n";
        assert!(blocks(text).next().unwrap().unwrap().encrypted);
    }

    proptest! {
        #[test]
        fn encoded_blocks_parse_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = encode("SOME LABEL", &bytes);
            let read: Vec<_> = blocks(&text).collect();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(&read[0].as_ref().unwrap().bytes[..], &bytes[..]);
        }

        #[test]
        fn any_text_terminates(text in "(-----BEGIN |-----END |-----\n|A|[ -~\n]){0,60}") {
            prop_assert!(blocks(&text).count() < 100);
        }
    }
}
