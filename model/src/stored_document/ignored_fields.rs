//! Strips the fields of a stored document that the gateway can ignore safely, and reports each as a
//! finding.
//!
//! Only fields that neither protect traffic nor decide its destination and encryption may be
//! ignored. The list is closed: an unlisted unsupported field stays in the document and blocks it.
//! Unknown plugins that are not on the list are stripped, too, but only so that
//! [`Stripped::unknown_plugins`] can name them: a document with one is never served.

use serde_json::{Map, Value};

use crate::document::fields::{flag, is_set, string};
use crate::id::Kind;
use crate::lint::{Finding, Findings, Severity};
use crate::plugin::{NO_EFFECT, PROXY_REWRITE, is_disabled, is_observer, observers};

/// Plugins that change a request or response in a way that neither denies nor redirects it: a route
/// is as safe without them. The Admin API refuses them, because their effect is missing.
///
/// A plugin that is neither here nor in the table of plugins may deny, change or redirect requests
/// in some version, and blocks. So do rate limits (`limit-*`), caches (`proxy-cache`) and plugins
/// that change the client's address (`real-ip`).
const HARMLESS_PLUGINS: [&str; 3] = ["request-id", "brotli", "gzip"];

/// A document without its ignored fields.
pub(super) struct Stripped {
    /// The remaining document.
    pub document: Value,
    /// Findings about the stripped fields that are safe to ignore.
    pub ignored: Vec<Finding>,
    /// Names of the stripped plugins that are not safe to ignore.
    pub unknown_plugins: Vec<String>,
}

/// Splits a document into the part to compile and the findings about the rest.
pub(super) fn strip_ignored(kind: Kind, mut document: Value, mut notes: Findings) -> Stripped {
    let mut foreign = Vec::new();
    if let Some(members) = document.as_object_mut() {
        match kind {
            Kind::Ssl => strip_ssl(members, &mut notes),
            Kind::Upstream => strip_upstream("", members, &mut notes),
            Kind::Service | Kind::PluginConfig | Kind::Route | Kind::StreamRoute | Kind::GlobalRule => {
                foreign = strip_plugins(kind, members, &mut notes);
                if let Some(upstream) = members.get_mut("upstream").and_then(Value::as_object_mut) {
                    strip_upstream("upstream.", upstream, &mut notes);
                }
            }
        }
    }
    Stripped { document, ignored: notes.findings, unknown_plugins: foreign }
}

/// Reports a field that the served resource lacks.
fn note_ignored(notes: &mut Findings, field: impl Into<String>, what: &str, hint: &str) {
    notes.add(Severity::Warning, field, format!("stored by another program, and not served: {what}"), hint);
}

fn strip_ssl(members: &mut Map<String, Value>, notes: &mut Findings) {
    // Old versions of APISIX stored the validity period, which the certificate contains anyway.
    for descriptive in ["validity_start", "validity_end"] {
        members.remove(descriptive);
    }
    if let Some(stapling) = members.remove("ocsp_stapling")
        && flag(&stapling, "enabled") == Some(true)
    {
        let hint = "clients that require one will reject the certificate";
        note_ignored(notes, "ocsp_stapling", "no OCSP response is stapled", hint);
    }
}

fn strip_upstream(outer: &str, members: &mut Map<String, Value>, notes: &mut Findings) {
    let mut whole = Value::Object(std::mem::take(members));
    if is_set(&whole, "checks") {
        let hint = "a failing node is retried on the next one";
        note_ignored(notes, format!("{outer}checks"), "nodes are not checked before they fail", hint);
    }
    let balancer = string(&whole, "type").filter(|kind| *kind != "roundrobin").map(str::to_owned);
    if let Some(balancer) = &balancer {
        let what = format!("the balancer {balancer} is not there, roundrobin takes its place");
        note_ignored(notes, format!("{outer}type"), &what, "expect the requests of one client at any node");
    }
    // The default of an APISIX before 3.19, which stores it in every upstream with `tls`.
    let tls = whole.get_mut("tls").and_then(Value::as_object_mut);
    if let Some(tls) = tls.filter(|tls| tls.contains_key("verify_identity"))
        && tls.get("verify") == Some(&Value::Bool(false))
    {
        tls.remove("verify");
        let hint = "remove it, or remove tls.verify_identity";
        note_ignored(notes, format!("{outer}tls.verify"), "tls.verify_identity verifies all the same", hint);
    }
    if let Value::Object(rest) = &mut whole {
        rest.remove("checks");
        rest.get_mut("nodes").map(bracket_ipv6_hosts);
        if balancer.is_some() {
            rest.retain(|name, _| !matches!(name.as_str(), "type" | "hash_on" | "key"));
        }
        *members = std::mem::take(rest);
    }
}

/// The Admin API of APISIX rejects a bare IPv6 address, but its data plane accepts a stored one and
/// adds the brackets.
fn bracket_ipv6_hosts(nodes: &mut Value) {
    let hosts = nodes.as_array_mut().into_iter().flatten().filter_map(|node| node.get_mut("host"));
    for host in hosts {
        if let Some(address) = host.as_str().and_then(|text| text.parse::<std::net::Ipv6Addr>().ok()) {
            *host = Value::String(format!("[{address}]"));
        }
    }
}

/// Returns the names of plugins that are not safe to ignore.
fn strip_plugins(kind: Kind, members: &mut Map<String, Value>, notes: &mut Findings) -> Vec<String> {
    let Some(plugins) = members.get_mut("plugins").and_then(Value::as_object_mut) else { return Vec::new() };
    let mut foreign = Vec::new();
    plugins.retain(|name, configuration| {
        // A plugin that a route disables is disabled for the route's service, too.
        if name == PROXY_REWRITE && kind != Kind::StreamRoute {
            return true;
        }
        let field = format!("plugins.{name}");
        if is_disabled(configuration) {
            note_ignored(notes, field, "the plugin is switched off", "remove it when it is not needed");
        } else if is_observer(name) {
            note_observer(notes, name);
        } else if HARMLESS_PLUGINS.contains(&name.as_str()) {
            let hint = "remove it, or expect requests and responses without its changes";
            note_ignored(notes, field, "the plugin is not there, and no request is less safe", hint);
        } else {
            foreign.push(name.clone());
        }
        false
    });
    foreign
}

/// Reports the plugins of a served document that have no effect.
pub(super) fn note_observers(document: &Value, notes: &mut Findings) {
    observers(document).for_each(|name| note_observer(notes, name));
}

fn note_observer(notes: &mut Findings, name: &str) {
    let hint = "see this gateway's own log and metrics";
    notes.add(Severity::Notice, format!("plugins.{name}"), NO_EFFECT.to_owned(), hint);
}
