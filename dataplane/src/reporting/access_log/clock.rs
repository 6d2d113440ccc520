//! The time of a line as text, made once a second.
//!
//! Invariant: all texts are in UTC, so that no change of the machine's zone makes lines ambiguous.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// nginx's `$time_local`.
const LOCAL: &[BorrowedFormatItem<'_>] =
    format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
/// Without the zone and the parts of the second.
const DATE_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

/// The texts of the last second.
#[derive(Debug, Default)]
pub(super) struct Clock(RefCell<Texts>);

#[derive(Debug, Default)]
struct Texts {
    /// Since 1970. Zero is a second that has no texts.
    second: u64,
    local: String,
    date_time: String,
}

/// A point in time, with the clock that has its texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineTime<'a> {
    clock: &'a Clock,
    since_epoch: Duration,
}

impl Clock {
    /// The time of a line that ends now.
    pub(super) fn now(&self) -> LineTime<'_> {
        self.at(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    fn at(&self, since_epoch: Duration) -> LineTime<'_> {
        let mut texts = self.0.borrow_mut();
        let second = since_epoch.as_secs();
        if texts.second != second {
            let time = i64::try_from(second).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
            let text = |format| time.and_then(|time| time.format(format).ok()).unwrap_or_default();
            *texts = Texts { second, local: text(LOCAL), date_time: text(DATE_TIME) };
        }
        LineTime { clock: self, since_epoch }
    }
}

impl LineTime<'_> {
    /// `28/Sep/1970:12:00:00 +0000`
    pub(super) fn write_local(self, line: &mut Vec<u8>) {
        line.extend_from_slice(self.clock.0.borrow().local.as_bytes());
    }

    /// `1970-09-28T12:00:00+00:00`
    pub(super) fn write_iso8601(self, line: &mut Vec<u8>) {
        line.extend_from_slice(self.clock.0.borrow().date_time.as_bytes());
        line.extend_from_slice(b"+00:00");
    }

    /// RFC 3339: `1970-09-28T12:00:00.123Z`
    pub(super) fn write_rfc3339(self, line: &mut Vec<u8>) {
        line.extend_from_slice(self.clock.0.borrow().date_time.as_bytes());
        line.push(b'.');
        write_padded(line, self.since_epoch.subsec_millis(), 3);
        line.push(b'Z');
    }

    /// nginx's `$msec`: `1234567890.123`
    pub(super) fn write_msec(self, line: &mut Vec<u8>) {
        write_millis(line, self.since_epoch);
    }
}

/// A number in decimal.
pub(super) fn write_number(line: &mut Vec<u8>, number: impl itoa::Integer) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Seconds with milliseconds, as nginx writes durations.
pub(super) fn write_millis(line: &mut Vec<u8>, duration: Duration) {
    write_number(line, duration.as_secs());
    line.push(b'.');
    write_padded(line, duration.subsec_millis(), 3);
}

/// Seconds with microseconds.
pub(super) fn write_micros(line: &mut Vec<u8>, duration: Duration) {
    write_number(line, duration.as_secs());
    line.push(b'.');
    write_padded(line, duration.subsec_micros(), 6);
}

fn write_padded(line: &mut Vec<u8>, number: u32, digits: usize) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(number).as_bytes();
    line.extend(std::iter::repeat_n(b'0', digits.saturating_sub(text.len())));
    line.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut line = Vec::new();
        write(&mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn times_have_the_formats_of_nginx() {
        let clock = Clock::default();
        let time = clock.at(Duration::from_millis(23_371_200_007));
        assert_eq!(text(|line| time.write_local(line)), "28/Sep/1970:12:00:00 +0000");
        assert_eq!(text(|line| time.write_iso8601(line)), "1970-09-28T12:00:00+00:00");
        assert_eq!(text(|line| time.write_rfc3339(line)), "1970-09-28T12:00:00.007Z");
        assert_eq!(text(|line| time.write_msec(line)), "23371200.007");
        let next = clock.at(Duration::from_secs(23_371_201));
        assert_eq!(text(|line| next.write_local(line)), "28/Sep/1970:12:00:01 +0000");
    }

    #[test]
    fn durations_are_in_seconds() {
        let millis = |duration| text(|line| write_millis(line, duration));
        assert_eq!(millis(Duration::ZERO), "0.000");
        assert_eq!(millis(Duration::from_micros(12_999)), "0.012");
        assert_eq!(millis(Duration::from_millis(61_050)), "61.050");
        assert_eq!(text(|line| write_micros(line, Duration::from_nanos(1_000_042_999))), "1.000042");
    }
}
