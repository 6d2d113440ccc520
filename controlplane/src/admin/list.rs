//! Lists: filters and pages over the documents of one kind (contract 2.4).
//!
//! Filters are combined with AND; `total` counts the documents that pass them, on whatever page.
//! Patterns are matched in linear time. A page without filters reads only its own documents. Every
//! other list reads the whole kind: [`reply_from_full_read`] bounds how many such reads run at once
//! and serializes them off the runtime, so that ten thousand documents delay no other request.

use std::time::Instant;

use http::StatusCode;
use model::{Kind, has_private_key_armor};
use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::metrics::{self, TimedOperation};
use super::precondition;
use super::query::Query;
use super::reply::{self, Reply};
use crate::change::private_keys::redact_stray_keys;
use crate::store::{Page, StoredDocument};

const PAGE_SIZES: std::ops::RangeInclusive<u64> = 10..=500;
/// Bytes of a compiled pattern.
const PATTERN_SIZE: usize = 1 << 20;

/// Permits for responses that read a whole kind or more: each takes a core for up to seconds, and
/// hundreds of megabytes.
static FULL_READS: Semaphore = Semaphore::const_new(2);

/// The list arguments of a query.
pub(super) struct ListQuery {
    name: Option<Regex>,
    label: Option<String>,
    uri: Option<Regex>,
    /// Fields and the value they must have.
    fields: Vec<(&'static str, String)>,
    /// The page, from 1, and its size.
    page: Option<(u64, u64)>,
}

impl ListQuery {
    /// Parses the arguments.
    ///
    /// # Errors
    /// The response for an invalid argument.
    #[allow(clippy::result_large_err)] // the error is the response
    pub(super) fn from_query(kind: Kind, query: &Query) -> Result<Self, Reply> {
        Ok(Self {
            name: pattern("name", query)?,
            label: query.get("label").map(str::to_owned),
            uri: pattern("uri", query)?,
            fields: fields(kind, query),
            page: page(query)?,
        })
    }

    /// The first document (from 0) and the size of the requested page. `None`: the whole kind must
    /// be read, because the list has no page or a filter inspects every document.
    pub(super) fn page_bounds(&self) -> Option<(usize, usize)> {
        let filtered =
            self.name.is_some() || self.label.is_some() || self.uri.is_some() || !self.fields.is_empty();
        self.page.filter(|_| !filtered).map(bounds)
    }

    /// Filters, counts and pages the documents.
    pub(super) fn apply(&self, mut items: Vec<StoredDocument>) -> Page {
        items.retain(|item| self.matches(&item.document));
        match self.page.map(bounds) {
            Some((first, size)) => Page::of(items, first, size),
            None => Page { total: items.len(), items },
        }
    }

    fn matches(&self, document: &Value) -> bool {
        // A redacted text must not be found by its parts either.
        let searchable = |value: &Value| value.as_str().filter(|text| !has_private_key_armor(text)).is_some();
        let text =
            |field: &str| document.get(field).filter(|value| searchable(value)).and_then(Value::as_str);
        let uris = || {
            let several = document.get("uris").and_then(Value::as_array).into_iter().flatten();
            text("uri").into_iter().chain(several.filter(|value| searchable(value)).filter_map(Value::as_str))
        };
        self.name.as_ref().is_none_or(|pattern| text("name").is_some_and(|name| pattern.is_match(name)))
            && self.uri.as_ref().is_none_or(|pattern| uris().any(|uri| pattern.is_match(uri)))
            && self.label.as_ref().is_none_or(|label| {
                document
                    .get("labels")
                    .and_then(Value::as_object)
                    .is_some_and(|labels| labels.contains_key(label))
            })
            && self.fields.iter().all(|(field, value)| match document.get(field) {
                Some(Value::String(text)) => text == value,
                Some(Value::Number(number)) => number.to_string() == *value,
                _ => false,
            })
    }
}

#[allow(clippy::result_large_err)] // the error is the response
fn pattern(name: &str, query: &Query) -> Result<Option<Regex>, Reply> {
    let Some(text) = query.get(name) else { return Ok(None) };
    RegexBuilder::new(text).size_limit(PATTERN_SIZE).build().map(Some).map_err(|_| {
        let message = format!("invalid argument {name}: not a regular expression");
        reply::error(StatusCode::BAD_REQUEST, &message, None)
    })
}

/// `filter=service_id%3D1%26upstream_id%3D2`: only for routes and stream routes, only these two
/// fields; everything else is ignored.
fn fields(kind: Kind, query: &Query) -> Vec<(&'static str, String)> {
    let filter =
        Query::parse(query.get("filter").filter(|_| matches!(kind, Kind::Route | Kind::StreamRoute)));
    ["service_id", "upstream_id"]
        .into_iter()
        .filter_map(|field| Some((field, filter.get(field)?.to_owned())))
        .collect()
}

#[allow(clippy::result_large_err)] // the error is the response
fn page(query: &Query) -> Result<Option<(u64, u64)>, Reply> {
    let number =
        |name: &str| query.get(name).and_then(|text| text.parse::<f64>().ok()).filter(|n| n.is_finite());
    let (Some(page), Some(size)) = (number("page"), number("page_size")) else { return Ok(None) };
    // Saturates.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let (page, size) = (page as u64, size as u64);
    if !PAGE_SIZES.contains(&size) {
        return Err(reply::text(StatusCode::BAD_REQUEST, "page_size must be between 10 and 500"));
    }
    Ok(Some((page.max(1), size)))
}

/// The first document of a page, from 0, and its size.
fn bounds((page, size): (u64, u64)) -> (usize, usize) {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    (number(page.saturating_sub(1).saturating_mul(size)), number(size))
}

/// A document in a GET response.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DocumentView {
    key: String,
    value: Value,
    created_index: u64,
    modified_index: u64,
}

/// A list in a GET response.
#[derive(Serialize)]
pub(super) struct ListView {
    list: Vec<DocumentView>,
    total: usize,
}

impl DocumentView {
    /// Removes the private keys of an ssl, encrypted or not, and redacts one that another program
    /// stored in a member that is not encrypted. `prefix` is the store's.
    pub(super) fn of(prefix: &str, item: StoredDocument) -> Self {
        let mut value = item.document;
        if let (Kind::Ssl, Some(document)) = (item.key.kind, value.as_object_mut()) {
            document.shift_remove("key");
            document.shift_remove("keys");
        }
        redact_stray_keys(item.key.kind, &mut value);
        let key = format!("{prefix}/{}", item.key);
        Self { key, value, created_index: item.create_revision, modified_index: item.mod_revision }
    }

    /// The document alone.
    pub(super) fn into_value(self) -> Value {
        self.value
    }
}

impl ListView {
    pub(super) fn of(prefix: &str, page: Page) -> Self {
        let list = page.items.into_iter().map(|item| DocumentView::of(prefix, item)).collect();
        Self { list, total: page.total }
    }
}

/// Builds a response that needs a whole kind or more: waits for a permit, awaits `read`, and runs
/// `shape` off the runtime.
///
/// # Errors
/// Those of `read`. An empty 500 when the runtime shuts down.
pub(super) async fn reply_from_full_read<T, E>(
    read: impl Future<Output = Result<T, E>>,
    shape: impl FnOnce(T) -> Reply + Send + 'static,
) -> Result<Reply, E>
where
    T: Send + 'static,
{
    let queued = Instant::now();
    // The semaphore is never closed.
    let permit = FULL_READS.acquire().await;
    metrics::observe_duration(TimedOperation::FullReadQueue, queued);
    let started = Instant::now();
    let read = read.await?;
    // The entity tag is a digest of the whole body.
    let reply = tokio::task::spawn_blocking(move || precondition::with_body_tag(shape(read))).await;
    drop(permit);
    metrics::observe_duration(TimedOperation::FullRead, started);
    Ok(reply.unwrap_or_else(|_| reply::empty(StatusCode::INTERNAL_SERVER_ERROR)))
}

#[cfg(test)]
mod tests {
    use model::{Id, Key};
    use serde_json::json;

    use super::*;

    fn select(kind: Kind, query: &str, documents: &[Value]) -> (Vec<String>, usize) {
        let items = documents.iter().enumerate().map(|(n, document)| StoredDocument {
            key: Key::new(kind, Id::parse(&n.to_string()).unwrap()),
            document: document.clone(),
            create_revision: 1000 - n as u64,
            mod_revision: 1,
            stale_extensions: false,
            salvaged: None,
        });
        let Ok(selection) = ListQuery::from_query(kind, &Query::parse(Some(query))) else {
            panic!("{query}")
        };
        let page = selection.apply(items.collect());
        (page.items.into_iter().map(|item| item.key.id.to_string()).collect(), page.total)
    }

    #[test]
    fn filters_are_combined_with_and() {
        let documents = [
            json!({"name": "alpha", "uri": "/a", "labels": {"env": "x"}, "upstream_id": 1}),
            json!({"name": "beta", "uris": ["/b", "/ab"], "labels": {"zone": "y"}, "upstream_id": "1", "service_id": "2"}),
            json!({"uri": "/c"}),
        ];
        let ids = |query: &str| select(Kind::Route, query, &documents).0;
        assert_eq!(ids(""), ["0", "1", "2"]);
        assert_eq!(ids("name=a"), ["0", "1"]);
        assert_eq!(ids("name=^a"), ["0"]);
        assert_eq!(ids("uri=%2Fa"), ["0", "1"]);
        assert_eq!(ids("label=env"), ["0"]);
        assert_eq!(ids("label="), [""; 0]);
        assert_eq!(ids("filter=upstream_id%3D1"), ["0", "1"]);
        assert_eq!(ids("filter=upstream_id%3D1%26service_id%3D2%26other%3D3"), ["1"]);
        assert_eq!(ids("name=a&label=zone"), ["1"]);
        let filter = "filter=upstream_id%3D1%26service_id%3D2";
        assert_eq!(select(Kind::StreamRoute, filter, &documents).0, ["1"]);
        assert_eq!(select(Kind::Service, filter, &documents).0.len(), 3, "others have no such filter");
    }

    #[test]
    fn a_stray_key_is_redacted_and_not_searchable() {
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n-----END PRIVATE KEY-----\n";
        let document = json!({"name": key, "uri": key, "uris": [key], "client": {"ca": key}});
        assert!(select(Kind::Ssl, "name=MC4", std::slice::from_ref(&document)).0.is_empty());
        assert!(select(Kind::Ssl, "uri=MC4", std::slice::from_ref(&document)).0.is_empty());
        let key = Key::new(Kind::Ssl, Id::parse("1").unwrap());
        let item = StoredDocument {
            key,
            document,
            create_revision: 1,
            mod_revision: 1,
            stale_extensions: false,
            salvaged: None,
        };
        let shown = serde_json::to_string(&DocumentView::of("/apisix", item)).unwrap();
        assert!(!shown.contains("MC4C") && shown.contains("not repeated"), "{shown}");
    }

    #[test]
    fn only_a_page_without_filters_is_read_alone() {
        let part = |query: &str| {
            ListQuery::from_query(Kind::Route, &Query::parse(Some(query))).ok().unwrap().page_bounds()
        };
        assert_eq!(part("page=3&page_size=10"), Some((20, 10)));
        assert_eq!(part("page=0&page_size=10"), Some((0, 10)));
        assert_eq!(part("page=1&page_size=10&filter=other%3D1"), Some((0, 10)));
        for filter in ["name=a", "uri=a", "label=a", "filter=service_id%3D1"] {
            assert_eq!(part(&format!("page=1&page_size=10&{filter}")), None, "{filter}");
        }
        assert_eq!((part(""), part("page=1"), part("page_size=10")), (None, None, None));
    }

    #[test]
    fn pages_are_ordered_by_creation() {
        let documents = vec![json!({}); 25];
        let (first, total) = select(Kind::Ssl, "page=1&page_size=10", &documents);
        assert_eq!((first.len(), first[0].as_str(), total), (10, "24", 25));
        assert_eq!(select(Kind::Ssl, "page=3&page_size=10", &documents).0.len(), 5);
        assert_eq!(select(Kind::Ssl, "page=0&page_size=10", &documents).0, first);
        assert_eq!(select(Kind::Ssl, "page=99999999999999999999&page_size=10", &documents).0.len(), 0);
        assert_eq!(select(Kind::Ssl, "page=1", &documents).0.len(), 25, "paging needs both numbers");
        for size in ["9", "501", "-1"] {
            let refused =
                ListQuery::from_query(Kind::Ssl, &Query::parse(Some(&format!("page=1&page_size={size}"))));
            assert_eq!(refused.err().unwrap().status(), 400);
        }
        assert!(ListQuery::from_query(Kind::Ssl, &Query::parse(Some("name=("))).is_err());
    }
}
