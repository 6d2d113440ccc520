//! Name constraints (RFC 5280 4.2.1.10).
//!
//! `path_builder` calls [`check_name_constraints`] for each issuer with constraints and each
//! certificate below it. All five forms that RFC 5280 defines are matched: DNS, email, URI, IP and
//! directory names; a name of any other form is rejected when there is a constraint of its form.
//! Matching is literal (an asterisk in an email address is an asterisk) except for the wildcard of
//! a DNS name, which is excluded when it could match an excluded name. Invariant: a name or
//! constraint that cannot be matched is rejected.

use std::fmt;

use data_encoding::HEXLOWER;

use super::types::CertificateRef;
use crate::cert::general_name::{self, GeneralName};
use crate::der::{self, DerError, Reader};
use crate::name;

/// Comparisons in one verification, and names and constraints parsed: the peer chooses their
/// product. A long one counts as several.
const COMPARISONS_MAX: u32 = 20_000;
/// Bytes of a name that count as one comparison.
const BYTES_PER_COMPARISON: usize = 64;

/// The remaining comparisons.
#[derive(Debug)]
pub(super) struct ComparisonBudget(u32);

impl Default for ComparisonBudget {
    fn default() -> Self {
        Self(COMPARISONS_MAX)
    }
}

impl ComparisonBudget {
    pub(super) fn is_exhausted(&self) -> bool {
        self.0 == 0
    }

    /// Charges the work on a value of this length.
    fn spend<'a>(&mut self, bytes: usize) -> Result<(), NameConstraintError<'a>> {
        let cost = u32::try_from(1 + bytes / BYTES_PER_COMPARISON).unwrap_or(COMPARISONS_MAX);
        self.0 = self.0.saturating_sub(cost);
        if self.is_exhausted() { Err(NameConstraintError::BudgetExceeded) } else { Ok(()) }
    }
}

/// Why a certificate violates name constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameConstraintError<'a> {
    /// The extension is malformed.
    Unreadable,
    /// A constraint is malformed for its kind.
    BadConstraint(GeneralName<'a>),
    /// The name is malformed for its kind, so it cannot be matched.
    BadName(GeneralName<'a>),
    NotPermitted(GeneralName<'a>),
    Excluded(GeneralName<'a>),
    /// The subject alternative name is malformed.
    UnreadableNames,
    /// The budget is exhausted.
    BudgetExceeded,
}

impl From<DerError> for NameConstraintError<'_> {
    fn from(_: DerError) -> Self {
        Self::Unreadable
    }
}

impl fmt::Display for NameConstraintError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("its constraints cannot be read"),
            Self::BadConstraint(name) => {
                write!(f, "its constraint {} is malformed", DisplayGeneralName(name))
            }
            Self::BadName(name) => write!(f, "the name {} is malformed", DisplayGeneralName(name)),
            Self::NotPermitted(name) => write!(f, "the name {} is not permitted", DisplayGeneralName(name)),
            Self::Excluded(name) => write!(f, "the name {} is excluded", DisplayGeneralName(name)),
            Self::UnreadableNames => f.write_str("the alternative names cannot be read"),
            Self::BudgetExceeded => f.write_str("there are too many names and constraints"),
        }
    }
}

/// Formats a name for a message. Peers choose names, so unusual characters are escaped.
pub(super) struct DisplayGeneralName<'n, 'a>(pub(super) &'n GeneralName<'a>);

impl fmt::Display for DisplayGeneralName<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            GeneralName::Dns(text) => write!(f, "DNS:{}", text.escape_ascii()),
            GeneralName::Email(text) => write!(f, "email:{}", text.escape_ascii()),
            GeneralName::Uri(text) => write!(f, "URI:{}", text.escape_ascii()),
            GeneralName::Ip(bytes) => match general_name::ip_address(bytes) {
                Some(address) => write!(f, "IP:{address}"),
                None => write!(f, "IP:0x{}", HEXLOWER.encode_display(bytes)),
            },
            GeneralName::Directory(name) => write!(f, "directory:{}", name::to_rfc2253(name)),
            GeneralName::Other(number) => write!(f, "of an unsupported form (GeneralName choice {number})"),
        }
    }
}

/// Checks the names of `certificate` against the constraints of `authority`, which is above it on
/// the path.
pub(super) fn check_name_constraints<'a>(
    authority: CertificateRef<'a>,
    certificate: CertificateRef<'a>,
    work: &mut ComparisonBudget,
) -> Result<(), NameConstraintError<'a>> {
    let Some(extension) = authority.fields.name_constraints else { return Ok(()) };
    let constraints = Constraints::read(extension.slice(authority.der), work)?;
    let mut has_email = false;
    if let Some(names) = certificate.fields.subject_alt_name {
        for name in general_name::parse_list(names.slice(certificate.der)) {
            let name = name.map_err(|_| NameConstraintError::UnreadableNames)?;
            has_email |= matches!(name, GeneralName::Email(_));
            constraints.check_name(name, work)?;
        }
    }
    let subject = certificate.subject();
    if !subject.is_empty() {
        constraints.check_name(GeneralName::Directory(subject), work)?;
    }
    if !has_email {
        // Old certificates have the address in the subject instead (RFC 5280 4.2.1.10).
        for address in name::email_addresses(subject) {
            constraints.check_name(GeneralName::Email(address), work)?;
        }
    }
    Ok(())
}

/// The permitted and excluded subtrees; every base is well-formed.
struct Constraints<'a> {
    permitted: Reader<'a>,
    excluded: Reader<'a>,
}

impl<'a> Constraints<'a> {
    fn read(value: &'a [u8], work: &mut ComparisonBudget) -> Result<Self, NameConstraintError<'a>> {
        let mut wrapped = Reader::new(value);
        let mut lists = wrapped.nested(der::SEQUENCE)?;
        wrapped.finish()?;
        let mut take = |number| -> Result<Reader<'a>, NameConstraintError<'a>> {
            let list = lists.optional(der::context_constructed(number))?;
            let subtrees = Reader::new(list.map(|list| list.content).unwrap_or_default());
            let mut rest = subtrees;
            while !rest.is_empty() {
                let base = read_subtree(&mut rest)?;
                work.spend(base.len())?;
                check_base(base)?;
            }
            Ok(subtrees)
        };
        let (permitted, excluded) = (take(0)?, take(1)?);
        lists.finish()?;
        Ok(Self { permitted, excluded })
    }

    fn check_name(
        &self,
        name: GeneralName<'a>,
        work: &mut ComparisonBudget,
    ) -> Result<(), NameConstraintError<'a>> {
        let (mut constrained, mut permitted) = (false, false);
        work.spend(name.len())?;
        let mut subtrees = self.permitted;
        while !subtrees.is_empty() {
            let base = read_subtree(&mut subtrees)?;
            work.spend(base.len())?;
            if same_form(base, name) {
                work.spend(name.len())?;
                constrained = true;
                permitted |= is_within(name, base)?;
            }
        }
        if constrained && !permitted {
            return Err(NameConstraintError::NotPermitted(name));
        }
        let mut subtrees = self.excluded;
        while !subtrees.is_empty() {
            let base = read_subtree(&mut subtrees)?;
            work.spend(base.len())?;
            if !same_form(base, name) {
                continue;
            }
            work.spend(name.len())?;
            if is_within(name, base)? || wildcard_may_match(name, base) {
                return Err(NameConstraintError::Excluded(name));
            }
        }
        Ok(())
    }
}

/// Parses a GeneralSubtree. RFC 5280 requires minimum 0 and no maximum.
fn read_subtree<'a>(list: &mut Reader<'a>) -> Result<GeneralName<'a>, NameConstraintError<'a>> {
    let mut parts = list.nested(der::SEQUENCE)?;
    let base = parts.next()?;
    let name = match base.tag {
        // A constraint has an address and a mask where a name has an address.
        0x87 => GeneralName::Ip(base.content),
        _ => GeneralName::read(&mut Reader::new(base.outer_bytes()))?,
    };
    if let Some(minimum) = parts.optional(der::context(0))?
        && minimum.content != [0]
    {
        return Err(NameConstraintError::Unreadable);
    }
    parts.finish()?;
    Ok(name)
}

fn same_form(base: GeneralName<'_>, name: GeneralName<'_>) -> bool {
    use GeneralName::{Directory, Dns, Email, Ip, Other, Uri};
    match (base, name) {
        (Dns(_), Dns(_))
        | (Email(_), Email(_))
        | (Uri(_), Uri(_))
        | (Ip(_), Ip(_))
        | (Directory(_), Directory(_)) => true,
        (Other(a), Other(b)) => a == b,
        _ => false,
    }
}

/// Rejects a constraint that is malformed for its kind.
fn check_base(base: GeneralName<'_>) -> Result<(), NameConstraintError<'_>> {
    let good = match base {
        // "Any DNS name that can be constructed by adding zero or more labels": no leading period,
        // no wildcard
        GeneralName::Dns(text) => text.is_empty() || is_host(text),
        GeneralName::Email(text) => match mailbox(text) {
            Some((_, host)) => is_host(host),
            None => !text.contains(&b'@') && is_host_or_domain(text),
        },
        GeneralName::Uri(text) => is_host_or_domain(text),
        GeneralName::Ip(bytes) => match bytes.len() {
            8 | 32 => bytes.get(bytes.len() / 2..).is_some_and(is_mask),
            _ => false,
        },
        GeneralName::Directory(_) | GeneralName::Other(_) => true,
    };
    if good { Ok(()) } else { Err(NameConstraintError::BadConstraint(base)) }
}

/// Whether `name` lies in the subtree of `base`, which is of the same form.
fn is_within<'a>(name: GeneralName<'a>, base: GeneralName<'a>) -> Result<bool, NameConstraintError<'a>> {
    let bad = || NameConstraintError::BadName(name);
    Ok(match (name, base) {
        (GeneralName::Dns(name), GeneralName::Dns(base)) => {
            let plain = name.strip_prefix(b"*.").unwrap_or(name);
            if !is_host(plain) {
                return Err(bad());
            }
            base.is_empty() || equal(name, base) || is_below(name, base)
        }
        (GeneralName::Email(name), GeneralName::Email(base)) => {
            let (local, host) = mailbox(name).filter(|(_, host)| is_host(host)).ok_or_else(bad)?;
            match mailbox(base) {
                // the local part is case-sensitive (RFC 5321 2.4)
                Some((base_local, base_host)) => local == base_local && equal(host, base_host),
                None => host_matches(host, base),
            }
        }
        (GeneralName::Uri(name), GeneralName::Uri(base)) => {
            // RFC 5280: a URI constraint rejects every URI without a fully qualified host.
            let host = uri_host(name).filter(|host| is_host(host)).ok_or_else(bad)?;
            host_matches(host, base)
        }
        (GeneralName::Ip(name), GeneralName::Ip(base)) => {
            if name.len() != 4 && name.len() != 16 {
                return Err(bad());
            }
            let (network, mask) =
                base.split_at_checked(base.len() / 2).ok_or(NameConstraintError::Unreadable)?;
            name.len() == network.len()
                && name
                    .iter()
                    .zip(network)
                    .zip(mask)
                    .all(|((name, network), mask)| name & mask == network & mask)
        }
        (GeneralName::Directory(name), GeneralName::Directory(base)) => name::is_within(name, base),
        // Matching is not defined, so the name counts as neither permitted nor excluded.
        (GeneralName::Other(_), GeneralName::Other(_)) => return Err(bad()),
        _ => false,
    })
}

/// Whether a wildcard could match a name in the excluded subtree: `*.example.com` for
/// `bar.example.com`.
fn wildcard_may_match(name: GeneralName<'_>, base: GeneralName<'_>) -> bool {
    let (GeneralName::Dns(name), GeneralName::Dns(base)) = (name, base) else { return false };
    let Some(parent) = name.strip_prefix(b"*.") else { return false };
    let after_first_label = base.iter().position(|byte| *byte == b'.').and_then(|dot| base.get(dot + 1..));
    after_first_label.is_some_and(|rest| equal(rest, parent)) || equal(parent, base)
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// Whether `name` ends in a dot and `base`.
fn is_below(name: &[u8], base: &[u8]) -> bool {
    name.len().checked_sub(base.len() + 1).and_then(|dot| name.split_at_checked(dot)).is_some_and(
        |(labels, end)| {
            !labels.is_empty()
                && end.split_first().is_some_and(|(dot, rest)| *dot == b'.' && equal(rest, base))
        },
    )
}

/// The host rule of email and URI constraints: `.example.com` is every host below, `example.com`
/// that one host.
fn host_matches(host: &[u8], base: &[u8]) -> bool {
    match base.strip_prefix(b".") {
        Some(domain) => is_below(host, domain),
        None => base.is_empty() || equal(host, base),
    }
}

/// Local part and host of an address with exactly one `@`.
fn mailbox(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == b'@')?;
    let (local, host) = (text.get(..at)?, text.get(at + 1..)?);
    let visible = local.iter().all(|byte| (0x21..0x7f).contains(byte));
    (!local.is_empty() && visible && !host.contains(&b'@')).then_some((local, host))
}

/// The host of a URI with an authority (RFC 3986 3.2), without user information and port.
fn uri_host(text: &[u8]) -> Option<&[u8]> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let authority = text.get(colon..)?.strip_prefix(b"://")?;
    let authority = authority.split(|byte| matches!(byte, b'/' | b'?' | b'#' | b'\\')).next()?;
    let host = authority.rsplit(|byte| *byte == b'@').next()?;
    let host = host.split(|byte| *byte == b':').next()?;
    let is_address =
        host.last().is_some_and(u8::is_ascii_digit) && host.iter().all(|b| b.is_ascii_digit() || *b == b'.');
    (!is_address).then_some(host)
}

fn is_host_or_domain(text: &[u8]) -> bool {
    text.is_empty() || is_host(text.strip_prefix(b".").unwrap_or(text))
}

/// Labels of letters, digits, hyphens and underscores, none empty, none over 63 bytes, 253 in all.
/// A trailing dot is rejected: it would be a second spelling of the same name.
fn is_host(text: &[u8]) -> bool {
    let label = |label: &[u8]| {
        !label.is_empty()
            && label.len() <= 63
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.split(|byte| *byte == b'.').all(label)
}

/// Ones, then zeros.
fn is_mask(mask: &[u8]) -> bool {
    let mut rest = mask.iter().skip_while(|byte| **byte == 0xff);
    let partial = rest.next().is_none_or(|byte| byte.leading_ones() + byte.trailing_zeros() >= 8);
    partial && rest.all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
