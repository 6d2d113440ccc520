//! `nginx_config.http.real_ip_*`, `nginx_config.stream.real_ip_from` and
//! `apisix.trusted_addresses`: the trusted proxies in front (contract 1.4 and 10.3).

use ipnet::IpNet;
use model::network::{self, NetworkError};

use super::Reader;
use crate::settings::RealIpSettings;
use crate::tree::{YamlNode, YamlValue};
use crate::value::{self, ValueError};

pub(super) const STREAM_REAL_IP_FROM: &str = "nginx_config.stream.real_ip_from";

impl Reader<'_> {
    pub(crate) fn real_ip(&mut self) -> RealIpSettings {
        let path = |name: &str| format!("nginx_config.http.{name}");
        let from = self.required(&path("real_ip_from"), |node| value::list(node, proxy));
        let from: Vec<IpNet> = from.into_iter().flatten().collect();
        self.warn_if_any_address(&path("real_ip_from"), &from);
        let written = |name: &str| {
            self.user.and_then(|user| user.get_path(&path(name))).filter(|node| !node.is_null()).is_some()
        };
        if !written("real_ip_from") && (written("real_ip_header") || written("real_ip_recursive")) {
            let text = "has no effect without real_ip_from: name the proxies there (APISIX trusts 127.0.0.1 by default, \
                        Countersign no proxy)";
            self.warn(
                &path(if written("real_ip_header") { "real_ip_header" } else { "real_ip_recursive" }),
                text,
            );
        }
        RealIpSettings {
            header: self.required(&path("real_ip_header"), header),
            from,
            recursive: self.required(&path("real_ip_recursive"), on_or_off),
        }
    }

    pub(crate) fn stream_real_ip_from(&mut self) -> Vec<IpNet> {
        let field = STREAM_REAL_IP_FROM;
        let from = self.optional(field, |node| value::list(node, proxy)).unwrap_or_default();
        let from: Vec<IpNet> = from.into_iter().flatten().collect();
        self.warn_if_any_address(field, &from);
        from
    }

    pub(crate) fn trusted_addresses(&mut self) -> Option<Vec<IpNet>> {
        let field = "apisix.trusted_addresses";
        let trusted = self.optional(field, trusted)?;
        self.warn_if_any_address(field, &trusted);
        Some(trusted)
    }

    fn warn_if_any_address(&mut self, field: &str, nets: &[IpNet]) {
        if nets.iter().any(|net| net.prefix_len() == 0) {
            self.warn(field, "lists every address: any client can then claim to be another; list the proxies in front alone");
        }
    }
}

/// The entries of `trusted_addresses`. An empty list is an error as in APISIX: it would restrict
/// nothing, but read as if it did.
fn trusted(node: &YamlNode) -> Result<Vec<IpNet>, ValueError> {
    let list = value::list(node, value::network)?;
    if list.is_empty() {
        let text = "expected at least one address; to trust no peer with X-Forwarded-*, name one that no client has, \
                    such as 255.255.255.255 (without this key X-Forwarded-For is appended to, from any peer)";
        return Err(ValueError::new(text).on_line(node.line));
    }
    Ok(list)
}

/// An entry of `real_ip_from`. `unix:` means Unix-domain sockets, which no listener uses, so it is
/// ignored.
fn proxy(node: &YamlNode) -> Result<Option<IpNet>, ValueError> {
    if value::text(node)? == "unix:" {
        return Ok(None);
    }
    let network = network::parse(&value::text(node)?);
    network.map(Some).map_err(|error| match error {
        NetworkError::Syntax => ValueError::expected(
            "an IP address or a block such as 10.0.0.0/8 (names are not looked up)",
            node,
        ),
        NetworkError::MappedPrefix => value::network_error(error, node),
    })
}

/// A header's name, or `proxy_protocol`, which is also the form of one.
fn header(node: &YamlNode) -> Result<String, ValueError> {
    let name = value::text(node)?;
    // RFC 9110 section 5.6.2
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(ValueError::expected("the name of a header such as X-Forwarded-For", node));
    }
    Ok(name)
}

/// nginx's flag. `on` and `off` are texts in YAML 1.2 and booleans in YAML 1.1, so both are read.
fn on_or_off(node: &YamlNode) -> Result<bool, ValueError> {
    match &node.value {
        YamlValue::Scalar(scalar) if scalar.text == "on" => Ok(true),
        YamlValue::Scalar(scalar) if scalar.text == "off" => Ok(false),
        _ => value::boolean(node).map_err(|_| ValueError::expected("on or off", node)),
    }
}
