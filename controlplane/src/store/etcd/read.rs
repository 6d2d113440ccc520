//! Reads: one document, a page, a kind, or everything at one revision, with extension fields.
//!
//! Reads are paged, and all pages have the revision of the first: a response stays small, and the
//! result is one consistent state.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use etcd_client::{
    Error, GetOptions, GetResponse, KeyValue, KvClient, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use model::{Key, Kind};

use super::Cluster;
use super::connection::EtcdConnection;
use super::layout::{self, ExtensionEntry, ParsedKey};
use crate::store::{
    DocumentList, InternalEntry, InternalKey, ORPHANED_EXTENSIONS, Page as Part, StoreError, StoredDocument,
    UnknownKeys,
};

/// Documents per response.
const PAGE_SIZE: i64 = 500;
/// Documents per transaction: with their extension entries they stay below etcd's limit of 128
/// operations.
const GETS_PER_TXN: usize = 60;
/// Attempts, when the revision of the first page is compacted during a read.
const READ_ATTEMPTS: usize = 5;

impl Cluster {
    /// One document with its extension fields, by a linearizable read.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<StoredDocument>, StoreError> {
        let names: Vec<String> = [Some(self.layout.document_key(key)), self.layout.extension_key(key)]
            .into_iter()
            .flatten()
            .collect();
        let response = self.call(|mut kv: KvClient| {
            let gets: Vec<TxnOp> = names.iter().map(|name| TxnOp::get(name.as_str(), None)).collect();
            async move { kv.txn(Txn::new().and_then(gets)).await }
        });
        let responses = response.await?.op_responses();
        let mut entries = responses.iter().map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first(),
            _ => None,
        });
        let Some(document) = entries.next().flatten() else { return Ok(None) };
        let extension =
            entries.next().flatten().map(|kv| ExtensionEntry::decode(kv.value(), kv.mod_revision()));
        let stored = layout::decode_document(
            key.clone(),
            document.value(),
            document.create_revision(),
            document.mod_revision(),
        );
        Ok(Some(layout::merge_extension(stored, extension.as_ref())))
    }

    /// One document at a revision, without extension fields; the outer `None`: the revision is
    /// compacted.
    pub(super) async fn document_at(
        &self,
        key: &Key,
        revision: u64,
    ) -> Result<Option<Option<StoredDocument>>, StoreError> {
        let options = GetOptions::new().with_revision(layout::to_etcd_revision(revision));
        let Some(response) = self.read_at(self.layout.document_key(key).into_bytes(), options).await? else {
            return Ok(None);
        };
        Ok(Some(response.kvs().first().map(|kv| {
            layout::decode_document(key.clone(), kv.value(), kv.create_revision(), kv.mod_revision())
        })))
    }

    /// The extension entries below a prefix at a revision; `None` if it is compacted or in the
    /// future.
    pub(super) async fn extensions_at(
        &self,
        prefix: &str,
        revision: i64,
    ) -> Result<Option<HashMap<Key, ExtensionEntry>>, StoreError> {
        let mut extensions = HashMap::new();
        let mut pages = Pages::with_prefix(prefix, Some(revision));
        while let Some(page) = pages.next(self).await? {
            let Some(page) = page else { return Ok(None) };
            extensions.extend(page.kvs().iter().filter_map(|kv| match self.layout.parse(kv.key()) {
                ParsedKey::Extension(key) => {
                    Some((key, ExtensionEntry::decode(kv.value(), kv.mod_revision())))
                }
                _ => None,
            }));
        }
        Ok(Some(extensions))
    }

    pub(super) async fn internal_entry(&self, key: InternalKey) -> Result<Option<InternalEntry>, StoreError> {
        let name = self.layout.internal_key(key);
        let response = self.call(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.get(name, None).await }
        });
        let mut response = response.await?;
        Ok(response.take_kvs().into_iter().next().map(|kv| InternalEntry {
            version: layout::from_etcd_revision(kv.mod_revision()),
            text: String::from_utf8_lossy(kv.value()).into_owned().into(),
        }))
    }

    /// One page of a kind: the keys of all documents in the order of their creation, then the
    /// documents of the page at the same revision.
    pub(super) async fn page(&self, kind: Kind, first: usize, size: usize) -> Result<Part, StoreError> {
        for _ in 0..READ_ATTEMPTS {
            let options = GetOptions::new().with_prefix().with_keys_only();
            let names = self.call(|mut kv: KvClient| {
                let (prefix, options) = (self.layout.kind_prefix(kind), options.clone());
                async move { kv.get(prefix, Some(options)).await }
            });
            let mut names = names.await?;
            let revision = names.header().map_or(0, etcd_client::ResponseHeader::revision);
            let names = names.take_kvs();
            let documents = names.iter().filter_map(|kv| match self.layout.parse(kv.key()) {
                ParsedKey::Document(key) | ParsedKey::Misnamed(key, _) => {
                    Some((kv.create_revision(), key, kv.key()))
                }
                _ => None,
            });
            let mut documents: Vec<_> = documents.collect();
            // etcd could sort, but leaves the order of one revision open.
            documents.sort_unstable();
            let names: Vec<&[u8]> =
                documents.iter().skip(first).take(size).map(|(_, _, name)| *name).collect();
            if let Some(items) = self.documents_by_name(&names, revision).await? {
                return Ok(Part { items, total: documents.len() });
            }
        }
        Err(StoreError::Unavailable { what: "etcd compacts faster than it can be read".to_owned() })
    }

    /// Documents with their extension fields; `None` if the revision is compacted.
    async fn documents_by_name(
        &self,
        names: &[&[u8]],
        revision: i64,
    ) -> Result<Option<Vec<StoredDocument>>, StoreError> {
        let mut items = Vec::new();
        for names in names.chunks(GETS_PER_TXN) {
            let extension_key = |name: &[u8]| match self.layout.parse(name) {
                ParsedKey::Document(key) => self.layout.extension_key(&key),
                _ => None,
            };
            let keys = names.iter().flat_map(|name| {
                std::iter::once(name.to_vec()).chain(extension_key(name).map(String::into_bytes))
            });
            let gets: Vec<TxnOp> =
                keys.map(|name| TxnOp::get(name, Some(GetOptions::new().with_revision(revision)))).collect();
            let Some(response) = self.txn_at(gets).await? else { return Ok(None) };
            let (mut documents, mut extensions) = (Vec::new(), HashMap::new());
            for response in response.op_responses() {
                let TxnOpResponse::Get(get) = response else { continue };
                for kv in get.kvs() {
                    if let ParsedKey::Extension(key) = self.layout.parse(kv.key()) {
                        extensions.insert(key, ExtensionEntry::decode(kv.value(), kv.mod_revision()));
                    }
                    documents.extend(self.layout.decode(kv));
                }
            }
            items.extend(documents.into_iter().map(|item| {
                let extension = extensions.get(&item.key);
                layout::merge_extension(item, extension)
            }));
        }
        Ok(Some(items))
    }

    /// The documents of these kinds, at one revision.
    pub(super) async fn load_documents(&self, kinds: &[Kind]) -> Result<DocumentList, StoreError> {
        for _ in 0..READ_ATTEMPTS {
            if let Some(loaded) = self.try_load_documents(kinds).await? {
                return Ok(loaded);
            }
        }
        Err(StoreError::Unavailable { what: "etcd compacts faster than it can be read".to_owned() })
    }

    /// `None` if the revision is compacted during the read.
    async fn try_load_documents(&self, kinds: &[Kind]) -> Result<Option<DocumentList>, StoreError> {
        let mut revision = None;
        let mut items = Vec::new();
        for kind in kinds {
            let mut pages = Pages::with_prefix(&self.layout.kind_prefix(*kind), revision);
            while let Some(page) = pages.next(self).await? {
                let Some(page) = page else { return Ok(None) };
                items.extend(page.kvs().iter().filter_map(|kv| self.layout.decode(kv)));
            }
            revision = pages.revision;
        }
        let revision = revision.unwrap_or_default();
        let extensions = self.extensions_of_kinds(kinds, revision).await?;
        let Some(extensions) = extensions else { return Ok(None) };
        let mut items: Vec<StoredDocument> = items
            .into_iter()
            .map(|item: StoredDocument| {
                let extension = extensions.get(&item.key);
                layout::merge_extension(item, extension)
            })
            .collect();
        items.sort_by_cached_key(|item| item.key.to_string());
        Ok(Some(DocumentList { revision: layout::from_etcd_revision(revision), items }))
    }

    async fn extensions_of_kinds(
        &self,
        kinds: &[Kind],
        revision: i64,
    ) -> Result<Option<HashMap<Key, ExtensionEntry>>, StoreError> {
        match kinds {
            [kind] => match self.layout.kind_extensions_prefix(*kind) {
                Some(prefix) => self.extensions_at(&prefix, revision).await,
                None => Ok(Some(HashMap::new())),
            },
            _ => self.extensions_at(&self.layout.extensions_prefix(), revision).await,
        }
    }

    /// A read at a revision; `None` if it is compacted or in the future.
    async fn read_at(&self, from: Vec<u8>, options: GetOptions) -> Result<Option<GetResponse>, StoreError> {
        let read = self.call_raw(|mut kv: KvClient| {
            let (from, options) = (from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        });
        self.unless_compacted(read.await?)
    }

    /// Several reads at a revision, in one transaction.
    async fn txn_at(&self, gets: Vec<TxnOp>) -> Result<Option<TxnResponse>, StoreError> {
        let read = self.call_raw(|mut kv: KvClient| {
            let gets = gets.clone();
            async move { kv.txn(Txn::new().and_then(gets)).await }
        });
        self.unless_compacted(read.await?)
    }

    /// Maps etcd's "out of range", for a compacted revision, to `None`.
    fn unless_compacted<T>(&self, read: Result<T, (EtcdConnection, Error)>) -> Result<Option<T>, StoreError> {
        match read {
            Ok(page) => Ok(Some(page)),
            Err((_, Error::GRpcStatus(status))) if status.code() == tonic::Code::OutOfRange => Ok(None),
            Err((connected, error)) => {
                Err(StoreError::Unavailable { what: self.connections.describe_error(&connected, &error) })
            }
        }
    }

    /// The ends of the documents with a lease.
    pub(super) async fn expiries(&self) -> Result<BTreeMap<Key, Instant>, StoreError> {
        let root = self.layout.root();
        let options = GetOptions::new().with_prefix().with_keys_only();
        let response = self.call(|mut kv: KvClient| {
            let options = options.clone();
            async move { kv.get(root, Some(options)).await }
        });
        let (mut expiries, mut ends) = (BTreeMap::new(), HashMap::new());
        for kv in response.await?.kvs().iter().filter(|kv| kv.lease() != 0) {
            let ParsedKey::Document(key) = self.layout.parse(kv.key()) else { continue };
            let end = match ends.entry(kv.lease()) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(slot) => *slot.insert(self.lease_end(kv.lease()).await?),
            };
            expiries.insert(key, end);
        }
        Ok(expiries)
    }

    /// When a lease ends; now for one that has ended.
    async fn lease_end(&self, lease: i64) -> Result<Instant, StoreError> {
        let connection = self.connections.current().await?;
        let mut leases = connection.client.lease_client();
        let response = self.with_timeout(leases.time_to_live(lease, None)).await?;
        let seconds = response.map_err(|error| self.unavailable(&connection, &error))?.ttl();
        let seconds = u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
        Ok(Instant::now() + Duration::from_secs(seconds.into()))
    }

    /// The keys that are not documents, counted by directory.
    pub(super) async fn unknown_keys(&self) -> Result<Vec<UnknownKeys>, StoreError> {
        let root = self.layout.root();
        let options = GetOptions::new().with_prefix().with_keys_only();
        let response = self.call(|mut kv: KvClient| {
            let options = options.clone();
            async move { kv.get(root, Some(options)).await }
        });
        let (mut counts, mut create_revisions, mut extensions) =
            (BTreeMap::new(), HashMap::new(), Vec::new());
        for kv in response.await?.take_kvs() {
            match self.layout.parse(kv.key()) {
                ParsedKey::Unknown(name) | ParsedKey::Misnamed(_, name) => {
                    *counts.entry(name).or_insert(0) += 1
                }
                ParsedKey::Document(key) => drop(create_revisions.insert(key, kv.create_revision())),
                ParsedKey::Extension(key) => extensions.push((key, kv.mod_revision())),
                ParsedKey::Ignored => {}
            }
        }
        // The entry's document is gone, or was recreated.
        extensions.retain(|(key, mod_revision)| {
            create_revisions.get(key).is_none_or(|created| mod_revision < created)
        });
        let count = extensions.len();
        let orphaned = (count > 0).then(|| UnknownKeys { name: ORPHANED_EXTENSIONS.to_owned(), count });
        Ok(counts.into_iter().map(|(name, count)| UnknownKeys { name, count }).chain(orphaned).collect())
    }
}

/// The entries below a prefix, page by page, all at the revision of the first page or at a given
/// one.
struct Pages {
    from: Option<Vec<u8>>,
    end: String,
    revision: Option<i64>,
}

impl Pages {
    fn with_prefix(prefix: &str, revision: Option<i64>) -> Self {
        Self { from: Some(prefix.as_bytes().to_vec()), end: layout::range_end(prefix), revision }
    }

    /// The outer `None`: no more pages; the inner one: the revision is compacted.
    async fn next(&mut self, cluster: &Cluster) -> Result<Option<Option<GetResponse>>, StoreError> {
        let Some(from) = self.from.take() else { return Ok(None) };
        let options = GetOptions::new().with_range(self.end.as_str()).with_limit(PAGE_SIZE);
        let options = self.revision.into_iter().fold(options, GetOptions::with_revision);
        let Some(page) = cluster.read_at(from, options).await? else { return Ok(Some(None)) };
        self.revision.get_or_insert(page.header().map_or(0, etcd_client::ResponseHeader::revision));
        let last_key = page.kvs().last().filter(|_| page.more()).map(KeyValue::key);
        self.from = last_key.map(|key| [key, &[0]].concat());
        Ok(Some(Some(page)))
    }
}
