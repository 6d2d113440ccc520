//! Stream routes: the contract's cases, and a direct implementation of its rules for the laws.

use super::*;
use crate::resource::StreamRoute;

fn stream_route(own: &str, sni: Option<&str>) -> StreamRoute {
    StreamRoute {
        id: id(own),
        snis: sni.map(|text| NamePattern::parse(text).unwrap()).into_iter().collect(),
        tls_passthrough: false,
        remote_addr: None,
        server_addr: None,
        server_port: None,
        upstream: None,
        service: None,
        blocked: None,
    }
}

fn streamed(routes: Vec<StreamRoute>) -> Snapshot {
    snapshot(routes.into_iter().map(|route| Resource::StreamRoute(Arc::new(route))).collect())
}

/// The route of a connection from `remote` to `server`; an empty `sni` is none.
#[track_caller]
fn streams<'a>(snapshot: &'a Snapshot, sni: &str, remote: &str, server: &str) -> Option<&'a str> {
    let sni = HostName::from_sni(sni);
    let (remote, server) = (remote.parse().unwrap(), server.parse().unwrap());
    let query = StreamQuery { sni: sni.as_ref(), remote, server };
    snapshot.find_stream_route(&query).map(|route| route.id.as_str())
}

const AT: &str = "192.0.2.80:9100";

#[test]
fn streams_match_exact_then_wildcard_then_nameless_routes() {
    let all = streamed(vec![
        stream_route("1", None),
        stream_route("2", Some("*")),
        stream_route("3", Some("*.test.com")),
        stream_route("4", Some("*.b.test.com")),
        stream_route("5", Some("A.test.com.")),
    ]);
    assert_eq!(streams(&all, "a.TEST.com", "127.0.0.1", AT), Some("5"));
    assert_eq!(streams(&all, "c.test.com", "127.0.0.1", AT), Some("3"));
    assert_eq!(streams(&all, "x.y.b.test.com", "127.0.0.1", AT), Some("4"));
    assert_eq!(streams(&all, "test.com", "127.0.0.1", AT), Some("2"));
    assert_eq!(streams(&all, "", "127.0.0.1", AT), Some("1"), "nothing but the nameless without a name");
}

#[test]
fn a_stream_route_with_other_addresses_is_skipped() {
    let from = |text: &str| Some(text.parse().unwrap());
    let all = streamed(vec![
        StreamRoute { remote_addr: from("127.0.0.2/32"), ..stream_route("1", Some("a.test.com")) },
        StreamRoute { remote_addr: from("127.0.0.1/32"), ..stream_route("4", Some("a.test.com")) },
        stream_route("2", Some("*.test.com")),
        StreamRoute { server_port: Some(9100), ..stream_route("5", None) },
        StreamRoute { server_addr: from("192.0.2.81/32"), ..stream_route("6", None) },
    ]);
    assert_eq!(streams(&all, "a.test.com", "127.0.0.1", AT), Some("4"));
    assert_eq!(streams(&all, "a.test.com", "::ffff:127.0.0.2", AT), Some("1"));
    assert_eq!(streams(&all, "a.test.com", "127.0.0.3", AT), Some("2"));
    assert_eq!(streams(&all, "", "127.0.0.3", AT), Some("5"));
    assert_eq!(streams(&all, "z.org", "127.0.0.3", "[::ffff:192.0.2.81]:9200"), Some("6"));
    assert_eq!(streams(&all, "z.org", "127.0.0.3", "192.0.2.80:9200"), None);
}

#[test]
fn stream_routes_match_in_key_order_and_are_removed() {
    for order in [["1", "10", "2"], ["2", "10", "1"]] {
        let all = streamed(order.iter().map(|own| stream_route(own, None)).collect());
        assert_eq!(streams(&all, "x", "127.0.0.1", AT), Some("1"));
        let removals = vec![key(Kind::StreamRoute, "1")];
        let without = all.apply(&Delta { from: 1, to: 2, upserts: vec![], removals });
        assert_eq!(streams(&without, "x", "127.0.0.1", AT), Some("10"));
        assert_eq!(streams(&all, "x", "127.0.0.1", AT), Some("1"), "the old snapshot did not change");
    }
}

/// Implements contract 7.4 directly, over all resources.
fn slow_stream_route(snapshot: &Snapshot, query: &StreamQuery<'_>) -> Option<Id> {
    let mut fitting = Vec::new();
    for held in snapshot.resources() {
        let Resource::StreamRoute(route) = &held.resource else { continue };
        let ranks = route.snis.iter().filter(|pattern| query.sni.is_some_and(|asked| pattern.matches(asked)));
        let ranks = ranks.map(|pattern| match pattern {
            NamePattern::Exact(_) => 0,
            NamePattern::Suffix(suffix) => 1000 - suffix.as_str().len(),
            NamePattern::Any => 1999,
        });
        let nameless = route.snis.is_empty().then_some(2000);
        let Some(rank) = ranks.chain(nameless).min() else { continue };
        let takes = route.remote_addr.is_none_or(|net| net.contains(&query.remote))
            && route.server_addr.is_none_or(|net| net.contains(&query.server.ip()))
            && route.server_port.is_none_or(|port| port == query.server.port());
        if takes {
            fitting.push((rank, route.id.clone()));
        }
    }
    fitting.into_iter().min().map(|(_, id)| id)
}

pub(super) fn check_streams(snapshot: &Snapshot, sni: Option<&HostName>) -> Result<(), TestCaseError> {
    for remote in ["192.0.2.1", "127.0.0.1"] {
        for server in ["192.0.2.80:9100", "192.0.2.80:9101", "127.0.0.1:9100", "[::1]:80"] {
            let (remote, server) = (remote.parse().unwrap(), server.parse().unwrap());
            let query = StreamQuery { sni, remote, server };
            let found = snapshot.find_stream_route(&query).map(|route| route.id.clone());
            prop_assert_eq!(found, slow_stream_route(snapshot, &query), "{:?}", query);
        }
    }
    Ok(())
}
