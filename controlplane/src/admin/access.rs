//! Access control: API keys, and roles by client certificate (contract 2.1).
//!
//! Keys are kept as SHA-256 digests and compared in constant time, so neither memory nor timing
//! reveals them. An empty key never matches. Invariant: a request with a wrong key is rejected
//! whatever its certificate is; a certificate and a valid key never take from each other.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use conf::{AdminRole, ClientRole};
use http::HeaderMap;
use http::header::COOKIE;
use pki::Identity;
use rustls_pki_types::UnixTime;

use super::addresses::AllowedAddresses;
use super::query::Query;
use super::wrong_keys::WrongKeys;

pub struct Access {
    /// `None` switches the key check off.
    keys: Option<Vec<HashedKey>>,
    client_roles: Vec<ClientRole>,
    wrong_keys: WrongKeys,
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
    /// The addresses that the client's listener allows.
    pub allowed: Arc<AllowedAddresses>,
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
    /// The name of a verified certificate, for the log: its subject, or else a name of its subject
    /// alternative name (a SPIFFE certificate may have no subject).
    pub fn name(&self) -> Option<&str> {
        let identity = self.identity()?;
        log_name(identity.subject(), identity.san_uris().iter().chain(identity.san_dns()))
    }

    fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Verified { identity, .. } => Some(identity),
            Self::NotRequested | Self::Missing | Self::Rejected(_) => None,
        }
    }
}

fn log_name<'a>(subject: &'a str, mut names: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    Some(subject).filter(|subject| !subject.is_empty()).or_else(|| names.next().map(String::as_str))
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
    /// The name of the key; `-` without a key.
    pub name: String,
    /// The `match` of `client_roles` that the certificate has, for the log.
    pub client_role: Option<String>,
}

impl Caller {
    /// Whether the request had an admin key.
    pub fn has_key(&self) -> bool {
        self.name != "-"
    }
}

/// Why a caller is not authenticated. The text is the contract's `description`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    #[error("missing apikey")]
    MissingKey,
    #[error("wrong apikey")]
    WrongKey,
    /// Wrong, and the address has sent too many wrong keys.
    #[error("wrong apikey, and too many of them from this address")]
    TooManyWrongKeys {
        /// Seconds until wrong keys are counted anew.
        retry_after: u64,
    },
    #[error("invalid method for role viewer")]
    ViewerMethod,
}

impl Access {
    /// Accepts these keys. `None` switches the key check off. Entries with an empty key are
    /// ignored.
    pub fn new(keys: Option<&[ApiKey<'_>]>) -> Self {
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
        Self { keys, client_roles: Vec::new(), wrong_keys: WrongKeys::new(0) }
    }

    /// Adds a key of which only the digest is known here.
    pub fn with_key_digest(mut self, name: &str, digest: KeyDigest, role: AdminRole) -> Self {
        let entry = HashedKey { name: name.to_owned(), digest, role };
        self.keys.get_or_insert_default().push(entry);
        self
    }

    /// Gives clients roles by their certificates: the first entry that matches counts.
    pub fn with_client_roles(mut self, client_roles: Vec<ClientRole>) -> Self {
        self.client_roles = client_roles;
        self
    }

    /// Limits the wrong keys of an address in a minute; 0: no limit.
    pub fn with_wrong_keys_per_minute(mut self, max: u32) -> Self {
        self.wrong_keys = WrongKeys::new(max);
        self
    }

    /// Goes on with the wrong keys that `former` has counted.
    #[must_use]
    pub(crate) fn with_counts_of(mut self, former: &Self) -> Self {
        self.wrong_keys = self.wrong_keys.with_counts_of(&former.wrong_keys);
        self
    }

    /// Authenticates a request for an operation that needs this role. The role of a caller is the
    /// greater of its key's and its certificate's. The key is query argument `api_key`, else header
    /// `X-API-KEY`, else cookie `x_api_key`. The certificate must not have expired.
    ///
    /// # Errors
    /// When a key is wrong, or there is neither a key nor a certificate with a role, or when the
    /// role is too small.
    pub fn authenticate(
        &self,
        required: AdminRole,
        client: &AdminClient,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Caller, AccessError> {
        let Some(keys) = &self.keys else { return Ok(Caller { name: "-".to_owned(), client_role: None }) };
        let by_key = match presented_key(query, headers) {
            None => None,
            // Nothing is no key, even where its hash is one.
            Some(key) => Some(
                find_key(keys, key)
                    .filter(|_| !key.is_empty())
                    .ok_or_else(|| self.wrong_key(client.address.ip()))?,
            ),
        };
        let by_certificate = client
            .certificate
            .identity()
            .and_then(|identity| self.client_roles.iter().find(|entry| entry.client.allows(Some(identity))));
        let roles = by_key.map(|key| key.role).into_iter().chain(by_certificate.map(|entry| entry.role));
        if roles.max().ok_or(AccessError::MissingKey)? < required {
            return Err(AccessError::ViewerMethod);
        }
        Ok(Caller {
            name: by_key.map_or("-", |key| &key.name).to_owned(),
            client_role: by_certificate.map(|entry| entry.name.clone()),
        })
    }

    fn wrong_key(&self, address: IpAddr) -> AccessError {
        match self.wrong_keys.record(address, Instant::now()) {
            Ok(()) => AccessError::WrongKey,
            Err(retry_after) => AccessError::TooManyWrongKeys { retry_after },
        }
    }
}

fn presented_key<'a>(query: &'a Query, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    let header = || headers.get("x-api-key").map(|value| value.as_bytes());
    query.get("api_key").map(str::as_bytes).or_else(header).or_else(|| cookie(headers, b"x_api_key"))
}

fn find_key<'a>(keys: &'a [HashedKey], presented: &[u8]) -> Option<&'a HashedKey> {
    let presented = key_digest(presented);
    // Every entry is compared, so the time does not reveal which one matched.
    let mut matched = None;
    for entry in keys {
        let equal = verify_slices_are_equal(&entry.digest, &presented).is_ok();
        if equal && matched.is_none() {
            matched = Some(entry);
        }
    }
    matched
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
    use pki::ca::{Authority, AuthoritySpec, LeafSpec};
    use pki::{ClientAuth, ClientAuthInput};

    use super::*;

    fn client(certificate: ClientCertStatus) -> AdminClient {
        AdminClient { address: ([127, 0, 0, 1], 1).into(), allowed: Arc::default(), certificate }
    }

    fn access() -> Access {
        let keys = [
            ApiKey { name: "root", key: "secret", role: AdminRole::Admin },
            ApiKey { name: "eye", key: "look", role: AdminRole::Viewer },
            ApiKey { name: "empty", key: "", role: AdminRole::Admin },
        ];
        Access::new(Some(&keys))
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
        let required = if method == Method::GET { AdminRole::Viewer } else { AdminRole::Admin };
        let client = client(ClientCertStatus::NotRequested);
        let caller = access().authenticate(required, &client, &Query::parse(Some(query)), &headers);
        caller.map(|caller| caller.name)
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
        for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE] {
            assert_eq!(ask(method, "api_key=look", &[]), Err(AccessError::ViewerMethod));
        }
    }

    /// Roles for the certificates `ops`, admin, and `*.test`, viewer.
    fn access_with_roles() -> Access {
        let role = |attribute, value, role| ClientRole {
            name: format!("{attribute}={value}"),
            client: model::ClientIdentity::with_attribute(attribute, value).unwrap(),
            role,
        };
        access().with_client_roles(vec![
            role("subject", "CN=ops", AdminRole::Admin),
            role("dns", "*.test", AdminRole::Viewer),
            role("uri", "spiffe://a/b", AdminRole::Admin),
        ])
    }

    fn verified(leaf: &LeafSpec) -> AdminClient {
        let authority = Authority::root(&AuthoritySpec::new("ca")).unwrap();
        let issued = authority.issue(leaf).unwrap();
        let anchors = vec![authority.certificate().clone()];
        let policy = ClientAuth::new(ClientAuthInput { anchors, depth: 1, ..Default::default() }).unwrap();
        let chain = issued.chain[0].der();
        let verified = pki::verify_client(&policy, chain, &[], UnixTime::now()).unwrap();
        let (identity, expires) = (verified.identity().clone(), verified.valid_until());
        client(ClientCertStatus::Verified { identity, expires })
    }

    #[test]
    fn a_certificate_is_enough_where_it_has_a_role() {
        let access = access_with_roles();
        let ask = |client: &AdminClient, required, query: &str| {
            let caller = access.authenticate(required, client, &Query::parse(Some(query)), &HeaderMap::new());
            caller.map(|caller| (caller.name, caller.client_role.unwrap_or_default()))
        };
        let caller = |key: &str, role: &str| Ok((key.to_owned(), role.to_owned()));
        let (read, write) = (AdminRole::Viewer, AdminRole::Admin);

        let ops = verified(&LeafSpec::client("ops"));
        assert_eq!(ask(&ops, write, ""), caller("-", "subject=CN=ops"));
        // A wrong key is never made up for by the certificate.
        assert_eq!(ask(&ops, read, "api_key=bad"), Err(AccessError::WrongKey));
        assert_eq!(ask(&ops, read, "api_key="), Err(AccessError::WrongKey));
        // Of both the greater role counts, and the log has both.
        assert_eq!(ask(&ops, write, "api_key=look"), caller("eye", "subject=CN=ops"));

        let ci = verified(&LeafSpec::client("ci").dns("CI.test"));
        assert_eq!(ask(&ci, read, ""), caller("-", "dns=*.test"));
        assert_eq!(ask(&ci, write, ""), Err(AccessError::ViewerMethod));
        assert_eq!(ask(&ci, write, "api_key=secret"), caller("root", "dns=*.test"));
        // The first entry that matches counts.
        let both = verified(&LeafSpec::client("ops").dns("ops.test"));
        assert_eq!(ask(&both, write, ""), caller("-", "subject=CN=ops"));
        let later = verified(&LeafSpec::client("x").dns("x.test").uri("spiffe://a/b"));
        assert_eq!(ask(&later, write, ""), Err(AccessError::ViewerMethod));

        for other in [
            verified(&LeafSpec::client("OPS2").dns("a.b.test").uri("spiffe://a/b/c")),
            client(ClientCertStatus::Missing),
            client(ClientCertStatus::NotRequested),
            client(ClientCertStatus::Rejected("expired".to_owned())),
        ] {
            assert_eq!(ask(&other, read, ""), Err(AccessError::MissingKey), "{other:?}");
            assert_eq!(ask(&other, write, "api_key=secret"), caller("root", ""), "{other:?}");
        }
    }

    #[test]
    fn without_keys_only_certificates_count() {
        let access = Access::new(Some(&[])).with_client_roles(access_with_roles().client_roles);
        let ask = |client: &AdminClient, query: &str| {
            access.authenticate(AdminRole::Admin, client, &Query::parse(Some(query)), &HeaderMap::new())
        };
        assert!(ask(&verified(&LeafSpec::client("ops")), "").is_ok());
        assert_eq!(ask(&verified(&LeafSpec::client("ops")), "api_key=x"), Err(AccessError::WrongKey));
        assert_eq!(ask(&client(ClientCertStatus::NotRequested), ""), Err(AccessError::MissingKey));
    }

    #[test]
    fn a_correct_key_is_taken_after_any_number_of_wrong_ones() {
        let access = access().with_wrong_keys_per_minute(2);
        let ask = |query: &str| {
            let client = client(ClientCertStatus::NotRequested);
            access.authenticate(AdminRole::Viewer, &client, &Query::parse(Some(query)), &HeaderMap::new())
        };
        for _ in 0..2 {
            assert_eq!(ask("api_key=bad"), Err(AccessError::WrongKey));
        }
        assert!(matches!(ask("api_key=bad"), Err(AccessError::TooManyWrongKeys { retry_after: 1..=60 })));
        assert_eq!(ask(""), Err(AccessError::MissingKey));
        assert!(ask("api_key=secret").is_ok());
    }

    #[test]
    fn a_certificate_without_a_subject_has_a_name_for_the_log() {
        let names = ["spiffe://a/b".to_owned(), "b.test".to_owned()];
        assert_eq!(log_name("CN=ops", names.iter()), Some("CN=ops"));
        assert_eq!(log_name("", names.iter()), Some("spiffe://a/b"));
        assert_eq!(log_name("", [].iter()), None);
        assert_eq!(verified(&LeafSpec::client("ops")).certificate.name(), Some("CN=ops"));
        assert_eq!(client(ClientCertStatus::Missing).certificate.name(), None);
    }
}
