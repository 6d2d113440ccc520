//! `proxy-rewrite` for one request: a new URI, method and headers, after all decisions were made on
//! the client's request.
//!
//! [`evaluate`] computes the values from the unchanged request, [`EvaluatedRewrite::apply`] sets
//! them. Invariants: no value brings a control character into a header, nor a control character or
//! a dot segment into a path (the request is rejected instead); a header that the route sets has no
//! value of the client's, under any spelling of its name; `X-Forwarded-For` ends in the client's
//! own address.

use http::request::Parts;
use http::uri::{InvalidUri, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use model::raw_path::Conflict;
use model::{
    HeaderRewrite, ProxyRewrite, RenderedPart, RequestTarget, RequestTargetError, Template, UriRewrite,
    UriTemplate, request_target,
};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use super::headers::{self, X_FORWARDED_FOR, X_REAL_IP};
use super::path;
use super::variables::RequestContext;
use crate::observability::HasReason;
use crate::reason::Reason;

/// Characters that are invalid in a query, except for `%`, which a configured query may contain.
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
/// Characters of a value in a query (RFC 3986 section 3.4) that must be escaped, so that it looks
/// like one argument.
const ARGUMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b'?')
    .remove(b'!')
    .remove(b'$')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b',');

/// A request that cannot be rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    #[error("the header {0} would hold a control character")]
    ControlCharacter(Box<str>),
    /// A value of the client's has a dot segment, or a character that ends the request line.
    #[error("the rewritten path {path:?}: {error}")]
    InvalidPath { path: String, error: RequestTargetError },
    /// `use_real_request_uri_unsafe` would bypass a rule.
    #[error("the path as the client wrote it could walk round {0}")]
    RawPathConflict(Conflict),
    /// Too long, for example.
    #[error("the rewritten URI is invalid: {0}")]
    InvalidUri(String),
}

impl HasReason for RewriteError {
    fn reason(&self) -> Reason {
        Reason::BadRequest
    }
}

impl From<InvalidUri> for RewriteError {
    fn from(error: InvalidUri) -> Self {
        Self::InvalidUri(error.to_string())
    }
}

/// A request's new URI, method and headers.
#[derive(Debug)]
pub struct EvaluatedRewrite<'a> {
    rewrite: &'a ProxyRewrite,
    uri: Option<PathAndQuery>,
    /// The values of all headers in `add`, in their order.
    add: Vec<HeaderValue>,
    set: Vec<HeaderValue>,
}

/// Computes the values.
///
/// # Errors
/// [`RewriteError`].
pub fn evaluate<'a>(
    rewrite: &'a ProxyRewrite,
    request: &RequestContext<'_>,
) -> Result<EvaluatedRewrite<'a>, RewriteError> {
    let (uri, captured) = match rewrite.uri() {
        None => (None, Vec::new()),
        Some(UriRewrite::Template(template)) => {
            (Some(UriBuilder::default().render(template, &[], request).finish(request)?), Vec::new())
        }
        Some(UriRewrite::Patterns(patterns)) => {
            let path = &*request.target.path;
            let matching =
                patterns.iter().find_map(|(pattern, template)| Some((pattern.captures(path)?, template)));
            match matching {
                None => (None, Vec::new()),
                Some((captures, template)) => {
                    let groups: Vec<Option<&str>> =
                        captures.iter().map(|group| group.map(|group| group.as_str())).collect();
                    let whole = captures.get(0).map_or(0..0, |whole| whole.range());
                    let builder = UriBuilder::default()
                        .piece(path.get(..whole.start).unwrap_or_default(), request.target)
                        .render(template, &groups, request)
                        .piece(path.get(whole.end..).unwrap_or_default(), request.target);
                    (Some(builder.finish(request)?), groups)
                }
            }
        }
    };
    let values = |headers: &[HeaderRewrite]| {
        let templates =
            headers.iter().flat_map(|header| header.values.iter().map(|template| (&header.name, template)));
        templates
            .map(|(name, template)| header_value(name, template, request, &captured))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(EvaluatedRewrite { rewrite, uri, add: values(rewrite.add())?, set: values(rewrite.set())? })
}

impl EvaluatedRewrite<'_> {
    /// Applies the values: add, set, remove, as APISIX does. An empty value is no header: an
    /// upstream gets an identity or none. Returns the new path and query; `None`: those of the
    /// target.
    pub fn apply(self, parts: &mut Parts) -> Option<PathAndQuery> {
        let EvaluatedRewrite { rewrite, uri, add, set } = self;
        if let Some(method) = rewrite.method() {
            parts.method = method.clone();
        }
        let fields = &mut parts.headers;
        // A trailer must not bring back what the route sets or removes.
        if !(rewrite.add().is_empty() && rewrite.set().is_empty() && rewrite.remove().is_empty()) {
            fields.remove(header::TRAILER);
        }
        let mut names =
            rewrite.add().iter().chain(rewrite.set()).map(|header| &header.name).chain(rewrite.remove());
        let client_address = if names.any(|name| headers::is_same_name(name, X_FORWARDED_FOR.as_str())) {
            take_client_address(fields)
        } else {
            None
        };
        let identities = rewrite.add().iter().filter(|header| header.uses_identity());
        identities.chain(rewrite.set()).for_each(|header| remove_spellings(fields, &header.name));
        let mut values = add.into_iter();
        rewrite.add().iter().for_each(|header| append(fields, header, &mut values));
        let mut values = set.into_iter();
        for header in rewrite.set() {
            remove_spellings(fields, &header.name);
            append(fields, header, &mut values);
        }
        rewrite.remove().iter().for_each(|name| remove_spellings(fields, name));
        if let Some(address) = client_address {
            append_client_address(fields, &address);
        }
        uri
    }
}

fn append(fields: &mut HeaderMap, header: &HeaderRewrite, values: &mut impl Iterator<Item = HeaderValue>) {
    let name = HeaderName::from_bytes(header.name.as_bytes());
    for value in values.take(header.values.len()).filter(|value| !value.is_empty()) {
        if let Ok(name) = &name {
            fields.append(name, value);
        }
    }
}

/// Removes the client's own address from the end of `X-Forwarded-For`, where
/// [`headers::prepare_request`] has appended it: nginx appends it after every plugin.
fn take_client_address(fields: &mut HeaderMap) -> Option<HeaderValue> {
    let address = fields.get(X_REAL_IP)?.clone();
    let rest = headers::client_forwarded_for(fields).and_then(|rest| HeaderValue::from_bytes(rest).ok());
    fields.remove(X_FORWARDED_FOR)?;
    if let Some(rest) = rest {
        fields.insert(X_FORWARDED_FOR, rest);
    }
    Some(address)
}

fn append_client_address(fields: &mut HeaderMap, address: &HeaderValue) {
    let name = X_FORWARDED_FOR;
    let mut list: Vec<u8> = Vec::new();
    // In any spelling that the route sets: to CGI two spellings are one header with two values.
    let is_same = |field: &HeaderName| headers::is_same_name(field.as_str(), name.as_str());
    for (_, value) in fields.iter().filter(|(field, _)| is_same(field)) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(address.as_bytes());
    remove_spellings(fields, name.as_str());
    let list = HeaderValue::from_bytes(&list).unwrap_or_else(|_| address.clone());
    fields.insert(name, list);
}

/// Removes a header in every spelling that an upstream may take for this name.
fn remove_spellings(fields: &mut HeaderMap, name: &str) {
    let spellings: Vec<HeaderName> =
        fields.keys().filter(|field| headers::is_same_name(field.as_str(), name)).cloned().collect();
    for name in spellings {
        fields.remove(name);
    }
}

fn header_value(
    name: &str,
    template: &Template,
    request: &RequestContext<'_>,
    captured: &[Option<&str>],
) -> Result<HeaderValue, RewriteError> {
    let mut value = Vec::new();
    template.render(request, captured, |part| match part {
        RenderedPart::Value(piece, variable) if variable.is_path() => {
            value.extend_from_slice(&request_target::path_bytes(piece));
        }
        RenderedPart::Captured(piece) => value.extend_from_slice(&request_target::path_bytes(piece)),
        RenderedPart::Literal(piece) | RenderedPart::Value(piece, _) => {
            value.extend_from_slice(piece.as_bytes());
        }
    });
    if value.iter().any(u8::is_ascii_control) {
        return Err(RewriteError::ControlCharacter(name.into()));
    }
    // Without control characters all bytes are valid.
    HeaderValue::from_bytes(&value).map_err(|_| RewriteError::ControlCharacter(name.into()))
}

/// Builds an encoded URI.
#[derive(Default)]
struct UriBuilder {
    path: String,
    query: Option<String>,
}

impl UriBuilder {
    /// Appends a piece of the request's own path.
    fn piece(mut self, text: &str, target: &RequestTarget) -> Self {
        match &mut self.query {
            None => self.path.push_str(&target.encode_piece(text)),
            Some(query) => query.extend(percent_encode(&target.decode_piece(text), ARGUMENT)),
        }
        self
    }

    fn render(
        mut self,
        template: &UriTemplate,
        captured: &[Option<&str>],
        request: &RequestContext<'_>,
    ) -> Self {
        let target = request.target;
        template.path.render(request, captured, |part| match part {
            RenderedPart::Literal(text) => self.path.push_str(&request_target::encode_literal(text)),
            RenderedPart::Captured(text) => self.path.push_str(&target.encode_piece(text)),
            RenderedPart::Value(text, variable) if variable.is_path() => {
                self.path.push_str(&target.encode_piece(text));
            }
            RenderedPart::Value(text, _) => self.path.push_str(&request_target::encode_text(text)),
        });
        let Some(template) = &template.query else { return self };
        let mut query = String::new();
        template.render(request, captured, |part| match part {
            RenderedPart::Literal(text) => query.extend(utf8_percent_encode(text, LITERAL)),
            // The client's own arguments, which are encoded already.
            RenderedPart::Value(text, variable) if variable.is_encoded() => {
                query.extend(utf8_percent_encode(text, LITERAL));
            }
            RenderedPart::Value(text, variable) if !variable.is_path() => {
                query.extend(utf8_percent_encode(text, ARGUMENT));
            }
            RenderedPart::Value(text, _) | RenderedPart::Captured(text) => {
                query.extend(percent_encode(&target.decode_piece(text), ARGUMENT));
            }
        });
        self.query = Some(query);
        self
    }

    /// Appends the client's query to the template's.
    fn finish(self, request: &RequestContext<'_>) -> Result<PathAndQuery, RewriteError> {
        // Some programs take `//host` for an authority.
        let path = format!("/{}", self.path.trim_start_matches('/'));
        if let Err(error) = request_target::check_generated(&path) {
            return Err(RewriteError::InvalidPath { path, error });
        }
        let client_query = request.parts.uri.query().filter(|query| !query.is_empty());
        let query = match (self.query, client_query) {
            (Some(query), Some(client_query)) => Some(format!("{query}&{client_query}")),
            (query, client_query) => query.or_else(|| client_query.map(str::to_owned)),
        };
        Ok(path::join(&path, query.as_deref())?)
    }
}

#[cfg(test)]
mod tests;
