//! Every key the file may hold, and what we do with it: the check against misspelt keys.
//!
//! A key of APISIX that we do not use is accepted, so that a config.yaml can be moved over unchanged; where
//! ignoring it changes what a user would see, a warning says so. Any other key is refused: a misspelt
//! `admin_api_mtls` must never mean "no mutual TLS".

use crate::error::ConfProblem;
use crate::tree::{Key, Node, Value};

/// What becomes of a known key.
#[derive(Clone, Copy)]
enum Use {
    /// Read into the settings.
    Read,
    /// Accepted; not using it changes nothing a user would miss.
    Quiet,
    /// Accepted, not used, and said so.
    Warn(&'static str),
    /// Like `Warn`, but only for another value than this one.
    WarnUnless(&'static str, &'static str),
}
use Use::{Quiet, Read, Warn, WarnUnless};

const NO_PLUGINS: &str = "plugins are not supported yet, the list is ignored";
const NO_SNIPPET: &str = "nginx snippets are not supported and ignored";
const NO_UDP: &str = "UDP is not proxied, this is ignored";
const NO_STREAM: &str = "settings of nginx's stream module are not used, this is ignored";
const LOGS: &str = "logs go to stderr; RUST_LOG sets their level, this is ignored";

/// Dotted paths; `[]` stands for each element of a list. A path that is the beginning of another is a map (or
/// a list of maps); a path without others below may hold anything, its value is judged where it is read.
const KNOWN: &[(&str, Use)] = &[
    ("deployment.role", Read),
    ("deployment.role_traditional.config_provider", Read),
    ("deployment.role_control_plane.config_provider", Read),
    ("deployment.role_data_plane.config_provider", Read),
    ("deployment.role_standalone.config_provider", Quiet),
    ("deployment.admin.admin_key_required", Read),
    ("deployment.admin.admin_key[].name", Read),
    ("deployment.admin.admin_key[].key", Read),
    ("deployment.admin.admin_key[].role", Read),
    ("deployment.admin.allow_admin", Read),
    ("deployment.admin.admin_listen.ip", Read),
    ("deployment.admin.admin_listen.port", Read),
    ("deployment.admin.https_admin", Read),
    ("deployment.admin.admin_api_mtls.admin_ssl_cert", Read),
    ("deployment.admin.admin_api_mtls.admin_ssl_cert_key", Read),
    ("deployment.admin.admin_api_mtls.admin_ssl_ca_cert", Read),
    ("deployment.admin.admin_api_version", Read),
    ("deployment.admin.enable_admin_cors", Read),
    ("deployment.admin.enable_admin_ui", Quiet),
    ("deployment.etcd.host", Read),
    ("deployment.etcd.prefix", Read),
    ("deployment.etcd.timeout", Read),
    ("deployment.etcd.watch_timeout", Read),
    ("deployment.etcd.startup_retry", Read),
    ("deployment.etcd.resync_delay", Read),
    ("deployment.etcd.health_check_timeout", Read),
    ("deployment.etcd.user", Read),
    ("deployment.etcd.password", Read),
    ("deployment.etcd.tls.cert", Read),
    ("deployment.etcd.tls.key", Read),
    ("deployment.etcd.tls.verify", Read),
    ("deployment.etcd.tls.sni", Read),
    ("deployment.certs", Quiet),
    ("apisix.node_listen", Read),
    (
        "apisix.enable_admin",
        WarnUnless("true", "the control plane always serves the Admin API, this is ignored"),
    ),
    ("apisix.enable_ipv6", Read),
    ("apisix.enable_http2", Read),
    ("apisix.enable_reuseport", Quiet),
    ("apisix.enable_server_tokens", Read),
    ("apisix.enable_dev_mode", Quiet),
    ("apisix.extra_lua_path", Warn("Lua code cannot be loaded, this is ignored")),
    ("apisix.extra_lua_cpath", Warn("Lua code cannot be loaded, this is ignored")),
    ("apisix.lua_module_hook", Warn("Lua code cannot be loaded, this is ignored")),
    (
        "apisix.show_upstream_status_in_response_header",
        WarnUnless("false", "not supported yet, this is ignored"),
    ),
    ("apisix.proxy_cache", Quiet),
    ("apisix.proxy_protocol", Warn("the PROXY protocol is not supported yet, this is ignored")),
    ("apisix.proxy_mode", Read),
    ("apisix.stream_proxy.tcp[].addr", Read),
    ("apisix.stream_proxy.tcp[].tls", Read),
    // Read, and refused where they ask for something.
    ("apisix.stream_proxy.tcp[].proxy_protocol", Quiet),
    ("apisix.stream_proxy.tcp[].proxy_protocol_to_upstream", Quiet),
    ("apisix.stream_proxy.udp", Warn(NO_UDP)),
    (
        "apisix.router.http",
        WarnUnless("radixtree_host_uri", "only radixtree_host_uri is supported yet, it is used instead"),
    ),
    ("apisix.router.ssl", WarnUnless("radixtree_sni", "only radixtree_sni exists, it is used instead")),
    ("apisix.delete_uri_tail_slash", WarnUnless("false", "not supported yet, this is ignored")),
    ("apisix.normalize_uri_like_servlet", WarnUnless("false", "not supported yet, this is ignored")),
    ("apisix.match_uri_encoded_slash", WarnUnless("false", "not supported yet, this is ignored")),
    ("apisix.dns_resolver", Warn("names are resolved as the system does it, this is ignored")),
    ("apisix.dns_resolver_valid", Quiet),
    ("apisix.resolver_timeout", Quiet),
    ("apisix.enable_resolv_search_opt", Quiet),
    ("apisix.enable_control", Quiet),
    ("apisix.control", Warn("there is no control API, this is ignored")),
    ("apisix.status.ip", Read),
    ("apisix.status.port", Read),
    ("apisix.data_encryption.enable_encrypt_fields", Quiet),
    ("apisix.data_encryption.keyring", Read),
    ("apisix.data_encryption.enable", Quiet),
    ("apisix.disable_sync_configuration_during_start", Quiet),
    ("apisix.worker_startup_time_threshold", Quiet),
    ("apisix.disable_upstream_healthcheck", Quiet),
    ("apisix.events", Quiet),
    ("apisix.lru", Quiet),
    ("apisix.tracing", Quiet),
    ("apisix.trusted_addresses", Read),
    ("apisix.id", Quiet),
    ("apisix.ssl.enable", Read),
    ("apisix.ssl.listen[].ip", Read),
    ("apisix.ssl.listen[].port", Read),
    ("apisix.ssl.listen[].enable_http3", WarnUnless("false", "HTTP/3 is not supported yet, this is ignored")),
    ("apisix.ssl.ssl_protocols", Read),
    ("apisix.ssl.ssl_ciphers", Warn("the cipher suites are fixed to the modern AEAD ones, this is ignored")),
    ("apisix.ssl.ssl_session_tickets", Read),
    ("apisix.ssl.ssl_session_cache", Quiet),
    ("apisix.ssl.fallback_sni", Read),
    ("apisix.ssl.ssl_trusted_certificate", Read),
    (
        "apisix.ssl.key_encrypt_salt",
        Warn("removed in APISIX 3; put the key into apisix.data_encryption.keyring"),
    ),
    ("nginx_config.user", Quiet),
    ("nginx_config.error_log", Warn(LOGS)),
    ("nginx_config.error_log_level", Warn(LOGS)),
    ("nginx_config.worker_processes", Read),
    ("nginx_config.enable_cpu_affinity", Quiet),
    ("nginx_config.worker_rlimit_nofile", Quiet),
    ("nginx_config.worker_rlimit_core", Quiet),
    ("nginx_config.max_pending_timers", Quiet),
    ("nginx_config.max_running_timers", Quiet),
    ("nginx_config.worker_shutdown_timeout", Read),
    ("nginx_config.event", Quiet),
    ("nginx_config.meta", Quiet),
    ("nginx_config.envs", Quiet),
    ("nginx_config.stream", Warn(NO_STREAM)),
    ("nginx_config.main_configuration_snippet", WarnUnless("", NO_SNIPPET)),
    ("nginx_config.http_configuration_snippet", WarnUnless("", NO_SNIPPET)),
    ("nginx_config.http_server_configuration_snippet", Read),
    ("nginx_config.http_server_location_configuration_snippet", WarnUnless("", NO_SNIPPET)),
    ("nginx_config.http_admin_configuration_snippet", WarnUnless("", NO_SNIPPET)),
    ("nginx_config.http_end_configuration_snippet", WarnUnless("", NO_SNIPPET)),
    ("nginx_config.stream_configuration_snippet", WarnUnless("", NO_SNIPPET)),
    ("nginx_config.http.enable_access_log", Quiet),
    ("nginx_config.http.access_log", Quiet),
    ("nginx_config.http.access_log_buffer", Quiet),
    ("nginx_config.http.access_log_format", Quiet),
    ("nginx_config.http.access_log_format_escape", Quiet),
    ("nginx_config.http.keepalive_timeout", Read),
    ("nginx_config.http.client_header_timeout", Read),
    ("nginx_config.http.client_body_timeout", Read),
    ("nginx_config.http.send_timeout", Read),
    ("nginx_config.http.client_max_body_size", Read),
    ("nginx_config.http.underscores_in_headers", Quiet),
    ("nginx_config.http.real_ip_header", Quiet),
    ("nginx_config.http.real_ip_recursive", Quiet),
    ("nginx_config.http.real_ip_from", Quiet),
    ("nginx_config.http.custom_lua_shared_dict", Quiet),
    ("nginx_config.http.lua_shared_dict", Quiet),
    ("nginx_config.http.proxy_ssl_server_name", Quiet),
    ("nginx_config.http.charset", Quiet),
    ("nginx_config.http.variables_hash_max_size", Quiet),
    ("nginx_config.http.upstream.keepalive", Read),
    ("nginx_config.http.upstream.keepalive_requests", Read),
    ("nginx_config.http.upstream.keepalive_timeout", Read),
    ("discovery", Warn("service discovery is not supported yet, this is ignored")),
    ("graphql", Quiet),
    ("ext-plugin", Warn(NO_PLUGINS)),
    ("wasm", Warn(NO_PLUGINS)),
    ("xrpc", Warn("xRPC protocols are not understood, this is ignored")),
    ("plugins", Warn(NO_PLUGINS)),
    ("stream_plugins", Warn(NO_PLUGINS)),
    ("plugin_attr", Quiet),
    ("countersign.push.listen", Read),
    ("countersign.push.cert", Read),
    ("countersign.push.key", Read),
    ("countersign.push.ca", Read),
    ("countersign.push.allowed_names", Read),
    ("countersign.store.path", Read),
    ("countersign.node.name", Read),
    ("countersign.node.control_planes", Read),
    ("countersign.node.server_name", Read),
    ("countersign.node.cert", Read),
    ("countersign.node.key", Read),
    ("countersign.node.ca", Read),
    ("countersign.node.last_good", Read),
    ("countersign.workers", Read),
    ("countersign.ticket_lifetime", Read),
    ("countersign.tls.own_records", Read),
    ("countersign.limits.handshake_timeout", Read),
    ("countersign.limits.connections_per_worker", Read),
    ("countersign.limits.header_bytes", Read),
    ("countersign.limits.rest_after", Read),
];

/// Checks each key of the user's tree. `warnings` get `LINE: path: text`, without the file's name.
pub(crate) fn check(root: &Node, problems: &mut Vec<ConfProblem>, warnings: &mut Vec<(usize, String)>) {
    match &root.value {
        Value::Map(entries) => check_map(entries, "", problems, warnings),
        _ => problems.push(ConfProblem {
            line: Some(root.line),
            field: String::new(),
            message: format!("expected keys (`deployment:`, `apisix:`, ...), found {}", root.found()),
        }),
    }
}

fn check_map(
    entries: &[(Key, Node)],
    parent: &str,
    problems: &mut Vec<ConfProblem>,
    warnings: &mut Vec<(usize, String)>,
) {
    for (key, node) in entries {
        let path = if parent.is_empty() { key.text.clone() } else { format!("{parent}.{}", key.text) };
        if let Some((_, used)) = KNOWN.iter().find(|(known, _)| *known == path) {
            warnings.extend(warning(*used, node).map(|text| (key.line, format!("{path}: {text}"))));
            continue;
        }
        let (inside, listed) = (format!("{path}."), format!("{path}[]."));
        let is_map = KNOWN.iter().any(|(known, _)| known.starts_with(&inside));
        let is_list = KNOWN.iter().any(|(known, _)| known.starts_with(&listed));
        match &node.value {
            _ if !is_map && !is_list => problems.push(ConfProblem {
                line: Some(key.line),
                message: unknown(parent, &key.text),
                field: path,
            }),
            _ if node.is_null() => {}
            Value::Map(entries) if is_map => check_map(entries, &path, problems, warnings),
            Value::List(items) if is_list => {
                for item in items {
                    // What an element must be is judged where it is read; here only its keys.
                    if let Value::Map(entries) = &item.value {
                        check_map(entries, &format!("{path}[]"), problems, warnings);
                    }
                }
            }
            _ => problems.push(ConfProblem {
                line: Some(node.line),
                message: format!(
                    "expected {}, found {}",
                    if is_map { "keys below it" } else { "a list" },
                    node.found()
                ),
                field: path,
            }),
        }
    }
}

fn warning(used: Use, node: &Node) -> Option<&'static str> {
    match used {
        Read | Quiet => None,
        _ if node.is_null() => None,
        Warn(text) => Some(text),
        WarnUnless(value, text) => match &node.value {
            Value::Scalar(scalar) if scalar.text.trim() == value => None,
            _ => Some(text),
        },
    }
}

/// `unknown key`, and the nearest known one: a sibling that looks alike, else the same key elsewhere.
fn unknown(parent: &str, name: &str) -> String {
    let prefix = if parent.is_empty() { String::new() } else { format!("{parent}.") };
    let siblings = KNOWN.iter().filter_map(|(known, _)| known.strip_prefix(prefix.as_str()));
    let nearest = siblings
        .map(|rest| rest.split(['.', '[']).next().unwrap_or(rest))
        .map(|sibling| (strsim::damerau_levenshtein(sibling, name), sibling))
        .min();
    if let Some((distance, sibling)) = nearest
        && distance <= 1 + name.len() / 4
    {
        return format!("unknown key (did you mean {sibling}?)");
    }
    let elsewhere = KNOWN.iter().find_map(|(known, _)| {
        let mut path = Vec::new();
        for part in known.split('.') {
            path.push(part.trim_end_matches("[]"));
            if part.trim_end_matches("[]") == name {
                return Some(path.join("."));
            }
        }
        None
    });
    match elsewhere {
        Some(path) => format!("unknown key (it belongs at {path}; is the indentation right?)"),
        None => "unknown key; remove it, or see conf/config.yaml.example for the keys there are".into(),
    }
}

/// The keys that reach the settings, for the test that holds the example complete.
#[cfg(test)]
pub(crate) fn read_keys() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().filter(|(_, used)| matches!(used, Read)).map(|(path, _)| *path)
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
    fn a_key_in_the_wrong_place_is_told_its_place() {
        let (problems, _) = checked("https_admin: true");
        assert!(problems[0].contains("belongs at deployment.admin.https_admin"), "{problems:?}");
    }

    #[test]
    fn keys_inside_lists_are_checked() {
        let (problems, _) = checked("deployment: {admin: {admin_key: [{name: a, kee: b}]}}");
        assert_eq!(problems, ["1: deployment.admin.admin_key[].kee: unknown key (did you mean key?)"]);
    }

    #[test]
    fn a_scalar_where_keys_belong_is_refused() {
        let (problems, _) = checked("deployment: 5");
        assert_eq!(problems, ["1: deployment: expected keys below it, found the number 5"]);
    }

    #[test]
    fn unused_keys_warn_only_where_it_matters() {
        let (problems, warnings) =
            checked("apisix:\n  enable_reuseport: false\n  proxy_mode: http\nplugins: [a]\n");
        assert!(problems.is_empty());
        assert_eq!(warnings, [format!("4: plugins: {NO_PLUGINS}")]);
    }

    #[test]
    fn the_table_has_no_doubles() {
        for (nth, (path, _)) in KNOWN.iter().enumerate() {
            assert!(KNOWN[nth + 1..].iter().all(|(other, _)| other != path), "{path}");
        }
    }
}
