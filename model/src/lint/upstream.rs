//! Findings about upstreams: nodes, encryption, and whose servers are accepted.

use rustls_pki_types::UnixTime;

use super::certificate::{check_dates, check_key_pair};
use super::{Findings, LintSettings, Severity};
use crate::pattern::HostPattern;
use crate::resource::{
    PassHost, Resource, Route, Scheme, Upstream, UpstreamIdentity, UpstreamRef, VerifyPolicy,
};
use crate::snapshot::Snapshot;

/// What an upstream alone tells. `outer` is the path of an inline one.
pub(super) fn check_upstream(outer: &str, upstream: &Upstream, now: UnixTime, notes: &mut Findings) {
    let field = |inner: &str| format!("{outer}{inner}");
    let tls = &upstream.tls;
    if let Some(UpstreamIdentity::Inline(pair)) = &tls.identity {
        check_key_pair(&field("tls.client_cert"), pair, now, notes);
    }
    for (place, anchor) in (1..).zip(tls.anchors.iter().flat_map(|anchors| anchors.certificates())) {
        let hint = "replace it by its successor: servers below it are rejected once it has ended";
        check_dates(&field(&format!("tls.ca_certs[{place}]")), "anchor", anchor, now, hint, notes);
    }
    let has_tls = tls.identity.is_some() || tls.anchors.is_some() || tls.verifies(VerifyPolicy::WhereAsked);
    if !upstream.scheme.is_encrypted() && has_tls {
        let what = format!(
            "tls is configured, but the scheme is {}: nothing is encrypted",
            upstream.scheme.as_str()
        );
        let meant = match upstream.scheme {
            Scheme::Grpc | Scheme::Grpcs => "set scheme to grpcs",
            Scheme::Http | Scheme::Https => "set scheme to https",
            Scheme::Tcp | Scheme::Tls => "set scheme to tls",
        };
        notes.add(Severity::Error, field("tls"), what, meant);
    }
    if upstream.nodes.len() != 1 && upstream.nodes.iter().all(|node| node.weight == 0) {
        let what = "no node has a weight: every request gets a 503".to_owned();
        notes.add(Severity::Error, field("nodes"), what, "add a node");
    }
}

pub(super) fn check_upstream_ref(target: Option<&UpstreamRef>, now: UnixTime, notes: &mut Findings) {
    if let Some(UpstreamRef::Inline(upstream)) = target {
        check_upstream("upstream.", upstream, now, notes);
    }
}

/// Whether the servers of the upstream that a resource is or contains are verified, which the
/// settings may decide.
pub(super) fn check_verification(resource: &Resource, settings: LintSettings, notes: &mut Findings) {
    let Some(upstream) = resource.own_upstream().filter(|upstream| upstream.scheme.is_encrypted()) else {
        return;
    };
    if resource.blocked().is_some() || upstream.tls.verifies(settings.upstream_verify) {
        return;
    }
    let outer = if matches!(resource, Resource::Upstream(_)) { "" } else { "upstream." };
    let hint = "set tls.verify to true, with tls.ca_certs for an authority of your own";
    let off = upstream.tls.verify == Some(false);
    let (severity, what) = match off && settings.upstream_verify != VerifyPolicy::WhereAsked {
        true => (Severity::Warning, "the settings verify upstreams, and this one is excepted: "),
        false => (Severity::Notice, ""),
    };
    let what = format!("{what}any server at a node's address is accepted");
    notes.add(severity, format!("{outer}tls.verify"), what, hint);
    if upstream.tls.anchors.is_some() {
        let what = "they have no effect: the servers are not verified".to_owned();
        notes.add(Severity::Warning, format!("{outer}tls.ca_certs"), what, "set tls.verify to true");
    }
}

/// A route whose clients choose the name that its servers are verified for.
pub(super) fn check_server_name(
    route: &Route,
    snapshot: &Snapshot,
    settings: LintSettings,
    notes: &mut Findings,
) {
    let Ok(upstream) =
        crate::destination::resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())
    else {
        return;
    };
    let by_name = upstream.scheme.is_encrypted()
        && upstream.tls.verifies(settings.upstream_verify)
        && upstream.tls.verify_identity.is_none()
        && upstream.pass_host == PassHost::Pass;
    let hosts = snapshot.hosts(route);
    let is_wide = hosts.is_empty() || hosts.iter().any(|host| !matches!(host, HostPattern::Exact(_)));
    // A `Host` that the route sets is not the client's.
    let is_rewritten = [snapshot.proxy_rewrite(route), snapshot.global_rewrite()]
        .into_iter()
        .flatten()
        .any(|rewrite| rewrite.source().get("host").is_some());
    if by_name && is_wide && !is_rewritten {
        let what =
            "servers are verified for the Host of each request, which clients choose among the route's \
                    hosts"
                .to_owned();
        let hint = "list the hosts, or set pass_host to node or rewrite, or tls.verify_identity";
        notes.add(Severity::Notice, "upstream.pass_host", what, hint);
    }
}
