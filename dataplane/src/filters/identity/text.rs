//! Pieces of a certificate as text for headers and variables: dates, fingerprints, escaped PEM.
//! What comes out is printable ASCII.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use pki::UnixTime;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Everything but the unreserved characters of RFC 3986: what nginx escapes in
/// `$ssl_client_escaped_cert`.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// As OpenSSL prints times: `Nov 25 19:49:56 2026 GMT`.
const DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second] [year] GMT");

/// A time as OpenSSL prints it.
pub fn date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(DATE).ok())
        .unwrap_or_default()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _writing_to_a_string = write!(text, "{byte:02x}");
        text
    })
}

/// PEM blocks, one after another, so that they fit into a header.
pub fn escaped_pem(blocks: impl Iterator<Item = String>) -> String {
    blocks.fold(String::new(), |mut text, block| {
        text.extend(utf8_percent_encode(&block, COMPONENT));
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_openssls() {
        let at = |seconds| date(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        assert_eq!(at(0), "Jan  1 00:00:00 1970 GMT");
        assert_eq!(at(1_795_636_196), "Nov 25 19:49:56 2026 GMT");
        assert_eq!(at(253_402_300_799), "Dec 31 23:59:59 9999 GMT");
    }
}
