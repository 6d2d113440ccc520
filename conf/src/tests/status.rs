//! The listeners for operators, and who may reach them.

use super::*;

#[test]
fn control_and_prometheus_are_open_by_default_on_loopback() {
    let settings = load_with("", &[]).unwrap();
    let control = settings.apisix.control.unwrap();
    assert_eq!((control.address.to_string().as_str(), control.is_named), ("127.0.0.1:9090", false));
    let prometheus = settings.prometheus.unwrap();
    let listener = prometheus.listener;
    assert_eq!((listener.address.to_string().as_str(), listener.is_named), ("127.0.0.1:9091", false));
    assert_eq!(prometheus.uri, "/apisix/prometheus/metrics");
    assert_eq!(prometheus.prefix, "apisix_");
    let off = "apisix: {enable_control: false}\nplugin_attr: {prometheus: {enable_export_server: false}}";
    let settings = load_with(off, &[]).unwrap();
    assert_eq!((settings.apisix.control, settings.prometheus), (None, None));
}

#[test]
fn an_address_in_the_file_is_named() {
    let text = "apisix: {control: {port: 9092}}\nplugin_attr: {prometheus: {export_addr: {ip: 127.0.0.2}}}";
    let settings = load_with(text, &[]).unwrap();
    let control = settings.apisix.control.unwrap();
    assert_eq!((control.address.to_string().as_str(), control.is_named), ("127.0.0.1:9092", true));
    let listener = settings.prometheus.unwrap().listener;
    assert_eq!((listener.address.to_string().as_str(), listener.is_named), ("127.0.0.2:9091", true));
}

#[test]
fn a_default_gives_way_to_a_listener_of_the_file() {
    let settings = load_with("apisix: {node_listen: [9090, 9091], enable_ipv6: false}", &[]).unwrap();
    assert_eq!((settings.apisix.control, settings.prometheus), (None, None));
    for expected in [
        "apisix.control: 127.0.0.1:9090 is an address of apisix.node_listen",
        "write plugin_attr.prometheus.enable_export_server: false",
    ] {
        assert!(settings.warnings.iter().any(|text| text.contains(expected)), "{:#?}", settings.warnings);
    }
    let message = problems("apisix: {node_listen: 9090, enable_ipv6: false, control: {port: 9090}}");
    assert!(message.contains("port 9090 conflicts with apisix.control"), "{message}");
}

#[test]
fn an_address_for_other_machines_needs_access_rules() {
    let listeners = [
        ("apisix.status", "apisix: {status: {ip: 0.0.0.0}}"),
        ("apisix.control", "apisix: {control: {ip: 10.1.2.3}}"),
        ("plugin_attr.prometheus.export_addr", "plugin_attr: {prometheus: {export_addr: {ip: '::'}}}"),
        ("countersign.control_plane.status", "countersign: {control_plane: {status: '0.0.0.0:7086'}}"),
    ];
    for (key, text) in listeners {
        let message = problems(text);
        for expected in [key, "countersign.status.allow", "countersign.status.tls", "127.0.0.1"] {
            assert!(message.contains(expected), "{expected}: {message}");
        }
    }
    let status = "apisix: {status: {ip: 0.0.0.0}}\ncountersign: {status: ";
    let settings = load_with(&format!("{status}{{allow: [10.0.0.0/8]}}}}"), &[]).unwrap();
    assert_eq!(settings.countersign.status.allow.unwrap()[0].to_string(), "10.0.0.0/8");
    let tls = "{tls: {cert: a.crt, key: a.key, ca: ca.crt}}}";
    let tls = load_with(&format!("{status}{tls}"), &[]).unwrap().countersign.status.tls.unwrap();
    assert_eq!(tls.ca, Path::new("/srv/gate/conf/ca.crt"));
    let message = problems(&format!("{status}{{tls: {{cert: a.crt}}}}}}"));
    assert!(message.contains("countersign.status.tls: cert, key and ca belong together"), "{message}");
    // All of 127.0.0.0/8 is this machine, and so is ::1.
    for ip in ["127.0.0.9", "'::1'"] {
        load_with(&format!("apisix: {{status: {{ip: {ip}}}}}"), &[]).unwrap();
    }
}

#[test]
fn exporter_settings_are_checked() {
    let message = problems("plugin_attr: {prometheus: {export_uri: metrics, metric_prefix: 'a-b'}}");
    assert!(message.contains("export_uri: expected a path"), "{message}");
    assert!(message.contains("metric_prefix: expected the beginning of a metric's name"), "{message}");
    let text = "plugin_attr: {prometheus: {metrics: {http_status: {expire: 1}}}, of-another: {a: [1]}}";
    let warnings = load_with(text, &[]).unwrap().warnings;
    assert!(warnings.iter().any(|text| text.contains("plugin_attr.prometheus.metrics: ")), "{warnings:#?}");
    assert!(!warnings.iter().any(|text| text.contains("of-another")), "{warnings:#?}");
}
