//! Conversions of [`UnixTime`]: to the seconds that certificates are compared in, and to text.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::macros::format_description;

/// Times before 1970 become 1970.
pub(crate) fn from_seconds(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(crate) fn to_seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// `2026-01-02 03:04:05 UTC`
pub fn format_utc(time: UnixTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let date = OffsetDateTime::from_unix_timestamp(to_seconds(time)).ok();
    let text = date.and_then(|date| date.format(format).ok());
    text.unwrap_or_else(|| "beyond the calendar".to_owned())
}
