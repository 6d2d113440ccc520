//! The verified node at the other end of a push session, and until when it stays verified.
//!
//! Invariant: a session runs while its node's certificate is valid under the current CAs and on no
//! deny-list.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mtls::{LoadedCredentials, Reloader};
use pki::CertificateDer;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Status};

use super::deny_list::DenyList;
use super::fleet::NodeCertificate;
use super::{CurrentSettings, PushTls};

/// The longest sleep between two looks at the clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

pub(super) type TlsFileChanges = watch::Receiver<Option<Arc<LoadedCredentials<PushTls>>>>;

/// A verified node.
#[derive(Clone)]
pub(super) struct NodePeer {
    pub address: SocketAddr,
    /// The DNS names of its certificate, in lower case.
    pub names: Vec<String>,
    /// Leaf first.
    presented_chain: Arc<[CertificateDer<'static>]>,
    /// Its certificate and the verified intermediates above.
    path: Vec<pki::Certificate>,
    /// The earliest notAfter of the path.
    expires: UnixTime,
}

impl NodePeer {
    /// The entry of the deny-list that matches its certificate or an issuer of it.
    pub(super) fn denied_by<'a>(&self, list: &'a DenyList) -> Option<&'a str> {
        self.path.iter().find_map(|certificate| list.denies(certificate))
    }

    /// Returns when the certificate expires, is put on the deny-list, or `push.ca` no longer has
    /// its CA or `push.allowed_names` its names, with the status for the node.
    pub(super) async fn wait_until_rejected(
        &self,
        mut list: watch::Receiver<Arc<DenyList>>,
        files: Reloader<PushTls>,
        mut ca_changes: TlsFileChanges,
        mut settings: CurrentSettings,
    ) -> Status {
        let expired = async {
            let mut expires = self.expires;
            // An operator may set the clock, so it is read again now and then.
            while let Some(left) = expires.as_secs().checked_sub(UnixTime::now().as_secs()) {
                let pause = Duration::from_secs(left + 1).min(CLOCK_INTERVAL);
                let changed = tokio::time::timeout(pause, ca_changes.changed()).await;
                if !matches!(changed, Ok(Ok(()))) {
                    continue;
                }
                match verify_chain(&files, &self.presented_chain) {
                    Ok(verified) => expires = verified.valid_until(),
                    Err(error) => {
                        return Status::unauthenticated(format!(
                            "countersign.push.ca has changed, and its certificate (countersign.node.cert) is rejected now: {}",
                            error.message()
                        ));
                    }
                }
            }
            Status::unauthenticated(
                "its certificate (countersign.node.cert) has expired: put a new one and its key into its files",
            )
        };
        let denied = async {
            loop {
                if let Some(entry) = self.denied_by(&list.borrow_and_update()) {
                    return denied_status(entry);
                }
                if list.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let disallowed = async {
            while settings.changed().await.is_ok() {
                let allowed = Arc::clone(&settings.borrow_and_update().allowed_names);
                if let Err(status) = check_allowed(&self.names, &allowed) {
                    return status;
                }
            }
            std::future::pending().await
        };
        tokio::select! { status = expired => status, status = denied => status, status = disallowed => status }
    }

    pub(super) fn certificate(&self) -> Option<NodeCertificate> {
        let leaf = self.path.first()?;
        Some(NodeCertificate::new(leaf, self.expires))
    }
}

/// A certificate's names must be allowed, unless every name is.
pub(super) fn check_allowed(names: &[String], allowed: &[String]) -> Result<(), Status> {
    if allowed.is_empty() || allowed.iter().any(|name| names.contains(&name.to_ascii_lowercase())) {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the node's certificate carries {}, none of which is in countersign.push.allowed_names",
        carried_names(names)
    )))
}

pub(super) fn carried_names(names: &[String]) -> String {
    if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") }
}

pub(super) fn denied_status(entry: &str) -> Status {
    Status::permission_denied(format!(
        "its certificate is on the deny-list of data planes (denied_nodes/{entry} of the Admin API)"
    ))
}

/// Verifies against the current CAs. The handshake may be long ago: one connection carries several
/// streams in turn.
fn verify_chain(
    files: &Reloader<PushTls>,
    sent: &[CertificateDer<'_>],
) -> Result<pki::VerifiedClient, Status> {
    let none = || Status::unauthenticated("no client certificate");
    let (leaf, rest) = sent.split_first().ok_or_else(none)?;
    let files = files.in_use().ok_or_else(|| Status::unavailable("no CA is loaded"))?;
    pki::verify_client(&files.tls.policy, leaf, rest, UnixTime::now())
        .map_err(|error| Status::unauthenticated(error.to_string()))
}

/// Verifies the peer of a stream with `pki`, as everywhere else.
pub(super) fn authenticate<T>(request: &Request<T>, files: &Reloader<PushTls>) -> Result<NodePeer, Status> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let info = info.ok_or_else(|| Status::unauthenticated("not a TLS connection"))?;
    let address =
        info.get_ref().remote_addr().ok_or_else(|| Status::unavailable("the peer has no address"))?;
    let chain = info.peer_certs().ok_or_else(|| Status::unauthenticated("no client certificate"))?;
    let presented_chain: Arc<[_]> =
        chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let verified = verify_chain(files, &presented_chain)?;
    let leaf = verified.identity().certificate().clone();
    Ok(NodePeer {
        address,
        names: leaf.dns_names().into_iter().map(str::to_ascii_lowercase).collect(),
        presented_chain,
        path: std::iter::once(leaf).chain(verified.path().iter().cloned()).collect(),
        expires: verified.valid_until(),
    })
}
