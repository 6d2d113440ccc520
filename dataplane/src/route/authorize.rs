//! Whether this client may ask for this host and path: the decisions that a handshake alone cannot make.
//!
//! The Host's site is looked up by the same function as the SNI's (invariant 1), so there is no way round the
//! client check by naming one site in TLS and another in HTTP. Contract section 5.2, with 421 instead of 400.

use model::{Name, Snapshot, Ssl};
use pki::ClientAuth;

use crate::{http::request::Target, outcome::Reason, tls::verify::Client};

/// What a connection established by TLS is, for every request on it.
#[derive(Debug)]
pub struct Site<'a> {
    /// The name the site was chosen by.
    pub sni: &'a Name,
    /// The site as the newest snapshot has it; `None` when it is gone.
    pub ssl: Option<&'a Ssl>,
    /// The client under the newest policy.
    pub client: &'a Client,
}

/// Judges one request on a TLS connection. Plain connections are not judged (contract 5.2).
///
/// # Errors
/// The reason; its status is the answer.
pub fn admit(site: &Site<'_>, snapshot: &Snapshot, target: &Target) -> Result<(), Reason> {
    let policy = site.ssl.and_then(|ssl| ssl.client.as_deref());
    own_site(policy, site.client, &target.path)?;
    match &target.host {
        Some(host) => same_site(site, policy, snapshot, host),
        None => Ok(()),
    }
}

/// The connection's own policy.
fn own_site(policy: Option<&ClientAuth>, client: &Client, path: &str) -> Result<(), Reason> {
    let Some(policy) = policy else { return Ok(()) };
    match client {
        Client::Verified(_) => Ok(()),
        _ if !policy.insists() && policy.skips(path) => Ok(()),
        Client::Refused(_) => Err(Reason::BadCertificate),
        Client::Absent | Client::NotAsked => Err(Reason::NoCertificate),
    }
}

/// A Host whose site wants client certificates needs the connection to be that very site's.
fn same_site(
    site: &Site<'_>,
    policy: Option<&ClientAuth>,
    snapshot: &Snapshot,
    host: &Name,
) -> Result<(), Reason> {
    if host == site.sni {
        return Ok(());
    }
    let Some(asked) = snapshot.site(host) else { return Ok(()) };
    let Some(wanted) = asked.client.as_deref() else { return Ok(()) };
    let same = site.ssl.is_some_and(|own| own.id == asked.id)
        && policy.is_some_and(|own| own.digest() == wanted.digest());
    if same { Ok(()) } else { Err(Reason::Misdirected) }
}
