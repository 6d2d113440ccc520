//! Variables of a request, under nginx's names (contract 5.5 and 7.2).
//!
//! A name is parsed to a [`Variable`] when a document is compiled, and an unknown one is a problem.
//! The data plane supplies the values ([`Variables`]). Invariant: every `ssl_client_*` variable
//! other than `ssl_client_verify` has a verified value or none.

use std::borrow::Cow;
use std::fmt;

/// A variable of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // `PLAIN` has their names, which are nginx's
pub enum Variable {
    Uri,
    RequestUri,
    Host,
    Scheme,
    Https,
    Method,
    ServerProtocol,
    RemoteAddr,
    RemotePort,
    RealipRemoteAddr,
    RealipRemotePort,
    ServerAddr,
    ServerPort,
    Query,
    IsArgs,
    ServerName,
    Protocol,
    Cipher,
    Curve,
    SessionReused,
    Alpn,
    EarlyData,
    ClientVerify,
    ClientSubject,
    ClientIssuer,
    ClientSubjectLegacy,
    ClientIssuerLegacy,
    ClientSerial,
    ClientFingerprint,
    ClientStart,
    ClientEnd,
    ClientRemain,
    ClientCert,
    ClientRawCert,
    ClientEscapedCert,
    /// Lists, an extension: the entries of the subject alternative name.
    ClientUris,
    ClientDns,
    ClientEmails,
    /// `arg_x`: the first decoded value of a query argument.
    Arg(Box<str>),
    /// `http_x_y`: the header `x-y`, in lower case with `-`.
    Header(Box<str>),
    /// `cookie_x`
    Cookie(Box<str>),
}

const NAMES: &[(&str, Variable)] = &[
    ("uri", Variable::Uri),
    ("document_uri", Variable::Uri),
    ("request_uri", Variable::RequestUri),
    ("host", Variable::Host),
    ("scheme", Variable::Scheme),
    ("https", Variable::Https),
    ("request_method", Variable::Method),
    ("method", Variable::Method),
    ("server_protocol", Variable::ServerProtocol),
    ("remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("realip_remote_addr", Variable::RealipRemoteAddr),
    ("realip_remote_port", Variable::RealipRemotePort),
    ("server_addr", Variable::ServerAddr),
    ("server_port", Variable::ServerPort),
    ("query_string", Variable::Query),
    ("args", Variable::Query),
    ("is_args", Variable::IsArgs),
    ("ssl_server_name", Variable::ServerName),
    ("ssl_protocol", Variable::Protocol),
    ("ssl_cipher", Variable::Cipher),
    ("ssl_curve", Variable::Curve),
    ("ssl_session_reused", Variable::SessionReused),
    ("ssl_alpn_protocol", Variable::Alpn),
    ("ssl_early_data", Variable::EarlyData),
    ("ssl_client_verify", Variable::ClientVerify),
    ("ssl_client_s_dn", Variable::ClientSubject),
    ("ssl_client_i_dn", Variable::ClientIssuer),
    ("ssl_client_s_dn_legacy", Variable::ClientSubjectLegacy),
    ("ssl_client_i_dn_legacy", Variable::ClientIssuerLegacy),
    ("ssl_client_serial", Variable::ClientSerial),
    ("ssl_client_fingerprint", Variable::ClientFingerprint),
    ("ssl_client_v_start", Variable::ClientStart),
    ("ssl_client_v_end", Variable::ClientEnd),
    ("ssl_client_v_remain", Variable::ClientRemain),
    ("ssl_client_cert", Variable::ClientCert),
    ("ssl_client_raw_cert", Variable::ClientRawCert),
    ("ssl_client_escaped_cert", Variable::ClientEscapedCert),
    ("ssl_client_san_uri", Variable::ClientUris),
    ("ssl_client_san_dns", Variable::ClientDns),
    ("ssl_client_san_email", Variable::ClientEmails),
];

impl Variable {
    /// Parses a name without its `$`.
    pub fn parse(name: &str) -> Option<Variable> {
        if let Some((_, variable)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(variable.clone());
        }
        let named = |prefix: &str| name.strip_prefix(prefix).filter(|rest: &&str| !rest.is_empty());
        if let Some(header) = named("http_") {
            let legal = header.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            let header = header.to_ascii_lowercase().replace('_', "-");
            return legal.then(|| Variable::Header(header.into()));
        }
        if let Some(argument) = named("arg_") {
            return Some(Variable::Arg(argument.into()));
        }
        named("cookie_").map(|cookie| Variable::Cookie(cookie.into()))
    }

    /// The names of the variables that have one name each, and these variables.
    pub fn names() -> impl Iterator<Item = (&'static str, &'static Variable)> {
        NAMES.iter().map(|(name, variable)| (*name, variable))
    }

    /// Whether the value is one of the connection, the same for all its requests but for the
    /// client's address.
    pub fn is_of_connection(&self) -> bool {
        match self {
            Variable::RemoteAddr
            | Variable::RemotePort
            | Variable::RealipRemoteAddr
            | Variable::RealipRemotePort
            | Variable::ServerAddr
            | Variable::ServerPort
            | Variable::ServerName
            | Variable::Protocol
            | Variable::Cipher
            | Variable::Curve
            | Variable::SessionReused
            | Variable::Alpn
            | Variable::EarlyData => true,
            other => other.is_identity(),
        }
    }

    /// The most similar known name, for a hint.
    pub(crate) fn closest(name: &str) -> Option<&'static str> {
        let near = NAMES.iter().map(|(known, _)| (strsim::damerau_levenshtein(known, name), *known));
        near.filter(|(distance, _)| *distance <= 3).min().map(|(_, known)| known)
    }

    /// Whether the value is taken from the client's certificate.
    pub(crate) fn is_identity(&self) -> bool {
        NAMES.iter().any(|(name, known)| known == self && name.starts_with("ssl_client_"))
    }

    /// Whether the value is a list, which only the operator `has` accepts.
    pub fn is_list(&self) -> bool {
        matches!(self, Variable::ClientUris | Variable::ClientDns | Variable::ClientEmails)
    }

    /// Whether values contain line breaks, which headers must not.
    pub(crate) fn is_multiline(&self) -> bool {
        matches!(self, Variable::ClientCert | Variable::ClientRawCert)
    }

    /// Whether the value is an encoded part of the client's URI.
    pub fn is_encoded(&self) -> bool {
        matches!(self, Variable::Query | Variable::IsArgs)
    }

    /// Whether the value starts with the path.
    pub fn is_path(&self) -> bool {
        matches!(self, Variable::Uri | Variable::RequestUri)
    }
}

/// The values of a request's variables.
pub trait Variables: fmt::Debug {
    /// The value of a variable other than a list; `None` if it is absent.
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>>;

    /// The elements of a list.
    fn values(&self, variable: &Variable) -> &[String];
}

/// Variables that are all absent.
#[derive(Debug, Clone, Copy)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn value(&self, _: &Variable) -> Option<Cow<'_, str>> {
        None
    }

    fn values(&self, _: &Variable) -> &[String] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_unknown_ones_are_none() {
        assert_eq!(Variable::parse("args"), Variable::parse("query_string"));
        assert_eq!(Variable::parse("http_X-Request_Id"), Some(Variable::Header("x-request-id".into())));
        assert_eq!(Variable::parse("cookie_a.b"), Some(Variable::Cookie("a.b".into())));
        for unknown in
            ["", "Uri", "arg_", "http_", "http_a b", "ssl_client_dn", "uri_param_id", "ssl_session_id"]
        {
            assert_eq!(Variable::parse(unknown), None, "{unknown}");
        }
        assert_eq!(Variable::closest("ssl_client_sdn"), Some("ssl_client_s_dn"));
        assert_eq!(Variable::closest("completely_different"), None);
    }

    #[test]
    fn identity_variables_are_those_of_the_client_certificate() {
        for (name, variable) in NAMES {
            assert_eq!(variable.is_identity(), name.starts_with("ssl_client_"), "{name}");
        }
        assert!(!Variable::Header("ssl-client-verify".into()).is_identity());
    }
}
