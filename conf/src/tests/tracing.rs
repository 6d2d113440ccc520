//! `countersign.tracing`.

use super::*;

fn tracing(text: &str) -> Settings {
    load_with(&format!("countersign: {{tracing: {text}}}"), &[]).unwrap()
}

#[test]
fn without_an_endpoint_nothing_is_traced() {
    let settings = load_with("", &[]).unwrap().countersign.tracing;
    assert_eq!(settings.collector, None);
    assert_eq!(settings.sampling_ratio, SamplingRatio::new(0.01).unwrap());
    assert_eq!((settings.parents, settings.queue_size), (TraceParents::Any, 2_048));
    assert_eq!((settings.service_name.as_str(), settings.timeout), ("countersign", Duration::from_secs(10)));
}

#[test]
fn an_endpoint_has_a_host_and_a_port() {
    for (written, address, host) in [
        ("http://127.0.0.1:9999", "127.0.0.1:9999", "127.0.0.1"),
        ("http://localhost", "localhost:4317", "localhost"),
        ("http://[::1]/", "[::1]:4317", "::1"),
        ("http://[::1]:80", "[::1]:80", "::1"),
    ] {
        let settings = tracing(&format!("{{endpoint: '{written}'}}"));
        let collector = settings.countersign.tracing.collector.unwrap();
        assert_eq!(
            (collector.address.as_str(), collector.host(), collector.tls.as_ref()),
            (address, host, None)
        );
        assert!(!settings.warnings.iter().any(|text| text.contains("tracing")), "{:?}", settings.warnings);
    }
}

#[test]
fn spans_in_clear_to_another_machine_are_a_warning() {
    let settings = tracing("{endpoint: 'http://collector.example:4317'}");
    let text = "conf/config.yaml:1: countersign.tracing.endpoint: spans, with addresses and certificate subjects of clients, go to another \
                machine in clear; use https://";
    assert!(settings.warnings.iter().any(|warning| warning == text), "{:?}", settings.warnings);
    let tls = "{endpoint: 'https://collector.example', tls: {ca: c.crt, cert: n.crt, key: ../n.key}}";
    let settings = tracing(tls);
    assert!(!settings.warnings.iter().any(|text| text.contains("tracing")), "{:?}", settings.warnings);
    let tls = settings.countersign.tracing.collector.unwrap().tls.unwrap();
    assert_eq!(tls.ca, Path::new("/srv/gate/conf/c.crt"));
    assert_eq!(tls.pair, Some(("/srv/gate/conf/n.crt".into(), "/srv/gate/n.key".into())));
}

#[test]
fn invalid_values_of_tracing_are_named() {
    for (text, message) in [
        (
            "{endpoint: 'grpc://h:1'}",
            "countersign.tracing.endpoint: expected a URL such as http://127.0.0.1:4317",
        ),
        ("{endpoint: 'http://h:1/v1/traces'}", "countersign.tracing.endpoint: expected a URL"),
        ("{endpoint: 'http://user@h:1'}", "countersign.tracing.endpoint: expected a URL"),
        ("{endpoint: 'http://h:0'}", "countersign.tracing.endpoint: expected a URL"),
        ("{endpoint: 'http://'}", "countersign.tracing.endpoint: expected a URL"),
        ("{endpoint: 'https://h'}", "countersign.tracing.tls: an https endpoint needs the CAs"),
        (
            "{endpoint: 'http://h', tls: {ca: c}}",
            "countersign.tracing.tls: the endpoint is http://, which has no TLS",
        ),
        (
            "{endpoint: 'https://h', tls: {ca: c, key: k}}",
            "countersign.tracing.tls: cert and key belong together",
        ),
        (
            "{sampling_ratio: 1.5}",
            "countersign.tracing.sampling_ratio: expected a number from 0 to 1, found the number 1.5",
        ),
        ("{sampling_ratio: '1'}", "countersign.tracing.sampling_ratio: expected a number from 0 to 1"),
        ("{parents: trusted}", "countersign.tracing.parents: expected any, verified or none"),
        ("{service_name: ''}", "countersign.tracing.service_name: expected a name"),
        ("{resource: [a]}", "countersign.tracing.resource: expected names of attributes with their values"),
        ("{resource: {a: 1}}", "countersign.tracing.resource.a: expected a text (put it in quotes)"),
        (
            "{resource: {service.name: x}}",
            "countersign.tracing.resource.service.name: write it as countersign.tracing.service_name",
        ),
        ("{queue_size: 0}", "countersign.tracing.queue_size: expected a whole number from 1 to 1000000"),
        ("{timeout: 0}", "countersign.tracing.timeout: expected seconds as a number, more than 0"),
    ] {
        let found = problems(&format!("countersign: {{tracing: {text}}}"));
        assert!(found.contains(message), "{text}: {found}");
    }
}
