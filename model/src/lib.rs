//! What a resource means. Both planes use this crate, so what the Admin API checks IS what a data
//! plane serves: an accepted document is a checked resource, and no data plane has a reason to
//! refuse it.
//!
//! The walk through the crate: [`document`] (Admin JSON; [`mod@adopt`]: what another program
//! stored) -> [`resource`] (checked, typed) -> [`snapshot`] (all of them, immutable, with the
//! lookups of the hot path) -> [`delta`] (what changed) -> [`wire`] (as protobuf, and back). What a
//! request meets is decided here too, for the data plane to act on and the control plane to
//! explain: [`target`] -> [`admission`] -> [`destination`], or else an [`outcome`].
//! No IO, no clock: time is always a parameter.

#![warn(missing_docs)]

pub mod id;
pub mod json;
pub mod network;
pub mod problem;
pub mod redact;

pub mod host_name;
pub mod pattern;
pub mod uri;

pub mod client_identity;
pub mod expression;
pub mod proxy_rewrite;
pub mod template;
pub mod variable;

pub mod document;
mod dots;
pub mod extension;
pub mod resource;
pub mod stored_document;

pub mod delta;
pub mod lint;
pub mod losses;
pub mod snapshot;
pub mod tickets;
pub mod weakening;
pub mod wire;

pub mod admission;
pub mod destination;
pub mod raw_path;
pub mod real_ip;
pub mod reason;
pub mod request_target;

mod host_index;
mod name_table;
mod path_tree;
mod route_index;
mod sni_index;
mod stream_index;

#[cfg(test)]
mod samples;

pub use client_identity::{ClientIdentity, ForwardedHeaders};
pub use delta::{Delta, Versioned};
pub use document::{ResolvedDocument, check_validity_period, compile, resolve_references, schema, validate};
pub use expression::Vars;
pub use host_name::HostName;
pub use id::{Id, Key, Kind};
pub use json::JsonError;
pub use losses::{Loss, Losses};
pub use pattern::{HostPattern, NamePattern, SniPattern};
pub use problem::{Problem, ProblemKind};
pub use proxy_rewrite::ProxyRewrite;
pub use real_ip::RealIp;
pub use reason::Reason;
pub use redact::{has_private_key_armor, redact};
pub use request_target::{PathOptions, RequestTarget, RequestTargetError};
pub use resource::{
    Blocked, CacheSlot, GlobalRule, KeepalivePool, KeyPair, MethodSet, Node, PassHost, Reference, Resource,
    Route, RouteMethod, Scheme, Service, Ssl, StreamRoute, Timeouts, TlsVersion, Upstream, UpstreamIdentity,
    UpstreamRef, UpstreamTls, references,
};
pub use route_index::RouteQuery;
pub use snapshot::Snapshot;
pub use sni_index::SiteLookup;
pub use stored_document::{
    CompileOutcome, SalvagedDocument, compile_salvaged, compile_stored, stored_with_problem,
};
pub use stream_index::StreamQuery;
pub use template::Template;
pub use tickets::{TicketRing, TicketSecret};
pub use uri::UriPattern;
pub use variable::{NoVariables, Variable, Variables};
pub use weakening::{Weakening, removal_weakenings, weakenings};
