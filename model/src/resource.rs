//! Checked, typed resources: what a document means once nothing about it is in doubt.
//!
//! Made in two places only, from a document (`document::check`) and from the wire
//! (`wire::resource_from_wire`); everything later relies on what those checked. Every resource is
//! behind an [`Arc`]: snapshots share them, and a data plane hangs what it prepared from one into
//! its [`Slot`]. Private keys are in here and nowhere printed: `Debug` of a [`KeyPair`] shows its
//! certificate's subject.

mod blocked;
mod cache_slot;
mod method;
mod reference;

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub use blocked::{Blocked, GlobalRule};
pub use cache_slot::CacheSlot;
use ipnet::IpNet;
pub use method::{MethodSet, RouteMethod};
pub use reference::{Reference, references};

use crate::client_identity::ClientIdentity;
use crate::expression::Vars;
use crate::id::{Id, Key, Kind};
use crate::pattern::{HostPattern, SniPattern};
use crate::proxy_rewrite::ProxyRewrite;
use crate::uri::UriPattern;

/// A resource of any kind. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// Certificates for names, or an identity for upstreams.
    Ssl(Arc<Ssl>),
    /// Where requests go.
    Upstream(Arc<Upstream>),
    /// What several routes have in common.
    Service(Arc<Service>),
    /// Which requests go where.
    Route(Arc<Route>),
    /// Which TCP connections go where.
    StreamRoute(Arc<StreamRoute>),
    /// What is done with every request.
    GlobalRule(Arc<GlobalRule>),
}

impl Resource {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Resource::Ssl(_) => Kind::Ssl,
            Resource::Upstream(_) => Kind::Upstream,
            Resource::Service(_) => Kind::Service,
            Resource::Route(_) => Kind::Route,
            Resource::StreamRoute(_) => Kind::StreamRoute,
            Resource::GlobalRule(_) => Kind::GlobalRule,
        }
    }

    /// Its id.
    pub fn id(&self) -> &Id {
        match self {
            Resource::Ssl(ssl) => &ssl.id,
            Resource::Upstream(upstream) => upstream.id.as_ref().unwrap_or(&NAMELESS),
            Resource::Service(service) => &service.id,
            Resource::Route(route) => &route.id,
            Resource::StreamRoute(route) => &route.id,
            Resource::GlobalRule(rule) => &rule.id,
        }
    }

    /// Its kind and id.
    pub fn key(&self) -> Key {
        Key::new(self.kind(), self.id().clone())
    }

    /// Whether both are the same object in memory (not only equal): a cheap "surely unchanged".
    pub fn ptr_eq(&self, other: &Resource) -> bool {
        match (self, other) {
            (Resource::Ssl(a), Resource::Ssl(b)) => Arc::ptr_eq(a, b),
            (Resource::Upstream(a), Resource::Upstream(b)) => Arc::ptr_eq(a, b),
            (Resource::Service(a), Resource::Service(b)) => Arc::ptr_eq(a, b),
            (Resource::Route(a), Resource::Route(b)) => Arc::ptr_eq(a, b),
            (Resource::StreamRoute(a), Resource::StreamRoute(b)) => Arc::ptr_eq(a, b),
            (Resource::GlobalRule(a), Resource::GlobalRule(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// The id of an inline upstream that somebody wrapped as a resource, which neither maker does.
static NAMELESS: LazyLock<Id> = LazyLock::new(Id::nameless);

/// Certificates with their keys, for which names they are shown, and who may connect to those
/// names.
#[derive(Debug, Clone, PartialEq)]
pub struct Ssl {
    /// Its id.
    pub id: Id,
    /// `type: client`: an identity to show to upstreams; never answers a ClientHello.
    pub client_side: bool,
    /// The names it answers to, as configured, without repetitions; empty only when `client_side`.
    pub names: Vec<SniPattern>,
    /// At least one unless it is blocked; `cert`/`key` first, then `certs[i]`/`keys[i]`.
    pub pairs: Vec<KeyPair>,
    /// Whom to let in. `None`: no client certificate is asked for.
    pub client: Option<Arc<pki::ClientAuth>>,
    /// The protocol versions of this site alone; `None`: the listener's.
    pub versions: Option<Vec<TlsVersion>>,
    /// `status`. A disabled one answers to no name, but still serves as an upstream identity
    /// (contract 6.1).
    pub enabled: bool,
    /// What the data plane made of it.
    pub prepared: CacheSlot,
    /// Why it is blocked, if it is ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

/// A certificate chain and the leaf's private key.
#[derive(Clone)]
pub struct KeyPair {
    /// Leaf first; at least one.
    pub chain: Vec<pki::Certificate>,
    /// The leaf's key.
    pub key: Arc<pki::PrivateKey>,
}

impl KeyPair {
    /// The certificate the key belongs to.
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
    /// TLSv1.1, only with the BoringSSL engine.
    V11,
    /// TLSv1.2
    V12,
    /// TLSv1.3
    V13,
}

impl TlsVersion {
    /// Whether data planes built like this program serve it.
    pub fn is_served(self) -> bool {
        self != TlsVersion::V11 || cfg!(feature = "engine-boring")
    }

    /// As nginx and APISIX write it.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsVersion::V11 => "TLSv1.1",
            TlsVersion::V12 => "TLSv1.2",
            TlsVersion::V13 => "TLSv1.3",
        }
    }
}

/// Where requests go, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// `None` when it was written inside a route or service.
    pub id: Option<Id>,
    /// What is spoken to it.
    pub scheme: Scheme,
    /// May be empty (then there is nobody to ask: 503).
    pub nodes: Vec<Node>,
    /// Extra tries after the first; `None`: one for each other node.
    pub retries: Option<u32>,
    /// Bound on the time of all tries together; `None`: none.
    pub retry_timeout: Option<Duration>,
    /// `None`: 60 seconds each.
    pub timeout: Option<Timeouts>,
    /// Which Host header (and with TLS which name) the upstream sees.
    pub pass_host: PassHost,
    /// The name for [`PassHost::Rewrite`].
    pub upstream_host: Option<String>,
    /// Limits of idle connections; `None`: the node's settings (nginx_config.http.upstream).
    pub keepalive: Option<KeepalivePool>,
    /// For the schemes within TLS.
    pub tls: UpstreamTls,
    /// What the data plane made of it.
    pub prepared: CacheSlot,
    /// Why it is blocked, if it is ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

/// How to talk to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP/1.1.
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// Whatever a stream's client says, in clear.
    Tcp,
    /// The same within TLS.
    Tls,
}

impl Scheme {
    /// Every scheme that is served.
    pub const ALL: [Scheme; 4] = [Scheme::Http, Scheme::Https, Scheme::Tcp, Scheme::Tls];

    /// The scheme as documents write it.
    pub fn parse(text: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == text)
    }

    /// As documents write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
        }
    }

    /// Whether HTTP requests can be sent there; the others take streams only.
    pub fn is_http(self) -> bool {
        matches!(self, Scheme::Http | Scheme::Https)
    }

    /// Whether the hop is within TLS. A stream reads `http` as `tcp` (contract 6.5), and `https` as
    /// `tls`: never in clear what was to be encrypted.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Tls)
    }

    /// The port of an HTTP request when a node has none. A stream has no port of its own.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Http => Some(80),
            Scheme::Https => Some(443),
            Scheme::Tcp | Scheme::Tls => None,
        }
    }
}

/// One server of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// A name or an address; IPv6 in brackets.
    pub host: String,
    /// `None`: the scheme's, which those of streams do not have.
    pub port: Option<u16>,
    /// Share of the requests; 0: none (unless it is the only node: contract 8).
    pub weight: u32,
    /// Higher ones are tried first.
    pub priority: i32,
}

/// How long each step may take; none is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To get a connection, TLS included.
    pub connect: Duration,
    /// Between two successful writes.
    pub send: Duration,
    /// Between two successful reads.
    pub read: Duration,
}

/// Which Host header the upstream sees (contract 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassHost {
    /// The client's.
    Pass,
    /// The node's.
    Node,
    /// `upstream_host`.
    Rewrite,
}

/// Limits of idle connections to one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepalivePool {
    /// How many stay open.
    pub size: u32,
    /// How long; zero: none stays open.
    pub idle_timeout: Duration,
    /// How many requests one carries before it is closed.
    pub requests: u32,
}

impl Default for KeepalivePool {
    /// The schema's defaults (contract 3.2).
    fn default() -> KeepalivePool {
        KeepalivePool { size: 320, idle_timeout: Duration::from_secs(60), requests: 1000 }
    }
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTls {
    /// What we prove ourselves with.
    pub identity: Option<UpstreamIdentity>,
    /// Whether the upstream must prove itself.
    pub verify: bool,
}

/// What we prove ourselves to an upstream with.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamIdentity {
    /// `client_cert` and `client_key`.
    Inline(KeyPair),
    /// `client_cert_id`: an ssl of `type: client`.
    Ssl(Id),
}

/// What several routes have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its id.
    pub id: Id,
    /// The hosts of its routes that name none themselves.
    pub hosts: Vec<HostPattern>,
    /// Where its routes go, unless they say it themselves.
    pub upstream: Option<UpstreamRef>,
    /// Which clients its routes let through and how they tell them on, unless they say it
    /// themselves.
    pub client_identity: Option<Arc<ClientIdentity>>,
    /// How its routes rewrite requests, unless they say it themselves.
    pub proxy_rewrite: Option<Arc<ProxyRewrite>>,
    /// Why it is blocked, if it is ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

/// An upstream by name or written in place.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamRef {
    /// `upstream_id`
    Id(Id),
    /// `upstream`
    Inline(Arc<Upstream>),
}

/// Which requests go where.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its id.
    pub id: Id,
    /// At least one, without repetitions.
    pub uris: Vec<UriPattern>,
    /// Empty: the service's; without such, all.
    pub hosts: Vec<HostPattern>,
    /// Empty: all.
    pub methods: MethodSet,
    /// Empty: all.
    pub remote_addrs: Vec<IpNet>,
    /// Among the routes of one path, higher ones are asked first.
    pub priority: i32,
    /// `status`
    pub enabled: bool,
    /// Overrides the service's.
    pub upstream: Option<UpstreamRef>,
    /// The service that fills what the route leaves open.
    pub service: Option<Id>,
    /// Overrides the upstream's.
    pub timeout: Option<Timeouts>,
    /// What else must hold for a request to be this route's.
    pub vars: Vars,
    /// Replaces the service's.
    pub client_identity: Option<Arc<ClientIdentity>>,
    /// Replaces the service's.
    pub proxy_rewrite: Option<Arc<ProxyRewrite>>,
    /// Why it is blocked, if it is ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}

/// Which TCP connections go where. What it does not name, it takes any of.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRoute {
    /// Its id.
    pub id: Id,
    /// The names asked for in TLS; `None`: any, and connections without TLS.
    pub sni: Option<SniPattern>,
    /// The client's address.
    pub remote_addr: Option<IpNet>,
    /// The address that the client reached.
    pub server_addr: Option<IpNet>,
    /// The port that it reached.
    pub server_port: Option<u16>,
    /// Overrides the service's.
    pub upstream: Option<UpstreamRef>,
    /// The service that fills what the route leaves open.
    pub service: Option<Id>,
    /// Why it is blocked, if it is ([`Resource::blocked`]).
    pub blocked: Option<Blocked>,
}
