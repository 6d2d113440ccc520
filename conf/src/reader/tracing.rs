//! `countersign.tracing`: spans of requests, and the collector that gets them.

use std::net::IpAddr;

use super::Reader;
use crate::settings::{
    CollectorSettings, CollectorTlsSettings, SamplingRatio, TraceParents, TracingSettings,
};
use crate::tree::{YamlNode, YamlValue};
use crate::value::{self, ValueError};

const ENDPOINT: &str = "countersign.tracing.endpoint";
const TLS: &str = "countersign.tracing.tls";
/// OTLP over gRPC.
const PORT: u16 = 4317;

/// Each takes some KiB.
const QUEUE_MAX: usize = 1_000_000;

/// `endpoint`, parsed.
struct Endpoint {
    https: bool,
    address: String,
}

impl Reader<'_> {
    pub(super) fn tracing(&mut self) -> TracingSettings {
        TracingSettings {
            collector: self.collector(),
            sampling_ratio: self.required("countersign.tracing.sampling_ratio", |node| {
                let number = value::number(node).and_then(SamplingRatio::new);
                number.ok_or_else(|| ValueError::expected("a number from 0 to 1", node))
            }),
            parents: self.required("countersign.tracing.parents", |node| {
                Ok(match value::text(node)?.as_str() {
                    "any" => TraceParents::Any,
                    "verified" => TraceParents::Verified,
                    "none" => TraceParents::None,
                    _ => return Err(ValueError::expected("any, verified or none", node)),
                })
            }),
            service_name: self.required("countersign.tracing.service_name", |node| {
                let name = value::text(node)?;
                if name.is_empty() { Err(ValueError::expected("a name", node)) } else { Ok(name) }
            }),
            resource: self.optional("countersign.tracing.resource", resource).unwrap_or_default(),
            timeout: self.required("countersign.tracing.timeout", value::seconds_positive),
            queue_size: self.required("countersign.tracing.queue_size", |node| {
                match value::at_least_one(node) {
                    Ok(size) if size <= QUEUE_MAX => Ok(size),
                    _ => Err(ValueError::expected("a whole number from 1 to 1000000", node)),
                }
            }),
        }
    }

    fn collector(&mut self) -> Option<CollectorSettings> {
        let [ca, cert, key] = ["ca", "cert", "key"].map(|name| {
            self.path(&format!("{TLS}.{name}"), self.folder).map(|path| super::without_parent_dirs(&path))
        });
        let Endpoint { https, address } = self.optional(ENDPOINT, endpoint)?;
        if cert.is_some() != key.is_some() {
            self.problem(TLS, "cert and key belong together: give both or none".into());
        }
        let tls = match (https, ca) {
            (true, Some(ca)) => Some(CollectorTlsSettings { ca, pair: cert.zip(key) }),
            (true, None) => {
                let message = "an https endpoint needs the CAs of the collector's certificate: give ca, perhaps the system's \
                               bundle (/etc/ssl/certs/ca-certificates.crt)";
                self.problem(TLS, message.into());
                None
            }
            (false, None) if cert.is_none() && key.is_none() => None,
            (false, _) => {
                self.problem(
                    TLS,
                    "the endpoint is http://, which has no TLS: write https://, or remove tls".into(),
                );
                None
            }
        };
        let collector = CollectorSettings { address, tls };
        if !https && !is_loopback(collector.host()) {
            let text = "spans, with addresses and certificate subjects of clients, go to another machine in clear; use https://";
            self.warn(ENDPOINT, text);
        }
        Some(collector)
    }
}

fn endpoint(node: &YamlNode) -> Result<Endpoint, ValueError> {
    let expected = || {
        ValueError::expected("a URL such as http://127.0.0.1:4317 or https://collector.example:4317", node)
    };
    let written = value::text(node)?;
    let (scheme, rest) = written.split_once("://").ok_or_else(expected)?;
    let https = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(expected()),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let has_port =
        authority.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let address = if has_port { authority.to_owned() } else { format!("{authority}:{PORT}") };
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-._:[]".contains(character);
    if !value::is_host_and_port(&address) || !address.chars().all(is_plain) {
        return Err(expected());
    }
    Ok(Endpoint { https, address })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn resource(node: &YamlNode) -> Result<Vec<(String, String)>, ValueError> {
    let YamlValue::Map(entries) = &node.value else {
        return Err(ValueError::expected("names of attributes with their values", node));
    };
    let attribute = |name: &str, node: &YamlNode| match name {
        "" => Err(ValueError::new("an attribute needs a name")),
        "service.name" => Err(ValueError::new("write it as countersign.tracing.service_name")),
        _ => value::text(node),
    };
    entries
        .iter()
        .map(|(key, node)| {
            let text =
                attribute(&key.text, node).map_err(|error| error.on_line(key.line).below(&key.text))?;
            Ok((key.text.clone(), text))
        })
        .collect()
}
