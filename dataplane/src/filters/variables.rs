//! The values of the variables in `vars` and `proxy-rewrite` for one request (contract 5.5).
//!
//! A value is computed when it is read, from headers without the untrusted ones. Invariant: the
//! `ssl_client_*` variables describe the verified client; without one they are absent (nginx has
//! those of an unverified certificate, too).

use std::borrow::Cow;
use std::net::SocketAddr;

use data_encoding::HEXLOWER;
use http::request::Parts;
use http::{HeaderMap, Version};
use model::admission::ClientVerification;
use model::{HostName, RequestTarget, Variable, Variables};
use percent_encoding::percent_decode;
use pki::{Certificate, UnixTime, VerifyReason};

use super::headers;
use super::identity::rendered::{escaped_pem, openssl_date};
use crate::io::connection_info::{ConnectionInfo, ListenerProtocol};
use crate::tls::params::NegotiatedParams;

/// One request with its connection.
#[derive(Debug, Clone, Copy)]
pub struct RequestContext<'a> {
    /// Method, uri, version and headers.
    pub parts: &'a Parts,
    /// The normalized target.
    pub target: &'a RequestTarget,
    /// Of a [`ClientAddress`](super::real_ip::ClientAddress): `peer` is the client's address.
    pub info: &'a ConnectionInfo,
    /// The server name in the ClientHello, and what the handshake negotiated.
    pub tls: Option<(&'a HostName, &'a NegotiatedParams)>,
    /// The client under the current policy.
    pub client: &'a ClientVerification,
}

/// A connection with its client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionContext<'a> {
    /// `peer` is the client's address.
    pub(crate) info: &'a ConnectionInfo,
    /// The server name in the ClientHello.
    pub(crate) sni: Option<&'a HostName>,
    /// What the handshake negotiated.
    pub(crate) params: Option<&'a NegotiatedParams>,
    /// The client under the current policy.
    pub(crate) client: &'a ClientVerification,
}

impl<'a> ConnectionContext<'a> {
    /// The value of a variable of connections; `None` for one of requests, too.
    pub(crate) fn value(&self, variable: &Variable) -> Option<Cow<'a, str>> {
        let (peer, local) = (self.info.peer, self.info.local);
        Some(match variable {
            Variable::RemoteAddr => peer.ip().to_canonical().to_string().into(),
            Variable::RemotePort => port(peer),
            Variable::RealipRemoteAddr => self.info.direct_peer.ip().to_canonical().to_string().into(),
            Variable::RealipRemotePort => port(self.info.direct_peer),
            Variable::ServerAddr => local.ip().to_canonical().to_string().into(),
            Variable::ServerPort => local.port().to_string().into(),
            Variable::ServerName => self.sni?.as_str().into(),
            Variable::Protocol
            | Variable::Cipher
            | Variable::Curve
            | Variable::SessionReused
            | Variable::Alpn
            | Variable::EarlyData => tls_value(self.params?, variable)?.into(),
            Variable::ClientVerify => {
                self.params?;
                client_verify(self.client)
            }
            _ => certificate_value(self.client.identity()?.certificate(), variable)?,
        })
    }
}

fn tls_value(params: &NegotiatedParams, variable: &Variable) -> Option<&'static str> {
    Some(match variable {
        Variable::Protocol => params.protocol,
        Variable::Cipher => params.cipher,
        Variable::Curve => params.curve?,
        Variable::SessionReused if params.resumed => "r",
        Variable::SessionReused => ".",
        Variable::Alpn => params.alpn?,
        // Early data is never accepted.
        _ => return None,
    })
}

fn certificate_value<'a>(certificate: &'a Certificate, variable: &Variable) -> Option<Cow<'a, str>> {
    Some(match variable {
        Variable::ClientSubject => certificate.subject().into(),
        Variable::ClientIssuer => certificate.issuer().into(),
        Variable::ClientSubjectLegacy => certificate.subject_legacy().into(),
        Variable::ClientIssuerLegacy => certificate.issuer_legacy().into(),
        Variable::ClientSerial => certificate.serial_hex().into(),
        Variable::ClientFingerprint => HEXLOWER.encode(&certificate.fingerprint_sha1()).into(),
        Variable::ClientStart => openssl_date(certificate.not_before()).into(),
        Variable::ClientEnd => openssl_date(certificate.not_after()).into(),
        Variable::ClientRemain => {
            let left = certificate.not_after().as_secs().saturating_sub(UnixTime::now().as_secs());
            (left / 86_400).to_string().into()
        }
        Variable::ClientCert => certificate.to_pem().trim_end().replace('\n', "\n\t").into(),
        Variable::ClientRawCert => certificate.to_pem().into(),
        Variable::ClientEscapedCert => escaped_pem(std::iter::once(certificate.to_pem())).into(),
        _ => return None,
    })
}

/// The value of a variable that the head alone has, unchecked or not.
pub(crate) fn head_value<'a>(parts: &'a Parts, variable: &Variable) -> Option<Cow<'a, str>> {
    let query = parts.uri.query();
    Some(match variable {
        Variable::Method => parts.method.as_str().into(),
        Variable::ServerProtocol => protocol(parts.version).into(),
        Variable::Query => query?.into(),
        Variable::IsArgs => (if query.is_some() { "?" } else { "" }).into(),
        Variable::Arg(name) => argument(query?, name)?,
        Variable::Cookie(name) => cookie(&parts.headers, name)?,
        _ => return None,
    })
}

/// nginx's `$server_protocol`.
pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

impl<'a> RequestContext<'a> {
    fn connection(&self) -> ConnectionContext<'a> {
        let (sni, params) = self.tls.unzip();
        ConnectionContext { info: self.info, sni, params, client: self.client }
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        // HTTP/2 has no `Host` header.
        if name == "host" {
            return self.target.authority.as_deref().map(Cow::Borrowed);
        }
        let fields = &self.parts.headers;
        // Without the client's own address, which is appended for the upstream.
        if headers::is_same_name(name, headers::X_FORWARDED_FOR.as_str()) {
            return headers::client_forwarded_for(fields).map(header_text);
        }
        let named = fields.iter().filter(|(field, _)| headers::is_same_name(field.as_str(), name));
        let mut values = named.map(|(_, value)| value.as_bytes());
        let first = values.next().map(header_text)?;
        Some(values.fold(first, |joined, value| format!("{joined}, {}", header_text(value)).into()))
    }
}

impl Variables for RequestContext<'_> {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        let is_https = self.info.listener.protocol == ListenerProtocol::Https;
        match variable {
            Variable::Uri => Some(self.target.path.as_str().into()),
            // The normalized path, as in APISIX, so that no predicate reads another one.
            Variable::RequestUri => Some(match self.parts.uri.query() {
                Some(query) => format!("{}?{query}", self.target.path).into(),
                None => self.target.path.as_str().into(),
            }),
            Variable::Host => self.target.host.as_ref().map(|host| host.as_str().into()),
            Variable::Scheme => Some((if is_https { "https" } else { "http" }).into()),
            Variable::Https => Some((if is_https { "on" } else { "" }).into()),
            Variable::Header(name) => self.header(name),
            Variable::Method
            | Variable::ServerProtocol
            | Variable::Query
            | Variable::IsArgs
            | Variable::Arg(_)
            | Variable::Cookie(_) => head_value(self.parts, variable),
            _ => self.connection().value(variable),
        }
    }

    fn values(&self, variable: &Variable) -> &[String] {
        san_list(self.client, variable)
    }
}

/// The names of a kind in the verified client's certificate.
pub(crate) fn san_list<'a>(client: &'a ClientVerification, variable: &Variable) -> &'a [String] {
    match (client.identity(), variable) {
        (Some(identity), Variable::ClientUris) => identity.san_uris(),
        (Some(identity), Variable::ClientDns) => identity.san_dns(),
        (Some(identity), Variable::ClientEmails) => identity.san_emails(),
        _ => &[],
    }
}

/// A port; empty where a proxy names the client without one, as in nginx.
fn port(address: SocketAddr) -> Cow<'static, str> {
    if address.port() == 0 { "".into() } else { address.port().to_string().into() }
}

/// `NONE`, `SUCCESS` or `FAILED:` with OpenSSL's text for the reason, if it has one.
fn client_verify(client: &ClientVerification) -> Cow<'static, str> {
    let reason = match client {
        ClientVerification::NotRequested | ClientVerification::NoCertificate => return "NONE".into(),
        ClientVerification::Verified(_) => return "SUCCESS".into(),
        ClientVerification::Rejected(reason) => *reason,
    };
    let text = match reason {
        VerifyReason::UnknownIssuer => "unable to get local issuer certificate",
        VerifyReason::BadSignature => "certificate signature failure",
        VerifyReason::WeakKey => "EE certificate key too weak",
        VerifyReason::Expired => "certificate has expired",
        VerifyReason::NotYetValid => "certificate is not yet valid",
        VerifyReason::DepthExceeded => "certificate chain too long",
        VerifyReason::IssuerNotCa => "invalid CA certificate",
        VerifyReason::PathLengthExceeded => "path length constraint exceeded",
        VerifyReason::InvalidPurpose => "unsuitable certificate purpose",
        VerifyReason::NameConstraintViolation => "permitted subtree violation",
        VerifyReason::UnsupportedCriticalExtension => "unhandled critical extension",
        VerifyReason::Revoked => "certificate revoked",
        VerifyReason::UnknownRevocationStatus => "unable to get certificate CRL",
        other => other.as_str(),
    };
    format!("FAILED:{text}").into()
}

/// The bytes of a header as text. Bytes that are no UTF-8 are read as Latin-1, so that different
/// bytes stay different.
fn header_text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect::<String>().into(),
    }
}

/// The first value of an argument, decoded.
fn argument<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let decoded = |text: &'a str| -> Cow<'a, str> {
        if !text.contains(['%', '+']) {
            return text.into();
        }
        let spaced = text.replace('+', " ");
        percent_decode(spaced.as_bytes()).decode_utf8_lossy().into_owned().into()
    };
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, str>> {
    let lines = headers.get_all(http::header::COOKIE).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(header_text)
}

#[cfg(test)]
mod tests;
