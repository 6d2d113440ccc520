//! The resources of the gateway, as both planes use them: what the Admin API accepts is what a data
//! plane can serve, because both run this code.
//!
//! Documents (Admin JSON) become resources by [`compile`], or by
//! [`compile_stored`] if another program wrote them to the store. A [`Snapshot`]
//! holds all resources of one revision with the lookups of the hot path, a [`Delta`] leads from one
//! snapshot to the next, and [`wire`] converts both to protobuf. Decisions about requests are made
//! here, too, so that the explain API gives the data plane's answer: [`RequestTarget`] normalizes
//! host and path, [`admission::admit`] authorizes them, [`destination::find`] selects route and
//! upstream, and a [`Reason`] tells why one of them failed.
//!
//! The modules below are in the order of their imports: a module uses only those before it. There
//! is no IO and no clock: time is a parameter.

#![warn(missing_docs)]

mod redact;

pub mod json;
pub mod network;
mod problem;
mod real_ip;

mod dots;
mod host_name;
mod id;
pub mod passthrough;
mod pattern;
mod uri;

mod expression;
pub mod request_target;
mod template;
mod variable;

mod schema;

mod client_identity;
mod plugin;
mod proxy_rewrite;
mod server_identity;

mod resource;
pub mod tickets;

mod name_table;

mod host_index;
mod path_tree;

mod route_index;
mod sni_index;
mod stream_index;

mod snapshot;

mod expiry;

pub mod reason;

pub mod admission;
pub mod destination;
pub mod raw_path;

pub mod lint;
mod losses;
mod weakening;

mod document;
pub mod extension;
mod stored_document;
pub mod wire;

#[cfg(test)]
mod samples;

pub use client_identity::{ClientIdentity, ForwardedHeaders};
pub use document::{
    ResolvedDocument, check_validity_period, compile, drop_unsigned_crls, invalid_configuration,
    resolve_references,
};
pub use expiry::{Expiring, Expiry, ExpiryKind, ExpirySummary, KindExpiry, visit_expiring};
pub use expression::Vars;
pub use host_name::HostName;
pub use id::{Id, Key, Kind};
pub use losses::{Loss, Losses};
pub use pattern::{HostPattern, NamePattern, SniPattern};
pub use plugin::{Plugin, PluginEffect, plugin, plugin_warnings, plugins};
pub use problem::{Problem, ProblemKind};
pub use proxy_rewrite::{HeaderRewrite, ProxyRewrite, UriRewrite, UriTemplate};
pub use real_ip::RealIp;
pub use reason::Reason;
pub use redact::{has_private_key_armor, redact, truncated};
pub use request_target::{PathOptions, RequestTarget, RequestTargetError};
pub use resource::{
    Blocked, CacheSlot, GlobalRule, KeepalivePool, KeyPair, MethodSet, Node, PassHost, PluginConfig,
    Reference, Referrers, Resource, Route, RouteMethod, Scheme, Service, Ssl, StreamRoute, Timeouts,
    TlsVersion, Upstream, UpstreamIdentity, UpstreamRef, UpstreamTls, VerifyPolicy, references, referrers,
};
pub use route_index::RouteQuery;
pub use schema::{json_schema, lua_type, validate};
pub use server_identity::ServerIdentity;
pub use snapshot::{Delta, Snapshot, Versioned};
pub use sni_index::SiteLookup;
pub use stored_document::{
    CompileOutcome, SalvagedDocument, compile_salvaged, compile_stored, stored_with_problem,
    with_readable_policy,
};
pub use stream_index::StreamQuery;
pub use template::{RenderedPart, Template};
pub use tickets::{TicketRing, TicketSecret};
pub use uri::UriPattern;
pub use variable::{NoVariables, Variable, Variables};
pub use weakening::{ChangeWeakenings, Weakening, removal_weakenings, weakenings, weakenings_of_change};
