//! The client policy of a site: [`ClientAuth`], built once when a document is validated or
//! received, then read-only.
//!
//! `client.ca`, `client.depth`, `client.skip_mtls_uri_regex` and `client.crl` -> [`ClientAuth`] ->
//! `chain` (verification) and the data plane (which paths need no certificate). All expensive work
//! happens when it is built: parsing, indexing, compiling. Invariant: [`ClientAuth::digest`] covers
//! everything that can change a result, so equal digests mean equal results for every certificate.
//! Tickets, cached chains and open connections are bound to it.

use std::collections::{HashMap, HashSet};
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use regex::{RegexBuilder, RegexSet, RegexSetBuilder};
use rustls_pki_types::CertificateRevocationListDer;
use thiserror::Error;

use crate::cert::Certificate;
use crate::name::{self, DistinguishedName};
use crate::revocation::{CRLS_MAX, Crl, CrlError, CrlSet};

/// Most skip patterns a policy may hold.
pub(crate) const SKIP_PATTERNS_MAX: usize = 256;
/// Largest compiled form of one pattern, in bytes: bounds the cost of `a{1000}{1000}`.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// SHA-256 of a policy.
pub type PolicyDigest = [u8; 32];

/// The input of [`ClientAuth::new`].
#[derive(Clone, Debug, Default)]
pub struct ClientAuthInput {
    /// The trust anchors, without those of the system. A CA, an intermediate, or a client's own
    /// certificate (pinned).
    pub anchors: Vec<Certificate>,
    /// Most intermediates between leaf and anchor, as OpenSSL counts them (contract 5.1). 0: signed
    /// by the anchor itself.
    pub depth: u32,
    /// Paths that need no certificate: patterns in the syntax of the `regex` crate, unanchored.
    pub skip_uri_patterns: Vec<String>,
    /// The CRLs. Empty: revocation is not checked.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// With CRLs: an unknown or stale status is accepted (soft-fail). Otherwise it is rejected.
    pub crl_prefer: bool,
}

/// Why a policy is invalid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// Without an anchor no client could be verified.
    #[error("no trust anchor: the CA bundle holds no certificate")]
    NoAnchor,
    /// Over [`SKIP_PATTERNS_MAX`].
    #[error("{found} skip patterns are over the limit of {SKIP_PATTERNS_MAX}")]
    TooManyPatterns {
        /// The number of them.
        found: usize,
    },
    /// Not in the syntax of the `regex` crate, which excludes back-tracking; or too large.
    #[error("skip pattern {position} `{pattern}` cannot be used: {cause}")]
    Pattern {
        /// Counts from 1.
        position: usize,
        /// The pattern.
        pattern: String,
        /// The error of the regex engine, and what to do.
        cause: String,
    },
    /// Over [`CRLS_MAX`].
    #[error("{found} CRLs are over the limit of {CRLS_MAX}")]
    TooManyCrls {
        /// The number of them.
        found: usize,
    },
    /// A CRL is invalid.
    #[error("CRL {position}: {error}")]
    Crl {
        /// Counts from 1.
        position: usize,
        /// The error.
        error: CrlError,
    },
}

/// Trust anchors, indexed by their subject.
#[derive(PartialEq, Eq)]
pub struct TrustAnchors {
    certificates: Box<[Certificate]>,
    /// Hash of the folded subject and index in `certificates`, ascending. Compact, because a
    /// million sites may have a policy each, most of them with one anchor.
    by_subject: Box<[(u64, u32)]>,
    /// Most anchors with the same subject.
    same_subject_max: u32,
}

impl TrustAnchors {
    /// Takes these certificates as anchors and drops duplicates.
    ///
    /// # Errors
    /// [`PolicyError::NoAnchor`] when there is none.
    pub fn new(certificates: Vec<Certificate>) -> Result<Self, PolicyError> {
        let mut kept: Vec<Certificate> = Vec::with_capacity(certificates.len());
        let mut by_subject: HashMap<u64, Vec<u32>> = HashMap::new();
        for certificate in certificates {
            let places = by_subject.entry(name::folded_hash(certificate.subject_der())).or_default();
            let known = places.iter().any(|place| kept.get(*place as usize) == Some(&certificate));
            if let (false, Ok(place)) = (known, u32::try_from(kept.len())) {
                places.push(place);
                kept.push(certificate);
            }
        }
        let namesakes = by_subject.values().map(Vec::len).max().unwrap_or_default();
        let namesakes = u32::try_from(namesakes).unwrap_or(u32::MAX);
        let each = by_subject.iter().flat_map(|(hash, places)| places.iter().map(|place| (*hash, *place)));
        let mut by_subject: Box<[(u64, u32)]> = each.collect();
        by_subject.sort_unstable();
        if kept.is_empty() {
            Err(PolicyError::NoAnchor)
        } else {
            Ok(Self { certificates: kept.into(), by_subject, same_subject_max: namesakes })
        }
    }

    /// The anchors, in the given order.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// SHA-256 over the anchors in their order. Computed on each call.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        for anchor in &self.certificates {
            context.update(anchor.fingerprint_sha256());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref()); // both are 32 bytes
        digest
    }

    /// Most anchors that share a subject: that many may have to be tried for one certificate.
    pub(crate) fn same_subject_max(&self) -> u32 {
        self.same_subject_max
    }

    /// Whether an anchor's subject could have this folded hash.
    pub(crate) fn may_have_subject(&self, hash: u64) -> bool {
        !self.entries_with_hash(hash).is_empty()
    }

    /// The anchors with this subject; `hash` is its folded hash.
    pub(crate) fn with_subject(&self, subject: &[u8], hash: u64) -> impl Iterator<Item = &Certificate> {
        self.entries_with_hash(hash)
            .iter()
            .filter_map(|(_, place)| self.certificates.get(*place as usize))
            .filter(move |anchor| name::names_match(anchor.subject_der(), subject))
    }

    fn entries_with_hash(&self, hash: u64) -> &[(u64, u32)] {
        let from = self.by_subject.partition_point(|(other, _)| *other < hash);
        let rest = self.by_subject.get(from..).unwrap_or_default();
        rest.get(..rest.partition_point(|(other, _)| *other == hash)).unwrap_or_default()
    }
}

impl fmt::Debug for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.certificates.iter().map(Certificate::subject)).finish()
    }
}

/// The client policy of a site. There may be one for each of a million sites, so rare parts are
/// boxed.
pub struct ClientAuth {
    anchors: TrustAnchors,
    depth: u32,
    skips: Option<Box<SkipPatterns>>,
    crls: CrlSet,
    crl_prefer: bool,
    digest: PolicyDigest,
}

/// Skip patterns; at least one.
struct SkipPatterns {
    patterns: Vec<String>,
    /// All patterns in one set: a path is scanned once.
    compiled: RegexSet,
}

impl ClientAuth {
    /// Builds a policy: indexes the anchors and the CRLs, compiles the patterns.
    ///
    /// Does not check whether anchors have expired or who signed a CRL: that depends on the clock
    /// and on the client's chain.
    ///
    /// # Errors
    /// When there is no anchor, or a pattern or CRL is invalid.
    pub fn new(input: ClientAuthInput) -> Result<Self, PolicyError> {
        let ClientAuthInput { anchors, depth, skip_uri_patterns: patterns, crls, crl_prefer } = input;
        let anchors = TrustAnchors::new(anchors)?;
        let skips = compile(&patterns)?.map(|compiled| Box::new(SkipPatterns { patterns, compiled }));
        let crls = read_crls(&crls)?;
        let patterns = skips.as_ref().map(|skips| skips.patterns.as_slice()).unwrap_or_default();
        let digest = digest(&anchors, depth, patterns, &crls, crl_prefer);
        Ok(Self { anchors, depth, skips, crls, crl_prefer, digest })
    }

    /// The trust anchors.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The subjects of the anchors, each once, for the CertificateRequest. Computed on each call.
    pub fn root_hint_subjects(&self) -> Vec<DistinguishedName> {
        let mut seen = HashSet::new();
        let all = self.anchors.certificates().iter().map(Certificate::subject_der);
        all.filter(|subject| seen.insert(*subject)).map(DistinguishedName::new).collect()
    }

    /// Most intermediates between leaf and anchor.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The skip patterns, as configured.
    pub fn skip_patterns(&self) -> &[String] {
        self.skips.as_ref().map(|skips| skips.patterns.as_slice()).unwrap_or_default()
    }

    /// Whether a handshake without a valid certificate is rejected: the policy has no skip
    /// patterns. With skip patterns each request is checked instead.
    pub fn requires_client_cert(&self) -> bool {
        self.skips.is_none()
    }

    /// Whether a path (normalised, without query) needs no certificate. Takes time linear in the
    /// path.
    pub fn skips_path(&self, path: &str) -> bool {
        self.skips.as_ref().is_some_and(|skips| skips.compiled.is_match(path))
    }

    /// The first skip pattern that matches a path, as configured.
    pub fn skip_pattern_for(&self, path: &str) -> Option<&str> {
        let skips = self.skips.as_ref()?;
        let first = skips.compiled.matches(path).iter().next()?;
        skips.patterns.get(first).map(String::as_str)
    }

    /// The CRLs.
    pub fn crls(&self) -> &[Crl] {
        &self.crls.0
    }

    /// Whether an unknown or stale revocation status is accepted (soft-fail).
    pub fn crl_prefer(&self) -> bool {
        self.crl_prefer
    }

    /// SHA-256 over everything that can change a result.
    pub fn digest(&self) -> &PolicyDigest {
        &self.digest
    }

    pub(crate) fn crl_set(&self) -> &CrlSet {
        &self.crls
    }

    /// The CRLs to check; `None` without CRLs.
    pub(crate) fn checked_crls(&self) -> Option<&CrlSet> {
        (!self.crls.0.is_empty()).then_some(&self.crls)
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth")
            .field("anchors", &self.anchors)
            .field("depth", &self.depth)
            .field("skip_patterns", &self.skip_patterns())
            .field("crls", &self.crls.0)
            .field("crl_prefer", &self.crl_prefer)
            .finish()
    }
}

impl PartialEq for ClientAuth {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ClientAuth {}

/// Compiles each pattern on its own first, to report the invalid one. `None` without patterns.
fn compile(patterns: &[String]) -> Result<Option<RegexSet>, PolicyError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    if patterns.len() > SKIP_PATTERNS_MAX {
        return Err(PolicyError::TooManyPatterns { found: patterns.len() });
    }
    let refused = |position: usize, error: &regex::Error| PolicyError::Pattern {
        position,
        pattern: patterns.get(position - 1).cloned().unwrap_or_default(),
        cause: explain(error),
    };
    for (position, pattern) in (1..).zip(patterns) {
        RegexBuilder::new(pattern)
            .size_limit(PATTERN_BYTES_MAX)
            .build()
            .map_err(|error| refused(position, &error))?;
    }
    RegexSetBuilder::new(patterns)
        .size_limit(PATTERN_BYTES_MAX.saturating_mul(patterns.len()))
        .build()
        .map(Some)
        .map_err(|error| refused(patterns.len(), &error))
}

/// The last line of the engine's message has the cause.
fn explain(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("it compiles to more than {limit} bytes: use smaller repetition counts")
        }
        other => {
            let text = other.to_string();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            let reason = last.trim().trim_start_matches("error: ");
            format!(
                "{reason} (patterns that need back-tracking are not supported: matching must take linear time)"
            )
        }
    }
}

fn read_crls(ders: &[CertificateRevocationListDer<'static>]) -> Result<CrlSet, PolicyError> {
    if ders.len() > CRLS_MAX {
        return Err(PolicyError::TooManyCrls { found: ders.len() });
    }
    let read_one = |(index, der): (usize, &CertificateRevocationListDer<'_>)| {
        Crl::from_der(der).map_err(|error| PolicyError::Crl { position: index + 1, error })
    };
    Ok(CrlSet(ders.iter().enumerate().map(read_one).collect::<Result<_, _>>()?))
}

/// Order does not change a result, so anchors and CRLs are hashed in the order of their own
/// digests.
fn digest(
    anchors: &TrustAnchors,
    depth: u32,
    patterns: &[String],
    crls: &CrlSet,
    crl_prefer: bool,
) -> PolicyDigest {
    let mut context = Context::new(&SHA256);
    context.update(b"countersign client policy 1");
    let mut put = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    let mut anchor_digests: Vec<[u8; 32]> =
        anchors.certificates().iter().map(|anchor| crate::cert::sha256(anchor.der())).collect();
    anchor_digests.sort_unstable();
    put(anchor_digests.as_flattened());
    put(&depth.to_be_bytes());
    put(&(patterns.len() as u64).to_be_bytes());
    for pattern in patterns {
        put(pattern.as_bytes());
    }
    let mut crl_digests: Vec<[u8; 32]> = crls.0.iter().map(|crl| crate::cert::sha256(crl.der())).collect();
    crl_digests.sort_unstable();
    crl_digests.dedup();
    put(crl_digests.as_flattened());
    // without lists the word has no effect
    put(&[u8::from(crl_prefer && !crls.0.is_empty())]);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref()); // both are 32 bytes
    out
}

#[cfg(test)]
mod tests;
