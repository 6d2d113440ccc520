//! What an issued certificate holds: subject, names, usages, validity, key algorithm.
//!
//! [`AuthoritySpec`] and [`LeafSpec`] -> the parameters of rcgen. Without a validity a fixed one
//! applies, so that tests give the same result on any day. Invariant: serial numbers are random.

use std::net::IpAddr;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

use super::IssueError;
use crate::unix_time;

/// 2024-01-01T00:00:00Z, in seconds since 1970: the default start of validity.
const DEFAULT_NOT_BEFORE: i64 = 1_704_067_200;
/// 2049-12-31T23:59:59Z, the default end of validity: the last second of UTCTime.
const DEFAULT_NOT_AFTER: i64 = 2_524_607_999;
pub(super) const SECONDS_A_DAY: u64 = 86_400;

/// The supported key algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256, SHA-256.
    #[default]
    P256,
    /// ECDSA on P-384, SHA-384.
    P384,
    /// ECDSA on P-521, SHA-512.
    P521,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 bits, PKCS#1 v1.5, SHA-256. Generating a key takes a tenth of a second or more.
    Rsa2048,
}

impl KeyAlgorithm {
    pub(super) fn generate(self) -> Result<KeyPair, IssueError> {
        KeyPair::generate_for(self.signature()).map_err(IssueError::library("a key"))
    }

    fn signature(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// First and last second of validity, since 1970; may lie before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    from: i64,
    to: i64,
}

impl Default for Validity {
    fn default() -> Self {
        Self { from: DEFAULT_NOT_BEFORE, to: DEFAULT_NOT_AFTER }
    }
}

impl Validity {
    pub(super) fn between(from: UnixTime, to: UnixTime) -> Self {
        Self { from: unix_time::to_seconds(from), to: unix_time::to_seconds(to) }
    }

    pub(super) fn days(from: UnixTime, days: u32) -> Self {
        let to = from.as_secs().saturating_add(u64::from(days) * SECONDS_A_DAY);
        Self { from: unix_time::to_seconds(from), to: i64::try_from(to).unwrap_or(i64::MAX) }
    }

    /// The end may lie before the start: tests need such an invalid certificate.
    pub(super) fn dates(self) -> Result<(OffsetDateTime, OffsetDateTime), IssueError> {
        let date =
            |seconds| OffsetDateTime::from_unix_timestamp(seconds).ok().filter(|date| date.year() >= 0);
        match (date(self.from), date(self.to)) {
            (Some(from), Some(to)) => Ok((from, to)),
            _ => Err(IssueError::InvalidValidity { from: self.from, to: self.to }),
        }
    }
}

/// The specification of a CA. Default: P-256, valid 2024 to 2049, no path length limit, may sign
/// CRLs.
#[derive(Clone, Debug)]
pub struct AuthoritySpec {
    common_name: String,
    organization: Option<String>,
    validity: Validity,
    pub(super) algorithm: KeyAlgorithm,
    path_length: Option<u8>,
    permitted_dns: Vec<String>,
    key_usages: Vec<KeyUsagePurpose>,
}

impl AuthoritySpec {
    /// An authority with this common name.
    pub fn new(common_name: impl Into<String>) -> Self {
        Self {
            common_name: common_name.into(),
            organization: None,
            validity: Validity::default(),
            algorithm: KeyAlgorithm::default(),
            path_length: None,
            permitted_dns: Vec::new(),
            key_usages: vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
        }
    }

    /// Sets the subject's organization.
    pub fn organization(mut self, organization: impl Into<String>) -> Self {
        self.organization = Some(organization.into());
        self
    }

    /// Valid for `days` days from `from`.
    pub fn valid(mut self, from: UnixTime, days: u32) -> Self {
        self.validity = Validity::days(from, days);
        self
    }

    /// Valid from `from` to `to`, both inclusive.
    pub fn between(mut self, from: UnixTime, to: UnixTime) -> Self {
        self.validity = Validity::between(from, to);
        self
    }

    /// Sets the kind of key.
    pub fn algorithm(mut self, algorithm: KeyAlgorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Sets pathLenConstraint: how many intermediates may follow.
    pub fn path_length(mut self, path_length: u8) -> Self {
        self.path_length = Some(path_length);
        self
    }

    /// Adds a DNS subtree to the permitted name constraints.
    pub fn permit_dns(mut self, subtree: impl Into<String>) -> Self {
        self.permitted_dns.push(subtree.into());
        self
    }

    /// Removes keyCertSign: the CA may sign CRLs only.
    pub fn without_cert_sign(mut self) -> Self {
        self.key_usages.retain(|usage| *usage != KeyUsagePurpose::KeyCertSign);
        self
    }

    /// Removes cRLSign: the CA may sign certificates only.
    pub fn without_crl_sign(mut self) -> Self {
        self.key_usages.retain(|usage| *usage != KeyUsagePurpose::CrlSign);
        self
    }

    pub(super) fn params(&self, issued: bool) -> Result<CertificateParams, IssueError> {
        let mut params = base_params(&self.common_name, self.organization.as_deref(), self.validity)?;
        params.is_ca = IsCa::Ca(match self.path_length {
            Some(length) => BasicConstraints::Constrained(length),
            None => BasicConstraints::Unconstrained,
        });
        params.key_usages.clone_from(&self.key_usages);
        params.use_authority_key_identifier_extension = issued;
        if !self.permitted_dns.is_empty() {
            params.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: self
                    .permitted_dns
                    .iter()
                    .cloned()
                    .map(rcgen::GeneralSubtree::DnsName)
                    .collect(),
                excluded_subtrees: Vec::new(),
            });
        }
        Ok(params)
    }
}

/// The extended key usages of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usages {
    /// serverAuth.
    pub server: bool,
    /// clientAuth.
    pub client: bool,
}

impl Usages {
    /// A TLS server's certificate.
    pub const SERVER: Self = Self { server: true, client: false };
    /// A TLS client's certificate.
    pub const CLIENT: Self = Self { server: false, client: true };
    /// Both.
    pub const BOTH: Self = Self { server: true, client: true };
    /// No extKeyUsage at all: any use.
    pub const ANY: Self = Self { server: false, client: false };
}

/// The specification of a leaf. Default: a client's, P-256, valid 2024 to 2049, X.509 v3.
#[derive(Clone, Debug)]
pub struct LeafSpec {
    common_name: String,
    organization: Option<String>,
    names: SubjectAltNames,
    usages: Usages,
    validity: Validity,
    pub(super) algorithm: KeyAlgorithm,
    pub(super) v1: bool,
}

#[derive(Clone, Debug, Default)]
struct SubjectAltNames {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    uris: Vec<String>,
    emails: Vec<String>,
}

impl LeafSpec {
    /// A client's certificate with this common name.
    pub fn client(common_name: impl Into<String>) -> Self {
        Self {
            common_name: common_name.into(),
            organization: None,
            names: SubjectAltNames::default(),
            usages: Usages::CLIENT,
            validity: Validity::default(),
            algorithm: KeyAlgorithm::default(),
            v1: false,
        }
    }

    /// A server's certificate for a DNS name, which is also its common name. More names with
    /// [`Self::dns`] and [`Self::ip`].
    pub fn server(dns_name: impl Into<String>) -> Self {
        let name = dns_name.into();
        let spec = Self { usages: Usages::SERVER, ..Self::client(name.clone()) };
        spec.dns(name)
    }

    /// Sets the subject's organization.
    pub fn organization(mut self, organization: impl Into<String>) -> Self {
        self.organization = Some(organization.into());
        self
    }

    /// Adds a DNS name, which may start with `*.`.
    pub fn dns(mut self, name: impl Into<String>) -> Self {
        self.names.dns.push(name.into());
        self
    }

    /// Adds an IP address.
    pub fn ip(mut self, address: IpAddr) -> Self {
        self.names.ips.push(address);
        self
    }

    /// Adds a URI, such as a SPIFFE ID.
    pub fn uri(mut self, uri: impl Into<String>) -> Self {
        self.names.uris.push(uri.into());
        self
    }

    /// Adds an email address.
    pub fn email(mut self, address: impl Into<String>) -> Self {
        self.names.emails.push(address.into());
        self
    }

    /// Sets the extended key usages.
    pub fn usages(mut self, usages: Usages) -> Self {
        self.usages = usages;
        self
    }

    /// Valid for `days` days from `from`.
    pub fn valid(mut self, from: UnixTime, days: u32) -> Self {
        self.validity = Validity::days(from, days);
        self
    }

    /// Valid from `from` to `to`, both inclusive.
    pub fn between(mut self, from: UnixTime, to: UnixTime) -> Self {
        self.validity = Validity::between(from, to);
        self
    }

    /// Sets the kind of key.
    pub fn algorithm(mut self, algorithm: KeyAlgorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Issues an X.509 v1 certificate, as `openssl x509 -req` does without an extension file: it
    /// has only the common name and organization.
    pub fn v1(mut self) -> Self {
        self.v1 = true;
        self
    }

    pub(super) fn params(&self) -> Result<CertificateParams, IssueError> {
        let mut params = base_params(&self.common_name, self.organization.as_deref(), self.validity)?;
        params.subject_alt_names = self.names.general_names()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if self.algorithm == KeyAlgorithm::Rsa2048 {
            // For RSA key exchange in TLS 1.2, which some clients still use.
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        if self.usages.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if self.usages.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

impl SubjectAltNames {
    fn general_names(&self) -> Result<Vec<SanType>, IssueError> {
        let text = |name: &String, place| {
            name.as_str().try_into().map_err(|_| IssueError::Name { name: name.clone(), place })
        };
        let mut names = Vec::new();
        for name in &self.dns {
            names.push(SanType::DnsName(text(name, "DNS name")?));
        }
        names.extend(self.ips.iter().map(|address| SanType::IpAddress(*address)));
        for uri in &self.uris {
            names.push(SanType::URI(text(uri, "URI")?));
        }
        for address in &self.emails {
            names.push(SanType::Rfc822Name(text(address, "email address")?));
        }
        Ok(names)
    }
}

fn base_params(
    common_name: &str,
    organization: Option<&str>,
    validity: Validity,
) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = validity.dates()?;
    params.serial_number = Some(random_serial()?);
    // RFC 7093 2 (1): the first 160 bits of the key's SHA-256.
    params.key_identifier_method = KeyIdMethod::Sha256;
    Ok(params)
}

/// 127 random bits: positive and unpredictable (the CA/Browser Forum requires 64).
fn random_serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| IssueError::Library { what: "a serial number", cause: "no randomness".to_owned() })?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40; // positive, and always 16 bytes long
    }
    Ok(SerialNumber::from_slice(&bytes))
}
