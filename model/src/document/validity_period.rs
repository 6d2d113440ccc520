//! What about a resource depends on the time: refusals when it is written. What is served all the
//! same is `lint`'s.
//!
//! Not part of `check`, because that also reads what was stored long ago: an anchor that expired
//! since then refuses clients, but must not take the resource away.

use pki::{Certificate, ClientAuth, ClientAuthInput, verify_client};
use rustls_pki_types::UnixTime;

use crate::problem::Problem;
use crate::resource::Resource;

/// What the Admin API refuses now: anchors that can verify nobody, because they are expired or not
/// yet valid, or because they are neither a CA nor a client's own certificate.
///
/// # Errors
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
    // Not a CA: then it can only be a client's own certificate, pinned. The verifier itself says so.
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
