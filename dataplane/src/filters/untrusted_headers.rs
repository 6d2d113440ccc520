//! Request headers that an upstream trusts because it is behind a gateway: the client's identity,
//! its address, the scheme. One table with the product that sets or reads each name.
//!
//! A client can spoof each of them. Invariant: a name in the table, in any spelling that an
//! upstream may take for it, passes only as its [`Claim`] allows; under such a name an upstream
//! gets our header, a trusted proxy's, or none.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use model::RealIp;

use self::table::Claim::{Address, Certificate, Environment, Framing, Ours, Scheme, User};
use self::table::{Claim, UNTRUSTED_HEADERS};

mod table;

/// The configured trust in the peer of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerTrust {
    /// It is in `apisix.trusted_addresses`.
    pub forwarded: bool,
    /// It is in `nginx_config.http.real_ip_from`, and `real_ip_header` names a header.
    pub address: bool,
}

impl PeerTrust {
    /// The trust in the peer at this address. `client`: who wrote the request. It is the peer, or
    /// the client that a PROXY protocol header names: a proxy of TCP connections passes on what the
    /// client has written, and does not vouch for it.
    pub fn of(
        client: IpAddr,
        peer: IpAddr,
        trusted_addresses: Option<&[IpNet]>,
        real_ip: Option<&RealIp>,
    ) -> Self {
        let client = client.to_canonical();
        Self {
            forwarded: trusted_addresses.is_some_and(|nets| nets.iter().any(|net| net.contains(&client))),
            address: real_ip.is_some_and(|real_ip| real_ip.reads_header_from(peer.to_canonical())),
        }
    }
}

/// A row of the table, parsed at compile time.
#[derive(Clone, Copy)]
struct HeaderPattern {
    /// Without `X-`, `[x-]` and `*`.
    stem: &'static [u8],
    with_x: bool,
    without_x: bool,
    is_prefix: bool,
    claim: Claim,
    /// The spelling that is handled where the header is set.
    canonical: &'static str,
}

const fn parse_pattern(name: &'static str, claim: Claim) -> HeaderPattern {
    let bytes = name.as_bytes();
    let (skipped, with_x, without_x) = match bytes {
        [b'[', b'x', b'-', b']', ..] => (4, true, true),
        [b'x', b'-', ..] => (2, true, false),
        _ => (0, false, true),
    };
    let (_, stem) = bytes.split_at(skipped);
    let (stem, is_prefix) = match stem {
        [stem @ .., b'*'] => (stem, true),
        stem => (stem, false),
    };
    HeaderPattern { stem, with_x, without_x, is_prefix, claim, canonical: name }
}

#[allow(clippy::indexing_slicing)] // evaluated at compile time
const PATTERNS: [HeaderPattern; UNTRUSTED_HEADERS.len()] = {
    let mut patterns = [parse_pattern("", Ours); UNTRUSTED_HEADERS.len()];
    let mut row = 0;
    while row < UNTRUSTED_HEADERS.len() {
        patterns[row] = parse_pattern(UNTRUSTED_HEADERS[row].0, UNTRUSTED_HEADERS[row].1);
        row += 1;
    }
    patterns
};

/// The patterns whose stem begins with one letter, and the second letters of their stems, which
/// rule out most names.
#[derive(Clone, Copy)]
struct Bucket {
    from: usize,
    to: usize,
    second_letters: u32,
}

#[allow(clippy::indexing_slicing)] // evaluated at compile time
const BUCKETS: [Bucket; 128] = {
    let mut buckets = [Bucket { from: 0, to: 0, second_letters: 0 }; 128];
    let mut row = 0;
    while row < PATTERNS.len() {
        let bucket = &mut buckets[fold(PATTERNS[row].stem[0]) as usize];
        if bucket.to == 0 {
            bucket.from = row;
        }
        assert!(bucket.to == 0 || bucket.to == row, "rows with one first letter are adjacent");
        bucket.to = row + 1;
        bucket.second_letters |= second_letter_bit(PATTERNS[row].stem);
        row += 1;
    }
    buckets
};

const fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// The second letter as one of 32 bits.
const fn second_letter_bit(stem: &[u8]) -> u32 {
    match stem {
        [_, second, ..] => 1 << (fold(*second) & 31),
        _ => 0,
    }
}

/// Whether an upstream may take one name for the other. CGI and its successors (WSGI, PHP, Rack)
/// turn `-` into `_`, and some of them every byte that is no letter or digit: all these bytes are
/// one here. Header names are in lower case already.
pub(crate) fn is_same_name(name: &str, other: &str) -> bool {
    is_same_folded(name.as_bytes(), other.as_bytes())
}

fn is_same_folded(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len() && name.iter().zip(other).all(|(a, b)| fold(*a) == fold(*b))
}

/// Strips the `HTTP_` that CGI writes before every header's name: a program that copies names out
/// of its environment reads `HTTP_X_REAL_IP` as `X-Real-IP`.
fn strip_http_prefix(mut name: &[u8]) -> &[u8] {
    while let [b'h', b't', b't', b'p', separator, rest @ ..] = name
        && !separator.is_ascii_alphanumeric()
    {
        name = rest;
    }
    name
}

/// The claim of a header, in any spelling; `None`: an ordinary header, or one of ours in its own
/// spelling.
fn claim_of(name: &HeaderName) -> Option<Claim> {
    let name = name.as_str();
    match strip_http_prefix(name.as_bytes()) {
        [b'x', separator, stem @ ..] if !separator.is_ascii_alphanumeric() => look_up(name, stem, true),
        stem => look_up(name, stem, false),
    }
}

fn look_up(name: &str, stem: &[u8], with_x: bool) -> Option<Claim> {
    let bucket = BUCKETS.get(usize::from(fold(*stem.first()?)))?;
    // Rules out nearly every name.
    if bucket.second_letters & second_letter_bit(stem) == 0 {
        return None;
    }
    let patterns = PATTERNS.get(bucket.from..bucket.to)?;
    let pattern = patterns.iter().find(|pattern| {
        let head = if pattern.is_prefix { stem.get(..pattern.stem.len()) } else { Some(stem) };
        (if with_x { pattern.with_x } else { pattern.without_x })
            && head.is_some_and(|head| is_same_folded(head, pattern.stem))
    })?;
    match pattern.claim {
        Ours | Framing if name == pattern.canonical => None,
        claim => Some(claim),
    }
}

/// Whether a name makes a claim, in any spelling: ours, too, where it is not set by us.
pub(super) fn is_claimed(name: &HeaderName, real_ip_header: Option<&HeaderName>) -> bool {
    claim_of(name).is_some()
        || PATTERNS.iter().any(|pattern| pattern.canonical == name.as_str())
        || real_ip_header.is_some_and(|header| configured_claim(name, header).is_some())
}

/// The claim of the header that `real_ip_header` names and the table lacks: an address in its own
/// spelling, and a name of ours in any other.
fn configured_claim(name: &HeaderName, real_ip_header: &HeaderName) -> Option<Claim> {
    if !is_same_folded(strip_http_prefix(name.as_str().as_bytes()), real_ip_header.as_str().as_bytes()) {
        return None;
    }
    if name != real_ip_header {
        return Some(Ours);
    }
    // `X-Forwarded-For` and `X-Real-IP` are set after they are read.
    let is_ours =
        UNTRUSTED_HEADERS.iter().any(|(row, claim, _)| *claim == Ours && *row == real_ip_header.as_str());
    (!is_ours).then_some(Address)
}

/// Removes the headers that do not pass from this peer. `real_ip_header`: the configured one, if
/// client addresses are read from it.
pub(super) fn remove_untrusted(
    headers: &mut HeaderMap,
    trust: PeerTrust,
    real_ip_header: Option<&HeaderName>,
) {
    let claim = |name: &HeaderName| {
        claim_of(name).or_else(|| real_ip_header.and_then(|header| configured_claim(name, header)))
    };
    // Most requests have none.
    if !headers.keys().any(|name| claim(name).is_some()) {
        return;
    }
    let passes = |claim| match claim {
        Certificate | User | Environment | Ours | Framing => false,
        Address => trust.address || trust.forwarded,
        Scheme => trust.forwarded,
    };
    let is_untrusted = |name: &&HeaderName| claim(name).is_some_and(|claim| !passes(claim));
    let untrusted: Vec<HeaderName> = headers.keys().filter(is_untrusted).cloned().collect();
    for name in untrusted {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
