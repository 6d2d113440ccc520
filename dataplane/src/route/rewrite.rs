//! `proxy-rewrite` for one request: new headers and a new uri, after everything was decided on the request as the client made it.
//!
//! Values are worked out from the untouched request first ([`work_out`]), then put in ([`Rewritten::apply`]). Invariants:
//! no value brings a control character into a header or a segment `..` into a path (the request is refused instead); what
//! stands in a header that the route sets did not come from the client under another spelling of its name.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, request::Parts};
use model::{
    ProxyRewrite, Template,
    proxy_rewrite::{HeaderRewrite, UriRewrite},
    template::Part,
};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{headers, variables::Request};

/// What is not legal in a path as it stands (RFC 3986 section 3.3), apart from `%`, which a configured path may hold.
const LITERAL: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// A decoded value in a path: what would end the path or be decoded again is encoded, too.
const PATH: &AsciiSet = &LITERAL.add(b'%').add(b'?');
/// A value in a query: nothing of it may look like another argument.
const ARGUMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The rewritten request cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Something the client sent would break a header.
    #[error("the header {0} would hold a control character")]
    Control(Box<str>),
    /// Something the client sent would climb.
    #[error("the rewritten path {0:?} has dot segments")]
    Dots(String),
    /// Too long, for one.
    #[error("the rewritten uri is none: {0}")]
    Uri(String),
}

/// A request's new headers and uri.
#[derive(Debug)]
pub struct Rewritten<'a> {
    rewrite: &'a ProxyRewrite,
    uri: Option<Uri>,
    add: Vec<HeaderValue>,
    set: Vec<HeaderValue>,
}

/// Works out the values.
///
/// # Errors
/// [`RewriteError`]; the request is answered 400.
pub fn work_out<'a>(rewrite: &'a ProxyRewrite, request: &Request<'_>) -> Result<Rewritten<'a>, RewriteError> {
    let path = &*request.target.path;
    let (uri, captured) = match rewrite.uri() {
        None => (None, Vec::new()),
        Some(UriRewrite::Template { path, query }) => {
            (Some(from_template(path, query.as_ref(), request)?), Vec::new())
        }
        Some(UriRewrite::Patterns(patterns)) => {
            let found = patterns.iter().find_map(|(pattern, new)| Some((pattern.captures(path)?, new)));
            match found {
                None => (None, Vec::new()),
                Some((captures, new)) => {
                    let groups: Vec<Option<&str>> =
                        captures.iter().map(|group| group.map(|group| group.as_str())).collect();
                    let whole = captures.get(0).map_or(0..0, |whole| whole.range());
                    (Some(from_pattern(path, whole, new, &groups, request)?), groups)
                }
            }
        }
    };
    let values = |headers: &[HeaderRewrite]| {
        headers.iter().map(|header| value(header, request, &captured)).collect::<Result<Vec<_>, _>>()
    };
    Ok(Rewritten { rewrite, uri, add: values(rewrite.add())?, set: values(rewrite.set())? })
}

impl Rewritten<'_> {
    /// Puts them in: add, set, remove, as APISIX does. An empty value is no header: an identity is told or absent.
    pub fn apply(self, parts: &mut Parts) {
        if let Some(uri) = self.uri {
            parts.uri = uri;
        }
        let fields = &mut parts.headers;
        let identities = self.rewrite.add().iter().filter(|header| header.is_identity());
        identities.chain(self.rewrite.set()).for_each(|header| remove(fields, &header.name));
        for (header, value) in self.rewrite.add().iter().zip(self.add) {
            if let (Ok(name), false) = (HeaderName::from_bytes(header.name.as_bytes()), value.is_empty()) {
                fields.append(name, value);
            }
        }
        for (header, value) in self.rewrite.set().iter().zip(self.set) {
            if let (Ok(name), false) = (HeaderName::from_bytes(header.name.as_bytes()), value.is_empty()) {
                fields.insert(name, value);
            }
        }
        self.rewrite.remove().iter().for_each(|name| remove(fields, name));
    }
}

/// Removes a header in every spelling that an upstream might take for this name.
fn remove(fields: &mut HeaderMap, name: &str) {
    let spelt: Vec<HeaderName> =
        fields.keys().filter(|given| headers::same(given.as_str(), name)).cloned().collect();
    for name in spelt {
        fields.remove(name);
    }
}

fn value(
    header: &HeaderRewrite,
    request: &Request<'_>,
    captured: &[Option<&str>],
) -> Result<HeaderValue, RewriteError> {
    let mut text = String::new();
    header.value.render(request, captured, |part| match part {
        Part::Literal(piece) | Part::Value(piece, _) | Part::Captured(piece) => text.push_str(piece),
    });
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(RewriteError::Control(header.name.clone()));
    }
    // Without control characters any UTF-8 is a legal value.
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| RewriteError::Control(header.name.clone()))
}

fn encoded(text: &str, set: &'static AsciiSet) -> String {
    Cow::from(utf8_percent_encode(text, set)).into_owned()
}

fn from_template(
    path: &Template,
    query: Option<&Template>,
    request: &Request<'_>,
) -> Result<Uri, RewriteError> {
    let mut new = String::new();
    path.render(request, &[], |part| match part {
        Part::Literal(text) => new.push_str(&encoded(text, LITERAL)),
        Part::Value(text, _) | Part::Captured(text) => new.push_str(&encoded(text, PATH)),
    });
    let query = query.map(|query| {
        let mut new = String::new();
        query.render(request, &[], |part| match part {
            Part::Literal(text) => new.push_str(&encoded(text, LITERAL)),
            // As the client wrote it: encoded already, and its own arguments.
            Part::Value(text, variable) if variable.is_encoded() => new.push_str(&encoded(text, LITERAL)),
            Part::Value(text, _) | Part::Captured(text) => new.push_str(&encoded(text, ARGUMENT)),
        });
        new
    });
    finish(new, query, request)
}

fn from_pattern(
    path: &str,
    whole: std::ops::Range<usize>,
    new: &Template,
    groups: &[Option<&str>],
    request: &Request<'_>,
) -> Result<Uri, RewriteError> {
    let mut out = encoded(path.get(..whole.start).unwrap_or_default(), PATH);
    new.render(request, groups, |part| match part {
        Part::Literal(text) | Part::Value(text, _) | Part::Captured(text) => {
            out.push_str(&encoded(text, PATH));
        }
    });
    out.push_str(&encoded(path.get(whole.end..).unwrap_or_default(), PATH));
    finish(out, None, request)
}

/// The client's own query follows the new one.
fn finish(path: String, query: Option<String>, request: &Request<'_>) -> Result<Uri, RewriteError> {
    // `//host` would be an authority to some.
    let path = format!("/{}", path.trim_start_matches('/'));
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(RewriteError::Dots(path));
    }
    let own = request.parts.uri.query();
    let target = match (query, own) {
        (None, None) => path,
        (Some(query), None) => format!("{path}?{query}"),
        (None, Some(own)) => format!("{path}?{own}"),
        (Some(query), Some(own)) => format!("{path}?{query}&{own}"),
    };
    Uri::builder().path_and_query(target).build().map_err(|error| RewriteError::Uri(error.to_string()))
}

#[cfg(test)]
mod tests;
