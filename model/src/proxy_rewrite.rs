//! The plugin `proxy-rewrite`: changes the uri, method, host and headers that the upstream
//! receives.
//!
//! The control plane compiles it to check a document, and each data plane compiles it again and
//! applies it after the request was matched and authorized. Invariant: a setting that would break
//! the framing of the request, or change nothing, is a compile error.

use std::fmt;

use http::Method;
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};

use crate::host_name::HostName;
use crate::plugin::{PROXY_REWRITE, invalid_configuration, is_disabled, plugin};
use crate::problem::{Problem, ProblemKind};
use crate::request_target;
use crate::template::{AllowedRefs, Template};
use crate::variable::Variable;

/// The largest compiled form of a pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The field that forwards raw paths.
const RAW_PATH_FIELD: &str = "use_real_request_uri_unsafe";

/// Headers that frame or route a message. If the plugin changed one, two parties could read
/// different requests.
const FRAMING_HEADERS: [&str; 11] = [
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

/// A compiled `proxy-rewrite` configuration.
#[derive(Clone)]
pub struct ProxyRewrite {
    source: Value,
    uri: Option<UriRewrite>,
    raw_path: bool,
    method: Option<Method>,
    host: Option<Box<str>>,
    add: Vec<HeaderRewrite>,
    set: Vec<HeaderRewrite>,
    remove: Vec<Box<str>>,
}

/// The source of the new uri.
#[derive(Debug, Clone)]
pub enum UriRewrite {
    /// `uri`.
    Template(UriTemplate),
    /// `regex_uri`: patterns for the normalized path, with the replacement for the first match.
    Patterns(Vec<(Regex, UriTemplate)>),
}

/// A uri template, split at its first literal `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UriTemplate {
    /// The part before the `?`.
    pub path: Template,
    /// The part after it; `None` without one.
    pub query: Option<Template>,
}

/// A header to set or add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRewrite {
    /// The name in lower case.
    pub name: Box<str>,
    /// One or more values, each sent as a field of its own.
    pub values: Box<[Template]>,
}

impl HeaderRewrite {
    /// Whether a value has a variable of the client's identity.
    pub fn uses_identity(&self) -> bool {
        self.values.iter().flat_map(Template::variables).any(Variable::is_identity)
    }
}

impl ProxyRewrite {
    /// Compiles the plugin's configuration. One that `_meta.disable` switches off rewrites nothing,
    /// but still replaces the service's, and is not checked further (as in APISIX).
    ///
    /// # Errors
    ///
    /// `failed to check the configuration of plugin proxy-rewrite err: ...`, with the field.
    pub fn compile(source: &Value) -> Result<ProxyRewrite, Problem> {
        if is_disabled(source) {
            return compile(&json!({RAW_PATH_FIELD: false}));
        }
        if let Some(plugin) = plugin(PROXY_REWRITE) {
            plugin.validate(source)?;
        }
        let settings = without_meta(source);
        settings
            .and_then(|settings| compile(&settings))
            .map_err(|problem| invalid_configuration(PROXY_REWRITE, problem))
    }

    fn is_empty(&self) -> bool {
        let ProxyRewrite { source: _, uri, raw_path: real_uri, method, host, add, set, remove } = self;
        let lists = add.is_empty() && set.is_empty() && remove.is_empty();
        lists && !real_uri && uri.is_none() && method.is_none() && host.is_none()
    }

    /// The configuration as in the document.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// The new uri; `None` forwards the normalized path.
    pub fn uri(&self) -> Option<&UriRewrite> {
        self.uri.as_ref()
    }

    /// `use_real_request_uri_unsafe`: forward the raw path, where [`crate::raw_path`] allows it.
    pub fn uses_raw_path(&self) -> bool {
        self.raw_path
    }

    /// The new method.
    pub fn method(&self) -> Option<&Method> {
        self.method.as_ref()
    }

    /// Replaces the client's authority; `pass_host` of the upstream decides whether that is
    /// forwarded.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Headers to append.
    pub fn add(&self) -> &[HeaderRewrite] {
        &self.add
    }

    /// Headers to replace.
    pub fn set(&self) -> &[HeaderRewrite] {
        &self.set
    }

    /// Lower-case names of headers to remove, after the other changes.
    pub fn remove(&self) -> &[Box<str>] {
        &self.remove
    }
}

/// The plugin's own settings. Of those in `_meta`, the order of plugins and the response to a
/// denied request mean nothing here.
fn without_meta(source: &Value) -> Result<Value, Problem> {
    let mut settings = source.clone();
    let meta = settings.as_object_mut().and_then(|settings| settings.shift_remove("_meta"));
    for field in ["filter", "pre_function"] {
        if meta.as_ref().is_some_and(|meta| meta.get(field).is_some()) {
            let hint = "remove it: the plugin runs for every request of its route";
            return Err(Problem::new(
                format!("_meta.{field}"),
                format!("{field} is not supported by this gateway"),
            )
            .with_hint(hint)
            .with_kind(ProblemKind::Unsupported));
        }
    }
    Ok(settings)
}

fn compile(source: &Value) -> Result<ProxyRewrite, Problem> {
    let uri = uri(source)?;
    let captures = match &uri {
        Some(UriRewrite::Patterns(patterns)) => {
            // A capture group that the matching pattern lacks is empty.
            patterns.iter().map(|(pattern, _)| pattern.captures_len().saturating_sub(1)).max()
        }
        _ => None,
    };
    let allowed = AllowedRefs { variables: true, captures };
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
    let made = ProxyRewrite {
        source: source.clone(),
        raw_path: real_uri(source, uri.as_ref())?,
        uri,
        method: method(source)?,
        host: host(source)?,
        add,
        set,
        remove: remove.collect::<Result<_, _>>()?,
    };
    // An explicit `false` overrides the service's setting.
    if made.is_empty() && source.get(RAW_PATH_FIELD).is_none() {
        let hint = "expected uri, regex_uri, method, host or headers";
        return Err(Problem::new("", "it rewrites nothing").with_hint(hint));
    }
    Ok(made)
}

fn real_uri(source: &Value, uri: Option<&UriRewrite>) -> Result<bool, Problem> {
    let real = source.get(RAW_PATH_FIELD).and_then(Value::as_bool).unwrap_or_default();
    match uri {
        Some(_) if real => Err(Problem::new(RAW_PATH_FIELD, "it cannot be true beside a new uri")
            .with_hint("patterns and variables read the normalised path: leave out one of the two")),
        _ => Ok(real),
    }
}

fn method(source: &Value) -> Result<Option<Method>, Problem> {
    let Some(text) = source.get("method").and_then(Value::as_str) else { return Ok(None) };
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if method != Method::TRACE => Ok(Some(method)),
        _ => Err(Problem::new("method", format!("{text} is not forwarded"))
            .with_hint("TRACE has the upstream send back every header it got, and takes no body")),
    }
}

fn host(source: &Value) -> Result<Option<Box<str>>, Problem> {
    let Some(text) = source.get("host").and_then(Value::as_str) else { return Ok(None) };
    let port = text.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok());
    match HostName::from_host(text).filter(|_| port) {
        Some(_) => Ok(Some(text.into())),
        None => Err(Problem::new("host", format!("{text:?} is not the host of a request"))
            .with_hint("expected a name or an IPv4 address, with or without a port")),
    }
}

fn uri(source: &Value) -> Result<Option<UriRewrite>, Problem> {
    if let Some(text) = source.get("uri").and_then(Value::as_str) {
        let allowed = AllowedRefs { variables: true, captures: None };
        let made = uri_template(text, allowed).map_err(|problem| problem.within("uri"))?;
        return Ok(Some(UriRewrite::Template(made)));
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
        let made = uri_template(replacement, AllowedRefs { variables: false, captures: Some(groups) });
        Ok((compiled, made.map_err(|problem| problem.within(&place(2)))?))
    });
    compiled.collect::<Result<_, _>>().map(UriRewrite::Patterns).map(Some)
}

fn uri_template(text: &str, allowed: AllowedRefs) -> Result<UriTemplate, Problem> {
    let (path, query) = Template::parse(text, allowed).and_then(forbid_multiline)?.split_at_literal('?');
    let fixed =
        |template: &Template| template.literals().map(request_target::encode_literal).collect::<String>();
    let bad = text.bytes().any(|byte| byte.is_ascii_control() || byte == b'#');
    if bad || path.is_constant() && request_target::check_generated(&fixed(&path)).is_err() {
        return Err(Problem::new("", format!("{text:?} is not the path of a request"))
            .with_hint("no control characters, no #, no dot segments"));
    }
    Ok(UriTemplate { path, query })
}

fn values(headers: &Map<String, Value>, allowed: AllowedRefs) -> Result<Vec<HeaderRewrite>, Problem> {
    let read = |(name, value): (&String, &Value)| {
        let lower = header_name(name)?;
        let values = match value {
            Value::Array(values) => values.iter().map(|value| header_value(value, allowed)).collect(),
            one => header_value(one, allowed).map(|one| [one].into()),
        };
        Ok(HeaderRewrite { name: lower, values: values.map_err(|problem| problem.within(name))? })
    };
    headers.iter().map(read).collect()
}

fn header_value(value: &Value, allowed: AllowedRefs) -> Result<Template, Problem> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let template = Template::parse(&text, allowed).and_then(forbid_multiline)?;
    if template.literals().all(|text| text.bytes().all(|byte| (0x20..0x7f).contains(&byte))) {
        return Ok(template);
    }
    Err(Problem::new("", "invalid value character in header"))
}

fn header_name(name: &str) -> Result<Box<str>, Problem> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(Problem::new(name, "invalid field character in header"));
    }
    let lower = name.to_ascii_lowercase();
    // Some upstreams treat `_` like `-`, and CGI maps all spellings to the same variable.
    let folded = lower.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    if FRAMING_HEADERS.contains(&folded.as_str()) {
        return Err(Problem::new(name, format!("the header {name} frames or routes the request"))
            .with_hint("it is the gateway's own; for Host see the upstream's pass_host"));
    }
    Ok(lower.into())
}

fn forbid_multiline(template: Template) -> Result<Template, Problem> {
    if template.variables().any(Variable::is_multiline) {
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
    fn every_setting_is_one_of_apisix() {
        let ours = plugin(PROXY_REWRITE).unwrap().schema()["properties"].as_object().unwrap();
        let known = ["uri", "method", "regex_uri", "host", "headers", RAW_PATH_FIELD, "_meta"];
        assert!(ours.keys().all(|name| known.contains(&name.as_str())), "{ours:?}");
    }

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
        assert!(parted.set()[0].uses_identity() && !parted.add()[0].uses_identity());
    }

    #[test]
    fn method_host_and_lists_of_values() {
        let source = json!({
            "method": "MKCOL", "host": "b.example:8080", "use_real_request_uri_unsafe": false,
            "headers": {"add": {"X-A": ["1", 2]}, "set": {"X-B": [3.5, "$ssl_client_s_dn"]}}
        });
        let made = ProxyRewrite::compile(&source).unwrap();
        assert_eq!((made.method().unwrap().as_str(), made.host()), ("MKCOL", Some("b.example:8080")));
        assert!(!made.uses_raw_path() && made.uri().is_none());
        assert_eq!((made.add()[0].values.len(), made.set()[0].values.len()), (2, 2));
        assert!(!made.add()[0].uses_identity() && made.set()[0].uses_identity());
        assert!(
            ProxyRewrite::compile(&json!({"use_real_request_uri_unsafe": true})).unwrap().uses_raw_path()
        );
        ProxyRewrite::compile(&json!({"use_real_request_uri_unsafe": false})).unwrap();
    }

    #[test]
    fn settings_that_break_a_request_or_do_nothing_are_invalid() {
        for (source, field) in [
            (json!({}), ""),
            (json!({"headers": {}}), ""),
            (json!({"host": "a_example"}), ".host"),
            (json!({"host": "a..example"}), ".host"),
            (json!({"host": "a.example:99999"}), ".host"),
            (json!({"host": "a.example/x"}), ".host"),
            (json!({"method": "TRACE"}), ".method"),
            (json!({"method": "CONNECT"}), ".method"),
            (json!({"method": "get"}), ".method"),
            (json!({"uri": "/x", "use_real_request_uri_unsafe": true}), ".use_real_request_uri_unsafe"),
            (
                json!({"regex_uri": ["a", "b"], "use_real_request_uri_unsafe": true}),
                ".use_real_request_uri_unsafe",
            ),
            (json!({"use_real_request_uri_unsafe": 1}), ".use_real_request_uri_unsafe"),
            (json!({"uri": "/a/%2e%2E/b"}), ".uri"),
            (json!({"uri": "/a/..;x/b"}), ".uri"),
            (json!({"uri": "/a/..\\b"}), ".uri"),
            (json!({"uri": "/a%0ab"}), ".uri"),
            (json!({"regex_uri": ["^/(a)", "/../x"]}), ".regex_uri[2]"),
            (json!({"headers": {"add": {"X-A": ["1", "a\nb"]}}}), ".headers.add.X-A"),
            (json!({"headers": {"add": {"Content_Length": ["1"]}}}), ".headers.add.Content_Length"),
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
        for headers in [
            json!({"X:A": "1"}),
            json!({"X-A": ["1"]}),
            json!({"set": {"X-A": []}}),
            json!({"add": {"X-A": ["1", {}]}}),
        ] {
            let problem = ProxyRewrite::compile(&json!({"headers": headers})).unwrap_err();
            assert!(problem.field.starts_with("plugins.proxy-rewrite.headers"), "{problem:?}");
        }
    }
}
