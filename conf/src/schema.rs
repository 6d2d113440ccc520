//! The schema of the file: every known key and how it is supported. Rejects misspelt keys.
//!
//! An unused key of APISIX is accepted only where ignoring it is harmless, and its row has the
//! reason; a value that restricts or redirects something and would be ignored ends the startup
//! ([`KeySupport::Only`]). Any other key is an error: a misspelt `admin_api_mtls` must never mean
//! "no mutual TLS". Invariant: no restricting setting is ignored.

mod unknown_key;

use self::unknown_key::unknown_key;
use crate::error::ConfProblem;
use crate::tree::{YamlKey, YamlNode, YamlValue};

/// How a known key is supported.
#[derive(Clone, Copy)]
enum KeySupport {
    /// Read into the settings. How a reload of a data plane applies a changed value, and how one of
    /// a control plane does.
    Read(Reload, Reload),
    /// Accepted and ignored: harmless for this reason.
    Ignored(&'static str),
    /// Like `Ignored`, with a warning, because an operator may miss the effect.
    Warn(&'static str),
    /// Like `Warn`, but only for another value than this one.
    WarnUnless(&'static str, &'static str),
    /// Accepts only these values, which match the actual behaviour; another one is an error with
    /// this reason. `null` deletes APISIX's default, so it is listed only where that lifts no
    /// restriction.
    Only(&'static [&'static str], &'static str),
}
use KeySupport::{Ignored, Only, Read, Warn, WarnUnless};

/// How a reload applies a changed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reload {
    /// At once.
    Hot,
    /// Not at all: it takes a new program.
    Upgrade,
    /// This program does not use the key.
    Unused,
}
use Reload::{Hot, Unused, Upgrade};

/// The programs that read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// `dataplane`
    Data,
    /// `controlplane`
    Control,
}

impl Plane {
    /// The name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Data => "dataplane",
            Self::Control => "controlplane",
        }
    }
}

const NO_PLUGINS: &str = "only proxy-rewrite runs, a document with another plugin that does more than observe is not accepted; this is ignored";
const NO_UDP: &str = "UDP is not proxied, this is ignored";
const NO_LUA: &str = "it sizes what Lua code keeps in memory, and there is none";
const NO_PATH: &str = "Lua code cannot be loaded, this is ignored";
const NO_LLM: &str = "there are no metrics of language models";
const LOADING: &str = "it only says when an APISIX loads what it stored";
const NEVER: [&str; 2] = ["", "null"];

/// Dotted paths; `[]` is each element of a list. A path that is a prefix of another is a map (or a
/// list of maps); where it has a row, this row covers the keys below it that have none. A path
/// without others below it may have any value, which its reader checks.
const KEYS: &[(&str, KeySupport)] = &[
    ("deployment.role", Read(Unused, Upgrade)),
    ("deployment.role_traditional.config_provider", Read(Unused, Upgrade)),
    ("deployment.role_control_plane.config_provider", Read(Unused, Upgrade)),
    ("deployment.role_data_plane.config_provider", Read(Unused, Upgrade)),
    ("deployment.role_standalone.config_provider", Ignored("its role is not supported")),
    ("deployment.admin.admin_key_required", Read(Unused, Hot)),
    ("deployment.admin.admin_key[].name", Read(Unused, Hot)),
    ("deployment.admin.admin_key[].key", Read(Unused, Hot)),
    ("deployment.admin.admin_key[].role", Read(Unused, Hot)),
    ("deployment.admin.allow_admin", Read(Unused, Hot)),
    ("deployment.admin.admin_listen.ip", Read(Unused, Hot)),
    ("deployment.admin.admin_listen.port", Read(Unused, Hot)),
    ("deployment.admin.https_admin", Read(Unused, Hot)),
    ("deployment.admin.admin_api_mtls.admin_ssl_cert", Read(Unused, Hot)),
    ("deployment.admin.admin_api_mtls.admin_ssl_cert_key", Read(Unused, Hot)),
    ("deployment.admin.admin_api_mtls.admin_ssl_ca_cert", Read(Unused, Hot)),
    ("deployment.admin.admin_listen.plain_http", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].ip", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].port", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].plain_http", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].https_admin", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].admin_api_mtls.admin_ssl_cert", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].admin_api_mtls.admin_ssl_cert_key", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].admin_api_mtls.admin_ssl_ca_cert", Read(Unused, Hot)),
    ("deployment.admin.admin_listen[].allow_admin", Read(Unused, Hot)),
    ("deployment.admin.admin_api_version", Read(Unused, Hot)),
    ("deployment.admin.enable_admin_cors", Read(Unused, Hot)),
    ("deployment.admin.protect_client_auth", Read(Unused, Hot)),
    ("deployment.admin.client_roles[].match.san_uri", Read(Unused, Hot)),
    ("deployment.admin.client_roles[].match.san_dns", Read(Unused, Hot)),
    ("deployment.admin.client_roles[].match.subject", Read(Unused, Hot)),
    ("deployment.admin.client_roles[].match.spki_sha256", Read(Unused, Hot)),
    ("deployment.admin.client_roles[].role", Read(Unused, Hot)),
    ("deployment.admin.enable_admin_ui", Ignored("there is no dashboard, so none is opened")),
    ("deployment.etcd.host", Read(Unused, Upgrade)),
    ("deployment.etcd.prefix", Read(Unused, Upgrade)),
    ("deployment.etcd.timeout", Read(Unused, Upgrade)),
    ("deployment.etcd.watch_timeout", Read(Unused, Upgrade)),
    ("deployment.etcd.startup_retry", Read(Unused, Upgrade)),
    ("deployment.etcd.resync_delay", Read(Unused, Upgrade)),
    ("deployment.etcd.health_check_timeout", Read(Unused, Upgrade)),
    ("deployment.etcd.user", Read(Unused, Upgrade)),
    ("deployment.etcd.password", Read(Unused, Upgrade)),
    ("deployment.etcd.tls.cert", Read(Unused, Upgrade)),
    ("deployment.etcd.tls.key", Read(Unused, Upgrade)),
    ("deployment.etcd.tls.verify", Read(Unused, Upgrade)),
    ("deployment.etcd.tls.sni", Read(Unused, Upgrade)),
    (
        "deployment.certs",
        Warn("APISIX 3.18 has no such key; see countersign.push, countersign.node and deployment.etcd.tls"),
    ),
    ("apisix.node_listen", Read(Hot, Hot)),
    ("apisix.enable_admin", Read(Unused, Hot)),
    ("apisix.enable_ipv6", Read(Hot, Unused)),
    ("apisix.enable_http2", Read(Upgrade, Unused)),
    ("apisix.enable_reuseport", Ignored("each worker has a listening socket of its own in any case")),
    ("apisix.enable_server_tokens", Read(Hot, Hot)),
    ("apisix.enable_dev_mode", Ignored("it only makes an APISIX start one worker")),
    ("apisix.extra_lua_path", WarnUnless("", NO_PATH)),
    ("apisix.extra_lua_cpath", WarnUnless("", NO_PATH)),
    (
        "apisix.lua_module_hook",
        Only(&NEVER, "Lua code cannot be loaded, and a hook may be what denies requests; remove it"),
    ),
    ("apisix.show_upstream_status_in_response_header", Read(Hot, Unused)),
    (
        "apisix.proxy_cache",
        Ignored("only the plugin proxy-cache uses it, and a route with that plugin is not accepted"),
    ),
    ("apisix.proxy_protocol.listen_http_port", Read(Hot, Hot)),
    ("apisix.proxy_protocol.listen_https_port", Read(Hot, Unused)),
    ("apisix.proxy_protocol.enable_tcp_pp", Read(Hot, Unused)),
    ("apisix.proxy_protocol.enable_tcp_pp_to_upstream", Read(Hot, Unused)),
    ("apisix.proxy_mode", Read(Hot, Hot)),
    ("apisix.stream_proxy.tcp[].addr", Read(Hot, Unused)),
    ("apisix.stream_proxy.tcp[].tls", Read(Hot, Unused)),
    ("apisix.stream_proxy.tcp[].tls_passthrough", Read(Hot, Unused)),
    ("apisix.stream_proxy.tcp[].proxy_protocol", Read(Hot, Unused)),
    ("apisix.stream_proxy.tcp[].proxy_protocol_to_upstream", Read(Hot, Unused)),
    ("apisix.stream_proxy.udp", Warn(NO_UDP)),
    (
        "apisix.router.http",
        Only(
            &["radixtree_host_uri"],
            "only radixtree_host_uri is supported: another router may send a request to another route; check the routes, then write radixtree_host_uri",
        ),
    ),
    ("apisix.router.ssl", Only(&["radixtree_sni", "null"], "only radixtree_sni exists")),
    ("apisix.delete_uri_tail_slash", Read(Hot, Hot)),
    ("apisix.normalize_uri_like_servlet", Read(Hot, Hot)),
    ("apisix.match_uri_encoded_slash", Read(Hot, Hot)),
    ("apisix.dns_resolver", Warn("names are resolved as the system does it, this is ignored")),
    ("apisix.dns_resolver_valid", Ignored("the system's resolver says how long an address is valid")),
    ("apisix.resolver_timeout", Ignored("the system's resolver has its own")),
    (
        "apisix.enable_resolv_search_opt",
        WarnUnless("true", "names are resolved as the system does it, this is ignored"),
    ),
    ("apisix.enable_control", Read(Upgrade, Unused)),
    ("apisix.control.ip", Read(Upgrade, Unused)),
    ("apisix.control.port", Read(Upgrade, Unused)),
    ("apisix.control.router", Ignored("it only matters for control APIs of plugins, and there are none")),
    ("apisix.status.ip", Read(Upgrade, Unused)),
    ("apisix.status.port", Read(Upgrade, Unused)),
    (
        "apisix.data_encryption.enable_encrypt_fields",
        Ignored("it is about fields of plugins; those that only observe are stored as written"),
    ),
    ("apisix.data_encryption.keyring", Read(Unused, Hot)),
    ("apisix.data_encryption.enable", Ignored("APISIX 3 does not read it: the keyring decides")),
    ("apisix.disable_sync_configuration_during_start", Ignored(LOADING)),
    ("apisix.worker_startup_time_threshold", Ignored(LOADING)),
    ("apisix.disable_upstream_healthcheck", Ignored("there are no health checks")),
    ("apisix.events", Ignored("it only names a Lua module")),
    ("apisix.lru", Ignored("it only sizes a cache of secrets")),
    (
        "apisix.tracing",
        Ignored("it switches spans of APISIX's own phases; countersign.tracing switches traces"),
    ),
    ("apisix.trusted_addresses", Read(Hot, Unused)),
    ("apisix.id", Ignored("nothing of ours reads it")),
    (
        "apisix.max_post_args_readable_size",
        Ignored("it bounds what `post_arg` of a route's vars reads, and such a route is not accepted"),
    ),
    ("apisix.ssl.enable", Read(Hot, Unused)),
    ("apisix.ssl.listen[].ip", Read(Hot, Unused)),
    ("apisix.ssl.listen[].port", Read(Hot, Unused)),
    ("apisix.ssl.listen[].enable_http3", WarnUnless("false", "HTTP/3 is not supported yet, this is ignored")),
    ("apisix.ssl.ssl_protocols", Read(Upgrade, Hot)),
    ("apisix.ssl.ssl_ciphers", Read(Upgrade, Hot)),
    ("apisix.ssl.ssl_session_tickets", Read(Upgrade, Hot)),
    ("apisix.ssl.ssl_session_cache", Ignored("sessions are resumed from tickets only")),
    ("apisix.ssl.fallback_sni", Read(Hot, Hot)),
    ("apisix.ssl.ssl_trusted_certificate", Read(Hot, Hot)),
    ("apisix.ssl.upstream_verify_default", Read(Hot, Hot)),
    (
        "apisix.ssl.key_encrypt_salt",
        Warn("removed in APISIX 3; put the key into apisix.data_encryption.keyring"),
    ),
    ("nginx_config.user", Read(Upgrade, Upgrade)),
    ("nginx_config.error_log", Read(Hot, Hot)),
    ("nginx_config.error_log_level", Read(Hot, Hot)),
    ("nginx_config.worker_processes", Read(Upgrade, Unused)),
    ("nginx_config.enable_cpu_affinity", Ignored("it only says which core runs a worker")),
    ("nginx_config.worker_rlimit_nofile", Ignored("the service manager's limit of open files holds")),
    ("nginx_config.worker_rlimit_core", Ignored("no core files are written: private keys would be in them")),
    ("nginx_config.max_pending_timers", Ignored(NO_LUA)),
    ("nginx_config.max_running_timers", Ignored(NO_LUA)),
    ("nginx_config.worker_shutdown_timeout", Read(Hot, Hot)),
    ("nginx_config.event.worker_connections", Read(Hot, Unused)),
    ("nginx_config.meta", Ignored(NO_LUA)),
    ("nginx_config.envs", Ignored("every environment variable can be read")),
    ("nginx_config.stream.enable_access_log", Read(Hot, Unused)),
    ("nginx_config.stream.access_log", Read(Hot, Unused)),
    ("nginx_config.stream.access_log_format", Read(Hot, Unused)),
    ("nginx_config.stream.access_log_format_escape", Read(Hot, Unused)),
    ("nginx_config.stream.lua_shared_dict", Ignored(NO_LUA)),
    ("nginx_config.stream.metrics_zone_size", Ignored(NO_LUA)),
    ("nginx_config.stream.real_ip_from", Read(Hot, Unused)),
    ("nginx_config.main_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.http_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.http_server_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.http_server_location_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.http_admin_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.http_end_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.stream_configuration_snippet", Read(Hot, Hot)),
    ("nginx_config.http.enable_access_log", Read(Hot, Unused)),
    ("nginx_config.http.access_log", Read(Hot, Unused)),
    ("nginx_config.http.access_log_buffer", Ignored("lines are written in batches in any case")),
    ("nginx_config.http.access_log_format", Read(Hot, Unused)),
    ("nginx_config.http.access_log_format_escape", Read(Hot, Unused)),
    ("nginx_config.http.keepalive_timeout", Read(Hot, Unused)),
    ("nginx_config.http.client_header_timeout", Read(Hot, Hot)),
    ("nginx_config.http.client_body_timeout", Read(Hot, Hot)),
    ("nginx_config.http.send_timeout", Read(Hot, Hot)),
    ("nginx_config.http.client_max_body_size", Read(Hot, Unused)),
    (
        "nginx_config.http.underscores_in_headers",
        Only(&["on"], "header fields with an underscore are always forwarded; write \"on\""),
    ),
    ("nginx_config.http.real_ip_header", Read(Hot, Hot)),
    ("nginx_config.http.real_ip_recursive", Read(Hot, Hot)),
    ("nginx_config.http.real_ip_from", Read(Hot, Hot)),
    ("nginx_config.http.custom_lua_shared_dict", Ignored(NO_LUA)),
    ("nginx_config.http.lua_shared_dict", Ignored(NO_LUA)),
    (
        "nginx_config.http.proxy_ssl_server_name",
        WarnUnless("true", "upstreams always get the dialled name as SNI, this is ignored"),
    ),
    ("nginx_config.http.charset", Ignored("responses keep the upstream's Content-Type")),
    ("nginx_config.http.variables_hash_max_size", Ignored("it only sizes a table of nginx")),
    ("nginx_config.http.upstream.keepalive", Read(Hot, Unused)),
    ("nginx_config.http.upstream.keepalive_requests", Read(Hot, Unused)),
    ("nginx_config.http.upstream.keepalive_timeout", Read(Hot, Unused)),
    (
        "discovery",
        Warn(
            "service discovery is not supported yet, an upstream that needs it is not accepted; this is ignored",
        ),
    ),
    (
        "graphql",
        Ignored("it bounds what `graphql_*` of a route's vars reads, and such a route is not accepted"),
    ),
    ("ext-plugin", Warn(NO_PLUGINS)),
    ("wasm", Warn(NO_PLUGINS)),
    ("xrpc", Warn("xRPC protocols are not understood, this is ignored")),
    ("plugins", Read(Hot, Hot)),
    ("stream_plugins", Warn(NO_PLUGINS)),
    ("plugin_attr", Ignored("no plugin of ours has any")),
    (
        "plugin_attr.opentelemetry",
        Warn(
            "spans go by OTLP over gRPC to countersign.tracing.endpoint, with the attributes of countersign.tracing.resource; this is ignored",
        ),
    ),
    ("plugin_attr.prometheus.enable_export_server", Read(Upgrade, Unused)),
    ("plugin_attr.prometheus.export_addr.ip", Read(Upgrade, Unused)),
    ("plugin_attr.prometheus.export_addr.port", Read(Upgrade, Unused)),
    ("plugin_attr.prometheus.export_uri", Read(Upgrade, Unused)),
    ("plugin_attr.prometheus.metric_prefix", Read(Upgrade, Unused)),
    ("plugin_attr.prometheus.refresh_interval", Ignored("every scrape gets the figures of that moment")),
    (
        "plugin_attr.prometheus.metrics",
        Warn("series have APISIX's own labels only, and go with their route; this is ignored"),
    ),
    ("plugin_attr.prometheus.default_buckets", Warn("the buckets are APISIX's defaults, this is ignored")),
    ("plugin_attr.prometheus.llm_latency_buckets", Ignored(NO_LLM)),
    ("plugin_attr.prometheus.llm_prompt_tokens_buckets", Ignored(NO_LLM)),
    ("plugin_attr.prometheus.llm_completion_tokens_buckets", Ignored(NO_LLM)),
    ("plugin_attr.prometheus.ai_cache_embedding_latency_buckets", Ignored(NO_LLM)),
    ("countersign.push.listen", Read(Unused, Upgrade)),
    ("countersign.push.cert", Read(Unused, Upgrade)),
    ("countersign.push.key", Read(Unused, Upgrade)),
    ("countersign.push.ca", Read(Unused, Upgrade)),
    ("countersign.push.allowed_names", Read(Unused, Hot)),
    ("countersign.control_plane.status", Read(Unused, Upgrade)),
    ("countersign.status.allow", Read(Hot, Hot)),
    ("countersign.status.tls.cert", Read(Hot, Hot)),
    ("countersign.status.tls.key", Read(Hot, Hot)),
    ("countersign.status.tls.ca", Read(Hot, Hot)),
    ("countersign.admin.wrong_keys_per_minute", Read(Unused, Hot)),
    ("countersign.store.path", Read(Unused, Upgrade)),
    ("countersign.node.name", Read(Upgrade, Unused)),
    ("countersign.node.control_planes", Read(Upgrade, Unused)),
    ("countersign.node.server_name", Read(Upgrade, Upgrade)),
    ("countersign.node.cert", Read(Upgrade, Unused)),
    ("countersign.node.key", Read(Upgrade, Unused)),
    ("countersign.node.ca", Read(Upgrade, Unused)),
    ("countersign.node.last_good", Read(Upgrade, Unused)),
    ("countersign.node.last_good_max_age", Read(Upgrade, Unused)),
    ("countersign.node.wait_for_control_plane", Read(Upgrade, Unused)),
    ("countersign.keyring_file", Read(Unused, Hot)),
    ("countersign.workers", Read(Upgrade, Unused)),
    ("countersign.preserve_header_case", Read(Hot, Unused)),
    ("countersign.ticket_lifetime", Read(Unused, Hot)),
    ("countersign.drain_delay", Read(Hot, Hot)),
    ("countersign.drain_idle_timeout", Read(Hot, Unused)),
    ("countersign.tls.own_records", Read(Upgrade, Unused)),
    ("countersign.metrics.by_route", Read(Hot, Unused)),
    ("countersign.metrics.by_site", Read(Hot, Unused)),
    ("countersign.metrics.series_max", Read(Hot, Unused)),
    ("countersign.tracing.endpoint", Read(Hot, Unused)),
    ("countersign.tracing.tls.ca", Read(Hot, Unused)),
    ("countersign.tracing.tls.cert", Read(Hot, Unused)),
    ("countersign.tracing.tls.key", Read(Hot, Unused)),
    ("countersign.tracing.sampling_ratio", Read(Hot, Unused)),
    ("countersign.tracing.parents", Read(Hot, Unused)),
    ("countersign.tracing.service_name", Read(Hot, Unused)),
    ("countersign.tracing.resource", Read(Hot, Unused)),
    ("countersign.tracing.timeout", Read(Hot, Unused)),
    ("countersign.tracing.queue_size", Read(Upgrade, Unused)),
    ("countersign.limits.handshake_timeout", Read(Hot, Hot)),
    ("countersign.limits.connections_per_worker", Read(Hot, Unused)),
    ("countersign.limits.requests_per_client", Read(Hot, Unused)),
    ("countersign.limits.upstream_connections_per_node", Read(Hot, Unused)),
    ("countersign.limits.header_line_bytes", Read(Hot, Unused)),
    ("countersign.limits.header_bytes", Read(Hot, Hot)),
    ("countersign.limits.idle_release_timeout", Read(Hot, Unused)),
];

/// APISIX's keys that are known and not supported, each with the treatment and reason: the table of
/// docs/SETTINGS.md.
pub fn unsupported_keys() -> impl Iterator<Item = (&'static str, String)> {
    KEYS.iter().filter_map(|(path, used)| {
        let what = match used {
            Read(..) => return None,
            Ignored(why) => format!("ignored: {why}"),
            Warn(why) => format!("warning: {why}"),
            WarnUnless(value, why) => format!("`{}`; else a warning: {why}", displayed(value)),
            Only(values, why) => {
                let values: Vec<_> = values.iter().map(|value| format!("`{}`", displayed(value))).collect();
                format!("{}; else an error: {why}", values.join(" or "))
            }
        };
        Some((*path, what))
    })
}

fn displayed(value: &'static str) -> &'static str {
    if value.is_empty() { "\"\"" } else { value }
}

/// Checks each key of the user's tree. `warnings` get the line and `path: text`.
pub(crate) fn check(root: &YamlNode, problems: &mut Vec<ConfProblem>, warnings: &mut Vec<(usize, String)>) {
    match &root.value {
        YamlValue::Map(entries) => check_map(entries, "", false, problems, warnings),
        _ => problems.push(ConfProblem {
            line: Some(root.line),
            field: String::new(),
            message: format!("expected keys (`deployment:`, `apisix:`, ...), found {}", root.describe()),
        }),
    }
}

/// `any_key`: a key without a row is fine, since the parent has a row that covers it.
fn check_map(
    entries: &[(YamlKey, YamlNode)],
    parent: &str,
    any_key: bool,
    problems: &mut Vec<ConfProblem>,
    warnings: &mut Vec<(usize, String)>,
) {
    for (key, node) in entries {
        let path = if parent.is_empty() { key.text.clone() } else { format!("{parent}.{}", key.text) };
        if let Some((_, used)) = KEYS.iter().find(|(known, _)| *known == path) {
            match (evaluate(*used, node), &node.value) {
                (Evaluation::Fine, YamlValue::Map(entries)) => {
                    check_map(entries, &path, true, problems, warnings);
                }
                (Evaluation::Fine, _) => {}
                (Evaluation::Warning(text), _) => warnings.push((key.line, format!("{path}: {text}"))),
                (Evaluation::Problem(message), _) => {
                    problems.push(ConfProblem { line: Some(key.line), field: path, message });
                }
            }
            continue;
        }
        let (inside, listed) = (format!("{path}."), format!("{path}[]."));
        let is_map = KEYS.iter().any(|(known, _)| known.starts_with(&inside));
        let is_list = KEYS.iter().any(|(known, _)| known.starts_with(&listed));
        match &node.value {
            _ if !is_map && !is_list && any_key => {}
            _ if !is_map && !is_list => problems.push(ConfProblem {
                line: Some(key.line),
                message: unknown_key(parent, &key.text),
                field: path,
            }),
            _ if node.is_null() => {}
            YamlValue::Map(entries) if is_map => check_map(entries, &path, false, problems, warnings),
            YamlValue::List(items) if is_list => {
                for item in items {
                    // The reader checks the type of an element; here only its keys are checked.
                    if let YamlValue::Map(entries) = &item.value {
                        check_map(entries, &format!("{path}[]"), any_key, problems, warnings);
                    }
                }
            }
            _ => problems.push(ConfProblem {
                line: Some(node.line),
                message: format!(
                    "expected {}, found {}",
                    if is_map { "keys below it" } else { "a list" },
                    node.describe()
                ),
                field: path,
            }),
        }
    }
}

enum Evaluation {
    Fine,
    Warning(&'static str),
    Problem(String),
}

fn evaluate(used: KeySupport, node: &YamlNode) -> Evaluation {
    let is = |value: &str| match &node.value {
        _ if node.is_null() => value == "null",
        YamlValue::Scalar(scalar) => scalar.text.trim() == value,
        YamlValue::List(_) | YamlValue::Map(_) => false,
    };
    match used {
        Only(values, _) if values.iter().any(|value| is(value)) => Evaluation::Fine,
        Only(_, why) => Evaluation::Problem(format!("{} cannot be obeyed: {why}", node.describe())),
        Read(..) | Ignored(_) => Evaluation::Fine,
        Warn(_) | WarnUnless(..) if node.is_null() => Evaluation::Fine,
        WarnUnless(value, _) if is(value) => Evaluation::Fine,
        Warn(text) | WarnUnless(_, text) => Evaluation::Warning(text),
    }
}

/// The keys that are read, each with the effect of a reload.
pub(crate) fn read_keys(plane: Plane) -> impl Iterator<Item = (&'static str, Reload)> {
    KEYS.iter().filter_map(move |(path, used)| match (used, plane) {
        (Read(reload, _), Plane::Data) | (Read(_, reload), Plane::Control) => Some((*path, *reload)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn checked(text: &str) -> (Vec<String>, Vec<String>) {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        check(&parse(text).unwrap().unwrap(), &mut problems, &mut warnings);
        let problems =
            problems.into_iter().map(|p| format!("{}: {}: {}", p.line.unwrap_or(0), p.field, p.message));
        (problems.collect(), warnings.into_iter().map(|(line, text)| format!("{line}: {text}")).collect())
    }

    #[test]
    fn a_misspelt_key_gets_a_suggestion() {
        let (problems, _) = checked("deployment:\n  admin:\n    admin_lisen: {port: 1}\n");
        assert_eq!(problems, ["3: deployment.admin.admin_lisen: unknown key (did you mean admin_listen?)"]);
        let (problems, _) = checked("countersing: {}");
        assert_eq!(problems, ["1: countersing: unknown key (did you mean countersign?)"]);
    }

    #[test]
    fn a_misplaced_key_gets_its_place() {
        let (problems, _) = checked("https_admin: true");
        assert!(problems[0].contains("belongs at deployment.admin.https_admin"), "{problems:?}");
    }

    #[test]
    fn keys_inside_lists_are_checked() {
        let (problems, _) = checked("deployment: {admin: {admin_key: [{name: a, kee: b}]}}");
        assert_eq!(problems, ["1: deployment.admin.admin_key[].kee: unknown key (did you mean key?)"]);
    }

    #[test]
    fn a_scalar_in_place_of_a_map_is_an_error() {
        let (problems, _) = checked("deployment: 5");
        assert_eq!(problems, ["1: deployment: expected keys below it, found the number 5"]);
    }

    #[test]
    fn ignored_keys_warn_only_where_it_matters() {
        let (problems, warnings) =
            checked("apisix:\n  enable_reuseport: false\n  extra_lua_path: \"\"\nstream_plugins: [a]\n");
        assert!(problems.is_empty());
        assert_eq!(warnings, [format!("4: stream_plugins: {NO_PLUGINS}")]);
    }

    #[test]
    fn a_row_covers_the_keys_below_it_that_have_none() {
        let (problems, warnings) =
            checked("plugin_attr:\n  custom: {a: 1}\n  opentelemetry: {resource: {a: b}}");
        assert_eq!(problems, [""; 0]);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.starts_with("3: plugin_attr.opentelemetry: spans go"), "{warning}");
    }

    #[test]
    fn an_unsupported_value_is_an_error() {
        for (text, message) in [
            (
                "apisix:\n  lua_module_hook: my.hook",
                "2: apisix.lua_module_hook: the text \"my.hook\" cannot be obeyed: Lua",
            ),
            (
                "apisix: {router: {http: radixtree_uri}}",
                "1: apisix.router.http: the text \"radixtree_uri\" cannot be obeyed",
            ),
            ("apisix: {router: {http: null}}", "1: apisix.router.http: nothing (null) cannot be obeyed"),
            (
                "nginx_config: {http: {underscores_in_headers: 'off'}}",
                "1: nginx_config.http.underscores_in_headers: the text",
            ),
            (
                "nginx_config: {http: {underscores_in_headers: ~}}",
                "1: nginx_config.http.underscores_in_headers: nothing",
            ),
        ] {
            let (problems, _) = checked(text);
            assert!(problems.len() == 1 && problems[0].starts_with(message), "{text}: {problems:?}");
        }
        let text = "apisix: {lua_module_hook: '', proxy_protocol: null, router: {http: radixtree_host_uri, ssl: ~}}\n\
                    nginx_config: {http: {underscores_in_headers: on}}\n";
        assert_eq!(checked(text), (vec![], vec![]));
    }

    /// Every ignored key needs a reason.
    #[test]
    fn every_unsupported_key_has_a_reason() {
        for (path, used) in KEYS {
            let (Ignored(why) | Warn(why) | WarnUnless(_, why) | Only(_, why)) = used else { continue };
            assert!(why.split(' ').count() >= 3, "{path}: {why:?}");
        }
    }

    #[test]
    fn the_schema_has_no_duplicates() {
        for (nth, (path, _)) in KEYS.iter().enumerate() {
            assert!(KEYS[nth + 1..].iter().all(|(other, _)| other != path), "{path}");
        }
    }
}
