//! Checks of a resource that depend on the current time, for writes only; `lint` reports what is
//! served in spite of its dates.
//!
//! `compile` has no clock, because it also reads old documents from the store: an anchor that has
//! expired since rejects clients, but must not remove the site.

use pki::{Certificate, ClientAuth, ClientAuthInput, verify_client};
use rustls_pki_types::UnixTime;

use crate::problem::Problem;
use crate::resource::Resource;

/// Checks that each anchor can verify a client now: it is within its validity period, and a CA or a
/// client's own certificate.
///
/// # Errors
///
/// The first such anchor, by its subject.
pub fn check_validity_period(resource: &Resource, now: UnixTime) -> Result<(), Problem> {
    let Resource::Ssl(ssl) = resource else { return Ok(()) };
    let Some(policy) = &ssl.client else { return Ok(()) };
    (1..)
        .zip(policy.anchors().certificates())
        .try_for_each(|(place, anchor)| check_anchor(place, anchor, now))
}

fn check_anchor(place: usize, anchor: &Certificate, now: UnixTime) -> Result<(), Problem> {
    let refuse = |why: String, hint: &str| {
        let message =
            format!("failed to validate client_cert: certificate {place} \"{}\" {why}", anchor.subject());
        Err(Problem::new("client.ca", message).with_hint(hint))
    };
    if now > anchor.not_after() {
        return refuse("is expired".to_owned(), "replace it by its successor, or remove it");
    }
    if now < anchor.not_before() {
        return refuse("is not valid yet".to_owned(), "check the clock, or add it later");
    }
    if anchor.is_ca() {
        return Ok(());
    }
    // A pinned client certificate must pass the verifier itself.
    let pinned = ClientAuth::new(ClientAuthInput { anchors: vec![anchor.clone()], ..Default::default() })
        .map_err(|error| error.to_string())
        .and_then(|policy| verify_client(&policy, anchor.der(), &[], now).map_err(|error| error.to_string()));
    match pinned {
        Ok(_) => Ok(()),
        Err(why) => refuse(
            format!("is not a CA, and as a client's own certificate it fails: {why}"),
            "client.ca takes the CA certificates that sign clients, or clients' own certificates",
        ),
    }
}
