//! What a site demands of its clients: [`ClientAuth`], made once when a document is checked or
//! arrives, then only read.
//!
//! `client.ca`, `client.depth`, `client.skip_mtls_uri_regex` and `client.crl` -> here -> `chain`
//! (may this client in?) and the data plane (which paths need no certificate?). Everything costly
//! happens at making: parsing, indexing, compiling. Invariant: [`ClientAuth::digest`] covers
//! everything that can change a verdict, so equal digests mean equal verdicts, whatever the
//! certificate. Tickets, verified-chain entries and live connections are bound to it.

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
pub const SKIP_PATTERNS_MAX: usize = 256;
/// Largest compiled form of one pattern, in bytes: bounds what `a{1000}{1000}` costs.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// SHA-256 over a policy.
pub type PolicyDigest = [u8; 32];

/// What a [`ClientAuth`] is made from.
#[derive(Clone, Debug, Default)]
pub struct ClientAuthInput {
    /// The trust anchors: exactly these, nothing of the system's. A CA, an intermediate, or a
    /// client's own certificate (pinned).
    pub anchors: Vec<Certificate>,
    /// Most intermediates between leaf and anchor, as OpenSSL counts them (contract 5.1). 0: signed
    /// by the anchor itself.
    pub depth: u32,
    /// Paths that need no certificate: patterns in the syntax of the `regex` crate, matching
    /// anywhere in the path.
    pub skip_uri_patterns: Vec<String>,
    /// Revocation lists. Empty: revocation is not checked.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// With lists: only a revoked certificate is refused. Otherwise an unknown or stale status
    /// refuses too.
    pub crl_prefer: bool,
}

/// Why no policy can be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// Without an anchor nobody could ever be verified.
    #[error("no trust anchor: the CA bundle holds no certificate")]
    NoAnchor,
    /// Over [`SKIP_PATTERNS_MAX`].
    #[error("{found} skip patterns are over the limit of {SKIP_PATTERNS_MAX}")]
    TooManyPatterns {
        /// How many there are.
        found: usize,
    },
    /// Not in the syntax of the `regex` crate, which leaves out what needs back-tracking; or too
    /// large.
    #[error("skip pattern {position} `{pattern}` cannot be used: {cause}")]
    Pattern {
        /// Counts from 1.
        position: usize,
        /// As given.
        pattern: String,
        /// What the engine says, and what to do.
        cause: String,
    },
    /// Over [`CRLS_MAX`].
    #[error("{found} CRLs are over the limit of {CRLS_MAX}")]
    TooManyCrls {
        /// How many there are.
        found: usize,
    },
    /// A list cannot be relied on.
    #[error("CRL {position}: {error}")]
    Crl {
        /// Counts from 1.
        position: usize,
        /// What is wrong with it.
        error: CrlError,
    },
}

/// Trust anchors, found by their subject.
pub struct TrustAnchors {
    certificates: Box<[Certificate]>,
    /// Hash of the folded subject and place in `certificates`, ascending: there may be a policy for
    /// each of a million sites, most of them with one anchor.
    by_subject: Box<[(u64, u32)]>,
    /// How many anchors at most have the same subject.
    same_subject_max: u32,
}

impl TrustAnchors {
    /// Takes exactly these certificates as anchors; duplicates are dropped.
    ///
    /// # Errors
    /// [`PolicyError::NoAnchor`] when there are none.
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

    /// The anchors, in the order they were given.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// How many anchors at most share a subject: that many may have to be tried for one
    /// certificate.
    pub(crate) fn same_subject_max(&self) -> u32 {
        self.same_subject_max
    }

    /// Whether an anchor's subject could have this folded hash.
    pub(crate) fn may_have_subject(&self, hash: u64) -> bool {
        !self.entries_with_hash(hash).is_empty()
    }

    /// The anchors with this subject, whose folded hash the caller has at hand.
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

/// What a site demands of its clients. There may be one for each of a million sites, so what most
/// do without stands elsewhere.
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
    /// All of them at once: a path is looked through once, however many there are.
    compiled: RegexSet,
}

impl ClientAuth {
    /// Makes a policy: indexes the anchors and the revocation lists, compiles the patterns.
    ///
    /// Whether anchors are expired or a CRL is signed by anyone in particular is not asked here:
    /// that depends on the clock and on what clients send.
    ///
    /// # Errors
    /// When there is no anchor, or a pattern or list cannot be used; says which.
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

    /// Subjects of the anchors, each once, for the CertificateRequest. Made anew: whoever asks
    /// keeps them in a form of his own.
    pub fn root_hint_subjects(&self) -> Vec<DistinguishedName> {
        let mut seen = HashSet::new();
        let all = self.anchors.certificates().iter().map(Certificate::subject_der);
        all.filter(|subject| seen.insert(*subject)).map(DistinguishedName::new).collect()
    }

    /// Most intermediates between leaf and anchor.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The skip patterns as they were given.
    pub fn skip_patterns(&self) -> &[String] {
        self.skips.as_ref().map(|skips| skips.patterns.as_slice()).unwrap_or_default()
    }

    /// No skip patterns: a handshake without a good certificate is refused. Otherwise it goes on
    /// and each request is judged.
    pub fn requires_client_cert(&self) -> bool {
        self.skips.is_none()
    }

    /// Whether a path (normalised, without query) needs no certificate. Takes time linear in the
    /// path.
    pub fn skips_path(&self, path: &str) -> bool {
        self.skips.as_ref().is_some_and(|skips| skips.compiled.is_match(path))
    }

    /// The first skip pattern that frees a path, as it was given.
    pub fn skip_pattern_for(&self, path: &str) -> Option<&str> {
        let skips = self.skips.as_ref()?;
        let first = skips.compiled.matches(path).iter().next()?;
        skips.patterns.get(first).map(String::as_str)
    }

    /// The revocation lists.
    pub fn crls(&self) -> &[Crl] {
        &self.crls.0
    }

    /// Only a revoked certificate is refused; otherwise, when there are lists, an unknown or stale
    /// status refuses too.
    pub fn crl_prefer(&self) -> bool {
        self.crl_prefer
    }

    /// SHA-256 over everything that can change a verdict.
    pub fn digest(&self) -> &PolicyDigest {
        &self.digest
    }

    pub(crate) fn crl_set(&self) -> &CrlSet {
        &self.crls
    }

    /// The lists, when there are any: without them revocation is not asked about.
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

/// Each on its own first, to say which one cannot be used. `None` when there are none.
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

/// The engine's own message spans several lines; its last says what is wrong.
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

/// Order does not change a verdict, so anchors and lists are taken in the order of their own
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
