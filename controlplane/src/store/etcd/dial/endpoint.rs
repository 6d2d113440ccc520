//! One entry of `deployment.etcd.host` (contract 1.2).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::ServerName;

use super::error::{DialError, DialFailure};

const DEFAULT_PORT: u16 = 2379;

/// One entry of `deployment.etcd.host`. Clones share the last failure.
#[derive(Clone)]
pub(crate) struct Endpoint(Arc<EndpointInner>);

struct EndpointInner {
    url: String,
    https: bool,
    host: String,
    port: u16,
    /// The cause why the last connection failed or ended; `None` while one works.
    failure: Mutex<Option<DialError>>,
}

impl Endpoint {
    /// All entries, in the order of the file.
    ///
    /// # Errors
    /// The first invalid URL.
    pub(crate) fn from_config(etcd: &conf::EtcdSettings) -> Result<Vec<Self>, DialError> {
        etcd.hosts.iter().map(|url| Self::parse(url)).collect()
    }

    /// Parses `http://` or `https://`, a host, and an optional port.
    ///
    /// # Errors
    /// When the URL has another form.
    pub(crate) fn parse(url: &str) -> Result<Self, DialError> {
        let invalid = |problem: &str| DialError::new(url, DialFailure::Url(problem.to_owned()));
        let (https, host, port) = split_url(url).ok_or_else(|| {
            invalid(
                "expected http:// or https://, a host name or address of letters, digits, `.` and `-` ([..] around \
                 an IPv6 address), then at most a port: https://etcd.example:2379. No path, no trailing slash",
            )
        })?;
        let port = match port {
            "" => DEFAULT_PORT,
            text => text
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| invalid(&format!("the port {text} is not between 1 and 65535")))?,
        };
        if ServerName::try_from(host).is_err() {
            return Err(invalid(&format!("{host:?} is neither a host name nor an IP address")));
        }
        let (url, host) = (url.to_owned(), host.to_owned());
        Ok(Self(Arc::new(EndpointInner { url, https, host, port, failure: Mutex::default() })))
    }

    pub(crate) fn url(&self) -> &str {
        &self.0.url
    }

    pub(crate) fn https(&self) -> bool {
        self.0.https
    }

    /// A name or address, without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.0.host
    }

    /// 2379 by default.
    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }

    pub(crate) fn is_loopback(&self) -> bool {
        let address = self.host().parse::<std::net::IpAddr>();
        address.map_or(self.host() == "localhost", |address| address.is_loopback())
    }

    /// Host and port in the syntax of HTTP.
    pub(crate) fn authority(&self) -> String {
        let host = self.host();
        if host.contains(':') {
            format!("[{host}]:{}", self.port())
        } else {
            format!("{host}:{}", self.port())
        }
    }

    pub(super) fn error(&self, problem: DialFailure) -> DialError {
        DialError::new(self.url(), problem)
    }

    pub(super) fn set_last_failure(&self, failure: Option<DialError>) {
        *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    pub(super) fn last_failure(&self) -> Option<DialError> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// `([^\/]+):\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\]):?(\d+)?$`, with a scheme that `conf` allows:
/// scheme, host, port.
fn split_url(url: &str) -> Option<(bool, &str, &str)> {
    let (https, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://")?),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':').then_some(host)?, port)
        }
        None => {
            let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-');
            rest.split_at(rest.find(|letter| !allowed(letter)).unwrap_or(rest.len()))
        }
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    (!host.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some((https, host, port))
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.url()).finish()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_urls_of_the_contract() {
        for (url, https, host, port) in [
            ("http://127.0.0.1:2379", false, "127.0.0.1", 2379),
            ("https://etcd-1.example", true, "etcd-1.example", 2379),
            ("https://[::1]:22379", true, "::1", 22379),
            ("https://[2001:db8::1]", true, "2001:db8::1", 2379),
            ("http://etcd:", false, "etcd", 2379),
        ] {
            let read = Endpoint::parse(url).expect(url);
            assert_eq!((read.https(), read.host(), read.port()), (https, host, port), "{url}");
            assert_eq!(read.url(), url);
        }
        assert_eq!(Endpoint::parse("https://[::1]").expect("fine").authority(), "[::1]:2379");
    }

    #[test]
    fn rejects_other_urls() {
        for url in [
            "ftp://etcd:2379",
            "https://",
            "https://etcd:2379/",
            "https://etcd:2379/v3",
            "https://user:password@etcd:2379",
            "https://etcd:0",
            "https://etcd:65536",
            "https://etcd:99999999999999999999",
            "https://under_score:2379",
            "https://[::1",
            "https://[:::::::::]:1",
            "https://etcd:23 79",
            "https://etcd\n:2379",
            " https://etcd:2379",
        ] {
            let error = Endpoint::parse(url).expect_err(url).to_string();
            assert!(error.contains("deployment.etcd.host"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
