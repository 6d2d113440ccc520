//! Reading: one document, a kind, everything at one revision, and what lies beside.
//!
//! Page by page, all pages at the revision of the first, so that neither a gigabyte of documents comes in one answer nor two
//! halves of different moments are taken for one state.

use std::collections::BTreeMap;

use etcd_client::{Error, GetOptions, GetResponse, KvClient};
use model::{Key, Kind};

use super::Cluster;
use super::layout::{self, Place};
use crate::store::{Loaded, Private, PrivateEntry, StoreError, Stored, Stranger};

/// Documents of one page.
const PAGE: i64 = 500;
/// Loads that are begun anew because the revision of their first page was compacted away.
const TRIES: usize = 5;

impl Cluster {
    /// One document, as a majority has it.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Stored>, StoreError> {
        let name = self.layout.document(key);
        let found = self.ask(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.get(name, None).await }
        });
        let mut found = found.await?;
        Ok(found
            .take_kvs()
            .into_iter()
            .next()
            .map(|kv| layout::stored(key.clone(), kv.value(), kv.create_revision(), kv.mod_revision())))
    }

    /// A private entry.
    pub(super) async fn private(&self, what: Private) -> Result<Option<PrivateEntry>, StoreError> {
        let name = self.layout.private(what);
        let found = self.ask(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.get(name, None).await }
        });
        let mut found = found.await?;
        Ok(found.take_kvs().into_iter().next().map(|kv| PrivateEntry {
            version: layout::revision(kv.mod_revision()),
            text: String::from_utf8_lossy(kv.value()).into_owned().into(),
        }))
    }

    /// The documents of these kinds, at one revision.
    pub(super) async fn documents(&self, kinds: &[Kind]) -> Result<Loaded, StoreError> {
        for _ in 0..TRIES {
            if let Some(loaded) = self.documents_at_once(kinds).await? {
                return Ok(loaded);
            }
        }
        Err(StoreError::Unavailable { what: "etcd compacts faster than it can be read".to_owned() })
    }

    /// `None` when the revision was compacted away meanwhile.
    async fn documents_at_once(&self, kinds: &[Kind]) -> Result<Option<Loaded>, StoreError> {
        let mut revision = None;
        let mut items = Vec::new();
        for kind in kinds {
            let prefix = self.layout.kind(*kind);
            let mut from = prefix.clone().into_bytes();
            loop {
                let Some(mut page) = self.page(from, &prefix, revision).await? else { return Ok(None) };
                revision.get_or_insert(page.header().map_or(0, etcd_client::ResponseHeader::revision));
                let more = page.more();
                let found = page.take_kvs();
                from = found.last().map(|last| [last.key(), &[0]].concat()).unwrap_or_default();
                items.extend(found.iter().filter_map(|kv| match self.layout.place(kv.key()) {
                    Place::Document(key) => {
                        Some(layout::stored(key, kv.value(), kv.create_revision(), kv.mod_revision()))
                    }
                    Place::Nothing | Place::Stranger(_) => None,
                }));
                if !more || from.is_empty() {
                    break;
                }
            }
        }
        items.sort_by_cached_key(|item| item.key.to_string());
        Ok(Some(Loaded { revision: layout::revision(revision.unwrap_or_default()), items }))
    }

    async fn page(
        &self,
        from: Vec<u8>,
        prefix: &str,
        revision: Option<i64>,
    ) -> Result<Option<GetResponse>, StoreError> {
        let options = GetOptions::new().with_range(after(prefix)).with_limit(PAGE);
        let options = revision.into_iter().fold(options, GetOptions::with_revision);
        let read = self.ask_raw(|mut kv: KvClient| {
            let (from, options) = (from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        });
        match read.await? {
            Ok(page) => Ok(Some(page)),
            Err((_, Error::GRpcStatus(status))) if status.code() == tonic::Code::OutOfRange => Ok(None),
            Err((connected, error)) => {
                Err(StoreError::Unavailable { what: self.link.told(&connected, &error) })
            }
        }
    }

    /// What lies beside the documents, counted by directory.
    pub(super) async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        let root = self.layout.root();
        let options = GetOptions::new().with_prefix().with_keys_only();
        let found = self.ask(|mut kv: KvClient| {
            let options = options.clone();
            async move { kv.get(root, Some(options)).await }
        });
        let mut counts = BTreeMap::new();
        for kv in found.await?.take_kvs() {
            if let Place::Stranger(name) = self.layout.place(kv.key()) {
                *counts.entry(name).or_insert(0) += 1;
            }
        }
        Ok(counts.into_iter().map(|(name, count)| Stranger { name, count }).collect())
    }
}

/// The end of the range of names that start with `prefix`, which ends in a slash: '0' is the next character.
fn after(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}
