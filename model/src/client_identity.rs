//! `client_identity` of a route or service: how the verified client is told to the upstream, and
//! who is let through.
//!
//! A block of ours, not APISIX's. Only what `pki` verified is ever compared or told: without a
//! verified client nobody is allowed and nothing is forwarded (invariant 6). Compiled when a
//! document is checked and again when it arrives at a data plane.

mod allow;

use std::fmt;

pub use allow::AllowList;
use serde_json::Value;

use crate::document::{SchemaBlock, validate_block};
use crate::problem::Problem;

/// The block, compiled.
#[derive(Clone)]
pub struct ClientIdentity {
    source: Value,
    forward: ForwardedHeaders,
    allow: Option<AllowList>,
}

/// Which forms the upstream gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForwardedHeaders {
    /// `Client-Cert` (RFC 9440).
    pub client_cert: bool,
    /// `Client-Cert-Chain` (RFC 9440): the intermediates.
    pub client_cert_chain: bool,
    /// `X-Forwarded-Client-Cert` (Envoy's).
    pub xfcc: bool,
    /// With its `Cert`.
    pub xfcc_cert: bool,
    /// With its `Chain`.
    pub xfcc_chain: bool,
    /// `X-SSL-Client-*` (nginx's usual).
    pub x_ssl_client: bool,
}

impl ClientIdentity {
    /// Compiles the block of a document.
    ///
    /// # Errors
    /// The first problem, by its field.
    pub fn compile(source: &Value) -> Result<ClientIdentity, Problem> {
        validate_block(SchemaBlock::ClientIdentity, source).map_err(invalid)?;
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

    /// As in the document.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Which forms the upstream gets.
    pub fn forward(&self) -> ForwardedHeaders {
        self.forward
    }

    /// Whether only clients that it names may pass.
    pub fn has_allow_list(&self) -> bool {
        self.allow.is_some()
    }

    /// The entries of the allow-list, counted from 1, that fit clients whom the list of `other` may
    /// not fit.
    pub(crate) fn entries_not_covered_by(&self, other: &ClientIdentity) -> Vec<usize> {
        let Some(known) = &other.allow else { return Vec::new() };
        let entries = self.source.get("allow").and_then(Value::as_array).into_iter().flatten();
        let beyond = |entry: &Value| {
            let list = AllowList::compile(std::slice::from_ref(entry));
            list.map_or(true, |list| !known.covers(&list))
        };
        (1..).zip(entries).filter(|(_, entry)| beyond(entry)).map(|(index, _)| index).collect()
    }

    /// Whether some clients surely fit both allow-lists: one has an entry that the other covers.
    pub(crate) fn shares_clients(&self, other: &ClientIdentity) -> bool {
        let entries =
            |block: &ClientIdentity| block.source.get("allow").and_then(Value::as_array).map_or(0, Vec::len);
        self.entries_not_covered_by(other).len() < entries(self)
            || other.entries_not_covered_by(self).len() < entries(other)
    }

    /// Whether this client may pass. `None`: nobody was verified.
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

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientIdentity({})", self.source)
    }
}

#[cfg(test)]
mod tests;
