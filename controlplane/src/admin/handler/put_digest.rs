//! The digest that a client gave to the whole configuration (contract 2.8).
//!
//! It is kept in the store, beside the revision of the commit. Invariant: it is shown only while no
//! document has changed since.

use http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::admin::reply::Reply;
use crate::store::{DocumentList, InternalKey, Store, StoreError};

/// Names one state of the configuration.
pub(super) const DIGEST: HeaderName = HeaderName::from_static("x-digest");
/// The time of the last change of a document, in seconds of the Unix epoch.
pub(super) const LAST_MODIFIED: HeaderName = HeaderName::from_static("x-last-modified");

/// The digest of the last PUT, and what a client needs to see of it again.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PutDigest {
    pub digest: String,
    /// Seconds of the Unix epoch.
    pub last_modified: u64,
    /// The revision of the commit, and the number of documents after it.
    pub revision: u64,
    pub documents: usize,
    /// The versions that the client gave to sections, by their names: `routes_conf_version`.
    #[serde(default)]
    pub versions: Map<String, Value>,
}

impl PutDigest {
    /// The digest of these documents; `None` when another write has changed one since.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn of(store: &dyn Store, documents: &DocumentList) -> Result<Option<Self>, StoreError> {
        let entry = store.internal_entry(InternalKey::ConfigsDigest).await?;
        let kept = entry.and_then(|entry| serde_json::from_str::<Self>(&entry.text).ok());
        Ok(kept.filter(|kept| {
            kept.documents == documents.items.len()
                && documents.items.iter().all(|item| item.mod_revision <= kept.revision)
        }))
    }

    /// Keeps the digest. Another control plane's digest of the same moment may win: both clients
    /// then see one that is not theirs, and send their configuration again.
    pub(super) async fn keep(&self, store: &dyn Store) -> Result<(), StoreError> {
        let entry = store.internal_entry(InternalKey::ConfigsDigest).await?;
        let version = entry.map_or(0, |entry| entry.version);
        let text = serde_json::to_string(self).unwrap_or_default();
        store.swap_internal_entry(InternalKey::ConfigsDigest, version, Zeroizing::new(text)).await.map(drop)
    }

    /// Adds `X-Digest` and `X-Last-Modified`.
    pub(super) fn add_headers(&self, reply: &mut Reply) {
        if let Ok(digest) = HeaderValue::from_str(&self.digest) {
            reply.headers_mut().insert(DIGEST, digest);
        }
        reply.headers_mut().insert(LAST_MODIFIED, HeaderValue::from(self.last_modified));
    }
}
