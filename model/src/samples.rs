//! Strategies for random resources. They have few ids, names and paths, so that they collide often,
//! and all features of documents, because the laws of deltas and of the wire format are tested with
//! them.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

use crate::client_identity::ClientIdentity;
use crate::expression::Vars;
use crate::id::Id;
use crate::pattern::NamePattern;
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::{
    Blocked, CacheSlot, GlobalRule, KeepalivePool, KeyPair, Node, PassHost, PluginConfig, Resource, Route,
    RouteMethod, Scheme, Service, Ssl, StreamRoute, Timeouts, TlsVersion, Upstream, UpstreamIdentity,
    UpstreamRef, UpstreamTls,
};
use crate::server_identity::ServerIdentity;
use crate::snapshot::Snapshot;
use crate::snapshot::Versioned;
use crate::uri::UriPattern;

fn served_versions() -> Vec<TlsVersion> {
    let all = [TlsVersion::V11, TlsVersion::V12, TlsVersion::V13];
    all.into_iter().filter(|version| version.is_served()).collect()
}

const PATTERNS: [&str; 10] =
    ["a.com", "b.a.com", "c.b.a.com", "x.com", "*.a.com", "*.com", "*a.com", "*.b.a.com", "*", "*b.a.com"];
const IDS: [&str; 4] = ["1", "10", "2", "x"];
const URIS: [&str; 11] =
    ["/", "/*", "/a", "/a*", "/a/*", "/a/b", "/a/b/*", "/ab", "/a/*/c", "/abc*", "/a/*/*/c"];
pub(crate) fn id(text: &str) -> Id {
    Id::parse(text).unwrap()
}

pub(crate) fn patterns(texts: &[&str]) -> Vec<NamePattern> {
    texts.iter().map(|text| NamePattern::parse(text).unwrap()).collect()
}

/// Created once: the indexes only need different pairs.
pub(crate) static PAIRS: LazyLock<[KeyPair; 2]> = LazyLock::new(|| {
    ["a.com", "b.com"].map(|name| {
        let issued = AUTHORITY.issue(&pki::ca::LeafSpec::server(name)).unwrap();
        KeyPair { key: Arc::new(issued.key().unwrap()), chain: issued.chain }
    })
});

pub(crate) static AUTHORITY: LazyLock<pki::ca::Authority> =
    LazyLock::new(|| pki::ca::Authority::root(&pki::ca::AuthoritySpec::new("Test CA")).unwrap());

fn some_client() -> impl Strategy<Value = Arc<pki::ClientAuth>> {
    (0..3_u32, subsequence(vec!["^/health$", "^/public/"], 0..=2)).prop_map(|(depth, patterns)| {
        let input = pki::ClientAuthInput {
            anchors: vec![AUTHORITY.certificate().clone()],
            depth,
            skip_uri_patterns: patterns.into_iter().map(str::to_owned).collect(),
            ..Default::default()
        };
        Arc::new(pki::ClientAuth::new(input).unwrap())
    })
}

fn some_patterns(least: usize, most: usize) -> impl Strategy<Value = Vec<NamePattern>> {
    subsequence(PATTERNS.to_vec(), least..=most).prop_map(|texts| patterns(&texts))
}

fn some_id() -> impl Strategy<Value = Id> {
    select(IDS.to_vec()).prop_map(id)
}

fn some_time() -> impl Strategy<Value = Duration> {
    select(vec![1, 999, 60_000]).prop_map(Duration::from_millis)
}

prop_compose! {
    fn some_timeouts()(connect in some_time(), send in some_time(), read in some_time()) -> Timeouts {
        Timeouts { connect, send, read }
    }
}

prop_compose! {
    fn some_ssl()(
        own in some_id(), names in some_patterns(1, 3), client_side in prop::bool::weighted(0.1),
        enabled in prop::bool::weighted(0.9), pairs in subsequence(vec![0, 1], 1..=2),
        client in option::of(some_client()),
        versions in option::of(subsequence(served_versions(), 1..=2)),
    ) -> Resource {
        let pairs = pairs.into_iter().map(|pair: usize| PAIRS[pair].clone()).collect();
        let cache = CacheSlot::new();
        let blocked = None;
        Resource::Ssl(Arc::new(Ssl { id: own, client_side, names, pairs, client, versions, enabled, cache, blocked }))
    }
}

prop_compose! {
    fn some_node()(
        host in select(vec!["a.com", "127.0.0.1", "[::1]"]), port in option::of(1..=u16::MAX),
        weight in 0..3_u32, priority in -1..2_i32,
    ) -> Node {
        Node { host: host.to_owned(), port, weight, priority }
    }
}

prop_compose! {
    fn some_tls()(
        identity in option::of((any::<bool>(), some_id())), verify in any::<Option<bool>>(),
        anchors in prop::bool::weighted(0.2), dns in option::weighted(0.2, select(PATTERNS[..3].to_vec())),
    ) -> UpstreamTls {
        let identity = identity.map(|(inline, id)| match inline {
            true => UpstreamIdentity::Inline(PAIRS[0].clone()),
            false => UpstreamIdentity::Ssl(id),
        });
        let authority = vec![AUTHORITY.certificate().clone()];
        UpstreamTls {
            identity, verify,
            anchors: anchors.then(|| Arc::new(pki::TrustAnchors::new(authority).unwrap())),
            verify_identity: dns.map(|dns| Arc::new(ServerIdentity::compile(&json!([{"dns": dns}])).unwrap())),
        }
    }
}

prop_compose! {
    fn upstream_with(id: Option<Id>)(
        scheme in select(Scheme::ALL.to_vec()), nodes in prop::collection::vec(some_node(), 0..3),
        retries in option::of(0..3_u32), retry_timeout in option::of(some_time()),
        timeout in option::of(some_timeouts()), rewrite in any::<bool>(),
        idle in option::of(prop_oneof![Just(Duration::ZERO), some_time()]),
        tls in some_tls(), http2 in any::<bool>(), max_connections in option::of(1..3_u32),
    ) -> Upstream {
        let keepalive = |idle| KeepalivePool { idle_timeout: idle, max_connections, ..KeepalivePool::default() };
        Upstream {
            id: id.clone(), scheme, nodes, retries, retry_timeout, timeout,
            pass_host: if rewrite { PassHost::Rewrite } else { PassHost::Node },
            upstream_host: rewrite.then(|| "up.a.com:8443".to_owned()),
            keepalive: idle.map(keepalive), tls, http2, cache: CacheSlot::new(), blocked: None,
        }
    }
}

fn some_upstream() -> BoxedStrategy<Resource> {
    some_id()
        .prop_flat_map(|id| upstream_with(Some(id)))
        .prop_map(|upstream| Resource::Upstream(Arc::new(upstream)))
        .boxed()
}

/// Boxed, as the strategies around it would not fit a test's stack.
fn some_target() -> BoxedStrategy<Option<UpstreamRef>> {
    let inline = upstream_with(None).prop_map(|upstream| UpstreamRef::Inline(Arc::new(upstream)));
    option::of(prop_oneof![some_id().prop_map(UpstreamRef::Id), inline]).boxed()
}

type Blocks = (Option<Arc<ClientIdentity>>, Option<Arc<ProxyRewrite>>);

fn some_blocks() -> impl Strategy<Value = Blocks> {
    let identity = select(vec![
        json!({"allow": [{"dns": "*.a.com"}, {"serial": "0A", "issuer": "CN=x"}]}),
        json!({"forward": ["xfcc", "xfcc_chain"]}),
    ]);
    let rewrite = select(vec![
        json!({"uri": "/x?y=$arg_y", "headers": {"X-A": "${arg_b ?? c}"}}),
        json!({"regex_uri": ["^/(a)", "/$1"], "headers": {"add": {"X-A": 1}, "remove": ["X-B"]}}),
    ]);
    let identity = identity.prop_map(|source| Arc::new(ClientIdentity::compile(&source).unwrap()));
    let rewrite = rewrite.prop_map(|source| Arc::new(ProxyRewrite::compile(&source).unwrap()));
    (option::of(identity), option::of(rewrite))
}

prop_compose! {
    fn some_service()(
        own in some_id(), hosts in some_patterns(0, 2), upstream in some_target(), blocks in some_blocks(),
        enable_websocket in any::<bool>(),
    ) -> Resource {
        let (client_identity, proxy_rewrite) = blocks;
        let blocked = None;
        Resource::Service(Arc::new(Service {
            id: own, hosts, upstream, client_identity, proxy_rewrite, enable_websocket, blocked,
        }))
    }
}

prop_compose! {
    fn some_route()(
        own in some_id(), hosts in some_patterns(0, 2), uris in subsequence(URIS.to_vec(), 1..=4),
        methods in subsequence(RouteMethod::ALL.to_vec(), 0..=2), local in prop::bool::weighted(0.2),
        priority in -1..2_i32, enabled in prop::bool::weighted(0.9), service in option::of(some_id()),
        upstream in some_target(), timeout in option::of(some_timeouts()), blocks in some_blocks(),
        plugin_config in option::weighted(0.3, some_id()), enable_websocket in any::<Option<bool>>(),
    ) -> Resource {
        let (client_identity, proxy_rewrite) = blocks;
        Resource::Route(Arc::new(Route {
            client_identity, proxy_rewrite, enable_websocket, plugin_config, vars: Vars::default(), blocked: None,
            id: own, hosts, priority, enabled, service, upstream, timeout,
            uris: uris.iter().map(|uri| UriPattern::parse(uri).unwrap()).collect(),
            methods: methods.into_iter().collect(),
            remote_addrs: if local { vec!["127.0.0.0/8".parse().unwrap()] } else { vec![] },
        }))
    }
}

prop_compose! {
    fn some_stream_route()(
        own in some_id(), snis in some_patterns(0, 2), tls_passthrough in prop::bool::weighted(0.2), local in prop::bool::weighted(0.2),
        server in prop::bool::weighted(0.2), server_port in option::weighted(0.3, 9100..9102_u16),
        service in option::of(some_id()), upstream in some_target(),
    ) -> Resource {
        Resource::StreamRoute(Arc::new(StreamRoute {
            id: own, snis, tls_passthrough, server_port, service, upstream, blocked: None,
            remote_addr: local.then(|| "127.0.0.0/8".parse().unwrap()),
            server_addr: server.then(|| "192.0.2.80/32".parse().unwrap()),
        }))
    }
}

fn some_plugin_config() -> impl Strategy<Value = Resource> {
    (some_id(), some_blocks()).prop_map(|(id, (_, proxy_rewrite))| {
        Resource::PluginConfig(Arc::new(PluginConfig { id, proxy_rewrite, blocked: None }))
    })
}

fn some_global_rule() -> impl Strategy<Value = Resource> {
    (some_id(), some_blocks()).prop_map(|(id, (_, proxy_rewrite))| {
        Resource::GlobalRule(Arc::new(GlobalRule { id, proxy_rewrite, blocked: None }))
    })
}

/// The same resource, blocked.
pub(crate) fn block(resource: Resource) -> Resource {
    let blocked = Some(Blocked::new("who knows what it wants"));
    match resource {
        Resource::Ssl(ssl) => Resource::Ssl(Arc::new(Ssl { blocked, pairs: Vec::new(), ..(*ssl).clone() })),
        Resource::Upstream(upstream) => {
            Resource::Upstream(Arc::new(Upstream { blocked, ..(*upstream).clone() }))
        }
        Resource::Service(service) => Resource::Service(Arc::new(Service { blocked, ..(*service).clone() })),
        Resource::PluginConfig(config) => {
            Resource::PluginConfig(Arc::new(PluginConfig { blocked, ..(*config).clone() }))
        }
        Resource::Route(route) => Resource::Route(Arc::new(Route { blocked, ..(*route).clone() })),
        Resource::StreamRoute(route) => {
            Resource::StreamRoute(Arc::new(StreamRoute { blocked, ..(*route).clone() }))
        }
        Resource::GlobalRule(rule) => {
            Resource::GlobalRule(Arc::new(GlobalRule { blocked, ..(*rule).clone() }))
        }
    }
}

/// Any resource in one of three versions, blocked or not.
pub(crate) fn some_versioned() -> impl Strategy<Value = Versioned> {
    let resource = prop_oneof![
        some_ssl(),
        some_upstream(),
        some_service(),
        some_plugin_config(),
        some_route(),
        some_stream_route(),
        some_global_rule()
    ];
    (1..4_u64, resource, prop::bool::weighted(0.1)).prop_map(|(revision, resource, blocked)| Versioned {
        version: revision,
        resource: if blocked { block(resource) } else { resource },
    })
}

/// A snapshot of up to two dozen resources, whose ids overlap with those of other snapshots.
pub(crate) fn some_snapshot() -> impl Strategy<Value = Snapshot> {
    (0..9_u64, prop::collection::vec(some_versioned(), 0..24))
        .prop_map(|(revision, resources)| Snapshot::from_resources(revision, resources))
}
