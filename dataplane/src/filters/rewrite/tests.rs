use http::request;
use model::PathOptions;
use model::admission::ClientVerification;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::filters::headers::{ConnectionHeaders, ForwardedContext, PeerTrust, prepare_request};
use crate::io::connection_info::{ConnectionInfo, ListenerProtocol};

fn rewritten(block: Value, uri: &str, headers: &[(&str, &str)]) -> Result<Parts, RewriteError> {
    let mut builder = request::Builder::new().uri(uri).header("host", "a.example");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let mut parts = builder.body(()).unwrap().into_parts().0;
    let path_options = PathOptions::default();
    let target =
        crate::http::request::parse_target(parts.version, &parts.uri, &parts.headers, path_options).unwrap();
    let info = ConnectionInfo::new(
        "192.0.2.7:1".parse().unwrap(),
        "10.0.0.1:9080".parse().unwrap(),
        ListenerProtocol::Http,
    );
    let connection = ConnectionHeaders::new(info.peer, 9080, false);
    let trust = PeerTrust::default();
    let context = ForwardedContext {
        connection: &connection,
        real_ip: None,
        has_trusted_addresses: false,
        trust,
        real_ip_header: None,
        authority: None,
    };
    prepare_request(&mut parts.headers, &context);
    let block = ProxyRewrite::compile(&block).unwrap();
    let context = RequestContext {
        parts: &parts,
        target: &target,
        info: &info,
        tls: None,
        client: &ClientVerification::NotRequested,
    };
    let evaluated = evaluate(&block, &context)?;
    let raw = parts.uri.clone().into_parts().path_and_query;
    let path = evaluated.apply(&mut parts).unwrap_or_else(|| path::forwarded_path(&target, raw).unwrap());
    parts.uri = path.into();
    Ok(parts)
}

fn uri(block: Value, uri: &str) -> Result<String, RewriteError> {
    rewritten(block, uri, &[]).map(|parts| parts.uri.to_string())
}

#[test]
fn a_template_rewrites_the_uri() {
    for (template, requested, expected) in [
        ("/new", "/old", "/new"),
        ("/new", "/old?a=1", "/new?a=1"),
        ("/new?b=2", "/old?a=1", "/new?b=2&a=1"),
        ("/pre$uri", "/a%20b/c%3Fd%25", "/pre/a%20b/c%3Fd%25"),
        ("$uri", "/", ""),
        ("/x?u=$uri", "/a&b=c", "/x?u=/a%26b%3Dc"),
        ("/x?u=$request_uri", "/a?b=%20c#", "/x?u=/a?b%3D%2520c&b=%20c"),
        ("/new", "/old?", "/new"),
        ("/100%/%41$uri", "/%25%FF%C3%A9", "/100%25/%41/%25%FF%C3%A9"),
        ("/x${arg_t ?? y}?z", "/", "/xy?z"),
        ("/pre$uri", "/a/../b%7C", "/pre/b%7C"),
        ("/x?$args", "/a?b=%20c", "/x?b=%20c&b=%20c"),
        ("/$arg_t/x", "/?t=a%2Fb%3Fc%23d", "/a/b%3Fc%23d/x?t=a%2Fb%3Fc%23d"),
        ("/$arg_t", "/?t=//evil.example/", "/evil.example/?t=//evil.example/"),
        ("/$arg_t", "/?t=%252e%252e", "/%252e%252e?t=%252e%252e"),
    ] {
        if template.starts_with('/') {
            assert_eq!(
                uri(json!({"uri": template}), requested).as_deref(),
                Ok(expected),
                "{template} {requested}"
            );
        } else {
            assert!(ProxyRewrite::compile(&json!({"uri": template})).is_err());
        }
    }
    for climbing in ["..", ".", "../admin", "x/../../y", "..;x", "..%5Cx", "a%0D%0AX:y", "%7F", "%00"] {
        let requested = format!("/?t={climbing}");
        let result = uri(json!({"uri": "/$arg_t/z"}), &requested);
        assert!(matches!(result, Err(RewriteError::InvalidPath { .. })), "{climbing}: {result:?}");
    }
}

#[test]
fn a_pattern_rewrites_the_uri() {
    let block = json!({"regex_uri": ["^/a/(.*)/b(x)?", "/n$2/$1", "^/c", "/d", "^/q/(.*)", "/r?v=$1", "^/s/", "/s2?left="]});
    for (requested, expected) in [
        ("/a/1%2F2/b/t?q=1", "/n/1/2/t?q=1"),
        ("/a/1/bx", "/nx/1"),
        ("/c/%20", "/d/%20"),
        ("/A/1/b", "/A/1/b"),
        ("/a/q%3Fz/b", "/n/q%3Fz"),
        ("/a/%FF/b", "/n/%FF"),
        ("/q/a=1&b/c%20d?x", "/r?v=a%3D1%26b/c%20d&x"),
        ("/q/%FF%2B", "/r?v=%FF%2B"),
        ("/s/t%2Bu?x", "/s2?left=t%2Bu&x"),
    ] {
        assert_eq!(uri(block.clone(), requested).as_deref(), Ok(expected), "{requested}");
    }
}

#[test]
fn headers_are_added_then_set_then_removed() {
    let block = json!({"headers": {
        "add": {"X-A": "2", "X-N": "n"}, "set": {"X-B": "$uri", "X-Empty": "$arg_none"}, "remove": ["X-C"]
    }});
    let sent =
        [("x-a", "1"), ("x-b", "old"), ("x_b", "other"), ("x-c", "1"), ("x_c", "2"), ("x-empty", "forged")];
    let headers = rewritten(block, "/p", &sent).unwrap().headers;
    assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(
        (&headers["x-n"], &headers["x-b"]),
        (&HeaderValue::from_static("n"), &HeaderValue::from_static("/p"))
    );
    for name in ["x_b", "x-c", "x_c", "x-empty"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[test]
fn identity_in_a_header_has_no_other_spelling() {
    for form in ["add", "set"] {
        let block = json!({"headers": {form: {"X-User": "$ssl_client_s_dn"}}});
        let sent =
            [("X-User", "CN=root"), ("x_user", "CN=root"), ("x.user", "CN=root"), ("x-users", "stays")];
        let headers = rewritten(block, "/", &sent).unwrap().headers;
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        left.retain(|name| !name.starts_with("x-forwarded-") && *name != "x-real-ip");
        assert_eq!(left, ["host", "x-users"], "{form}: no verified client, no header");
    }
}

#[test]
fn control_characters_in_a_header_are_rejected() {
    let block = json!({"headers": {"X-P": "$uri"}});
    let argument = json!({"headers": {"X-P": "$arg_t"}});
    for bad in ["a%0d%0aX-Admin:1", "%0a", "%7f", "%09"] {
        let result = uri(argument.clone(), &format!("/?t={bad}"));
        assert_eq!(result, Err(RewriteError::ControlCharacter("x-p".into())), "{bad}");
    }
    assert_eq!(rewritten(block.clone(), "/%C3%A9", &[]).unwrap().headers["x-p"].as_bytes(), "/é".as_bytes());
    assert_eq!(rewritten(block, "/%E9%FF", &[]).unwrap().headers["x-p"].as_bytes(), b"/\xe9\xff");
}

#[test]
fn the_clients_address_ends_x_forwarded_for() {
    for (block, expected) in [
        (json!({"set": {"X-Forwarded-For": "a"}}), "a, 192.0.2.7"),
        (json!({"set": {"X-Forwarded-For": ["a", "b"]}}), "a, b, 192.0.2.7"),
        (json!({"add": {"x-forwarded-for": "b"}}), "10.0.0.1, b, 192.0.2.7"),
        (json!({"remove": ["X-Forwarded-For"]}), "192.0.2.7"),
        (json!({"set": {"X-Forwarded-For": ""}}), "192.0.2.7"),
        (json!({"set": {"X-Real-IP": "a", "X-Forwarded-For": "b"}}), "b, 192.0.2.7"),
        (json!({"set": {"X-Other": "a"}}), "10.0.0.1, 192.0.2.7"),
        (json!({"set": {"X_Forwarded_For": "a"}}), "a, 192.0.2.7"),
        (json!({"add": {"X_Forwarded.For": "a"}}), "10.0.0.1, a, 192.0.2.7"),
        (json!({"remove": ["x_forwarded_for"]}), "192.0.2.7"),
        (json!({"set": {"X-Forwarded-For": "$http_x_forwarded_for"}}), "10.0.0.1, 192.0.2.7"),
        (json!({"set": {"X-Other": "$http_x_forwarded_for"}, "remove": ["X-Forwarded-For"]}), "192.0.2.7"),
    ] {
        let sent = [("x-forwarded-for", "10.0.0.1"), ("x_forwarded_for", "10.0.0.2")];
        let parts = rewritten(json!({"headers": block}), "/", &sent).unwrap();
        let named = |(name, _): &(&HeaderName, _)| headers::is_same_name(name.as_str(), "x-forwarded-for");
        let list: Vec<_> = parts.headers.iter().filter(named).map(|(_, value)| value).collect();
        assert_eq!(list, [expected], "{block}");
    }
}

#[test]
fn methods_and_lists_of_values_are_rewritten() {
    let block =
        json!({"method": "PROPFIND", "headers": {"add": {"A": ["1", 2]}, "set": {"B": ["$uri", "", "c"]}}});
    let parts = rewritten(block, "/p", &[("a", "0"), ("b", "old")]).unwrap();
    let values = |name: &str| parts.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    assert_eq!(parts.method, "PROPFIND");
    assert_eq!(
        (values("a"), values("b")),
        (
            vec!["0".parse().unwrap(), "1".parse().unwrap(), "2".parse().unwrap()],
            vec!["/p".parse().unwrap(), "c".parse().unwrap()]
        )
    );
}

proptest! {
    /// An argument is escaped, or the request rejected: it adds no segment and no argument.
    #[test]
    fn an_argument_adds_no_segment_and_no_argument(value in any::<String>()) {
        let argument = utf8_percent_encode(&value, NON_ALPHANUMERIC);
        let block = json!({"uri": "/fixed/$arg_t/end?u=$arg_t"});
        if let Ok(new) = uri(block, &format!("/?t={argument}")) {
            let (path, query) = new.split_once('?').unwrap();
            prop_assert!(path.starts_with("/fixed/") && path.ends_with("/end"));
            prop_assert_eq!(query.split('&').count(), 2);
            prop_assert!(new.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
            prop_assert!(!path.split('/').any(|segment| segment == ".."));
        }
    }
}
