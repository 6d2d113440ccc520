//! `tls.verify_identity` of an upstream: the servers that are accepted by what their certificate
//! names, and not by the name in the handshake.
//!
//! The entries are those of an allow-list that are names of servers. Invariant: only a certificate
//! whose chain `pki` verified is compared ([`pki::Identity`]).

use std::fmt;

use serde_json::Value;

use crate::client_identity::AllowList;
use crate::problem::Problem;
use crate::schema::validate_server_identity;

/// The compiled entries.
#[derive(Clone)]
pub struct ServerIdentity {
    source: Value,
    list: AllowList,
}

impl ServerIdentity {
    /// Compiles the array of a document.
    ///
    /// # Errors
    ///
    /// The first problem, with fields relative to the array.
    pub fn compile(source: &Value) -> Result<ServerIdentity, Problem> {
        validate_server_identity(source)?;
        let entries = source.as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, entry) in (1..).zip(entries) {
            if entry.as_object().is_none_or(|members| members.len() != 1) {
                let message = "an entry names a server in exactly one way";
                return Err(Problem::new(format!("[{index}]"), message)
                    .with_hint("expected one of spiffe, uri, dns, spki_sha256"));
            }
        }
        Ok(ServerIdentity { source: source.clone(), list: AllowList::compile(entries)? })
    }

    /// The entries as written.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Whether an entry matches this server.
    pub fn accepts(&self, server: &pki::Identity) -> bool {
        self.list.allows(server)
    }

    /// Whether this certainly accepts every server that `other` accepts.
    pub(crate) fn covers(&self, other: &ServerIdentity) -> bool {
        self.list.covers(&other.list)
    }
}

impl PartialEq for ServerIdentity {
    fn eq(&self, other: &ServerIdentity) -> bool {
        self.source == other.source
    }
}

impl Eq for ServerIdentity {}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerIdentity({})", self.source)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pki::ca::LeafSpec;
    use rustls_pki_types::UnixTime;
    use serde_json::json;

    use super::*;
    use crate::samples::AUTHORITY;

    fn server(spec: LeafSpec) -> pki::Identity {
        let leaf = AUTHORITY.issue(&spec).unwrap();
        let anchors = pki::TrustAnchors::new(vec![AUTHORITY.certificate().clone()]).unwrap();
        let anchors = Arc::new(anchors);
        pki::verify_server_chain(&anchors, 0, leaf.chain[0].der(), &[], UnixTime::now()).unwrap()
    }

    #[test]
    fn servers_are_accepted_by_their_names_and_key() {
        let own = server(LeafSpec::server("a.test").uri("spiffe://a.test/ns/b"));
        let key = data_encoding::HEXLOWER.encode(own.certificate().spki_sha256());
        let accepts = |entry: Value| ServerIdentity::compile(&json!([entry])).unwrap().accepts(&own);
        for entry in [
            json!({"dns": "A.test"}),
            json!({"dns": "*.test"}),
            json!({"spiffe": "spiffe://a.test/ns/b"}),
            json!({"spiffe": "spiffe://a.test/*"}),
            json!({"uri": "spiffe://a.test/ns/b"}),
            json!({"spki_sha256": key}),
        ] {
            assert!(accepts(entry.clone()), "{entry}");
        }
        for entry in [
            json!({"dns": "b.test"}),
            json!({"dns": "*.a.test"}),
            json!({"spiffe": "spiffe://a.test/ns"}),
            json!({"uri": "spiffe://a.test/ns/B"}),
            json!({"spki_sha256": "00".repeat(32)}),
        ] {
            assert!(!accepts(entry.clone()), "{entry}");
        }
    }

    #[test]
    fn an_entry_names_a_server_in_one_way() {
        let field = |entries: Value| ServerIdentity::compile(&entries).unwrap_err().field;
        assert_eq!(field(json!([{"dns": "a.test"}, {}])), "[2]");
        assert_eq!(field(json!([{"dns": "a.test", "uri": "b:c"}])), "[1]");
        assert_eq!(field(json!([{"dns": "a test"}])), "[1].dns");
        assert_eq!(field(json!([{"email": "a@b.test"}])), "[1].email");
        assert!(ServerIdentity::compile(&json!([])).is_err());
        assert!(ServerIdentity::compile(&json!({})).is_err());
    }
}
