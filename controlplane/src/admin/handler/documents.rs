//! Documents: GET, PUT, POST, PATCH and DELETE of every kind of resource (contract 2.2 to 2.4).
//!
//! While the store is unreachable, reads come from the cache and say so in a header.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use model::{Id, Key, Kind};
use rustls_pki_types::UnixTime;
use serde_json::json;

use super::{AdminApi, AdminRequest, error_reply};
use crate::admin::list::{self, DocumentView, ListQuery, ListView};
use crate::admin::metrics::{self, TimedOperation};
use crate::admin::query::Query;
use crate::admin::reply::{self, Reply};
use crate::change::private_keys::redact_clear_keys;
use crate::change::{ChangeError, CommittedChange, WriteOptions};
use crate::store::{CachedDocuments, Store, StoreError, StoredDocument};

/// The longest time to live, in seconds.
const TTL_MAX: f64 = u32::MAX as f64;

impl AdminApi {
    /// Handles a request for documents of a kind, with the metric of a write.
    pub(super) async fn documents(&self, kind: Kind, request: AdminRequest) -> Reply {
        if request.operation.method == Method::GET {
            let read = self.read(kind, &request).await;
            return read.unwrap_or_else(|error| error_reply(ChangeError::Store(error)));
        }
        let started = Instant::now();
        let reply = self.write(kind, request).await;
        metrics::observe_duration(TimedOperation::Change, started);
        reply
    }

    /// GET of a document or a list.
    async fn read(&self, kind: Kind, request: &AdminRequest) -> Result<Reply, StoreError> {
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
                reply::json(StatusCode::OK, &DocumentView::of(self.store.prefix(), document))
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

    async fn write(&self, kind: Kind, request: AdminRequest) -> Reply {
        let AdminRequest { operation, query, id, sub_path, body, .. } = request;
        let method = &operation.method;
        let body = match body {
            Ok(body) => body,
            Err(error) => return error.into(),
        };
        let ttl = match self.ttl(method, &query) {
            Ok(ttl) => ttl,
            Err((message, hint)) => return reply::error(StatusCode::BAD_REQUEST, message, hint),
        };
        let options = WriteOptions { now: UnixTime::now(), ttl };
        let (id, sub_path) = (id.as_deref(), sub_path.as_deref());
        let change = match *method {
            Method::PUT => self.changes.put(kind, id, body, options).await,
            Method::POST => self.changes.post(kind, id, body, options).await,
            _ => {
                // A string that is no valid id names no document.
                let Ok(id) = Id::parse(id.unwrap_or_default()) else { return reply::key_not_found() };
                let key = Key::new(kind, id);
                if *method == Method::PATCH {
                    self.changes.patch(&key, sub_path, body, options).await
                } else {
                    self.changes.delete(&key, query.get("force") == Some("true")).await
                }
            }
        };
        match change {
            Ok(change) => change_reply(method, self.store.prefix(), change),
            Err(error) => error_reply(error),
        }
    }

    /// `?ttl=`: seconds until the store removes the document, where the store supports it (contract
    /// 2.3). The error is a message and a hint.
    fn ttl(
        &self,
        method: &Method,
        query: &Query,
    ) -> Result<Option<NonZeroU32>, (&'static str, Option<&'static str>)> {
        let Some(ttl) = query.get("ttl").filter(|_| *method != Method::DELETE) else { return Ok(None) };
        let seconds: f64 = ttl.parse().map_err(|_| ("invalid argument ttl: should be a number", None))?;
        if !self.store.supports_ttl() {
            let hint = "only an etcd store (config_provider: etcd) expires documents";
            return Err((
                "invalid argument ttl: this store keeps documents until they are deleted",
                Some(hint),
            ));
        }
        if !(1.0..=TTL_MAX).contains(&seconds) {
            return Err(("invalid argument ttl: should be from 1 to 4294967295 seconds", None));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was just checked"
        )]
        Ok(NonZeroU32::new(seconds as u32))
    }
}

/// The response to a committed change. A private key in clear is not repeated (contract 12.5).
fn change_reply(method: &Method, prefix: &str, mut change: CommittedChange) -> Reply {
    redact_clear_keys(change.key.kind, &mut change.document);
    let key = format!("{prefix}/{}", change.key);
    let reply = if *method == Method::DELETE {
        reply::json(StatusCode::OK, &json!({"deleted": "1", "key": key}))
    } else {
        let status = if change.existed { StatusCode::OK } else { StatusCode::CREATED };
        reply::json(status, &json!({"key": key, "value": change.document}))
    };
    reply::with_notes(reply::with_revision(reply, change.revision), &change.notes)
}
