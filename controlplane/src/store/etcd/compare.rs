//! Compares of a transaction: of one key, or of a range of keys.
//!
//! Each compare can be repeated as a read, which says whether it holds.

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, TxnOp, TxnOpResponse};
use model::Key;

use super::layout::{self, Layout};
use crate::store::Condition;

/// The state of a key; zero for an absent one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyState {
    pub(super) mod_revision: i64,
    lease: i64,
}

impl KeyState {
    /// Of the key that was read.
    pub(super) fn read(response: &TxnOpResponse) -> Self {
        let TxnOpResponse::Get(get) = response else { return Self::default() };
        let state = |kv: &KeyValue| Self { mod_revision: kv.mod_revision(), lease: kv.lease() };
        get.kvs().first().map(state).unwrap_or_default()
    }
}

/// A compare of one key or of a range.
pub(super) struct KeyCompare {
    name: String,
    range_end: Option<Vec<u8>>,
    test: Test,
}

#[derive(Clone, Copy)]
pub(super) enum Test {
    /// 0: absent.
    Modified(i64),
    /// Also holds for an absent key.
    NotAfter(i64),
    Exists,
    /// Also holds for an absent key.
    NoLease,
}

impl KeyCompare {
    pub(super) fn key(name: &str, test: Test) -> Self {
        Self { name: name.to_owned(), range_end: None, test }
    }

    /// No key from `first` to before `end` is newer than `since`.
    pub(super) fn range(first: String, end: Vec<u8>, since: i64) -> Self {
        Self { name: first, range_end: Some(end), test: Test::NotAfter(since) }
    }

    pub(super) fn compare(&self) -> Compare {
        let name = self.name.as_str();
        let compare = match self.test {
            Test::Modified(revision) => Compare::mod_revision(name, CompareOp::Equal, revision),
            Test::NotAfter(revision) => {
                Compare::mod_revision(name, CompareOp::Less, revision.saturating_add(1))
            }
            Test::Exists => Compare::version(name, CompareOp::Greater, 0),
            Test::NoLease => Compare::lease(name, CompareOp::Equal, 0),
        };
        self.range_end.iter().fold(compare, |compare, end| compare.with_range(end.as_slice()))
    }

    /// Reads the key whose state [`Self::holds`] needs: of a range, one that is too new.
    pub(super) fn read(&self) -> TxnOp {
        let options = GetOptions::new().with_keys_only();
        let options = match (&self.range_end, self.test) {
            (Some(end), Test::NotAfter(since)) => options
                .with_range(end.as_slice())
                .with_min_mod_revision(since.saturating_add(1))
                .with_limit(1),
            _ => options,
        };
        TxnOp::get(self.name.as_str(), Some(options))
    }

    pub(super) fn holds(&self, present: KeyState) -> bool {
        match self.test {
            Test::Modified(expected) => present.mod_revision == expected,
            Test::NotAfter(newest) => present.mod_revision <= newest,
            Test::Exists => present.mod_revision != 0,
            Test::NoLease => present.lease == 0,
        }
    }
}

pub(super) fn condition_compares(condition: &Condition, layout: &Layout) -> Vec<KeyCompare> {
    let document = |key: &Key, test| KeyCompare::key(&layout.document_key(key), test);
    match condition {
        Condition::Exists(key) => vec![document(key, Test::Exists)],
        Condition::NeverExpires(key) => vec![document(key, Test::Exists), document(key, Test::NoLease)],
        Condition::Absent(key) => vec![document(key, Test::Modified(0))],
        Condition::Unchanged { key, since } => {
            let test = Test::NotAfter(layout::to_etcd_revision(*since));
            let extension = layout.extension_key(key).map(|name| KeyCompare::key(&name, test));
            [document(key, Test::Exists), document(key, test)].into_iter().chain(extension).collect()
        }
        Condition::KindUnchanged { kind, since } => {
            let since = layout::to_etcd_revision(*since);
            let prefixes = [Some(layout.kind_prefix(*kind)), layout.kind_extensions_prefix(*kind)];
            let range = |prefix: String| {
                let end = layout::range_end(&prefix).into_bytes();
                KeyCompare::range(prefix, end, since)
            };
            prefixes.into_iter().flatten().map(range).collect()
        }
    }
}
