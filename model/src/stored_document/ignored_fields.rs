//! What a stored document may ask for in vain: taken out of it, and told.
//!
//! Only what neither protects anybody nor decides where traffic goes and how it is secured. The
//! list is closed: what it does not name stays in the document, and blocks it. Plugins that this
//! gateway does not have and that are not on the list are taken out, too, but only to be told by
//! name ([`Rest::foreign`]): with one of them the document is not served.

use serde_json::{Map, Value};

use crate::document::PROXY_REWRITE;
use crate::document::fields::{flag, is_set, string};
use crate::id::Kind;
use crate::lint::{Finding, Findings, Severity};

/// Plugins without which nobody gets through who would not get through with them, and every request
/// goes where it would go:
///
/// - loggers and tracers write down what happened, and tell it to somebody else;
/// - metrics and a node's own state count it;
/// - `request-id` puts a number beside it, which nothing of ours reads;
/// - compression makes an answer shorter, not another one.
///
/// What is not here may stop, change or redirect requests, or may come to, and blocks. So does what
/// slows clients down (`limit-*`), keeps their load away (`proxy-cache`) or says where they come
/// from (`real-ip`).
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
    // marks
    "request-id",
    // compression
    "brotli",
    "gzip",
];

/// A document without what it asks for in vain.
pub(super) struct Stripped {
    /// What is left.
    pub document: Value,
    /// What was taken out and does no harm.
    pub ignored: Vec<Finding>,
    /// The plugins that were taken out and are not to be done without.
    pub unsupported_plugins: Vec<String>,
}

/// Takes a document apart.
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
                    let hint = "clients that ask for one are answered without";
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

/// The document is served without this.
fn note_ignored(notes: &mut Findings, field: impl Into<String>, what: &str, hint: &str) {
    notes.add(Severity::Warning, field, format!("stored by another program, and not served: {what}"), hint);
}

fn strip_ssl(members: &mut Map<String, Value>, notes: &mut Findings) {
    // An APISIX of former days wrote down when the certificate begins and ends, which the certificate
    // says itself.
    for descriptive in ["validity_start", "validity_end"] {
        members.remove(descriptive);
    }
    if let Some(stapling) = members.remove("ocsp_stapling")
        && flag(&stapling, "enabled") == Some(true)
    {
        let hint = "clients that insist on one will refuse the certificate";
        note_ignored(notes, "ocsp_stapling", "no OCSP answer is stapled", hint);
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

/// The Admin API of an APISIX refuses a bare IPv6 address, and its data plane puts a stored one
/// into brackets.
fn bracket_ipv6_hosts(nodes: &mut Value) {
    let hosts = nodes.as_array_mut().into_iter().flatten().filter_map(|node| node.get_mut("host"));
    for host in hosts {
        if let Some(address) = host.as_str().and_then(|text| text.parse::<std::net::Ipv6Addr>().ok()) {
            *host = Value::String(format!("[{address}]"));
        }
    }
}

/// Gives the plugins that are not to be done without.
fn strip_plugins(kind: Kind, members: &mut Map<String, Value>, notes: &mut Findings) -> Vec<String> {
    // Switched off in a route, the plugin is also switched off where the route's service has it.
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

/// Takes out what orders plugins, of which there is one.
fn strip_plugin_meta(settings: &mut Value) {
    let Some(settings) = settings.as_object_mut() else { return };
    let harmless = |name: &String| matches!(name.as_str(), "disable" | "priority" | "error_response");
    let meta = settings.get("_meta").and_then(Value::as_object);
    if meta.is_some_and(|meta| meta.keys().all(harmless)) {
        settings.remove("_meta");
    }
}
