//! The certificates of one run, minted when it starts and gone with its folder.
//!
//! Both sides of the measured handshake show a P-256 leaf and one P-256 intermediate, each from an authority of its
//! own; the Admin API and the push have theirs.

use std::path::Path;
use std::sync::Arc;

use pki::Certificate;
use pki::mint::{Authority, AuthoritySpec, CrlSpec, KeyAlgorithm, LeafSpec, MintError, Minted};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::{HOST, PeerError, RSA_HOST};
use crate::identity::ClientIdentity;

/// Everything that is minted for a run.
pub struct Credentials {
    server_root: Authority,
    server_issuer: Authority,
    client_root: Authority,
    client_issuer: Authority,
    client: Minted,
    operator_root: Authority,
    operator: Minted,
    upstream_root: Authority,
    gateway_root: Authority,
    gateway: Minted,
}

impl Credentials {
    /// Mints them.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn mint() -> Result<Self, MintError> {
        let server_root = Authority::root(&AuthoritySpec::new("Bench Server Root"))?;
        let server_issuer = server_root.intermediate(&AuthoritySpec::new("Bench Server Intermediate"))?;
        let client_root = Authority::root(&AuthoritySpec::new("Bench Client Root"))?;
        let client_issuer = client_root.intermediate(&AuthoritySpec::new("Bench Client Intermediate"))?;
        let client = client_issuer.issue(&LeafSpec::client("bench client"))?;
        let operator_root = Authority::root(&AuthoritySpec::new("Bench Operator Root"))?;
        let operator = operator_root.issue(&LeafSpec::client("bench operator"))?;
        let upstream_root = Authority::root(&AuthoritySpec::new("Bench Upstream Root"))?;
        let gateway_root = Authority::root(&AuthoritySpec::new("Bench Gateway Root"))?;
        let gateway = gateway_root.issue(&LeafSpec::client("bench gateway"))?;
        Ok(Self {
            server_root,
            server_issuer,
            client_root,
            client_issuer,
            client,
            operator_root,
            operator,
            upstream_root,
            gateway_root,
            gateway,
        })
    }

    /// A server certificate (leaf and intermediate) for a name.
    ///
    /// # Errors
    /// When the name cannot be expressed.
    pub fn site(&self, name: &str) -> Result<Minted, MintError> {
        self.server_issuer.issue(&LeafSpec::server(name))
    }

    /// A server certificate with an RSA-2048 key for [`RSA_HOST`], from the same intermediate.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn rsa_site(&self) -> Result<Minted, MintError> {
        self.server_issuer.issue(&LeafSpec::server(RSA_HOST).algorithm(KeyAlgorithm::Rsa2048))
    }

    /// What every peer shows the upstream.
    pub fn gateway(&self) -> &Minted {
        &self.gateway
    }

    /// The upstream's side of TLS: it shows a certificate for [`HOST`] and takes nobody but the gateway.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn upstream_tls(&self) -> Result<Arc<rustls::ServerConfig>, PeerError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut anchors = rustls::RootCertStore::empty();
        anchors.add(self.gateway_root.certificate().der().clone())?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), provider.clone()).build();
        let minted = self.upstream_root.issue(&LeafSpec::server(HOST))?;
        let chain = minted.chain.iter().map(|certificate| certificate.der().clone()).collect();
        let key = PrivateKeyDer::from_pem_slice(minted.key_pem.as_bytes());
        let unusable = |problem: String| rustls::Error::General(problem);
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier.map_err(|error| unusable(error.to_string()))?)
            .with_single_cert(chain, key.map_err(|error| unusable(error.to_string()))?)?;
        Ok(Arc::new(config))
    }

    /// The anchor that servers must demand client certificates from.
    pub fn client_ca_pem(&self) -> String {
        self.client_root.certificate_pem()
    }

    /// The client that loads the servers.
    ///
    /// # Errors
    /// Never in practice: what was minted is readable.
    pub fn loader(&self) -> Result<Arc<ClientIdentity>, PeerError> {
        identity(&self.server_root, &self.client)
    }

    /// Another client, and its certificate.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn another_client(&self, name: &str) -> Result<(Arc<ClientIdentity>, Certificate), PeerError> {
        let minted = self.client_issuer.issue(&LeafSpec::client(name))?;
        Ok((identity(&self.server_root, &minted)?, minted.certificate))
    }

    /// Both authorities above the clients, for a site that is given revocation lists of both.
    pub fn client_authorities_pem(&self) -> String {
        self.client_issuer.certificate_pem() + &self.client_root.certificate_pem()
    }

    /// Current revocation lists of both, with these clients in the issuer's.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn client_crls_pem(&self, revoked: &[Certificate]) -> Result<[String; 2], MintError> {
        let spec = revoked.iter().fold(CrlSpec::new(), CrlSpec::revoke);
        Ok([self.client_issuer.crl_pem(&spec)?, self.client_root.crl_pem(&CrlSpec::new())?])
    }

    /// The client of the Admin API.
    ///
    /// # Errors
    /// Never in practice: what was minted is readable.
    pub fn operator(&self) -> Result<Arc<ClientIdentity>, PeerError> {
        identity(&self.operator_root, &self.operator)
    }

    /// Writes what any server needs: `site.{crt,key}`, `rsa.{crt,key}`, `client-ca.crt`, and for the way to the upstream
    /// `gateway.{crt,key}` and `upstream-ca.crt`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_site(&self, folder: &Path) -> Result<(), PeerError> {
        write_pair(folder, "site", &self.site(HOST)?)?;
        write_pair(folder, "rsa", &self.rsa_site()?)?;
        write_pair(folder, "gateway", &self.gateway)?;
        write(folder, "upstream-ca.crt", &self.upstream_root.certificate_pem())?;
        write(folder, "client-ca.crt", &self.client_ca_pem())
    }

    /// Writes what the two Countersign programs need for the Admin API and the push between them.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_planes(&self, folder: &Path) -> Result<(), PeerError> {
        let loopback = std::net::Ipv4Addr::LOCALHOST.into();
        let admin = LeafSpec::server("admin.test").ip(loopback);
        write_pair(folder, "admin", &self.operator_root.issue(&admin)?)?;
        write_pair(folder, "push-server", &self.operator_root.issue(&LeafSpec::server("controlplane"))?)?;
        let node = LeafSpec::client("bench-node").dns("bench-node");
        write_pair(folder, "node", &self.operator_root.issue(&node)?)?;
        write(folder, "upstream-ca.crt", &self.upstream_root.certificate_pem())?;
        write(folder, "operator-ca.crt", &self.operator_root.certificate_pem())
    }
}

fn identity(trusted: &Authority, own: &Minted) -> Result<Arc<ClientIdentity>, PeerError> {
    let pair = (own.chain_pem.as_bytes(), own.key_pem.as_bytes());
    Ok(Arc::new(ClientIdentity::from_pem(trusted.certificate_pem().as_bytes(), Some(pair))?))
}

/// Writes `name.crt` (leaf first, then intermediates) and `name.key` (readable by us only).
///
/// # Errors
/// When the folder cannot be written.
pub fn write_pair(folder: &Path, name: &str, minted: &Minted) -> Result<(), PeerError> {
    write(folder, &format!("{name}.crt"), &minted.chain_pem)?;
    write_secret(&folder.join(format!("{name}.key")), &minted.key_pem)
}

/// Chain and key as one PEM text without an empty line.
pub fn together(minted: &Minted) -> String {
    let text = minted.chain_pem.clone() + &minted.key_pem;
    text.lines().filter(|line| !line.trim().is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Writes a file that only we may read.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PeerError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(PeerError::system(format!("writing {}", path.display())))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), PeerError> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(PeerError::system(format!("writing {}", path.display())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Upstreams;
    use super::*;

    /// Addresses for tests of what is written into files.
    pub fn upstreams() -> Upstreams {
        Upstreams { plain: ([127, 0, 0, 1], 8001).into(), mtls: ([127, 0, 0, 1], 8002).into() }
    }

    #[test]
    fn chain_and_key_together_have_no_empty_line() {
        let credentials = Credentials::mint().unwrap();
        let text = together(&credentials.site(HOST).unwrap());
        assert!(text.lines().all(|line| !line.is_empty()) && text.ends_with("-----\n"));
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(text.matches("PRIVATE KEY-----").count(), 2);
    }
}
