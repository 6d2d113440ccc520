//! Conversions of [`UnixTime`].

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::macros::format_description;

/// `2026-01-02 03:04:05 UTC`
pub fn format_utc(time: UnixTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|date| date.format(format).ok());
    date.unwrap_or_else(|| "beyond the calendar".to_owned())
}
