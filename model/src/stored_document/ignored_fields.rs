//! Strips the fields of a stored document that the gateway can ignore safely, and reports each as a
//! finding.
//!
//! Only fields that neither protect traffic nor decide its destination and encryption may be
//! ignored. The list is closed: an unlisted unsupported field stays in the document and blocks it.
//! Unsupported plugins that are not on the list are stripped, too, but only so that
//! [`Stripped::unsupported_plugins`] can name them: a document with one is never served.

use serde_json::{Map, Value};

use crate::document::PROXY_REWRITE;
use crate::document::fields::{flag, is_set, string};
use crate::id::Kind;
use crate::lint::{Finding, Findings, Severity};

/// Plugins that neither deny nor redirect any request, so that a route is as safe without them:
///
/// - loggers and tracers export data about requests;
/// - metrics plugins and a node's own state count them;
/// - `request-id` adds an id that no matcher reads;
/// - compression changes the encoding of a response only.
///
/// A plugin that is not listed may deny, change or redirect requests in some version, and blocks.
/// So do rate limits (`limit-*`), caches (`proxy-cache`) and plugins that change the client's
/// address (`real-ip`).
const OBSERVER_PLUGINS: [&str; 29] = [
    // loggers
    "clickhouse-logger",
    "elasticsearch-logger",
    "error-log-logger",
    "file-logger",
    "google-cloud-logging",
    "http-logger",
    "kafka-logger",
    "lago",
    "log-rotate",
    "loggly",
    "loki-logger",
    "rocketmq-logger",
    "skywalking-logger",
    "sls-logger",
    "splunk-hec-logging",
    "syslog",
    "tcp-logger",
    "tencent-cloud-cls",
    "udp-logger",
    // tracers
    "opentelemetry",
    "skywalking",
    "zipkin",
    // metrics and state
    "datadog",
    "node-status",
    "prometheus",
    "server-info",
    // request ids
    "request-id",
    // compression
    "brotli",
    "gzip",
];

/// A document without its ignored fields.
pub(super) struct Stripped {
    /// The remaining document.
    pub document: Value,
    /// Findings about the stripped fields that are safe to ignore.
    pub ignored: Vec<Finding>,
    /// Names of the stripped plugins that are not safe to ignore.
    pub unsupported_plugins: Vec<String>,
}

/// Splits a document into the part to compile and the findings about the rest.
pub(super) fn strip_ignored(kind: Kind, mut document: Value, mut notes: Findings) -> Stripped {
    let mut foreign = Vec::new();
    if let Some(members) = document.as_object_mut() {
        match kind {
            Kind::Ssl => strip_ssl(members, &mut notes),
            Kind::Upstream => strip_upstream("", members, &mut notes),
            Kind::Service | Kind::Route | Kind::StreamRoute | Kind::GlobalRule => {
                foreign = strip_plugins(kind, members, &mut notes);
                if members.get("enable_websocket") == Some(&Value::Bool(true)) {
                    members.remove("enable_websocket");
                    let hint = "clients that request one get a response without it";
                    note_ignored(&mut notes, "enable_websocket", "upgrades are not forwarded", hint);
                }
                if let Some(upstream) = members.get_mut("upstream").and_then(Value::as_object_mut) {
                    strip_upstream("upstream.", upstream, &mut notes);
                }
            }
        }
    }
    Stripped { document, ignored: notes.findings, unsupported_plugins: foreign }
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
    // A plugin that a route disables is disabled for the route's service, too.
    let overrides = kind == Kind::Route && members.contains_key("service_id");
    let rewrites = matches!(kind, Kind::Route | Kind::Service);
    let Some(plugins) = members.get_mut("plugins").and_then(Value::as_object_mut) else { return Vec::new() };
    let mut foreign = Vec::new();
    plugins.retain(|name, settings| {
        let disabled = settings.pointer("/_meta/disable") == Some(&Value::Bool(true));
        let field = format!("plugins.{name}");
        match (name.as_str(), disabled) {
            (PROXY_REWRITE, true) if overrides => true,
            (_, true) => {
                note_ignored(notes, field, "the plugin is switched off", "remove it when it is not needed");
                false
            }
            (PROXY_REWRITE, false) if rewrites => {
                strip_plugin_meta(settings);
                true
            }
            (observer, false) if OBSERVER_PLUGINS.contains(&observer) => {
                let hint = "look at this gateway's own log and metrics";
                note_ignored(notes, field, "the plugin only observes, and is not there", hint);
                false
            }
            (_, false) => {
                foreign.push(name.clone());
                false
            }
        }
    });
    foreign
}

/// Removes `_meta` members that order plugins: the gateway has one plugin.
fn strip_plugin_meta(settings: &mut Value) {
    let Some(settings) = settings.as_object_mut() else { return };
    let harmless = |name: &String| matches!(name.as_str(), "disable" | "priority" | "error_response");
    let meta = settings.get("_meta").and_then(Value::as_object);
    if meta.is_some_and(|meta| meta.keys().all(harmless)) {
        settings.remove("_meta");
    }
}
