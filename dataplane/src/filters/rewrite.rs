//! `proxy-rewrite` for one request: a new uri, method and headers, after everything was decided on
//! the request as the client made it.
//!
//! Values are worked out from the untouched request first ([`work_out`]), then put in
//! ([`Rewritten::apply`]). Invariants: no value brings a control character into a header, or a
//! control character or a dot segment into a path (the request is refused instead); what stands in
//! a header that the route sets did not come from the client under another spelling of its name;
//! `X-Forwarded-For` ends in the client's own address.

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::proxy_rewrite::{HeaderRewrite, UriRewrite, UriTemplate};
use model::raw_path::Conflict;
use model::template::{RenderedPart, Template};
use model::{ProxyRewrite, RequestTarget, RequestTargetError, request_target};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use super::headers::{self, X_FORWARDED_FOR, X_REAL_IP};
use super::path;
use super::variables::RequestContext;

/// What is not legal in a query as it stands, apart from `%`, which a configured query may hold.
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
/// A value in a query (RFC 3986 section 3.4): nothing of it may look like another argument.
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

/// The rewritten request cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Something the client sent would break a header.
    #[error("the header {0} would hold a control character")]
    ControlCharacter(Box<str>),
    /// Something the client sent would climb, or end the request line.
    #[error("the rewritten path {path:?}: {error}")]
    Path {
        /// As it would be sent.
        path: String,
        /// What is wrong with it, said of the request's own path otherwise.
        error: RequestTargetError,
    },
    /// `use_real_request_uri_unsafe` where it would be.
    #[error("the path as the client wrote it could walk round {0}")]
    RawPathConflict(Conflict),
    /// Too long, for one.
    #[error("the rewritten uri is none: {0}")]
    InvalidUri(String),
}

/// A request's new uri, method and headers.
#[derive(Debug)]
pub struct EvaluatedRewrite<'a> {
    rewrite: &'a ProxyRewrite,
    uri: Option<PathAndQuery>,
    /// Of all the headers, one after the other.
    add: Vec<HeaderValue>,
    set: Vec<HeaderValue>,
}

/// Works out the values.
///
/// # Errors
/// [`RewriteError`]; the request is answered 400.
pub fn evaluate<'a>(
    rewrite: &'a ProxyRewrite,
    request: &RequestContext<'_>,
) -> Result<EvaluatedRewrite<'a>, RewriteError> {
    let (uri, captured) = match rewrite.uri() {
        None => (None, Vec::new()),
        Some(UriRewrite::Template(new)) => {
            (Some(UriBuilder::default().render(new, &[], request).finish(request)?), Vec::new())
        }
        Some(UriRewrite::Patterns(patterns)) => {
            let path = &*request.target.path;
            let found = patterns.iter().find_map(|(pattern, new)| Some((pattern.captures(path)?, new)));
            match found {
                None => (None, Vec::new()),
                Some((captures, new)) => {
                    let groups: Vec<Option<&str>> =
                        captures.iter().map(|group| group.map(|group| group.as_str())).collect();
                    let whole = captures.get(0).map_or(0..0, |whole| whole.range());
                    let made = UriBuilder::default()
                        .piece(path.get(..whole.start).unwrap_or_default(), request.target)
                        .render(new, &groups, request)
                        .piece(path.get(whole.end..).unwrap_or_default(), request.target);
                    (Some(made.finish(request)?), groups)
                }
            }
        }
    };
    let values = |headers: &[HeaderRewrite]| {
        let each =
            headers.iter().flat_map(|header| header.values.iter().map(|template| (&header.name, template)));
        each.map(|(name, template)| value(name, template, request, &captured)).collect::<Result<Vec<_>, _>>()
    };
    Ok(EvaluatedRewrite { rewrite, uri, add: values(rewrite.add())?, set: values(rewrite.set())? })
}

impl EvaluatedRewrite<'_> {
    /// Puts them in: add, set, remove, as APISIX does. An empty value is no header: an identity is
    /// told or absent. Gives the new path and query; `None`: the judged path.
    pub fn apply(self, parts: &mut Parts) -> Option<PathAndQuery> {
        let EvaluatedRewrite { rewrite, uri, add, set } = self;
        if let Some(method) = rewrite.method() {
            parts.method = method.clone();
        }
        let fields = &mut parts.headers;
        let mut names =
            rewrite.add().iter().chain(rewrite.set()).map(|header| &header.name).chain(rewrite.remove());
        let own = if names.any(|name| headers::is_same_name(name, X_FORWARDED_FOR.as_str())) {
            take_own_address(fields)
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
        if let Some(own) = own {
            append_own_address(fields, &own);
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

/// Takes the client's own address off the end of `X-Forwarded-For`, where [`headers::to_upstream`]
/// has put it beside `X-Real-IP`: nginx appends it after every plugin.
fn take_own_address(fields: &mut HeaderMap) -> Option<HeaderValue> {
    let own = fields.get(X_REAL_IP)?.clone();
    let rest = headers::client_forwarded_for(fields).and_then(|rest| HeaderValue::from_bytes(rest).ok());
    fields.remove(X_FORWARDED_FOR)?;
    if let Some(rest) = rest {
        fields.insert(X_FORWARDED_FOR, rest);
    }
    Some(own)
}

fn append_own_address(fields: &mut HeaderMap, own: &HeaderValue) {
    let name = X_FORWARDED_FOR;
    let mut list: Vec<u8> = Vec::new();
    // In whatever spelling the route sets it: two spellings would be one header with two values to CGI.
    for (_, value) in fields.iter().filter(|(given, _)| headers::is_same_name(given.as_str(), name.as_str()))
    {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(own.as_bytes());
    remove_spellings(fields, name.as_str());
    let list = HeaderValue::from_bytes(&list).unwrap_or_else(|_| own.clone());
    fields.insert(name, list);
}

/// Removes a header in every spelling that an upstream might take for this name.
fn remove_spellings(fields: &mut HeaderMap, name: &str) {
    let spelt: Vec<HeaderName> =
        fields.keys().filter(|given| headers::is_same_name(given.as_str(), name)).cloned().collect();
    for name in spelt {
        fields.remove(name);
    }
}

fn value(
    name: &str,
    template: &Template,
    request: &RequestContext<'_>,
    captured: &[Option<&str>],
) -> Result<HeaderValue, RewriteError> {
    let mut value = Vec::new();
    template.render(request, captured, |part| match part {
        RenderedPart::Value(piece, variable) if variable.is_path() => {
            value.extend_from_slice(&request_target::path_bytes(piece))
        }
        RenderedPart::Captured(piece) => value.extend_from_slice(&request_target::path_bytes(piece)),
        RenderedPart::Literal(piece) | RenderedPart::Value(piece, _) => {
            value.extend_from_slice(piece.as_bytes())
        }
    });
    if value.iter().any(u8::is_ascii_control) {
        return Err(RewriteError::ControlCharacter(name.into()));
    }
    // Without control characters any bytes are a legal value.
    HeaderValue::from_bytes(&value).map_err(|_| RewriteError::ControlCharacter(name.into()))
}

/// A uri that is being made, encoded.
#[derive(Default)]
struct UriBuilder {
    path: String,
    query: Option<String>,
}

impl UriBuilder {
    /// Appends a piece of the request's own path.
    fn piece(mut self, text: &str, own: &RequestTarget) -> Self {
        match &mut self.query {
            None => self.path.push_str(&own.encode_piece(text)),
            Some(query) => query.extend(percent_encode(&own.decode_piece(text), ARGUMENT)),
        }
        self
    }

    fn render(mut self, new: &UriTemplate, captured: &[Option<&str>], request: &RequestContext<'_>) -> Self {
        let own = request.target;
        new.path.render(request, captured, |part| match part {
            RenderedPart::Literal(text) => self.path.push_str(&request_target::encode_literal(text)),
            RenderedPart::Captured(text) => self.path.push_str(&own.encode_piece(text)),
            RenderedPart::Value(text, variable) if variable.is_path() => {
                self.path.push_str(&own.encode_piece(text))
            }
            RenderedPart::Value(text, _) => self.path.push_str(&request_target::encode_text(text)),
        });
        let Some(new) = &new.query else { return self };
        let mut query = String::new();
        new.render(request, captured, |part| match part {
            RenderedPart::Literal(text) => query.extend(utf8_percent_encode(text, LITERAL)),
            // As the client wrote it: encoded already, and its own arguments.
            RenderedPart::Value(text, variable) if variable.is_encoded() => {
                query.extend(utf8_percent_encode(text, LITERAL))
            }
            RenderedPart::Value(text, variable) if !variable.is_path() => {
                query.extend(utf8_percent_encode(text, ARGUMENT))
            }
            RenderedPart::Value(text, _) | RenderedPart::Captured(text) => {
                query.extend(percent_encode(&own.decode_piece(text), ARGUMENT))
            }
        });
        self.query = Some(query);
        self
    }

    /// The client's own query follows the new one.
    fn finish(self, request: &RequestContext<'_>) -> Result<PathAndQuery, RewriteError> {
        // `//host` would be an authority to some.
        let path = format!("/{}", self.path.trim_start_matches('/'));
        if let Err(error) = request_target::check_generated(&path) {
            return Err(RewriteError::Path { path, error });
        }
        let own = request.parts.uri.query().filter(|own| !own.is_empty());
        let query = match (self.query, own) {
            (Some(query), Some(own)) => Some(format!("{query}&{own}")),
            (query, own) => query.or_else(|| own.map(str::to_owned)),
        };
        path::join(&path, query.as_deref()).map_err(|error| RewriteError::InvalidUri(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
