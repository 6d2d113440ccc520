//! Documents: GET of every kind of resource and of lists (contract 2.3, 2.4). `writes` has the
//! other methods.
//!
//! While the store is unreachable, reads come from the cache and say so in a header.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use model::{Id, Key, Kind};

use super::{AdminApi, AdminRequest, error_reply};
use crate::admin::list::{self, DocumentView, ListQuery, ListView};
use crate::admin::metrics::{self, TimedOperation};
use crate::admin::precondition;
use crate::admin::reply::{self, Reply};
use crate::change::ChangeError;
use crate::store::{CachedDocuments, Store, StoreError, StoredDocument};

impl AdminApi {
    /// Handles a GET.
    pub(super) async fn read(&self, kind: Kind, request: &AdminRequest) -> Reply {
        let read = self.document_or_list(kind, request).await;
        read.unwrap_or_else(|error| error_reply(ChangeError::Store(error)))
    }

    /// GET of a document or a list.
    async fn document_or_list(&self, kind: Kind, request: &AdminRequest) -> Result<Reply, StoreError> {
        let Some(id) = &request.id else {
            return match ListQuery::from_query(kind, &request.query) {
                Ok(query) => self.list(kind, query).await,
                Err(error) => Ok(error),
            };
        };
        // A string that is no valid id names no document.
        let Ok(id) = Id::parse(id) else { return Ok(reply::key_not_found()) };
        let key = Key::new(kind, id);
        let show = |document: Option<StoredDocument>| {
            document.map_or_else(reply::key_not_found, |document| {
                let revision = document.mod_revision;
                let reply = reply::json(StatusCode::OK, &DocumentView::of(self.store.prefix(), document));
                precondition::with_revision_tag(reply, revision)
            })
        };
        match self.store.get(&key).await {
            Ok(document) => Ok(show(document)),
            Err(error) => {
                let CachedDocuments { age, documents } = self.cached(kind, error)?;
                let document = documents.items.into_iter().find(|item| item.key == key);
                Ok(reply::with_age(show(document), age))
            }
        }
    }

    async fn list(&self, kind: Kind, query: ListQuery) -> Result<Reply, StoreError> {
        let to_reply =
            |store: &dyn Store, page| reply::json(StatusCode::OK, &ListView::of(store.prefix(), page));
        if let Some((first, size)) = query.page_bounds() {
            let started = Instant::now();
            match self.store.page(kind, first, size).await {
                Ok(page) => {
                    let reply = to_reply(&*self.store, page);
                    metrics::observe_duration(TimedOperation::Page, started);
                    return Ok(reply);
                }
                Err(StoreError::Unavailable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let read = async {
            match self.store.list(kind).await {
                Ok(documents) => Ok((documents, None)),
                Err(error) => {
                    let cached = self.cached(kind, error);
                    cached.map(|CachedDocuments { age, documents }| (documents, Some(age)))
                }
            }
        };
        let store = Arc::clone(&self.store);
        list::reply_from_full_read(read, move |(documents, age)| {
            let reply = to_reply(&*store, query.apply(documents.items));
            age.into_iter().fold(reply, reply::with_age)
        })
        .await
    }

    /// The cached documents of a kind while the store is unreachable. A response header says so.
    fn cached(&self, kind: Kind, error: StoreError) -> Result<CachedDocuments, StoreError> {
        match error {
            StoreError::Unavailable { .. } => self.store.cached(Some(kind)).ok_or(error),
            error => Err(error),
        }
    }
}
