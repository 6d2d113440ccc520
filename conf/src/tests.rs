//! Loading as a whole: text in, settings or all problems out; and the two files of this folder.

use std::time::Duration;

use super::*;

fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Settings, ConfError> {
    let lookup =
        |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    load_text(Path::new("conf/config.yaml"), text, Path::new("/srv/gate"), &lookup)
}

fn problems(text: &str) -> String {
    load_with(text, &[]).unwrap_err().to_string()
}

#[test]
fn the_settings_file_may_be_a_bounded_pipe() {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    let message = load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(message.contains("/dev/zero") && message.contains("more than 1048576 bytes"), "{message}");
    // As a shell passes `-c <(command)`.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(b"apisix: {node_listen: 9999}\n").unwrap());
    let settings = load(Path::new(&format!("/proc/self/fd/{}", reader.as_raw_fd()))).unwrap();
    writing.join().unwrap();
    assert_eq!(settings.apisix.node_listen[0].port(), 9999);
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let settings = load_with("# nothing\n", &[]).unwrap();
    assert_eq!(settings.deployment.provider, ConfigProvider::Embedded);
    let [listener] = &settings.deployment.admin.listeners[..] else { panic!() };
    assert_eq!(listener.address.to_string(), "0.0.0.0:9180");
    assert_eq!(listener.allow.as_ref().unwrap()[0].to_string(), "127.0.0.0/24");
    assert_eq!(settings.deployment.admin.keys[0].key, AdminKeyValue::Generated);
    assert_eq!(settings.apisix.ssl.protocols, [TlsVersion::V12, TlsVersion::V13]);
    assert_eq!(settings.apisix.status, None);
    assert_eq!((settings.apisix.proxy_mode, settings.apisix.streams.len()), (ProxyMode::Http, 0));
    assert_eq!(settings.http.worker_shutdown_timeout, Duration::from_secs(240));
    assert!(!settings.countersign.preserve_header_case);
    assert_eq!(settings.countersign.limits.header_line_bytes, 8192);
    assert_eq!(settings.countersign.limits.header_bytes, 32768);
    assert_eq!(settings.countersign.push.key, Path::new("/srv/gate/conf/pki/push-server.key"));
    assert!(!settings.countersign.node.name.is_empty());
    assert!(settings.warnings.iter().any(|text| text.contains("public default keyring")));
}

#[test]
fn path_settings_are_read() {
    let switches = |text: &str| {
        let paths = load_with(text, &[]).unwrap().apisix.paths;
        [paths.match_uri_encoded_slash, paths.normalize_uri_like_servlet, paths.delete_uri_tail_slash]
    };
    assert_eq!(switches(""), [false; 3]);
    assert_eq!(switches("apisix: {match_uri_encoded_slash: true}"), [true, false, false]);
    assert_eq!(switches("apisix: {normalize_uri_like_servlet: true}"), [false, true, false]);
    assert_eq!(switches("apisix: {delete_uri_tail_slash: true}"), [false, false, true]);
    assert!(problems("apisix: {delete_uri_tail_slash: 1}").contains("apisix.delete_uri_tail_slash"));
}

#[test]
fn the_example_equals_the_defaults() {
    let example = load_with(include_str!("../config.yaml.example"), &[]).unwrap();
    let mut defaults = load_with("", &[]).unwrap();
    defaults.warnings.clone_from(&example.warnings);
    defaults.values.clone_from(&example.values);
    assert_eq!(example, defaults);
}

#[test]
fn the_example_has_every_key() {
    let example = include_str!("../config.yaml.example");
    for (path, _) in schema::read_keys(Plane::Data) {
        let name = path.rsplit('.').next().unwrap();
        assert!(example.contains(&format!("{name}:")), "{path} is not in conf/config.yaml.example");
    }
}

#[test]
fn the_demo_file_takes_its_ports_from_the_environment() {
    let text = include_str!("../config.yaml");
    let settings = load_with(text, &[]).unwrap();
    let tls = settings.deployment.admin.listeners[0].tls.clone().unwrap();
    assert_eq!(tls.ca.as_deref(), Some(Path::new("/srv/gate/conf/pki/admin-ca.crt")));
    assert_eq!(settings.apisix.status.unwrap().to_string(), "127.0.0.1:7085");

    let variables = [
        ("COUNTERSIGN_PKI", "/tmp/pki"),
        ("COUNTERSIGN_DATA", "/tmp/data"),
        ("COUNTERSIGN_ADMIN_PORT", "0"),
        ("COUNTERSIGN_PUSH_PORT", "19280"),
        ("COUNTERSIGN_HTTP_PORT", "19080"),
        ("COUNTERSIGN_HTTPS_PORT", "19443"),
        ("COUNTERSIGN_STATUS_PORT", "17085"),
        ("COUNTERSIGN_CONTROL_STATUS_PORT", "17086"),
        ("COUNTERSIGN_ADMIN_KEY", "123456"),
    ];
    let settings = load_with(text, &variables).unwrap();
    assert_eq!(settings.deployment.admin.listeners[0].address.port(), 0);
    let key = AdminKeyValue::Clear(Secret::new("123456".to_owned()));
    assert_eq!(settings.deployment.admin.keys[0].key, key);
    assert_eq!(settings.countersign.push.listen.port(), 19280);
    assert_eq!(settings.countersign.node.control_planes, ["127.0.0.1:19280"]);
    assert_eq!(settings.countersign.node.cert, Path::new("/tmp/pki/node.crt"));
    assert_eq!(settings.countersign.store.path, Path::new("/tmp/data/store.redb"));
    assert_eq!(settings.apisix.node_listen[0].port(), 19080);
    assert_eq!(settings.apisix.ssl.listen[0].port(), 19443);
    assert_eq!(settings.apisix.status.unwrap().port(), 17085);
    assert_eq!(settings.countersign.control_plane.status.unwrap().port(), 17086);
}

#[test]
fn all_problems_are_reported_together_with_their_lines() {
    let text = "\
deployment:
  admin:
    admin_lisen: {port: 1}
    https_admin: yes
    allow_admin: [10.0.0.0/8, 10.0.0.0/99]
apisix:
  ssl:
    ssl_protocols: SSLv3
countersign:
  store:
    path: ${{NOT_SET_ANYWHERE}}/x
";
    let message = problems(text);
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines[0], "conf/config.yaml has 5 problems:");
    assert_eq!(
        lines[1],
        "conf/config.yaml:3: deployment.admin.admin_lisen: unknown key (did you mean admin_listen?)"
    );
    assert_eq!(
        lines[2],
        "conf/config.yaml:4: deployment.admin.https_admin: expected true or false, found the text \"yes\""
    );
    assert!(
        lines[3].starts_with("conf/config.yaml:5: deployment.admin.allow_admin[]: expected an IP address")
    );
    assert!(lines[4].starts_with("conf/config.yaml:8: apisix.ssl.ssl_protocols: SSLv3 is not supported"));
    assert!(
        lines[5].contains(":11: countersign.store.path: can't find environment variable NOT_SET_ANYWHERE")
    );
}

#[test]
fn tls_1_3_suites_in_a_cipher_list_warn() {
    let warned = |list: &str| {
        let settings = load_with(&format!("apisix: {{ssl: {{ssl_ciphers: '{list}'}}}}"), &[]).unwrap();
        settings.warnings.iter().any(|text| text.contains("TLS 1.3"))
    };
    assert!(warned("HIGH:!TLS_AES_128_GCM_SHA256"));
    assert!(warned("TLS_AES_128_GCM_SHA256:ECDHE-RSA-AES128-GCM-SHA256"));
    assert!(!warned("HIGH:!aNULL"));
}

#[test]
fn https_admin_without_a_certificate_is_an_error() {
    assert!(
        problems("deployment: {admin: {https_admin: true}}").contains("missing ssl cert for https admin")
    );
}

#[test]
fn a_missing_admin_key_is_an_error_unless_disabled() {
    assert!(problems("deployment: {admin: {admin_key: []}}").contains("missing valid Admin API token"));
    assert!(problems("deployment: {admin: {admin_key: null}}").contains("missing valid Admin API token"));
    assert!(load_with("deployment: {admin: {admin_key: [], admin_key_required: false}}", &[]).is_ok());
    assert!(
        problems("deployment: {admin: {admin_key: [{name: a, key: b, role: root}]}}")
            .contains("admin or viewer")
    );
}

#[test]
fn two_listeners_on_one_port_are_an_error() {
    let message = problems("apisix:\n  node_listen: [9443]\n");
    assert!(message.contains("port 9443 conflicts with apisix.node_listen"), "{message}");
    let apart =
        "apisix: {node_listen: [{ip: 127.0.0.1, port: 9443}], ssl: {listen: [{ip: 127.0.0.2, port: 9443}]}}";
    assert!(load_with(apart, &[]).is_ok());
}

#[test]
fn a_keyring_entry_of_the_wrong_length_is_not_shown() {
    let message = problems("apisix: {data_encryption: {keyring: [qeddd145sfvddff3, sesame-open]}}");
    assert!(message.contains("entry 2 is 11 bytes long"), "{message}");
    assert!(!message.contains("sesame"));
}

#[test]
fn no_message_shows_a_secret() {
    for text in [
        "deployment: {admin: {admin_key: [sesame]}}",
        "deployment: {admin: {admin_key: [{name: a, key: [sesame], role: admin}]}}",
        "deployment: {etcd: {user: u, password: {a: sesame}}}",
        "apisix: {data_encryption: {keyring: [[sesame]]}}",
        "apisix: {data_encryption: {keyring: sesame}}",
    ] {
        let message = problems(text);
        assert!(!message.contains("sesame"), "{message}");
    }
}

proptest::proptest! {
    /// Any text gives complete settings or problems, never a panic.
    #[test]
    fn any_text_gives_settings_or_problems(text in "(([a-z]{1,8}: |- |  |\\{|\\}|\\[|\\]|&a |\\*a|\\$\\{\\{[A-Z]{0,3}(:=)?\\}\\}|[0-9]{1,25}|\\n|\"|'|null){0,30})") {
        match load_with(&text, &[("A", "1")]) {
            Ok(settings) => proptest::prop_assert!(!settings.countersign.node.control_planes.is_empty()),
            Err(error) => proptest::prop_assert!(error.to_string().starts_with("conf/config.yaml")),
        }
    }
}

#[test]
fn debug_shows_no_secret() {
    let text = "deployment: {admin: {admin_key: [{name: a, key: sesame, role: admin}]}, etcd: {user: u, password: mellon}}";
    let shown = format!("{:?}", load_with(text, &[]).unwrap());
    for secret in ["sesame", "mellon", "qeddd145sfvddff3"] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[test]
fn apisix_environment_overrides_apply() {
    let hosts = ("APISIX_DEPLOYMENT_ETCD_HOST", "[\"https://a:2379\",\"https://b:2379\"]");
    let settings = load_with("", &[hosts, ("APISIX_WORKER_PROCESSES", "3")]).unwrap();
    assert_eq!(settings.deployment.etcd.hosts, ["https://a:2379", "https://b:2379"]);
    assert_eq!(settings.countersign.workers, 3);
    let settings = load_with("", &[("APISIX_DEPLOYMENT_ETCD_HOST", "nonsense")]).unwrap();
    assert_eq!(settings.deployment.etcd.hosts, ["http://127.0.0.1:2379"]);
    assert!(settings.warnings.iter().any(|text| text.contains("APISIX_DEPLOYMENT_ETCD_HOST")));
}

#[test]
fn yaml_errors_have_line_and_column() {
    let message = problems("deployment:\n  admin: [\n");
    assert!(message.starts_with("conf/config.yaml:") && message.contains("not valid YAML"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    let message = load(Path::new("/nonexistent/config.yaml")).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/config.yaml") && message.contains("-c PATH"), "{message}");
}

#[test]
fn an_apisix_file_is_accepted_unchanged() {
    let text = "\
apisix:
  node_listen:
    - 9080
    - port: 9081
  enable_control: true
  router: {http: radixtree_host_uri, ssl: radixtree_sni}
  ssl:
    listen: [{port: 9443, enable_http3: false}]
nginx_config:
  error_log: logs/error.log
  http: {access_log: logs/access.log, real_ip_from: [127.0.0.1, 'unix:']}
  http_server_configuration_snippet: |
    proxy_ssl_verify on;
plugins: [limit-count, proxy-rewrite]
deployment:
  role: traditional
  role_traditional: {config_provider: etcd}
  etcd: {host: ['https://127.0.0.1:2379'], prefix: /apisix, tls: {cert: c.pem, key: k.pem}}
";
    let settings = load_with(text, &[]).unwrap();
    assert_eq!(settings.deployment.provider, ConfigProvider::Etcd);
    assert_eq!(settings.deployment.etcd.tls.cert.as_deref(), Some(Path::new("/srv/gate/c.pem")));
    assert!(settings.http.proxy_ssl_verify);
    assert_eq!(settings.log.file.as_deref(), Some(Path::new("/srv/gate/logs/error.log")));
    // APISIX's default is logs/error.log: only a file that names it makes us write one.
    assert_eq!(load_with("", &[]).unwrap().log, LogSettings::default());
    assert!(settings.warnings.iter().any(|text| text.starts_with("conf/config.yaml:14: plugins:")));
}

#[test]
fn stream_listeners_are_read_and_ports_must_differ() {
    let tcp = "apisix:\n  proxy_mode: http&stream\n  stream_proxy:\n    tcp:\n      - {addr: 9100, tls: true}\n      - 9200-9201\n";
    let settings = load_with(tcp, &[]).unwrap();
    assert!(settings.apisix.proxy_mode.http() && settings.apisix.proxy_mode.streams());
    let shown: Vec<_> = settings.apisix.streams.iter().map(|l| (l.addr.to_string(), l.tls)).collect();
    let clear = |addr: &str| (addr.to_owned(), false);
    assert_eq!(shown, [("0.0.0.0:9100".to_owned(), true), clear("0.0.0.0:9200"), clear("0.0.0.0:9201")]);

    let clash = tcp.replace("9200-9201", "9442-9443");
    let message = problems(&clash);
    assert!(
        message.contains("apisix.ssl.listen: port 9443 conflicts with apisix.stream_proxy.tcp"),
        "{message}"
    );
    // No HTTP listener, no conflict.
    assert!(load_with(&clash.replace("http&stream", "stream"), &[]).is_ok());

    let off = load_with(&tcp.replace("http&stream", "http"), &[]).unwrap();
    assert!(
        off.warnings.iter().any(|text| text.contains("stream_proxy.tcp: not listened on")),
        "{:?}",
        off.warnings
    );
    let none = load_with("apisix: {proxy_mode: stream}", &[]).unwrap();
    assert!(none.warnings.iter().any(|text| text.contains("names no listener")), "{:?}", none.warnings);
    let udp = load_with(&format!("{tcp}    udp: [9300]\n"), &[]).unwrap();
    assert!(
        udp.warnings.iter().any(|text| text.contains("apisix.stream_proxy.udp: UDP")),
        "{:?}",
        udp.warnings
    );

    for (wrong, message) in [
        ("apisix: {proxy_mode: tcp}", "1: apisix.proxy_mode: expected http, stream or http&stream"),
        ("apisix: {stream_proxy: {tcp: 9100}}", "apisix.stream_proxy.tcp: expected a list"),
        ("apisix: {stream_proxy: {tcp: [1-2000]}}", "apisix.stream_proxy.tcp: 2000 ports; at most 1024"),
        (
            "apisix: {stream_proxy: {tcp: [x]}}",
            "apisix.stream_proxy.tcp[]: invalid stream_proxy.tcp entry: x",
        ),
        (
            "apisix: {stream_proxy: {tcp: [{addr: 1, proxy_protocol: 1}]}}",
            "apisix.stream_proxy.tcp[].proxy_protocol: expected true or false",
        ),
        ("apisix: {stream_proxy: {tcp: [{adr: 1}]}}", "unknown key (did you mean addr?)"),
    ] {
        let found = problems(wrong);
        assert!(found.contains(message), "{wrong}: {found}");
    }
}

#[test]
fn real_ip_trusts_no_proxy_by_default() {
    let http = |text: &str| {
        load_with(&format!("nginx_config:\n  http:\n{text}"), &[]).map(|all| (all.real_ip, all.warnings))
    };
    let (default, _) = http("    send_timeout: 10s\n").unwrap();
    assert_eq!(default, RealIpSettings { header: "X-Real-IP".into(), from: vec![], recursive: false });

    let text = "    real_ip_header: X-Forwarded-For\n    real_ip_from: [10.0.0.0/8, '::1', '192.0.2.9/24', 'unix:']\n    \
                real_ip_recursive: on\n";
    let (named, warnings) = http(text).unwrap();
    assert_eq!((named.header.as_str(), named.recursive), ("X-Forwarded-For", true));
    assert_eq!(named.from.len(), 3);
    assert!(!warnings.iter().any(|text| text.contains("real_ip")), "{warnings:?}");
    for (flag, recursive) in [("'on'", true), ("true", true), ("'off'", false), ("off", false)] {
        assert_eq!(
            http(&format!("    real_ip_recursive: {flag}\n")).unwrap().0.recursive,
            recursive,
            "{flag}"
        );
    }
    for alone in ["    real_ip_header: X-Real-IP\n", "    real_ip_recursive: on\n"] {
        let (_, warnings) = http(alone).unwrap();
        assert!(
            warnings.iter().any(|text| text.contains("no effect without real_ip_from")),
            "{alone}{warnings:?}"
        );
    }
}

#[test]
fn an_ipv4_mapped_network_is_the_ipv4_network() {
    let settings = |network: &str| {
        load_with(
            &format!(
                "deployment: {{admin: {{allow_admin: ['{network}']}}}}\napisix: {{trusted_addresses: ['{network}']}}\n\
                 nginx_config: {{http: {{real_ip_from: ['{network}']}}}}"
            ),
            &[],
        )
    };
    let read = settings("::ffff:127.0.0.0/104").unwrap();
    let wanted = ["127.0.0.0/8".parse().unwrap()];
    assert_eq!(read.deployment.admin.listeners[0].allow.as_deref(), Some(&wanted[..]));
    assert_eq!(read.apisix.trusted_addresses.as_deref(), Some(&wanted[..]));
    assert_eq!(read.real_ip.from, wanted);
    let refused = settings("::ffff:127.0.0.0/80").unwrap_err().to_string();
    assert_eq!(refused.matches("needs a prefix of 96 bits or more").count(), 3, "{refused}");
}

#[test]
fn trusting_every_address_warns() {
    let warned = |text: &str| {
        let warnings = load_with(text, &[]).unwrap().warnings;
        warnings.iter().filter(|text| text.contains("lists every address")).count()
    };
    assert_eq!(
        warned(
            "nginx_config: {http: {real_ip_from: [10.0.0.0/8, '::/0']}}\napisix: {trusted_addresses: [0.0.0.0/0]}"
        ),
        2
    );
    assert_eq!(
        warned("nginx_config: {http: {real_ip_from: [10.0.0.0/8]}}\napisix: {trusted_addresses: ['::1']}"),
        0
    );
}

#[test]
fn invalid_real_ip_settings_are_errors() {
    for (text, message) in [
        ("real_ip_header: 'X Real'", "real_ip_header: expected the name of a header"),
        ("real_ip_header: ''", "real_ip_header: expected the name of a header"),
        ("real_ip_from: 10.0.0.0/8", "real_ip_from: expected a list"),
        ("real_ip_from: [lb.example]", "real_ip_from[]: expected an IP address or a block"),
        ("real_ip_from: [10.0.0.0/33]", "real_ip_from[]: expected an IP address or a block"),
        ("real_ip_recursive: maybe", "real_ip_recursive: expected on or off"),
    ] {
        let found = problems(&format!("nginx_config:\n  http:\n    {text}\n"));
        assert!(found.contains(&format!("nginx_config.http.{message}")), "{text}: {found}");
    }
    let found = problems("apisix:\n  trusted_addresses: []\n");
    assert!(found.contains("apisix.trusted_addresses: expected at least one address"), "{found}");
    assert_eq!(
        load_with("apisix:\n  trusted_addresses: null\n", &[]).unwrap().apisix.trusted_addresses,
        None
    );
}

#[test]
fn a_disabled_admin_api_needs_no_settings() {
    let closed = "apisix: {enable_admin: false, node_listen: 9180}\ndeployment: {admin: {admin_key: [], https_admin: true}}";
    assert!(!load_with(closed, &[]).unwrap().deployment.admin.enabled);
    let enabled = |text: &str| load_with(text, &[]).unwrap().deployment.admin.enabled;
    assert!(
        enabled("")
            && enabled("apisix: {enable_admin: true}")
            && enabled("deployment: {role: control_plane}")
    );
    assert!(!enabled("apisix: {enable_admin: null}"));
    assert!(!enabled("deployment: {role: data_plane}"));
    assert!(!enabled("deployment: {role: data_plane}\napisix: {enable_admin: true}"));
    assert!(!enabled("deployment: {role: control_plane}\napisix: {enable_admin: false}"));
    let variable = load_with("apisix: {enable_admin: '${{ON}}'}", &[("ON", "false")]).unwrap();
    assert!(!variable.deployment.admin.enabled);
    assert!(problems("apisix: {enable_admin: no}").contains("apisix.enable_admin: expected true or false"));
}

#[test]
fn cipher_lists_are_read_and_warn_of_unsupported() {
    assert_eq!(load_with("", &[]).unwrap().apisix.ssl.ciphers, None);
    let text = "apisix: {ssl: {ssl_ciphers: 'ECDHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256'}}";
    let settings = load_with(text, &[]).unwrap();
    assert_eq!(settings.apisix.ssl.ciphers.unwrap().names(), "ECDHE-RSA-AES256-GCM-SHA384");
    let message = "1: apisix.ssl.ssl_ciphers: DHE-RSA-AES128-GCM-SHA256 cannot be served, left out";
    assert!(settings.warnings.iter().any(|text| text.ends_with(message)), "{:?}", settings.warnings);
    for nothing in ["DHE-RSA-AES128-GCM-SHA256", "", "HIGH:!ECDHE", "ECDHE-RSA-AES128-SHA"] {
        let found = problems(&format!("apisix: {{ssl: {{ssl_ciphers: '{nothing}'}}}}"));
        assert!(found.contains("1: apisix.ssl.ssl_ciphers: none of its suites can be served"), "{found}");
    }
    let old = "apisix: {ssl: {ssl_ciphers: 'ECDHE-RSA-AES128-SHA', ssl_protocols: TLSv1.1}}";
    assert!(load_with(old, &[]).is_ok());
}

#[test]
fn an_unsupported_snippet_is_an_error() {
    let text =
        |name: &str, snippet: &str| format!("nginx_config:\n  {name}: |\n    # a comment\n    {snippet}\n");
    for name in [
        "main_configuration_snippet",
        "http_configuration_snippet",
        "http_server_configuration_snippet",
        "http_server_location_configuration_snippet",
        "http_admin_configuration_snippet",
        "http_end_configuration_snippet",
        "stream_configuration_snippet",
    ] {
        let found = problems(&text(name, "deny 10.0.0.0/8;"));
        assert!(
            found.contains(&format!("nginx_config.{name}: nginx's directive \"deny 10.0.0.0/8\" cannot")),
            "{found}"
        );
        assert!(load_with(&text(name, ""), &[]).is_ok());
        assert!(load_with(&format!("nginx_config: {{{name}: ~}}"), &[]).is_ok());
    }
    for name in ["http_configuration_snippet", "http_server_location_configuration_snippet"] {
        assert!(load_with(&text(name, "proxy_ssl_verify on;"), &[]).unwrap().http.proxy_ssl_verify, "{name}");
    }
    assert!(problems(&text("http_end_configuration_snippet", "proxy_ssl_verify on;")).contains("belongs in"));
    let both = text("http_configuration_snippet", "proxy_ssl_verify on; proxy_ssl_verify_depth 2;")
        + "  http_server_configuration_snippet: proxy_ssl_verify off;\n";
    let http = load_with(&both, &[]).unwrap().http;
    assert_eq!((http.proxy_ssl_verify, http.proxy_ssl_verify_depth), (false, Some(2)));
}

#[test]
fn nginx_worker_connections_is_the_fallback() {
    let connections = |text: &str| load_with(text, &[]).unwrap().countersign.limits.connections_per_worker;
    assert_eq!(connections(""), 50_000);
    assert_eq!(connections("nginx_config: {event: {worker_connections: 10620}}"), 10620);
    let both = "nginx_config: {event: {worker_connections: 10}}\ncountersign: {limits: {connections_per_worker: 20}}";
    assert_eq!(connections(both), 20);
    assert!(
        problems("nginx_config: {event: {worker_connections: x}}")
            .contains("event.worker_connections: expected a whole")
    );
}

#[test]
fn a_plugin_list_must_contain_proxy_rewrite() {
    for list in ["[]", "[limit-count]"] {
        assert!(
            problems(&format!("plugins: {list}")).contains("1: plugins: the list switches proxy-rewrite off")
        );
    }
    assert!(
        load_with("plugins: [proxy-rewrite]", &[])
            .unwrap()
            .warnings
            .iter()
            .all(|text| !text.contains("plugins"))
    );
}

#[test]
fn proxy_protocol_ports_listen_like_node_listen() {
    let text = "apisix:\n  proxy_protocol: {listen_http_port: 9181, listen_https_port: 0}\n\
                nginx_config: {http: {real_ip_header: proxy_protocol, real_ip_from: [10.0.0.1]}}\n";
    let settings = load_with(text, &[]).unwrap();
    let shown = |listen: &[std::net::SocketAddr]| {
        listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(shown(&settings.apisix.proxy_protocol.http), "0.0.0.0:9181 [::]:9181");
    assert_eq!(shown(&settings.apisix.proxy_protocol.https), "0.0.0.0:0");
    let none = load_with("apisix: {proxy_protocol: null}", &[]).unwrap();
    assert_eq!(none.apisix.proxy_protocol, ProxyProtocolListen::default());
    let no_ssl = "apisix: {ssl: {enable: false}, proxy_protocol: {listen_https_port: 9182}}";
    assert_eq!(load_with(no_ssl, &[]).unwrap().apisix.proxy_protocol.https, []);
    for (text, message) in [
        ("listen_http_port: 9080", "port 9080 conflicts with apisix.node_listen"),
        ("listen_https_port: 9443", "port 9443 conflicts with apisix.ssl.listen"),
        ("listen_http_port: x", "proxy_protocol.listen_http_port: "),
        ("enable_tcp_pp: 1", "proxy_protocol.enable_tcp_pp: "),
        ("listen_port: 1", "unknown key"),
    ] {
        let problems = problems(&format!("apisix:\n  proxy_protocol:\n    {text}\n"));
        assert!(problems.contains(message), "{text}: {problems}");
    }
}

/// A header that is read and cannot count looks like a working set-up until an address matters.
#[test]
fn proxy_protocol_without_effect_is_warned_about() {
    let warned = |text: &str| {
        let warnings = load_with(text, &[]).unwrap().warnings.into_iter();
        warnings.filter(|text| !text.contains("keyring")).collect::<Vec<_>>().join("\n")
    };
    let stream = |more: &str, nginx: &str| {
        format!(
            "apisix:\n  proxy_mode: http&stream\n  stream_proxy: {{tcp: [{{addr: 9100{more}}}]}}\n\
             nginx_config:\n  stream: {{{nginx}}}\n"
        )
    };
    let http = "apisix: {proxy_protocol: {listen_http_port: 9181}}\n";
    let header = "nginx_config: {http: {real_ip_header: proxy_protocol, real_ip_from: [10.0.0.1]}}\n";
    let ignored = "headers are read and ignored";
    for (text, expected) in [
        (http.to_owned(), Some(ignored)),
        (format!("{http}{header}"), None),
        (header.to_owned(), Some("no listener reads the PROXY protocol")),
        (stream("", ""), None),
        (stream(", proxy_protocol: true", ""), Some(ignored)),
        (stream(", proxy_protocol: true", "real_ip_from: [10.0.0.0/8, 'unix:']"), None),
        (stream("", "real_ip_from: [10.0.0.0/8]"), Some("no stream listener reads the PROXY protocol")),
        (stream(", proxy_protocol: true", "real_ip_from: [0.0.0.0/0]"), Some("lists every address")),
    ] {
        let warnings = warned(&text);
        let is_expected = expected.map_or(warnings.is_empty(), |expected| warnings.contains(expected));
        assert!(is_expected, "{text}: {warnings}");
    }
}

/// docs/SETTINGS.md must contain the table of unsupported keys.
#[test]
fn the_document_lists_the_unsupported_keys() {
    let rows: Vec<String> = unsupported_keys().map(|(key, what)| format!("| `{key}` | {what} |")).collect();
    let document = include_str!("../../docs/SETTINGS.md");
    let shown: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(shown == rows, "docs/SETTINGS.md must hold these rows:\n{}", rows.join("\n"));
}

#[test]
fn a_reload_keeps_what_needs_an_upgrade() {
    let running = load_with("countersign: {workers: 2, node: {name: one}}", &[]).unwrap();
    let reload = |text: &str| reload_text(&running, Plane::Data, text, Path::new("/srv/gate"), &|_| None);
    let text =
        "countersign: {workers: 3, node: {name: one}, drain_delay: 5}\napisix: {enable_http2: false}\n";
    let Reloaded { settings, changed } = reload(text).unwrap();
    assert_eq!(changed.hot, ["countersign.drain_delay"]);
    assert_eq!(changed.upgrade, ["apisix.enable_http2", "countersign.workers"]);
    assert_eq!(settings.countersign.drain_delay, Duration::from_secs(5));
    assert_eq!((settings.countersign.workers, settings.apisix.enable_http2), (2, true));
    // The next reload names them again, and one with the old file nothing.
    let again = reload_text(&settings, Plane::Data, text, Path::new("/srv/gate"), &|_| None).unwrap();
    assert_eq!((again.changed.hot.len(), again.changed.upgrade), (0, changed.upgrade));
    let error = reload("countersign: {workers: x, drain_delay: 5}").unwrap_err().to_string();
    assert!(error.contains("countersign.workers"), "{error}");
    // The port of a listener that needs an upgrade is not free.
    let running = load_with("apisix: {status: {port: 7085}}", &[]).unwrap();
    let text = "apisix: {node_listen: [{ip: 127.0.0.1, port: 7085}], status: {port: 7087}}";
    let error = reload_text(&running, Plane::Data, text, Path::new("/srv/gate"), &|_| None).unwrap_err();
    assert!(error.to_string().contains("port 7085 conflicts"), "{error}");
}

/// docs/SETTINGS.md must list the keys that a reload does not apply.
#[test]
fn the_document_lists_the_keys_that_need_an_upgrade() {
    let document = include_str!("../../docs/SETTINGS.md");
    for (plane, program) in [(Plane::Data, "data plane"), (Plane::Control, "control plane")] {
        let keys: Vec<_> = upgrade_keys(plane).iter().map(|key| format!("`{key}`")).collect();
        let line = format!("- A {program}: {}.", keys.join(", "));
        assert!(document.lines().any(|shown| shown == line), "docs/SETTINGS.md must have this line:\n{line}");
    }
}

mod admin;
mod apisix_example;
mod keyring;
mod null;
mod status;
mod tracing;
