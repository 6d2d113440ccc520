//! `null` deletes a default and never lifts a restriction.

use super::{load_with, problems};

#[test]
fn null_is_an_error_where_a_default_protects() {
    let allowed = |text: &str| load_with(text, &[]).unwrap().deployment.admin.listeners[0].allow.clone();
    let loopback = "admin_listen: {ip: 127.0.0.1}";
    assert_eq!(allowed(&format!("deployment: {{admin: {{allow_admin: null, {loopback}}}}}")), None);
    assert_eq!(allowed("deployment: {admin: {allow_admin: []}}"), Some(vec![]));
    let settings = load_with("apisix: {data_encryption: {keyring: null}, status: null}", &[]).unwrap();
    assert!(settings.apisix.keyring.is_empty() && settings.apisix.status.is_none());
    let settings = load_with("countersign: {control_plane: {status: null}}", &[]).unwrap();
    assert_eq!(settings.countersign.control_plane.status, None);
    for (text, field) in [
        ("apisix:\n  node_listen:\n", "apisix.node_listen"),
        ("apisix: {ssl: {listen: null}}", "apisix.ssl.listen"),
        ("apisix: {ssl: {ssl_protocols: ~}}", "apisix.ssl.ssl_protocols"),
        ("apisix: {ssl: null}", "apisix.ssl"),
        ("apisix: {proxy_mode: null}", "apisix.proxy_mode"),
        ("deployment: {admin: {admin_listen: null}}", "deployment.admin.admin_listen"),
        ("deployment: {admin: {admin_listen: {ip: null}}}", "deployment.admin.admin_listen.ip"),
        ("deployment: {admin: {admin_key_required: null}}", "deployment.admin.admin_key_required"),
        ("nginx_config: {http: {client_max_body_size: null}}", "nginx_config.http.client_max_body_size"),
        ("nginx_config:", "nginx_config"),
        ("countersign: {push: {allowed_names: null}}", "countersign.push.allowed_names"),
    ] {
        let found = problems(text);
        let message = format!("{field}: null deletes the default: write a value or remove the line");
        assert_eq!(found.matches("null deletes the default").count(), 1, "{text}: {found}");
        assert!(found.contains(&message), "{text}: {found}");
    }
}

#[test]
fn null_disables_flags() {
    let text = "apisix: {enable_http2: null, enable_ipv6: ~, ssl: {enable: null, ssl_session_tickets: null}}";
    let apisix = load_with(text, &[]).unwrap().apisix;
    assert!(!apisix.enable_http2 && !apisix.enable_ipv6 && !apisix.ssl.enable && !apisix.ssl.session_tickets);
}
