//! The allow-list: each entry names clients by one attribute, and one matching entry is enough.
//!
//! The entries are compiled into sets, so the length of a list does not cost time per request.
//! Invariant: an entry matches exactly: SPIFFE paths match whole segments, a wildcard covers one
//! label, and a CN is never compared as a DNS name.

use std::collections::{HashMap, HashSet};

use data_encoding::HEXLOWER_PERMISSIVE;
use pki::{DistinguishedName, Identity};
use serde_json::{Map, Value};

use crate::problem::Problem;

const ENTRY_KINDS: [&str; 7] = ["spiffe", "uri", "dns", "email", "subject", "serial", "spki_sha256"];
const SPIFFE: &str = "spiffe://";
/// SPIFFE ID, section 2.3.
const SPIFFE_BYTES_MAX: usize = 2048;

/// A compiled allow-list.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowList {
    spiffe_ids: HashSet<Box<str>>,
    /// Prefixes of SPIFFE ids, without the final `/`.
    spiffe_prefixes: HashSet<Box<str>>,
    uris: HashSet<Box<str>>,
    dns: HashSet<Box<str>>,
    /// `example.org` of `*.example.org`.
    dns_parents: HashSet<Box<str>>,
    emails: HashSet<Box<str>>,
    /// Keyed by the hash of the normalized name.
    subjects: HashMap<u64, Vec<DistinguishedName>>,
    /// Each with its issuer, if the entry names one.
    serials: HashMap<Box<[u8]>, Vec<Option<DistinguishedName>>>,
    keys: HashSet<[u8; 32]>,
}

impl AllowList {
    pub(crate) fn compile(entries: &[Value]) -> Result<AllowList, Problem> {
        let mut list = AllowList::default();
        for (index, entry) in (1..).zip(entries) {
            list.add(entry).map_err(|problem| problem.within(&format!("[{index}]")))?;
        }
        Ok(list)
    }

    fn add(&mut self, entry: &Value) -> Result<(), Problem> {
        let nothing = Map::new();
        let members = entry.as_object().unwrap_or(&nothing);
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let mut kinds = ENTRY_KINDS.iter().filter_map(|kind| Some((*kind, text(kind)?)));
        let (Some((kind, value)), None) = (kinds.next(), kinds.next()) else {
            return Err(Problem::new("", "an entry names a client in exactly one way")
                .with_hint(format!("expected one of {}", ENTRY_KINDS.join(", "))));
        };
        if members.contains_key("issuer") && kind != "serial" {
            return Err(Problem::new("issuer", "an issuer is valid only beside a serial"));
        }
        let added = match kind {
            "spiffe" => self.add_spiffe(value),
            "uri" => check_printable(value).map(|()| _ = self.uris.insert(value.into())),
            "dns" => self.add_dns(value),
            "email" => self.add_email(value),
            "subject" => {
                name(value).map(|name| self.subjects.entry(name.folded_hash()).or_default().push(name))
            }
            "serial" => return self.add_serial(value, text("issuer")),
            _ => key_hash(value).map(|hash| _ = self.keys.insert(hash)),
        };
        added.map_err(|problem| problem.within(kind))
    }

    fn add_spiffe(&mut self, text: &str) -> Result<(), Problem> {
        let (id, below) = match text.strip_suffix("/*") {
            Some(above) => (above, true),
            None => (text, false),
        };
        if !is_spiffe(id) {
            return Err(Problem::new("", format!("\"{text}\" is not a SPIFFE ID")).with_hint(
                "like spiffe://example.org/ns/a (this one), spiffe://example.org/ns/a/* (everything below) or spiffe://example.org/* \
                 (the whole trust domain); lower-case trust domain, no empty or dot segments",
            ));
        }
        if !below && !id.get(SPIFFE.len()..).unwrap_or_default().contains('/') {
            return Err(Problem::new("", format!("\"{text}\" is a trust domain, which no client is"))
                .with_hint(format!("for everybody of this trust domain write {text}/*")));
        }
        if below {
            self.spiffe_prefixes.insert(id.into())
        } else {
            self.spiffe_ids.insert(id.into())
        };
        Ok(())
    }

    fn add_dns(&mut self, text: &str) -> Result<(), Problem> {
        let (name, set) = match text.strip_prefix("*.") {
            Some(parent) => (parent, &mut self.dns_parents),
            None => (text, &mut self.dns),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if !name.split('.').all(label) {
            return Err(Problem::new("", format!("\"{text}\" is not a DNS name"))
                .with_hint("like client.example.org, or *.example.org for one label; no dot at the end"));
        }
        set.insert(name.to_ascii_lowercase().into());
        Ok(())
    }

    fn add_email(&mut self, text: &str) -> Result<(), Problem> {
        check_printable(text)?;
        let address = normalized_email(text).filter(|address| !address.contains(' '));
        let address = address.ok_or_else(|| {
            Problem::new("", format!("\"{text}\" is not an email address")).with_hint("like ops@example.org")
        })?;
        self.emails.insert(address.into());
        Ok(())
    }

    fn add_serial(&mut self, text: &str, issuer: Option<&str>) -> Result<(), Problem> {
        let serial = serial(text).map_err(|problem| problem.within("serial"))?;
        let issuer = issuer.map(name).transpose().map_err(|problem| problem.within("issuer"))?;
        self.serials.entry(serial).or_default().push(issuer);
        Ok(())
    }

    /// Whether an entry matches the identity.
    pub(crate) fn allows(&self, identity: &Identity) -> bool {
        self.allows_uri(identity)
            || self.allows_dns(identity)
            || !self.emails.is_empty()
                && identity
                    .san_emails()
                    .iter()
                    .any(|email| normalized_email(email).is_some_and(|email| self.emails.contains(&*email)))
            || self.allows_certificate(identity.certificate())
    }

    /// Whether this list certainly allows every client that `other` allows.
    pub(crate) fn covers(&self, other: &AllowList) -> bool {
        let below = |id: &str| {
            let ends = id.match_indices('/').skip_while(|(end, _)| *end < SPIFFE.len());
            ends.into_iter()
                .any(|(end, _)| id.get(..end).is_some_and(|above| self.spiffe_prefixes.contains(above)))
        };
        other.spiffe_ids.iter().all(|id| self.spiffe_ids.contains(id) || self.uris.contains(id) || below(id))
            && other.spiffe_prefixes.iter().all(|above| self.spiffe_prefixes.contains(above) || below(above))
            && other.uris.is_subset(&self.uris)
            && other.dns.iter().all(|name| {
                let parent = name.split_once('.').map(|(_, parent)| parent);
                self.dns.contains(name) || parent.is_some_and(|parent| self.dns_parents.contains(parent))
            })
            && other.dns_parents.is_subset(&self.dns_parents)
            && other.emails.is_subset(&self.emails)
            && other.keys.is_subset(&self.keys)
            && other.subjects.iter().all(|(hash, names)| {
                let known = self.subjects.get(hash).map(Vec::as_slice).unwrap_or_default();
                names.iter().all(|name| known.contains(name))
            })
            && other.serials.iter().all(|(serial, issuers)| {
                let known = self.serials.get(serial).map(Vec::as_slice).unwrap_or_default();
                issuers.iter().all(|issuer| known.contains(&None) || known.contains(issuer))
            })
    }

    fn allows_uri(&self, identity: &Identity) -> bool {
        if !self.uris.is_empty() && identity.san_uris().iter().any(|uri| self.uris.contains(&**uri)) {
            return true;
        }
        if self.spiffe_ids.is_empty() && self.spiffe_prefixes.is_empty() {
            return false;
        }
        let Some(id) = identity.spiffe_id().filter(|id| is_spiffe(id)) else { return false };
        self.spiffe_ids.contains(id)
            || id
                .bytes()
                .enumerate()
                .skip(SPIFFE.len())
                .filter(|(_, byte)| *byte == b'/')
                .any(|(end, _)| id.get(..end).is_some_and(|above| self.spiffe_prefixes.contains(above)))
    }

    fn allows_dns(&self, identity: &Identity) -> bool {
        if self.dns.is_empty() && self.dns_parents.is_empty() {
            return false;
        }
        identity.san_dns().iter().any(|name| {
            let name = name.to_ascii_lowercase();
            // A wildcard name in a certificate is not one name, so a wildcard entry does not cover
            // it.
            let parent = name.split_once('.').filter(|(label, _)| !label.is_empty() && !label.contains('*'));
            self.dns.contains(&*name) || parent.is_some_and(|(_, parent)| self.dns_parents.contains(parent))
        })
    }

    fn allows_certificate(&self, certificate: &pki::Certificate) -> bool {
        if !self.keys.is_empty() && self.keys.contains(certificate.spki_sha256()) {
            return true;
        }
        if let Some(issuers) = self.serials.get(certificate.serial())
            && issuers
                .iter()
                .any(|issuer| issuer.as_ref().is_none_or(|issuer| certificate.has_issuer(issuer)))
        {
            return true;
        }
        !self.subjects.is_empty()
            && self
                .subjects
                .get(&certificate.subject_hash())
                .is_some_and(|names| names.iter().any(|name| certificate.has_subject(name)))
    }
}

/// Compares SPIFFE ids byte by byte, as their specification demands: without normalization, one id
/// has one spelling.
fn is_spiffe(id: &str) -> bool {
    let Some(rest) = id.strip_prefix(SPIFFE) else { return false };
    let mut segments = rest.split('/');
    let domain = segments.next().unwrap_or_default();
    let domain_fits = (1..=255).contains(&domain.len())
        && domain
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte));
    domain_fits
        && id.len() <= SPIFFE_BYTES_MAX
        && segments.all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        })
}

/// Keeps the local part and lower-cases the domain (RFC 5280 7.5).
fn normalized_email(address: &str) -> Option<String> {
    let (local, domain) = address.rsplit_once('@')?;
    (!local.is_empty() && !domain.is_empty()).then(|| format!("{local}@{}", domain.to_ascii_lowercase()))
}

fn check_printable(text: &str) -> Result<(), Problem> {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Ok(());
    }
    Err(Problem::new(
        "",
        format!("{text:?} has characters no certificate's name has: it would match no client"),
    ))
}

fn name(text: &str) -> Result<DistinguishedName, Problem> {
    DistinguishedName::parse(text).map_err(|error| Problem::new("", error.to_string()))
}

/// Parses hexadecimal as OpenSSL prints it, with or without colons, into the content of a DER
/// INTEGER.
fn serial(text: &str) -> Result<Box<[u8]>, Problem> {
    let invalid = || {
        Problem::new("", format!("\"{text}\" is not a serial number"))
            .with_hint("hexadecimal digits, as `openssl x509 -noout -serial` prints them: 0A1B2C or 0A:1B:2C")
    };
    let digits: String = text.chars().filter(|character| *character != ':').collect();
    let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| invalid())?;
    let last = bytes.len().checked_sub(1).ok_or_else(invalid)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(last);
    let mut content = bytes.get(zeros..).unwrap_or_default().to_vec();
    // A DER INTEGER whose first byte is 0x80 or more is negative.
    if content.first().is_some_and(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    Ok(content.into())
}

fn key_hash(text: &str) -> Result<[u8; 32], Problem> {
    let digits: String = text.chars().filter(|character| *character != ':').collect();
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).unwrap_or_default();
    bytes.try_into().map_err(|_| {
        Problem::new("", format!("\"{text}\" is not a SHA-256")).with_hint(
            "64 hexadecimal digits over the SubjectPublicKeyInfo: openssl x509 -pubkey -noout -in client.crt | openssl pkey -pubin \
             -outform DER | sha256sum",
        )
    })
}
