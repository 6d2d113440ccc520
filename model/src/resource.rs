//! Typed resources: validated documents as both planes use them.
//!
//! Only `document::compile` and `wire::resource_from_wire` construct resources, and all other code
//! relies on their checks. Each resource is an [`Arc`], which snapshots share and on which a data
//! plane caches what it derives ([`CacheSlot`]). Invariant: private keys are never printed; `Debug`
//! of a [`KeyPair`] shows the certificate only.

mod blocked;
mod cache_slot;
mod method;
mod plugins;
mod reference;
mod rendered;
mod stream_route;
mod upstream_tls;

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub use blocked::Blocked;
pub use cache_slot::CacheSlot;
use ipnet::IpNet;
pub use method::{MethodSet, RouteMethod};
pub use plugins::{GlobalRule, PluginConfig};
pub use reference::{Reference, Referrers, references, referrers};
pub use stream_route::StreamRoute;
pub use upstream_tls::{UpstreamIdentity, UpstreamTls, VerifyPolicy};

use crate::client_identity::ClientIdentity;
use crate::expression::Vars;
use crate::id::{Id, Key, Kind};
use crate::pattern::{HostPattern, SniPattern};
use crate::proxy_rewrite::ProxyRewrite;
use crate::uri::UriPattern;

/// A resource of any kind. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// Certificates for names, or a client certificate for upstreams.
    Ssl(Arc<Ssl>),
    /// Nodes that requests are forwarded to, and how.
    Upstream(Arc<Upstream>),
    /// Settings that several routes share.
    Service(Arc<Service>),
    /// Plugins that several routes share.
    PluginConfig(Arc<PluginConfig>),
    /// Matches requests and selects an upstream.
    Route(Arc<Route>),
    /// Matches TCP connections and selects an upstream.
    StreamRoute(Arc<StreamRoute>),
    /// Plugins of all requests.
    GlobalRule(Arc<GlobalRule>),
}

impl Resource {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Resource::Ssl(_) => Kind::Ssl,
            Resource::Upstream(_) => Kind::Upstream,
            Resource::Service(_) => Kind::Service,
            Resource::PluginConfig(_) => Kind::PluginConfig,
            Resource::Route(_) => Kind::Route,
            Resource::StreamRoute(_) => Kind::StreamRoute,
            Resource::GlobalRule(_) => Kind::GlobalRule,
        }
    }

    /// The id.
    pub fn id(&self) -> &Id {
        match self {
            Resource::Ssl(ssl) => &ssl.id,
            Resource::Upstream(upstream) => upstream.id.as_ref().unwrap_or(&NAMELESS),
            Resource::Service(service) => &service.id,
            Resource::PluginConfig(config) => &config.id,
            Resource::Route(route) => &route.id,
            Resource::StreamRoute(route) => &route.id,
            Resource::GlobalRule(rule) => &rule.id,
        }
    }

    /// The kind and id.
    pub fn key(&self) -> Key {
        Key::new(self.kind(), self.id().clone())
    }

    /// The upstream that it is or contains.
    pub fn own_upstream(&self) -> Option<&Arc<Upstream>> {
        let target = match self {
            Resource::Upstream(upstream) => return Some(upstream),
            Resource::Service(service) => service.upstream.as_ref()?,
            Resource::Route(route) => route.upstream.as_ref()?,
            Resource::StreamRoute(route) => route.upstream.as_ref()?,
            Resource::Ssl(_) | Resource::PluginConfig(_) | Resource::GlobalRule(_) => return None,
        };
        match target {
            UpstreamRef::Inline(upstream) => Some(upstream),
            UpstreamRef::Id(_) => None,
        }
    }

    /// The same resource under another id.
    #[must_use]
    pub fn with_id(&self, id: Id) -> Resource {
        match self {
            Resource::Ssl(ssl) => Resource::Ssl(Arc::new(Ssl { id, ..(**ssl).clone() })),
            Resource::Upstream(upstream) => {
                Resource::Upstream(Arc::new(Upstream { id: Some(id), ..(**upstream).clone() }))
            }
            Resource::Service(service) => Resource::Service(Arc::new(Service { id, ..(**service).clone() })),
            Resource::PluginConfig(config) => {
                Resource::PluginConfig(Arc::new(PluginConfig { id, ..(**config).clone() }))
            }
            Resource::Route(route) => Resource::Route(Arc::new(Route { id, ..(**route).clone() })),
            Resource::StreamRoute(route) => {
                Resource::StreamRoute(Arc::new(StreamRoute { id, ..(**route).clone() }))
            }
            Resource::GlobalRule(rule) => {
                Resource::GlobalRule(Arc::new(GlobalRule { id, ..(**rule).clone() }))
            }
        }
    }

    /// Whether both are the same object in memory, a cheap test for "unchanged".
    pub fn ptr_eq(&self, other: &Resource) -> bool {
        match (self, other) {
            (Resource::Ssl(a), Resource::Ssl(b)) => Arc::ptr_eq(a, b),
            (Resource::Upstream(a), Resource::Upstream(b)) => Arc::ptr_eq(a, b),
            (Resource::Service(a), Resource::Service(b)) => Arc::ptr_eq(a, b),
            (Resource::PluginConfig(a), Resource::PluginConfig(b)) => Arc::ptr_eq(a, b),
            (Resource::Route(a), Resource::Route(b)) => Arc::ptr_eq(a, b),
            (Resource::StreamRoute(a), Resource::StreamRoute(b)) => Arc::ptr_eq(a, b),
            (Resource::GlobalRule(a), Resource::GlobalRule(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// The id of an inline upstream as a resource, which no constructor creates.
static NAMELESS: LazyLock<Id> = LazyLock::new(Id::nameless);

/// Certificates with keys, the names that they are for, and the client policy of these names. The
/// data plane calls an ssl that is not `client_side` a site.
#[derive(Debug, Clone, PartialEq)]
pub struct Ssl {
    /// The id.
    pub id: Id,
    /// `type: client`: a client certificate for upstreams, which matches no SNI.
    pub client_side: bool,
    /// The configured names without duplicates; empty only if `client_side`.
    pub names: Vec<SniPattern>,
    /// At least one unless the ssl is blocked: `cert`/`key`, then `certs[i]`/`keys[i]`.
    pub pairs: Vec<KeyPair>,
    /// The client policy; `None` requests no client certificate.
    pub client: Option<Arc<pki::ClientAuth>>,
    /// The TLS versions of this site; `None` uses those of the listener.
    pub versions: Option<Vec<TlsVersion>>,
    /// `status`. A disabled ssl matches no name, but upstreams may use it as a client certificate
    /// (contract 6.1).
    pub enabled: bool,
    /// Cached by the data plane.
    pub cache: CacheSlot,
    /// Set if the resource is blocked ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

impl Ssl {
    /// An enabled ssl of type server without names and certificates; every other field has the
    /// value of a document that lacks it.
    pub fn new(id: Id) -> Ssl {
        Ssl {
            id,
            client_side: false,
            names: Vec::new(),
            pairs: Vec::new(),
            client: None,
            versions: None,
            enabled: true,
            cache: CacheSlot::new(),
            blocked: None,
        }
    }

    /// Whether it has a client policy, or is blocked, so that its document may ask for one.
    pub fn may_demand_clients(&self) -> bool {
        self.client.is_some() || self.blocked.is_some()
    }
}

/// A certificate chain and the private key of its leaf.
#[derive(Clone)]
pub struct KeyPair {
    /// At least one certificate, leaf first.
    pub chain: Vec<pki::Certificate>,
    /// The private key of the leaf.
    pub key: Arc<pki::PrivateKey>,
}

impl KeyPair {
    /// The certificate of the key.
    pub fn leaf(&self) -> Option<&pki::Certificate> {
        self.chain.first()
    }
}

impl PartialEq for KeyPair {
    fn eq(&self, other: &KeyPair) -> bool {
        self.chain == other.chain
            && (Arc::ptr_eq(&self.key, &other.key)
                || self.key.format() == other.key.format()
                    && self.key.der().secret_der() == other.key.der().secret_der())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// A TLS protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLSv1.1, which needs the BoringSSL engine.
    V11,
    /// TLSv1.2
    V12,
    /// TLSv1.3
    V13,
}

impl TlsVersion {
    /// Whether data planes of this build serve the version.
    pub fn is_served(self) -> bool {
        self != TlsVersion::V11 || cfg!(feature = "engine-boring")
    }

    /// The spelling of nginx and APISIX.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsVersion::V11 => "TLSv1.1",
            TlsVersion::V12 => "TLSv1.2",
            TlsVersion::V13 => "TLSv1.3",
        }
    }
}

/// Nodes, and how to connect and send requests to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// `None` for an inline upstream of a route or service.
    pub id: Option<Id>,
    /// The protocol of its nodes.
    pub scheme: Scheme,
    /// May be empty, which answers 503.
    pub nodes: Vec<Node>,
    /// Retries after the first attempt; `None` is one for each other node.
    pub retries: Option<u32>,
    /// Bounds the time of all attempts; `None` is unlimited.
    pub retry_timeout: Option<Duration>,
    /// `None` is 60 seconds each.
    pub timeout: Option<Timeouts>,
    /// Selects the Host header and the TLS server name.
    pub pass_host: PassHost,
    /// The name of [`PassHost::Rewrite`].
    pub upstream_host: Option<String>,
    /// Limits of idle connections; `None` uses the settings file (nginx_config.http.upstream).
    pub keepalive: Option<KeepalivePool>,
    /// TLS settings, for the encrypted schemes.
    pub tls: UpstreamTls,
    /// Whether HTTP/2 is offered by ALPN; for [`Scheme::Https`] alone.
    pub http2: bool,
    /// Cached by the data plane.
    pub cache: CacheSlot,
    /// Set if the resource is blocked ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

/// The protocol between the gateway and an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP/1.1.
    Http,
    /// HTTP over TLS.
    Https,
    /// gRPC: HTTP/2 in clear, with prior knowledge.
    Grpc,
    /// gRPC: HTTP/2 over TLS.
    Grpcs,
    /// Plain TCP.
    Tcp,
    /// TCP over TLS.
    Tls,
}

impl Scheme {
    /// Every supported scheme.
    pub const ALL: [Scheme; 6] =
        [Scheme::Http, Scheme::Https, Scheme::Grpc, Scheme::Grpcs, Scheme::Tcp, Scheme::Tls];

    /// Parses the scheme of a document.
    pub fn parse(text: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == text)
    }

    /// The name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Grpc => "grpc",
            Scheme::Grpcs => "grpcs",
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
        }
    }

    /// Whether the upstream takes HTTP requests; the others take TCP connections only.
    pub fn is_http(self) -> bool {
        matches!(self, Scheme::Http | Scheme::Https) || self.is_grpc()
    }

    /// Whether requests are sent over HTTP/2 alone.
    pub fn is_grpc(self) -> bool {
        matches!(self, Scheme::Grpc | Scheme::Grpcs)
    }

    /// Whether connections are encrypted. A stream route treats `http` and `grpc` as `tcp`, and
    /// `https` and `grpcs` as `tls` (contract 6.5), so that it never sends in clear what was to be
    /// encrypted.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Grpcs | Scheme::Tls)
    }

    /// The port of a node without one. TCP has no default port.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Http | Scheme::Grpc => Some(80),
            Scheme::Https | Scheme::Grpcs => Some(443),
            Scheme::Tcp | Scheme::Tls => None,
        }
    }
}

/// A server of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// A host name or address; IPv6 in brackets.
    pub host: String,
    /// `None` is the default port of the scheme.
    pub port: Option<u16>,
    /// Share of the requests; a node with 0 gets none unless it is the only one (contract 8).
    pub weight: u32,
    /// Nodes of higher priority are tried first.
    pub priority: i32,
}

/// Timeouts of an upstream; none is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To get a connection, with TLS.
    pub connect: Duration,
    /// Between two successful writes.
    pub send: Duration,
    /// Between two successful reads.
    pub read: Duration,
}

/// The Host header that the upstream receives (contract 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassHost {
    /// The client's Host.
    Pass,
    /// The node's host.
    Node,
    /// `upstream_host`.
    Rewrite,
}

/// Limits of idle connections to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepalivePool {
    /// How many idle connections are kept.
    pub size: u32,
    /// How long an idle connection is kept; zero keeps none.
    pub idle_timeout: Duration,
    /// How many requests a connection carries before it is closed.
    pub requests: u32,
    /// How many connections to one node a worker may have open; `None` uses the settings file.
    pub max_connections: Option<u32>,
}

impl Default for KeepalivePool {
    /// The defaults of the schema (contract 3.2).
    fn default() -> KeepalivePool {
        KeepalivePool {
            size: 320,
            idle_timeout: Duration::from_secs(60),
            requests: 1000,
            max_connections: None,
        }
    }
}

/// Settings that several routes share.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// The id.
    pub id: Id,
    /// The hosts of routes without hosts of their own.
    pub hosts: Vec<HostPattern>,
    /// The upstream of routes without one.
    pub upstream: Option<UpstreamRef>,
    /// The block of routes without one.
    pub client_identity: Option<Arc<ClientIdentity>>,
    /// The plugin of routes without it.
    pub proxy_rewrite: Option<Arc<ProxyRewrite>>,
    /// Whether routes that do not say so forward WebSocket upgrades.
    pub enable_websocket: bool,
    /// Set if the resource is blocked ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

/// An upstream by id or inline.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamRef {
    /// `upstream_id`
    Id(Id),
    /// `upstream`
    Inline(Arc<Upstream>),
}

/// Matches requests and selects their upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The id.
    pub id: Id,
    /// At least one, without duplicates.
    pub uris: Vec<UriPattern>,
    /// If empty, the service's; if those are empty, too, every host.
    pub hosts: Vec<HostPattern>,
    /// If empty, every method.
    pub methods: MethodSet,
    /// If empty, every client address.
    pub remote_addrs: Vec<IpNet>,
    /// Routes of higher priority win among those of one path.
    pub priority: i32,
    /// `status`
    pub enabled: bool,
    /// Overrides the service's.
    pub upstream: Option<UpstreamRef>,
    /// The service, which supplies settings that the route lacks.
    pub service: Option<Id>,
    /// The plugin config, which supplies plugins that the route lacks.
    pub plugin_config: Option<Id>,
    /// Overrides the upstream's.
    pub timeout: Option<Timeouts>,
    /// A predicate on matching requests.
    pub vars: Vars,
    /// Replaces the service's.
    pub client_identity: Option<Arc<ClientIdentity>>,
    /// Replaces the one of the plugin config, and of the service.
    pub proxy_rewrite: Option<Arc<ProxyRewrite>>,
    /// Whether WebSocket upgrades are forwarded; `None` is the service's.
    pub enable_websocket: Option<bool>,
    /// Set if the resource is blocked ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}
