//! Moments, as people read them.

use pki::UnixTime;
use time::OffsetDateTime;
use time::macros::format_description;

/// In UTC, to the second.
pub fn format_utc(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|date| date.format(format).ok());
    date.unwrap_or_else(|| "beyond the calendar".into())
}
