//! Entity tags and the requests that depend on them (RFC 9110, 8.8.3 and 13.1).
//!
//! The tag of a document is the revision of its last change, so a write that names it is compared
//! in the store's own commit. Every other response has a digest of its body. Invariant: a
//! precondition that cannot be read is an error and never ignored.

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::FutureExt;
use http::header::{ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;

use super::reply::{self, Reply};
use crate::change::RequestPrecondition;

/// Bytes of a body's digest in its tag.
const DIGEST_BYTES: usize = 16;

/// Why a precondition cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PreconditionError {
    #[error("invalid If-Match: should be * or entity tags in double quotes, as ETag has them")]
    Match,
    #[error("invalid If-None-Match: a write takes only *")]
    NoneMatch,
    #[error("If-Match and If-None-Match exclude each other")]
    Both,
}

/// The precondition of a write, from `If-Match` and `If-None-Match`.
///
/// # Errors
/// When the headers are malformed or contradict each other.
pub(super) fn of_write(headers: &HeaderMap) -> Result<RequestPrecondition, PreconditionError> {
    parse(text(headers, &IF_MATCH).as_deref(), text(headers, &IF_NONE_MATCH).as_deref())
}

/// As [`of_write`], from the values.
///
/// # Errors
/// As [`of_write`].
pub(super) fn parse(
    if_match: Option<&str>,
    if_none_match: Option<&str>,
) -> Result<RequestPrecondition, PreconditionError> {
    match (if_match.map(str::trim), if_none_match.map(str::trim)) {
        (None, None) => Ok(RequestPrecondition::Unconditional),
        (Some(_), Some(_)) => Err(PreconditionError::Both),
        (None, Some("*")) => Ok(RequestPrecondition::Absent),
        (None, Some(_)) => Err(PreconditionError::NoneMatch),
        (Some("*"), None) => Ok(RequestPrecondition::Exists),
        (Some(tags), None) => {
            let tags = opaque_tags(tags).ok_or(PreconditionError::Match)?;
            // A weak tag, or one that is no revision, matches no document.
            let revisions = tags.iter().filter(|(weak, _)| !weak).filter_map(|(_, tag)| tag.parse().ok());
            Ok(RequestPrecondition::ModRevisions(revisions.collect()))
        }
    }
}

/// Adds the entity tag of a document.
pub(super) fn with_revision_tag(mut reply: Reply, mod_revision: u64) -> Reply {
    if let Ok(tag) = HeaderValue::from_str(&revision_tag(mod_revision)) {
        reply.headers_mut().insert(ETAG, tag);
    }
    reply
}

/// The entity tag of a document's revision.
pub(super) fn revision_tag(mod_revision: u64) -> String {
    format!("\"{mod_revision}\"")
}

/// Completes the response to a GET: a tag for a body without one, and 304 where the client has that
/// body already.
pub(super) fn conditional_get(mut reply: Reply, headers: &HeaderMap) -> Reply {
    if reply.status() != StatusCode::OK {
        return reply;
    }
    if !reply.headers().contains_key(ETAG) {
        reply = with_body_tag(reply);
    }
    let tag = reply.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(|tag| tag.trim_matches('"'));
    let has_it = text(headers, &IF_NONE_MATCH).is_some_and(|known| {
        known.trim() == "*"
            || opaque_tags(&known).is_some_and(|tags| tags.iter().any(|(_, known)| Some(*known) == tag))
    });
    if has_it { reply::not_modified(reply) } else { reply }
}

/// Adds a digest of the body as its tag: a millisecond for each megabyte or two.
pub(super) fn with_body_tag(mut reply: Reply) -> Reply {
    if let Ok(tag) = HeaderValue::from_str(&body_tag(&reply)) {
        reply.headers_mut().insert(ETAG, tag);
    }
    reply
}

fn body_tag(reply: &Reply) -> String {
    let frame = reply.body().clone().frame().now_or_never().flatten();
    let body = frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()).unwrap_or_default();
    let digest = digest(&SHA256, &body);
    let digits = digest.as_ref().iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}"));
    format!("\"{}\"", digits.collect::<String>())
}

/// All values of a header in one list.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// Entity tags without their quotes, and whether they are weak; `None`: malformed.
fn opaque_tags(list: &str) -> Option<Vec<(bool, &str)>> {
    let mut tags = Vec::new();
    let mut rest = list.trim();
    loop {
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let (tag, behind) = quoted.strip_prefix('"')?.split_once('"')?;
        tags.push((weak, tag));
        rest = behind.trim_start();
        if rest.is_empty() {
            return Some(tags);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preconditions_of_writes() {
        use RequestPrecondition::{Absent, Exists, ModRevisions, Unconditional};
        assert_eq!(parse(None, None), Ok(Unconditional));
        assert_eq!(parse(Some("*"), None), Ok(Exists));
        assert_eq!(parse(None, Some(" * ")), Ok(Absent));
        assert_eq!(parse(Some("\"12\""), None), Ok(ModRevisions(vec![12])));
        assert_eq!(parse(Some("\"12\", \"13\" ,W/\"14\",\"x\""), None), Ok(ModRevisions(vec![12, 13])));
        for malformed in ["12", "", "\"12", "\"12\" \"13\"", "\"12\",", "w/\"1\""] {
            assert_eq!(parse(Some(malformed), None), Err(PreconditionError::Match), "{malformed}");
        }
        assert_eq!(parse(None, Some("\"12\"")), Err(PreconditionError::NoneMatch));
        assert_eq!(parse(Some("*"), Some("*")), Err(PreconditionError::Both));
    }

    #[test]
    fn a_body_that_the_client_has_is_not_sent_again() {
        let get = |known: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(known) = known {
                headers.insert(IF_NONE_MATCH, known.parse().unwrap());
            }
            conditional_get(reply::text(StatusCode::OK, "abc"), &headers)
        };
        let first = get(None);
        assert_eq!(first.status(), 200);
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let second = get(Some(&known));
            assert_eq!((second.status().as_u16(), second.headers()[ETAG].to_str().unwrap()), (304, &*tag));
        }
        assert_eq!(get(Some("\"x\"")).status(), 200);
        assert_eq!(get(Some("garbage")).status(), 200);
        let error = conditional_get(reply::text(StatusCode::NOT_FOUND, ""), &HeaderMap::new());
        assert!(!error.headers().contains_key(ETAG));
    }
}
