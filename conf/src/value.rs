//! Parsers of single values.
//!
//! Each function takes a node and returns the typed value or a [`ValueError`] with the expected and
//! the found value (never the text of a secret).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use model::TlsVersion;
use model::network::{self, NetworkError};

use crate::secret::Secret;
use crate::tree::{ScalarKind, YamlNode, YamlValue};

/// Why a value is invalid.
#[derive(Debug)]
pub(crate) struct ValueError {
    /// Path inside the value (`[]`, `[].role`); empty for the value itself.
    pub subpath: String,
    /// The line, when it differs from that of the value.
    pub line: Option<usize>,
    pub message: String,
    /// Further errors of the same value: those of other elements of a list.
    others: Vec<Self>,
}

impl ValueError {
    pub(crate) fn new(message: &str) -> Self {
        Self { subpath: String::new(), line: None, message: message.to_owned(), others: Vec::new() }
    }

    /// `expected X, found Y`
    pub(crate) fn expected(what: &str, node: &YamlNode) -> Self {
        Self::new(&format!("expected {what}, found {}", node.describe())).on_line(node.line)
    }

    pub(crate) fn on_line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    pub(crate) fn below(self, name: &str) -> Self {
        self.map_each(|error| Self { subpath: format!(".{name}{}", error.subpath), ..error })
    }

    /// This error and another one of the same value.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.others.extend(other.into_each());
        self
    }

    /// All errors, each by itself.
    pub(crate) fn into_each(mut self) -> impl Iterator<Item = Self> {
        let others = std::mem::take(&mut self.others);
        std::iter::once(self).chain(others)
    }

    fn map_each(mut self, change: impl Fn(Self) -> Self) -> Self {
        let others = std::mem::take(&mut self.others);
        let mut changed = change(self);
        changed.others = others.into_iter().map(change).collect();
        changed
    }
}

/// Both values, or the errors of both.
pub(crate) fn both<A, B>(
    one: Result<A, ValueError>,
    other: Result<B, ValueError>,
) -> Result<(A, B), ValueError> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Err(error), Err(other)) => Err(error.and(other)),
    }
}

/// A text. Numbers and booleans count as text only when they came from the environment, where
/// everything is text.
pub(crate) fn text(node: &YamlNode) -> Result<String, ValueError> {
    match &node.value {
        YamlValue::Scalar(scalar) if scalar.kind == ScalarKind::Text || scalar.from_environment => {
            Ok(scalar.text.clone())
        }
        YamlValue::Scalar(_) => Err(ValueError::expected("a text (put it in quotes)", node)),
        _ => Err(ValueError::expected("a text", node)),
    }
}

/// A text that no message may show.
pub(crate) fn secret(node: &YamlNode) -> Result<Secret, ValueError> {
    text(node).map(Secret::new).map_err(|_| {
        let hidden = match &node.value {
            YamlValue::Scalar(_) => "expected a text, found a number or true/false; put it in quotes",
            _ => "expected a text, found a list or a map",
        };
        ValueError::new(hidden).on_line(node.line)
    })
}

/// The digits of a key that is given as `sha256:...`.
pub(crate) fn sha256_digits(text: &str) -> Option<&str> {
    let (prefix, digits) = text.split_once(':')?;
    prefix.eq_ignore_ascii_case("sha256").then_some(digits)
}

pub(crate) fn boolean(node: &YamlNode) -> Result<bool, ValueError> {
    match &node.value {
        YamlValue::Scalar(scalar) => match scalar.kind {
            ScalarKind::Bool(value) => Ok(value),
            _ => Err(ValueError::expected("true or false", node)),
        },
        _ => Err(ValueError::expected("true or false", node)),
    }
}

/// A whole number, 0 or more.
pub(crate) fn non_negative(node: &YamlNode) -> Result<u32, ValueError> {
    digits(node).ok_or_else(|| ValueError::expected("a whole number, 0 or more", node))
}

/// A whole number, 1 or more.
pub(crate) fn at_least_one(node: &YamlNode) -> Result<usize, ValueError> {
    let number = digits::<usize>(node).filter(|number| *number > 0);
    number.ok_or_else(|| ValueError::expected("a whole number, 1 or more", node))
}

pub(crate) fn port(node: &YamlNode) -> Result<u16, ValueError> {
    digits(node).ok_or_else(|| ValueError::expected("a port (1 to 65535, or 0 for any free one)", node))
}

fn digits<T: std::str::FromStr>(node: &YamlNode) -> Option<T> {
    match &node.value {
        YamlValue::Scalar(scalar) if matches!(scalar.kind, ScalarKind::Number(_)) => scalar.text.parse().ok(),
        _ => None,
    }
}

/// A number of any kind.
pub(crate) fn number(node: &YamlNode) -> Option<f64> {
    match &node.value {
        YamlValue::Scalar(scalar) => match scalar.kind {
            ScalarKind::Number(number) => Some(number),
            _ => None,
        },
        _ => None,
    }
}

/// Seconds, fractions allowed.
pub(crate) fn seconds(node: &YamlNode) -> Result<Duration, ValueError> {
    let seconds = number(node).and_then(|number| Duration::try_from_secs_f64(number).ok());
    seconds.ok_or_else(|| ValueError::expected("seconds as a number, 0 or more", node))
}

pub(crate) fn seconds_positive(node: &YamlNode) -> Result<Duration, ValueError> {
    let value = seconds(node)?;
    if value.is_zero() {
        Err(ValueError::expected("seconds as a number, more than 0", node))
    } else {
        Ok(value)
    }
}

/// At least two seconds, so that it can be halved; at most a week (RFC 8446 section 4.6.1).
pub(crate) fn ticket_lifetime(node: &YamlNode) -> Result<Duration, ValueError> {
    let invalid = || ValueError::expected("whole seconds from 2 to 604800 (a week)", node);
    match non_negative(node).map_err(|_| invalid())? {
        seconds @ 2..=604_800 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(invalid()),
    }
}

/// A time in nginx's syntax: `60`, `60s`, `500ms`, `2m`, `1h`, `1d`, also combined: `1m 30s`.
pub(crate) fn nginx_time(node: &YamlNode) -> Result<Duration, ValueError> {
    let invalid = || ValueError::expected("a time such as 60s, 500ms, 2m or 1h", node);
    let YamlValue::Scalar(scalar) = &node.value else { return Err(invalid()) };
    let mut total = Duration::ZERO;
    let mut rest = scalar.text.trim();
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let (unit, after) =
            after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        let milliseconds = match unit {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(invalid()),
        };
        let part = number.checked_mul(milliseconds).ok_or_else(invalid)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(invalid)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// A size in nginx's syntax: `0`, `512`, `8k`, `10m`, `1g`.
pub(crate) fn nginx_size(node: &YamlNode) -> Result<u64, ValueError> {
    let invalid = || ValueError::expected("a size such as 0, 8k, 10m or 1g", node);
    let YamlValue::Scalar(scalar) = &node.value else { return Err(invalid()) };
    let text = scalar.text.trim().to_ascii_lowercase();
    let (number, unit) = match text.strip_suffix(['k', 'm', 'g']) {
        Some(number) => (number, text.chars().next_back()),
        None => (text.as_str(), None),
    };
    let factor: u64 = match unit {
        Some('k') => 1 << 10,
        Some('m') => 1 << 20,
        Some('g') => 1 << 30,
        _ => 1,
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(invalid)
}

/// Parses every element; the error has those of all elements, each with the element's own line.
pub(crate) fn list<T>(
    node: &YamlNode,
    parse: impl Fn(&YamlNode) -> Result<T, ValueError>,
) -> Result<Vec<T>, ValueError> {
    let YamlValue::List(items) = &node.value else { return Err(ValueError::expected("a list", node)) };
    let mut values = Ok(Vec::with_capacity(items.len()));
    for item in items {
        let in_list = |error: ValueError| ValueError {
            subpath: format!("[]{}", error.subpath),
            line: error.line.or(Some(item.line)),
            ..error
        };
        let value = parse(item).map_err(|error| error.map_each(in_list));
        values = both(values, value).map(|(mut values, value)| {
            values.push(value);
            values
        });
    }
    values
}

/// An address or a CIDR block.
pub(crate) fn network(node: &YamlNode) -> Result<IpNet, ValueError> {
    let written = text(node)?;
    network::parse(&written).map_err(|error| network_error(error, node))
}

/// The error for an invalid network.
pub(crate) fn network_error(error: NetworkError, node: &YamlNode) -> ValueError {
    match error {
        NetworkError::Syntax => ValueError::expected("an IP address or a block such as 10.0.0.0/8", node),
        NetworkError::MappedPrefix => {
            ValueError::new(&format!("{} is {error}", node.describe())).on_line(node.line)
        }
    }
}

pub(crate) fn ip(node: &YamlNode) -> Result<IpAddr, ValueError> {
    let written = text(node)?;
    let bare = written.trim_start_matches('[').trim_end_matches(']');
    bare.parse().map_err(|_| ValueError::expected("an IP address such as 0.0.0.0 or [::]", node))
}

/// `ip:port`
pub(crate) fn socket_addr(node: &YamlNode) -> Result<SocketAddr, ValueError> {
    text(node)?.parse().map_err(|_| ValueError::expected("an address and port such as 127.0.0.1:9280", node))
}

/// `host:port`; the host may be a name, or an IPv6 address in brackets.
pub(crate) fn host_and_port(node: &YamlNode) -> Result<String, ValueError> {
    let written = text(node)?;
    if is_host_and_port(&written) {
        Ok(written)
    } else {
        Err(ValueError::expected("host:port such as controlplane.example:9280", node))
    }
}

/// Whether a text is `host:port`.
pub(crate) fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let fine = !host.is_empty() && !host.contains(['/', ' ']) && (bracketed || !host.contains(':'));
        fine && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// An entry of `node_listen` or `ssl.listen`: a port, or `{ip, port}`. Without `ip`: `0.0.0.0`, and
/// `[::]` when IPv6 is on (not with port 0, which the kernel would pick twice).
pub(crate) fn listener(
    node: &YamlNode,
    default_port: u16,
    ipv6: bool,
) -> Result<Vec<SocketAddr>, ValueError> {
    let (given_ip, port) = match &node.value {
        YamlValue::Map(_) => {
            if let Some(entry) = node.get("enable_http2") {
                let text = "port level enable_http2 is deprecated from 3.9 version, and you should use \
                            enable_http2 in apisix level";
                return Err(ValueError::new(text).on_line(entry.line));
            }
            let part = |name: &str| node.get(name).filter(|node| !node.is_null());
            let given = part("ip").map(ip).transpose().map_err(|error| error.below("ip"))?;
            let port = part("port").map(port).transpose().map_err(|error| error.below("port"))?;
            (given, port.unwrap_or(default_port))
        }
        _ => (None, port(node)?),
    };
    Ok(match given_ip {
        Some(ip) => vec![SocketAddr::new(ip, port)],
        None => {
            let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
            let v6 = (ipv6 && port != 0).then(|| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
            std::iter::once(v4).chain(v6).collect()
        }
    })
}

/// `TLSv1.2 TLSv1.3`, ascending and without duplicates.
pub(crate) fn protocols(node: &YamlNode) -> Result<Vec<TlsVersion>, ValueError> {
    let mut versions = Vec::new();
    for name in text(node)?.split_whitespace() {
        versions.push(match name {
            "TLSv1.1" => TlsVersion::V11,
            "TLSv1.2" => TlsVersion::V12,
            "TLSv1.3" => TlsVersion::V13,
            "SSLv2" | "SSLv3" | "TLSv1" => {
                let text = format!("{name} is not supported: it is broken; the oldest possible is TLSv1.1");
                return Err(ValueError::new(&text));
            }
            other => {
                let text = format!(
                    "unknown version {other:?}; write TLSv1.1, TLSv1.2, TLSv1.3, separated by blanks"
                );
                return Err(ValueError::new(&text));
            }
        });
    }
    versions.sort_unstable();
    versions.dedup();
    if versions.is_empty() {
        Err(ValueError::new("at least one version is needed: TLSv1.2 TLSv1.3"))
    } else {
        Ok(versions)
    }
}

/// The `proxy_ssl_verify` directives of a snippet; `None` when absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProxySslVerify {
    /// `proxy_ssl_verify on|off;`
    pub verify: Option<bool>,
    /// `proxy_ssl_verify_depth N;`
    pub depth: Option<u32>,
}

/// Parses an nginx snippet. The second value has the unsupported directives.
pub(crate) fn parse_verify_snippet(snippet: &str) -> (ProxySslVerify, Vec<String>) {
    let (mut rules, mut rest) = (ProxySslVerify::default(), Vec::new());
    let lines = snippet.lines().map(|line| line.split('#').next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join(" ");
    for directive in text.split(';').map(str::trim).filter(|directive| !directive.is_empty()) {
        match *directive.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["proxy_ssl_verify", "on"] => rules.verify = Some(true),
            ["proxy_ssl_verify", "off"] => rules.verify = Some(false),
            ["proxy_ssl_verify_depth", number] if number.parse::<u32>().is_ok() => {
                rules.depth = number.parse().ok()
            }
            _ => rest.push(directive.to_owned()),
        }
    }
    (rules, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> YamlNode {
        crate::tree::parse(&format!("v: {text}")).unwrap().unwrap().get_path("v").unwrap().clone()
    }

    #[test]
    fn times_and_sizes_parse_as_in_nginx() {
        assert_eq!(nginx_time(&node("60s")).unwrap(), Duration::from_secs(60));
        assert_eq!(nginx_time(&node("60")).unwrap(), Duration::from_secs(60));
        assert_eq!(nginx_time(&node("500ms")).unwrap(), Duration::from_millis(500));
        assert_eq!(nginx_time(&node("1m 30s")).unwrap(), Duration::from_secs(90));
        for bad in ["soon", "1y", "-1s", "99999999999999999999s", "''"] {
            assert!(nginx_time(&node(bad)).is_err(), "{bad}");
        }
        assert_eq!(nginx_size(&node("10m")).unwrap(), 10 << 20);
        assert_eq!(nginx_size(&node("0")).unwrap(), 0);
        assert!(nginx_size(&node("99999999999g")).is_err());
    }

    #[test]
    fn an_entry_without_ip_listens_on_both_families() {
        let both = listener(&node("9080"), 9080, true).unwrap();
        assert_eq!(both.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0:9080", "[::]:9080"]);
        assert_eq!(listener(&node("{ip: 127.0.0.1}"), 9443, true).unwrap()[0].to_string(), "127.0.0.1:9443");
        assert_eq!(listener(&node("0"), 9080, true).unwrap().len(), 1);
        assert!(listener(&node("{port: 9080, enable_http2: true}"), 9080, true).is_err());
        assert!(listener(&node("70000"), 9080, true).is_err());
    }

    #[test]
    fn proxy_ssl_verify_is_read_from_snippets() {
        let on = ProxySslVerify { verify: Some(true), depth: None };
        assert_eq!(parse_verify_snippet("proxy_ssl_verify on;"), (on, vec![]));
        let read = parse_verify_snippet("# c\nproxy_ssl_verify on; proxy_ssl_verify_depth 3;\ngzip on;");
        assert_eq!(read, (ProxySslVerify { depth: Some(3), ..on }, vec!["gzip on".to_owned()]));
        assert_eq!(parse_verify_snippet("# a comment;\n  # another\n"), (ProxySslVerify::default(), vec![]));
        assert_eq!(parse_verify_snippet("location / { proxy_ssl_verify on; }").1.len(), 2);
    }

    #[test]
    fn insecure_versions_are_rejected() {
        assert_eq!(protocols(&node("TLSv1.3 TLSv1.2")).unwrap(), [TlsVersion::V12, TlsVersion::V13]);
        assert!(protocols(&node("SSLv3")).unwrap_err().message.contains("broken"));
        assert!(protocols(&node("TLS1.3")).is_err());
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_shown() {
        assert!(!secret(&node("1234567890")).unwrap_err().message.contains("123"));
    }
}
