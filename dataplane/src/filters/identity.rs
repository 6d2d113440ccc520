//! `client_identity` of a route or service: the allow-list, and the headers that identify the
//! client to the upstream.
//!
//! Both read only the verified [`Identity`](pki::Identity). Without one (plain HTTP, a site that
//! requests no certificate, a skipped path) an allow-list denies the request with 403, and nothing
//! is forwarded (invariant 6).

pub(super) mod rendered;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use model::admission::ClientVerification;
use model::{ClientIdentity, Ssl};
use pki::VerifiedClient;

use self::rendered::IdentityHeaders;
use crate::reason::Reason;

/// Checks the client against the allow-list of a route.
///
/// # Errors
/// `NotAllowed`.
pub fn check_allow_list(block: Option<&ClientIdentity>, client: &ClientVerification) -> Result<(), Reason> {
    match block {
        Some(block) if !block.allows(client.identity()) => Err(Reason::NotAllowed),
        _ => Ok(()),
    }
}

/// The identity headers of a connection's client, made on first use and again after a
/// reverification.
#[derive(Debug, Default)]
pub struct IdentityHeaderCache(RefCell<Option<(Arc<VerifiedClient>, Rc<IdentityHeaders>)>>);

impl IdentityHeaderCache {
    /// Sets the headers of a block. `site`: the connection's, for its own identity.
    pub fn set_headers(
        &self,
        headers: &mut HeaderMap,
        block: &ClientIdentity,
        client: &ClientVerification,
        site: Option<&Ssl>,
    ) {
        let forward = block.forward();
        match client {
            ClientVerification::Verified(verified) => {
                self.get_or_insert(verified).set(headers, forward, verified, site);
            }
            _ if forward.x_ssl_client => rendered::set_unverified(headers),
            _ => {}
        }
    }

    fn get_or_insert(&self, verified: &Arc<VerifiedClient>) -> Rc<IdentityHeaders> {
        let mut cached = self.0.borrow_mut();
        match &*cached {
            Some((client, headers)) if Arc::ptr_eq(client, verified) => Rc::clone(headers),
            _ => {
                let headers = Rc::new(IdentityHeaders::default());
                *cached = Some((Arc::clone(verified), Rc::clone(&headers)));
                headers
            }
        }
    }
}

#[cfg(test)]
mod tests;
