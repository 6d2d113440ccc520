//! `client_identity` of a route or service, for one request: whether its client may pass, and the
//! headers that tell it to the upstream.
//!
//! Stands between the destination and the headers. Reads nothing but the verified [`Identity`]: no
//! identity, no way through an allow-list (plain HTTP, a site that asks for no certificate, a
//! skipped path: 403), and nothing forwarded (invariant 6).
//!
//! [`Identity`]: pki::Identity

mod rendered;
pub mod text;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use model::admission::ClientVerification;
use model::{ClientIdentity, Ssl};
use pki::VerifiedClient;
use rendered::IdentityHeaders;

use crate::reason::Reason;

/// Whether this client may use the route.
///
/// # Errors
/// `NotAllowed`.
pub fn check_allow_list(block: Option<&ClientIdentity>, client: &ClientVerification) -> Result<(), Reason> {
    match block {
        Some(block) if !block.allows(client.identity()) => Err(Reason::NotAllowed),
        _ => Ok(()),
    }
}

/// The forms of one connection's client: made when first asked for, remade when the client is
/// another (a policy moved).
#[derive(Debug, Default)]
pub struct IdentityHeaderCache(RefCell<Option<(Arc<VerifiedClient>, Rc<IdentityHeaders>)>>);

impl IdentityHeaderCache {
    /// Sets the headers a block asks for. `site`: the connection's, for what it says of itself.
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
                self.rendered(verified).set(headers, forward, verified, site)
            }
            _ if forward.x_ssl_client => rendered::set_unverified(headers),
            _ => {}
        }
    }

    fn rendered(&self, verified: &Arc<VerifiedClient>) -> Rc<IdentityHeaders> {
        let mut held = self.0.borrow_mut();
        match &*held {
            Some((of, rendered)) if Arc::ptr_eq(of, verified) => Rc::clone(rendered),
            _ => {
                let rendered = Rc::new(IdentityHeaders::default());
                *held = Some((Arc::clone(verified), Rc::clone(&rendered)));
                rendered
            }
        }
    }
}

#[cfg(test)]
mod tests;
