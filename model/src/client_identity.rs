//! `client_identity` of a route or service: the allow-list of clients and the headers that forward
//! a verified identity.
//!
//! The block is an extension of APISIX's schema. Only identities that `pki` verified are compared
//! or forwarded: without one, an allow-list denies and no header is sent (invariant 6). The control
//! plane compiles the block to check a document, and each data plane compiles it again.

mod allow;

use std::fmt;

pub(crate) use allow::AllowList;
use serde_json::Value;

use crate::problem::Problem;
use crate::schema::validate_client_identity;

/// A compiled `client_identity` block.
#[derive(Clone)]
pub struct ClientIdentity {
    source: Value,
    forward: ForwardedHeaders,
    allow: Option<AllowList>,
}

/// The headers that carry the identity to the upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForwardedHeaders {
    /// `Client-Cert` (RFC 9440).
    pub client_cert: bool,
    /// `Client-Cert-Chain` (RFC 9440): the intermediates.
    pub client_cert_chain: bool,
    /// `X-Forwarded-Client-Cert`, Envoy's header.
    pub xfcc: bool,
    /// The `Cert` element of that header.
    pub xfcc_cert: bool,
    /// The `Chain` element of that header.
    pub xfcc_chain: bool,
    /// `X-SSL-Client-*`, common with nginx.
    pub x_ssl_client: bool,
}

impl ClientIdentity {
    /// Compiles the block of a document.
    ///
    /// # Errors
    ///
    /// The first problem.
    pub fn compile(source: &Value) -> Result<ClientIdentity, Problem> {
        validate_client_identity(source).map_err(invalid)?;
        let forms = source.get("forward").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let has = |form: &str| forms.iter().any(|listed| listed == form);
        for (form, base) in
            [("client_cert_chain", "client_cert"), ("xfcc_cert", "xfcc"), ("xfcc_chain", "xfcc")]
        {
            if has(form) && !has(base) {
                let problem =
                    Problem::new("forward", format!("\"{form}\" is sent only together with \"{base}\""));
                return Err(invalid(problem.with_hint(format!("add \"{base}\""))));
            }
        }
        let forward = ForwardedHeaders {
            client_cert: has("client_cert"),
            client_cert_chain: has("client_cert_chain"),
            xfcc: has("xfcc"),
            xfcc_cert: has("xfcc_cert"),
            xfcc_chain: has("xfcc_chain"),
            x_ssl_client: has("x_ssl_client"),
        };
        let allow = match source.get("allow").and_then(Value::as_array) {
            Some(entries) => {
                Some(AllowList::compile(entries).map_err(|problem| invalid(problem.within("allow")))?)
            }
            None => None,
        };
        Ok(ClientIdentity { source: source.clone(), forward, allow })
    }

    /// A block whose allow-list has one entry: the clients with this attribute (`uri`, `dns`, ...).
    ///
    /// # Errors
    ///
    /// Why no client can have it; the problem has no field.
    pub fn with_attribute(attribute: &str, value: &str) -> Result<ClientIdentity, Problem> {
        let entry = Value::Object([(attribute.to_owned(), value.into())].into_iter().collect());
        let allow = AllowList::compile(std::slice::from_ref(&entry))
            .map_err(|problem| Problem { field: String::new(), ..problem })?;
        let source = serde_json::json!({"allow": [entry]});
        Ok(ClientIdentity { source, forward: ForwardedHeaders::default(), allow: Some(allow) })
    }

    /// The block as in the document.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// The headers that carry the identity to the upstream.
    pub fn forward(&self) -> ForwardedHeaders {
        self.forward
    }

    /// Whether the block has an allow-list.
    pub(crate) fn has_allow_list(&self) -> bool {
        self.allow.is_some()
    }

    /// The 1-based entries of the allow-list that may allow clients which the list of `other`
    /// denies.
    pub(crate) fn entries_not_covered_by(&self, other: &ClientIdentity) -> Vec<usize> {
        let Some(known) = &other.allow else { return Vec::new() };
        let entries = self.source.get("allow").and_then(Value::as_array).into_iter().flatten();
        let beyond = |entry: &Value| {
            let list = AllowList::compile(std::slice::from_ref(entry));
            list.map_or(true, |list| !known.covers(&list))
        };
        (1..).zip(entries).filter(|(_, entry)| beyond(entry)).map(|(index, _)| index).collect()
    }

    /// Whether the allow-list of `other` certainly allows every client that this one allows.
    pub(crate) fn is_covered_by(&self, other: &ClientIdentity) -> bool {
        match (&self.allow, &other.allow) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(list), Some(wider)) => std::ptr::eq(self, other) || wider.covers(list),
        }
    }

    /// Whether some client is certainly on both lists, because one list covers an entry of the
    /// other.
    pub(crate) fn shares_clients(&self, other: &ClientIdentity) -> bool {
        let entries =
            |block: &ClientIdentity| block.source.get("allow").and_then(Value::as_array).map_or(0, Vec::len);
        self.entries_not_covered_by(other).len() < entries(self)
            || other.entries_not_covered_by(self).len() < entries(other)
    }

    /// Whether the allow-list permits this client; `None` is a client without a verified identity.
    pub fn allows(&self, identity: Option<&pki::Identity>) -> bool {
        match (&self.allow, identity) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(list), Some(identity)) => list.allows(identity),
        }
    }
}

fn invalid(problem: Problem) -> Problem {
    let problem = problem.within("client_identity");
    let message = format!("invalid configuration: property \"{}\": {}", problem.field, problem.message);
    Problem { message, ..problem }
}

impl PartialEq for ClientIdentity {
    fn eq(&self, other: &ClientIdentity) -> bool {
        self.source == other.source
    }
}

impl Eq for ClientIdentity {}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientIdentity({})", self.source)
    }
}

#[cfg(test)]
mod tests;
