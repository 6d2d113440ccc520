//! The verdict on each client, for each policy of revocation, with the reason.
//!
//! Written by hand from the requirements and RFC 5280, not from the code.

use rustls::AlertDescription;

use super::clients::Client;

/// The revocation lists and policy of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revocation {
    None,
    /// `require`, with current lists of every CA in the bundle.
    RequireFresh,
    /// `require`, with the same lists past their nextUpdate.
    RequireStale,
    /// `prefer`, with the same expired lists.
    PreferStale,
    /// `prefer`, with current lists that revoke the client, or the intermediate above it.
    Revoked,
}

pub(super) const REVOCATIONS: [Revocation; 5] = [
    Revocation::None,
    Revocation::RequireFresh,
    Revocation::RequireStale,
    Revocation::PreferStale,
    Revocation::Revoked,
];

/// Why a client is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    NoCertificate,
    UnknownIssuer,
    BadSignature,
    Expired,
    NotYetValid,
    Depth,
    OldVersion,
    PathLength,
    WrongUsage,
    NameConstraint,
    NotAuthority,
    Status,
    Revoked,
}

impl Rule {
    /// The alert (RFC 8446 6.2). rustls uses the alerts of TLS 1.3 in TLS 1.2, too, where RFC 5246
    /// has nothing as exact as `certificate_required`.
    pub(super) fn alert(self) -> AlertDescription {
        match self {
            Self::NoCertificate => AlertDescription::CertificateRequired,
            Self::Expired | Self::NotYetValid => AlertDescription::CertificateExpired,
            Self::BadSignature => AlertDescription::DecryptError,
            Self::WrongUsage => AlertDescription::UnsupportedCertificate,
            Self::OldVersion => AlertDescription::BadCertificate,
            Self::Revoked => AlertDescription::CertificateRevoked,
            Self::UnknownIssuer
            | Self::Depth
            | Self::PathLength
            | Self::NameConstraint
            | Self::NotAuthority
            | Self::Status => AlertDescription::UnknownCA,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    In,
    Out(Rule),
}

/// One client's verdicts, in the order of [`REVOCATIONS`].
pub(super) struct Row {
    pub client: Client,
    pub verdicts: [Verdict; 5],
    pub because: &'static str,
}

use Verdict::{In, Out};

/// Valid but for revocation: a CA of the bundle signed it, and its lists cover it.
const GOOD: [Verdict; 5] = [In, In, Out(Rule::Status), In, Out(Rule::Revoked)];
/// Valid, but no list of its issuer exists: the bundle does not have the intermediate.
const UNLISTED: [Verdict; 5] = [In, Out(Rule::Status), Out(Rule::Status), In, Out(Rule::Revoked)];

const fn always(rule: Rule) -> [Verdict; 5] {
    [Out(rule); 5]
}

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row { client: Client::NoCertificate, verdicts: always(Rule::NoCertificate), because: "nothing shown proves nothing" },
    Row { client: Client::Direct, verdicts: GOOD, because: "a CA of the bundle signed it" },
    Row { client: Client::ForAnyUse, verdicts: GOOD, because: "without extKeyUsage a certificate is for every use" },
    Row { client: Client::ForBothUses, verdicts: GOOD, because: "clientAuth is among its uses" },
    Row { client: Client::InP384, verdicts: GOOD, because: "P-384 is accepted" },
    Row { client: Client::InP521, verdicts: GOOD, because: "P-521 is accepted" },
    Row { client: Client::InEd25519, verdicts: GOOD, because: "Ed25519 is accepted" },
    Row { client: Client::InRsa2048, verdicts: GOOD, because: "RSA of 2048 bits is accepted" },
    Row { client: Client::OfSecondCa, verdicts: GOOD, because: "every CA of the bundle is an anchor" },
    Row { client: Client::Version1, verdicts: GOOD, because: "a v1 leaf may be, when an anchor signed it itself" },
    Row { client: Client::ViaMiddle, verdicts: UNLISTED, because: "one intermediate is within depth 1" },
    Row { client: Client::ViaMiddleShuffled, verdicts: UNLISTED, because: "intermediates come in any order, untrusted ones among them" },
    Row { client: Client::OfListedMiddle, verdicts: GOOD, because: "a listed intermediate is an anchor, its own root need not be known" },
    Row { client: Client::Pinned, verdicts: [In; 5], because: "the bundle lists this very certificate, and no list of its issuer can be given" },
    Row { client: Client::PinnedOfRoot, verdicts: [In, In, In, In, Out(Rule::Revoked)], because: "pinned, but its issuer is an anchor too, whose list wins" },
    Row { client: Client::SiblingOfPinned, verdicts: always(Rule::UnknownIssuer), because: "pinning one certificate trusts no other of its issuer" },
    Row { client: Client::WithoutMiddle, verdicts: always(Rule::UnknownIssuer), because: "the intermediate is neither sent nor listed" },
    Row { client: Client::Untrusted, verdicts: always(Rule::UnknownIssuer), because: "the bundle does not list that CA" },
    Row { client: Client::UntrustedWithItsRoot, verdicts: always(Rule::UnknownIssuer), because: "what a client sends is never an anchor" },
    Row { client: Client::OfNamesake, verdicts: always(Rule::BadSignature), because: "the CA only has the anchor's name" },
    Row { client: Client::SelfSigned, verdicts: always(Rule::UnknownIssuer), because: "only its own key signed it" },
    Row { client: Client::TooDeep, verdicts: always(Rule::Depth), because: "two intermediates are over depth 1" },
    Row { client: Client::Version1ViaMiddle, verdicts: always(Rule::OldVersion), because: "no extension limits what a v1 leaf below an intermediate is for" },
    Row { client: Client::Expired, verdicts: always(Rule::Expired), because: "its time is over" },
    Row { client: Client::NotYet, verdicts: always(Rule::NotYetValid), because: "its time has not come" },
    Row { client: Client::OfExpiredMiddle, verdicts: always(Rule::Expired), because: "its issuer's time is over" },
    Row { client: Client::ForServers, verdicts: always(Rule::WrongUsage), because: "serverAuth alone is not clientAuth" },
    Row { client: Client::AgainstConstraints, verdicts: always(Rule::NameConstraint), because: "its issuer may only name hosts below allowed.test" },
    Row { client: Client::OverPathLength, verdicts: always(Rule::PathLength), because: "its anchor allows no intermediate below it" },
    Row { client: Client::OfLeaf, verdicts: always(Rule::NotAuthority), because: "a client's certificate issues nothing, though the signature is good" },
];
