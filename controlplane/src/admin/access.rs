//! Access control: client certificates, addresses and API keys (contract 2.1).
//!
//! Keys are kept as SHA-256 digests and compared in constant time, so neither memory nor timing
//! reveals them. An empty key never matches.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use conf::AdminRole;
use http::HeaderMap;
use http::header::COOKIE;
use ipnet::IpNet;
use model::RealIp;
use pki::Identity;
use rustls_pki_types::UnixTime;

use super::query::Query;

pub struct Access {
    /// `None` allows every address.
    allow: Option<Vec<IpNet>>,
    /// `None` switches the key check off.
    keys: Option<Vec<HashedKey>>,
    /// The proxies whose headers carry the client's address.
    real_ip: Option<RealIp>,
}

struct HashedKey {
    name: String,
    digest: KeyDigest,
    role: AdminRole,
}

/// The client of a connection or request.
#[derive(Clone, Debug)]
pub struct AdminClient {
    /// The socket's address; for a request, the address that a trusted proxy's header carries.
    pub address: SocketAddr,
    pub certificate: ClientCertStatus,
}

/// The verification result of a client certificate.
#[derive(Clone, Debug)]
pub enum ClientCertStatus {
    /// The listener requests none.
    NotRequested,
    /// The client sent none.
    Missing,
    /// The certificate is rejected; the reason is for the log only.
    Rejected(String),
    Verified {
        identity: Identity,
        /// The verification result is void after this time.
        expires: UnixTime,
    },
}

impl ClientCertStatus {
    /// The subject of a verified certificate, for the log.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Verified { identity, .. } => Some(identity.subject()),
            Self::NotRequested | Self::Missing | Self::Rejected(_) => None,
        }
    }
}

/// SHA-256 of an admin key.
pub(crate) type KeyDigest = [u8; SHA256_OUTPUT_LEN];

pub(crate) fn key_digest(key: &[u8]) -> KeyDigest {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, key).as_ref());
    bytes
}

/// An entry of `admin_key` with its key in clear. The key is not kept.
pub struct ApiKey<'a> {
    pub name: &'a str,
    pub key: &'a str,
    pub role: AdminRole,
}

/// The authenticated caller of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of the key; `-` when the key check is off.
    pub name: String,
}

/// Why a caller is not authenticated. The text is the contract's `description`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("missing apikey")]
    MissingKey,
    #[error("wrong apikey")]
    WrongKey,
    #[error("invalid method for role viewer")]
    ViewerMethod,
}

impl Access {
    /// Allows these addresses and keys. `keys: None` switches the key check off. Entries with an
    /// empty key are ignored.
    pub fn new(allow: Option<Vec<IpNet>>, keys: Option<&[ApiKey<'_>]>) -> Self {
        let keys = keys.map(|keys| {
            keys.iter()
                .filter(|entry| !entry.key.is_empty())
                .map(|entry| HashedKey {
                    name: entry.name.to_owned(),
                    digest: key_digest(entry.key.as_bytes()),
                    role: entry.role,
                })
                .collect()
        });
        Self { allow, keys, real_ip: None }
    }

    /// Adds a key of which only the digest is known here.
    pub fn with_key_digest(mut self, name: &str, digest: KeyDigest, role: AdminRole) -> Self {
        let entry = HashedKey { name: name.to_owned(), digest, role };
        self.keys.get_or_insert_default().push(entry);
        self
    }

    /// Takes client addresses from `nginx_config.http.real_ip_*`, as nginx does for every server
    /// (contract 2.1).
    pub fn with_real_ip(mut self, real_ip: Option<RealIp>) -> Self {
        self.real_ip = real_ip;
        self
    }

    /// The client's address, where a trusted proxy's header carries it.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> Option<SocketAddr> {
        self.real_ip.as_ref()?.client_addr(peer, headers)
    }

    /// Whether `allow_admin` contains this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.as_ref().is_none_or(|allow| allow.iter().any(|net| net.contains(&address)))
    }

    /// Whether the address is denied whatever headers the request has.
    pub fn always_denies(&self, address: IpAddr) -> bool {
        !self.allows(address) && !self.real_ip.as_ref().is_some_and(|real_ip| real_ip.trusts(address))
    }

    /// Authenticates a request by query argument `api_key`, else header `X-API-KEY`, else cookie
    /// `x_api_key`. `reads`: the request changes nothing.
    ///
    /// # Errors
    /// When the key is missing or wrong, or its role only reads.
    pub fn authenticate(
        &self,
        reads: bool,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Caller, AccessError> {
        let Some(keys) = &self.keys else { return Ok(Caller { name: "-".to_owned() }) };
        let presented = query
            .get("api_key")
            .map(str::as_bytes)
            .or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))
            .or_else(|| cookie(headers, b"x_api_key"))
            .ok_or(AccessError::MissingKey)?;
        let presented = key_digest(presented);
        // Every entry is compared, so the time does not reveal which one matched.
        let mut matched = None;
        for entry in keys {
            let equal = verify_slices_are_equal(&entry.digest, &presented).is_ok();
            if equal && matched.is_none() {
                matched = Some(entry);
            }
        }
        let entry = matched.ok_or(AccessError::WrongKey)?;
        match entry.role {
            AdminRole::Viewer if !reads => Err(AccessError::ViewerMethod),
            AdminRole::Viewer | AdminRole::Admin => Ok(Caller { name: entry.name.clone() }),
        }
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn access() -> Access {
        let keys = [
            ApiKey { name: "root", key: "secret", role: AdminRole::Admin },
            ApiKey { name: "eye", key: "look", role: AdminRole::Viewer },
            ApiKey { name: "empty", key: "", role: AdminRole::Admin },
        ];
        Access::new(None, Some(&keys))
    }

    fn ask(
        method: Method,
        query: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<String, AccessError> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>();
        access()
            .authenticate(method == Method::GET, &Query::parse(Some(query)), &headers)
            .map(|caller| caller.name)
    }

    #[test]
    fn the_first_key_of_a_request_counts() {
        let get = Method::GET;
        assert_eq!(ask(get.clone(), "", &[]), Err(AccessError::MissingKey));
        assert_eq!(ask(get.clone(), "api_key=secret", &[]).unwrap(), "root");
        assert_eq!(ask(get.clone(), "", &[("X-API-KEY", "secret")]).unwrap(), "root");
        assert_eq!(ask(get.clone(), "", &[("cookie", "a=b; x_api_key=secret")]).unwrap(), "root");
        assert_eq!(ask(get.clone(), "api_key=bad", &[("X-API-KEY", "secret")]), Err(AccessError::WrongKey));
        assert_eq!(
            ask(get.clone(), "", &[("X-API-KEY", "bad"), ("cookie", "x_api_key=secret")]),
            Err(AccessError::WrongKey)
        );
        // An empty key in the configuration authenticates no request.
        assert_eq!(ask(get.clone(), "api_key=", &[]), Err(AccessError::WrongKey));
        assert_eq!(ask(get, "", &[("X-API-KEY", "")]), Err(AccessError::WrongKey));
    }

    #[test]
    fn a_viewer_only_reads() {
        assert_eq!(ask(Method::GET, "api_key=look", &[]).unwrap(), "eye");
        for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::HEAD] {
            assert_eq!(ask(method, "api_key=look", &[]), Err(AccessError::ViewerMethod));
        }
    }

    #[test]
    fn addresses_are_compared_in_canonical_form() {
        let only = Access::new(Some(vec!["127.0.0.0/24".parse().unwrap()]), None);
        assert!(only.allows("127.0.0.1".parse().unwrap()));
        assert!(only.allows("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!only.allows("127.0.1.1".parse().unwrap()));
        assert!(!only.allows("::1".parse().unwrap()));
        assert!(!Access::new(Some(Vec::new()), None).allows("127.0.0.1".parse().unwrap()));
        assert!(Access::new(None, None).allows("8.8.8.8".parse().unwrap()));
    }
}
