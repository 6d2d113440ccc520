//! The plugin `proxy-rewrite`: how a request's headers and uri look to the upstream. This one plugin, and of it `headers`, `uri` and
//! `regex_uri`.
//!
//! Compiled when a document is checked and again when it arrives at a data plane, which applies it after matching and authorising the
//! request as the client made it. Invariant: what would break the request's framing, or silently do nothing, is refused here.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::document::{Block, judge_block};
use crate::problem::Problem;
use crate::template::{Allowed, Template};
use crate::variable::Variable;

/// Largest compiled form of one pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Headers that frame or route the message: setting or removing one would make two parties read different requests.
const FRAMING: [&str; 11] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The plugin's configuration, compiled.
#[derive(Clone)]
pub struct ProxyRewrite {
    source: Value,
    uri: Option<UriRewrite>,
    add: Vec<HeaderRewrite>,
    set: Vec<HeaderRewrite>,
    remove: Vec<Box<str>>,
}

/// Where the uri comes from.
#[derive(Debug, Clone)]
pub enum UriRewrite {
    /// `uri`, at its first `?`.
    Template {
        /// Before it.
        path: Template,
        /// Behind it.
        query: Option<Template>,
    },
    /// `regex_uri`: the first pattern that fits the normalised path.
    Patterns(Vec<(Regex, Template)>),
}

/// One header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRewrite {
    /// In lower case.
    pub name: Box<str>,
    /// Its value.
    pub value: Template,
}

impl HeaderRewrite {
    /// Whether it tells who the client is.
    pub fn is_identity(&self) -> bool {
        self.value.variables().any(Variable::is_identity)
    }
}

impl ProxyRewrite {
    /// Compiles the plugin's configuration.
    ///
    /// # Errors
    /// `failed to check the configuration of plugin proxy-rewrite err: ...`, with the field.
    pub fn compile(source: &Value) -> Result<ProxyRewrite, Problem> {
        judge_block(Block::ProxyRewrite, source).and_then(|()| compile(source)).map_err(|problem| {
            let problem = problem.within("proxy-rewrite").within("plugins");
            let message =
                format!("failed to check the configuration of plugin proxy-rewrite err: {}", problem.message);
            Problem { message, ..problem }
        })
    }

    /// As in the document.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// The new uri; `None`: as the client wrote it.
    pub fn uri(&self) -> Option<&UriRewrite> {
        self.uri.as_ref()
    }

    /// Headers to add to those there are.
    pub fn add(&self) -> &[HeaderRewrite] {
        &self.add
    }

    /// Headers to put in the place of those there are.
    pub fn set(&self) -> &[HeaderRewrite] {
        &self.set
    }

    /// Names of headers to remove, in lower case; done last.
    pub fn remove(&self) -> &[Box<str>] {
        &self.remove
    }
}

fn compile(source: &Value) -> Result<ProxyRewrite, Problem> {
    let uri = uri(source)?;
    let captures = match &uri {
        Some(UriRewrite::Patterns(patterns)) => {
            // Whichever pattern fits: a group that only another has is an empty text.
            patterns.iter().map(|(pattern, _)| pattern.captures_len().saturating_sub(1)).max()
        }
        _ => None,
    };
    let allowed = Allowed { variables: true, captures };
    let nothing = Map::new();
    let headers = source.get("headers").and_then(Value::as_object).unwrap_or(&nothing);
    let part = |name: &str| headers.get(name).and_then(Value::as_object);
    let removed = headers.get("remove").and_then(Value::as_array).map(Vec::as_slice);
    let parted = part("add").is_some() || part("set").is_some() || removed.is_some();
    let within = |name: &'static str| move |problem: Problem| problem.within(name).within("headers");
    let (add, set) = if parted {
        let add = values(part("add").unwrap_or(&nothing), allowed).map_err(within("add"))?;
        (add, values(part("set").unwrap_or(&nothing), allowed).map_err(within("set"))?)
    } else {
        (Vec::new(), values(headers, allowed).map_err(within(""))?)
    };
    let remove = (1..).zip(removed.unwrap_or_default()).map(|(index, name)| {
        header_name(name.as_str().unwrap_or_default())
            .map_err(|problem| within("remove")(problem.within(&format!("[{index}]"))))
    });
    let made =
        ProxyRewrite { source: source.clone(), uri, add, set, remove: remove.collect::<Result<_, _>>()? };
    if made.uri.is_none() && made.add.is_empty() && made.set.is_empty() && made.remove.is_empty() {
        return Err(Problem::new("", "it rewrites nothing").with_hint("expected headers, uri or regex_uri"));
    }
    Ok(made)
}

fn uri(source: &Value) -> Result<Option<UriRewrite>, Problem> {
    if let Some(text) = source.get("uri").and_then(Value::as_str) {
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        let bad = text.bytes().any(|byte| byte.is_ascii_control() || byte == b'#');
        if bad || path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(Problem::new("uri", format!("{text:?} is not the path of a request"))
                .with_hint("no control characters, no #, no dot segments"));
        }
        let read = |text| {
            Template::parse(text, Allowed { variables: true, captures: None })
                .and_then(without_lines)
                .map_err(|problem| problem.within("uri"))
        };
        return Ok(Some(UriRewrite::Template { path: read(path)?, query: query.map(read).transpose()? }));
    }
    let texts: Vec<&str> = match source.get("regex_uri").and_then(Value::as_array) {
        Some(items) => items.iter().filter_map(Value::as_str).collect(),
        None => return Ok(None),
    };
    let (pairs, []) = texts.as_chunks::<2>() else {
        return Err(Problem::new("regex_uri", "The length of regex_uri should be an even number")
            .with_hint("each pattern is followed by its replacement"));
    };
    let compiled = (0..).zip(pairs).map(|(index, [pattern, replacement])| {
        let place = |offset: usize| format!("regex_uri[{}]", 2 * index + offset);
        let compiled = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build().map_err(|error| {
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Problem::new(place(1), format!("invalid regex_uri({pattern}, {replacement}): {why}"))
                .with_hint("patterns run in linear time: look-around and back-references are not supported")
        })?;
        let groups = compiled.captures_len().saturating_sub(1);
        let template = Template::parse(replacement, Allowed { variables: false, captures: Some(groups) });
        Ok((compiled, template.map_err(|problem| problem.within(&place(2)))?))
    });
    compiled.collect::<Result<_, _>>().map(UriRewrite::Patterns).map(Some)
}

fn values(headers: &Map<String, Value>, allowed: Allowed) -> Result<Vec<HeaderRewrite>, Problem> {
    let read = |(name, value): (&String, &Value)| {
        let lower = header_name(name)?;
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let value = Template::parse(&text, allowed).and_then(without_lines).and_then(|template| {
            if template.literals().all(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte))) {
                return Ok(template);
            }
            Err(Problem::new("", "invalid value character in header"))
        });
        Ok(HeaderRewrite { name: lower, value: value.map_err(|problem| problem.within(name))? })
    };
    headers.iter().map(read).collect()
}

fn header_name(name: &str) -> Result<Box<str>, Problem> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(Problem::new(name, "invalid field character in header"));
    }
    let lower = name.to_ascii_lowercase();
    // `_` for `-`: some upstreams do not tell them apart.
    if FRAMING.contains(&lower.replace('_', "-").as_str()) {
        return Err(Problem::new(name, format!("the header {name} frames or routes the request"))
            .with_hint("it is the gateway's own; for Host see the upstream's pass_host"));
    }
    Ok(lower.into())
}

fn without_lines(template: Template) -> Result<Template, Problem> {
    if template.variables().any(Variable::has_lines) {
        return Err(Problem::new("", "a certificate as PEM has line breaks, which break a request")
            .with_hint("use $ssl_client_escaped_cert"));
    }
    Ok(template)
}

impl PartialEq for ProxyRewrite {
    fn eq(&self, other: &ProxyRewrite) -> bool {
        self.source == other.source
    }
}

impl fmt::Debug for ProxyRewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyRewrite({})", self.source)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_of_headers() {
        let flat =
            ProxyRewrite::compile(&json!({"headers": {"X-A": "$host", "set": "x", "X-N": 5}})).unwrap();
        let names: Vec<_> = flat.set().iter().map(|header| &*header.name).collect();
        assert_eq!(names, ["x-a", "set", "x-n"]);
        let parted =
            json!({"headers": {"add": {"A": "1"}, "set": {"B": "$ssl_client_s_dn"}, "remove": ["C"]}});
        let parted = ProxyRewrite::compile(&parted).unwrap();
        assert_eq!((parted.add().len(), parted.set().len(), parted.remove()), (1, 1, &["c".into()][..]));
        assert!(parted.set()[0].is_identity() && !parted.add()[0].is_identity());
    }

    #[test]
    fn what_breaks_a_request_or_does_nothing_is_refused() {
        for (source, field) in [
            (json!({}), ""),
            (json!({"headers": {}}), ""),
            (json!({"host": "a.example"}), ".host"),
            (json!({"method": "POST"}), ".method"),
            (json!({"use_real_request_uri_unsafe": true}), ".use_real_request_uri_unsafe"),
            (json!({"uri": "x"}), ".uri"),
            (json!({"uri": "/a\r\nX: y"}), ".uri"),
            (json!({"uri": "/a/../b"}), ".uri"),
            (json!({"uri": "/a#b"}), ".uri"),
            (json!({"uri": "/$nope"}), ".uri"),
            (json!({"uri": "/$ssl_client_cert"}), ".uri"),
            (json!({"regex_uri": ["^/a", "/b", "^/c"]}), ".regex_uri"),
            (json!({"regex_uri": ["(?=a)", "/b"]}), ".regex_uri[1]"),
            (json!({"regex_uri": ["^/(a)", "/$2"]}), ".regex_uri[2]"),
            (json!({"headers": {"X-A": "a\r\nb"}}), ".headers.X-A"),
            (json!({"headers": {"X-A": "é"}}), ".headers.X-A"),
            (json!({"headers": {"X-A": "$nope"}}), ".headers.X-A"),
            (json!({"headers": {"X-A": "$1"}}), ".headers.X-A"),
            (json!({"headers": {"X-A": "$ssl_client_raw_cert"}}), ".headers.X-A"),
            (json!({"headers": {"X A": "1"}}), ".headers.X A"),
            (json!({"headers": {"Host": "1"}}), ".headers.Host"),
            (json!({"headers": {"set": {"Transfer_Encoding": "1"}}}), ".headers.set.Transfer_Encoding"),
            (json!({"headers": {"remove": ["X-A", "Content-Length"]}}), ".headers.remove[2].Content-Length"),
        ] {
            let problem = ProxyRewrite::compile(&source).expect_err(&source.to_string());
            assert_eq!(problem.field, format!("plugins.proxy-rewrite{field}"), "{problem}");
            assert!(
                problem
                    .message
                    .starts_with("failed to check the configuration of plugin proxy-rewrite err: ")
            );
        }
        let problem = ProxyRewrite::compile(&json!({"headers": {"X:A": "1"}})).unwrap_err();
        assert!(problem.field.starts_with("plugins.proxy-rewrite.headers"), "{problem:?}");
    }
}
