//! The body of `POST /apisix/admin/explain`, parsed member by member.
//!
//! A member of the wrong form is an error that names it. Unusual values that clients really send (a
//! strange host, a path that climbs above the root) are accepted: they are problem the question is
//! about.

use std::net::IpAddr;

use http::Uri;
use model::{HostName, Problem, has_private_key_armor};
use pki::Certificate;
use serde_json::{Map, Value};

/// A parsed question.
#[derive(Debug)]
pub(crate) struct ExplainQuery {
    /// The SNI of the ClientHello.
    pub sni: Option<HostName>,
    /// The client's chain: its certificate, then the intermediates it sends.
    pub chain: Option<Vec<Certificate>>,
    /// The request. `None`: only the handshake is explained.
    pub request: Option<RequestSpec>,
}

/// A request to explain.
#[derive(Debug)]
pub(crate) struct RequestSpec {
    /// The `Host` header or `:authority`.
    pub host: Option<String>,
    /// The request target: a path with or without query, or absolute.
    pub uri: Uri,
    /// As on the request line.
    pub method: String,
    pub remote: IpAddr,
}

/// Every known member.
const MEMBERS: [&str; 6] = ["sni", "host", "uri", "method", "remote_addr", "client_cert"];

/// Parses a question. `asker` is the default for `remote_addr`.
///
/// # Errors
/// The first invalid member.
pub(crate) fn parse(body: Option<Value>, asker: IpAddr) -> Result<ExplainQuery, Problem> {
    let members = match body {
        Some(Value::Object(members)) => members,
        None => return Err(invalid_member("", "no question was sent", EXPECTED)),
        Some(_) => return Err(invalid_member("", "the question is not a JSON object", EXPECTED)),
    };
    if let Some(unknown) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
        let problem = format!("there is no member {unknown:?}");
        return Err(invalid_member(unknown, &problem, &format!("members are {}", MEMBERS.join(", "))));
    }
    let sni = text(&members, "sni")?.map(|text| {
        HostName::from_sni(text).ok_or_else(|| {
            let problem = format!("sni: {text:?} is not a name that a ClientHello may carry");
            invalid_member(
                "sni",
                &problem,
                "expected a host name like www.example.com, without port or wildcard",
            )
        })
    });
    let chain = text(&members, "client_cert")?.map(|pem| {
        pki::certificates_from_pem(pem).map_err(|error| {
            let hint = "expected PEM: the client's certificate first, then the intermediates it sends; no private key";
            invalid_member("client_cert", &format!("client_cert: {error}"), hint)
        })
    });
    Ok(ExplainQuery { sni: sni.transpose()?, chain: chain.transpose()?, request: request(&members, asker)? })
}

const EXPECTED: &str = "expected e.g. {\"sni\": \"www.example.com\", \"uri\": \"/path\", \"client_cert\": \"-----BEGIN CERTIFICATE-----...\"}";

fn request(members: &Map<String, Value>, asker: IpAddr) -> Result<Option<RequestSpec>, Problem> {
    let (host, uri) = (text(members, "host")?, text(members, "uri")?);
    let (method, remote) = (text(members, "method")?, text(members, "remote_addr")?);
    if [host, uri, method, remote].iter().all(Option::is_none) {
        return Ok(None);
    }
    let written = uri.unwrap_or("/");
    let uri = written.parse::<Uri>().ok().filter(|uri| written == "*" || uri.path().starts_with('/'));
    let uri = uri.ok_or_else(|| {
        let problem = format!("uri: {written:?} is not a request target");
        invalid_member("uri", &problem, "expected a path like /a/b?c=d (percent-encoded), or an absolute URI")
    })?;
    let method = method.unwrap_or("GET");
    if http::Method::from_bytes(method.as_bytes()).is_err() {
        let problem = format!("method: {method:?} is not a method");
        return Err(invalid_member("method", &problem, "expected one like GET"));
    }
    let remote = match remote {
        None => asker,
        Some(text) => text.parse().map_err(|_| {
            invalid_member(
                "remote_addr",
                &format!("remote_addr: {text:?} is not an IP address"),
                "expected one like 192.0.2.1",
            )
        })?,
    };
    Ok(Some(RequestSpec { host: host.map(str::to_owned), uri, method: method.to_owned(), remote }))
}

/// A string member; `null` counts as absent.
fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Problem> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if has_private_key_armor(text) => Err(invalid_member(
            name,
            &format!("{name}: the text holds a private key"),
            "send certificates only; a private key that was sent over a network should be replaced",
        )),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid_member(name, &format!("{name}: not a string"), "expected a string")),
    }
}

fn invalid_member(field: &str, problem: &str, hint: &str) -> Problem {
    Problem::new(field, format!("invalid question: {problem}")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(body: Value) -> String {
        let asker = "192.0.2.1".parse().unwrap();
        let problem = parse(Some(body), asker).unwrap_err();
        assert!(problem.hint.is_some() && problem.message.contains(&problem.field), "{problem:?}");
        problem.field
    }

    #[test]
    fn invalid_members_are_named() {
        for (name, bad) in [
            ("sni", json!("*.a.com")),
            ("sni", json!("a..b")),
            ("sni", json!(1)),
            ("uri", json!("no-slash")),
            ("uri", json!("/a b")),
            ("uri", json!("")),
            ("method", json!("G T")),
            ("remote_addr", json!("localhost")),
            ("client_cert", json!("")),
            ("client_cert", json!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
            ("client_cert", json!("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")),
            ("host", json!("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")),
            ("host", json!([])),
            ("snI", json!("a")),
        ] {
            assert_eq!(field(json!({name: bad})), name);
        }
        assert_eq!(field(json!([])), "");
    }

    #[test]
    fn any_request_member_makes_a_request() {
        let asker = "192.0.2.1".parse().unwrap();
        assert!(parse(Some(json!({"sni": "a.com"})), asker).unwrap().request.is_none());
        let asked = parse(Some(json!({"uri": "https://b.com/x?y"})), asker).unwrap().request.unwrap();
        assert_eq!((asked.uri.path(), asked.method.as_str(), asked.remote), ("/x", "GET", asker));
        assert_eq!(parse(Some(json!({"host": "a"})), asker).unwrap().request.unwrap().uri.path(), "/");
    }
}
