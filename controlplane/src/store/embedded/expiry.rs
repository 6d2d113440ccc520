//! Documents with a time to live: the file has the end of each, and the writer removes them.
//!
//! The file has unix time, so that an end survives a restart. While the store is open, the
//! monotonic clock counts: setting the clock removes nothing, and after a restart no document stays
//! for longer than its whole time to live.
//!
//! Invariant: an entry belongs to one revision of its document. A later one, also of a program that
//! knows no entries, stays.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::Key;
use redb::{Database, ReadTransaction, ReadableDatabase, Table, TableDefinition, TableError};

use super::file::{self, ITEMS, StoreReadError};

/// An expiry as it is stored: the end in unix milliseconds, the time to live in seconds, and the
/// revision of the document.
pub(super) type StoredExpiry = (u64, u32, u64);

/// Key text -> expiry. Created with the first one.
pub(super) const EXPIRIES: TableDefinition<'_, &str, StoredExpiry> = TableDefinition::new("expiries");

pub(super) type ExpiryTable<'a> = Table<'a, &'static str, StoredExpiry>;

/// The delay before a removal is repeated that the disk did not allow.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The end of one revision of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    at: Instant,
    revision: u64,
}

/// The documents that will be removed.
#[derive(Default)]
pub(super) struct Expiries {
    by_key: BTreeMap<Key, Deadline>,
    by_time: BTreeSet<(Instant, Key)>,
    /// Nothing is removed before.
    retry_at: Option<Instant>,
}

impl Expiries {
    /// The entries of the file that belong to the present revision of their document.
    pub(super) fn read(database: &Database) -> Result<Self, StoreReadError> {
        let mut expiries = Self::default();
        let transaction = database.begin_read()?;
        let Some(table) = open_table(&transaction)? else { return Ok(expiries) };
        let items = transaction.open_table(ITEMS)?;
        let (now, unix_now) = (Instant::now(), unix_millis());
        for row in table.range::<&str>(..)? {
            let (name, expiry) = row?;
            let (end, ttl, revision) = expiry.value();
            let modified = items.get(name.value())?.map(|row| row.value().1);
            if modified == Some(revision) {
                let at = now + remaining(end, ttl, unix_now);
                expiries.set(file::parse_key(name.value())?, Some(Deadline { at, revision }));
            }
        }
        Ok(expiries)
    }

    /// When each document is removed.
    pub(super) fn into_ends(self) -> BTreeMap<Key, Instant> {
        self.by_key.into_iter().map(|(key, deadline)| (key, deadline.at)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Sets or clears the end of a document.
    pub(super) fn set(&mut self, key: Key, deadline: Option<Deadline>) {
        if let Some(before) = self.by_key.remove(&key) {
            self.by_time.remove(&(before.at, key.clone()));
        }
        if let Some(deadline) = deadline {
            self.by_time.insert((deadline.at, key.clone()));
            self.by_key.insert(key, deadline);
        }
    }

    /// The time of the next removal.
    pub(super) fn next(&self) -> Option<Instant> {
        let (first, _) = self.by_time.first()?;
        Some(self.retry_at.map_or(*first, |retry_at| retry_at.max(*first)))
    }

    /// The documents to remove now, with their revisions; at most `limit`.
    pub(super) fn due(&self, now: Instant, limit: usize) -> Vec<(Key, u64)> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now).take(limit);
        due.filter_map(|(_, key)| Some((key.clone(), self.by_key.get(key)?.revision))).collect()
    }

    /// Waits after a failed removal.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.retry_at = now.checked_add(RETRY_DELAY);
    }
}

impl Deadline {
    /// The end of a document that is written now, for memory and for the file.
    pub(super) fn after(ttl: NonZeroU32, revision: u64) -> (Self, StoredExpiry) {
        let lifetime = Duration::from_secs(ttl.get().into());
        let end = unix_millis().saturating_add(millis(lifetime));
        (Self { at: Instant::now() + lifetime, revision }, (end, ttl.get(), revision))
    }
}

/// The table in the file; `None`: no document ever had a time to live.
pub(super) fn open_table(
    transaction: &ReadTransaction,
) -> Result<Option<redb::ReadOnlyTable<&'static str, StoredExpiry>>, StoreReadError> {
    match transaction.open_table(EXPIRIES) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(Some(table?)),
    }
}

/// The time until an end, by a clock that may have been set since it was written.
fn remaining(end: u64, ttl: u32, unix_now: u64) -> Duration {
    Duration::from_millis(end.saturating_sub(unix_now)).min(Duration::from_secs(ttl.into()))
}

/// 0 for a clock before 1970.
fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use model::Kind;

    use super::*;
    use crate::store::conformance::key;

    #[test]
    fn a_set_clock_neither_extends_nor_skips_a_life() {
        let end = 1_000_000;
        assert_eq!(remaining(end, 60, end - 1_500), Duration::from_millis(1_500));
        assert_eq!(remaining(end, 60, end), Duration::ZERO);
        assert_eq!(remaining(end, 60, u64::MAX), Duration::ZERO, "set forward");
        assert_eq!(remaining(end, 60, 0), Duration::from_secs(60), "set back");
        assert_eq!(remaining(u64::MAX, u32::MAX, 0), Duration::from_secs(u32::MAX.into()));
        let (deadline, (end, ttl, revision)) = Deadline::after(NonZeroU32::MAX, 7);
        assert!(deadline.at > Instant::now() && end > unix_millis());
        assert_eq!((ttl, revision), (u32::MAX, 7));
    }

    #[test]
    fn the_earliest_ends_come_first() {
        let mut expiries = Expiries::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (a, b, c) = (key(Kind::Ssl, "a"), key(Kind::Ssl, "b"), key(Kind::Ssl, "c"));
        for (key, seconds, revision) in [(&a, 3, 1), (&b, 2, 2), (&c, 9, 3), (&a, 1, 4)] {
            expiries.set(key.clone(), Some(Deadline { at: at(seconds), revision }));
        }
        assert_eq!(expiries.next(), Some(at(1)));
        assert_eq!(expiries.due(start, 9), []);
        assert_eq!(expiries.due(at(2), 9), [(a.clone(), 4), (b.clone(), 2)]);
        assert_eq!(expiries.due(at(2), 1), [(a.clone(), 4)]);
        expiries.postpone(at(2));
        assert_eq!((expiries.next(), expiries.due(at(2), 9)), (Some(at(3)), Vec::new()));
        expiries.set(a, None);
        assert_eq!(expiries.due(at(3), 9), [(b.clone(), 2)]);
        expiries.set(b, None);
        expiries.set(c, None);
        assert!(expiries.is_empty() && expiries.next().is_none());
    }
}
